"""Every page, run as Streamlit runs it, without a browser."""

import json
from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from planner.catalog.load import find_preset, gpus, presets
from planner.catalog.models import bundled_models
from planner.domain.evidence import Basis
from planner.domain.plan import Supply
from planner.ui import inputs

Page = Callable[..., AppTest]


def assert_clean(app: AppTest) -> None:
    assert not app.exception
    assert not app.error


def metrics(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


@pytest.mark.parametrize("view", ["size", "compare", "catalog"])
def test_every_page_opens(page: Page, view: str) -> None:
    app = page(view)
    assert_clean(app)
    assert app.dataframe


def test_size_shows_the_answer(page: Page) -> None:
    app = page()
    assert list(metrics(app)) == [
        "Cost a month",
        "$ per M tokens",
        "TTFT p95",
        "TPOT p95",
        "Capacity, req/s",
        "Binds",
    ]
    assert metrics(app)["Cost a month"].startswith("≈ $")
    table = app.dataframe[0].value
    assert 1 <= len(table) <= 5
    assert table["$/month"].is_monotonic_increasing
    assert any(code.value.startswith("vllm serve meta-llama/Llama-3.1-70B ") for code in app.code)
    assert {button.label for button in app.get("download_button")} == {"CSV"}


def test_every_field_has_help(page: Page) -> None:
    app = page()
    fields = [
        *app.number_input,
        *app.selectbox,
        *app.multiselect,
        *app.text_input,
        *app.text_area,
        *app.toggle,
    ]
    assert len(fields) >= 20
    assert [field.label for field in fields if not field.help] == []


def test_the_url_seeds_the_question(page: Page) -> None:
    app = page(requests_per_s="40", model="Qwen/Qwen3-32B", gpu=["H100-SXM-80GB", "A100-SXM-80GB"])
    assert_clean(app)
    assert app.number_input(key="requests_per_s").value == 40
    assert any("vllm serve Qwen/Qwen3-32B" in code.value for code in app.code)
    assert set(app.dataframe[0].value["GPU"]) <= {"H100-SXM-80GB", "A100-SXM-80GB"}


def test_only_what_differs_from_the_defaults_stays_in_the_url(page: Page) -> None:
    usual = find_preset(inputs.DEFAULT_PRESET)
    rate, depth = str(usual.requests_per_s), str(Supply().max_pp)
    app = page(requests_per_s=rate, input_tokens="2000", preset=usual.name, max_pp=depth)
    assert dict(app.query_params) == {"input_tokens": "2000"}
    assert metrics(page(**app.query_params)) == metrics(app)


def test_a_preset_in_the_url_brings_its_own_traffic(page: Page) -> None:
    app = page(preset="rag", requests_per_s="7")
    rag = find_preset("rag")
    assert app.number_input(key="input_tokens").value == rag.input_tokens
    assert app.number_input(key="ttft_p95_ms").value == rag.ttft_p95_ms
    assert app.number_input(key="requests_per_s").value == 7


def test_values_that_mean_nothing_in_the_url_fall_back_to_the_defaults(page: Page) -> None:
    app = page(preset="nonsense", requests_per_s="many", gpu="abacus", max_tp="-3", purchase="barter")
    assert_clean(app)
    assert app.selectbox(key="preset").value == inputs.DEFAULT_PRESET
    assert app.number_input(key="requests_per_s").value == find_preset(inputs.DEFAULT_PRESET).requests_per_s


@pytest.mark.parametrize("name", [preset.name for preset in presets()])
def test_choosing_a_preset_fills_the_fields_and_answers(page: Page, name: str) -> None:
    app = page(requests_per_s="1", model="meta-llama/Llama-3.1-8B")
    app.selectbox(key="preset").set_value(name).run()
    assert not app.exception
    for key, value in inputs.preset_fields(find_preset(name)).items():
        changed = app.number_input(key=key).value
        assert changed == (value if name != inputs.DEFAULT_PRESET or key != "requests_per_s" else 1)
    assert app.metric


def test_the_cost_shows_its_change_against_the_answer_before(page: Page) -> None:
    app = page()
    assert app.metric[0].delta == ""
    app.number_input(key="requests_per_s").set_value(100.0).run()
    assert app.metric[0].delta.startswith("+$")


def test_what_is_paid_today_gives_a_saving(page: Page) -> None:
    app = page(previous_usd_per_month="9000000")
    assert any("against what you pay today" in markdown.value for markdown in app.markdown)


def test_the_basis_says_what_was_measured(page: Page) -> None:
    badges = [markdown.value for markdown in page().markdown if ":material/science:" in markdown.value]
    # The preset's model was never run; the GPU of its cheapest plan was or was not.
    assert len(badges) == 1
    assert any(basis.value in badges[0] for basis in (Basis.CALIBRATED, Basis.OPERATORS, Basis.TRANSFERRED))


def test_nothing_fits_names_what_to_relax(page: Page) -> None:
    app = page(tpot_p95_ms="0.01")
    assert not app.exception
    assert app.warning[0].value.startswith("Nothing on offer")
    assert any("Promise a TPOT of more than" in markdown.value for markdown in app.markdown)
    assert len(app.dataframe[0].value) > 10
    compare = page("compare", tpot_p95_ms="0.01")
    assert not compare.exception
    assert compare.info


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"requests_per_s": "0"}, "requests_per_s must be greater than or equal to 0.000001"),
        ({"peak_ratio": "0.5"}, "peak_ratio must be greater than or equal to 1"),
        ({"input_tokens": "99999999999"}, "input_tokens must be less than"),
        ({"model": "no-such-model"}, "neither a path nor a bundled name"),
        ({"engine_version": "1999"}, "engine_version"),
        ({"model": "/no/such/config.json"}, "neither a path nor a bundled name"),
    ],
)
@pytest.mark.parametrize("view", ["size", "compare"])
def test_bad_input_is_one_clear_line(page: Page, view: str, query: dict[str, str], said: str) -> None:
    app = page(view, **query)
    assert not app.exception
    assert len(app.error) == 1
    assert said in app.error[0].value
    assert "\n" not in app.error[0].value


def test_the_catalog_opens_whatever_the_sidebar_says(page: Page) -> None:
    app = page("catalog", model="no-such-model")
    assert_clean(app)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "pasted.json"),
        ("[]", "pasted.json"),
        ('{"architectures": ["NoSuchForCausalLM"]}', "NoSuchForCausalLM"),
        ('{"architectures": ["LlamaForCausalLM"], "hidden_size": -1}', "pasted.json"),
    ],
)
def test_a_broken_pasted_config_is_one_clear_line(page: Page, text: str, said: str) -> None:
    app = page()
    app.text_area(key="config_paste").set_value(text).run()
    assert not app.exception
    assert len(app.error) == 1
    assert said in app.error[0].value
    assert "/tmp" not in app.error[0].value


def test_a_pasted_config_takes_the_place_of_the_model(page: Page) -> None:
    small = next(model for model in bundled_models() if model.name == "Qwen/Qwen3-8B")
    config = json.loads(small.path.read_text())
    app = page()
    before = metrics(app)["Cost a month"]
    app.text_area(key="config_paste").set_value(json.dumps(config)).run()
    assert_clean(app)
    assert metrics(app)["Cost a month"] != before
    assert any(code.value.startswith("vllm serve path/to/checkpoint ") for code in app.code)


def test_own_prices_change_the_answer(page: Page) -> None:
    app = page()
    mine = b"provider,instance_type,usd_per_hour,gpu,gpu_count,interconnect\nmine,box,0.01,H100-SXM-80GB,8,nvswitch\n"
    app.file_uploader(key="prices_upload").set_value(("mine.csv", mine, "text/csv")).run()
    assert_clean(app)
    assert app.dataframe[0].value["Where"][0] == "mine all"
    app.file_uploader(key="prices_upload").set_value(("mine.csv", b"provider\nmine\n", "text/csv")).run()
    assert not app.exception
    assert "your-prices.csv" in app.error[0].value


def test_compare_sets_the_ends_of_the_front_side_by_side(page: Page) -> None:
    app = page("compare")
    assert len(app.get("plotly_chart")) == 2
    side = app.dataframe[1].value
    assert next(iter(side.columns)) == "A"
    assert side.loc["$ per month", "A"].startswith("$")


def test_the_catalog_lists_the_facts_with_their_sources(page: Page) -> None:
    app = page("catalog")
    tables = [frame.value for frame in app.dataframe]
    by_columns = {table.columns[0]: table for table in tables}
    assert list(by_columns["GPU"]["GPU"]) == [gpu.name for gpu in gpus()]
    assert len(by_columns["Model"]) == len(bundled_models())
    assert len(by_columns["Preset"]) == len(presets())
    for table in by_columns.values():
        assert table["Source"].str.len().min() > 0
    assert any("Every row passes" in success.value for success in app.success)


def test_the_price_filter_narrows_the_table(page: Page) -> None:
    app = page("catalog")
    app.multiselect(key="catalog_provider").set_value(["aws"]).run()
    prices = next(frame.value for frame in app.dataframe if frame.value.columns[0] == "Provider")
    assert set(prices["Provider"]) == {"aws"}
