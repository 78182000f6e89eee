"""Replicas for the peak and how they pack, by hand and by property."""

from hypothesis import given
from hypothesis import strategies as st

from planner.domain.deployment import Parallelism
from planner.domain.plan import Reserve
from planner.serving.fleet import pack, replicas_for


def test_peak_with_headroom_and_a_spare() -> None:
    # 30 req/s at the peak; 10 a replica, of which 20 % stays free: 30 / 8 = 3.75 -> 4, and one more.
    reserve = Reserve(headroom_ratio=0.2, spare_replicas=1)
    assert replicas_for(30.0, 10.0, reserve) == 5


def test_a_load_that_just_fits_takes_no_extra_replica() -> None:
    assert replicas_for(16.0, 10.0, Reserve(headroom_ratio=0.2)) == 2


def test_three_replicas_of_four_gpus_strand_half_an_instance() -> None:
    fleet = pack(3, Parallelism(tp=4), 8)
    assert (fleet.instances, fleet.stranded_gpus) == (2, 4)


def test_two_stages_of_eight_take_two_instances() -> None:
    fleet = pack(1, Parallelism(tp=8, pp=2), 8)
    assert (fleet.instances, fleet.stranded_gpus) == (2, 0)


@given(
    replicas=st.integers(1, 500),
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.sampled_from([1, 2, 4]),
    gpus=st.sampled_from([8, 16]),
)
def test_every_gpu_is_used_or_stranded(replicas: int, tp: int, pp: int, gpus: int) -> None:
    fleet = pack(replicas, Parallelism(tp=tp, pp=pp), gpus)
    assert fleet.instances * gpus == replicas * tp * pp + fleet.stranded_gpus
    assert 0 <= fleet.stranded_gpus < gpus


@given(
    peak=st.floats(0.001, 1e5),
    capacity=st.floats(0.01, 1e3),
    headroom=st.floats(0, 0.9),
    more=st.floats(1, 10),
)
def test_more_traffic_never_needs_fewer_replicas(
    peak: float, capacity: float, headroom: float, more: float
) -> None:
    reserve = Reserve(headroom_ratio=headroom)
    small, large = replicas_for(peak, capacity, reserve), replicas_for(peak * more, capacity, reserve)
    assert small <= large
    assert small * capacity * (1 - headroom) >= peak * (1 - 1e-6)
