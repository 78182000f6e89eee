"""LLM serving planner: from a model, its traffic and the latency owed to a costed vLLM deployment."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("llm-serving-planner")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
