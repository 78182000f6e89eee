"""Times Vidur's own loop on a trace; runs with the interpreter that has `vidur` (0.0.26), not with ours.

    PYTHON benchmarks/vidur_run.py TRACE.csv STEP_S

TRACE.csv has Vidur's columns: Date, Time [s], PromptTokenCount, CompletionTokenCount. Vidur predicts kernel times with
random forests that it trains at first use on tables from a model hub; here each step takes STEP_S, at no cost to it, so
that it can only look faster than it is, and needs no hub. Its chunked-prefill scheduler runs; metrics, traces and plots
are off. Prints the CPU seconds of one run.
"""

import json
import logging
import os
import sys
import tempfile
import time
from typing import Any

BATCHED_TOKENS, SEQUENCES, LONGEST_TOKENS = 8192, 1024, 16_384
TIMES = 14
"""Kernel times that Vidur adds up to a layer's."""


class FixedTime:
    """Stands in for Vidur's predictor of step times."""

    def __init__(self, execution_time: Any) -> None:
        self._execution_time = execution_time

    def get_execution_time(self, _batch: Any, _stage: int) -> Any:
        """The same for every batch."""
        return self._execution_time


def loop_s(trace: str, step_s: float) -> float:
    """CPU time of one simulation, without reading the trace [s]."""
    from vidur._native.entities import ExecutionTime
    from vidur.config import config as settings
    from vidur.execution_time_predictor import ExecutionTimePredictorRegistry
    from vidur.simulator import Simulator
    from vidur.types import ExecutionTimePredictorType

    logging.disable(logging.CRITICAL)
    one_layer = ExecutionTime(1, step_s * 1e3, *[0.0] * (TIMES - 1))
    kind = ExecutionTimePredictorType.RANDOM_FORREST
    ExecutionTimePredictorRegistry.unregister(kind)
    ExecutionTimePredictorRegistry.register(kind, lambda **_known: FixedTime(one_layer))
    with tempfile.TemporaryDirectory() as folder:
        simulator = Simulator(
            settings.SimulationConfig(
                cluster_config=settings.ClusterConfig(
                    num_replicas=1,
                    replica_config=settings.ReplicaConfig(num_pipeline_stages=1),
                    replica_scheduler_config=settings.SarathiSchedulerConfig(
                        batch_size_cap=SEQUENCES, chunk_size=BATCHED_TOKENS
                    ),
                ),
                request_generator_config=settings.TraceRequestGeneratorConfig(
                    trace_file=trace,
                    date="all",
                    prefill_scale_factor=1.0,
                    time_scale_factor=1.0,
                    max_tokens=LONGEST_TOKENS,
                ),
                metrics_config=settings.MetricsConfig(
                    write_metrics=False, enable_chrome_trace=False, store_plots=False, output_dir=folder
                ),
            )
        )
        start = time.process_time()
        simulator.run()
        return time.process_time() - start


if __name__ == "__main__":
    os.environ["WANDB_MODE"] = "disabled"
    print(json.dumps(loop_s(sys.argv[1], float(sys.argv[2]))))
