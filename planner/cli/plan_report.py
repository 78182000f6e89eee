"""A plan's answer for people: the winner in words, the shortlist, what was turned down and why."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from planner.assemble.question import AUTO, Ask
from planner.cli.screen import note, say, show_table
from planner.domain.dtypes import KvDtype
from planner.domain.evidence import Accuracy
from planner.domain.model import Model
from planner.domain.plan import Bottleneck, Plan, Question, Recommendation, Rejection
from planner.domain.units import MONTHS_PER_YEAR, bytes_to_gib, seconds_to_ms
from planner.export.evidence import band_of, how_tested, spanned
from planner.export.format import count, exact, milliseconds, number, per_cent, percent, promised, usd
from planner.export.recommendation import engine_command, plan_warnings
from planner.export.vllm import missing_checkpoint
from planner.planning.recommend import nearest_misses

NEAREST = 5
PURCHASES = {"on_demand": "on demand", "reserved_1y": "1 year", "reserved_3y": "3 years", "spot": "spot"}
RELAX = {
    Bottleneck.EVIDENCE: "rank what only a datasheet tells of, too (--include-untrusted)",
    Bottleneck.BACKEND: "allow GPUs that vLLM's CUDA or ROCm kernels run on (--gpu)",
    Bottleneck.DTYPE: "allow another format (--weight-dtype, --kv-dtype) or GPU (--gpu)",
    Bottleneck.PARALLELISM: "allow other tensor-parallel degrees (--max-tp)",
    Bottleneck.MEMORY: "allow more GPUs a replica (--max-tp, --max-pp), other GPUs, or lossy formats "
    "(--weight-dtype any --kv-dtype any)",
    Bottleneck.TTFT: "promise a longer time to first token (--ttft-p95-ms), or allow a larger --max-tp or faster GPUs",
    Bottleneck.TPOT: "promise a longer time per token (--tpot-p95-ms), or allow a larger --max-tp or faster GPUs",
    Bottleneck.BUDGET: "raise --budget-usd-per-month, or allow cheaper ways to pay (--purchase any) and providers",
}


class Answer(NamedTuple):
    """A question and its answer."""

    ask: Ask
    question: Question
    checkpoint: Model
    """The model as it is stored, before any format that was asked for."""
    accuracy: Accuracy
    """What is known of the errors of predictions."""
    recommendation: Recommendation
    shortlist: tuple[Plan, ...]


def report(answer: Answer) -> None:
    """Prints the whole answer."""
    say(_asked(answer.question))
    say()
    if answer.shortlist:
        for line in _headline(answer):
            say(line)
        say()
        _show_shortlist(answer)
        _show_cost(answer.shortlist[0], answer.recommendation)
    else:
        say("Nothing fits.")
        _show_misses(answer.recommendation)
    _show_rejected(answer.recommendation.rejections)
    for line in _hints(answer):
        note(line)


def _asked(question: Question) -> str:
    workload, slo = question.workload, question.slo
    rate = workload.requests_per_s or 0.0
    limits = [
        f"{name} p95 within {promised(seconds_to_ms(limit))}"
        for name, limit in (("TTFT", slo.ttft_p95_s), ("TPOT", slo.tpot_p95_s))
        if limit is not None
    ]
    return (
        f"{question.variants[0].name}: {count(workload.mean_input_tokens, 'token')} in, "
        f"{exact(workload.mean_output_tokens)} out, {count(rate, 'request')}/s on average, "
        f"{exact(rate * question.reserve.peak_ratio)} at the peak; {', '.join(limits) or 'no latency promised'}"
    )


def _headline(answer: Answer) -> Iterator[str]:
    """The winner, a fact a line."""
    plan = answer.shortlist[0]
    candidate, fleet, cost, slo = plan.candidate, plan.fleet, plan.cost, answer.question.slo
    instance, price = candidate.instance, candidate.price
    band = band_of(plan, answer.accuracy)
    stranded = f", {count(fleet.stranded_gpus, 'GPU')} idle" if fleet.stranded_gpus else ""
    yield (
        f"{fleet.instances} x {instance.instance_type} ({instance.provider} {price.region}, "
        f"{PURCHASES[price.purchase]}): {count(fleet.replicas, 'replica')} "
        f"at {_layout(plan)} on {instance.gpu}, {_formats(plan)}{stranded}"
    )
    yield (
        f"  cost     {usd(cost.usd_per_month)} a month; {usd(cost.usd_per_million_tokens)} per million tokens "
        f"({usd(cost.usd_per_million_input_tokens)} input, {usd(cost.usd_per_million_output_tokens)} output); "
        f"price of {price.as_of or 'unknown date'}"
    )
    yield f"  TTFT     p95 {_against(plan.latency.ttft_p95_s, slo.ttft_p95_s)}{_ranged(plan, 'ttft')}"
    yield f"  TPOT     p95 {_against(plan.latency.tpot_p95_s, slo.tpot_p95_s)}{_ranged(plan, 'tpot')}"
    yield (
        f"  load     {percent(plan.utilization_ratio)} of {number(plan.capacity_requests_per_s)} requests/s "
        f"at the peak; bound by {plan.binding_constraint.value}"
    )
    yield f"  capacity {_capacity(plan)}"
    yield (
        f"  memory   {number(plan.memory.weights_gib)} GiB weights and "
        f"{number(bytes_to_gib(plan.memory.kv_cache_bytes))} GiB KV cache per GPU, "
        f"{plan.memory.kv_cache_tokens:,} tokens"
    )
    yield (
        f"  basis    {plan.basis.value} ({plan.basis_detail}); {how_tested(band)}"
        + (f"\n           runs: {band.note}" if band else "")
    )
    yield f"  engine   {engine_command(plan, answer.checkpoint)}"
    missing = missing_checkpoint(answer.checkpoint, candidate.weight_dtype)
    if missing:
        yield f"           # {missing}"


def _capacity(plan: Plan) -> str:
    """What one replica carries, and how that was found."""
    carried = f"{number(plan.replica_requests_per_s)} requests/s a replica within the promise"
    disagreement = plan.capacity_disagreement_ratio
    if disagreement is None:
        return f"{carried}, in closed form"
    return (
        f"{carried}, simulated; the closed form says {number(plan.steady_replica_requests_per_s)} "
        f"({per_cent(disagreement, '+')} %)"
    )


def _disagreement(plan: Plan) -> str:
    ratio = plan.capacity_disagreement_ratio
    return "closed form" if ratio is None else f"{per_cent(ratio, '+')} %"


def _layout(plan: Plan) -> str:
    parallelism = plan.candidate.parallelism
    return f"TP {parallelism.tp}" + (f" PP {parallelism.pp}" if parallelism.pp > 1 else "")


def _formats(plan: Plan) -> str:
    kv_dtype = plan.candidate.kv_dtype
    cache = "" if kv_dtype is KvDtype.AUTO else f", {kv_dtype.value} KV cache"
    return f"{plan.candidate.weight_dtype.value} weights{cache}"


def _against(time_s: float, promised_s: float | None) -> str:
    shown = milliseconds(seconds_to_ms(time_s))
    return shown if promised_s is None else f"{shown} of {promised(seconds_to_ms(promised_s))} promised"


def _ranged(plan: Plan, name: Literal["ttft", "tpot"]) -> str:
    return "" if plan.ranges is None else f"; {spanned(getattr(plan.ranges, name))} with 90 %"


def _show_shortlist(answer: Answer) -> None:
    plans = answer.shortlist
    shown = [column for column in SHORTLIST if not column.only_if_several or _differ(column, plans)]
    rows = [
        [f"{rank}{'*' if plan.pareto else ''}", *(column.cell(plan) for column in shown)]
        for rank, plan in enumerate(plans, start=1)
    ]
    title = f"The {f'{len(plans)} ' if len(plans) > 1 else ''}cheapest; * no cheaper plan has a lower TPOT"
    show_table(title, ["#", *(column.header for column in shown)], rows)
    _show_warnings(answer)


def _differ(column: "Column", plans: Sequence[Plan]) -> bool:
    return len({column.cell(plan) for plan in plans}) > 1


class Column(NamedTuple):
    """One column of the shortlist."""

    header: str
    cell: Callable[[Plan], str]
    only_if_several: bool = False
    """Shown only where plans differ in it."""


SHORTLIST = (
    Column("instances", lambda plan: f"{plan.fleet.instances} x {plan.candidate.instance.instance_type}"),
    Column("where", lambda plan: f"{plan.candidate.instance.provider} {plan.candidate.price.region}"),
    Column("GPU", lambda plan: plan.candidate.instance.gpu),
    Column("replicas", lambda plan: f"{plan.fleet.replicas} at {_layout(plan)}"),
    Column("weights", lambda plan: plan.candidate.weight_dtype.value, only_if_several=True),
    Column("KV", lambda plan: plan.candidate.kv_dtype.value, only_if_several=True),
    Column("paid", lambda plan: PURCHASES[plan.candidate.price.purchase], only_if_several=True),
    Column("$/month", lambda plan: usd(plan.cost.usd_per_month)),
    Column("TTFT p95", lambda plan: milliseconds(seconds_to_ms(plan.latency.ttft_p95_s))),
    Column("TPOT p95", lambda plan: milliseconds(seconds_to_ms(plan.latency.tpot_p95_s))),
    Column("use", lambda plan: percent(plan.utilization_ratio)),
    Column("steady", _disagreement),
    Column("error", lambda plan: percent(plan.expected_error_ratio)),
)


def _show_warnings(answer: Answer) -> None:
    ranks: defaultdict[str, list[int]] = defaultdict(list)
    for rank, plan in enumerate(answer.shortlist, start=1):
        for warning in plan_warnings(plan, answer.checkpoint):
            ranks[warning].append(rank)
    for warning, where in ranks.items():
        every = len(where) == len(answer.shortlist) > 1
        say(f"  {'all' if every else ', '.join(map(str, where))}: {warning}")
    if ranks:
        say()


def _show_cost(plan: Plan, recommendation: Recommendation) -> None:
    """What the first choice costs in every way it is sold, and what it saves."""
    ways = plan.cost.usd_per_month_by_purchase
    chosen = plan.candidate.price.purchase
    say(
        "First choice a month: "
        + ", ".join(
            f"{usd(cost)} {PURCHASES[purchase]}{' (chosen)' if purchase is chosen else ''}"
            for purchase, cost in ways.items()
        )
    )
    if plan.saving_vs_previous_usd_per_month is not None:
        previous = plan.cost.usd_per_month + plan.saving_vs_previous_usd_per_month
        say(_saving(plan.saving_vs_previous_usd_per_month, f"the previous choice, {usd(previous)}"))
    if plan.saving_usd_per_month > 0:
        spared = usd(plan.saving_usd_per_month)
        say(f"The dearest of {len(recommendation.plans):,} that work costs {spared} a month more.")


def _saving(usd_per_month: float, against: str) -> str:
    word = "Saves" if usd_per_month >= 0 else "Costs"
    more = "" if usd_per_month >= 0 else " more"
    amount = abs(usd_per_month)
    return f"{word} {usd(amount)} a month{more}, {usd(amount * MONTHS_PER_YEAR)} a year, against {against}"


def misses(rejections: Sequence[Rejection]) -> tuple[Rejection, ...]:
    """The nearest misses: the nearest one of every bottleneck, then the next nearest."""
    nearest = nearest_misses(rejections, len(rejections))
    first = {miss.bottleneck: miss for miss in reversed(nearest)}
    chosen = list(first.values()) + [miss for miss in nearest if first[miss.bottleneck] is not miss]
    return tuple(sorted(chosen[:NEAREST], key=lambda miss: miss.miss_ratio))


def _show_misses(recommendation: Recommendation) -> None:
    rows = [
        [
            f"{miss.candidate.instance.provider} {miss.candidate.instance.instance_type}",
            f"{miss.candidate.instance.gpu_count} x {miss.candidate.instance.gpu}",
            str(miss.candidate.parallelism.tp),
            miss.bottleneck.value,
            number(miss.need),
            number(miss.have),
            miss.unit,
        ]
        for miss in misses(recommendation.rejections)
    ]
    show_table("Nearest misses", ["instance", "GPU", "TP", "fails on", "need", "have", "unit"], rows)


def _show_rejected(rejections: Sequence[Rejection]) -> None:
    if not rejections:
        return
    counts = Counter(rejection.bottleneck for rejection in rejections)
    first = {rejection.bottleneck: rejection for rejection in reversed(rejections)}
    rows = [
        [
            bottleneck.value,
            f"{times:,}",
            f"{first[bottleneck].candidate.instance.provider} {first[bottleneck].candidate.instance.instance_type} "
            f"TP {first[bottleneck].candidate.parallelism.tp}: {first[bottleneck].reason}",
        ]
        for bottleneck, times in counts.most_common()
    ]
    say()
    show_table(f"Turned down: {count(len(rejections), 'candidate')}", ["for", "count", "for example"], rows)


def _hints(answer: Answer) -> Iterator[str]:
    """What the user may not know they could ask."""
    if not answer.shortlist:
        for bottleneck in dict.fromkeys(miss.bottleneck for miss in misses(answer.recommendation.rejections)):
            yield f"hint: to get past {bottleneck.value}, {RELAX[bottleneck]}"
    elif answer.checkpoint.quantization is None and answer.ask.weight_dtype == (AUTO,):
        yield (
            f"hint: {answer.checkpoint.name} is served as it is stored; "
            "--weight-dtype any --kv-dtype any also considers lossy formats"
        )
