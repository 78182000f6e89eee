"""What a draft model adds to a card for speculative decoding (vLLM's method `draft_model`).

The draft is a language model of its own: it shares neither embedding nor head with the target, and is split over
as many tensor-parallel ranks (vllm/v1/spec_decode/draft_model.py). N-gram speculation keeps no weights at all.
"""

from planner.domain.deployment import Parallelism, Speculation
from planner.domain.model import Model
from planner.formulas.engine_defaults import EngineVersion, parse_version
from planner.formulas.gemms import check_parallelism
from planner.formulas.load_target import LoadTarget
from planner.formulas.weights import weights_bytes

DRAFT_MODELS_SINCE = EngineVersion(0, 16, 0)
"""0.14.1 refuses them; 0.15 was not read."""
DRAFT_EXPERT_PARALLEL_SINCE = EngineVersion(0, 32, 0)
"""A draft that is a mixture of experts follows the target's expert parallelism; in 0.26 it did not."""


def draft_parallelism(draft: Model, parallelism: Parallelism, version: EngineVersion) -> Parallelism:
    """How the draft is split beside a target split so (vllm/config/speculative.py, create_draft_parallel_config).

    With pipeline stages it stands whole on the last.
    """
    follows = version >= DRAFT_EXPERT_PARALLEL_SINCE
    return Parallelism(tp=parallelism.tp, ep=parallelism.ep and draft.has_moe and follows)


def draft_bytes(speculation: Speculation, parallelism: Parallelism, target: LoadTarget) -> int:
    """Weight bytes of the draft model on each rank that holds it, after loading on `target` [bytes]."""
    draft = speculation.draft
    return weights_bytes(draft, draft_parallelism(draft, parallelism, target.version), target)


def draft_problem(
    model: Model, speculation: Speculation, parallelism: Parallelism, *, engine_version: str = ""
) -> str | None:
    """Why vLLM would not start `model` with this draft, None where it would.

    Raises `InputError` where `engine_version` is not a vLLM version.
    """
    version = parse_version(engine_version)
    draft = speculation.draft
    if version < DRAFT_MODELS_SINCE:
        return f"vLLM {version} takes no draft models; they work since {DRAFT_MODELS_SINCE}"
    if draft.vocab != model.vocab:
        return (
            f"the draft model needs the vocabulary of its target: {draft.name} has {draft.vocab} tokens, "
            f"{model.name} {model.vocab}"
        )
    problem = check_parallelism(draft, draft_parallelism(draft, parallelism, version))
    return None if problem is None else f"the draft model {draft.name} does not split so: {problem}"
