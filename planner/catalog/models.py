"""Models by reference: a path, a bundled name or alias, or a Hugging Face id."""

import csv
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from planner.catalog.huggingface import fetch_config
from planner.catalog.model_config import (
    config_files,
    parse_model,
    read_config,
    read_json_object,
    with_weight_dtype,
)
from planner.catalog.nearest import fold, nearest
from planner.catalog.paths import data_dir
from planner.domain.base import Frozen, InputError
from planner.domain.dtypes import WeightDtype
from planner.domain.model import Model


class BundledModel(Frozen):
    """A model whose config comes with the program."""

    name: str
    architecture: str
    """The class vLLM would load."""
    aliases: tuple[str, ...]
    """Short names of this model, and hub ids (with a slash) of others with the same config."""
    source: str
    as_of: str
    path: Path


class NamedFiles(NamedTuple):
    """The config files of a model, what it is called, and where they came from."""

    name: str
    config: Mapping[str, object]
    hf_quant: Mapping[str, object] | None
    source: str


@lru_cache(maxsize=1)
def bundled_models() -> tuple[BundledModel, ...]:
    """Every bundled model, in the order of `data/models/index.csv`."""
    return tuple(
        BundledModel(
            name=row["name"],
            architecture=_declared_class(path),
            aliases=tuple(alias for alias in row["aliases"].split("|") if alias),
            source=row["source"],
            as_of=row["as_of"],
            path=path,
        )
        for row, path in _index()
    )


@lru_cache(maxsize=1)
def _index() -> tuple[tuple[dict[str, str], Path], ...]:
    """Rows of the index with the file each names."""
    folder = data_dir() / "models"
    with (folder / "index.csv").open(encoding="utf-8", newline="") as stream:
        return tuple((row, folder / row["file"]) for row in csv.DictReader(stream))


def _declared_class(path: Path) -> str:
    classes = read_json_object(path).get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else ""


@lru_cache(maxsize=1)
def _by_name() -> dict[str, tuple[str, Path]]:
    """The model and config meant by a full name, alias or, where only one model has it, name without organisation.

    An alias that is a hub id is another checkpoint of the same architecture, so it keeps its own name.
    """
    full: dict[str, tuple[str, Path]] = {}
    short: dict[str, list[tuple[str, Path]]] = {}
    for row, path in _index():
        entry = (row["name"], path)
        full[row["name"].casefold()] = entry
        for alias in filter(None, row["aliases"].split("|")):
            full[alias.casefold()] = (alias, path) if "/" in alias else entry
        short.setdefault(row["name"].rpartition("/")[2].casefold(), []).append(entry)
    return {name: entries[0] for name, entries in short.items() if len(entries) == 1} | full


def load_model(reference: str, *, weight_dtype: WeightDtype | None = None) -> Model:
    """The model `reference` means: an existing path, else a bundled name or alias, else a Hugging Face id.

    A path is a config file of any name or a folder with `config.json`; names ignore case. The model is called by
    the hub id asked for, by its bundled name where a short alias was given.

    >>> load_model("meta-llama/llama-3.1-70b-instruct").name, load_model("llama-3.1-70b").name
    ('meta-llama/Llama-3.1-70B-Instruct', 'meta-llama/Llama-3.1-70B')

    Raises:
        InputError: nothing is meant by it, its config is not understood, or it cannot be had as `weight_dtype`.
    """
    return with_weight_dtype(_load(reference.strip()), weight_dtype)


def model_files(reference: str) -> tuple[Path, ...]:
    """The files that `load_model` may read for this reference: its own, or those of the bundled model it names."""
    reference = reference.strip()
    entry = _by_name().get(reference.casefold())
    return config_files(Path(reference)) + (config_files(entry[1]) if entry is not None else ())


def model_config(reference: str) -> NamedFiles:
    """The config files that `load_model` reads for this reference. Raises InputError as it does."""
    return _files(reference.strip())


def _load(reference: str) -> Model:
    path = Path(reference)
    entry = None if not reference or _exists(path) else _by_name().get(reference.casefold())
    if entry is not None:
        return _bundled(*entry)
    found = _files(reference)
    return parse_model(found.config, name=found.name, hf_quant=found.hf_quant, source=found.source)


def _files(reference: str) -> NamedFiles:
    if not reference.isprintable() or not reference:
        raise InputError("model: give a path to a config.json, a bundled name or a Hugging Face id")
    path = Path(reference)
    if _exists(path):
        files = read_config(path)
        stem = files.path.name.removesuffix(".json").removesuffix("_config")
        name = files.path.resolve().parent.name if files.path.name == "config.json" else stem
        return NamedFiles(name, files.config, files.hf_quant, str(path))
    entry = _by_name().get(reference.casefold())
    if entry is not None:
        files = read_config(entry[1])
        return NamedFiles(entry[0], files.config, files.hf_quant, entry[1].name)
    near = _nearest_bundled(reference.rpartition("/")[2][:200])
    hint = f"; the nearest bundled are {', '.join(near)}" if near else ""
    if reference.count("/") != 1 or path.suffix == ".json" or reference.startswith((".", "/", "~")):
        raise InputError(f'model "{reference[:200]}" is neither a path nor a bundled name{hint}')
    fetched = fetch_config(reference, hint)
    hf_quant = None if fetched.hf_quant is None else read_json_object(fetched.hf_quant)
    source = f"https://huggingface.co/{reference}"
    return NamedFiles(reference, read_json_object(fetched.config), hf_quant, source)


def _nearest_bundled(word: str) -> list[str]:
    """Bundled models whose name without organisation is part of `word`, then those spelled alike."""
    names = {row["name"].rpartition("/")[2]: row["name"] for row, _ in _index()}
    parts = [short for short in names if fold(short) in fold(word)]
    return [names[short] for short in dict.fromkeys([*parts, *nearest(word, names)])][:3]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


@lru_cache(maxsize=256)
def _bundled(name: str, path: Path) -> Model:
    files = read_config(path)
    return parse_model(files.config, name=name, hf_quant=files.hf_quant, source=path.name)
