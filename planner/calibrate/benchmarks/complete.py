"""A reading and what the user adds make a record; what is still missing is asked for by name."""

from typing import Any, NamedTuple, TypeVar

from planner.calibrate.benchmarks.read import ReadFile
from planner.calibrate.benchmarks.reading import LoadSaid, Reading, problem_of
from planner.catalog.load import find_gpu
from planner.catalog.nearest import shown
from planner.domain.base import Frozen, InputError
from planner.domain.benchmark import (
    BenchmarkFacts,
    BenchmarkLoad,
    BenchmarkMeasures,
    BenchmarkRun,
    BenchmarkSource,
    BenchmarkTool,
    LoadFacts,
    TokenLengths,
)
from planner.formulas.engine_defaults import parse_version

SAME_LENGTH_RATIO = 0.01
"""A length that was told agrees with the measured mean within this."""
LONGEST_NAME = 200
"""Of a model: a path, or an id of the hub."""
VLLM = "vllm"
OFFLINE = (BenchmarkTool.VLLM_LATENCY, BenchmarkTool.VLLM_THROUGHPUT)
Facts = TypeVar("Facts", bound=Frozen)


class Given(NamedTuple):
    """What the user says of every load of the files."""

    facts: BenchmarkFacts = BenchmarkFacts()
    load: LoadFacts = LoadFacts()


def benchmark_runs(read: ReadFile, given: Given) -> tuple[BenchmarkRun, ...]:
    """The records of a file.

    Raises:
        InputError: something that is needed is neither in the file nor given, or both say different things.
    """
    return tuple(_run(read, index, given) for index, _reading in enumerate(read.readings))


def _run(read: ReadFile, index: int, given: Given) -> BenchmarkRun:
    reading = read.readings[index]
    facts = _facts(reading, given.facts)
    said = _merged(reading.where, reading.load_facts, given.load)
    load = _load_said(reading, said)
    missing = [
        *(
            name
            for name, there in (("--model", facts.model), ("--gpu", facts.gpu), ("--tp", facts.tp))
            if not there
        ),
        *_missing_of_load(load),
    ]
    if missing:
        wanted = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        raise InputError(
            f"{reading.where}: needs {wanted}: the file does not say {'it' if len(missing) == 1 else 'them'}"
        )
    with problem_of(reading.where):
        made = BenchmarkLoad(
            input_tokens=load.input_tokens or TokenLengths(mean=1),
            output_tokens=load.output_tokens or TokenLengths(mean=1),
            low_ratio_told=said.length_low_ratio,
            concurrency=load.concurrency,
            requests_per_s=load.requests_per_s,
            arrival_cv=load.arrival_cv,
            num_requests=load.num_requests or load.concurrency or 1,
            prefix_hit_ratio=load.prefix_hit_ratio,
        )
        return BenchmarkRun(
            source=BenchmarkSource(
                tool=reading.tool,
                tool_version=reading.tool_version,
                file=read.path.name,
                sha256=read.sha256,
                index=index,
                measured_on=said.measured_on or reading.measured_on,
            ),
            facts=facts,
            served_model=reading.model if reading.model != facts.model else "",
            load=made,
            measures=_measures(reading, made),
            notes=(*reading.notes, *_notes(facts)),
            unknown=reading.unknown,
        )


def _facts(reading: Reading, given: BenchmarkFacts) -> BenchmarkFacts:
    """Of a deployment; the user's name for the model counts, since a file has the name it was served under."""
    in_file = _known_gpu(reading.facts, reading.where)
    merged = _merged(reading.where, in_file, _known_gpu(given, "--gpu").model_copy(update={"model": ""}))
    model = given.model or reading.model
    if len(model) > LONGEST_NAME:
        raise InputError(
            f"{reading.where}: the model is called {shown(model)}; at most {LONGEST_NAME} letters are a name"
        )
    if merged.engine == VLLM:
        _check_release(merged.engine_version, reading.where)
    return merged.model_copy(update={"model": model})


def _check_release(engine_version: str, where: str) -> None:
    """Raises InputError where it is no release that can be predicted; none said is the newest."""
    try:
        parse_version(engine_version)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _known_gpu(facts: BenchmarkFacts, where: str) -> BenchmarkFacts:
    """With the canonical name of the GPU. Raises InputError where nobody knows it."""
    if not facts.gpu:
        return facts
    try:
        return facts.model_copy(update={"gpu": find_gpu(facts.gpu).name})
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _merged(where: str, in_file: Facts, given: Facts) -> Facts:
    """What either says. Raises InputError where both say something and it is not the same."""
    found: dict[str, Any] = in_file.model_dump(exclude_defaults=True)
    for name, value in given.model_dump(exclude_defaults=True).items():
        if found.setdefault(name, value) != value:
            option = name.replace("_", "-")
            raise InputError(
                f"{where}: says {name} {found[name]}, and --{option} says {value}: leave one out"
            )
    return in_file.model_copy(update=found)


def _load_said(reading: Reading, said: LoadFacts) -> LoadSaid:
    """The load with what was told beside it; a limit of requests at once that cannot have been met is none."""
    load = reading.load
    inputs = _lengths(reading.where, "input_tokens", load.input_tokens, said.input_tokens)
    outputs = _lengths(reading.where, "output_tokens", load.output_tokens, said.output_tokens)
    total = load.tokens_per_request
    if total is not None:
        inputs = inputs or _rest(total, outputs)
        outputs = outputs or _rest(total, inputs)
        if inputs and outputs and abs(inputs.mean + outputs.mean - total) > SAME_LENGTH_RATIO * total:
            raise InputError(
                f"{reading.where}: prompt and answer have {total:g} tokens together: the lengths told differ"
            )
    users = said.concurrency
    if users is not None and load.concurrency not in (None, users):
        raise InputError(
            f"{reading.where}: says concurrency {load.concurrency}, and --concurrency says {users}"
        )
    at_once = load.concurrency or users
    if load.requests_per_s is not None and at_once is not None and at_once >= (load.num_requests or 0):
        at_once = None
    return load._replace(
        input_tokens=inputs,
        output_tokens=outputs,
        concurrency=at_once,
        prefix_hit_ratio=load.prefix_hit_ratio if said.prefix_hit_ratio is None else said.prefix_hit_ratio,
    )


def _lengths(where: str, name: str, measured: TokenLengths | None, told: float | None) -> TokenLengths | None:
    if told is None or measured is None:
        return measured if told is None else TokenLengths(mean=told)
    if abs(measured.mean - told) > SAME_LENGTH_RATIO * measured.mean:
        option = name.replace("_", "-")
        raise InputError(
            f"{where}: {name} are {measured.mean:g} on average, and --{option} says {told:g}: leave one out"
        )
    return measured


def _rest(total: float, other: TokenLengths | None) -> TokenLengths | None:
    """The other part of a sum; None where nothing is left or nothing is known."""
    return TokenLengths(mean=total - other.mean) if other is not None and total - other.mean >= 1 else None


def _missing_of_load(load: LoadSaid) -> list[str]:
    lengths = [
        f"--{side}-tokens"
        for side, there in (("input", load.input_tokens), ("output", load.output_tokens))
        if there is None
    ]
    if len(lengths) == 2 and load.tokens_per_request is not None:
        lengths = ["--input-tokens"]
    return [
        *lengths,
        *(["--concurrency"] if load.concurrency is None and load.requests_per_s is None else []),
    ]


def _measures(reading: Reading, load: BenchmarkLoad) -> BenchmarkMeasures:
    """With the throughput of offline runs, which follows from their batch and lengths."""
    measures = reading.measures
    if reading.tool is BenchmarkTool.VLLM_LATENCY and measures.e2e is not None:
        rate = (load.concurrency or 1) / measures.e2e.mean_s
        measures = measures.model_copy(update={"requests_per_s": rate})
    if reading.tool in OFFLINE and measures.requests_per_s is not None:
        per_s = measures.requests_per_s * load.output_tokens.mean
        measures = measures.model_copy(update={"output_tokens_per_s": per_s})
    return measures


def _notes(facts: BenchmarkFacts) -> tuple[str, ...]:
    if facts.engine_version:
        return ()
    return ("engine version not said: the newest release of the day is taken",)
