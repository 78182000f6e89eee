"""Runs requests through a whole vLLM engine on the CPU and writes down what its scheduler decides, step by step.

Runs with the interpreter that has vLLM: reads scenarios (see schedules.py) as JSON from standard input, writes their
steps as JSON to standard output. A model's engine starts once; each scenario gets a scheduler of its own, vLLM's, with
the flags and the blocks of the scenario. Time is counted in steps that compute something, so that nothing depends on
the machine.
"""

import copy
import dataclasses
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

VOCABULARY = 512
LARGEST = {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "max_model_len": 2048, "block_size": 32}
WORKER_BLOCKS = 512
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}
GEMMA = LLAMA | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "sliding_window": 96,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 32,
}
MODELS = {
    "": LLAMA,
    "sliding": LLAMA
    | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 96},
    "hybrid": GEMMA,
}


def tokens_of(number: int, request: dict[str, Any], block_tokens: int) -> list[int]:
    """A prompt: the shared blocks it names, then tokens of its own."""
    tokens: list[int] = []
    for block in request["prefix"]:
        shared = random.Random(f"block {block}")
        tokens += [shared.randrange(VOCABULARY) for _ in range(block_tokens)]
    own = random.Random(f"request {number}")
    return tokens + [own.randrange(VOCABULARY) for _ in range(request["prompt"] - len(tokens))]


class Watch:
    """Writes down each decision of a scheduler."""

    def __init__(self, scheduler: Any) -> None:
        self.steps: list[str] = []
        self.computed = False
        self._decide = scheduler.schedule
        scheduler.schedule = self._schedule

    def _schedule(self, *given: Any, **named: Any) -> Any:
        decision = self._decide(*given, **named)
        admitted = {request.req_id for request in decision.scheduled_new_reqs}
        admitted |= set(decision.scheduled_cached_reqs.resumed_req_ids)
        words = [
            f"{'+' * (name in admitted)}{number(name)}:{tokens}"
            for name, tokens in decision.num_scheduled_tokens.items()
        ]
        words += sorted(f"-{number(name)}" for name in decision.preempted_req_ids or ())
        if words:
            self.steps.append(" ".join(words))
        # A step in which all were preempted takes no time.
        self.computed = bool(decision.num_scheduled_tokens)
        return decision


def number(name: str) -> int:
    """A request's number: vLLM adds random letters to the name it was given."""
    return int(name.split("-", maxsplit=1)[0])


def start(model: str) -> Any:
    """An engine that is larger than any scenario."""
    from vllm import EngineArgs, LLMEngine

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODELS[model]), encoding="utf-8")
        arguments = EngineArgs(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            async_scheduling=False,
            num_gpu_blocks_override=WORKER_BLOCKS,
            disable_hybrid_kv_cache_manager=False,
            **LARGEST,
        )
        return LLMEngine.from_engine_args(arguments)


def give_scheduler(engine: Any, scenario: dict[str, Any]) -> Any:
    """Puts a new scheduler into the engine, made as the engine makes its own (vllm/v1/engine/core.py)."""
    core = engine.engine_core.engine_core
    old = core.scheduler
    config = copy.copy(core.vllm_config)
    config.scheduler_config = copy.copy(config.scheduler_config)
    for name in ("max_num_seqs", "max_num_batched_tokens", "long_prefill_token_threshold", "policy"):
        setattr(config.scheduler_config, name, scenario[name])
    config.scheduler_config.max_num_scheduled_tokens = None
    config.cache_config = copy.copy(config.cache_config)
    config.cache_config.num_gpu_blocks = scenario["blocks"]
    config.cache_config.enable_prefix_caching = scenario["prefix_caching"]
    core.scheduler = type(old)(
        vllm_config=config,
        kv_cache_config=dataclasses.replace(old.kv_cache_config, num_blocks=scenario["blocks"]),
        structured_output_manager=core.structured_output_manager,
        block_size=old.block_size,
        hash_block_size=old.hash_block_size,
    )
    return core.scheduler


def run(engine: Any, scenario: dict[str, Any]) -> dict[str, Any]:
    """The steps of a scenario, and the KV groups of its engine."""
    from vllm import SamplingParams

    scheduler = give_scheduler(engine, scenario)
    watch = Watch(scheduler)
    coming = list(enumerate(scenario["requests"]))
    now = 0
    while coming or engine.has_unfinished_requests():
        if not engine.has_unfinished_requests():
            now = max(now, coming[0][1]["arrival"])
        while coming and coming[0][1]["arrival"] <= now:
            at, request = coming.pop(0)
            engine.add_request(
                str(at),
                {"prompt_token_ids": tokens_of(at, request, LARGEST["block_size"])},
                SamplingParams(max_tokens=request["output"], ignore_eos=True, detokenize=False),
                arrival_time=float(at),
                priority=request["priority"],
            )
        engine.step()
        now += watch.computed
    return {
        "steps": watch.steps,
        "groups": [
            {
                "block_tokens": group.kv_cache_spec.block_size,
                "window_tokens": getattr(group.kv_cache_spec, "sliding_window", None) or 0,
            }
            for group in scheduler.kv_cache_config.kv_cache_groups
        ],
    }


def main() -> None:
    """Answers the scenarios on standard input, in their order."""
    from oracle import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    asked = json.load(sys.stdin)
    (model,) = {scenario["model"] for scenario in asked}
    engine = start(model)
    print(json.dumps([run(engine, scenario) for scenario in asked]), flush=True)


if __name__ == "__main__":
    main()
