"""What fitted host time is worth: errors of simulated runs without it, with it, and where a part was left out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from planner.assemble.fit_serving import FEWEST_RUNS, Means, Runnable, fit_host_time, relative_errors
from planner.formulas.arrays import BoolArray, FloatArray
from planner.formulas.host_time import NO_HOST_TIME, HostTime

ALL = "all"
NOTHING = "nothing"


class Spread(NamedTuple):
    """Median and 90th percentile of |predicted / measured - 1|."""

    median_ratio: float
    p90_ratio: float


SPREADS = ("tpot_before", "tpot", "ttft_before", "ttft")


class HostTimeRow(NamedTuple):
    """One group of runs, before host time and with one that was fitted without what `left_out` names."""

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


def _model_name(one: Runnable) -> str:
    return one.run.case.model.name


def _tp_name(one: Runnable) -> str:
    return f"TP {one.run.case.parallelism.tp}"


def _both_names(one: Runnable) -> str:
    return f"{_model_name(one)} {_tp_name(one)}"


KINDS: tuple[tuple[str, Callable[[Runnable], str]], ...] = (
    ("each model", _model_name),
    ("each TP", _tp_name),
    ("each model and TP", _both_names),
)


def fit_and_test(
    runs: Sequence[Runnable], progress: Callable[[str, float], object] = lambda _what, _share: None
) -> tuple[HostTime, list[HostTimeRow]]:
    """Host time fitted on all runs, and its errors in sample and with each model, TP and pair of them left out.

    `progress` is told what is done now and which share is over. Raises `InputError` where there are too few runs.
    """
    parts = [(kind, mask) for kind, name in KINDS for mask in _parts(runs, name).values()]
    progress("all runs", 0.0)
    host = fit_host_time(runs)
    before, after = relative_errors(runs, NO_HOST_TIME), relative_errors(runs, host)
    rows = [_row(NOTHING, ALL, before, after)]
    rows += [_of(NOTHING, name, mask, before, after) for name, mask in _parts(runs, _both_names).items()]
    done = 1
    for kind, name_of in KINDS:
        unseen = Means(np.full(len(runs), np.nan), np.full(len(runs), np.nan))
        tested: list[HostTimeRow] = []
        for name, mask in _parts(runs, name_of).items():
            progress(f"without {name}", done / (len(parts) + 1))
            done += 1
            if (~mask).sum() < FEWEST_RUNS:
                continue
            without = fit_host_time([one for one, left in zip(runs, mask, strict=True) if not left])
            errors = relative_errors([one for one, left in zip(runs, mask, strict=True) if left], without)
            unseen.ttft[mask], unseen.tpot[mask] = errors.ttft, errors.tpot
            tested.append(_of(kind, name, mask, before, unseen))
        if tested:
            rows += [_of(kind, ALL, ~np.isnan(unseen.tpot), before, unseen), *tested]
    return host, rows


def _parts(runs: Sequence[Runnable], name_of: Callable[[Runnable], str]) -> dict[str, BoolArray]:
    names = np.array([name_of(one) for one in runs])
    return {str(name): np.asarray(names == name, dtype=np.bool_) for name in np.unique(names)}


def _of(left_out: str, group: str, mask: BoolArray, before: Means, after: Means) -> HostTimeRow:
    return _row(
        left_out,
        group,
        Means(before.ttft[mask], before.tpot[mask]),
        Means(after.ttft[mask], after.tpot[mask]),
    )


def _row(left_out: str, group: str, before: Means, after: Means) -> HostTimeRow:
    return HostTimeRow(
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
