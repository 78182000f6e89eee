"""Times what one step and one prompt of a live vLLM engine (CPU) cost on the host, outside the model's forward.

Runs with the interpreter that has vLLM, not with ours:

    .venv-engine/bin/python benchmarks/engine_host_time.py --vocab 32000 --out steps.csv

A model of one layer with made-up weights decodes batches of sequences in process. vLLM's own functions are wrapped,
each is charged with its own CPU time, without that of wrapped functions it calls; wall time stands beside it. The
forward, the head and the sampler have names of their own: on a GPU they are kernels.
"""

import argparse
import csv
import importlib
import json
import os
import pickle
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MAX_MODEL_TOKENS = 16384
PROMPT_TOKENS = (128, 512, 2048, 8192)
STEPS, WARM_STEPS, STEP_PROMPT_TOKENS = 200, 20, 96
FIELDS = ("part", "component", "vocab", "size", "q1_us", "median_us", "q3_us", "wall_median_us", "n")
RUNNER = "execute_model _update_states _prepare_inputs _get_slot_mappings _build_attention_metadata"
RUNNER += " _model_forward sample_tokens _sample _bookkeeping_sync"
WRAPPED = (
    ("vllm.v1.core.sched.scheduler", "Scheduler", "schedule update_from_output"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", RUNNER),
    ("vllm.v1.engine.output_processor", "OutputProcessor", "process_outputs"),
)


class Spent(NamedTuple):
    """CPU time of this thread and wall time [s]."""

    cpu_s: float = 0.0
    wall_s: float = 0.0

    def plus(self, other: "Spent", sign: int = 1) -> "Spent":
        """Sum, or with sign -1 the difference."""
        return Spent(self.cpu_s + sign * other.cpu_s, self.wall_s + sign * other.wall_s)


def timed(action: Callable[[], Any]) -> tuple[Any, Spent]:
    """What a call gives, and its time."""
    start = Spent(time.thread_time(), time.perf_counter())
    result = action()
    return result, Spent(time.thread_time(), time.perf_counter()).plus(start, -1)


def repeated(action: Callable[[], object]) -> list[Spent]:
    """Time of each of several calls, after one that warms it."""
    action()
    return [timed(action)[1] for _ in range(STEPS)]


class Stopwatch:
    """Own time of every wrapped function, summed until `take` is called; `seen` keeps its last result."""

    def __init__(self) -> None:
        self._sums: dict[str, Spent] = {}
        self._inner: list[Spent] = []
        self.seen: dict[str, Any] = {}

    def wrap(self, owner: Any, name: str) -> None:
        """Replaces a method by one that is timed."""
        method, label = getattr(owner, name), name.lstrip("_")

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(Spent())
            self.seen[label], whole = timed(lambda: method(*args, **kwargs))
            own = whole.plus(self._inner.pop(), -1)
            self._sums[label] = self._sums.get(label, Spent()).plus(own)
            if self._inner:
                self._inner[-1] = self._inner[-1].plus(whole)
            return self.seen[label]

        setattr(owner, name, watched)

    def take(self) -> dict[str, Spent]:
        """Sums by function since the last call."""
        taken, self._sums = self._sums, {}
        return taken


def row(part: str, component: str, size: tuple[int, int], spent: list[Spent]) -> dict[str, Any]:
    """Quartiles of the CPU time and the median wall time; `size` is the vocabulary, and sequences or tokens."""
    quartiles = statistics.quantiles([one.cpu_s for one in spent], n=4)
    times = [*quartiles, statistics.median(one.wall_s for one in spent)]
    values = (part, component, *size, *(f"{1e6 * value:.1f}" for value in times), len(spent))
    return dict(zip(FIELDS, values, strict=True))


def local_text() -> str:
    """The standard library's own source: a few megabytes of English and code."""
    return "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(Path(os.__file__).parent.glob("*.py"))
    )


def write_model(folder: Path, vocab: int) -> None:
    """A model of one layer, and a byte-level BPE of `vocab` tokens trained on local text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
    }
    config |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": vocab}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "eos_token_id": 0}
    config["max_position_embeddings"] = MAX_MODEL_TOKENS
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=["<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([local_text()], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


def decode_steps(engine: Any, watch: Stopwatch, batch: int, params: Any) -> Iterator[dict[str, Spent]]:
    """Own times of each decode step of `batch` sequences, all prefilled before."""
    for index in range(batch):
        ids = [1 + (7 * index + token) % 999 for token in range(STEP_PROMPT_TOKENS)]
        engine.add_request(f"{batch}-{index}", {"prompt_token_ids": ids}, params)
    step = 0
    while engine.has_unfinished_requests():
        watch.take()
        outputs = engine.step()
        step += 1
        if step > WARM_STEPS and len(outputs) == batch and not any(output.finished for output in outputs):
            yield watch.take()


def messages(watch: Stopwatch) -> dict[str, Callable[[], object]]:
    """Actions that pack and unpack a step's messages: to the front end, and to and from workers of other ranks."""
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    encoder, decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs)
    outputs = watch.seen["step_fn"][0][0]
    frames = list(map(bytes, encoder.encode(outputs)))
    scheduled, sampled = pickle.dumps(watch.seen["schedule"]), pickle.dumps(watch.seen["sample_tokens"])
    return {
        "encode_outputs": lambda: encoder.encode(outputs),
        "decode_outputs": lambda: decoder.decode(frames),
        "pickle_schedule": lambda: pickle.dumps(watch.seen["schedule"]),
        "unpickle_schedule": lambda: pickle.loads(scheduled),
        "pickle_sampled": lambda: pickle.dumps(watch.seen["sample_tokens"]),
        "unpickle_sampled": lambda: pickle.loads(sampled),
    }


def step_rows(engine: Any, vocab: int) -> Iterator[dict[str, Any]]:
    """Every component of a decode step, by sequences in it, without and with detokenising."""
    from vllm import SamplingParams

    watch, core = Stopwatch(), engine.engine_core.engine_core
    for module, owner, names in WRAPPED:
        for name in names.split():
            watch.wrap(getattr(importlib.import_module(module), owner), name)
    watch.wrap(core, "step_fn")
    watch.wrap(core.model_executor.driver_worker.worker.model_runner.model, "compute_logits")
    for detokenize in (False, True):
        params = SamplingParams(temperature=0.0, max_tokens=WARM_STEPS + STEPS, ignore_eos=True)
        params.detokenize = detokenize
        for batch in BATCHES:
            found: dict[str, list[Spent]] = defaultdict(list)
            for index, times in enumerate(decode_steps(engine, watch, batch, params)):
                for component, spent in times.items():
                    found[component].append(spent)
                if index == STEPS // 2 and not detokenize:
                    found |= {name: repeated(action) for name, action in messages(watch).items()}
            if detokenize:
                found = {"process_outputs_detokenize": found["process_outputs"]}
            yield from (row("step", name, (vocab, batch), spent) for name, spent in found.items())


def prompt_rows(llm: Any, vocab: int) -> Iterator[dict[str, Any]]:
    """What one prompt costs before it is scheduled, by its tokens."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    engine, tokenizer, text = llm.llm_engine, llm.get_tokenizer(), local_text()
    encoder, decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreRequest)
    params, preprocess = SamplingParams(max_tokens=1), engine.engine_core.engine_core.preprocess_add_request
    for tokens in PROMPT_TOKENS:
        piece = tokenizer.decode(ids := tokenizer(text[: 8 * tokens])["input_ids"][:tokens])

        def process(ids: list[int] = ids) -> Any:
            return engine.input_processor.process_inputs(
                "0", {"prompt_token_ids": ids}, params, ("generate",)
            )

        engine.input_processor.assign_request_id(request := process())
        frames = list(map(bytes, encoder.encode(request)))
        actions: dict[str, Callable[[], object]] = {
            "tokenize": lambda piece=piece: tokenizer(piece),
            "process_inputs": process,
            "encode_request": lambda request=request: encoder.encode(request),
            "decode_request": lambda frames=frames: decoder.decode(frames),
            "preprocess_request": lambda request=request: preprocess(request),
        }
        for component, action in actions.items():
            yield row("prompt", component, (vocab, len(ids)), repeated(action))


def main() -> None:
    """Measures one vocabulary and writes one table."""
    parser = argparse.ArgumentParser(description="Time the host work of a live vLLM engine.")
    parser.add_argument("--vocab", type=int, default=32000, help="tokens of the vocabulary")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    wanted = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    from vllm import LLM

    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name), wanted.vocab)
        settings = {"max_model_len": MAX_MODEL_TOKENS, "max_num_seqs": max(BATCHES), "block_size": 32}
        llm = LLM(model=name, load_format="dummy", enforce_eager=True, disable_log_stats=False, **settings)
        rows = [*prompt_rows(llm, wanted.vocab), *step_rows(llm.llm_engine, wanted.vocab)]
    with wanted.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
