"""The Memory page, run as Streamlit runs it, against what the core says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.question import facts_for
from planner.catalog.load import gpus
from planner.domain.units import GIB_BYTES, KIB_BYTES
from planner.export.memory import logged_lines
from planner.formulas.memory import kv_tokens_interval
from planner.planning.memory_questions import changes, longest_context, sequences_held
from planner.planning.predict import Case, Sized, size
from planner.planning.sizing import Sizer
from planner.ui import memory_tables
from planner.ui.format import gib, number, short
from planner.ui.memory_answers import LogAsk, MemoryAsk, log_checked, memory_answered

Page = Callable[..., AppTest]

LOGS = Path(__file__).parents[1] / "calibrate" / "startup_logs"
MODEL, GPU = "meta-llama/Llama-3.1-8B", "H100-SXM-80GB"
VIEWS = Path("planner/ui/views")


def sized(
    model: str = MODEL, gpu: str = GPU, tp: int = 1, engine: Engine | None = None
) -> tuple[Case, Sized]:
    """What the core says of a deployment."""
    case = deployment(model, gpu_named(gpu), parallelism_of(tp), Formats(), engine or Engine())
    return case, size(case, Sizer(facts_for()))


def metrics(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def below(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.delta for metric in app.metric}


def table(app: AppTest, first_column: str) -> object:
    return next(frame.value for frame in app.dataframe if frame.value.columns[0] == first_column)


def said(app: AppTest) -> str:
    """The headline."""
    return str(app.subheader[0].value)


def assert_clean(app: AppTest) -> None:
    assert not app.exception
    assert not app.error


def test_a_deployment_that_fits_has_the_numbers_of_the_core(page: Page) -> None:
    app = page("memory", model=MODEL, memory_tp="1", memory_context_tokens="4096", memory_batch="32")
    assert_clean(app)
    case, found = sized()
    budget, placed = found.budget, found.placed
    assert budget is not None
    assert placed is not None
    low, high = kv_tokens_interval(budget, placed.kv, case.engine)
    assert said(app) == f"Fits: {number(budget.max_concurrency)} requests of 131,072 tokens at once"
    assert metrics(app) == {
        "KV tokens": f"{budget.kv_cache_tokens:,}",
        "Concurrency": f"{number(budget.max_concurrency)}×",
        "Weights": gib(budget.loaded_bytes),
        "KV cache": gib(budget.kv_cache_bytes),
        "Smallest TP": "1",
        # 32 layers x 8 heads x 128 wide x keys and values x 2 bytes = 131,072 bytes
        "KV per token": f"{131_072 // KIB_BYTES} KiB",
        "Largest batch": f"{sequences_held(found, 4096):,}",
        "Longest sequence": f"{longest_context(case, found, 32):,}",
    }
    assert below(app)["KV tokens"] == f"{short(low)} to {short(high)}"
    assert low < budget.kv_cache_tokens < high
    assert app.code[0].value.splitlines() == list(logged_lines(budget))


def test_the_card_adds_up(page: Page) -> None:
    parts = table(page("memory", model=MODEL), "Part")
    assert list(parts["Part"])[-1] == "card"
    assert parts["GiB"][:-1].sum() == pytest.approx(parts["GiB"].iloc[-1])
    assert parts["Share"].iloc[-1] == 100


def test_a_deployment_that_does_not_fit_says_by_how_much_and_what_would_help(page: Page) -> None:
    app = page("memory", model="meta-llama/Llama-3.1-70B", memory_tp="1")
    assert_clean(app)
    case, found = sized("meta-llama/Llama-3.1-70B")
    budget = found.budget
    assert budget is not None
    assert said(app) == f"Does not fit: {gib(budget.shortfall_bytes)} per GPU are missing"
    assert metrics(app)["Smallest TP"] == "4"
    assert metrics(app)["KV cache"].startswith("-")
    assert not app.code
    found_changes = changes(case, Sizer(facts_for()))
    rows = table(app, "Change")
    assert list(rows["Change"]) == ["as it is", *(change.what for change in found_changes)]
    assert list(rows["Flags"])[1:] == [change.flags for change in found_changes]
    assert rows["Missing, GiB"][0] == pytest.approx(budget.shortfall_bytes / GIB_BYTES)
    fits = {change.what for change in found_changes if change.sized.refusal is None}
    assert set(rows["Change"][rows["Fits"] == "yes"]) == fits
    assert "more GPUs" in fits


def test_what_cannot_be_laid_out_says_why(page: Page) -> None:
    app = page("memory", model=MODEL, memory_tp="3")
    assert_clean(app)
    assert said(app) == "Does not start"
    assert any("3" in caption.value for caption in app.caption)
    assert not app.metric


def test_without_a_tp_the_smallest_that_fits_is_taken(page: Page) -> None:
    app = page("memory", model="meta-llama/Llama-3.1-70B")
    assert any(" · TP 4 · " in markdown.value for markdown in app.markdown)
    assert said(app).startswith("Fits")


def test_every_degree_and_every_gpu_is_listed(page: Page) -> None:
    app = page("memory", model=MODEL, memory_tp="2")
    assert list(table(app, "TP")["TP"]) == [1, 2, 4, 8, 16, 32]  # what divides 32 heads
    cards = table(app, "GPU")
    assert set(cards["GPU"]) == {gpu.name for gpu in gpus() if gpu.vllm_backend}
    case, found = sized(gpu="L4", tp=2)
    assert found.budget is not None
    l4 = cards[cards["GPU"] == "L4"].iloc[0]
    assert l4["KV tokens"] == found.budget.kv_cache_tokens
    assert l4["Card, GiB"] == pytest.approx(case.gpu.memory_bytes / GIB_BYTES)
    assert cards["Card, GiB"].is_monotonic_increasing


def test_tensors_add_up_to_what_is_loaded(page: Page) -> None:
    app = page("memory", model=MODEL)
    _, found = sized()
    assert found.budget is not None
    tensors = next(frame.value for frame in app.dataframe if "Tensor" in frame.value.columns)
    groups = next(frame.value for frame in app.dataframe if "Tensors" in frame.value.columns)
    weights = tensors["Bytes"][tensors["Part"] == "weights"].sum()
    assert weights == found.budget.weights_bytes
    assert groups["Bytes"].sum() == tensors["Bytes"].sum()
    assert groups["Of all"].sum() == pytest.approx(100)
    assert any("gpu_memory_utilization is 0.92" in markdown.value for markdown in app.markdown)


def test_no_table_has_an_empty_column(page: Page) -> None:
    for query in ({"memory_tp": "1"}, {"memory_tp": "4"}, {"memory_gpu": "L4"}):
        for frame in page("memory", model="meta-llama/Llama-3.1-70B", **query).dataframe:
            values = frame.value
            assert len(values) > 0
            assert [name for name in values.columns if values[name].isna().all()] == []


def test_the_fields_reach_the_core(page: Page) -> None:
    query = {
        "memory_gpu": "L40S",
        "memory_tp": "2",
        "memory_max_model_len": "8192",
        "memory_max_num_seqs": "64",
        "memory_max_num_batched_tokens": "4096",
        "memory_gpu_memory_utilization": "0.85",
        "memory_engine_version": "0.20.0",
        "memory_enforce_eager": "true",
        "memory_max_loras": "4",
        "memory_max_lora_rank": "32",
        "memory_draft_model": "meta-llama/Llama-3.2-1B",
        "memory_num_speculative_tokens": "3",
        "memory_prefix_caching": "false",
        "memory_hybrid_kv_cache_manager": "false",
        "memory_multimodal": "false",
    }
    engine = Engine(
        max_model_len=8192,
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        gpu_memory_utilization=0.85,
        enforce_eager=True,
        engine_version="0.20.0",
        prefix_caching=False,
        hybrid_kv_cache_manager=False,
        multimodal=False,
        enable_lora=True,
        max_loras=4,
        max_lora_rank=32,
        draft_model="meta-llama/Llama-3.2-1B",
        num_speculative_tokens=3,
    )
    app = page("memory", model=MODEL, **query)
    assert_clean(app)
    _, found = sized(gpu="L40S", tp=2, engine=engine)
    assert found.budget is not None
    assert app.code[0].value.splitlines() == list(logged_lines(found.budget))
    parts = set(table(app, "Part")["Part"])
    assert {"draft model", "LoRA slots"} <= parts
    assert dict(app.query_params) == {"model": MODEL, **query}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tp", 2),
        ("pp", 2),
        ("max_model_len", 4096),
        ("max_num_seqs", 16),
        ("max_num_batched_tokens", 2048),
        ("gpu_memory_utilization", 0.5),
        ("context_tokens", 999),
        ("batch", 7),
        ("max_loras", 8),
        ("kv_offloading_gib", 64.0),
    ],
)
def test_every_number_changes_the_answer(page: Page, key: str, value: float) -> None:
    app = page("memory", model=MODEL)
    before = (metrics(app), [caption.value for caption in app.caption])
    app.number_input(key=f"memory_{key}").set_value(value).run()
    assert_clean(app)
    assert (metrics(app), [caption.value for caption in app.caption]) != before


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("enforce_eager", MODEL),
        ("prefix_caching", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
        ("hybrid_kv_cache_manager", "google/gemma-3-27b-it"),
        ("multimodal", "google/gemma-3-27b-it"),
    ],
)
def test_every_switch_changes_the_answer(page: Page, key: str, model: str) -> None:
    app = page("memory", model=model, memory_tp="4")
    before = metrics(app)
    switch = app.toggle(key=f"memory_{key}")
    switch.set_value(not switch.value).run()
    assert_clean(app)
    assert metrics(app) != before


def test_expert_parallelism_is_said(page: Page) -> None:
    app = page("memory", model="Qwen/Qwen3-30B-A3B", memory_tp="4")
    app.toggle(key="memory_ep").set_value(True).run()
    assert_clean(app)
    assert any("TP 4, expert parallel" in markdown.value for markdown in app.markdown)


def test_gpu_version_and_draft_change_the_answer(page: Page) -> None:
    app = page("memory", model=MODEL)
    seen = [metrics(app)]
    app.selectbox(key="memory_gpu").set_value("L40S").run()
    seen.append(metrics(app))
    app.text_input(key="memory_engine_version").set_value("0.11.0").run()
    seen.append(metrics(app))
    app.text_input(key="memory_engine_version").set_value("0.32.0").run()
    app.selectbox(key="memory_draft_model").set_value("meta-llama/Llama-3.2-1B").run()
    seen.append(metrics(app))
    app.number_input(key="memory_num_speculative_tokens").set_value(8).run()
    assert_clean(app)
    assert len({tuple(one.values()) for one in seen}) == len(seen)


def test_a_lora_rank_counts_with_slots_alone(page: Page) -> None:
    app = page("memory", model=MODEL, memory_max_lora_rank="64")
    assert_clean(app)
    assert app.number_input(key="memory_max_lora_rank").disabled
    app.number_input(key="memory_max_loras").set_value(2).run()
    small = metrics(app)["Weights"]
    app.number_input(key="memory_max_lora_rank").set_value(256).run()
    assert metrics(app)["Weights"] != small


def test_the_sidebar_gives_length_and_version(page: Page) -> None:
    app = page("memory", model=MODEL, max_model_len="2048", engine_version="0.11.0")
    assert any("vLLM 0.11.0" in markdown.value for markdown in app.markdown)
    assert "2,048 tokens" in said(app)
    assert app.number_input(key="memory_max_model_len").placeholder == "2048"


def test_formats_of_the_sidebar_are_followed(page: Page) -> None:
    app = page("memory", model=MODEL, weight_dtype="fp8", kv_dtype="fp8")
    assert any("fp8 weights · fp8 KV cache" in markdown.value for markdown in app.markdown)
    assert_clean(page("memory", model=MODEL, weight_dtype="any", kv_dtype="any"))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"model": "no-such-model"}, "neither a path nor a bundled name"),
        ({"memory_engine_version": "1999"}, "is not a vLLM version"),
        ({"memory_max_model_len": "9999999"}, "max_model_len must be at most 131072"),
        ({"memory_gpu_memory_utilization": "0"}, "gpu_memory_utilization must be greater than 0"),
        ({"memory_draft_model": "no-such-draft"}, "no-such-draft"),
        ({"memory_kv_offloading_gib": "64", "memory_engine_version": "0.11.0"}, "does not offload"),
    ],
)
def test_bad_input_is_one_clear_line(page: Page, query: dict[str, str], message: str) -> None:
    app = page("memory", **({"model": MODEL} | query))
    assert not app.exception
    assert len(app.error) == 1
    assert message in app.error[0].value
    assert "\n" not in app.error[0].value
    assert app.text_area(key="memory_log") is not None


def test_values_that_mean_nothing_in_the_url_are_dropped(page: Page) -> None:
    app = page("memory", model=MODEL, memory_gpu="abacus", memory_tp="-3", memory_batch="many")
    assert_clean(app)
    assert app.selectbox(key="memory_gpu").value == GPU
    assert app.number_input(key="memory_tp").value is None


def test_the_page_starts_from_the_plan_on_size_until_it_is_changed(page: Page) -> None:
    app = page("size", gpu="H200-SXM-141GB", weight_dtype="any")
    app.switch_page(str(VIEWS / "memory.py")).run()
    assert_clean(app)
    assert app.selectbox(key="memory_gpu").value == "H200-SXM-141GB"
    assert app.query_params["memory_gpu"] == "H200-SXM-141GB"
    tp = app.number_input(key="memory_tp").value
    assert tp is not None
    formats = next(markdown.value for markdown in app.markdown if "KV cache · vLLM" in markdown.value)
    app.switch_page(str(VIEWS / "size.py")).run()
    shown = app.dataframe[0].value
    assert shown["Layout"][0].startswith(f"TP {tp}")
    weights = shown["Layout"][0].split(", ")[1]
    assert weights in formats
    app.multiselect(key="gpu").set_value(["A100-SXM-80GB"]).run()
    app.switch_page(str(VIEWS / "memory.py")).run()
    assert app.selectbox(key="memory_gpu").value == "A100-SXM-80GB"
    app.selectbox(key="memory_gpu").set_value("L40S").run()
    app.switch_page(str(VIEWS / "size.py")).run()
    app.multiselect(key="gpu").set_value(["H200-SXM-141GB"]).run()
    app.switch_page(str(VIEWS / "memory.py")).run()
    # The URL, which would bring L40S back, is the browser's to keep: see tests/browser.
    assert app.selectbox(key="memory_gpu").value != "H200-SXM-141GB"


def test_a_pasted_log_that_names_its_gpu_is_compared(page: Page) -> None:
    app = page("memory", model=MODEL)
    text = (LOGS / "vllm-0.13.0.txt").read_text()
    app.text_area(key="memory_log").set_value(text).run()
    assert_clean(app)
    rows = table(app, "What").set_index("What")
    check = log_checked(LogAsk(text, None, MODEL, own_model=False))
    tokens = next(row for row in check.rows if row.what == "KV cache tokens")
    assert rows.loc["KV cache tokens", "Actual"] == f"{tokens.actual:,.0f}"
    assert rows.loc["KV cache tokens", "Predicted"] == f"{tokens.predicted:,.0f}"
    assert rows.loc["KV cache tokens", "Line"] == tokens.line_number
    assert rows.loc["KV cache tokens", "Error"].endswith(" %")
    assert any("the log names the GPU" in markdown.value for markdown in app.markdown)
    app.selectbox(key="memory_log_gpu").set_value("L4").run()
    assert table(app, "What").set_index("What").equals(rows)


def test_a_log_without_a_gpu_asks_for_one(page: Page) -> None:
    app = page("memory", model=MODEL)
    app.text_area(key="memory_log").set_value((LOGS / "vllm-0.20.0.txt").read_text()).run()
    assert len(app.error) == 1
    assert "the log does not say which GPU: choose it beside the log" in app.error[0].value
    app.selectbox(key="memory_log_gpu").set_value("H200-SXM-141GB").run()
    assert_clean(app)
    assert table(app, "What").set_index("What").loc["weights", "Actual"] == "32.89 GiB"


def test_an_uploaded_log_counts_before_the_pasted_one(page: Page) -> None:
    app = page("memory", model=MODEL)
    app.text_area(key="memory_log").set_value("nothing of use").run()
    assert app.error[0].value == "no line of a vLLM start-up log was recognised"
    raw = (LOGS / "vllm-0.13.0.txt").read_bytes()
    app.file_uploader(key="memory_log_file").set_value(("log.txt", raw, "text/plain")).run()
    assert_clean(app)
    app.file_uploader(key="memory_log_file").set_value(("log.txt", b"\xff\xfe\0", "text/plain")).run()
    assert not app.exception
    assert app.error[0].value == "the file is not UTF-8 text (byte 0)"


def test_the_sidebar_s_model_stands_in_for_one_that_is_not_here(page: Page) -> None:
    app = page("memory", model=MODEL)
    app.text_area(key="memory_log").set_value("vllm serve /data/mine\nModel loading took 14.99 GiB").run()
    app.selectbox(key="memory_log_gpu").set_value(GPU).run()
    assert "switch to the model of the sidebar" in app.error[0].value
    app.toggle(key="memory_log_model").set_value(True).run()
    assert_clean(app)
    assert any(f"**{MODEL} on {GPU}, TP 1" in markdown.value for markdown in app.markdown)


def test_every_field_has_help(page: Page) -> None:
    app = page("memory", model=MODEL)
    fields = [*app.number_input, *app.selectbox, *app.text_input, *app.text_area, *app.toggle]
    assert [field.label for field in fields if not field.help] == []


def test_equal_questions_are_answered_once() -> None:
    ask = MemoryAsk(MODEL, GPU, 1, 1, ep=False, formats=Formats(), engine=Engine())
    assert memory_answered(ask) is memory_answered(ask)
    other = memory_answered(ask._replace(engine=Engine(max_num_seqs=8)))
    assert other.sized.budget != memory_answered(ask).sized.budget


def test_downloads_hold_every_row() -> None:
    found = memory_answered(MemoryAsk(MODEL, GPU, 1, 1, ep=False, formats=Formats(), engine=Engine()))
    for tabled in (
        memory_tables.change_table(found.case, found.sized, found.changes),
        memory_tables.tp_table(found.by_tp),
        memory_tables.gpu_options_table(found.by_gpu),
    ):
        assert len(tabled.rows) == len(tabled.frame)
        assert {len(row) for row in tabled.rows} == {len(tabled.columns)}
