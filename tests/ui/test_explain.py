import pytest

from planner.planning.recommend import shortlist
from planner.ui.answers import Answer
from planner.ui.explain import Line, explain
from tests.ui.conftest import answer_to


def lines_of(answer: Answer, index: int = 0) -> dict[str, Line]:
    plan = shortlist(answer.recommendation.plans, index + 1)[index]
    return {line.title: line for line in explain(plan, answer.question, answer.facts)}


@pytest.mark.parametrize("index", [0, 3])
def test_every_figure_equals_the_plan(llama: Answer, index: int) -> None:
    plan = shortlist(llama.recommendation.plans, index + 1)[index]
    lines = lines_of(llama, index)
    assert lines["Weights per GPU"].value == plan.memory.weights_bytes
    assert lines["KV cache per token and GPU"].value == plan.memory.kv_bytes_per_token
    assert lines["KV cache tokens"].value == plan.memory.kv_cache_tokens
    assert lines["TPOT p95"].value == plan.latency.tpot_p95_s
    assert lines["TTFT p95"].value == plan.latency.ttft_p95_s
    assert lines["Replicas"].value == plan.fleet.replicas
    assert lines["Instances"].value == plan.fleet.instances
    assert lines["Cost per month"].value == pytest.approx(plan.cost.usd_per_month)


def test_the_kv_sum_written_out_gives_the_tokens(llama: Answer) -> None:
    memory = shortlist(llama.recommendation.plans, 1)[0].memory
    assert memory.kv_cache_bytes / memory.kv_bytes_per_token == pytest.approx(
        memory.kv_cache_tokens, rel=1e-3
    )
    assert f"/ {memory.kv_bytes_per_token:,.0f} B" in lines_of(llama)["KV cache tokens"].numbers


def test_a_decode_step_is_part_of_the_time_per_token(llama: Answer) -> None:
    plan = shortlist(llama.recommendation.plans, 1)[0]
    step_s = lines_of(llama)["Decode step"].value
    assert 0 < step_s * plan.candidate.parallelism.pp < plan.latency.tpot_p95_s


def test_llama_8b_on_one_gpu_has_the_known_figures() -> None:
    answer = answer_to(model="meta-llama/Llama-3.1-8B", weight_dtype="auto", max_tp=1, max_pp=1)
    lines = lines_of(answer)
    # vLLM's parameters, the rotary table, and seven numbers a layer in blocks of 512 bytes.
    assert lines["Weights per GPU"].value == 16_060_522_496 + 131_072 * 128 * 2 + 32 * 7 * 512
    assert lines["KV cache per token and GPU"].value == 131_072
    assert lines["KV cache per token and GPU"].numbers == "32 full layers × 4,096 B"
    assert "2 × 8 × 128 × 2" in lines["KV cache per token and GPU"].formula


@pytest.mark.parametrize("model", ["deepseek-ai/DeepSeek-V3", "openai/gpt-oss-120b", "Qwen/Qwen3.5-27B"])
def test_latent_windowed_and_linear_attention_are_explained(model: str) -> None:
    answer = answer_to(model=model, weight_dtype="auto", ttft_p95_ms=10_000, tpot_p95_ms=200)
    lines = lines_of(answer)
    plan = shortlist(answer.recommendation.plans, 1)[0]
    assert lines["Weights per GPU"].value == plan.memory.weights_bytes
    assert lines["KV cache per token and GPU"].value == plan.memory.kv_bytes_per_token
    assert all(line.formula and line.numbers and line.result for line in lines.values())
