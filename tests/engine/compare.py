"""What the planner says of a case, held against what vLLM says of it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from planner.domain.dtypes import WeightDtype
from planner.domain.model import Model
from planner.formulas.gemms import check_parallelism
from planner.formulas.kv_cache import kv_parts
from planner.formulas.kv_layers import CacheKind
from planner.formulas.tensors import FP32, WeightTensor
from planner.formulas.weights import weight_tensors
from tests.engine.live import Case, text_model

SPEC_KINDS = {
    "FullAttentionSpec": CacheKind.FULL,
    "MLAAttentionSpec": CacheKind.FULL,
    "SlidingWindowSpec": CacheKind.SLIDING,
    "ChunkedLocalAttentionSpec": CacheKind.CHUNKED,
    "MambaSpec": CacheKind.STATE,
}
PLAIN_DTYPES = {"bfloat16": WeightDtype.BF16, "float16": WeightDtype.FP16, "float32": FP32}


def differences(case: Case, answer: dict[str, Any]) -> list[str]:
    """Every figure in which planner and vLLM are not equal; none is the only good answer."""
    model = text_model(case)
    refusal = check_parallelism(model, case.parallelism)
    if refusal is not None:
        return [f"{case}: refused, {refusal}; vLLM builds it"]
    return [
        f"{case}: {what} is {ours:,}, vLLM has {theirs:,}"
        for what, ours, theirs in [*_weights(case, model, answer), *_caches(case, model, answer)]
        if ours != theirs
    ]


def part_of(tensor: WeightTensor) -> str:
    """The part of the model as the oracle divides it."""
    if tensor.name == "final_norm":
        return "final_norm"
    return tensor.group if tensor.group in {"embedding", "head", "experts"} else "layers"


def _weights(case: Case, model: Model, answer: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    tensors = weight_tensors(model, case.parallelism, case.pp_rank)
    yield "parameter bytes", sum(tensor.size_bytes for tensor in tensors), answer["parameter_bytes"]
    parts: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for tensor in tensors:
        parts[part_of(tensor)] += tensor.size_bytes
        dtypes[tensor.dtype] += tensor.size_bytes
    for part in parts.keys() | answer["bytes_by_part"].keys():
        yield f"bytes of {part}", parts[part], answer["bytes_by_part"].get(part, 0)
    by_dtype = answer["bytes_by_dtype"]
    if model.quantization is None:
        for name, dtype in PLAIN_DTYPES.items():
            yield f"bytes in {name}", dtypes[dtype], by_dtype.get(name, 0)


def _caches(case: Case, model: Model, answer: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Layers and page bytes by kind and window; a page is as many tokens as vLLM's, or a state."""
    ours: Counter[tuple[str, CacheKind, int]] = Counter()
    theirs: Counter[tuple[str, CacheKind, int]] = Counter()
    block_tokens = {SPEC_KINDS[spec["kind"]]: spec["block_size"] for spec in answer["kv_specs"]}
    for part in kv_parts(model, case.parallelism, pp_rank=case.pp_rank):
        key = part.kind, part.window_tokens or 0
        ours["layers", *key] += part.layers
        ours["page bytes", *key] += part.state_bytes or part.bytes_per_token * block_tokens.get(part.kind, 0)
    for spec in answer["kv_specs"]:
        key = SPEC_KINDS[spec["kind"]], spec["window_tokens"] or 0
        theirs["layers", *key] += spec["layers"]
        theirs["page bytes", *key] += spec["layers"] * spec["page_bytes"]
    for name in ours.keys() | theirs.keys():
        yield f"{name[0]} of {name[1]} caches, window {name[2]}", ours[name], theirs[name]
