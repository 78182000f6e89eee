"""What one row of a runs table asks for: its cells read strictly, empty ones with vLLM's defaults."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import NamedTuple

from pydantic import ValidationError

from planner.assemble.deployment import (
    UNRECORDED_TOKENS,
    Engine,
    engine_settings,
    gpu_named,
    parallelism_of,
)
from planner.assemble.question import first_problem, kv_dtype_named, weight_dtype_named
from planner.catalog.models import load_model
from planner.catalog.nearest import shown, unknown
from planner.catalog.releases import newest_on
from planner.domain.base import InputError
from planner.domain.hardware import Gpu
from planner.domain.model import Model
from planner.domain.workload import REQUESTS_PER_S, Workload
from planner.planning.predict import Case

REQUIRED_COLUMNS = ("model", "gpu")
DEPLOYMENT_COLUMNS = (
    *("model", "weight_dtype", "kv_dtype", "gpu", "gpu_memory_gib", "tp", "pp", "dp", "ep"),
    *("engine_version", "max_num_batched_tokens", "max_num_seqs", "max_model_len"),
    *("gpu_memory_utilization", "enforce_eager", "async_scheduling"),
)
WORKLOAD_COLUMNS = (
    *("input_tokens", "output_tokens", "length_low_ratio", "prefix_hit_ratio"),
    *("concurrency", "request_rate_per_s", "arrival", "num_requests"),
)
VERSION_AT = DEPLOYMENT_COLUMNS.index("engine_version")
"""Other engines count their releases otherwise."""
BATCH_AT = DEPLOYMENT_COLUMNS.index("max_num_batched_tokens")
LIMITS_AT = [
    DEPLOYMENT_COLUMNS.index(name) for name in ("max_num_batched_tokens", "max_num_seqs", "max_model_len")
]
KNOWN_COLUMNS = (*DEPLOYMENT_COLUMNS, "engine", *WORKLOAD_COLUMNS)
ENGINES = ("", "vllm")
SIMILAR_ENGINES = ("sglang", "tensorrt-llm", "tensorrt_llm", "trtllm", "lmdeploy", "tgi")
"""Answered as if they were vLLM, and said so."""
TRUE, FALSE = ("true", "yes", "on", "1", "1.0"), ("false", "no", "off", "0", "0.0")
REMEMBERED = 20_000
"""Distinct deployments and workloads kept; tables repeat a few of them."""


class RunCases(NamedTuple):
    """The cases of one run; several limits on its load make several, and the tightest one counts."""

    cases: tuple[Case, ...]
    turned_away: str = ""
    """Why the engine would answer none of its requests, even if memory lets it start."""
    own_length: bool = False
    """The row does not say `max_model_len`; if the model's own is too long for the cache, a shorter one may serve."""
    note: str = ""
    """What a reader of the answer must know."""
    budget_known: bool = True
    """False: a run was measured, and its row does not say `max_num_batched_tokens`."""


class CaseReader:
    """Reads rows of one table; whatever rows share is read once."""

    def __init__(self, header: Sequence[str]) -> None:
        position = {name: index for index, name in enumerate(header)}
        self._deployment_at = [position.get(name, -1) for name in DEPLOYMENT_COLUMNS]
        self._workload_at = [position.get(name, -1) for name in WORKLOAD_COLUMNS]
        self._engine_at = position.get("engine", -1)
        self._length_at = position.get("max_model_len", -1)
        self._measured_on_at = position.get("measured_on", -1)
        self._record_at = [position.get(name, -1) for name in ("source", "measured_on")]
        self._load_at = [position.get(name, -1) for name in ("concurrency", "request_rate_per_s")]
        self._model = lru_cache(maxsize=REMEMBERED)(_model)
        self._gpu = lru_cache(maxsize=REMEMBERED)(_gpu)
        self._deployment = lru_cache(maxsize=REMEMBERED)(self._read_deployment)
        self._workloads = lru_cache(maxsize=REMEMBERED)(_read_workloads)

    def read(self, cells: Sequence[str]) -> RunCases | str:
        """The cases of a row, or what is wrong with it, naming the column, its value and what is legal."""
        engine = cells[self._engine_at].strip().lower() if self._engine_at >= 0 else ""
        if engine not in ENGINES + SIMILAR_ENGINES:
            return str(Cells({"engine": engine}).error("engine", f"vllm (or {', '.join(SIMILAR_ENGINES)})"))
        texts = _texts(cells, self._deployment_at)
        if engine in SIMILAR_ENGINES:
            texts = (*texts[:VERSION_AT], "", *texts[VERSION_AT + 1 :])
        release = "" if texts[VERSION_AT] or engine in SIMILAR_ENGINES else self._release_then(cells)
        if release:
            texts = (*texts[:VERSION_AT], release, *texts[VERSION_AT + 1 :])
        budget_known = bool(texts[BATCH_AT]) or not self._is_record(cells)
        unrecorded = not budget_known and not any(texts[at] for at in LIMITS_AT)
        if unrecorded:
            texts = (*texts[:BATCH_AT], str(UNRECORDED_TOKENS), *texts[BATCH_AT + 1 :])
        deployment = self._deployment(texts)
        workloads = self._workloads(_texts(cells, self._workload_at))
        if isinstance(deployment, str):
            return deployment
        if isinstance(workloads, str):
            return workloads
        note = "; ".join(_notes(engine, deployment, release, unrecorded=unrecorded))
        turned_away = _turned_away(deployment, workloads)
        if turned_away or not workloads:
            return RunCases((deployment,), turned_away, note=note)
        return RunCases(
            tuple(deployment._replace(workload=workload) for workload in workloads),
            own_length=self._length_at < 0 or not cells[self._length_at].strip(),
            note=note,
            budget_known=budget_known,
        )

    def _release_then(self, cells: Sequence[str]) -> str:
        """The newest release when a run was measured; empty where its row does not say a day."""
        try:
            return newest_on(date.fromisoformat(_texts(cells, [self._measured_on_at])[0]))
        except ValueError:
            return ""

    def _is_record(self, cells: Sequence[str]) -> bool:
        """A row of a run that was measured somewhere under a load."""
        return any(_texts(cells, self._record_at)) and any(_texts(cells, self._load_at))

    def _read_deployment(self, texts: tuple[str, ...]) -> Case | str:
        cells = Cells(dict(zip(DEPLOYMENT_COLUMNS, texts, strict=True)))
        try:
            return self._case(cells)
        except InputError as error:
            return str(error)

    def _case(self, cells: "Cells") -> Case:
        model = self._model(cells.text("model"), cells.text("weight_dtype"))
        gpu = self._gpu(cells.text("gpu"), cells.amount("gpu_memory_gib", high=10_000))
        for loaded in (model, gpu):
            if isinstance(loaded, str):
                raise InputError(loaded)
        assert isinstance(model, Model)
        assert isinstance(gpu, Gpu)
        engine = Engine(
            max_model_len=cells.whole("max_model_len", high=100_000_000),
            max_num_seqs=cells.whole("max_num_seqs", high=1_000_000),
            max_num_batched_tokens=cells.whole("max_num_batched_tokens", high=10_000_000),
            gpu_memory_utilization=cells.amount("gpu_memory_utilization", high=1),
            enforce_eager=cells.flag("enforce_eager") or False,
            async_scheduling=cells.flag("async_scheduling"),
            engine_version=cells.text("engine_version"),
        )
        try:
            kv_dtype = kv_dtype_named(cells.text("kv_dtype"))
        except InputError as error:
            raise InputError(f"column kv_dtype: {error}") from None
        return Case(
            model=model,
            gpu=gpu,
            parallelism=parallelism_of(
                cells.whole("tp", high=64) or 1,
                cells.whole("pp", high=64) or 1,
                cells.whole("dp", high=256) or 1,
                ep=_expert_parallel(cells),
            ),
            kv_dtype=kv_dtype,
            engine=engine_settings(engine, model, gpu),
            workload=None,
        )


def _notes(engine: str, deployment: Case, release: str, *, unrecorded: bool) -> Iterator[str]:
    """What a reader of a row's answer must know; `release`: the one that was newest when the row was measured."""
    if unrecorded:
        yield (
            f"no limit of the scheduler is recorded: {UNRECORDED_TOKENS} tokens a step are assumed, as measured runs "
            "without them look; give max_num_batched_tokens"
        )
    if release:
        yield f"engine_version is taken to be {release}, the newest on the day of measured_on"
    if engine not in ENGINES:
        yield f"{engine} is predicted as if it were vLLM"
    own, asked = deployment.model.max_position, deployment.engine.max_model_len
    if asked > own:
        yield f"max_model_len {asked} is beyond the model's {own}: vLLM starts only where that is allowed or scaled"


def _turned_away(deployment: Case, workloads: Sequence[Workload]) -> str:
    """Why no request would be answered at this `max_model_len`; empty where some would."""
    longest = deployment.engine.max_model_len
    prompt_tokens = max((workload.input_tokens for workload in workloads), default=0.0)
    if prompt_tokens >= longest:
        return f"prompts of {prompt_tokens:g} tokens leave no room for an answer in max_model_len {longest}"
    shortest = max(map(_shortest_tokens, workloads), default=0)
    if shortest > longest:
        return f"every request, prompt and answer, is longer than max_model_len {longest}: {shortest} tokens or more"
    return ""


def _shortest_tokens(workload: Workload) -> int:
    """The shortest prompt with the shortest answer that are drawn."""
    lengths = (workload.input_tokens, workload.output_tokens)
    if workload.length_low_ratio == 1.0:
        return sum(int(length) for length in lengths)
    return sum(max(1, math.ceil(workload.length_low_ratio * length)) for length in lengths)


def _texts(cells: Sequence[str], positions: Sequence[int]) -> tuple[str, ...]:
    return tuple(cells[position].strip() if position >= 0 else "" for position in positions)


class Cells(NamedTuple):
    """The cells of a row by column, read strictly; an absent column is an empty cell, None."""

    by_column: Mapping[str, str]

    def error(self, column: str, needed: str) -> InputError:
        """What is wrong with a cell."""
        return InputError(f'column {column} is "{shown(self.by_column[column])}"; {needed} is needed')

    def text(self, column: str) -> str:
        """The cell as it is."""
        return self.by_column[column]

    def amount(
        self, column: str, *, high: float, low: float = 0.0, zero_is_legal: bool = False
    ) -> float | None:
        """A finite number above 0 (or at least 0, or at least `low`) and up to `high`."""
        text = self.by_column[column]
        if not text:
            return None
        value = _float(text)
        if (0 < value <= high and value >= low) or (zero_is_legal and value == 0):
            return value
        from_low = zero_is_legal or low > 0
        raise self.error(column, f"a number {'from' if from_low else 'above'} {low:g} up to {high:g}")

    def whole(self, column: str, *, high: int) -> int | None:
        """A whole number from 1 to `high`; 2.0 is 2."""
        text = self.by_column[column]
        if not text:
            return None
        value = _float(text)
        if 1 <= value <= high and value == int(value):
            return int(value)
        raise self.error(column, f"a whole number from 1 to {high}")

    def flag(self, column: str) -> bool | None:
        """true, false, on, off, yes, no, 1 or 0."""
        text = self.by_column[column].lower()
        if not text:
            return None
        if text in TRUE or text in FALSE:
            return text in TRUE
        raise self.error(column, "true or false")


def _float(text: str) -> float:
    """A number as it is written in tables; NaN where it is none."""
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _expert_parallel(cells: Cells) -> bool:
    """`ep` is a degree in some tables (1 is none) and a switch in others."""
    text = cells.text("ep").lower()
    if text in ("", "none", "1", "1.0", *FALSE):
        return False
    return text in TRUE or (cells.whole("ep", high=16_384) or 1) > 1


def _model(reference: str, weight_dtype: str) -> Model | str:
    if not reference:
        return 'column model is ""; a path, a bundled name or a Hugging Face id is needed'
    try:
        return load_model(reference, weight_dtype=weight_dtype_named(weight_dtype))
    except InputError as error:
        message = str(error)
        column = "weight_dtype" if message.startswith(("unknown weight", "weight dtype")) else "model"
        return f"column {column}: {message}"


def _gpu(name: str, memory_gib: float | None) -> Gpu | str:
    try:
        return gpu_named(name, memory_gib)
    except InputError as error:
        return f"column gpu: {error}"


def _read_workloads(texts: tuple[str, ...]) -> tuple[Workload, ...] | str:
    """No workload where memory alone is asked for; two where users and rate both limit the load."""
    cells = Cells(dict(zip(WORKLOAD_COLUMNS, texts, strict=True)))
    try:
        return _workloads(cells)
    except InputError as error:
        return str(error)
    except ValidationError as error:
        return first_problem(error)


def _workloads(cells: Cells) -> tuple[Workload, ...]:
    users = None if _is_infinite(cells.text("concurrency")) else cells.whole("concurrency", high=1_000_000)
    all_at_once = _is_infinite(cells.text("request_rate_per_s"))
    low, high = REQUESTS_PER_S
    rate = None if all_at_once else cells.amount("request_rate_per_s", low=low, high=high)
    requests = cells.whole("num_requests", high=1_000_000_000)
    if users is None and rate is None and not all_at_once:
        return ()
    if users is None and all_at_once:
        if requests is None:
            raise cells.error("num_requests", "a count of requests, or a concurrency, with an infinite rate")
        users = min(requests, 1_000_000)
    prompt_tokens = cells.amount("input_tokens", high=10_000_000)
    answer_tokens = cells.amount("output_tokens", high=10_000_000)
    for column, tokens in (("input_tokens", prompt_tokens), ("output_tokens", answer_tokens)):
        if tokens is None or tokens < 1:
            raise cells.error(column, "a number from 1 to 1e+07")
    low_ratio = cells.amount("length_low_ratio", high=1)
    hits = cells.amount("prefix_hit_ratio", high=1, zero_is_legal=True) or 0.0
    if hits == 1:
        raise cells.error("prefix_hit_ratio", "a ratio from 0 to below 1")
    arrival_cv = _arrival_cv(cells)

    def workload(concurrency: int | None, requests_per_s: float | None) -> Workload:
        return Workload(
            input_tokens=prompt_tokens or 1.0,
            output_tokens=answer_tokens or 1.0,
            length_low_ratio=1.0 if low_ratio is None else low_ratio,
            prefix_hit_ratio=hits,
            concurrency=concurrency,
            requests_per_s=requests_per_s,
            arrival_cv=arrival_cv,
            num_requests=requests,
        )

    closed = (workload(users, None),) if users is not None else ()
    opened = (workload(None, rate),) if rate is not None else ()
    return closed + opened


def _is_infinite(text: str) -> bool:
    return _float(text) == math.inf if text else False


def _arrival_cv(cells: Cells) -> float:
    """Coefficient of variation of the gaps between requests."""
    name, colon, cv = cells.text("arrival").lower().partition(":")
    if name in ("", "poisson") and not colon:
        return 1.0
    if name == "constant" and not colon:
        return 0.0
    value = _float(cv)
    if name == "gamma" and 0 < value <= 20:
        return value
    if name not in ("poisson", "constant", "gamma"):
        raise InputError(f"column arrival: {unknown('arrival', name, ('poisson', 'constant', 'gamma:CV'))}")
    raise cells.error("arrival", "poisson, constant or gamma:CV with CV above 0 up to 20")
