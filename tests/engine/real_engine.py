"""Starts a whole vLLM engine on the CPU with made-up weights and says how it laid out its KV cache.

Runs with the interpreter that has vLLM: reads config and settings as JSON from standard input, writes one answer
as JSON to standard output. A process starts one engine, since vLLM keeps state that a second one would trip over.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def start(question: dict[str, Any]) -> dict[str, Any]:
    """Blocks, tokens and concurrency of a started engine, and how many layers its groups have."""
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(question["config"]), encoding="utf-8")
        llm = LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            **question["settings"],
        )
    engine = llm.llm_engine
    cache = engine.vllm_config.cache_config
    layout = engine.engine_core.engine_core.scheduler.kv_cache_config
    return {
        "num_gpu_blocks": cache.num_gpu_blocks,
        "kv_cache_size_tokens": cache.kv_cache_size_tokens,
        "kv_cache_max_concurrency": cache.kv_cache_max_concurrency,
        "group_layers": sorted(len(group.layer_names) for group in layout.kv_cache_groups),
        "max_in_flight_tokens": engine.vllm_config.max_in_flight_tokens,
    }


def main() -> None:
    """Answers the question on standard input."""
    from oracle import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    answer = start(json.load(sys.stdin))
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
