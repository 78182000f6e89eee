"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table to FILE.")]
CalibrationDir = Annotated[
    Path | None,
    typer.Option("--calibration-dir", metavar="DIR", help="Coefficients to read before the shipped ones."),
]
ModelName = Annotated[
    str,
    typer.Option(
        "--model", help="A bundled name, a Hugging Face id, or the path of a config.json or its folder."
    ),
]
GpuName = Annotated[str, typer.Option("--gpu", help="A GPU of `catalog list gpus`, by name or alias.")]
Tp = Annotated[int, typer.Option("--tp", help="Tensor-parallel degree.")]
Pp = Annotated[int, typer.Option("--pp", help="Pipeline-parallel degree.")]
Dp = Annotated[int, typer.Option("--dp", help="Data-parallel degree.")]
WeightFormat = Annotated[str, typer.Option("--weight-dtype", help="auto, or a format to quantise to.")]
KvFormat = Annotated[str, typer.Option("--kv-dtype", help="auto, bf16, fp16 or fp8.")]
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
