"""Time a request and a step spend outside the GPU: the engine's host work, and the front end before and after it."""

from typing import Annotated

from pydantic import Field

from planner.domain.base import Frozen

MAX_S = 10.0
Seconds = Annotated[float, Field(ge=0, le=MAX_S, allow_inf_nan=False)]


class HostTime(Frozen):
    """What no kernel table tells; fitted on serving runs."""

    step_s: Seconds
    """Host work of a step that the GPU waits for, where scheduling is asynchronous."""
    per_sequence_s: Seconds
    """More of it for each sequence in the step."""
    sync_step_s: Seconds
    """The same where a step is scheduled only when the one before has ended."""
    sync_per_sequence_s: Seconds
    chain_s: Seconds = 0.0
    """Host work of a step that runs beside the GPU where scheduling is asynchronous: no step is shorter."""
    chain_per_sequence_s: Seconds = 0.0
    front_s: Seconds
    """Work of the front end on each request before the engine sees it, one request after the other."""
    front_per_token_s: Seconds
    """More of it for each prompt token: tokenising, handing over."""
    reply_s: Seconds
    """From the step that makes the first token to the client, and from the client to the front end."""
    reply_per_user_s: Seconds
    """More of it for each request in flight: streaming shares one process."""

    def of_step(self, *, async_scheduling: bool) -> tuple[float, float]:
        """Host work of a step, and more of it for each sequence [s]."""
        if async_scheduling:
            return self.step_s, self.per_sequence_s
        return self.sync_step_s, self.sync_per_sequence_s

    def beside_step(self, *, async_scheduling: bool) -> tuple[float, float]:
        """Host work beside the GPU's step, and more of it for each sequence [s]."""
        return (self.chain_s, self.chain_per_sequence_s) if async_scheduling else (0.0, 0.0)


class MeasuredHost(Frozen):
    """What was measured beside one GPU of `HostTime`; None where no run tells."""

    sync_step_s: Seconds | None = None
    sync_per_sequence_s: Seconds | None = None
    step_s: Seconds | None = None
    chain_s: Seconds | None = None
    front_s: Seconds | None = None
    reply_s: Seconds | None = None

    def on(self, host: HostTime) -> HostTime:
        """`host` with this in place of its own."""
        return host.model_copy(update=self.model_dump(exclude_none=True))


NO_HOST_TIME = HostTime(
    step_s=0.0,
    per_sequence_s=0.0,
    sync_step_s=0.0,
    sync_per_sequence_s=0.0,
    front_s=0.0,
    front_per_token_s=0.0,
    reply_s=0.0,
    reply_per_user_s=0.0,
)
