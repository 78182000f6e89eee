"""A layer's operators: experts as their kernel sees them, waits between ranks, work beside other work."""

import numpy as np
import pytest

from planner.calibrate.store import operators_for
from planner.catalog.load import find_gpu
from planner.catalog.models import load_model
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import WeightDtype
from planner.domain.hardware import Interconnect
from planner.domain.model import GemmRole
from planner.formulas.arrays import FloatArray
from planner.formulas.engine_defaults import engine_rules
from planner.formulas.layer_time import LayerPart, OtherWork, Rank, layer_body_s, layer_parts
from planner.formulas.operators import MoeShape, StepTuning, moe_s

TOKENS = np.array([1.0, 64.0, 192.0, 256.0, 512.0, 8192.0])
GPT_OSS, LLAMA, DEEPSEEK = "openai/gpt-oss-120b", "meta-llama/Llama-3.1-70B", "deepseek-ai/DeepSeek-V3"
MARLIN, TRITON = "0.18.1", "0.19.0"
"""The last release whose mxfp4 experts went through Marlin on Hopper, and the next."""


def rank_of(
    model: str,
    *,
    tp: int = 1,
    gpu: str = "H100-SXM-80GB",
    release: str = "",
    dtype: WeightDtype | None = None,
) -> Rank:
    loaded = load_model(model) if dtype is None else load_model(model, weight_dtype=dtype)
    operators = operators_for(find_gpu(gpu), (shipped_calibration_dir(),))
    return Rank(loaded, Parallelism(tp=tp), operators, Interconnect.NVSWITCH, engine_rules(release))


def last_layer(rank: Rank) -> tuple[LayerPart, ...]:
    """Of the kind that has experts where any has."""
    return layer_parts(rank, len(rank.model.layer_kinds) - 1, TOKENS)


def time_of(parts: tuple[LayerPart, ...], *what: GemmRole | OtherWork) -> FloatArray:
    return np.asarray(np.sum([part.time_s for part in parts if part.what in what], axis=0), dtype=np.float64)


@pytest.mark.parametrize("model", [GPT_OSS, LLAMA, DEEPSEEK])
def test_a_layer_is_the_sum_of_its_operators(model: str) -> None:
    rank = rank_of(model, tp=8)
    for kind in range(len(rank.model.layer_kinds)):
        parts = layer_parts(rank, kind, TOKENS)
        assert layer_body_s(rank, kind, TOKENS) == pytest.approx(
            np.sum([part.time_s for part in parts], axis=0)
        )
        assert all((part.time_s >= 0).all() for part in parts)


@pytest.mark.parametrize(("tp", "inputs", "intermediate"), [(1, 3072, 2944), (2, 3072, 1536), (8, 3072, 384)])
def test_mxfp4_through_marlin_is_padded_int4_with_its_own_weight(
    tp: int, inputs: int, intermediate: int
) -> None:
    """gpt-oss: 2880 inputs up to 12 x 256; 2880, 1440 and 360 wide up to 23, 12 and 3 x 128; a scale for 32 weights."""
    rank = rank_of(GPT_OSS, tp=tp, release=MARLIN)
    marlin = MoeShape(128, 128, 4, inputs, intermediate, True, WeightDtype.INT4, False, weight_bytes=0.53125)
    assert time_of(last_layer(rank), GemmRole.EXPERTS) == pytest.approx(moe_s(TOKENS, marlin, rank.ops))


@pytest.mark.parametrize(
    ("gpu", "release"), [("H100-SXM-80GB", TRITON), ("A100-SXM-80GB", MARLIN), ("B200", MARLIN)]
)
def test_mxfp4_elsewhere_is_as_it_was_timed(gpu: str, release: str) -> None:
    rank = rank_of(GPT_OSS, tp=2, gpu=gpu, release=release)
    (experts,) = (part for part in last_layer(rank) if part.what is GemmRole.EXPERTS)
    plain = MoeShape(128, 128, 4, 2880, 1440, True, WeightDtype.MXFP4, False)
    assert experts.time_s == pytest.approx(moe_s(TOKENS, plain, rank.ops))


@pytest.mark.parametrize(
    ("model", "dtype", "group", "shape"),
    [
        ("moonshotai/Kimi-K2.5", None, 32, (384, 384, 8, 7168, 256)),
        ("Qwen/Qwen3-30B-A3B", WeightDtype.INT4, 128, (128, 128, 8, 2048, 96)),
    ],
)
def test_int4_experts_have_the_scales_of_their_checkpoint(
    model: str, dtype: WeightDtype | None, group: int, shape: tuple[int, int, int, int, int]
) -> None:
    """Half a byte and a 16-bit scale for each group of 32 or 128 weights; the tables are of 32."""
    rank = rank_of(model, tp=8, dtype=dtype)
    own = MoeShape(*shape, True, WeightDtype.INT4, False, weight_bytes=0.5 + 2 / group)
    experts_s = time_of(last_layer(rank), GemmRole.EXPERTS)
    assert experts_s == pytest.approx(moe_s(TOKENS, own, rank.ops))
    as_timed_s = moe_s(TOKENS, own._replace(weight_bytes=None), rank.ops)
    assert (experts_s < as_timed_s).all() == (group == 128)
    assert (experts_s == pytest.approx(as_timed_s)) == (group == 32)


@pytest.mark.parametrize(("tp", "waits"), [(1, 0), (2, 1), (4, 2), (8, 3)])
def test_every_doubling_of_the_ranks_adds_a_wait_to_each_all_reduce(tp: int, waits: int) -> None:
    """A dense layer reduces twice: at TP 8 with 2 us a doubling, 2 x 3 x 2 = 12 us."""
    plain = rank_of(LLAMA, tp=tp)
    waiting = plain._replace(ops=plain.ops._replace(tuning=StepTuning(rank_wait_s=2e-6)))
    before, after = last_layer(plain), last_layer(waiting)
    for one, other in zip(before, after, strict=True):
        added = 2 * waits * 2e-6 if one.what is OtherWork.ALL_REDUCE else 0.0
        assert other.time_s - one.time_s == pytest.approx(added, abs=1e-12)


def test_shared_experts_of_few_tokens_run_beside_the_routed_ones() -> None:
    """Since 0.12 and up to 256 tokens; alone they would take as long as before."""
    shared = (GemmRole.SHARED_GATE_UP, GemmRole.SHARED_DOWN)
    older, newer = (last_layer(rank_of(DEEPSEEK, tp=8, release=release)) for release in ("0.11.2", "0.12.0"))
    alone_s, beside_s = time_of(older, *shared), time_of(newer, *shared)
    few = TOKENS <= 256
    assert (alone_s > 0).all()
    assert (beside_s[few] == 0).all()
    assert beside_s[~few].tolist() == alone_s[~few].tolist()
    assert time_of(newer, GemmRole.EXPERTS) == pytest.approx(time_of(older, GemmRole.EXPERTS))


def test_a_model_without_shared_experts_hides_nothing() -> None:
    older, newer = (
        last_layer(rank_of("Qwen/Qwen3-30B-A3B", release=release)) for release in ("0.11.2", "0.12.0")
    )
    for one, other in zip(older, newer, strict=True):
        assert one.time_s.tolist() == other.time_s.tolist()


def test_an_all_reduce_is_that_of_its_release() -> None:
    """Eight H100s took a third longer for 256 KiB, 16 tokens of 8192, with vLLM 0.14 than with 0.24."""
    tokens = np.array([16.0])
    older_s, newer_s = (
        time_of(layer_parts(rank_of(LLAMA, tp=8, release=release), 0, tokens), OtherWork.ALL_REDUCE)[0]
        for release in ("0.14.0", "0.24.0")
    )
    assert 1.1 * newer_s < older_s < 1.6 * newer_s
