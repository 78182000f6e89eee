"""The reader of data/: names, joins, the user's own prices, and what it refuses."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.load import (
    apply_price_overrides,
    find_gpu,
    find_preset,
    hidden_offers,
    instances,
    join,
    offers,
    prices,
)
from planner.catalog.nearest import fold
from planner.catalog.paths import data_dir
from planner.catalog.read import read_gpus, read_instances, read_presets, read_prices
from planner.domain.base import InputError
from planner.domain.dtypes import ComputeDtype
from planner.domain.hardware import Interconnect, Offer, Price, Purchase
from planner.domain.units import GIB_BYTES


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB"),
        ("nvidia-h100-80gb", "H100-SXM-80GB"),
        ("h100_sxm", "H100-SXM-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"),
        ("a100-80gb", "A100-SXM-80GB"),
        ("a100_sxm", "A100-SXM-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("NVIDIA H200", "H200-SXM-141GB"),
        ("h200_sxm", "H200-SXM-141GB"),
        ("NVIDIA H200 NVL", "H200-NVL"),
        ("b200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", "L40"),
        ("Tesla T4", "T4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
        ("rtx-4090", "RTX 4090"),
    ],
)
def test_a_gpu_is_found_by_nvml_name_and_short_name(text: str, name: str) -> None:
    assert find_gpu(text).name == name
    assert find_gpu(f"  {text.upper()} ").name == name


def test_a_name_that_fits_several_gpus_is_refused_with_all_of_them() -> None:
    with pytest.raises(InputError, match="A100-SXM-40GB or A100-SXM-80GB or A100-PCIe-40GB"):
        find_gpu("a100")


@pytest.mark.parametrize("text", ["", "H1OO", "RTX", "💥", "x" * 10_000])
def test_an_unknown_gpu_is_one_line_with_suggestions(text: str) -> None:
    with pytest.raises(InputError, match=r"^unknown GPU .*(did you mean|known: )") as refused:
        find_gpu(text)
    assert "\n" not in str(refused.value)


def test_units_become_bytes_and_flop_per_second() -> None:
    h100 = find_gpu("H100-SXM-80GB")
    assert h100.memory_bytes == round(79.19 * GIB_BYTES)
    assert h100.memory_bandwidth_bytes_per_s == 3.35e12
    assert h100.nvlink_bytes_per_s == 900e9
    assert h100.peak_flop_per_s[ComputeDtype.BF16] == pytest.approx(989.4e12)
    assert h100.peak_flop_per_s[ComputeDtype.FP8] == pytest.approx(1978.9e12)
    assert ComputeDtype.FP4 not in h100.peak_flop_per_s
    assert ComputeDtype.BF16 not in find_gpu("V100").peak_flop_per_s


def test_every_offer_is_its_instance_at_its_price() -> None:
    assert len(offers(include_untrusted=True)) == len(prices())
    for offer in offers(include_untrusted=True):
        assert (offer.instance.provider, offer.instance.instance_type) == (
            offer.price.provider,
            offer.price.instance_type,
        )


def test_undated_and_low_confidence_prices_are_hidden_unless_asked_for() -> None:
    shown, everything = offers(), offers(include_untrusted=True)
    assert all(offer.price.is_trusted for offer in shown)
    hidden = set(everything) - set(shown)
    assert {offer.price.provider for offer in hidden} >= {"oci", "lambda", "coreweave"}
    assert all(not offer.price.as_of or offer.price.confidence == "low" for offer in hidden)


def test_hidden_offers_are_those_that_only_the_option_shows() -> None:
    shown, everything = offers(), offers(include_untrusted=True)
    assert hidden_offers() == len(everything) - len(shown) > 0
    for provider in {offer.price.provider for offer in everything}:
        mine = [[o for o in found if o.price.provider == provider] for found in (everything, shown)]
        assert hidden_offers((provider,)) == len(mine[0]) - len(mine[1])
    assert hidden_offers(("oci", "lambda")) == hidden_offers(("oci",)) + hidden_offers(("lambda",))
    assert hidden_offers(("nobody",)) == 0


def test_what_is_shown_by_default_is_what_the_documents_say() -> None:
    assert {offer.price.provider for offer in offers()} == {"aws", "azure", "gcp", "crusoe"}
    assert len({offer.price.provider for offer in offers(include_untrusted=True)}) == 12


def test_crusoe_rents_its_infiniband_machines_whole() -> None:
    mine = {offer.instance.instance_type: offer for offer in offers() if offer.price.purchase == "on_demand"}
    for name, usd_per_gpu_hour in (("h200-141gb-sxm-ib.8x", 4.29), ("mi300x-192gb-ib.8x", 3.45)):
        assert mine[name].instance.gpu_count == 8
        assert mine[name].price.usd_per_hour == pytest.approx(8 * usd_per_gpu_hour)
    sizes = {shape.instance_type: shape.gpu_count for shape in instances() if shape.provider == "crusoe"}
    assert sizes == {name: int(name.rpartition(".")[2].removesuffix("x")) for name in sizes}


def test_a_price_without_its_instance_is_refused() -> None:
    with pytest.raises(InputError, match="no known instance"):
        join(instances()[1:], prices()[:1])


def test_a_preset_is_found_whatever_its_separators_and_suggested_when_not() -> None:
    assert find_preset("Code-Completion") == find_preset("code_completion")
    with pytest.raises(InputError, match="did you mean summarisation"):
        find_preset("summarization")


HEADER = "provider,instance_type,region,purchase,usd_per_hour,discount_ratio,gpu,gpu_count,interconnect\n"


def overridden(folder: Path, *rows: str) -> tuple[Offer, ...]:
    path = folder / "mine.csv"
    path.write_text(HEADER + "\n".join(rows), encoding="utf-8")
    return apply_price_overrides(offers(), path)


def priced(found: tuple[Offer, ...], instance_type: str, purchase: Purchase) -> list[Price]:
    prices_of = [offer.price for offer in found if offer.price.instance_type == instance_type]
    return [price for price in prices_of if price.purchase is purchase]


def test_an_override_replaces_one_price_and_leaves_the_others(tmp_path: Path) -> None:
    found = overridden(tmp_path, "AWS,p5.48xlarge,us-east-1,on_demand,40,,,,")
    (mine,) = priced(found, "p5.48xlarge", Purchase.ON_DEMAND)
    assert (mine.usd_per_hour, mine.source, mine.is_trusted) == (40, "mine.csv:2", True)
    assert len(found) == len(offers())
    assert set(found) - set(offers()) == {offer for offer in found if offer.price is mine}


def test_an_empty_region_means_every_region_it_is_offered_in(tmp_path: Path) -> None:
    catalog = priced(offers(), "a3-highgpu-8g", Purchase.RESERVED_3Y)
    found = priced(
        overridden(tmp_path, "gcp,a3-highgpu-8g,*,reserved_3y,30,,,,"), "a3-highgpu-8g", Purchase.RESERVED_3Y
    )
    assert {price.region for price in found} == {price.region for price in catalog}
    assert {price.usd_per_hour for price in found} == {30}


def test_a_commitment_the_catalog_lacks_can_be_added(tmp_path: Path) -> None:
    assert priced(offers(), "p5.48xlarge", Purchase.RESERVED_1Y) == []
    found = overridden(tmp_path, "aws,p5.48xlarge,,reserved_1y,,0.4,,,")
    (mine,) = priced(found, "p5.48xlarge", Purchase.RESERVED_1Y)
    (on_demand,) = priced(offers(), "p5.48xlarge", Purchase.ON_DEMAND)
    assert mine.usd_per_hour == pytest.approx(on_demand.usd_per_hour * 0.6)


def test_a_discount_on_every_type_of_a_provider(tmp_path: Path) -> None:
    before = {_key(offer): offer.price.usd_per_hour for offer in offers()}
    for offer in overridden(tmp_path, "azure,*,,,,0.1,,,"):
        share = 0.9 if offer.price.provider == "azure" else 1.0
        assert offer.price.usd_per_hour == pytest.approx(share * before[_key(offer)])


def _key(offer: Offer) -> tuple[str, ...]:
    price = offer.price
    return price.provider, price.instance_type, price.region, price.purchase


def test_a_hidden_instance_becomes_an_offer_at_the_users_price(tmp_path: Path) -> None:
    (mine,) = priced(
        overridden(tmp_path, "lambda,gpu_8x_h100_sxm5,,,20,,,,"), "gpu_8x_h100_sxm5", Purchase.ON_DEMAND
    )
    assert (mine.usd_per_hour, mine.region) == (20, "all")


def test_a_machine_of_the_users_own_is_added_and_later_rows_may_speak_of_it(tmp_path: Path) -> None:
    found = overridden(
        tmp_path,
        "onprem,dgx,rack1,,18,,h100,8,nvswitch",
        "onprem,dgx,rack1,spot,,0.5,,,",
        "onprem,one,,,2,,l40s,1,",
    )
    added = {_key(offer): offer for offer in found if offer.price.provider == "onprem"}
    dgx = added["onprem", "dgx", "rack1", "on_demand"].instance
    assert (dgx.gpu, dgx.gpu_count, dgx.interconnect) == ("H100-SXM-80GB", 8, Interconnect.NVSWITCH)
    assert added["onprem", "dgx", "rack1", "spot"].price.usd_per_hour == 9
    assert added["onprem", "one", "all", "on_demand"].instance.interconnect is Interconnect.NONE


def test_thousands_of_own_machines_are_read_in_seconds(tmp_path: Path) -> None:
    """Every row once took a scan of all rows before it: 49 s for these."""
    started = time.process_time()
    found = overridden(tmp_path, *(f"onprem,box{index},,,2,,l40s,1," for index in range(20_000)))
    assert len(found) == len(offers()) + 20_000
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("aws,p5.48xlarge,,,,,,,", "usd_per_hour"),
        ("aws,p5.48xlarge,,,40,0.1,,,", "one of the two"),
        ("aws,p5.48xlarge,,,-1,,,,", "finite number above 0"),
        ("aws,p5.48xlarge,,,0,,,,", "finite number above 0"),
        ("aws,p5.48xlarge,,,nan,,,,", "finite number above 0"),
        ("aws,p5.48xlarge,,,1e999,,,,", "finite number above 0"),
        ("aws,p5.48xlarge,,,cheap,,,,", "finite number above 0"),
        ("aws,p5.48xlarge,,,1_0,,,,", "finite number above 0"),
        ("aws,p5.48xlarge,,,1000001,,,,", "a price above 0 up to 1,000,000"),
        ("onprem,dgx,,,18,,h100,1025,", "a whole number from 1 to 1024"),
        ("aws,p5.48xlarge,,,,1,,,", "below 1"),
        ("aws,p5.48xlarge,,reserved,1,,,,", "on_demand, reserved_1y, reserved_3y, spot"),
        ("aws,*,,,1,,,,", "discount_ratio only"),
        ("awz,p5.48xlarge,,,1,,,,", "did you mean aws"),
        ("aws,p5.48xlrge,,,1,,,,", "did you mean p5.48xlarge"),
        ("mine,box,,,1,,h1000,8,", "column gpu: unknown GPU"),
        ("mine,box,,,1,,h100,1.5,", "whole number above 0"),
        ("mine,box,,,1,,h100,8,wifi", "nvswitch"),
        ("lambda,gpu_1x_a10,,,,0.5,,,", "a catalog price"),
        (",p5.48xlarge,,,1,,,,", "column provider"),
        ("aws,p5.48xlarge,,,1", "5 cells where the header has 9 columns"),
    ],
)
def test_a_bad_override_is_refused_by_file_line_and_legal_values(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        overridden(tmp_path, "aws,p5.48xlarge,,,39,,,,", row)
    assert str(refused.value).startswith(f"{tmp_path / 'mine.csv'}:3: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


# Malformed tables


def test_a_misspelt_column_is_refused_and_the_right_one_suggested(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(
        "provider,instance_type,regoin,usd_per_hour\naws,p5.48xlarge,us-east-1,1\n", encoding="utf-8"
    )
    with pytest.raises(InputError, match='unknown column "regoin"; did you mean region'):
        apply_price_overrides(offers(), path)


def edited(folder: Path, table: str, old: str, new: str) -> Path:
    text = (data_dir() / table).read_text(encoding="utf-8")
    assert old in text
    path = folder / table
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("A10G|A10G-24GB,22.06,yes,600", "A10G|A10G-24GB,nan,yes,600", 'column memory_gib is "nan"'),
        ("A10G|A10G-24GB,22.06,yes,600", "A10G|A10G-24GB,22.06,maybe,600", "yes or no is needed"),
        ("A10G|A10G-24GB,22.06,yes,600", "A10G|A10G-24GB,22.06,yes,-600", "memory_bandwidth_gb_per_s"),
        ("A10G|A10G-24GB,22.06,yes,600", "A10G|A10G-24GB,22.06,yes", "24 columns"),
        ("2026-11,medium", "November,medium", "an ISO date"),
        ("2026-11,medium", "2026-11,sure", "high, medium, low"),
        ("memory_gib", "memory_gb", "unknown column"),
    ],
)
def test_a_malformed_gpu_row_names_file_line_and_column(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    with pytest.raises(InputError) as refused:
        read_gpus(edited(tmp_path, "gpus.csv", old, new))
    assert str(refused.value).startswith(f"{tmp_path / 'gpus.csv'}:")
    assert said in str(refused.value)


def test_malformed_instances_and_prices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"instances\.csv:2: column interconnect"):
        read_instances(edited(tmp_path, "instances.csv", ",1,none,8,61", ",1,string,8,61"))
    with pytest.raises(InputError, match=r"prices\.csv:2: column usd_per_hour"):
        read_prices(edited(tmp_path, "prices.csv", "on_demand,3.06,", "on_demand,inf,"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "column name is missing"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'name,vendor\n"open', "name"),
        (b"name,name\n", "column vendor is missing"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "gpus.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        read_gpus(path)
    assert "\n" not in str(refused.value)


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_gpus(tmp_path / "nowhere.csv")
    huge = tmp_path / "huge.csv"
    with huge.open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(InputError, match="larger than"):
        read_gpus(huge)


@given(st.text(max_size=200))
def test_no_text_makes_the_price_reader_fail_otherwise_than_by_input_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("prices") / "mine.csv"
    path.write_text("provider,instance_type,usd_per_hour\n" + text, encoding="utf-8", errors="replace")
    message = ""
    try:
        assert len(apply_price_overrides(offers(), path)) >= len(offers())
    except InputError as refused:
        message = str(refused)
    assert len(message.splitlines()) <= 1


def test_a_cell_of_several_lines_is_quoted_on_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='column usd_per_hour is "1 2"') as refused:
        overridden(tmp_path, 'aws,p5.48xlarge,,,"1\n2",,,,')
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = ", "not a readable TOML file"),
        ('title = "x"', "Field required"),
        ("input_tokens = nan", "finite number"),
        ("input_tokens = inf", "finite number"),
    ],
)
def test_a_malformed_preset_names_its_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "broken.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said) as refused:
        read_presets(tmp_path)
    assert "broken.toml" in str(refused.value)


@given(st.text(alphabet="Aa1 -_.é", max_size=12))
def test_folding_forgets_case_and_separators_and_nothing_else(text: str) -> None:
    assert fold(fold(text)) == fold(text)
    assert fold(text.upper()) == fold(text)
    assert fold(text.replace("-", "_")) == fold(text)
