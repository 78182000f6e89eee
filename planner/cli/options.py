"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def folder_path(text: str) -> Path:
    """A folder as it was named; an empty name would mean the current folder."""
    if not text.strip():
        raise typer.BadParameter("empty; name a folder")
    return Path(text)


CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table to FILE.")]
CalibrationDir = Annotated[
    Path | None,
    typer.Option(
        "--calibration-dir",
        parser=folder_path,
        metavar="DIR",
        help="Coefficients to read before the shipped ones.",
    ),
]
ModelName = Annotated[
    str,
    typer.Option(
        "--model", help="A bundled name, a Hugging Face id, or the path of a config.json or its folder."
    ),
]
GpuName = Annotated[str, typer.Option("--gpu", help="A GPU of `catalog list gpus`, by name or alias.")]
Tp = Annotated[int, typer.Option("--tp", "--tensor-parallel-size", help="Tensor-parallel degree.")]
Pp = Annotated[int, typer.Option("--pp", "--pipeline-parallel-size", help="Pipeline-parallel degree.")]
Dp = Annotated[int, typer.Option("--dp", "--data-parallel-size", help="Data-parallel degree.")]
TpGiven = Annotated[
    int | None, typer.Option("--tp", "--tensor-parallel-size", help="Tensor-parallel degree; 1 if left out.")
]
PpGiven = Annotated[
    int | None,
    typer.Option("--pp", "--pipeline-parallel-size", help="Pipeline-parallel degree; 1 if left out."),
]
DpGiven = Annotated[
    int | None, typer.Option("--dp", "--data-parallel-size", help="Data-parallel degree; 1 if left out.")
]
WeightFormat = Annotated[
    str, typer.Option("--weight-dtype", "--quantization", help="auto, or a format to quantise to.")
]
KvFormat = Annotated[str, typer.Option("--kv-dtype", "--kv-cache-dtype", help="auto, bf16, fp16 or fp8.")]
MaxModelLen = Annotated[
    int | None,
    typer.Option("--max-model-len", help="Longest sequence [tokens]; the model's own if left out."),
]
MaxNumSeqs = Annotated[
    int | None, typer.Option("--max-num-seqs", help="Sequences a step; vLLM's default if left out.")
]
MaxNumBatchedTokens = Annotated[
    int | None, typer.Option("--max-num-batched-tokens", help="Tokens a step; vLLM's default if left out.")
]
GpuMemoryUtilization = Annotated[
    float | None,
    typer.Option(
        "--gpu-memory-utilization", help="Share of the card that vLLM may use; its default if left out."
    ),
]
GpuMemoryGib = Annotated[
    float | None,
    typer.Option("--gpu-memory-gib", help="What the driver reports as total, where you know better."),
]
EngineVersion = Annotated[
    str, typer.Option("--engine-version", help="vLLM release; the newest known if left out.")
]
EnforceEager = Annotated[bool, typer.Option("--enforce-eager", help="Capture no CUDA graphs.")]
ExpertParallel = Annotated[
    bool,
    typer.Option(
        "--ep",
        "--enable-expert-parallel",
        help="Give each rank whole experts instead of a slice of every one.",
    ),
]
AsyncScheduling = Annotated[
    bool | None,
    typer.Option(
        "--async-scheduling/--no-async-scheduling",
        help="Schedule a step while the last one runs; the release's default if left out.",
    ),
]
LongPrefillTokenThreshold = Annotated[
    int | None,
    typer.Option(
        "--long-prefill-token-threshold",
        help="Tokens of a step that one prompt may take at most; 0, the default: all there is room for.",
    ),
]
BlockSize = Annotated[
    int | None, typer.Option("--block-size", help="Tokens of a KV block; vLLM's default if left out.")
]
NoPrefixCaching = Annotated[
    bool,
    typer.Option(
        "--no-prefix-caching", "--no-enable-prefix-caching", help="Keep no blocks of finished requests."
    ),
]
DisableHybridKvCacheManager = Annotated[
    bool,
    typer.Option("--disable-hybrid-kv-cache-manager", help="Page every layer like one that sees all tokens."),
]
NoMultimodal = Annotated[bool, typer.Option("--no-multimodal", help="Take no images or videos.")]
KvCacheMemoryGib = Annotated[
    float | None,
    typer.Option("--kv-cache-memory-gib", help="KV cache of each GPU; what is left over if left out."),
]
KvOffloadingGib = Annotated[
    float | None,
    typer.Option("--kv-offloading-gib", help="Host memory for KV blocks, all ranks of an engine together."),
]
EnableLora = Annotated[bool, typer.Option("--enable-lora", help="Keep room for LoRA adapters.")]
MaxLoras = Annotated[
    int | None, typer.Option("--max-loras", help="Adapters on the card at once; 1 if left out.")
]
MaxLoraRank = Annotated[
    int | None, typer.Option("--max-lora-rank", help="Highest rank of an adapter; 16 if left out.")
]
FullyShardedLoras = Annotated[
    bool, typer.Option("--fully-sharded-loras", help="Split both factors of an adapter over the ranks.")
]
DraftModel = Annotated[
    str | None,
    typer.Option("--draft-model", help="A smaller model that speculates, named like --model."),
]
NumSpeculativeTokens = Annotated[
    int | None, typer.Option("--num-speculative-tokens", help="Tokens the draft model proposes a step.")
]
