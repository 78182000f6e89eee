"""Results made up in the true form of tools that did not run here; their figures say nothing of any engine."""

import json
from pathlib import Path
from typing import Any

PERCENTILES = ("p001", "p01", "p05", "p10", "p25", "p75", "p90", "p95", "p99", "p999")
RESULTS = Path(__file__).parent / "results"


def stored(name: str) -> Any:
    """A result that a real program wrote."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def write(path: Path, document: Any) -> Path:
    """A document as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def distribution(mean: float, deviation: float = 0.0) -> dict[str, Any]:
    """guidellm 0.2: DistributionSummary in StatusDistributionSummary (objects/statistics.py)."""
    percentiles = dict.fromkeys(PERCENTILES, mean)
    one = {"mean": mean, "median": mean, "std_dev": deviation, "min": mean, "max": mean, "count": 10}
    return {status: one | {"percentiles": percentiles} for status in ("successful", "total")}


def guidellm_02(*strategies: dict[str, Any]) -> dict[str, Any]:
    """guidellm 0.2 and 0.3: GenerativeBenchmarksReport (benchmark/output.py), a benchmark a strategy."""
    return {
        "benchmarks": [
            {
                "type_": "generative_benchmark",
                "args": {"profile": {"type_": "sweep"}, "strategy_index": index, "strategy": strategy},
                "run_stats": {
                    "requests_made": {"successful": 40, "errored": 1, "incomplete": 0, "total": 41}
                },
                "worker": {"backend_type": "openai_http", "backend_model": "meta-llama/Llama-3.1-8B"},
                "request_loader": {"data": "prompt_tokens=256,output_tokens=64"},
                "extras": {"gpu": "H100", "tensor_parallel_size": 2, "vllm-version": "0.10.2", "rack": "b7"},
                "start_time": 1.76e9,
                "end_time": 1.76e9 + 20.0,
                "metrics": {
                    "requests_per_second": distribution(2.0),
                    "request_latency": distribution(0.73),
                    "prompt_token_count": distribution(256.0),
                    "output_token_count": distribution(64.0, 6.4),
                    "time_to_first_token_ms": distribution(100.0),
                    "time_per_output_token_ms": distribution(9.84),
                    "inter_token_latency_ms": distribution(10.0),
                    "output_tokens_per_second": distribution(128.0),
                },
            }
            for index, strategy in enumerate(strategies)
        ]
    }


def spread(mean: float) -> dict[str, float]:
    """inference-perf: summarize (reportgen/base.py)."""
    return {
        "mean": mean,
        "min": mean,
        "max": mean,
        "median": mean,
        "p90": mean,
        "p99": 2 * mean,
        "p99.9": 3 * mean,
    }


def stage(**load: Any) -> dict[str, Any]:
    """inference-perf 0.7: a lifecycle report (summarize_requests)."""
    return {
        "retries": {"count": 0},
        "benchmark_time_seconds": 50.0,
        "load_summary": {"count": 100, "schedule_delay": spread(0.001), **load},
        "successes": {
            "count": 99,
            "latency": {
                "request_latency": spread(0.73),
                "normalized_time_per_output_token": spread(0.0114),
                "time_per_output_token": spread(0.01),
                "time_to_first_token": spread(0.1),
                "inter_token_latency": spread(0.01),
            },
            "throughput": {"output_tokens_per_sec": 126.7, "requests_per_sec": 1.98},
            "prompt_tokens": {"total": 25344.0, "cached": 6336.0, "uncached": 19008.0, **spread(256.0)},
            "output_tokens": {"total": 6336.0, **spread(64.0)},
        },
        "failures": {"count": 1},
    }


CONFIG = """\
server: {type: vllm, model_name: meta-llama/Llama-3.1-8B, base_url: http://localhost:8000, ignore_eos: true}
load: {type: KIND, stages: [{rate: 2.0, duration: 50}, {rate: 4.0, duration: 50}]}
metadata: {gpu: H100, tp: 1}
"""
