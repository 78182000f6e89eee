"""The caching allocator: by hand after its rules, and as properties."""

from hypothesis import given
from hypothesis import strategies as st

from planner.domain.units import MIB_BYTES
from planner.formulas.allocator import allocated_bytes, round_up

SIZES = st.lists(st.integers(1, 64 * MIB_BYTES), max_size=60)


def test_a_number_takes_a_block() -> None:
    assert allocated_bytes([4] * 7) == 7 * 512
    assert allocated_bytes([MIB_BYTES]) == MIB_BYTES


def test_large_tensors_come_in_steps_of_two_mib() -> None:
    # 501 MiB leave 1 MiB of 502, no more than 1 MiB: given away. 500.5 leave 1.5, which stay free.
    assert allocated_bytes([501 * MIB_BYTES]) == 502 * MIB_BYTES
    assert allocated_bytes([1001 * MIB_BYTES // 2]) == 1001 * MIB_BYTES // 2


def test_middling_tensors_share_segments() -> None:
    # 20 = 9.5 + 9.5 + 1: the second takes the last MiB with it.
    assert allocated_bytes([19 * MIB_BYTES // 2] * 2) == 20 * MIB_BYTES
    # 20 = 8 + 8 + 4, and 3.5 of the 4 leave half a MiB.
    assert allocated_bytes([8 * MIB_BYTES, 8 * MIB_BYTES, 7 * MIB_BYTES // 2]) == 20 * MIB_BYTES


def test_the_tightest_free_block_is_taken() -> None:
    # 8 leave 12 of 20, 12.5 leave 1.5 of 14; 1.25 take the 1.5 with the quarter that is left.
    quarter = MIB_BYTES // 4
    sizes = [32 * quarter, 50 * quarter, 5 * quarter]
    assert allocated_bytes(sizes) == sum(sizes) + quarter


@given(SIZES)
def test_no_tensor_is_given_more_than_a_mib(sizes: list[int]) -> None:
    counted = allocated_bytes(sizes)
    assert sum(sizes) <= counted <= sum(round_up(size, 512) + MIB_BYTES for size in sizes)


@given(SIZES, st.integers(1, 8))
def test_whole_steps_are_exact(sizes: list[int], steps: int) -> None:
    whole = [round_up(size, 2 * MIB_BYTES) + 10 * MIB_BYTES for size in sizes] * steps
    assert allocated_bytes(whole) == sum(whole)
