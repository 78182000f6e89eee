"""Where the time of one step goes, operator by operator, against its roofline, and what would make it shorter.

What binds is found by asking again with a resource a billion times faster.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from planner.domain.model import Model
from planner.formulas.arrays import FloatArray, IntArray
from planner.formulas.operators import UNTUNED
from planner.formulas.operators.collectives import SEND_RECV_EFFICIENCY, SEND_RECV_LATENCY_S
from planner.formulas.relief import Resource, at_datasheet_rates, relieved
from planner.formulas.step import decode_step_s, stack
from planner.formulas.step_parts import (
    OUTSIDE_LAYERS,
    Layout,
    Operator,
    StepLoad,
    StepPart,
    layer_type,
    parts_s,
    step_parts,
)

COMMUNICATION = (Operator.ALL_REDUCE, Operator.HOPS)


class PartTime(NamedTuple):
    """One operator of one type of layer, all layers of that type together."""

    layer_type: str
    layers: int
    """0: outside the layers."""
    operator: Operator
    time_s: float
    roofline_s: float | None
    """The longest of FLOP at the peak rate, bytes at the memory's bandwidth and message over the link, all as the
    data sheet has them; None for the host."""
    binds: Resource

    @property
    def efficiency_ratio(self) -> float | None:
        """Roofline over time."""
        return None if self.roofline_s is None else self.roofline_s / self.time_s


class Breakdown(NamedTuple):
    """One step taken apart."""

    parts: tuple[PartTime, ...]
    step_s: float
    relieved_step_s: Mapping[Resource, float]
    """With each resource in turn infinitely fast."""
    binds: Resource
    """The resource that the step would gain most from."""
    next_limit: Resource
    """What it would gain most from then."""


def breakdown(layout: Layout, load: StepLoad) -> Breakdown:
    """Takes one step apart; the parts add up to its time.

    Softmax attention of decoding sequences is held against its bytes alone: its FLOP are a small part of them.
    """
    parts = step_parts(layout)
    times_s = _times_s(layout, load, ())
    saved_s = {what: times_s - _times_s(layout, load, (what,)) for what in Resource}
    roofline_s = _roofline_s(layout, load)
    gpu_s = float(times_s.sum())
    step_s = load.step_s(gpu_s)
    host_s = step_s - gpu_s
    saved = {what: step_s - load.step_s(gpu_s - float(by_part.sum())) for what, by_part in saved_s.items()}
    saved[Resource.HOST] = host_s
    binds = max(saved, key=saved.__getitem__)
    found = list(_merged(layout.model, parts, _Measured(times_s, roofline_s, saved_s)))
    wait_s = load.launch_wait_s(gpu_s)
    for operator, time_s in ((Operator.HOST, host_s - wait_s), (Operator.LAUNCHES, wait_s)):
        if time_s > 0:
            found.append(PartTime(OUTSIDE_LAYERS, 0, operator, time_s, None, Resource.HOST))
    return Breakdown(
        parts=tuple(found),
        step_s=step_s,
        relieved_step_s={what: step_s - by_s for what, by_s in saved.items()},
        binds=binds,
        next_limit=_next_limit(layout, load, binds),
    )


def ridge_batch(layout: Layout, context_tokens: float, largest: int) -> int | None:
    """The smallest batch whose decode step gains more from compute than from bandwidth; None up to `largest`."""
    batches = np.arange(1, largest + 1, dtype=np.float64)
    rows = np.zeros(batches.size, dtype=np.int64)
    contexts = np.full(batches.size, float(context_tokens))
    without = [
        decode_step_s(stack([_relieved(layout, (what,)).step()]), rows, batches, contexts)
        for what in (Resource.COMPUTE, Resource.BANDWIDTH)
    ]
    compute_bound = without[0] < without[1]
    return int(batches[np.argmax(compute_bound)]) if compute_bound.any() else None


def _relieved(layout: Layout, free: Sequence[Resource]) -> Layout:
    ops = layout.ops
    for what in free:
        ops = relieved(ops, what)
    return layout._replace(ops=ops)


def _times_s(layout: Layout, load: StepLoad, free: Sequence[Resource]) -> FloatArray:
    """Time of each part with some resources infinitely fast [P]."""
    parts = step_parts(_relieved(layout, free))
    times_s = parts_s(parts, load)
    if Resource.COMMUNICATION in free:
        times_s[_are(parts, *COMMUNICATION)] = 0.0
    if Resource.LATENCY in free:
        moved = _are(parts, Operator.ELEMENTWISE)
        times_s[moved] -= _launches_s(layout, load)[moved]
    return times_s


def _are(parts: Sequence[StepPart], *operators: Operator) -> IntArray:
    return np.flatnonzero([part.operator in operators for part in parts])


def _launches_s(layout: Layout, load: StepLoad) -> FloatArray:
    """What is left of element-wise kernels where memory is infinitely fast [P]."""
    return parts_s(step_parts(_relieved(layout, (Resource.BANDWIDTH,))), load)


def _roofline_s(layout: Layout, load: StepLoad) -> FloatArray:
    """What each part takes at the data sheet's rates, in whichever of them it is longest [P]."""
    plain = layout._replace(ops=layout.ops._replace(tuning=UNTUNED))
    parts, launches_s = step_parts(plain), _launches_s(plain, load)
    ideal = plain._replace(ops=at_datasheet_rates(plain.ops))
    longest_s = np.maximum(
        _times_s(ideal, load, (Resource.BANDWIDTH,)), _times_s(ideal, load, (Resource.COMPUTE,))
    )
    times_s = parts_s(parts, load)
    moved, hops = _are(parts, Operator.ELEMENTWISE), _are(parts, Operator.HOPS)
    longest_s[moved] = (times_s - launches_s)[moved] * layout.ops.coefficients.elementwise.byte_efficiency
    setup_s = (layout.parallelism.pp - 1) * SEND_RECV_LATENCY_S
    longest_s[hops] = (times_s[hops] - setup_s) * SEND_RECV_EFFICIENCY
    return longest_s


class _Measured(NamedTuple):
    """Of each part [P]."""

    times_s: FloatArray
    roofline_s: FloatArray
    saved_s: Mapping[Resource, FloatArray]
    """With each resource in turn infinitely fast."""


def _merged(model: Model, parts: Sequence[StepPart], measured: _Measured) -> Iterator[PartTime]:
    """Kernels that serve one operator of one type of layer, taken together; those without work are left out."""
    layers = Counter(layer_type(model.layer_kinds[index]) for index in model.layer_pattern)
    members: dict[tuple[str, Operator], list[int]] = {}
    for row, part in enumerate(parts):
        members.setdefault((part.layer_type, part.operator), []).append(row)
    for (name, operator), rows in members.items():
        time_s = float(measured.times_s[rows].sum())
        if time_s <= 0:
            continue
        gains = {what: float(by_part[rows].sum()) for what, by_part in measured.saved_s.items()}
        yield PartTime(
            layer_type=name,
            layers=layers[name],
            operator=operator,
            time_s=time_s,
            roofline_s=float(measured.roofline_s[rows].sum()),
            binds=max(gains, key=gains.__getitem__),
        )


def _next_limit(layout: Layout, load: StepLoad, binds: Resource) -> Resource:
    """What the step would gain most from where `binds` no longer does."""
    hosted = (lambda gpu_s: gpu_s) if binds is Resource.HOST else load.step_s
    gpu_s = float(_times_s(layout, load, (binds,)).sum())
    gains = {
        what: hosted(gpu_s) - hosted(float(_times_s(layout, load, (binds, what)).sum()))
        for what in Resource
        if what is not binds
    }
    if Resource.HOST in gains:
        gains[Resource.HOST] = load.step_s(gpu_s) - gpu_s
    return max(gains, key=gains.__getitem__)
