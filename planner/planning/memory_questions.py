"""Memory questions turned round: what fits, how much of it, and what would make a deployment fit."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from planner.domain.deployment import EngineSettings
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.hardware import Gpu
from planner.domain.plan import Bottleneck
from planner.formulas.dtype_support import kv_dtype_problem, weight_dtype_problem
from planner.formulas.kv_cache import resolve_kv_dtype
from planner.formulas.quantized import with_weight_dtype
from planner.formulas.tensors import VALUE_BYTES
from planner.planning.candidates import TENSOR_PARALLEL
from planner.planning.predict import Case, Sized, size
from planner.planning.sizing import Sizer

SMALLER_WEIGHTS = (WeightDtype.FP8, WeightDtype.INT4)
HIGH_UTILIZATION = 0.95
"""More leaves too little for the CUDA context and what else is on the card."""
SMALL_STEP_TOKENS, SMALL_STEP_SEQS = 2048, 256
"""vLLM's defaults for small cards."""


class HeldLoad(NamedTuple):
    """Running sequences that the KV cache must hold at once."""

    sequences: int
    context_tokens: int


class Change(NamedTuple):
    """A deployment with something changed, and what its card then holds."""

    what: str
    flags: str
    """The change as `vllm serve` takes it."""
    case: Case
    sized: Sized


def sequences_held(sized: Sized, context_tokens: int) -> int:
    """Running sequences of this length that the KV cache holds at once.

    vLLM's logged concurrency counts its null block and rounds what windowed layers reserve; this does not.
    """
    if sized.placed is None or sized.budget is None:
        return 0
    kv = sized.placed.kv
    return int(kv.usable_bytes(sized.budget.kv_cache_bytes) // float(kv.request_bytes(context_tokens)))


def longest_context(case: Case, sized: Sized, sequences: int) -> int:
    """The most tokens that each of so many running sequences can have; 0 where not even one fits.

    Up to what the model can attend to: `max_model_len` is not asked.
    """
    return _largest(case.model.max_position, lambda tokens: sequences_held(sized, tokens) >= sequences)


def tensor_parallel_options(case: Case, sizer: Sizer) -> tuple[tuple[Case, Sized], ...]:
    """The deployment at every degree that divides the model."""
    cases = [_with_tp(case, tp) for tp in TENSOR_PARALLEL]
    sized = [(one, size(one, sizer)) for one in cases]
    return tuple((one, found) for one, found in sized if found.placed is not None)


def smallest_tp(case: Case, sizer: Sizer, load: HeldLoad | None = None) -> int | None:
    """The least tensor-parallel degree at which the engine starts and holds the load; None where none does."""
    options = tensor_parallel_options(case, sizer)
    return next((one.parallelism.tp for one, found in options if holds(found, load)), None)


def holds(sized: Sized, load: HeldLoad | None) -> bool:
    """True where the engine starts and has room for the load."""
    if sized.refusal is not None:
        return False
    return load is None or sequences_held(sized, load.context_tokens) >= load.sequences


def largest_max_model_len(case: Case, sizer: Sizer, sequences: int = 1) -> int:
    """The longest `max_model_len` at which the engine starts and holds so many sequences of it; 0 for none."""

    def works(tokens: int) -> bool:
        found = size(_with_engine(case, max_model_len=tokens), sizer)
        return holds(found, HeldLoad(sequences, tokens) if sequences > 1 else None)

    return _largest(case.model.max_position, works)


def largest_max_num_seqs(case: Case, sizer: Sizer, context_tokens: int | None = None) -> int:
    """The most `max_num_seqs` whose sequences of this length are all held at once; 0 for none.

    More sequences a step also take more room for their logits. Without a length, `max_model_len` is meant.
    """
    tokens = context_tokens or case.engine.max_model_len

    def works(seqs: int) -> bool:
        found = size(_with_engine(case, max_num_seqs=seqs), sizer)
        return found.refusal is None and sequences_held(found, tokens) >= seqs

    return _largest(case.engine.max_num_batched_tokens, works)


def gpu_options(cases: Sequence[Case], sizer: Sizer) -> tuple[tuple[Case, Sized], ...]:
    """The same deployment on each of several GPUs, smallest card first."""
    ordered = sorted(cases, key=lambda case: (case.gpu.memory_bytes, case.gpu.name))
    return tuple((case, size(case, sizer)) for case in ordered)


def smallest_gpu(options: Sequence[tuple[Case, Sized]], load: HeldLoad | None = None) -> Gpu | None:
    """The smallest card on which the engine starts and holds the load."""
    return next((case.gpu for case, found in options if holds(found, load)), None)


def changes(case: Case, sizer: Sizer) -> tuple[Change, ...]:
    """One change at a time that gives more room, and a last one together where none alone is enough.

    Least harmful first: what costs nothing but memory, then length, then hardware, then accuracy. None where it
    is not memory that the deployment lacks.
    """
    refusal = size(case, sizer).refusal
    if refusal is not None and refusal.bottleneck is not Bottleneck.MEMORY:
        return ()
    alone = tuple(_single_changes(case, sizer))
    if any(change.sized.refusal is None for change in alone):
        return alone
    together = _all_at_once(case, sizer)
    return (*alone, together) if together is not None else alone


def _single_changes(case: Case, sizer: Sizer) -> Iterator[Change]:
    engine = case.engine
    given = engine.kv_cache_memory_bytes is not None
    if given:
        yield _change(
            "the cache that is left", "no --kv-cache-memory-bytes", _without_given_cache(case), sizer
        )
    if not given and engine.gpu_memory_utilization < HIGH_UTILIZATION:
        yield _change(
            "more of the card",
            f"--gpu-memory-utilization {HIGH_UTILIZATION}",
            _with_engine(case, gpu_memory_utilization=HIGH_UTILIZATION),
            sizer,
        )
    if not given and engine.max_num_batched_tokens > SMALL_STEP_TOKENS:
        seqs = min(engine.max_num_seqs, SMALL_STEP_SEQS)
        yield _change(
            "smaller steps",
            f"--max-num-batched-tokens {SMALL_STEP_TOKENS} --max-num-seqs {seqs}",
            _with_engine(case, max_num_batched_tokens=SMALL_STEP_TOKENS, max_num_seqs=seqs),
            sizer,
        )
    length = largest_max_model_len(case, sizer)
    if 0 < length < engine.max_model_len:
        shorter = _with_engine(case, max_model_len=length)
        yield _change("a shorter longest sequence", f"--max-model-len {length}", shorter, sizer)
    tp = _next_tp(case, sizer)
    if tp is not None:
        yield _change("more GPUs", f"--tensor-parallel-size {tp}", _with_tp(case, tp), sizer)
    smaller_kv = _with_fp8_kv(case)
    if smaller_kv is not None:
        yield _change("an fp8 KV cache", "--kv-cache-dtype fp8", smaller_kv, sizer)
    for dtype in () if given else SMALLER_WEIGHTS:
        quantised = _with_weights(case, dtype)
        if quantised is not None:
            yield _change(f"{dtype} weights", _weight_flags(dtype), quantised, sizer)


def _all_at_once(case: Case, sizer: Sizer) -> Change | None:
    """The smallest weights and KV cache there are, on the least TP that then fits."""
    smallest = _without_given_cache(case)
    flags: list[str] = []
    for dtype in reversed(SMALLER_WEIGHTS):
        quantised = _with_weights(case, dtype)
        if quantised is not None:
            smallest = quantised
            flags.append(_weight_flags(dtype))
            break
    smaller_kv = _with_fp8_kv(smallest)
    if smaller_kv is not None:
        smallest = smaller_kv
        flags.append("--kv-cache-dtype fp8")
    tp = smallest_tp(smallest, sizer)
    if tp is None:
        return None
    flags.append(f"--tensor-parallel-size {tp}")
    return _change("all of it together", " ".join(flags), _with_tp(smallest, tp), sizer)


def _change(what: str, flags: str, case: Case, sizer: Sizer) -> Change:
    return Change(what, flags, case, size(case, sizer))


def _next_tp(case: Case, sizer: Sizer) -> int | None:
    """The least larger degree that fits, else the least that divides the model."""
    options = [
        (one.parallelism.tp, found)
        for one, found in tensor_parallel_options(case, sizer)
        if one.parallelism.tp > case.parallelism.tp
    ]
    fits = next((tp for tp, found in options if found.refusal is None), None)
    return fits or next((tp for tp, _ in options), None)


def _with_fp8_kv(case: Case) -> Case | None:
    stored = resolve_kv_dtype(case.model, case.kv_dtype, case.engine.engine_version)
    if stored is KvDtype.FP8 or kv_dtype_problem(KvDtype.FP8, case.gpu) is not None:
        return None
    return case._replace(kv_dtype=KvDtype.FP8)


def _with_weights(case: Case, dtype: WeightDtype) -> Case | None:
    if VALUE_BYTES[dtype] >= VALUE_BYTES[case.model.weight_dtype] or weight_dtype_problem(dtype, case.gpu):
        return None
    return case._replace(model=with_weight_dtype(case.model, dtype))


def _weight_flags(dtype: WeightDtype) -> str:
    return "--quantization fp8" if dtype is WeightDtype.FP8 else f"a checkpoint in {dtype}"


def _without_given_cache(case: Case) -> Case:
    engine = case.engine.model_copy(update={"kv_cache_memory_bytes": None})
    return case._replace(engine=engine)


def _with_tp(case: Case, tp: int) -> Case:
    return case._replace(parallelism=case.parallelism.model_copy(update={"tp": tp}))


def _with_engine(case: Case, **changed: float) -> Case:
    return case._replace(engine=_changed(case.engine, changed))


def _changed(engine: EngineSettings, changed: dict[str, float]) -> EngineSettings:
    return engine.model_copy(update=changed)


def _largest(limit: int, works: Callable[[int], bool]) -> int:
    """The largest whole number from 1 to `limit` that works, where every smaller one does too; 0 for none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if works(middle) else (low, middle - 1)
    return low
