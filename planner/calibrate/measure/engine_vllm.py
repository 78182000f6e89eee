"""Starts vLLM in this process and steps it: the only module that imports vllm, beside the connector.

Read in the releases 0.11.0 to 0.33.0: vllm/v1/engine/{llm_engine,core,core_client}.py, vllm/v1/worker/gpu_worker.py,
vllm/v1/worker/cpu_worker.py, vllm/v1/worker/{gpu_model_runner,gpu/model_runner}.py,
vllm/v1/executor/{uniproc_executor,multiproc_executor}.py, vllm/v1/core/sched/{scheduler,output}.py,
vllm/engine/arg_utils.py. What releases name differently is looked up where it is used.
"""

import dataclasses
import platform
import random
import sys
import time
from typing import Any

from planner.calibrate.measure.engine_arguments import OPTIONAL_ARGUMENTS, arguments
from planner.calibrate.measure.engine_failures import StartError, failure_kind, is_out_of_memory, reason
from planner.calibrate.measure.engine_protocol import FailureKind, Limits, Start
from planner.calibrate.measure.engine_steps import Label, Progress, Prompt, Step
from planner.domain.calibration import Device, EngineSetup, MemoryFacts

VARIETY_TOKENS = 4096
"""Prompts begin at this many places of one row of random tokens."""
PROBE_TOKENS = 33
MOST_FLUSH_STEPS = 8
INSTALL = (
    "vLLM is not installed for {python}: install it there (pip install vllm; for a CPU: make engine-cpu), "
    "or run calibrate with the Python that has it"
)


class VllmEngine:
    """A running engine whose every step is asked for (engine_steps.SteppedEngine)."""

    def __init__(self, start: Start) -> None:
        """Starts it.

        Raises:
            StartError: vLLM is not there, or refuses.
        """
        begin = time.perf_counter()
        asked = arguments(start)
        vllm = _import_vllm()
        if start.device == Device.CPU:
            _allow_tiles()
        config = _config(start, asked)
        try:
            self._engine = vllm.LLMEngine.from_vllm_config(config, disable_log_stats=True)
            self._core = self._engine.engine_core.engine_core
        except Exception as error:
            raise StartError(failure_kind(error), reason(error)) from error
        self._vllm_config = self._engine.vllm_config
        self._sampling: Any = vllm.SamplingParams
        self._delta = _delta()
        self._scheduled: Any = None
        self._live: set[str] = set()
        self._failed = False
        self._ranks = start.tp
        self._sent = 0
        self._watch_scheduler()
        self._random = random.Random(start.seed)
        self._tokens = self._random_tokens()
        self.limits = self._limits()
        self.async_scheduling = bool(getattr(self._vllm_config.scheduler_config, "async_scheduling", False))
        self.made_up_context = start.made_up_context and self._context_is_taken()
        self.clear()
        self.setup = self._setup(start, vllm.__version__, time.perf_counter() - begin)
        self.memory = self._memory(start)

    def submit(self, prompt: Prompt) -> str:
        """Hands over a request of random tokens that decodes greedily to its full length; its id."""
        self._sent += 1
        name = f"calibrate-{self._sent}"
        place = self._random.randrange(VARIETY_TOKENS)
        extra = (
            {"kv_transfer_params": {"context_tokens": prompt.context_tokens}}
            if prompt.context_tokens
            else None
        )
        params = self._sampling(
            max_tokens=prompt.output_tokens,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=self._delta,
            extra_args=extra,
        )
        tokens = self._tokens[place : place + prompt.tokens]
        self._engine.add_request(name, {"prompt_token_ids": tokens}, params)
        self._live.add(name)
        return name

    def step(self) -> Step:
        """Runs one step, waits for the device, and reads off the scheduler what it was.

        Under asynchronous scheduling nothing is waited for: the next step is to be scheduled while this one runs.
        """
        self._scheduled = None
        begin = time.perf_counter()
        try:
            outputs = self._engine.step()
            if not self.async_scheduling:
                _synchronize()
        except Exception:
            self._failed = True
            raise
        seconds = time.perf_counter() - begin
        progress = [Progress(one.request_id, len(one.outputs[0].token_ids), one.finished) for one in outputs]
        self._live.difference_update(one.request_id for one in progress if one.finished)
        return Step(seconds, _label(self._scheduled), progress)

    def clear(self) -> None:
        """Drops every request and lets the workers know of it; nothing after a failed step, until `recover`."""
        if self._failed:
            return
        if self._live:
            self._engine.abort_request(list(self._live))
            self._live.clear()
        for _ in range(MOST_FLUSH_STEPS):
            if not self._core.scheduler.has_requests() and not getattr(self._core, "batch_queue", None):
                break
            self._engine.step()
        _synchronize()

    def recover(self) -> bool:
        """Gives memory back after a failed step; whether the engine still works.

        An exception leaves scheduler and model runner of one process as they are between steps. Of several ranks one
        may have failed while the others wait for it in a collective, which nothing ends.
        """
        import torch

        if self._ranks > 1:
            return False
        self._failed = False
        try:
            self.clear()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self.submit(Prompt(1, 1))
            works = any(self.step().progress for _ in range(MOST_FLUSH_STEPS))
            self.clear()
        except Exception:
            return False
        return works

    def shut_down(self) -> None:
        """Ends workers in other processes."""
        self._core.shutdown()

    def _watch_scheduler(self) -> None:
        scheduler = self._core.scheduler
        schedule = scheduler.schedule

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._scheduled = schedule(*args, **kwargs)
            return self._scheduled

        scheduler.schedule = watched

    def _random_tokens(self) -> list[int]:
        model = self._vllm_config.model_config
        words = int(model.get_vocab_size())
        length = int(model.max_model_len) + VARIETY_TOKENS
        return [self._random.randrange(words) for _ in range(length)]

    def _limits(self) -> Limits:
        config = self._vllm_config
        cache = config.cache_config
        layout = getattr(self._core.scheduler, "kv_cache_config", None)
        groups: Any = getattr(layout, "kv_cache_groups", ())
        return Limits(
            max_model_len=int(config.model_config.max_model_len),
            max_num_seqs=int(config.scheduler_config.max_num_seqs),
            max_num_batched_tokens=int(config.scheduler_config.max_num_batched_tokens),
            block_size=int(cache.block_size),
            kv_blocks=max(int(cache.num_gpu_blocks or 0) - 1, 0),
            counts_blocks=len(groups) == 1 and type(groups[0].kv_cache_spec).__name__ == "FullAttentionSpec",
        )

    def _context_is_taken(self) -> bool:
        """Whether declared tokens count as cached: some models have the engine compute the last of them again."""
        if self.async_scheduling:
            return True
        tokens = min(PROBE_TOKENS, self.limits.max_model_len - 1)
        try:
            self.submit(Prompt(tokens, 1, tokens - 1))
            return self.step().label == Label({(1, tokens - 1): 1})
        except Exception as error:
            kind = FailureKind.OUT_OF_MEMORY if is_out_of_memory(error) else FailureKind.CONTEXT
            raise StartError(kind, reason(error)) from error

    def _setup(self, start: Start, version: str, seconds: float) -> EngineSetup:
        import torch

        compilation = self._vllm_config.compilation_config
        model = self._vllm_config.model_config
        graphs = start.device == Device.CUDA and not model.enforce_eager
        return EngineSetup(
            engine_version=version,
            torch_version=torch.__version__,
            python_version=platform.python_version(),
            max_model_len=self.limits.max_model_len,
            max_num_seqs=self.limits.max_num_seqs,
            max_num_batched_tokens=self.limits.max_num_batched_tokens,
            block_size=self.limits.block_size,
            enforce_eager=bool(model.enforce_eager),
            async_scheduling=self.async_scheduling,
            cuda_graph_sizes=tuple(sorted(getattr(compilation, "cudagraph_capture_sizes", None) or ()))
            if graphs
            else (),
            threads=torch.get_num_threads() if start.device == Device.CPU else 0,
            made_up_weights=not start.weights,
            made_up_context=self.made_up_context,
            start_s=seconds,
        )

    def _memory(self, start: Start) -> MemoryFacts:
        """What the workers found, of several the fullest; the log says the rest (engine_log.py)."""
        cache = self._vllm_config.cache_config
        tensors = getattr(getattr(self._core.scheduler, "kv_cache_config", None), "kv_cache_tensors", ())
        try:
            ranks: list[dict[str, int]] = self._core.model_executor.collective_rpc(worker_memory)
        except Exception:
            ranks = []
        facts: dict[str, int | None] = {}
        for name in {name for rank in ranks for name in rank}:
            found = [rank[name] for rank in ranks if name in rank]
            facts[name] = min(found) if name == "kv_cache_bytes" else max(found)
        facts.setdefault("kv_cache_bytes", sum(int(getattr(one, "size", 0)) for one in tensors) or None)
        tokens = getattr(cache, "kv_cache_size_tokens", None)
        return MemoryFacts(
            **facts,
            kv_blocks=cache.num_gpu_blocks,
            kv_cache_tokens=None if tokens is None else int(tokens),
            gpu_memory_utilization=None if start.device == Device.CPU else cache.gpu_memory_utilization,
        )


def worker_memory(worker: Any) -> dict[str, int]:
    """What a worker's profiling run found [bytes]; empty on a CPU, which has none.

    Activations are what is left of the memory asked for once weights, what torch does not manage, the graphs that were
    charged and the KV cache are off: releases differ in what they count among the peak.
    """
    weights = getattr(getattr(worker, "model_runner", None), "model_memory_usage", None)
    requested, cache = (
        getattr(worker, "requested_memory", None),
        getattr(worker, "available_kv_cache_memory_bytes", None),
    )
    consumed, other = getattr(worker, "total_consumed", None), getattr(worker, "non_torch_memory", None)
    if weights is None:
        return {}
    found = {"weights_bytes": int(weights)}
    if consumed is None and other is not None:
        consumed = weights + other
    if consumed is None or requested is None or cache is None:
        return found
    from vllm import envs

    charged = getattr(envs, "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", False)
    graphs = getattr(worker, "cudagraph_memory_estimate", 0) if charged else 0
    found["kv_cache_bytes"] = int(cache)
    found["non_torch_bytes"] = max(int(consumed - weights), 0)
    found["activation_peak_bytes"] = max(int(requested - cache - graphs - consumed), 0)
    return found


def _import_vllm() -> Any:
    try:
        import vllm
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise StartError(FailureKind.ENGINE, f"vLLM cannot be imported: {error}") from error
        raise StartError(FailureKind.ENGINE, INSTALL.format(python=sys.executable)) from error
    except Exception as error:
        raise StartError(FailureKind.ENGINE, f"vLLM cannot be imported: {reason(error)}") from error
    return vllm


def _config(start: Start, asked: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    runs_on = current_platform.device_type
    if runs_on != start.device.value:
        raise StartError(
            FailureKind.ENGINE,
            f"this vLLM runs on {runs_on or 'no device that it finds'}, not on {start.device}: "
            f"name another --device, or install vLLM for {start.device}",
        )
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    missing = asked.keys() - known - OPTIONAL_ARGUMENTS
    if missing:
        raise StartError(FailureKind.ENGINE, f"this vLLM is too old: it has no {', '.join(sorted(missing))}")
    given = {name: value for name, value in asked.items() if name in known}
    try:
        if "kv_transfer_config" in given:
            from vllm.config import KVTransferConfig

            given["kv_transfer_config"] = KVTransferConfig(**given["kv_transfer_config"])
        return EngineArgs(**given).create_engine_config()
    except Exception as error:
        kind = failure_kind(error)
        raise StartError(FailureKind.CONFIG if kind == FailureKind.ENGINE else kind, reason(error)) from error


def _label(scheduled: Any) -> Label:
    if scheduled is None:
        return Label()
    new = scheduled.num_scheduled_tokens
    label = Label((new[one.req_id], one.num_computed_tokens) for one in scheduled.scheduled_new_reqs)
    cached = scheduled.scheduled_cached_reqs
    label.update(
        (new[name], computed)
        for name, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True)
    )
    return label


def _allow_tiles() -> None:
    """Asks the operating system for a CPU's matrix tiles (AMX).

    vLLM's attention on a CPU uses them without asking; a model whose own matrices are too small to make torch ask
    would die of an illegal instruction.
    """
    import torch

    ask = getattr(torch.cpu, "_init_amx", None)
    if ask is not None:
        ask()


def _delta() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.DELTA


def _synchronize() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
