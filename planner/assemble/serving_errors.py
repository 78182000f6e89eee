"""What the serving fit is worth: errors of simulated runs without it, with it, and where a part was left out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from planner.assemble.fit_serving import FEWEST_RUNS, ServingFit, deployment_name, fit_serving
from planner.assemble.served import Means, Runnable, relative_errors
from planner.formulas.arrays import BoolArray, FloatArray, IntArray
from planner.formulas.host_time import NO_HOST_TIME
from planner.formulas.tuning import NO_TUNING

ALL = "all"
NOTHING = "nothing"


class Spread(NamedTuple):
    """Median and 90th percentile of |predicted / measured - 1|."""

    median_ratio: float
    p90_ratio: float


SPREADS = ("tpot_before", "tpot", "ttft_before", "ttft")


class ServingRow(NamedTuple):
    """One group of runs, before the fit and with one that was fitted without what `left_out` names."""

    left_out: str
    group: str
    runs: int
    tpot_before: Spread
    tpot: Spread
    ttft_before: Spread
    ttft: Spread

    @property
    def spreads(self) -> tuple[Spread, ...]:
        """In the order of SPREADS."""
        return self.tpot_before, self.tpot, self.ttft_before, self.ttft


def model_name(one: Runnable) -> str:
    """The model that a run served."""
    return one.run.case.model.name


def tp_name(one: Runnable) -> str:
    """The degree that it was divided by."""
    return f"TP {one.run.case.parallelism.tp}"


KINDS: tuple[tuple[str, Callable[[Runnable], str]], ...] = (
    ("each model", model_name),
    ("each TP", tp_name),
    ("each deployment", deployment_name),
)
LOADS = "half of each deployment's loads"
LOAD_PARTS = 2


class Part(NamedTuple):
    """Runs that are predicted by a fit which saw none of them."""

    kind: str
    name: str
    rows: BoolArray


class Tested(NamedTuple):
    """A fit to all runs, and every run's errors by what was left out of the fit."""

    fit: ServingFit
    before: Means
    """Without host time and tuning."""
    in_sample: Means
    left_out: dict[str, Means]
    """By kind; NaN where too few runs were left."""
    parts: tuple[Part, ...]


def fit_and_test(
    runs: Sequence[Runnable], progress: Callable[[str, float], object] = lambda _what, _share: None
) -> Tested:
    """Fits all runs, and again without each model, TP, deployment, and half of every deployment's loads.

    `progress` is told what is done now and which share is over. Raises `InputError` where there are too few runs.
    """
    parts = [
        Part(kind, name, rows) for kind, name_of in KINDS for name, rows in _parts(runs, name_of).items()
    ]
    parts += [Part(LOADS, name, rows) for name, rows in _halves(runs).items()]
    progress("all runs", 0.0)
    fit = fit_serving(runs)
    left_out = {part.kind: _unknown(len(runs)) for part in parts}
    known: dict[bytes, Means] = {}
    for done, part in enumerate(parts, start=1):
        progress(f"without {part.name}", done / (len(parts) + 1))
        if (~part.rows).sum() < FEWEST_RUNS:
            continue
        key = part.rows.tobytes()
        if key not in known:
            without = fit_serving([one for one, left in zip(runs, part.rows, strict=True) if not left])
            unseen = [one for one, left in zip(runs, part.rows, strict=True) if left]
            known[key] = relative_errors(unseen, *without)
        means = left_out[part.kind]
        means.ttft[part.rows], means.tpot[part.rows] = known[key]
    return Tested(
        fit,
        relative_errors(runs, NO_HOST_TIME, NO_TUNING),
        relative_errors(runs, *fit),
        left_out,
        tuple(parts),
    )


def _unknown(count: int) -> Means:
    return Means(np.full(count, np.nan), np.full(count, np.nan))


def serving_rows(runs: Sequence[Runnable], tested: Tested) -> list[ServingRow]:
    """The errors by group: in sample, and by what was left out."""
    everything = np.ones(len(runs), dtype=np.bool_)
    rows = [_of(NOTHING, ALL, everything, tested.before, tested.in_sample)]
    rows += [
        _of(NOTHING, name, mask, tested.before, tested.in_sample)
        for name, mask in _parts(runs, deployment_name).items()
    ]
    for kind, means in tested.left_out.items():
        seen = ~np.isnan(means.tpot)
        if seen.any():
            rows.append(_of(kind, ALL, seen, tested.before, means))
        rows += [
            _of(kind, part.name, part.rows, tested.before, means)
            for part in tested.parts
            if part.kind == kind and kind != LOADS and seen[part.rows].all()
        ]
    return rows


def _parts(runs: Sequence[Runnable], name_of: Callable[[Runnable], str]) -> dict[str, BoolArray]:
    names = np.array([name_of(one) for one in runs])
    return {str(name): np.asarray(names == name, dtype=np.bool_) for name in np.unique(names)}


def load_part(runs: Sequence[Runnable]) -> IntArray:
    """Deals the runs of each deployment out in turn: the number of each run's part, from 0."""
    number = np.zeros(len(runs), dtype=np.int64)
    for rows in _parts(runs, deployment_name).values():
        number[rows] = np.arange(rows.sum())
    return np.asarray(number % LOAD_PARTS, dtype=np.int64)


def _halves(runs: Sequence[Runnable]) -> dict[str, BoolArray]:
    part = load_part(runs)
    return {
        f"loads {half + 1} of {LOAD_PARTS}": np.asarray(part == half, dtype=np.bool_)
        for half in range(LOAD_PARTS)
    }


def _of(left_out: str, group: str, mask: BoolArray, before: Means, after: Means) -> ServingRow:
    return _row(
        left_out,
        group,
        Means(before.ttft[mask], before.tpot[mask]),
        Means(after.ttft[mask], after.tpot[mask]),
    )


def _row(left_out: str, group: str, before: Means, after: Means) -> ServingRow:
    return ServingRow(
        left_out=left_out,
        group=group,
        runs=after.tpot.size,
        tpot_before=_spread(before.tpot),
        tpot=_spread(after.tpot),
        ttft_before=_spread(before.ttft),
        ttft=_spread(after.ttft),
    )


def _spread(errors: FloatArray) -> Spread:
    size = np.abs(errors)
    return Spread(float(np.median(size)), float(np.quantile(size, 0.9)))
