"""`calibrate import`: results of other benchmark tools as evidence, or as an exam for `validate`."""

from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from pydantic import ValidationError

from planner.calibrate.benchmarks.complete import Given, benchmark_runs
from planner.calibrate.benchmarks.read import read_benchmarks
from planner.calibrate.benchmarks.reading import problem_of
from planner.catalog.atomic import check_outputs, write_texts
from planner.catalog.models import load_model
from planner.catalog.paths import default_calibration_dir
from planner.cli.options import AsJson, DpGiven, PpGiven, folder_path
from planner.cli.screen import note, say, show_json, show_table
from planner.domain.base import InputError
from planner.domain.benchmark import (
    RUNS_COLUMNS,
    BenchmarkFacts,
    BenchmarkRun,
    Cell,
    LatencySummary,
    LoadFacts,
)
from planner.domain.units import seconds_to_ms
from planner.export.format import number
from planner.export.table import csv_text

RUNS_FOLDER = "runs"
NEW, REPLACED, THERE, NOT_KEPT = "new", "replaced", "already there", "not kept"


class _Target(NamedTuple):
    """A record, and where it goes."""

    run: BenchmarkRun
    path: Path | None
    """None where only a table is made."""
    state: str


def import_benchmarks(
    *,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Results of vllm bench serve, latency or throughput, guidellm or inference-perf.",
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", help="Which model it is; the name in the file if left out.")
    ] = "",
    gpu: Annotated[str, typer.Option("--gpu", help="A GPU of `catalog list gpus`, by name or alias.")] = "",
    tp: Annotated[
        int | None, typer.Option("--tp", "--tensor-parallel-size", help="Tensor-parallel degree.")
    ] = None,
    pp: PpGiven = None,
    dp: DpGiven = None,
    ep: Annotated[
        bool | None, typer.Option("--ep/--no-ep", help="Whether each rank held whole experts.")
    ] = None,
    weight_dtype: Annotated[
        str, typer.Option("--weight-dtype", "--quantization", help="As the checkpoint has it if left out.")
    ] = "",
    kv_dtype: Annotated[
        str, typer.Option("--kv-dtype", "--kv-cache-dtype", help="auto, bf16, fp16 or fp8.")
    ] = "",
    engine: Annotated[
        str, typer.Option("--engine", help="vllm if neither this nor the file says another.")
    ] = "",
    engine_version: Annotated[
        str, typer.Option("--engine-version", help="vLLM release; no result file says it.")
    ] = "",
    max_num_batched_tokens: Annotated[
        int | None, typer.Option("--max-num-batched-tokens", help="Tokens a step.")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option("--max-num-seqs", help="Sequences a step.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", help="Longest sequence [tokens].")
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option("--gpu-memory-utilization", help="Share of the card that vLLM might use.")
    ] = None,
    enforce_eager: Annotated[
        bool | None,
        typer.Option("--enforce-eager/--no-enforce-eager", help="Whether CUDA graphs were left out."),
    ] = None,
    async_scheduling: Annotated[
        bool | None,
        typer.Option("--async-scheduling/--no-async-scheduling", help="Whether steps were scheduled ahead."),
    ] = None,
    input_tokens: Annotated[
        float | None, typer.Option("--input-tokens", help="Mean prompt length, where the file has none.")
    ] = None,
    output_tokens: Annotated[
        float | None, typer.Option("--output-tokens", help="Mean answer length, where the file has none.")
    ] = None,
    length_low_ratio: Annotated[
        float | None,
        typer.Option("--length-low-ratio", help="Lengths were uniform from this share of the longest."),
    ] = None,
    prefix_hit_ratio: Annotated[
        float | None, typer.Option("--prefix-hit-ratio", help="Share of prompt tokens found in the cache.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="Requests at once; the batch of `vllm bench latency`.")
    ] = None,
    measured_on: Annotated[
        str, typer.Option("--measured-on", help="Day of the runs (2026-10-01), where the file has none.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=folder_path,
            metavar="DIR",
            help="Where records are kept; calibration/runs if neither this nor --csv is given.",
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write a runs table for `validate` or `fit serving`."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write records anew that were imported with other facts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read results of other benchmark tools: as evidence to fit on, or with --csv alone as an exam."""
    with problem_of("options"):
        given = Given(
            BenchmarkFacts(
                model=model.strip(),
                gpu=gpu.strip(),
                tp=tp,
                pp=pp,
                dp=dp,
                ep=ep,
                weight_dtype=weight_dtype,
                kv_dtype=kv_dtype,
                engine=engine.strip().lower(),
                engine_version=engine_version.strip(),
                max_num_batched_tokens=max_num_batched_tokens,
                max_num_seqs=max_num_seqs,
                max_model_len=max_model_len,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=enforce_eager,
                async_scheduling=async_scheduling,
            ),
            LoadFacts(
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                length_low_ratio=length_low_ratio,
                prefix_hit_ratio=prefix_hit_ratio,
                concurrency=concurrency,
                measured_on=measured_on.strip(),
            ),
        )
    read = [read_benchmarks(path) for path in files]
    runs = [run for one in read for run in benchmark_runs(one, given)]
    runs = list({run.run_id: run for run in reversed(runs)}.values())[::-1]
    folder = _folder(out) if out is not None or csv is None else None
    if csv is not None:
        check_outputs(csv, inputs=files)
    targets = [_target(run, folder, replace=replace) for run in runs]
    texts = {
        target.path: _text(target.run)
        for target in targets
        if target.path is not None and target.state != THERE
    }
    if csv is not None:
        texts[csv] = csv_text(RUNS_COLUMNS, [list(run.as_runs_row().values()) for run in runs])
    if folder is not None:
        _made(folder)
    write_texts(texts)
    _show(targets, as_json=as_json)
    for path in texts:
        note(f"wrote {path}")
    for name in dict.fromkeys(run.facts.model for run in runs):
        _check_model(name)


def _check_model(name: str) -> None:
    """Notes a name that means no model here; a hub id may mean one, it is fetched when it is needed."""
    if name.count("/") == 1 and name.isprintable():
        return
    try:
        load_model(name)
    except InputError as error:
        note(f"note: {error}; its loads cannot be predicted or fitted on until --model names one")


def _folder(out: Path | None) -> Path:
    if out is not None:
        return out
    folder = default_calibration_dir()
    if folder is None:
        raise InputError("there is no folder of yours to write in: name one with --out")
    return folder / RUNS_FOLDER


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write in {folder}: {error.strerror or error}") from None


def _text(run: BenchmarkRun) -> str:
    return run.model_dump_json(indent=2) + "\n"


def _target(run: BenchmarkRun, folder: Path | None, *, replace: bool) -> _Target:
    """Raises InputError where the same measurement was imported with other facts and shall not be replaced."""
    if folder is None:
        return _Target(run, None, NOT_KEPT)
    path = folder / f"{run.run_id}.json"
    try:
        stored = BenchmarkRun.model_validate_json(path.read_bytes()) if path.exists() else None
    except ValidationError:
        if not replace:
            raise InputError(f"{path}: damaged; --replace writes it anew") from None
        return _Target(run, path, REPLACED)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if stored is None:
        return _Target(run, path, NEW)
    if _without_name(stored) == _without_name(run):
        return _Target(run, path, THERE)
    if not replace:
        raise InputError(
            f"{path}: was imported with other facts ({_difference(stored, run)}); --replace writes it anew"
        )
    return _Target(run, path, REPLACED)


def _without_name(run: BenchmarkRun) -> BenchmarkRun:
    """A file may have been moved or renamed."""
    return run.model_copy(update={"source": run.source.model_copy(update={"file": ""})})


def _difference(stored: BenchmarkRun, run: BenchmarkRun) -> str:
    """The first column of a runs table that differs."""
    old, new = stored.as_runs_row(), run.as_runs_row()
    for name in RUNS_COLUMNS:
        if old[name] != new[name]:
            return f"{name} {_said(old[name])} then, {_said(new[name])} now"
    return "fields outside the runs table"


def _said(value: Cell) -> str:
    return "not said" if value is None or value == "" else str(value)


def _show(targets: list[_Target], *, as_json: bool) -> None:
    if as_json:
        show_json(
            [
                {
                    "run_id": target.run.run_id,
                    "state": target.state,
                    "path": None if target.path is None else str(target.path),
                    "row": target.run.as_runs_row(),
                    "run": target.run.model_dump(mode="json"),
                }
                for target in targets
            ]
        )
        return
    headers = ["run", "model", "GPU", "TP", "load", "TTFT ms", "TPOT ms", "tokens/s", ""]
    rows = [
        [
            *(target.run.run_id, target.run.facts.model, target.run.facts.gpu, str(target.run.facts.tp)),
            _load(target.run),
            _ms(target.run.measures.ttft),
            _ms(target.run.measures.tpot),
            number(target.run.measures.output_tokens_per_s or 0.0),
            target.state,
        ]
        for target in targets
    ]
    show_table("Measured loads", headers, rows)
    for remark in dict.fromkeys(remark for target in targets for remark in target.run.notes):
        say(f"note: {remark}")


def _ms(latency: LatencySummary | None) -> str:
    return "" if latency is None else number(seconds_to_ms(latency.mean_s))


def _load(run: BenchmarkRun) -> str:
    load = run.load
    rate = "" if load.requests_per_s is None else f"{load.requests_per_s:g}/s {load.arrival}"
    users = "" if load.concurrency is None else f"{load.concurrency:,} at once"
    lengths = f"{load.input_tokens.mean:,.0f} + {load.output_tokens.mean:,.0f}"
    return f"{lengths}, {' and '.join(filter(None, (users, rate)))}"
