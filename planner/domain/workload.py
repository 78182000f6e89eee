"""Traffic and the latency promised."""

from pydantic import Field, model_validator

from planner.domain.base import Frozen

REQUESTS_PER_S = (1e-6, 1e7)
"""Rates that can be served: at lower ones the times of arrival outgrow what a clock tells apart."""


class Workload(Frozen):
    """What users send. Exactly one of `requests_per_s` (open loop) and `concurrency` (closed loop) is set."""

    input_tokens: float = Field(ge=1, le=10_000_000)
    """Prompt length L, prefix-cache hits included."""
    output_tokens: float = Field(ge=1, le=10_000_000)
    """Answer length L."""
    length_low_ratio: float = Field(default=1.0, gt=0, le=1)
    """Lengths are uniform in [r L, L]; 1 means that L is the length, or its mean."""
    prefix_hit_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of prompt tokens found in the prefix cache."""
    requests_per_s: float | None = Field(default=None, ge=REQUESTS_PER_S[0], le=REQUESTS_PER_S[1])
    arrival_cv: float = Field(default=1.0, ge=0, le=20)
    """Coefficient of variation of the gaps between requests: 0 constant, 1 Poisson, above bursty."""
    concurrency: int | None = Field(default=None, ge=1, le=1_000_000)
    num_requests: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_kind_of_load(self) -> "Workload":
        if (self.requests_per_s is None) == (self.concurrency is None):
            raise ValueError("give either requests_per_s (open loop) or concurrency (closed loop), not both")
        return self

    @property
    def mean_input_tokens(self) -> float:
        """Mean prompt length."""
        return self.input_tokens * (1.0 + self.length_low_ratio) / 2.0

    @property
    def mean_output_tokens(self) -> float:
        """Mean answer length; no answer is shorter than a token."""
        return max(self.output_tokens * (1.0 + self.length_low_ratio) / 2.0, 1.0)


class Slo(Frozen):
    """The latency promised; None leaves a figure free."""

    ttft_p95_s: float | None = Field(default=None, gt=0)
    tpot_p95_s: float | None = Field(default=None, gt=0)


class Preset(Frozen):
    """A named, typical workload with the latency its users expect."""

    name: str
    title: str
    description: str
    input_tokens: float = Field(ge=1)
    output_tokens: float = Field(ge=1)
    length_low_ratio: float = Field(default=1.0, gt=0, le=1)
    prefix_hit_ratio: float = Field(default=0.0, ge=0, lt=1)
    arrival_cv: float = Field(default=1.0, ge=0)
    requests_per_s: float = Field(gt=0)
    ttft_p95_ms: float | None = Field(default=None, gt=0)
    tpot_p95_ms: float | None = Field(default=None, gt=0)
    source: str
    as_of: str
