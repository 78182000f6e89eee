"""How many replicas the peak needs, and how they pack into instances."""

import math

from planner.domain.deployment import Parallelism
from planner.domain.plan import Fleet, Reserve


def replicas_for(peak_requests_per_s: float, replica_requests_per_s: float, reserve: Reserve) -> int:
    """Replicas that carry the peak within the head-room, spares included.

    >>> replicas_for(15.0, 6.25, Reserve(headroom_ratio=0.2, spare_replicas=1))
    4
    """
    usable = replica_requests_per_s * (1.0 - reserve.headroom_ratio)
    return max(1, math.ceil(peak_requests_per_s / usable - 1e-9)) + reserve.spare_replicas


def stages_per_instance(gpus_per_instance: int, tp: int) -> int:
    """Pipeline stages (tensor-parallel groups) that one instance holds; a group never leaves its instance."""
    return gpus_per_instance // tp


def pack(replicas: int, parallelism: Parallelism, gpus_per_instance: int) -> Fleet:
    """Replicas into whole instances; GPUs that no tensor-parallel group can use are stranded.

    >>> pack(5, Parallelism(tp=4), 8).stranded_gpus
    4
    """
    stages = replicas * parallelism.pp
    instances = -(-stages // stages_per_instance(gpus_per_instance, parallelism.tp))
    used_gpus = replicas * parallelism.gpus
    return Fleet(
        replicas=replicas, instances=instances, stranded_gpus=instances * gpus_per_instance - used_gpus
    )
