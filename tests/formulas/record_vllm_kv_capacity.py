"""Records what vLLM's own page grouping says of bundled models; replayed by test_kv_cache.py.

In an environment that has both this package's dependencies and vLLM (0.32.0 on CPU was used):
`python -m tests.formulas.record_vllm_kv_capacity > tests/formulas/vllm_kv_capacity.csv`

The cache specs are built from the configs, so that the GPU's page size of 16 tokens is used whatever machine
records; grouping, block counts, tokens and concurrency are vLLM's. Speculation and the prefill's own state are put
into the specs as vllm/model_executor/layers/mamba/{abstract,mamba_mixer2}.py do.
"""

import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import torch
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

from planner.catalog.models import load_model
from planner.domain.model import LatentAttention, LinearAttention, MambaMixer, Model, SoftmaxAttention

GIB = 2**30
BLOCK = 16
BATCHES_IN_FLIGHT = 2


class Flags(NamedTuple):
    """What decides paging beside the model."""

    hybrid: bool = True
    prefix_caching: bool = True
    draft: str = ""
    speculated: int = 0


CASES: list[tuple[str, int, int, Flags]] = [
    (model, tp, value_bytes, Flags())
    for model, tp, value_bytes in (
        ("meta-llama/Llama-3.1-8B", 1, 2),
        ("openai/gpt-oss-20b", 1, 2),
        ("openai/gpt-oss-120b", 2, 2),
        ("openai/gpt-oss-120b", 8, 1),
        ("google/gemma-2-9b", 1, 2),
        ("google/gemma-3-4b-it", 1, 2),
        ("google/gemma-3-27b-it", 1, 2),
        ("google/gemma-4-26B-A4B", 1, 2),
        ("google/gemma-4-26B-A4B", 8, 2),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 4, 2),
        ("XiaomiMiMo/MiMo-V2-Flash", 4, 2),
        ("mistralai/Mistral-7B-v0.1", 1, 2),
        ("deepseek-ai/DeepSeek-V3", 8, 2),
        ("deepseek-ai/DeepSeek-V3.2", 8, 2),
        ("nvidia/Llama-3_3-Nemotron-Super-49B-v1", 4, 2),
        ("Qwen/Qwen3.5-35B-A3B", 1, 2),
        ("Qwen/Qwen3.5-27B", 2, 2),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 4, 2),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 1, 2),
    )
] + [
    ("openai/gpt-oss-20b", 1, 2, Flags(hybrid=False)),
    ("openai/gpt-oss-120b", 2, 2, Flags(hybrid=False)),
    ("openai/gpt-oss-120b", 8, 1, Flags(hybrid=False)),
    ("google/gemma-3-4b-it", 1, 2, Flags(hybrid=False)),
    ("google/gemma-3-27b-it", 1, 2, Flags(hybrid=False)),
    ("google/gemma-3-27b-it", 4, 2, Flags(hybrid=False)),
    ("google/gemma-4-26B-A4B", 2, 2, Flags(hybrid=False)),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 4, 2, Flags(hybrid=False)),
    ("mistralai/Mistral-7B-v0.1", 1, 2, Flags(hybrid=False)),
    ("meta-llama/Llama-3.1-8B", 1, 2, Flags(draft="meta-llama/Llama-3.2-1B", speculated=5)),
    ("meta-llama/Llama-3.1-8B", 4, 2, Flags(draft="meta-llama/Llama-3.2-1B", speculated=5)),
    ("meta-llama/Llama-3.1-70B", 8, 1, Flags(draft="meta-llama/Llama-3.2-1B", speculated=3)),
    ("google/gemma-3-27b-it", 2, 2, Flags(draft="google/gemma-3-1b-it", speculated=4)),
    ("google/gemma-3-27b-it", 2, 2, Flags(hybrid=False, draft="meta-llama/Llama-3.2-1B", speculated=4)),
    ("openai/gpt-oss-120b", 4, 2, Flags(draft="openai/gpt-oss-20b", speculated=4)),
    ("openai/gpt-oss-120b", 4, 2, Flags(draft="Qwen/Qwen3-0.6B", speculated=4)),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", 4, 2, Flags(draft="Qwen/Qwen3-0.6B", speculated=2)),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", 4, 2, Flags(prefix_caching=False)),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", 8, 2, Flags(prefix_caching=False)),
    ("Qwen/Qwen3.5-27B", 2, 2, Flags(prefix_caching=False)),
    ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 1, 2, Flags(prefix_caching=False)),
    ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 4, 1, Flags(prefix_caching=False)),
]
SIZES = [(32768, 8192, 20 * GIB + 12345), (8192, 2048, 7 * GIB), (131072, 16384, 60 * GIB)]
COLUMNS = (
    "model",
    "tp",
    "kv_bytes_per_value",
    "hybrid",
    "prefix_caching",
    "draft",
    "num_speculative_tokens",
    "max_model_len",
    "max_num_batched_tokens",
    "available_bytes",
    "groups",
    "num_blocks",
    "tokens",
    "max_concurrency",
)


def attention_specs(model: Model, tp: int, value_bytes: int, block: int) -> Iterator[KVCacheSpec]:
    """The spec of every layer that caches keys and values."""
    dtype = {1: torch.uint8, 2: torch.bfloat16}[value_bytes]
    for index in model.layer_pattern:
        match model.layer_kinds[index].attention:
            case SoftmaxAttention() as a:
                sizes = {
                    "block_size": block,
                    "num_kv_heads": max(1, a.kv_heads // tp),
                    "head_size": a.head_dim,
                    "head_size_v": a.v_head_dim,
                    "dtype": dtype,
                }
                if a.window_tokens:
                    yield SlidingWindowSpec(sliding_window=a.window_tokens, **sizes)
                elif a.chunk_tokens:
                    yield ChunkedLocalAttentionSpec(attention_chunk_size=a.chunk_tokens, **sizes)
                else:
                    yield FullAttentionSpec(**sizes)
            case LatentAttention() as a:
                width = a.kv_lora_rank + a.qk_rope_head_dim
                yield MLAAttentionSpec(block_size=block, num_kv_heads=1, head_size=width, dtype=dtype)
                if a.indexer_heads:
                    key = a.indexer_head_dim + a.indexer_head_dim // 128 * 4
                    yield MLAAttentionSpec(block_size=block, num_kv_heads=1, head_size=key, dtype=torch.uint8)


def state_spec(model: Model, tp: int, flags: Flags) -> MambaSpec | None:
    """The state of a recurrent layer, by vLLM's own shape calculators."""
    from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator as Shapes

    for kind in model.layer_kinds:
        a = kind.attention
        if a is None or isinstance(a, SoftmaxAttention | LatentAttention):
            continue
        if isinstance(a, LinearAttention):
            shapes = Shapes.gated_delta_net_state_shape(
                tp,
                a.key_heads,
                a.value_heads,
                a.key_head_dim,
                a.value_head_dim,
                a.conv_kernel,
                flags.speculated,
            )
        else:
            shapes = Shapes.mamba2_state_shape(
                tp,
                a.heads * a.head_dim,
                a.groups,
                a.heads,
                a.head_dim,
                a.state_size,
                a.conv_kernel,
                flags.speculated,
            )
        ssm = {2: torch.bfloat16, 4: torch.float32}[a.state_bytes_per_value]
        return MambaSpec(
            block_size=BLOCK,
            shapes=shapes,
            dtypes=(torch.bfloat16, ssm),
            mamba_cache_mode=mamba_cache_mode(flags),
            num_speculative_blocks=flags.speculated,
            num_prefill_checkpoint_blocks=1 if isinstance(a, MambaMixer) else 0,
        )
    return None


def mamba_cache_mode(flags: Flags) -> str:
    """What HybridAttentionMambaModelConfig sets."""
    return "align" if flags.prefix_caching else "none"


def specs(model: Model, tp: int, value_bytes: int, flags: Flags) -> dict[str, KVCacheSpec]:
    """All cache specs, pages of hybrids aligned as vllm/platforms/interface.py does."""
    state = state_spec(model, tp, flags)
    block = BLOCK
    states: list[KVCacheSpec] = []
    if state is not None:
        one_token = next(iter(attention_specs(model, tp, value_bytes, 1))).page_size_bytes
        block = BLOCK * -(-state.page_size_bytes // (BLOCK * one_token))
        mixers = [model.layer_kinds[i].attention for i in model.layer_pattern]
        count = sum(a is not None and not isinstance(a, SoftmaxAttention | LatentAttention) for a in mixers)
        states = [replace(state, block_size=block, page_size_padded=block * one_token)] * count
    attention = list(attention_specs(model, tp, value_bytes, block))
    drafted = attention_specs(load_model(flags.draft), tp, value_bytes, block) if flags.draft else ()
    return {f"layer.{i}": s for i, s in enumerate([*attention, *states, *drafted])}


def config(max_model_len: int, max_num_batched_tokens: int, flags: Flags) -> SimpleNamespace:
    """The parts of a VllmConfig that grouping reads."""
    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=max_model_len),
        scheduler_config=SimpleNamespace(
            max_num_batched_tokens=max_num_batched_tokens,
            disable_hybrid_kv_cache_manager=not flags.hybrid,
        ),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        cache_config=SimpleNamespace(
            mamba_cache_mode=mamba_cache_mode(flags),
            num_gpu_blocks_override=None,
            prefix_cache_retention_interval=0,
            get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC,
        ),
        attention_config=SimpleNamespace(hisparse_config=None),
        speculative_config=None,
        max_in_flight_tokens=BATCHES_IN_FLIGHT * max_num_batched_tokens,
    )


def main() -> None:
    """Writes the table to standard output."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, tp, value_bytes, flags in CASES:
        model = load_model(name)
        for longest, batched, available in SIZES:
            length = min(longest, model.max_position)
            engine = config(length, batched, flags)
            groups = kv_cache_utils.get_kv_cache_groups(engine, specs(model, tp, value_bytes, flags))
            cache = kv_cache_utils.get_kv_cache_config_from_groups(engine, groups, available)
            tokens, concurrency = kv_cache_utils.get_kv_cache_capacity(engine, cache)
            paged = (name, tp, value_bytes, flags.hybrid, flags.prefix_caching, flags.draft, flags.speculated)
            row = (length, batched, available, len(groups), cache.num_blocks, tokens, repr(concurrency))
            writer.writerow((*paged, *row))


if __name__ == "__main__":
    main()
