"""What the settings keep on the card beside the model."""

import pytest

from planner.assemble.question import facts_for
from planner.catalog.load import find_gpu
from planner.catalog.models import load_model
from planner.domain.base import InputError
from planner.domain.deployment import EngineSettings, LoraSlots, MemoryBudget, Parallelism, Speculation
from planner.domain.dtypes import KvDtype
from planner.formulas.draft import draft_bytes
from planner.formulas.load_target import load_target
from planner.formulas.lora import lora_bytes
from planner.planning.predict import Case, predict
from planner.planning.sizing import check_extras

LLAMA = load_model("meta-llama/Llama-3.1-8B")
H100 = find_gpu("H100-SXM")
TP2 = Parallelism(tp=2)
PLAIN = EngineSettings(
    max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=8192, gpu_memory_utilization=0.9
)
LORA = LoraSlots(max_loras=4, max_lora_rank=64)
SPECULATION = Speculation(draft=load_model("meta-llama/Llama-3.2-1B"), num_speculative_tokens=4)


def budget(engine: EngineSettings) -> MemoryBudget:
    case = Case(LLAMA, H100, TP2, KvDtype.AUTO, engine, None)
    found = predict([case], facts_for())[0].memory
    assert found is not None
    return found


def test_adapter_slots_come_off_the_cache() -> None:
    plain, slots = budget(PLAIN), budget(PLAIN.model_copy(update={"lora": LORA}))
    # Beside the factors: 48 bytes a token and 24 a sequence that say who uses which.
    assert slots.lora_bytes == lora_bytes(LLAMA, TP2, LORA) + 8192 * 48 + 256 * 24
    assert plain.lora_bytes == 0
    assert slots.weights_bytes == plain.weights_bytes
    assert plain.kv_cache_bytes - slots.kv_cache_bytes == slots.lora_bytes
    assert slots.loaded_bytes == slots.weights_bytes + slots.lora_bytes


def test_a_draft_model_comes_off_the_cache() -> None:
    plain, drafting = budget(PLAIN), budget(PLAIN.model_copy(update={"speculation": SPECULATION}))
    assert drafting.draft_bytes == draft_bytes(SPECULATION, TP2, load_target(H100, "0.26.0", 8192))
    assert plain.kv_cache_bytes - drafting.kv_cache_bytes >= drafting.draft_bytes > 2**30
    # Its layers are cached as well.
    assert drafting.kv_bytes_per_token > plain.kv_bytes_per_token


def test_what_does_not_fit_names_what_is_loaded() -> None:
    engine = PLAIN.model_copy(
        update={"lora": LoraSlots(max_loras=1024, max_lora_rank=256), "speculation": SPECULATION}
    )
    refusal = predict([Case(LLAMA, H100, TP2, KvDtype.AUTO, engine, None)], facts_for())[0].refusal
    assert refusal is not None
    assert refusal.reason.startswith("weights + draft model + adapters ")


def test_settings_that_vllm_refuses() -> None:
    check_extras(LLAMA, TP2, PLAIN.model_copy(update={"lora": LORA, "speculation": SPECULATION}))
    with pytest.raises(InputError, match="max_lora_rank must be one of"):
        check_extras(LLAMA, TP2, PLAIN.model_copy(update={"lora": LoraSlots(max_lora_rank=9)}))
    with pytest.raises(InputError, match="takes no draft models"):
        check_extras(
            LLAMA, TP2, PLAIN.model_copy(update={"speculation": SPECULATION, "engine_version": "0.14.1"})
        )
    with pytest.raises(InputError, match="does not offload"):
        check_extras(
            LLAMA, TP2, PLAIN.model_copy(update={"kv_offload_bytes": 2**30, "engine_version": "0.12.0"})
        )
