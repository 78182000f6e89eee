from planner.assemble.question import facts_for
from planner.ui.uploads import PRICE_TEMPLATE, is_kept, kept, without_folder


def test_equal_content_is_one_file_and_other_content_another() -> None:
    first, again, other = kept(b"{}", "pasted.json"), kept(b"{}", "pasted.json"), kept(b"[]", "pasted.json")
    assert first == again
    assert first != other
    assert first.read_bytes() == b"{}"
    assert is_kept(str(first))
    assert not is_kept("meta-llama/Llama-3.1-8B")


def test_messages_name_the_file_without_its_folder() -> None:
    file = kept(b"{", "pasted.json")
    assert without_folder(f"{file}: not JSON; see /etc/hosts") == "pasted.json: not JSON; see /etc/hosts"


def test_the_price_template_can_be_uploaded_as_it_is() -> None:
    mine = facts_for(prices=kept(PRICE_TEMPLATE.encode(), "your-prices.csv")).offers
    catalog = facts_for().offers
    changed = {offer.instance.provider for offer in set(mine) - set(catalog)}
    assert changed == {"aws", "gcp", "our-datacentre"}
