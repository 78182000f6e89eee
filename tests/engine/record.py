"""Records what vLLM says, for the tests that run without it: `make engine-record`, some five minutes.

Writes tests/formulas/vllm_recorded.csv (parameters and caches of one rank, case by case),
tests/formulas/vllm_blocks.csv (the KV cache of started engines) and tests/serving/recorded_schedules.json (what its
scheduler decides). Cases that vLLM refuses are named and left out.
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from planner.formulas.gemms import check_parallelism
from tests.engine import schedules
from tests.engine.engines import BLOCKS_CSV, engines, start
from tests.engine.live import RECORDED_CSV, SMALL, UNQUANTISED, Case, ask, small_configs, text_model

MODELS = (
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-405B",
    "meta-llama/Llama-3.2-1B",
    "codellama/CodeLlama-34b-hf",
    "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
    "nvidia/Llama-3.1-70B-Instruct-FP8",
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    "mistralai/Mistral-7B-v0.1",
    "mistralai/Mistral-Nemo-Base-2407",
    "mistralai/Mixtral-8x7B-v0.1",
    "Qwen/Qwen2.5-72B-Instruct",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-32B-AWQ",
    "Qwen/Qwen3-32B-FP8",
    "Qwen/Qwen3-32B-FP8-Static-PerTensor",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-30B-A3B-FP8",
    "Qwen/Qwen3-235B-A22B",
    "nvidia/Qwen3-235B-A22B-NVFP4",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "Qwen/Qwen3.5-27B",
    "Qwen/Qwen3.5-35B-A3B",
    "nvidia/Qwen3.5-397B-A17B-NVFP4",
    "deepseek-ai/DeepSeek-V2-Lite",
    "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-V3.2",
    "nvidia/DeepSeek-V3.1-NVFP4",
    "moonshotai/Kimi-K2-Instruct",
    "moonshotai/Kimi-K2.5",
    "zai-org/GLM-4.5-Air",
    "zai-org/GLM-5",
    "zai-org/GLM-5-FP8",
    "openai/gpt-oss-20b",
    "openai/gpt-oss-120b",
    "google/gemma-2-9b",
    "google/gemma-3-27b-it",
    "google/gemma-4-26B-A4B",
    "nvidia/Gemma-4-26B-A4B-NVFP4",
    "MiniMaxAI/MiniMax-M2.5",
    "nvidia/MiniMax-M2.5-NVFP4",
    "nvidia/Nemotron-H-56B-Base-8K",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4",
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8",
    "XiaomiMiMo/MiMo-7B-Base",
    "XiaomiMiMo/MiMo-V2-Flash",
    "allenai/OLMo-2-1124-13B-Instruct",
    "microsoft/phi-4",
    "ibm-granite/granite-3.1-2b-base",
    "CohereForAI/c4ai-command-r-v01",
    "bigcode/starcoder2-3b",
)
ALSO_UNQUANTISED = ("openai/gpt-oss-20b", "deepseek-ai/DeepSeek-V3")
LAYOUTS = (
    {"tp": 1},
    {"tp": 2},
    {"tp": 4},
    {"tp": 8},
    {"tp": 2, "pp": 2, "pp_rank": 0},
    {"tp": 2, "pp": 2, "pp_rank": 1},
    {"tp": 1, "pp": 4, "pp_rank": 1},
)
EXPERT_LAYOUTS = ({"tp": 4, "ep": True}, {"tp": 8, "ep": True})
JSON_COLUMNS = ("bytes_by_dtype", "bytes_by_part", "kv_specs")


def cases() -> Iterator[Case]:
    """Every case of the table, in its order: layouts that the planner does not refuse."""
    wanted = [(name, "") for name in (*MODELS, *(f"{SMALL}{name}" for name in small_configs()))]
    wanted += [(name, UNQUANTISED) for name in ALSO_UNQUANTISED]
    for name, variant in wanted:
        model = text_model(Case(name, variant))
        for layout in (*LAYOUTS, *(EXPERT_LAYOUTS if model.has_moe else ())):
            case = Case(name, variant, **layout)
            if check_parallelism(model, case.parallelism) is None:
                yield case


def write_weights() -> None:
    """One line a case that vLLM builds."""
    asked = list(cases())
    with RECORDED_CSV.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*Case._fields, "parameter_bytes", *JSON_COLUMNS])
        for case, answer in zip(asked, ask(asked), strict=True):
            if "error" in answer:
                print(f"left out: {case}: {answer['error'][:150]!r}", file=sys.stderr)
                continue
            figures = (json.dumps(answer[column]) for column in JSON_COLUMNS)
            writer.writerow([*case[:-1], int(case.ep), answer["parameter_bytes"], *figures])


def recorded() -> Iterator[tuple[Case, dict[str, Any]]]:
    """The cases of the table and vLLM's answers."""
    with RECORDED_CSV.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            layout = (int(row[name]) for name in ("tp", "pp", "pp_rank"))
            case = Case(row["model"], row["variant"], *layout, ep=row["ep"] == "1")
            answer = {column: json.loads(row[column]) for column in JSON_COLUMNS}
            yield case, answer | {"parameter_bytes": int(row["parameter_bytes"])}


def write_blocks(names: Iterable[str]) -> None:
    """One line an engine."""
    with BLOCKS_CSV.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["engine", "answer"])
        for name in names:
            writer.writerow([name, json.dumps(start(name))])


def main() -> None:
    """Writes all of them."""
    write_weights()
    write_blocks(engines())
    schedules.write(schedules.live(schedules.scenarios()))


if __name__ == "__main__":
    main()
