"""What the answers of verbs on one deployment say of it as JSON."""

from planner.cli.screen import Json
from planner.planning.predict import Case, Sized


def deployment_json(case: Case, sized: Sized) -> dict[str, Json]:
    """Model, layout and flags, and whether and on what evidence it starts."""
    layout, engine = case.parallelism, case.engine
    return {
        "model": case.model.name,
        "gpu": case.gpu.name,
        "tp": layout.tp,
        "pp": layout.pp,
        "dp": layout.dp,
        "ep": layout.ep,
        "weight_dtype": case.model.weight_dtype.value,
        "kv_dtype": case.kv_dtype.value,
        "engine_version": engine.engine_version,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "async_scheduling": engine.async_scheduling,
        "fits": sized.refusal is None,
        "reason": None if sized.refusal is None else sized.refusal.reason,
        "basis": None if sized.placed is None else sized.placed.basis.value,
    }
