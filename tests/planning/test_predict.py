"""Predictions of single deployments: ranks, loops and kernels that are easily counted wrong."""

from functools import cache

import numpy as np
import pytest

from planner.assemble.question import facts_for
from planner.catalog.load import find_gpu
from planner.catalog.models import load_model
from planner.domain.deployment import EngineSettings, Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.hardware import Interconnect
from planner.domain.model import GemmRole
from planner.domain.workload import Workload
from planner.formulas.gemms import layer_gemms
from planner.formulas.operators import gemm_s
from planner.formulas.step import GRID_TOKENS, Cluster, StepModel, compile_step
from planner.planning.facts import Facts
from planner.planning.predict import Case, Prediction, default_interconnect, predict

ENGINE = EngineSettings(
    max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=8192, gpu_memory_utilization=0.9
)


@cache
def facts() -> Facts:
    return facts_for()


ALONE = Parallelism()


@pytest.mark.parametrize(
    ("gpu", "wanted", "bridges"),
    [
        ("H100-SXM-80GB", Interconnect.NVSWITCH, False),
        ("GB200", Interconnect.NVSWITCH, False),
        ("H100-NVL", Interconnect.NVLINK_PAIR, True),
        ("H100-PCIe-80GB", Interconnect.NVLINK_PAIR, True),
        ("H200-NVL", Interconnect.NVLINK_PAIR, True),
        ("A100-PCIe-80GB", Interconnect.NVLINK_PAIR, True),
        # no NVLink, no bridge
        ("V100-PCIe-16GB", Interconnect.PCIE, False),
        ("L40S", Interconnect.PCIE, False),
        ("MI300X", Interconnect.INFINITY_FABRIC, False),
    ],
)
def test_how_gpus_reach_each_other_follows_their_kind(gpu: str, wanted: Interconnect, bridges: bool) -> None:
    found = find_gpu(gpu)
    assert default_interconnect(found) is wanted
    assert found.has_nvlink_bridges is bridges


def one(model: str, gpu: str = "H200", *, parallelism: Parallelism = ALONE, **load: float) -> Prediction:
    workload = Workload.model_validate({"input_tokens": 1024, "output_tokens": 256} | load)
    case = Case(load_model(model), find_gpu(gpu), parallelism, KvDtype.AUTO, ENGINE, workload)
    return predict([case], facts())[0]


def step(model: str, parallelism: Parallelism) -> StepModel:
    operators = facts().operators_for(find_gpu("H200"))
    return compile_step(
        load_model(model), parallelism, KvDtype.AUTO, operators, Cluster(Interconnect.NVSWITCH, 0.0)
    )


def test_one_user_keeps_one_data_parallel_rank_busy() -> None:
    alone = one("meta-llama/Llama-3.1-8B", concurrency=1)
    ranks = one("meta-llama/Llama-3.1-8B", parallelism=Parallelism(dp=8), concurrency=1)
    assert ranks.output_tokens_per_s == pytest.approx(alone.output_tokens_per_s)
    assert ranks.running_requests == pytest.approx(1.0)


def test_no_more_users_than_requests() -> None:
    few = one("meta-llama/Llama-3.1-8B", concurrency=10, num_requests=10)
    crowd = one("meta-llama/Llama-3.1-8B", concurrency=10_000, num_requests=10)
    assert crowd.latency == few.latency


def test_experts_see_the_tokens_of_every_data_parallel_rank() -> None:
    """DeepSeek-V3 over eight GPUs: 8 tokens on each of 8 ranks wake more experts than 8 tokens in all."""
    parallelism = Parallelism(tp=1, dp=8, ep=True)
    at = int(np.flatnonzero(GRID_TOKENS == 8)[0])
    tensor = step("deepseek-ai/DeepSeek-V3", Parallelism(tp=8, ep=True))
    assert step("deepseek-ai/DeepSeek-V3", parallelism).body_s[at] > tensor.body_s[at]


def test_the_latent_expansion_is_counted_once() -> None:
    """kv_b_proj is absorbed in decode and part of the prompt kernel: no separate product of it may be in the body."""
    model, parallelism = load_model("deepseek-ai/DeepSeek-V2-Lite"), Parallelism()
    operators = facts().operators_for(find_gpu("H200"))
    products_s = np.zeros_like(GRID_TOKENS)
    expansion_s = np.zeros_like(GRID_TOKENS)
    for index in range(len(model.layer_kinds)):
        for gemm in layer_gemms(model, index, parallelism).gemms:
            time_s = model.layer_pattern.count(index) * gemm_s(
                GRID_TOKENS, gemm.n, gemm.k, gemm.dtype, operators
            )
            products_s += time_s
            expansion_s += time_s * (gemm.role is GemmRole.MLA_KV_UP)
    assert (expansion_s > 0).all()
    without_experts = step("deepseek-ai/DeepSeek-V2-Lite", parallelism).body_s
    assert np.isfinite(without_experts).all()
    assert GemmRole.MLA_KV_UP in {g.role for g in layer_gemms(model, 0, parallelism).gemms}


def test_sparse_attention_still_scores_every_key() -> None:
    """DeepSeek-V3.2: attention stops at 2,048 keys, its indexer reads 132 bytes of every earlier token in 61 layers."""
    sparse = step("deepseek-ai/DeepSeek-V3.2", Parallelism(tp=8))
    unlimited = sparse.scope_tokens > 1e9
    per_token_s = sparse.decode_per_token_s[unlimited].sum()
    floor_s = 61 * 132 / find_gpu("H200").memory_bandwidth_bytes_per_s
    assert floor_s < per_token_s < 2 * floor_s


def test_overload_queues_for_as_long_as_the_run_lasts() -> None:
    calm = one("meta-llama/Llama-3.1-8B", requests_per_s=1.0)
    flood = one("meta-llama/Llama-3.1-8B", requests_per_s=1000.0)
    assert calm.latency is not None
    assert flood.latency is not None
    assert flood.latency.ttft_mean_s > 60 > calm.latency.ttft_mean_s


def test_an_open_loop_at_the_rate_of_a_closed_one_runs_as_many() -> None:
    closed = one("meta-llama/Llama-3.1-8B", concurrency=32, length_low_ratio=0.5)
    rate = closed.output_tokens_per_s / (256 * 0.75)
    opened = one("meta-llama/Llama-3.1-8B", requests_per_s=rate, length_low_ratio=0.5)
    assert opened.running_requests == pytest.approx(32, rel=0.1)
    assert opened.latency is not None
    assert closed.latency is not None
    assert opened.latency.tpot_mean_s == pytest.approx(closed.latency.tpot_mean_s, rel=0.05)
