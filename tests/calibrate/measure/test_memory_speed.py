"""How fast memory is read, timed on whatever machine this is."""

import numpy as np
import pytest

from planner.calibrate.measure import memory_speed
from planner.calibrate.measure.memory_speed import read_bytes_per_s


@pytest.mark.parametrize("threads", [1, 3])
def test_a_processor_reads_between_one_and_ten_thousand_gigabytes_a_second(threads: int) -> None:
    assert 1e9 <= read_bytes_per_s(threads) <= 1e13


def test_every_thread_reads_its_part_and_little_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    ones = np.ones

    def seen(count: int) -> object:
        sizes.append(8 * count)
        return ones(count)

    monkeypatch.setattr(np, "ones", seen)
    monkeypatch.setattr(memory_speed, "memory_bytes", lambda: (2**32, 2**32 - 10 * 2**20))
    read_bytes_per_s(4)
    # A tenth of the ten MiB that are free.
    assert len(sizes) == 4
    assert sum(sizes) == pytest.approx(2**20, rel=1e-4)
