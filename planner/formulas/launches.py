"""What the host needs to send the kernels of one step to the GPU: no step is shorter, unless a CUDA graph holds it.

A captured graph is one launch. What no graph holds is sent kernel by kernel: eagerly, where every operator passes
through PyTorch's Python, or by compiled pieces, one between two attention operators, beyond the captured sizes.
Steps with prompts within them run captured pieces and send attention in between
(vllm/v1/cudagraph_dispatcher.py, dispatch; vllm/config/vllm.py, enforce_eager and FULL_AND_PIECEWISE).
"""

from typing import NamedTuple

import numpy as np

from planner.domain.deployment import Parallelism
from planner.domain.model import Model
from planner.formulas.arrays import FloatArray
from planner.formulas.cuda_graphs import layer_kernels
from planner.formulas.engine_defaults import EngineVersion

EAGER_KERNEL_S = 22e-6
"""Python and dispatch of one kernel of an eager engine (calibration/host/vllm-dispatch-0.32.0.csv, on a CPU)."""
COMPILED_KERNEL_S = 6.2e-6
"""The same from what the compiler wrote."""
PIECE_S = 19e-6
"""Going over from a compiled piece to the attention operators and on to the next piece."""
KERNELS_BETWEEN_GRAPHS = 4
"""Of a layer whose pieces are captured: cache write, attention, the sum of its splits, and the graph itself."""


class LaunchTime(NamedTuple):
    """Host time of one step's launches on one rank, stages of a pipeline summed, by how the step runs [s].

    Numbers, or arrays of one shape.
    """

    eager_s: FloatArray | float
    compiled_s: FloatArray | float
    """Beyond the captured sizes."""
    mixed_s: FloatArray | float
    """Within them, prompts in the step."""
    decode_s: FloatArray | float
    """Within them, all decoding."""


def launch_time(model: Model, parallelism: Parallelism, version: EngineVersion) -> LaunchTime:
    """Launches of the kernels that `cuda_graphs` counts; embedding, head and sampler are not counted.

    Before 0.11 decode steps ran captured pieces too (vllm/config/__init__.py of 0.10.2, cudagraph_mode).
    """
    kinds = range(len(model.layer_kinds))
    counts = [model.layer_pattern.count(kind) for kind in kinds]
    kernels = sum(counts[kind] * layer_kernels(model, kind, parallelism) for kind in kinds)
    pieces = sum(counts[kind] for kind in kinds if model.layer_kinds[kind].attention is not None)
    mixed_s = pieces * (PIECE_S + KERNELS_BETWEEN_GRAPHS * COMPILED_KERNEL_S)
    return LaunchTime(
        eager_s=kernels * EAGER_KERNEL_S,
        compiled_s=kernels * COMPILED_KERNEL_S + pieces * PIECE_S,
        mixed_s=mixed_s,
        decode_s=0.0 if version.since(11) else mixed_s,
    )


def launches_s(
    times: LaunchTime, tokens: FloatArray | float, captured_tokens: FloatArray | float, *, mixed: bool
) -> FloatArray:
    """Host time of the launches of a step of so many tokens, without padding [s, any shape].

    `captured_tokens`: the largest captured size, 0 for an eager engine; `mixed`: prompts are in the step.
    """
    within_s = times.mixed_s if mixed else times.decode_s
    larger_s = np.where(np.asarray(tokens) > captured_tokens, times.compiled_s, within_s)
    return np.where(np.asarray(captured_tokens) > 0.0, larger_s, times.eager_s)
