"""How vLLM words what it logs while it starts, release by release.

Read in the releases 0.10.2 to 0.33.0: vllm/v1/worker/{gpu_worker,gpu_model_runner,utils}.py,
vllm/v1/worker/gpu/model_runner.py, vllm/utils/{__init__,mem_utils}.py, vllm/v1/core/kv_cache_utils.py and
kv_cache_planning.py, vllm/v1/engine/core.py, vllm/v1/metrics/loggers.py, vllm/config/{model,scheduler,vllm}.py,
vllm/entrypoints. The wordings of the V0 engine are those of 0.6 to 0.9.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

NUMBER = r"-?\d[\d,]{0,20}(?:\.\d{1,12})?"
"""Thousands may be separated."""
WINDOW_CHARS = 1_000
"""No wording is longer; a match never looks further, so that a hostile line costs no more than any other."""
MOST_TRIES = 20_000
"""No engine has as many ranks that log a line each."""
_PLACE = re.compile(r"<(\w*)(:[^<>]*)?>")


class Wording(NamedTuple):
    """One way to say one or more facts."""

    anchor: str
    """Literal text that every such line has, where the pattern begins."""
    pattern: re.Pattern[str]
    """Its named groups are facts."""


class Found(NamedTuple):
    """One fact as text, and where in the log it begins."""

    name: str
    text: str
    position: int


def _wording(template: str) -> Wording:
    """`<fact>` stands for a number, `<fact:expression>` for what the expression matches, `<>` for any number."""
    pattern, end = "", 0
    for place in _PLACE.finditer(template):
        inside = place[2][1:] if place[2] else NUMBER
        pattern += re.escape(template[end : place.start()])
        pattern += f"(?P<{place[1]}>{inside})" if place[1] else f"(?:{inside})"
        end = place.end()
    return Wording(template.partition("<")[0], re.compile(pattern + re.escape(template[end:])))


WORDINGS = tuple(
    map(
        _wording,
        (
            # What loading took. "GB" was GiB under another name.
            "Model loading took <loaded_gib> G",
            "Loading model weights took <loaded_gib> G",
            "model weights take <weights_gib>GiB; non_torch_memory takes <non_torch_gib>GiB; "
            "PyTorch activation peak memory takes <activation_gib>GiB; "
            "the rest of the memory reserved for KV Cache is <kv_cache_gib>GiB",
            # What profiling found; since 0.27 weights and non-torch memory are one figure.
            "Actual usage is <weights_gib> GiB for weight, <activation_gib> GiB for peak activation, "
            "<non_torch_gib> GiB for non-torch memory, and <cuda_graph_gib> GiB for CUDAGraph memory",
            "Actual usage is <consumed_gib> GiB for consumed memory (weights + non-torch), "
            "<activation_and_graphs_gib> GiB for peak activation, and <cuda_graph_gib> GiB for CUDAGraph memory",
            "Total non KV cache memory: <>GiB; torch peak memory increase: <activation_gib>GiB; "
            "non-torch forward increase memory: <non_torch_gib>GiB; weights memory: <weights_gib>GiB",
            "Total non KV cache memory: <non_kv_gib>GiB; torch peak memory increase: <>GiB; "
            "total consumed (from mem_get_info): <consumed_gib>GiB; weights memory: <weights_gib>GiB",
            # The card.
            "Free memory on device<: ?\\S{0,40} ?>(<free_memory_gib>/<total_memory_gib> GiB) on startup",
            " total_memory=<total_memory_gib>GiB",
            "total_gpu_memory (<total_memory_gib>GiB) x gpu_memory_utilization (<gpu_memory_utilization>)",
            "has a total capacity of <total_memory_gib> GiB",
            "Initial free memory: <free_memory_gib> GiB; Requested memory: <gpu_memory_utilization> (util)",
            "device_name=<gpu:[A-Za-z0-9][\\w+-]{1,60}>",
            "NVIDIA <gpu:[A-Z0-9][\\w+-]{0,20}(?: [\\w+/-]{1,20}){0,5}><:(?=  | ?[|(,;\\n]|$)>",
            "AMD Instinct <gpu:MI\\d{2,3}\\w?>",
            # KV cache.
            "Available KV cache memory: <kv_cache_gib> GiB",
            "Explicitly set (<kv_cache_gib>/<>) GiB for KV cache",
            "KV cache size: <kv_cache_tokens> tokens",
            "Auto-fit max_model_len: reduced from <> to <max_model_len> to fit",
            "Maximum concurrency for <max_model_len> tokens per request: <max_concurrency>x",
            "Overriding num_gpu_blocks=<num_gpu_blocks> with num_gpu_blocks_override=<num_gpu_blocks_override>",
            "num_gpu_blocks is: <num_gpu_blocks>",
            "# GPU blocks: <num_gpu_blocks>, # CPU blocks",
            "# cuda blocks: <num_gpu_blocks>, # CPU blocks",
            "reserved <kv_cache_memory_gib><: ?>GiB memory for KV Cache as specified by kv_cache_memory_bytes",
            "Reserving <frontend_gib> GiB of GPU memory for frontend multimodal decoding",
            # CUDA graphs; a measured pool before the free memory that went while capturing.
            "CUDA graph pool memory: <cuda_graph_gib> GiB (actual), <cuda_graph_estimate_gib> GiB (estimated)",
            "Graph capturing finished in <> secs, took <cuda_graph_gib> GiB",
            "Estimated CUDA graph memory: <cuda_graph_estimate_gib> GiB total",
            "CUDA graph memory profiling is <graphs_charged:enabled|disabled>",
            # Settings.
            "LLM engine (v<engine_version:[\\w.+-]{1,60}>)",
            "vLLM API server version <engine_version:[\\w.+-]{1,60}>",
            "vLLM server version <engine_version:[\\w.+-]{1,60}>, serving model <model:\\S{1,300}>",
            "█  version <engine_version:[\\w.+-]{1,60}>",
            "█  model   <model:\\S{1,300}>",
            "Desired GPU memory utilization is (<gpu_memory_utilization>,",
            "is less than desired GPU memory utilization (<gpu_memory_utilization>,",
            "The current --gpu-memory-utilization=<gpu_memory_utilization> is equivalent",
            "--gpu-memory-utilization from <gpu_memory_utilization> to ",
            "Chunked prefill is enabled with max_num_batched_tokens=<max_num_batched_tokens>",
            "Asynchronous scheduling is <async_scheduling:enabled|disabled>",
            "Setting attention block size to <attention_block_tokens> tokens",
            # Why it did not start.
            "To serve at least one request with the model<:'?s('s)?> max seq len (<refused_model_len>), "
            "(<needed_gib> GiB KV cache is needed, which is larger than the available KV cache memory "
            "(<available_gib> GiB)",
            "the estimated maximum model length is <longest_model_len>",
            "max seq len (<refused_model_len>) is larger than the maximum number of tokens "
            "that can be stored in KV cache (<storable_tokens>)",
            "No available memory for the cache <no_cache_blocks:blocks>",
            "Cannot auto-fit max_model_len: <no_cache_blocks:not enough>",
            "on startup is less <not_enough_free:than>",
            "out of memory. Tried to allocate <allocation:[\\d.]{1,12} [KMG]iB>",
            "out of memory occurred when warming up <warm_up:sampler|pooler>",
        ),
    )
)
"""Where several give one fact, the earlier is the better informed."""


def find_all(text: str) -> Iterator[Found]:
    """Every fact in a log whose line ends are spaces, wording by wording.

    >>> [(found.name, found.text) for found in find_all("INFO GPU KV cache size: 1,387,664 tokens")]
    [('kv_cache_tokens', '1,387,664')]
    """
    for anchor, pattern in WORDINGS:
        position = text.find(anchor)
        for _ in range(MOST_TRIES):
            if position < 0:
                break
            match = pattern.match(text, position, position + WINDOW_CHARS)
            if match is not None:
                for name, value in match.groupdict().items():
                    yield Found(name, value, position)
            position = text.find(anchor, position + len(anchor))
