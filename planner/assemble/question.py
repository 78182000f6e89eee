"""From what a user typed to a question, and from the shipped files to the facts: shared by CLI and dashboard."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from pydantic import Field, ValidationError

from planner.assemble.known import known_now
from planner.assemble.step_errors import with_step_errors
from planner.calibrate.store import calibration_directories, operators_for, read_accuracy
from planner.catalog.load import apply_price_overrides, find_gpu, find_preset, gpus, offers
from planner.catalog.memory_coefficients import read_memory_coefficients
from planner.catalog.model_config import with_weight_dtype
from planner.catalog.models import load_model
from planner.catalog.nearest import unknown
from planner.domain.base import Frozen, InputError
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.evidence import Accuracy, Basis
from planner.domain.hardware import Gpu, Offer, Purchase
from planner.domain.model import Model
from planner.domain.plan import Question, Reserve, Supply
from planner.domain.units import ms_to_seconds
from planner.domain.workload import Slo, Workload
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.tuning import NO_TUNING
from planner.planning.facts import Facts

ANY = "any"
AUTO = "auto"
ANY_WEIGHTS = (WeightDtype.FP8, WeightDtype.INT8, WeightDtype.INT4, WeightDtype.NVFP4)
"""What `any` tries besides the checkpoint as it is, where that is not quantised already."""
ANY_KV = (KvDtype.AUTO, KvDtype.FP8)


class Ask(Frozen):
    """A question as a user types it: flat, in human units, named like the command-line options."""

    model: str = Field(min_length=1)
    weight_dtype: tuple[str, ...] = (AUTO,)
    kv_dtype: tuple[str, ...] = (AUTO,)
    preset: str | None = None
    input_tokens: float | None = Field(default=None, ge=1, le=1e7)
    output_tokens: float | None = Field(default=None, ge=1, le=1e7)
    prefix_hit_ratio: float | None = Field(default=None, ge=0, lt=1)
    arrival_cv: float | None = Field(default=None, ge=0, le=20)
    requests_per_s: float | None = Field(default=None, ge=1e-6, le=1e6)
    ttft_p95_ms: float | None = Field(default=None, gt=0, le=1e9)
    tpot_p95_ms: float | None = Field(default=None, gt=0, le=1e9)
    provider: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    gpu: tuple[str, ...] = ()
    purchase: tuple[str, ...] = (Purchase.ON_DEMAND.value,)
    budget_usd_per_month: float | None = Field(default=None, gt=0, le=1e12)
    peak_ratio: float = Field(default=Reserve().peak_ratio, ge=1, le=100)
    headroom_ratio: float = Field(default=Reserve().headroom_ratio, ge=0, le=0.95)
    spare_replicas: int = Field(default=0, ge=0, le=1000)
    max_tp: int = Field(default=Supply().max_tp, ge=1, le=64)
    max_pp: int = Field(default=Supply().max_pp, ge=1, le=16)
    max_model_len: int | None = Field(default=None, ge=1, le=100_000_000)
    engine_version: str = ""
    include_untrusted: bool = False
    """Also undated and low-confidence prices, and GPUs whose speed only a data sheet tells."""
    prices: Path | None = None
    """The user's own prices."""
    previous_usd_per_month: float | None = Field(default=None, gt=0, le=1e12)


def ask_from(values: Mapping[str, object], *, where: str) -> Ask:
    """An `Ask` from flat values; a string stands for a list of one, commas separate.

    Raises `InputError` naming the first field that is wrong, or unknown, and what is legal.
    """
    listed = {
        name: tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, str) and name in _LISTS
        else value
        for name, value in values.items()
        if value is not None
    }
    try:
        return Ask.model_validate(listed)
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error)}") from None


_LISTS = ("weight_dtype", "kv_dtype", "provider", "region", "gpu", "purchase")


def first_problem(error: ValidationError) -> str:
    """One line for the first problem that pydantic found."""
    problem = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or "value"
    message = str(problem["msg"]).replace("Input should be ", "must be ").replace("Value error, ", "")
    if problem["type"] == "extra_forbidden":
        return str(unknown("key", field, Ask.model_fields))
    given = problem["input"]
    shown = "" if isinstance(given, dict | list | tuple) else f", got {str(given)[:40]!r}"
    return f"{field} {message}{shown}"


def variants_of(model: str, weight_dtypes: tuple[str, ...]) -> tuple[Model, ...]:
    """The model in every weight format asked for, the first named first; `any` tries what may be cheaper."""
    plain = load_model(model)
    found: list[Model] = []
    for text in weight_dtypes or (AUTO,):
        if text == ANY:
            found.append(plain)
            if plain.quantization is None:
                found.extend(with_weight_dtype(plain, dtype) for dtype in ANY_WEIGHTS)
        else:
            found.append(with_weight_dtype(plain, weight_dtype_named(text)))
    return tuple(dict.fromkeys(found))


def weight_dtype_named(text: str) -> WeightDtype | None:
    """A weight format by name; None (as the checkpoint is) for auto, bfloat16, float16 and empty."""
    name = text.strip().lower()
    if name in ("", AUTO, "bfloat16", "float16"):
        return None
    if name not in tuple(WeightDtype):
        raise unknown("weight dtype", text, (*tuple(WeightDtype), AUTO))
    return WeightDtype(name)


def kv_dtype_named(text: str) -> KvDtype:
    """A KV-cache format by name; empty means auto."""
    name = {"": "auto", "bfloat16": "bf16", "float16": "fp16", "fp8_e4m3": "fp8"}.get(
        text.strip().lower(), text.strip().lower()
    )
    if name not in tuple(KvDtype):
        raise unknown("KV dtype", text, tuple(KvDtype))
    return KvDtype(name)


def question_from(ask: Ask) -> Question:
    """The question behind what the user typed; what was left out comes from the preset.

    Raises `InputError` where a name is unknown or something needed is missing.
    """
    preset = find_preset(ask.preset) if ask.preset else None
    input_tokens = ask.input_tokens or (preset.input_tokens if preset else None)
    output_tokens = ask.output_tokens or (preset.output_tokens if preset else None)
    requests_per_s = ask.requests_per_s or (preset.requests_per_s if preset else None)
    if input_tokens is None or output_tokens is None or requests_per_s is None:
        missing = [
            name
            for name, value in (
                ("input_tokens", input_tokens),
                ("output_tokens", output_tokens),
                ("requests_per_s", requests_per_s),
            )
            if value is None
        ]
        raise InputError(f"the traffic is incomplete: give {', '.join(missing)}, or a preset")
    own_lengths = ask.input_tokens is not None or ask.output_tokens is not None
    hit_ratio = _first(ask.prefix_hit_ratio, preset.prefix_hit_ratio if preset else 0.0)
    ttft_ms = _first(ask.ttft_p95_ms, preset.ttft_p95_ms if preset else None)
    tpot_ms = _first(ask.tpot_p95_ms, preset.tpot_p95_ms if preset else None)
    kv = tuple(
        dict.fromkeys(
            dtype
            for text in ask.kv_dtype or (AUTO,)
            for dtype in (ANY_KV if text == ANY else (kv_dtype_named(text),))
        )
    )
    return Question(
        variants=variants_of(ask.model, ask.weight_dtype),
        workload=Workload(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            length_low_ratio=preset.length_low_ratio if preset and not own_lengths else 1.0,
            prefix_hit_ratio=hit_ratio or 0.0,
            requests_per_s=requests_per_s,
            arrival_cv=_first(ask.arrival_cv, preset.arrival_cv if preset else 1.0) or 0.0,
        ),
        slo=Slo(
            ttft_p95_s=ms_to_seconds(ttft_ms) if ttft_ms is not None else None,
            tpot_p95_s=ms_to_seconds(tpot_ms) if tpot_ms is not None else None,
        ),
        supply=_supply(ask, kv),
        reserve=Reserve(
            peak_ratio=ask.peak_ratio,
            headroom_ratio=ask.headroom_ratio,
            spare_replicas=ask.spare_replicas,
        ),
        max_model_len=ask.max_model_len,
        engine_version=ask.engine_version,
        previous_usd_per_month=ask.previous_usd_per_month,
    )


def _first(value: float | None, otherwise: float | None) -> float | None:
    return otherwise if value is None else value


def _supply(ask: Ask, kv: tuple[KvDtype, ...]) -> Supply:
    everything = offers(include_untrusted=True)
    providers = sorted({offer.instance.provider for offer in everything})
    regions = sorted({offer.price.region for offer in everything})
    for text in ask.provider:
        if text not in providers and ask.prices is None:
            raise unknown("provider", text, tuple(providers))
    for text in ask.region:
        if text not in regions and ask.prices is None:
            raise unknown("region", text, tuple(regions))
    for text in ask.purchase:
        if text not in (*tuple(Purchase), ANY):
            raise unknown("purchase", text, (*tuple(Purchase), ANY))
    asked = ask.purchase or (Purchase.ON_DEMAND.value,)
    purchases = tuple(Purchase) if ANY in asked else tuple(Purchase(text) for text in asked)
    return Supply(
        providers=ask.provider,
        regions=ask.region,
        gpus=tuple(find_gpu(text).name for text in ask.gpu),
        purchases=purchases,
        budget_usd_per_month=ask.budget_usd_per_month,
        max_tp=ask.max_tp,
        max_pp=ask.max_pp,
        kv_dtypes=kv,
        weakest_basis=Basis.DATASHEET if ask.include_untrusted else Supply().weakest_basis,
    )


def facts_for(
    *, include_untrusted: bool = False, prices: Path | None = None, calibration_dir: Path | None = None
) -> Facts:
    """Catalog, coefficients and known errors; the user's prices and calibration come before the shipped ones.

    Raises `InputError` where the prices are not readable, or a calibration folder is named that is not there.
    """
    facts = unserved_facts(
        include_untrusted=include_untrusted, prices=prices, calibration_dir=calibration_dir
    )
    known = known_now(calibration_dir)
    return facts._replace(
        host=known.host,
        tuning=known.tuning,
        accuracy=with_step_errors(read_accuracy(known.directories), known.fits),
    )


def unserved_facts(
    *, include_untrusted: bool = False, prices: Path | None = None, calibration_dir: Path | None = None
) -> Facts:
    """The same without what measured runs say: no host time, tuning or known errors. A fit to runs starts here."""
    if calibration_dir is not None and not calibration_dir.is_dir():
        raise InputError(f"calibration folder {calibration_dir} is not there")
    found: tuple[Offer, ...] = offers(include_untrusted=include_untrusted)
    if prices is not None:
        found = apply_price_overrides(found, prices)
    directories = calibration_directories(calibration_dir)
    return Facts(
        gpus=_gpus_by_name(),
        offers=found,
        operators_for=lambda gpu: operators_for(gpu, directories),
        memory=read_memory_coefficients(calibration_dir),
        host=NO_HOST_TIME,
        tuning=NO_TUNING,
        accuracy=Accuracy(source="", fitted_on="", bands=()),
        today=datetime.now(UTC).date().isoformat(),
    )


@cache
def _gpus_by_name() -> Mapping[str, Gpu]:
    return {gpu.name: gpu for gpu in gpus()}
