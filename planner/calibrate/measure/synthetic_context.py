"""A KV connector for vLLM that declares the beginning of a prompt cached, and loads nothing.

So a decode step at a long context needs no prefill, and a prompt chunk no predecessors: the cache holds whatever its
memory held, which costs the kernels the same. vLLM has the like in
vllm/distributed/kv_transfer/kv_connector/v1/decode_bench_connector.py, for whole prompts only. vLLM imports this
module by name, in the scheduler's process and in each worker's; nothing else does.
"""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import base

CONTEXT_TOKENS = "context_tokens"
"""Of a request's `kv_transfer_params`: how many of its first tokens count as cached."""

_BASES: tuple[type, ...] = (base.KVConnectorBase_V1,)
if hasattr(base, "SupportsHMA"):
    _BASES += (base.SupportsHMA,)
_Connector: Any = type("_Connector", _BASES, {})
"""Releases before 0.12 know no `SupportsHMA`: there a connector turns the hybrid KV cache manager off."""


class _Nothing(base.KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler's side has to tell the workers."""


class SyntheticContext(_Connector):  # type: ignore[misc]
    """Claims `context_tokens` of a prompt, all but its last token at most."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens of the prompt beyond the computed ones that are declared cached; loaded at once."""
        declared = int((request.kv_transfer_params or {}).get(CONTEXT_TOKENS, 0))
        return max(0, min(declared, request.num_tokens - 1) - num_computed_tokens), False

    def build_connector_meta(self, scheduler_output: Any) -> base.KVConnectorMetadata:  # noqa: ARG002
        """Nothing to tell."""
        return _Nothing()

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, None]:  # noqa: ARG002
        """Its blocks are free at once."""
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, None]:  # noqa: ARG002
        """Its blocks are free at once, whatever their group."""
        return False, None

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Nothing is loaded into them."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is loaded."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is awaited."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is awaited."""
