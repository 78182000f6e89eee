"""CUDA graphs as vLLM estimates them: kernels of a layer by hand, and which graphs it counts."""

import pytest

from planner.catalog.models import load_model
from planner.domain.deployment import Parallelism
from planner.formulas.cuda_graphs import GraphPlan, graph_bytes, kernels_of_model, layer_kernels

MIB = 2**20


class TestKernels:
    def test_kernels_by_hand(self) -> None:
        # attention 2 products and 5 more, feed-forward 2 and 2 more, an all-reduce after each
        assert layer_kernels(load_model("meta-llama/Llama-3.1-8B"), 0, Parallelism(tp=2)) == 13
        # attention with head norms 8; router, norm, 9 of the experts
        assert layer_kernels(load_model("Qwen/Qwen3-30B-A3B"), 0, Parallelism()) == 19
        # MLA: 4 products, 4 quantisations, 10 more; router, norm, 9 of the experts and 2 quantisations; shared
        # expert 2 products, 2 quantisations, 2 more; 2 all-reduces
        assert layer_kernels(load_model("deepseek-ai/DeepSeek-R1"), 1, Parallelism(tp=8)) == 39

    def test_stages_share_the_layers(self) -> None:
        model = load_model("meta-llama/Llama-3.1-8B")
        assert kernels_of_model(model, Parallelism(pp=2)) * 2 == kernels_of_model(model, Parallelism())


class TestGraphs:
    @pytest.mark.parametrize(
        ("sizes", "full_up_to", "first", "second"),
        [
            # Pieces 8, 4, 2, 1 and whole 2, 1. V1: max(first of each) + (4 - 1) + (2 - 1); V2: 4 and 1 + (2 - 1)
            ((1, 2, 4, 8), 2, 1 + 3 + 1, 4 + 2),
            # Llama-3.1-8B by default: 51 sizes to 512, 35 of them to 256
            ((1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)), 256, 1 + 50 + 34, 51 + 35),
            # nothing whole: pieces alone
            ((1, 2, 4), 0, 3, 3),
            ((1,), 1, 1, 2),
            ((), 8, 0, 0),
        ],
    )
    def test_first_graphs_share_the_pool_on_the_first_runner(
        self, sizes: tuple[int, ...], full_up_to: int, first: int, second: int
    ) -> None:
        """profile_cudagraph_memory of gpu_model_runner.py (V1) and of gpu/cudagraph_utils.py (V2)."""
        assert GraphPlan(sizes, full_up_to).counted == first
        assert GraphPlan(sizes, full_up_to, v2_runner=True).counted == second

    def test_a_graph_counts_a_mebibyte_at_least(self) -> None:
        assert graph_bytes(GraphPlan((1, 2, 4), full_up_to=2), 10, 100.0) == 4 * MIB
        assert graph_bytes(GraphPlan((1, 2, 4), full_up_to=0), 1000, 9000.0) == 3 * 9_000_000
