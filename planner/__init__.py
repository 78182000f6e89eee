"""LLM serving planner: from a model, its traffic and the latency owed to a costed vLLM deployment."""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """`__version__`, read when asked for: importlib.metadata costs a tenth of the start-up."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llm-serving-planner")
    except PackageNotFoundError:
        return "0+unknown"
