"""Start-up logs of many releases, however they were pasted."""

import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.calibrate.log_flags import Speculation, dict_items
from planner.calibrate.log_wordings import WORDINGS
from planner.calibrate.startup_log import LoggedStartup, read_startup_log

LOGS = Path(__file__).parent / "startup_logs"
NAMES = sorted(file.name for file in LOGS.glob("*.txt"))
SECONDS_A_MEGABYTE = 0.5
"""On a busy machine; a few milliseconds on an idle one."""


def log_text(name: str) -> str:
    with (LOGS / name).open(encoding="utf-8", newline="") as stream:
        return stream.read()


def facts(logged: LoggedStartup) -> dict[str, object]:
    """Every value that was seen, by name, without its line."""
    groups = {**logged.flags._asdict(), **logged.memory._asdict()}
    return {name: getattr(seen, "value", seen) for name, seen in groups.items() if seen is not None}


# What a reader of each log would write down.
EXPECTED: dict[str, dict[str, object]] = {
    "vllm-0.10.2.txt": {
        "engine_version": "0.10.2",
        "model": "meta-llama/Llama-3.3-70B-Instruct",
        "dtype": "bfloat16",
        "kv_cache_dtype": "auto",
        "tp": 4,
        "pp": 1,
        "dp": 1,
        "max_model_len": 8192,
        "max_num_batched_tokens": 8192,
        "gpu_memory_utilization": 0.92,
        "enforce_eager": False,
        "enable_prefix_caching": False,
        "device": "cuda",
        "ranks": 4,
        "weights_gib": 32.8894,
        "kv_cache_gib": 90.24,
        "kv_cache_tokens": 1_182_784,
        "num_gpu_blocks": 73_924,
        "max_concurrency": 144.38,
        "cuda_graph_gib": -0.05,
    },
    "vllm-0.11.0.txt": {
        "engine_version": "0.11.0",
        "quantization": "compressed-tensors",
        "ranks": 4,
        "weights_gib": 16.9619,
        "kv_cache_gib": 105.87,
        "kv_cache_tokens": 1_387_664,
        "max_concurrency": 169.39,
        "cuda_graph_gib": 0.20,
    },
    "vllm-0.13.0.txt": {
        "engine_version": "0.13.0",
        "model": "Qwen/Qwen3-VL-30B-A3B-Instruct",
        "ranks": 1,
        "weights_gib": 58.2299,
        "kv_cache_gib": 64.23,
        "kv_cache_tokens": 701_600,
        "max_concurrency": 85.64,
    },
    "vllm-0.16.0.txt": {
        "engine_version": "0.16.0",
        "model": "/root/.cache/huggingface/hub/models--deepseek-ai--DeepSeek-R1-0528/snapshots/"
        "4236a6af538feda4548eca9ab308586007567f52",
        "tp": 8,
        "async_scheduling": True,
        "weights_gib": 79.74,
        "kv_cache_gib": 43.09,
        "kv_cache_tokens": 658_368,
        "cuda_graph_gib": -0.57,
    },
    "vllm-0.18.0.txt": {
        "engine_version": "0.18.0",
        "kv_cache_dtype": "fp8",
        "gpu_memory_utilization": 0.92,
        "total_memory_gib": 139.8,
        "free_memory_gib": 138.36,
        "weights_gib": 16.96,
        "non_torch_gib": 2.12,
        "activation_gib": 2.01,
        "cuda_graph_gib": 0.9,
        "cuda_graph_estimate_gib": 0.87,
        "kv_cache_gib": 107.53,
        "kv_cache_tokens": 2_818_848,
        "max_concurrency": 344.1,
    },
    "vllm-0.20.0.txt": {
        "engine_version": "0.20.0",
        "max_model_len": 131_072,
        "gpu_memory_utilization": 0.92,
        "graphs_charged": True,
        "weights_gib": 32.89,
        "cuda_graph_estimate_gib": 0.94,
        "kv_cache_gib": 90.66,
        "kv_cache_tokens": 1_188_336,
        "max_concurrency": 9.07,
    },
    "vllm-0.26.0-refused.txt": {
        "engine_version": "0.26.0",
        "model": "/models/Llama-3.1-8B-Instruct",
        "max_num_batched_tokens": 2048,
        "weights_gib": 14.99,
        "kv_cache_gib": 4.05,
    },
    "vllm-0.32.0-cpu.txt": {
        "engine_version": "0.32.0",
        "model": "/srv/models/Qwen3-0.6B",
        "device": "cpu",
        "max_model_len": 4096,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 16,
        "enforce_eager": True,
        "enable_prefix_caching": True,
        "kv_cache_gib": 1.0,
        "kv_cache_tokens": 9_344,
        "max_concurrency": 2.28,
    },
    "vllm-0.32.0-cpu-refused.txt": {"engine_version": "0.32.0", "device": "cpu", "max_model_len": 40_960},
    "vllm-0.33.0.txt": {
        "engine_version": "0.33.0",
        "dp": 2,
        "max_num_seqs": 256,
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": 32,
        "speculation": Speculation("ngram", "", 3),
        "ranks": 2,
        "total_memory_gib": 79.18,
        "weights_gib": 15.62,
        "non_torch_gib": 1.3,  # 16.92 consumed - 15.62
        "activation_gib": 2.1,  # 19.02 in all - 16.92 consumed
        "cuda_graph_estimate_gib": 0.45,
        "kv_cache_gib": 53.39,
        "kv_cache_tokens": 777_504,
        "max_concurrency": 23.73,
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_a_log_of_each_release_is_read(name: str) -> None:
    found = facts(read_startup_log(log_text(name)))
    assert {key: found.get(key) for key in EXPECTED[name]} == EXPECTED[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_line_of_a_fact_holds_it(name: str) -> None:
    text = log_text(name)
    lines = text.split("\n")
    logged = read_startup_log(text)
    for seen, mark in (
        (logged.flags.engine_version, "v0."),
        (logged.memory.kv_cache_tokens, "KV"),
        (logged.memory.weights_gib, "Model loading took"),
        (logged.flags.max_num_batched_tokens, "Chunked prefill is"),
    ):
        # A wrapped line goes on below.
        assert seen is None or mark in " ".join(lines[seen.line - 1 : seen.line + 1])


def test_of_several_ranks_the_fullest_is_read() -> None:
    memory = read_startup_log(log_text("vllm-0.10.2.txt")).memory
    assert memory.kv_cache_gib is not None
    assert (memory.ranks, memory.kv_cache_gib) == (4, (90.24, 15))


def test_a_refused_start() -> None:
    failure = read_startup_log(log_text("vllm-0.26.0-refused.txt")).failure
    assert failure is not None
    assert failure.kind == "one_request"
    assert (failure.max_model_len, failure.needed_gib, failure.available_gib) == (131_072, 16.0, 4.05)
    assert (failure.longest_model_len, failure.line) == (33_168, 12)


def test_a_refused_start_as_recorded() -> None:
    failure = read_startup_log(log_text("vllm-0.32.0-cpu-refused.txt")).failure
    assert failure is not None
    assert (failure.max_model_len, failure.needed_gib, failure.available_gib) == (40_960, 4.38, 0.99)
    assert failure.longest_model_len == 9_216


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache "
            "is needed, which is larger than the available KV cache memory (9.50 GiB). Based on the available "
            "memory, the estimated maximum model length is 77824. Try increasing `gpu_memory_utilization`",
            "one_request",
        ),
        (
            "ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be "
            "stored in KV cache (58368). Try increasing `gpu_memory_utilization` or decreasing `max_model_len`",
            "one_request",
        ),
        ("ValueError: No available memory for the cache blocks. Try increasing", "no_cache"),
        (
            "ValueError: Free memory on device (9.51/22.03 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 19.83 GiB). Decrease GPU memory utilization",
            "not_free",
        ),
        (
            "ValueError: Free memory on device cuda:0 (9.51/22.03 GiB) on startup is less than desired GPU memory "
            "utilization (0.92, 20.27 GiB).",
            "not_free",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a total capacity "
            "of 79.18 GiB of which 123.00 MiB is free.",
            "out_of_memory",
        ),
        ("ValueError: Cannot auto-fit max_model_len: not enough GPU memory available to serve", "no_cache"),
        (
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy",
            "out_of_memory",
        ),
    ],
)
def test_every_kind_of_failure(text: str, kind: str) -> None:
    logged = read_startup_log(f"(EngineCore_DP0 pid=7) ERROR 09-10 12:00:00 [core.py:700] {text}\n")
    assert logged.failure is not None
    assert (logged.failure.kind, logged.failure.line) == (kind, 1)
    total = logged.memory.total_memory_gib
    assert total is None or total.value in (22.03, 79.18)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Loading model weights took 14.9888 GB", {"weights_gib": 14.9888}),
        ("# GPU blocks: 27854, # CPU blocks: 2048", {"num_gpu_blocks": 27_854}),
        ("# cuda blocks: 27854, # CPU blocks: 2048", {"num_gpu_blocks": 27_854}),
        (
            "the current vLLM instance can use total_gpu_memory (79.11GiB) x gpu_memory_utilization (0.90) = 71.20GiB",
            {"total_memory_gib": 79.11, "gpu_memory_utilization": 0.9},
        ),
        (
            "model weights take 14.99GiB; non_torch_memory takes 0.09GiB; PyTorch activation peak memory takes "
            "1.23GiB; the rest of the memory reserved for KV Cache is 54.89GiB.",
            {"weights_gib": 14.99, "non_torch_gib": 0.09, "activation_gib": 1.23, "kv_cache_gib": 54.89},
        ),
        ("Available KV cache memory: -3.27 GiB", {"kv_cache_gib": -3.27}),
        (
            "GPU + host KV cache size: 1,048,576 tokens, Maximum concurrency for 8,192 tokens per request: 128.00x",
            {"kv_cache_tokens": 1_048_576, "max_model_len": 8192, "max_concurrency": 128.0},
        ),
        (
            "Overriding num_gpu_blocks=73924 with num_gpu_blocks_override=512",
            {"num_gpu_blocks": 73_924, "num_gpu_blocks_override": 512},
        ),
        (
            "Initial free memory 78.60 GiB, reserved 20.00GiB memory for KV Cache as specified by "
            "kv_cache_memory_bytes config and skipped memory profiling.",
            {"kv_cache_memory_gib": 20.0},
        ),
        (
            "Initial free memory 78.6 GiB, reserved 20.0 GiB memory for KV Cache as specified by "
            "kv_cache_memory_bytes config",
            {"kv_cache_memory_gib": 20.0},
        ),
        (
            "Reserving 1.5 GiB of GPU memory for frontend multimodal decoding (1.0 GiB raw-frame semaphore budget, ",
            {"frontend_gib": 1.5},
        ),
        (
            "Auto-fit max_model_len: reduced from 131072 to 33168 to fit in available GPU",
            {"max_model_len": 33_168},
        ),
        ("Setting attention block size to 528 tokens to ensure that", {"block_tokens": 528}),
        (
            "CUDA graph memory profiling is disabled (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0). Without it, ... "
            "increasing --gpu-memory-utilization from 0.9200 to 0.9320.",
            {"graphs_charged": False, "gpu_memory_utilization": 0.92},
        ),
        # 2.55 with 0.45 of graphs in it (since 0.27), and 16.92 - 15.62.
        (
            "Model loading took 15.62 GiB memory and 9.5 seconds\nEstimated CUDA graph memory: 0.45 GiB total\n"
            "Actual usage is 16.92 GiB for consumed memory (weights + non-torch), 2.55 GiB for peak activation, and "
            "0.47 GiB for CUDAGraph memory.",
            {"activation_gib": 2.1, "non_torch_gib": 1.3, "cuda_graph_gib": 0.47},
        ),
    ],
)
def test_wordings_of_other_releases(line: str, expected: dict[str, object]) -> None:
    found = facts(read_startup_log(line))
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    "prefix",
    [
        "2025-10-09T14:20:07.123456789Z stderr F ",
        "Oct 09 14:20:07 node-3 dockerd[811]: ",
        "\x1b[1;36mvllm-1  | \x1b[0m",
        "> ",
        "\t",
    ],
)
def test_prefixes_change_nothing(prefix: str) -> None:
    text = log_text("vllm-0.33.0.txt")
    prefixed = "".join(prefix + line for line in text.splitlines(keepends=True))
    assert read_startup_log(prefixed) == read_startup_log(text)


@pytest.mark.parametrize("name", NAMES)
def test_line_ends_and_colours_change_nothing(name: str) -> None:
    plain = log_text(name).replace("\r\n", "\n")
    assert read_startup_log(plain.replace("\n", "\r\n")) == read_startup_log(plain)
    assert read_startup_log(plain.replace(" INFO ", " \x1b[32mINFO\x1b[0m ")) == read_startup_log(plain)


@pytest.mark.parametrize("name", [name for name in NAMES if "0.20.0" not in name])
def test_the_order_of_lines_changes_no_value(name: str) -> None:
    lines = log_text(name).splitlines()
    options = [line for line in lines if line.rstrip().endswith("\\") or line.startswith("    --")]
    others = [line for line in lines if line not in options]
    random.Random(name).shuffle(others)
    assert facts(read_startup_log("\n".join(options + others))) == facts(read_startup_log(log_text(name)))


def test_a_log_as_json_lines() -> None:
    lines = [
        '{"log":"(EngineCore pid=7) INFO Available KV cache memory: 53.39 GiB\\n","stream":"stderr"}',
        '{"message": "GPU KV cache size: 777,504 tokens", "level": "INFO"}',
    ]
    found = facts(read_startup_log("\n".join(lines)))
    assert (found["kv_cache_gib"], found["kv_cache_tokens"]) == (53.39, 777_504)


def test_the_last_of_several_starts_is_read() -> None:
    first, last = log_text("vllm-0.10.2.txt"), log_text("vllm-0.33.0.txt")
    both = read_startup_log(first + last)
    assert both.starts == 2
    assert facts(both) == facts(read_startup_log(last))


def test_a_command_line_tells_what_the_engine_does_not() -> None:
    logged = read_startup_log(
        "$ vllm serve meta-llama/Llama-3.1-8B-Instruct -tp 2 -dcp 2 --max-num-seqs=128 \\\n"
        "    --max-model-len 32K --enable-expert-parallel --disable-hybrid-kv-cache-manager \\\n"
        '    --speculative-config \'{"method": "eagle3", "model": "a/b", "num_speculative_tokens": 3}\' \\\n'
        "    --limit-mm-per-prompt '{\"image\": 0}' --no-async-scheduling --kv-cache-memory-bytes 20G\n"
        "--max-num-seqs 7 is no part of it\n"
    )
    expected = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "tp": 2,
        "dcp": 2,
        "max_num_seqs": 128,
        "max_model_len": 32_768,
        "enable_expert_parallel": True,
        "hybrid_kv_cache_manager": False,
        "speculation": Speculation("eagle3", "a/b", 3),
        "multimodal": False,
        "async_scheduling": False,
        "kv_cache_memory_bytes": 20 * 2**30,
        "ranks": 0,
    }
    assert facts(logged) == expected


def test_what_the_engine_resolved_counts_before_what_was_asked() -> None:
    text = log_text("vllm-0.20.0.txt")
    assert facts(read_startup_log(f"vllm serve other/model -tp 8\n{text}"))["tp"] == 4


@pytest.mark.parametrize("written", ["NVIDIA_H200", "NVIDIA_H100_80GB_HBM3,dtype=fp8_w8a8"])
def test_tuned_kernels_name_the_gpu(written: str) -> None:
    logged = read_startup_log(f"Config file not found at configs/E=128,N=768,device_name={written}.json")
    assert logged.gpu_names[0].value == written.partition(",")[0]


def test_nvidia_smi_names_the_gpu_and_not_itself() -> None:
    names = [seen.value for seen in read_startup_log(log_text("vllm-0.16.0.txt")).gpu_names]
    assert names == ["H200"]


def test_values_are_read_as_literals_and_never_run(tmp_path: Path) -> None:
    victim = tmp_path / "run"
    text = f"{{'model': __import__('pathlib').Path({str(victim)!r}).touch(), 'max_num_seqs': 16}}"
    assert list(dict_items(text)) == [("max_num_seqs", 16)]
    assert not victim.exists()


HOSTILE = {
    "one character": "x" * 10**6,
    "digits": "9" * 10**6,
    "a number without end": "Model loading took " + "9," * 500_000,
    "one wording": "Model loading took " * 50_000,
    "a GPU name without end": "NVIDIA " + "A " * 500_000,
    "GPU names": "NVIDIA A" * 120_000,
    "deep brackets": "non-default args: {" + "[" * 10**6,
    "many dictionaries": "non-default args: {'a': " * 40_000,
    "quotes": "non-default args: {" + "'\\" * 500_000,
    "many configs": " with config: model=" * 50_000,
    "a config without end": " with config: speculative_config=S(" + "a" * 10**6,
    "many commands": "vllm serve " * 90_000,
    "many options": "vllm serve m " + "--a " * 250_000,
    "open quotes": 'vllm serve m "' + "'" * 10**6,
    "escapes": "\x1b[" + "1;" * 500_000,
    "line ends": "\n" * 10**6,
    "a device without end": "Free memory on device " + "c" * 10**6,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_megabyte_of_anything_takes_no_time(kind: str) -> None:
    start = time.process_time()
    read_startup_log(HOSTILE[kind])
    assert time.process_time() - start < SECONDS_A_MEGABYTE


@given(st.binary(max_size=400))
def test_any_bytes_are_read(raw: bytes) -> None:
    logged = read_startup_log(raw.decode("utf-8", errors="replace"))
    assert logged.is_empty
    assert logged.starts == 1


PIECES = st.one_of(
    st.sampled_from([wording.anchor for wording in WORDINGS]),
    st.sampled_from([line for name in NAMES for line in log_text(name).splitlines()]),
    st.sampled_from(
        ["non-default args: {", " with config: ", "vllm serve ", "1,234.5", "NaN", "-1", "'", "{[(", "\\"]
    ),
    st.text(max_size=20),
)


@given(st.lists(st.tuples(PIECES, st.integers(0, 200)), max_size=12))
def test_torn_lines_never_raise(pieces: list[tuple[str, int]]) -> None:
    logged = read_startup_log("\n".join(text[start % (len(text) + 1) :] for text, start in pieces))
    for value in facts(logged).values():
        assert not isinstance(value, float) or abs(value) < 1e22


@given(st.sampled_from(NAMES), st.integers(0, 120))
def test_more_ranks_only_make_the_reading_fuller(name: str, count: int) -> None:
    text = log_text(name)
    whole, part = (
        read_startup_log(text).memory,
        read_startup_log("".join(text.splitlines(True)[:count])).memory,
    )
    assert part.ranks <= whole.ranks
    for less, more in ((part.weights_gib, whole.weights_gib), (whole.kv_cache_gib, part.kv_cache_gib)):
        assert less is None or more is None or less.value <= more.value
