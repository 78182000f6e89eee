"""Times what it costs the host to send one layer's work off, on a live vLLM engine (CPU), by how it is compiled.

Runs with the interpreter that has vLLM, not with ours:

    .venv-engine/bin/python -m benchmarks.engine_dispatch_time --out dispatch.csv

Models of more and more layers, so narrow that their kernels take little time, decode one sequence; the forward's
CPU time grows by one layer's dispatch. `eager` calls every operator from Python, `compiled` is one graph as vLLM for
CPU compiles it, `pieces` is cut at attention as vLLM for CUDA compiles it (VLLM_COMPILE), which the CPU platform does
not choose by itself and is told to here.
"""

import argparse
import csv
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.engine_host_time import ENVIRONMENT, Spent, Stopwatch

MODES = ("eager", "compiled", "pieces")
MODELS = ("llama", "qwen3")
WIDTHS = (64, 256)
LAYERS = (2, 4, 8, 16, 32, 48)
STEPS, WARM_STEPS, PROMPT_TOKENS = 200, 40, 32
COMPONENTS = {
    "forward": ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "_model_forward"),
    "attention": ("vllm.v1.attention.backends.cpu_attn", "CPUAttentionBackendImpl", "forward"),
    "norms": ("vllm.model_executor.layers.layernorm", "RMSNorm", "forward"),
    "activation": ("vllm.model_executor.layers.activation", "SiluAndMul", "forward"),
}
COMPILED_AWAY = ("norms", "activation")
FIELDS = ("part", "mode", "model", "hidden", "layers", "q1_us", "median_us", "q3_us", "wall_median_us", "n")


def write_model(folder: Path, model: str, hidden: int, layers: int) -> None:
    """A configuration without weights; `qwen3` norms queries and keys."""
    names = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    config: dict[str, Any] = {
        "architectures": [names[model]],
        "model_type": model,
        "torch_dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 256,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def compile_in_pieces() -> None:
    """Has the CPU platform leave the compiler's mode as vLLM for CUDA sets it."""
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass
    from vllm.config import CompilationMode
    from vllm.platforms.cpu import CpuPlatform

    # It names kernels that only builds for CUDA have, and finds nothing to do without them.
    FixFunctionalizationPass.__call__ = lambda _pass, _graph: None
    chosen = CpuPlatform.check_and_update_config.__func__

    def kept(cls: Any, config: Any) -> None:
        chosen(cls, config)
        config.compilation_config.mode = CompilationMode.VLLM_COMPILE
        config.compilation_config.compile_sizes = []

    CpuPlatform.check_and_update_config = classmethod(kept)


def decode_times(engine: Any, watch: Stopwatch, name: str) -> list[Spent]:
    """Time of the one function that is watched, in each decode step of one sequence."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=WARM_STEPS + STEPS, ignore_eos=True, detokenize=False)
    engine.add_request(name, {"prompt_token_ids": list(range(1, PROMPT_TOKENS + 1))}, params)
    found = []
    while engine.has_unfinished_requests():
        watch.take()
        engine.step()
        found += watch.take().values()
    return found[WARM_STEPS:]


def measure(mode: str, model: str, hidden: int, layers: int) -> list[dict[str, Any]]:
    """The forward by itself, then what is in it, one part after the other: watching takes time of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        os.environ.update(ENVIRONMENT | {"VLLM_CACHE_ROOT": name})
        if mode == "pieces":
            compile_in_pieces()
        from vllm import LLM

        write_model(Path(name), model, hidden, layers)
        settings = {"max_model_len": 1024, "max_num_seqs": 4, "skip_tokenizer_init": True}
        llm = LLM(model=name, load_format="dummy", enforce_eager=mode == "eager", **settings)
        for part, (module, owner, method) in COMPONENTS.items():
            if mode != "eager" and part in COMPILED_AWAY:
                continue
            watch = Stopwatch()
            watch.wrap(getattr(importlib.import_module(module), owner), method)
            spent = decode_times(llm.llm_engine, watch, part)
            quartiles = statistics.quantiles([one.cpu_s for one in spent], n=4)
            times = [*quartiles, statistics.median(one.wall_s for one in spent)]
            values = (part, mode, model, hidden, layers, *(f"{1e6 * value:.1f}" for value in times))
            rows.append(dict(zip(FIELDS, (*values, len(spent)), strict=True)))
    return rows


def main() -> None:
    """Measures each engine in a process of its own, one after the other, and writes one table."""
    parser = argparse.ArgumentParser(description="Time the dispatch of layers in a live vLLM engine.")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--layers", nargs="+", type=int, default=LAYERS)
    wanted = parser.parse_args()
    engines = list(itertools.product(wanted.modes, wanted.models, wanted.widths, wanted.layers))
    found = [measure(*engines[0])] if len(engines) == 1 else [measured_apart(*one) for one in engines]
    with wanted.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(itertools.chain.from_iterable(found))


def measured_apart(mode: str, model: str, hidden: int, layers: int) -> list[dict[str, Any]]:
    """The rows of one engine, from a process that ends with it."""
    with tempfile.TemporaryDirectory() as name:
        table = Path(name) / "one.csv"
        command = [sys.executable, "-m", "benchmarks.engine_dispatch_time", "--out", str(table)]
        command += ["--modes", mode, "--models", model, "--widths", str(hidden), "--layers", str(layers)]
        subprocess.run(command, check=True)
        with table.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
