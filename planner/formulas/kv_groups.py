"""How vLLM puts layers with different caches on pages of one size and into groups that share a block pool.

Follows vllm/v1/core/kv_cache_utils.py (get_kv_cache_groups) and vllm/platforms/interface.py
(_align_hybrid_block_size) of vLLM 0.32.0 with its default, layer-outermost cache layout; in 0.33.0 the same
rules are in vllm/v1/core/kv_cache_planning.py.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from planner.formulas.kv_layers import CacheKind, LayerCache


class Page(NamedTuple):
    """One block of one layer."""

    kind: CacheKind
    block_tokens: int
    size_bytes: int
    content_bytes: int
    """What of it can hold something; the rest makes it as large as other pages."""
    window_tokens: int | None
    latent: bool
    shape: tuple[int, ...]


class PagedLayer(NamedTuple):
    """A decoder layer and the pages one of its caches is kept on."""

    layer: int
    page: Page


class Group(NamedTuple):
    """Layers that share one block table."""

    page: Page
    """Of each layer, apart from its size where layers of one kind differ in width."""
    members: tuple[PagedLayer, ...]

    def block_bytes(self, first: int, last: int) -> int:
        """What one block id takes in the decoder layers `[first, last)` [bytes]."""
        return sum(member.page.size_bytes for member in self._within(first, last))

    def content_bytes(self, first: int, last: int) -> int:
        """What of it can hold something [bytes]."""
        return sum(member.page.content_bytes for member in self._within(first, last))

    def _within(self, first: int, last: int) -> Iterator[PagedLayer]:
        return (member for member in self.members if first <= member.layer < last)


def page_layers(
    caches: Sequence[tuple[int, LayerCache]], block_size: int, state_step_tokens: int
) -> list[PagedLayer]:
    """Each cache of each decoder layer on pages of `block_size` tokens.

    In a hybrid the attention block grows in steps until its page holds a state, and states are padded to that
    page.
    """
    states = [cache.state_bytes for _, cache in caches if cache.kind is CacheKind.STATE]
    attention = [cache for _, cache in caches if cache.kind is not CacheKind.STATE]
    state_page_bytes = max(states, default=0)
    if states and attention:
        step_bytes = state_step_tokens * attention[0].bytes_per_token
        block_size = max(block_size, state_step_tokens * -(-state_page_bytes // step_bytes))
        state_page_bytes = block_size * attention[0].bytes_per_token
    return [PagedLayer(layer, _page(cache, block_size, state_page_bytes)) for layer, cache in caches]


def _page(cache: LayerCache, block_size: int, state_page_bytes: int) -> Page:
    content_bytes = cache.state_bytes or block_size * cache.bytes_per_token
    size_bytes = state_page_bytes if cache.kind is CacheKind.STATE else content_bytes
    return Page(
        cache.kind, block_size, size_bytes, content_bytes, cache.window_tokens, cache.latent, cache.shape
    )


def group_layers(paged: Sequence[PagedLayer], group_ratio: float) -> tuple[Group, ...]:
    """Groups of layers, each with its own block table, all drawing blocks of one size from one pool.

    Layers of one kind and scope are one group, whatever their widths. Otherwise pages are made equal, every
    kind is cut into groups of as many layers as the rarest kind has (or the commonest, where they are within
    `group_ratio` of each other), and layers are dealt out to them in turn.
    """
    if not paged:
        return ()
    if len({(p.page.kind, p.page.window_tokens, p.page.block_tokens) for p in paged}) == 1:
        return (Group(paged[0].page, tuple(paged)),)
    buckets: dict[Page, list[PagedLayer]] = {}
    for member in _with_equal_pages(paged):
        buckets.setdefault(member.page, []).append(member)
    rarest, commonest = min(map(len, buckets.values())), max(map(len, buckets.values()))
    group_size = commonest if commonest < rarest * group_ratio else rarest
    return tuple(
        Group(page, tuple(members[i::count]))
        for page, members in buckets.items()
        for count in (-(-len(members) // group_size),)
        for i in range(count)
    )


def _with_equal_pages(paged: Sequence[PagedLayer]) -> list[PagedLayer]:
    """Smaller pages take more tokens where that fills the largest exactly, else they are padded to it."""
    largest = max(member.page.size_bytes for member in paged)
    return [member._replace(page=_grown(member.page, largest)) for member in paged]


def _grown(page: Page, size_bytes: int) -> Page:
    if page.kind is CacheKind.STATE or size_bytes % page.size_bytes:
        return page._replace(size_bytes=size_bytes)
    ratio = size_bytes // page.size_bytes
    return page._replace(
        size_bytes=size_bytes,
        content_bytes=page.content_bytes * ratio,
        block_tokens=page.block_tokens * ratio,
    )
