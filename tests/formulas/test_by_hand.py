"""Weights of a rank and KV tokens of five models, worked out on paper from the numbers in their configs.

One dense, one mixture of experts, one with latent attention, one with sliding windows, one hybrid; two bytes a
number unless said otherwise. vLLM 0.32.0, asynchronous scheduling (two batches in flight), blocks of 16 tokens.
"""

from planner.catalog.models import load_model
from planner.domain.deployment import Parallelism
from planner.domain.dtypes import KvDtype
from planner.domain.model import Model
from planner.domain.units import GIB_BYTES
from planner.formulas.kv_cache import KvLayout, kv_layout
from planner.formulas.kv_paging import KvPaging
from planner.formulas.weights import parameter_bytes

PAGING = KvPaging(engine_version="0.32.0")


def layout_of(model: Model, tp: int, paging: KvPaging = PAGING) -> KvLayout:
    return kv_layout(model, Parallelism(tp=tp), KvDtype.AUTO, paging)


def test_dense() -> None:
    # Qwen3-32B on 4 GPUs: 64 layers, width 5120, 64 query and 8 key-value heads of 128, feed-forward 25600,
    # vocabulary 151936 = 2374 x 64 rows, head not tied. A rank has 16 query and 2 key-value heads.
    model = load_model("Qwen/Qwen3-32B")
    embedding = 151936 // 4 * 5120  # 37984 rows: 194,478,080
    qkv = (16 + 2 * 2) * 128 * 5120  # 2560 x 5120: 13,107,200
    out = 5120 * 16 * 128  # 10,485,760
    gate_up = 2 * 6400 * 5120  # 65,536,000
    down = 5120 * 6400  # 32,768,000
    norms = 2 * 5120 + 2 * 128  # before attention and feed-forward; queries and keys, a head's width each
    layer = qkv + out + gate_up + down + norms
    assert layer == 121_907_456
    expected = 2 * (2 * embedding + 64 * layer + 5120)
    assert expected == 16_382_076_928
    assert parameter_bytes(model, Parallelism(tp=4)) == expected
    # A token: 64 layers x keys and values x 2 heads x 128 x 2 bytes = 64 KiB; a block of 16: 1 MiB.
    # 20 GiB hold 20,480 blocks; a request of 32,768 tokens takes 2,048 of them, so 10 fit.
    layout = layout_of(model, 4)
    assert layout.block_bytes == 64 * 2 * 2 * 128 * 2 * 16 == 2**20
    assert layout.blocks(20 * GIB_BYTES) == 20_480
    assert layout.max_concurrency(20 * GIB_BYTES, 32_768, 8192) == 10.0
    assert layout.tokens(20 * GIB_BYTES, 32_768, 8192) == 327_680


def test_mixture_of_experts() -> None:
    # Qwen3-30B-A3B on 2 GPUs with expert parallelism: 48 layers, width 2048, 32 query and 4 key-value heads of 128,
    # 128 experts of 768, vocabulary 151936. A rank has 16 and 2 heads, and 64 experts whole.
    model = load_model("Qwen/Qwen3-30B-A3B")
    embedding = 151936 // 2 * 2048
    qkv = (16 + 2 * 2) * 128 * 2048
    out = 2048 * 16 * 128
    router = 128 * 2048  # whole on every rank
    experts = 64 * 3 * 768 * 2048
    norms = 2 * 2048 + 2 * 128
    layer = qkv + out + router + experts + norms
    assert layer == 311_693_568
    expected = 2 * (2 * embedding + 48 * layer + 2048)
    assert expected == 30_544_916_480
    assert parameter_bytes(model, Parallelism(tp=2, ep=True)) == expected
    # Without it each rank has half of every expert: 128 x 3 x 384 x 2048 is as much.
    assert parameter_bytes(model, Parallelism(tp=2)) == expected
    # In a pipeline of two, vLLM builds embedding, head and final norm on both stages, and 24 layers on each.
    stage = 2 * (2 * 151936 * 2048 + 24 * (2 * (qkv + out + experts) + router + norms) + 2048)
    assert parameter_bytes(model, Parallelism(pp=2), 0) == stage
    assert parameter_bytes(model, Parallelism(pp=2), 1) == stage
    # A block: 48 x 2 x 2 x 128 x 2 bytes x 16 tokens = 786,432; 7 GiB hold 9,557.3.
    layout = layout_of(model, 2)
    assert layout.block_bytes == 786_432
    assert layout.blocks(7 * GIB_BYTES) == 9_557
    # 512 blocks a request of 8,192: 18.666 of them, 152,912 tokens.
    assert layout.tokens(7 * GIB_BYTES, 8192, 8192) == int(9_557 / 512 * 8192) == 152_912


def test_latent_attention() -> None:
    # DeepSeek-V2-Lite on 4 GPUs: 27 layers, width 2048, 16 heads, latent 512 with 64 rotary, heads of 128 + 64 and
    # 128 for values, queries not compressed; first layer dense 10944, then 64 experts of 1408 and 2 shared ones.
    model = load_model("deepseek-ai/DeepSeek-V2-Lite")
    embedding = 102400 // 4 * 2048
    queries = 4 * (128 + 64) * 2048
    latent = (512 + 64) * 2048  # whole on every rank
    up = 4 * (128 + 128) * 512
    out = 2048 * 4 * 128
    attention = queries + latent + up + out + 512  # with the latent's norm
    dense = 3 * (10944 // 4) * 2048
    routed = 64 * 2048 + 64 * 3 * 352 * 2048
    shared = 3 * (2 * 1408 // 4) * 2048
    expected = 2 * (2 * embedding + 27 * (attention + 2 * 2048) + dense + 26 * (routed + shared) + 2048)
    assert parameter_bytes(model, Parallelism(tp=4)) == expected == 7_906_319_360
    # A token: 27 x 576 x 2 bytes = 31,104 on every rank, whatever the TP; a block 497,664. 5 GiB hold 10,787.7.
    for tp in (1, 4):
        layout = layout_of(model, tp)
        assert layout.block_bytes == 27 * 576 * 2 * 16 == 497_664
        assert layout.blocks(5 * GIB_BYTES) == 10_787
        # 1,024 blocks a request of 16,384
        assert layout.tokens(5 * GIB_BYTES, 16_384, 8192) == 10_787 * 16


def test_sliding_window() -> None:
    # Gemma 3 27B without its vision tower on 2 GPUs: 62 layers, every 6th full (10), 52 of window 1024; width 5376,
    # 32 query and 16 key-value heads of 128, feed-forward 21504, vocabulary 262208 = 4097 x 64, head tied.
    model = load_model("google/gemma-3-27b-it").model_copy(update={"vision": None})
    qkv = (16 + 2 * 8) * 128 * 5376
    out = 5376 * 16 * 128
    feed_forward = 3 * (21504 // 2) * 5376
    norms = 4 * 5376 + 2 * 128
    expected = 2 * (262208 // 2 * 5376 + 62 * (qkv + out + feed_forward + norms) + 5376)
    assert parameter_bytes(model, Parallelism(tp=2)) == expected == 27_010_700_800
    # 10 full and 52 windowed layers: groups of 10, one full and six windowed, two of them padded (52 = 4 x 9 + 2 x 8).
    # A page: 16 x 2 x 8 x 128 x 2 bytes = 65,536; a block id takes ten of them. 30 GiB hold 49,152.
    layout = layout_of(model, 2)
    assert len(layout.groups) == 7
    assert layout.block_bytes == 655_360
    assert layout.blocks(30 * GIB_BYTES) == 49_152
    # A request of 32,768 with 8,192 tokens a step, two steps in flight: 2,048 blocks for the full layers, and
    # ceil((1023 + 16384) / 16) + 1 = 1,089 for each windowed group: 8,582.
    assert layout.reserved_bytes(32_768, 8192) // layout.block_bytes - layout.reserves_null_block == 8_582
    assert layout.tokens(30 * GIB_BYTES, 32_768, 8192) == int(49_152 / 8_582 * 32_768) == 187_673


def test_hybrid() -> None:
    # Nemotron-H 56B on 8 GPUs: 54 Mamba-2, 10 attention and 54 feed-forward layers of width 8192; Mamba with 256
    # heads of 64, 8 groups, state 256, kernel 4; attention with 64 and 8 heads of 128; feed-forward 32768, not
    # gated; vocabulary 131072. A rank: 32 Mamba heads (2048 wide), 1 group, 8 and 1 attention heads.
    model = load_model("nvidia/Nemotron-H-56B-Base-8K")
    mamba_in = (2 * 2048 + 2 * 256 + 32) * 8192
    convolution = (2048 + 2 * 256) * (4 + 1)  # with a bias
    mamba = mamba_in + 8192 * 2048 + convolution + 2 * 32 + 2048 + 8192  # D and dt, both norms
    attention = (8 + 2 * 1) * 128 * 8192 + 8192 * 8 * 128 + 8192
    feed_forward = 2 * 4096 * 8192 + 8192
    decay = 54 * 32 * 4  # fp32
    outer = 2 * (131072 // 8) * 8192 + 8192
    expected = 2 * (outer + 54 * mamba + 10 * attention + 54 * feed_forward) + decay
    assert parameter_bytes(model, Parallelism(tp=8)) == expected == 14_082_797_056
    # A state: 3 x 2560 x 2 bytes of convolution and 32 x 64 x 256 x 4 of matrices = 2,112,512. A token of one attention
    # layer: 2 x 128 x 2 = 512, 16 of them 8,192: 257.9, so blocks grow to 258 x 16 = 4,128 tokens, 2,113,536 bytes.
    # Groups of ten layers: one of attention, six of Mamba; a block id takes ten pages. 40 GiB hold 2,032.1.
    layout = layout_of(model, 8, PAGING._replace(checkpoint_states=1))
    assert layout.block_size == 4_128
    assert layout.block_bytes == 21_135_360
    assert layout.blocks(40 * GIB_BYTES) == 2_032
    # A request of 8,192: 2 blocks of attention; each Mamba group 2 states for the prefix cache and 1 more while it
    # is prefilled: 20 blocks.
    assert layout.max_concurrency(40 * GIB_BYTES, 8192, 8192) == 2_032 / 20
    assert layout.tokens(40 * GIB_BYTES, 8192, 8192) == 832_307
