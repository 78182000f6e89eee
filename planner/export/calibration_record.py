"""What a calibration says of itself, as markup: the run, its machine and engine, and memory."""

from collections.abc import Iterable, Iterator
from html import escape

from planner.domain.calibration import CalibrationRun, EngineSetup, Machine, MemoryFacts, RunEnd
from planner.domain.units import bytes_to_gib
from planner.export.format import number
from planner.export.markup import missing, table_of

ENDED = {
    RunEnd.RUNNING: "still running, or killed",
    RunEnd.FINISHED: "finished",
    RunEnd.INTERRUPTED: "interrupted",
    RunEnd.FAILED: "failed",
}


def about_run(run: CalibrationRun) -> Iterator[str]:
    """Machine, engine, model, how it ended, and what it noted."""
    ended = ENDED[run.end] + (f": {run.end_reason}" if run.end_reason else "")
    failed = sum(bool(point.failed) for point in run.points)
    about = [
        ("run", run.run_id),
        ("model", run.target.model),
        ("weights", f"{run.target.weight_dtype.value}, KV cache {run.target.kv_dtype.value}"),
        ("tensor parallel", f"{run.target.tp}"),
        ("began", run.started_at),
        ("ended", f"{run.ended_at or 'not recorded'}; {ended}"),
        ("time allowed", f"{number(run.budget_s)} s"),
        ("shapes measured", f"{len(run.measured):,}"),
        ("of them disturbed", f"{sum(bool(point.disturbed) for point in run.measured):,}"),
        ("attempts failed", f"{failed:,}"),
        ("planner", run.planner_version),
    ]
    yield '<div class="columns">'
    yield _facts("Calibration", about)
    yield _facts("Machine", _machine(run.machine))
    yield _facts("Engine", _engine(run.engine))
    yield "</div>"
    if run.notes:
        yield f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in run.notes)}</ul>"


def _machine(machine: Machine) -> list[tuple[str, str]]:
    memory = (
        f"{bytes_to_gib(machine.device_memory_bytes):,.1f} GiB" if machine.device_memory_bytes else "unknown"
    )
    found = [
        ("device", f"{machine.device_name} ({machine.device.value})"),
        ("known as", machine.gpu),
        ("memory", memory),
        ("driver", machine.driver_version or "none"),
        ("processor", f"{machine.cpu_name}, {machine.cpu_count:,} cores"),
        ("system", machine.platform),
    ]
    if machine.power_limit_w is not None:
        found.append(("power limit", f"{number(machine.power_limit_w)} W"))
    if machine.ecc_enabled is not None:
        found.append(("ECC", "on" if machine.ecc_enabled else "off"))
    if machine.mig_enabled:
        found.append(("MIG", "on"))
    if machine.datasheet is not None:
        found.append(("data sheet", f"none in the catalog; {machine.datasheet.source}"))
    return found


def _engine(engine: EngineSetup | None) -> list[tuple[str, str]]:
    if engine is None:
        return [("", "never started")]
    sizes = engine.cuda_graph_sizes
    return [
        ("engine", f"{engine.engine} {engine.engine_version}"),
        ("torch, Python", f"{engine.torch_version}, {engine.python_version}"),
        ("max_model_len", f"{engine.max_model_len:,}"),
        ("max_num_seqs", f"{engine.max_num_seqs:,}"),
        ("max_num_batched_tokens", f"{engine.max_num_batched_tokens:,}"),
        ("block_size", f"{engine.block_size:,}"),
        ("CUDA graphs", f"{len(sizes)} sizes up to {max(sizes):,} tokens" if sizes else "none (eager)"),
        ("threads", f"{engine.threads:,}" if engine.threads else "not a CPU"),
        ("weights", "made up, of the true shapes" if engine.made_up_weights else "a checkpoint's"),
        ("context of decode steps", "declared" if engine.made_up_context else "computed"),
        ("took to start", f"{engine.start_s:.0f} s"),
    ]


def about_memory(memory: MemoryFacts | None) -> Iterator[str]:
    """What the engine's log says of its memory."""
    if memory is None:
        yield missing("The engine did not get so far as to say anything of its memory.")
        return
    sizes = {
        "weights": memory.weights_bytes,
        "activation peak": memory.activation_peak_bytes,
        "outside torch": memory.non_torch_bytes,
        "CUDA graphs": memory.cuda_graph_bytes,
        "KV cache": memory.kv_cache_bytes,
    }
    rows = [
        [name, _or_not(None if size is None else f"{bytes_to_gib(size):,.3f} GiB")]
        for name, size in sizes.items()
    ]
    counts = {"KV cache blocks": memory.kv_blocks, "KV cache tokens": memory.kv_cache_tokens}
    rows += [[name, _or_not(None if count is None else f"{count:,}")] for name, count in counts.items()]
    yield table_of(("", ""), rows)
    if memory.log_lines:
        yield f"<ul>{''.join(f'<li><code>{escape(line)}</code></li>' for line in memory.log_lines)}</ul>"


def _or_not(text: str | None) -> str:
    return "not said" if text is None else text


def _facts(title: str, facts: Iterable[tuple[str, str]]) -> str:
    return f"<div>{table_of((title, ''), [list(fact) for fact in facts])}</div>"
