"""`calibrate`: short runs of the real engine on this machine."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Annotated, NamedTuple

import typer

from planner import __version__
from planner.assemble.calibration import (
    Wanted,
    check_startable,
    engine_start,
    engine_threads,
    target_of,
    write_config,
)
from planner.calibrate.measure.calibration import Calibration, Setting
from planner.calibrate.measure.config_folder import config_folder
from planner.calibrate.measure.design import FIRST_ASK_S, REPETITIONS, WARMUPS, Plan
from planner.calibrate.measure.engine_process import EngineProcess
from planner.calibrate.measure.machine import describe, nominal_gpu
from planner.calibrate.measure.memory_speed import read_bytes_per_s
from planner.calibrate.measure.probe import Probe, watch
from planner.calibrate.measure.session import Budget, Progress, Tools, now
from planner.calibrate.step_deployment import operators_before
from planner.calibrate.store import calibration_directories
from planner.catalog.calibration_runs import RUN_PREFIX, read_run, runs_of
from planner.catalog.paths import default_calibration_dir
from planner.cli.calibrate_import import RUNS_FOLDER, import_benchmarks
from planner.cli.calibrate_report import show_grids, show_runs
from planner.cli.calibrate_report_html import report_beside, report_run
from planner.cli.options import (
    AsJson,
    CalibrationDir,
    EnforceEager,
    GpuMemoryUtilization,
    MaxModelLen,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    folder_path,
)
from planner.cli.screen import note
from planner.domain.base import InputError
from planner.domain.calibration import CalibrationRun, CalibrationTarget, Device, Machine, RunEnd
from planner.export.calibration_run import only_writer, write_run
from planner.formulas.operators import GpuOperators

LEAST_BUDGET_S, MOST_BUDGET_S = 20.0, 24 * 3600.0
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", re.ASCII)
_UNIT_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")

app = typer.Typer(
    help="Measure vLLM on this machine, so that every prediction for its GPU rests on it.",
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"allow_interspersed_args": False},
)
app.command("import")(import_benchmarks)
app.command("report")(report_run)

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="A bundled name, a Hugging Face id, or the path of a config.json or its folder; may be repeated.",
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        parser=folder_path,
        metavar="DIR",
        help="Where runs are kept; calibration/runs of the checkout or of the user's folder if left out.",
    ),
]


def budget_seconds(text: str) -> float:
    """A length of time as it is typed.

    >>> budget_seconds("90s"), budget_seconds("6m")
    (90.0, 360.0)
    """
    found = _BUDGET.fullmatch(text.strip().lower())
    seconds = float(found[1]) * _UNIT_S[found[2] or ""] if found else 0.0
    if not LEAST_BUDGET_S <= seconds <= MOST_BUDGET_S:
        raise typer.BadParameter(f'"{text[:40]}"; a time such as 90s, 6m or 1h, from 20s to 24h')
    return seconds


class _Job(NamedTuple):
    """One deployment to measure, and where its run goes."""

    target: CalibrationTarget
    path: Path
    run: CalibrationRun
    """Empty, or what an earlier process left."""
    resumed: bool


@app.callback()
def calibrate(
    context: typer.Context,
    *,
    model: Models = None,
    tp: Annotated[int, typer.Option("--tp", "--tensor-parallel-size", help="Tensor-parallel degree.")] = 1,
    weight_dtype: Annotated[
        str, typer.Option("--weight-dtype", "--quantization", help="auto, or a format to quantise to.")
    ] = "auto",
    kv_dtype: Annotated[
        str, typer.Option("--kv-dtype", "--kv-cache-dtype", help="auto, bf16, fp16 or fp8.")
    ] = "auto",
    budget: Annotated[
        float,
        typer.Option(
            parser=budget_seconds, metavar="TIME", help="For all of it, the engine's start included."
        ),
    ] = "10m",  # type: ignore[assignment]
    device: Annotated[Device, typer.Option(help="What to measure.")] = Device.CUDA,
    gpu_index: Annotated[int, typer.Option(help="First GPU, as nvidia-smi counts them.")] = 0,
    out: OutFolder = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A whole checkpoint; made-up weights of its shapes if left out."),
    ] = None,
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxNumBatchedTokens = None,
    gpu_memory_utilization: GpuMemoryUtilization = None,
    enforce_eager: EnforceEager = False,
    threads: Annotated[
        int, typer.Option(help="Threads of the CPU's kernels; one fewer than there are cores if 0.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of prompts and of the order of points.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest unfinished run.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be measured, and stop.")
    ] = False,
    calibration_dir: CalibrationDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure vLLM on this machine: memory, prefill, decode and mixed steps, and a short serving run."""
    if context.invoked_subcommand is not None:
        return
    if not model:
        raise InputError("--model: name at least one model, or use `calibrate import FILE...`")
    wanted = Wanted(
        device=device,
        tp=tp,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        weights=weights,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        gpu_memory_utilization=gpu_memory_utilization,
        enforce_eager=enforce_eager,
        threads=threads,
        seed=seed,
    )
    targets = [target_of(name, wanted) for name in model]
    here = _here(wanted, gpu_index)
    for target in targets:
        check_startable(target, wanted, here.machine)
    operators = operators_before(here.machine, calibration_directories(calibration_dir))
    share_s = budget / len(targets)
    if dry_run:
        show_grids(targets, wanted, operators, share_s, as_json=as_json)
        return
    _check_installed()
    folder = _runs_folder(out, begin=not resume)
    with _stopped_politely():
        if resume:
            jobs = _resumed(targets, folder, here, share_s, seed)
        else:
            jobs = [_job(target, folder, here, share_s, seed) for target in targets]
        for line in here.missing:
            note(line)
        finished = []
        for job in jobs:
            run = _measured(job, wanted, operators, range(gpu_index, gpu_index + tp), share_s)
            finished.append((job.path, run))
            note(f"wrote {job.path}")
            if run.measured:
                report_beside(job.path, run, operators)
            if run.end is RunEnd.INTERRUPTED:
                note(f"interrupted; {len(run.points)} points are kept, and --resume goes on with them")
                break
    show_runs([(path, run) for path, run in finished if run.measured], operators, as_json=as_json)
    problem = next((run for _, run in finished if run.end is RunEnd.FAILED), None)
    if problem is not None:
        raise InputError(f"{problem.target.model}: {problem.end_reason}")
    if finished and finished[-1][1].end is RunEnd.INTERRUPTED:
        raise KeyboardInterrupt


def _measured(
    job: _Job, wanted: Wanted, operators: GpuOperators, gpu_indices: range, budget_s: float
) -> CalibrationRun:
    """The job done, as far as it goes; its run says how it ended."""
    with only_writer(job.path), config_folder() as config_dir:
        # Whoever wrote the run before may have gone on until the lock was let go.
        run = _going_on(job.path) if job.resumed else job.run
        write_config(job.target, config_dir)
        write_run(job.path, run)
        engine = EngineProcess(job.path.with_suffix(".log"))
        with _watched(wanted.device, gpu_indices, engine) as probe, _bar() as show:
            setting = Setting(
                engine=engine,
                start=engine_start(job.target, wanted, str(config_dir)),
                operators=operators,
                plan=Plan(repetitions=REPETITIONS, warmups=WARMUPS, overhead_s=FIRST_ASK_S),
                budget=Budget(time.monotonic(), budget_s),
                tools=Tools(probe, partial(write_run, job.path), show),
            )
            return Calibration(run, setting).measure()


class _Here(NamedTuple):
    """This machine."""

    machine: Machine
    missing: tuple[str, ...]
    """One line on each thing that could not be read, and why."""


def _here(wanted: Wanted, gpu_index: int) -> _Here:
    """This machine, with a datasheet where the catalog has none."""
    found = describe(wanted.device, tuple(range(gpu_index, gpu_index + wanted.tp)))
    machine = found.machine
    from planner.catalog.load import gpus

    if all(gpu.name != machine.gpu for gpu in gpus()):
        today = datetime.now(UTC).date().isoformat()
        read = read_bytes_per_s(engine_threads(wanted)) if wanted.device is Device.CPU else None
        sheet = nominal_gpu(machine, found.silicon, as_of=today, memory_bytes_per_s=read)
        machine = machine.model_copy(update={"datasheet": sheet})
    return _Here(machine, found.missing)


def _check_installed() -> None:
    """Raises `InputError` where this Python has no vLLM, which is looked for and not imported."""
    if find_spec("vllm") is None:
        raise InputError(
            f"vLLM is not installed for {sys.executable}: install it there (pip install vllm; for a CPU: "
            "make engine-cpu), or run calibrate where it is"
        )


def _runs_folder(out: Path | None, *, begin: bool) -> Path:
    """Where runs go; made where it is not there and runs `begin`."""
    folder = out
    if folder is None:
        base = default_calibration_dir()
        if base is None:
            raise InputError("--out: name a folder; there is no home directory to keep runs in")
        folder = base / RUNS_FOLDER
    if not begin:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror or error}; name a folder") from None
    return folder


def _resumed(
    targets: Sequence[CalibrationTarget], folder: Path, here: _Here, budget_s: float, seed: int
) -> list[_Job]:
    """The newest unfinished run of each target; one of several that was never begun begins, a finished one is left.

    Raises:
        InputError: none is unfinished, or a run cannot be read.
    """
    jobs, found = [], 0
    for target in targets:
        runs = runs_of(folder, target, here.machine)
        unfinished = next(((path, run) for path, run in runs if run.end is not RunEnd.FINISHED), None)
        if unfinished is not None:
            path, run = unfinished
            note(f"going on with {path}: {len(run.points)} points")
            jobs.append(_Job(target, path, run, resumed=True))
            found += 1
        elif runs:
            note(f"{runs[0][0]} is finished: left as it is")
        else:
            jobs.append(_job(target, folder, here, budget_s, seed))
    if not found:
        names = ", ".join(target.model for target in targets)
        raise InputError(
            f"{folder}: no unfinished run of {names} at TP {targets[0].tp} on {here.machine.device_name} to resume"
        )
    return jobs


def _going_on(path: Path) -> CalibrationRun:
    """The run as it is on disk now, to go on with."""
    run = read_run(path)
    if run.end is RunEnd.FINISHED:
        raise InputError(f"{path}: has been finished meanwhile")
    return run.model_copy(update={"end": RunEnd.RUNNING, "end_reason": "", "ended_at": ""})


def _job(target: CalibrationTarget, folder: Path, here: _Here, budget_s: float, seed: int) -> _Job:
    """A run that begins."""
    when = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    model = _UNSAFE.sub("-", target.model.rpartition("/")[2])[:40].strip("-.")
    device = _UNSAFE.sub("-", here.machine.gpu)[:30].strip("-.")
    run_id = f"{when}-{device}-{model}-tp{target.tp}-{token_hex(2)}"
    run = CalibrationRun(
        run_id=run_id,
        planner_version=__version__,
        started_at=now(),
        budget_s=budget_s,
        seed=seed,
        target=target,
        machine=here.machine,
        notes=here.missing,
    )
    return _Job(target, folder / f"{RUN_PREFIX}{run_id}.json", run, resumed=False)


@contextmanager
def _watched(device: Device, gpu_indices: range, engine: EngineProcess) -> Iterator[Probe]:
    with ExitStack() as stack:
        stack.enter_context(engine)
        yield stack.enter_context(
            watch(device, tuple(gpu_indices), own_pids=lambda: (engine.pid,) if engine.pid else ())
        )


@contextmanager
def _stopped_politely() -> Iterator[None]:
    """A request to terminate ends the run as Ctrl-C does, with what it has."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    """Shows where the measuring stands, on stderr."""
    if not sys.stderr.isatty():
        shown: list[str] = []

        def tell(progress: Progress) -> None:
            doing = progress.doing.partition(" ")[0] if shown else progress.doing
            if progress.doing.startswith(("starting", "serving")) or not shown or len(shown) % 20 == 0:
                note(f"{progress.done_s:5.0f} of {progress.budget_s:.0f} s: {progress.doing}")
            shown.append(doing)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("calibrating", total=1.0)

        def show(progress: Progress) -> None:
            bar.update(
                task, total=progress.budget_s, completed=progress.done_s, description=progress.doing[:60]
            )

        yield show
