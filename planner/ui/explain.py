"""The formulas behind a plan with its own numbers in them."""

from typing import NamedTuple

import numpy as np

from planner.domain.deployment import EngineSettings
from planner.domain.dtypes import KV_BYTES
from planner.domain.model import LatentAttention, Model, SoftmaxAttention
from planner.domain.plan import Candidate, Plan, Question
from planner.domain.units import HOURS_PER_MONTH, bytes_to_gib
from planner.formulas.kv_cache import kv_parts, resolve_kv_dtype
from planner.formulas.kv_paging import kv_paging
from planner.formulas.step import GRID_TOKENS, StepTable, decode_step_s, mixed_step_s, stack
from planner.formulas.vision import loaded_model
from planner.formulas.weights import fullest_rank_tensors
from planner.planning.candidates import cluster_of
from planner.planning.facts import Facts
from planner.planning.loads import Loaded, as_column, load_of
from planner.planning.sizing import Placed, Sizer, loading_target
from planner.serving.fleet import replicas_for, stages_per_instance
from planner.serving.mean_step import Load
from planner.ui.format import count, gib, latency, number, percent, usd

ONE_LAYOUT = np.array([[0]], dtype=np.intp)


class Line(NamedTuple):
    """One formula: what it gives, how, with which numbers, and the result as shown and as computed."""

    title: str
    formula: str
    numbers: str
    result: str
    value: float


def explain(plan: Plan, question: Question, facts: Facts) -> tuple[Line, ...]:
    """Every figure of the answer from the facts to the cost, in the order it is computed."""
    placed = placed_replica(plan, question, facts)
    table = stack([Sizer(facts).step(placed)])
    return (
        weights_line(placed, plan.engine),
        kv_per_token_line(placed),
        kv_tokens_line(plan),
        step_line(plan, question, table),
        tpot_line(plan, question, table),
        ttft_line(plan, question, table),
        replicas_line(plan, question),
        instances_line(plan),
        cost_line(plan),
    )


def variant_of(candidate: Candidate, question: Question) -> Model:
    """The model in the weight format that a candidate serves."""
    return next(model for model in question.variants if model.weight_dtype == candidate.weight_dtype)


def placed_replica(plan: Plan, question: Question, facts: Facts) -> Placed:
    """The plan's replica with its weights, KV layout and coefficients."""
    candidate = plan.candidate
    model, gpu = variant_of(candidate, question), facts.gpus[candidate.instance.gpu]
    placed = Sizer(facts).place(
        model,
        gpu,
        candidate.parallelism,
        kv_dtype=candidate.kv_dtype,
        cluster=cluster_of(candidate.instance, candidate.parallelism),
        paging=kv_paging(plan.engine, gpu, model, candidate.kv_dtype),
    )
    assert isinstance(placed, Placed)
    return placed


def weights_line(placed: Placed, engine: EngineSettings) -> Line:
    """Weight bytes of the fullest rank, by the group of tensors they belong to."""
    target = loading_target(placed, engine)
    groups: dict[str, int] = {}
    for tensor in fullest_rank_tensors(loaded_model(placed.model, engine), placed.parallelism, target):
        groups[tensor.group] = groups.get(tensor.group, 0) + tensor.size_bytes
    total = sum(groups.values())
    parts = " + ".join(
        f"{name.replace('_', ' ')} {number(bytes_to_gib(size))}" for name, size in groups.items()
    )
    return Line(
        "Weights per GPU",
        "sum over tensors of (elements on this rank × bytes each + scales)",
        f"{parts} GiB, {placed.model.weight_dtype.value}, TP {placed.parallelism.tp}",
        f"≈ {gib(total)}",
        float(total),
    )


def kv_per_token_line(placed: Placed) -> Line:
    """Growth of the cache by one token of one sequence, by what the layers keep."""
    parts = kv_parts(placed.model, placed.parallelism, placed.kv_dtype, paging=placed.paging)
    growing = [part for part in parts if part.bytes_per_token]
    per_token = sum(part.bytes_per_token for part in growing)
    numbers = " + ".join(
        f"{part.layers} {part.kind.value.replace('_', ' ')} layers × {part.bytes_per_token // part.layers:,} B"
        for part in growing
    )
    states = sum(part.state_bytes for part in parts)
    if states:
        numbers += f" (and {gib(states)} of state a sequence, whatever its length)"
    return Line(
        "KV cache per token and GPU",
        _kv_formula(placed),
        numbers,
        f"{per_token:,} B",
        float(per_token),
    )


def _kv_formula(placed: Placed) -> str:
    value_bytes = KV_BYTES[resolve_kv_dtype(placed.model, placed.kv_dtype, placed.paging.engine_version)]
    attentions = {kind.attention for kind in placed.model.layer_kinds if kind.attention is not None}
    attention = next(iter(attentions)) if len(attentions) == 1 else None
    if isinstance(attention, SoftmaxAttention):
        kv_heads = max(1, attention.kv_heads // placed.parallelism.tp)
        return (
            "layers × 2 (K, V) × KV heads on this rank × head size × bytes a value; "
            f"a layer: 2 × {kv_heads} × {attention.head_dim} × {value_bytes}"
        )
    if isinstance(attention, LatentAttention):
        return (
            "layers × (latent + rotary key) × bytes a value, whole on every rank; "
            f"a layer: ({attention.kv_lora_rank} + {attention.qk_rope_head_dim}) × {value_bytes}"
        )
    return "sum over layers of what each keeps of a token"


def kv_tokens_line(plan: Plan) -> Line:
    """Tokens that fit in what the engine's share leaves beside everything else."""
    memory = plan.memory
    taken = (memory.weights_bytes, memory.activation_bytes, memory.cuda_graph_bytes, memory.non_torch_bytes)
    return Line(
        "KV cache tokens",
        "(card × gpu_memory_utilization − weights − activations − CUDA graphs − non-torch) / KV per token",
        f"({number(bytes_to_gib(memory.total_bytes), 4)} × {plan.engine.gpu_memory_utilization:g} − "
        f"{' − '.join(number(bytes_to_gib(size)) for size in taken)}) GiB = {gib(memory.kv_cache_bytes)}, "
        f"/ {memory.kv_bytes_per_token:,.0f} B, in blocks of {memory.block_size}",
        f"≈ {number(memory.kv_cache_tokens)} tokens",
        float(memory.kv_cache_tokens),
    )


class _Step(NamedTuple):
    """An iteration in which all running sequences decode."""

    products_s: float
    attention_s: float

    @property
    def total_s(self) -> float:
        return self.products_s + self.attention_s


def _decode_step(plan: Plan, question: Question, table: StepTable) -> _Step:
    sequences = plan.running_requests / plan.candidate.parallelism.pp
    total_s = float(
        decode_step_s(table, ONE_LAYOUT, np.array([[sequences]]), np.array([[_context_tokens(question)]]))[
            0, 0
        ]
    )
    products_s = float(
        np.interp(sequences, GRID_TOKENS, table.body_s[0])
        + np.interp(sequences, GRID_TOKENS, table.head_s[0])
    )
    return _Step(products_s, total_s - products_s)


def _context_tokens(question: Question) -> float:
    """Mean length of a running sequence: its prompt and half of its answer."""
    workload = question.workload
    return workload.mean_input_tokens + workload.mean_output_tokens / 2.0


def step_line(plan: Plan, question: Question, table: StepTable) -> Line:
    """One engine step at the load of the peak."""
    step = _decode_step(plan, question, table)
    return Line(
        "Decode step",
        "layers × (matrix products + all-reduce + element-wise + attention) + logits",
        f"{number(plan.running_requests)} running at the peak, mean context {number(_context_tokens(question))} "
        f"tokens: products {latency(step.products_s)} + attention {latency(step.attention_s)}",
        f"≈ {latency(step.total_s)}",
        step.total_s,
    )


def tpot_line(plan: Plan, question: Question, table: StepTable) -> Line:
    """TPOT p95 from the decode step, the prompts of others and the busier moments."""
    step_s, at_peak = _decode_step(plan, question, table).total_s, plan.latency
    stages = plan.candidate.parallelism.pp
    own_s = step_s * stages
    return Line(
        "TPOT p95",
        f"{'pipeline stages × ' if stages > 1 else ''}decode step + prompts of others in the same steps "
        "+ spread of the load",
        f"{latency(own_s)} + {latency(at_peak.tpot_mean_s - own_s)} = mean "
        f"{latency(at_peak.tpot_mean_s)}, + {latency(at_peak.tpot_p95_s - at_peak.tpot_mean_s)}",
        f"≈ {latency(at_peak.tpot_p95_s)}",
        at_peak.tpot_p95_s,
    )


def ttft_line(plan: Plan, question: Question, table: StepTable) -> Line:
    """TTFT p95 from the prompt alone on an idle replica, and what the load adds."""
    load = as_column(load_of([Loaded(0, plan.engine, plan.memory.max_concurrency, 1.0, question.workload)]))
    passes, idle_s = _idle_prompt(load, table)
    waiting_s = plan.latency.ttft_p95_s - idle_s
    prompt_tokens = float(load.input_tokens[0, 0])
    return Line(
        "TTFT p95",
        "prompt passes × step with a prompt chunk + waiting for the running step, other prompts and a slot",
        f"{number(prompt_tokens)} prompt tokens in {passes:.3g} {'pass' if passes == 1 else 'passes'}: "
        f"{latency(idle_s)} + {latency(waiting_s)}",
        f"≈ {latency(plan.latency.ttft_p95_s)}",
        plan.latency.ttft_p95_s,
    )


def _idle_prompt(load: Load, table: StepTable) -> tuple[float, float]:
    """Passes that one prompt takes and their time where nothing else runs [s]."""
    passes = np.maximum(1.0, load.input_tokens / load.batched_tokens)
    idle = np.zeros_like(passes)
    chunk_s = mixed_step_s(table, load, idle, idle, load.input_tokens / passes)
    return float(passes[0, 0]), float((passes * chunk_s)[0, 0])


def replicas_line(plan: Plan, question: Question) -> Line:
    """Replicas that carry the peak within the promise."""
    reserve, mean = question.reserve, question.workload.requests_per_s or 0.0
    replicas = replicas_for(mean * reserve.peak_ratio, plan.replica_requests_per_s, reserve)
    return Line(
        "Replicas",
        "⌈requests/s × peak ratio / (capacity of a replica within the promise × (1 − headroom))⌉ + spare",
        f"⌈{number(mean)} × {reserve.peak_ratio:g} / ({number(plan.replica_requests_per_s)} × "
        f"(1 − {reserve.headroom_ratio:g}))⌉ + {reserve.spare_replicas}",
        str(replicas),
        float(replicas),
    )


def instances_line(plan: Plan) -> Line:
    """Instances that hold the replicas, a tensor-parallel group never split between two."""
    parallelism, instance = plan.candidate.parallelism, plan.candidate.instance
    stages = stages_per_instance(instance.gpu_count, parallelism.tp)
    return Line(
        "Instances",
        "⌈replicas × PP / ⌊GPUs of an instance / TP⌋⌉",
        f"⌈{plan.fleet.replicas} × {parallelism.pp} / ⌊{instance.gpu_count} / {parallelism.tp}⌋⌉ = "
        f"⌈{plan.fleet.replicas * parallelism.pp} / {stages}⌉, {count(plan.fleet.stranded_gpus, 'GPU')} stranded",
        str(plan.fleet.instances),
        float(plan.fleet.instances),
    )


def cost_line(plan: Plan) -> Line:
    """The monthly bill."""
    price = plan.candidate.price
    return Line(
        "Cost per month",
        "instances × price per hour × hours of a month",
        f"{plan.fleet.instances} × ${price.usd_per_hour:.4g} × {HOURS_PER_MONTH:g} h "
        f"({percent(plan.utilization_ratio)} busy at the peak)",
        f"≈ {usd(plan.cost.usd_per_month)}",
        plan.fleet.instances * price.usd_per_hour * HOURS_PER_MONTH,
    )
