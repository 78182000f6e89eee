"""Our side of the oracle: cases from model configs, and the process that answers them with vLLM."""

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from planner.catalog.architectures.wrappers import INHERITED, TEXT_CLASS
from planner.catalog.model_config import parse_model, read_config
from planner.catalog.models import bundled_models
from planner.domain.deployment import Parallelism
from planner.domain.model import Model

HERE = Path(__file__).parent
SMALL_CONFIGS = HERE.parent / "formulas" / "small_configs.json"
RECORDED_CSV = HERE.parent / "formulas" / "vllm_recorded.csv"
SMALL = "small:"
UNQUANTISED = "unquantised"
ENGINE_PYTHON = os.environ.get("PLANNER_ENGINE_PYTHON", "")
"""Interpreter that has vLLM; `make engine-test` names it."""


REMOTE_CODE_TYPES = {"mimo": "qwen2", "nemotron-nas": "llama"}
"""Model types whose config class comes with the checkpoint, and the type they extend."""

MODELOPT_METHOD = {"quant_method": "modelopt"}
MODELOPT_PRODUCER = {"producer": {"name": "modelopt"}}
UNQUANTISED_HEAD = {"exclude_modules": ["lm_head"]}
"""What some bundled configs leave out because the planner can do without."""


class Case(NamedTuple):
    """One rank of one layout of one model."""

    model: str
    """A bundled name, or `small:` and a name of small_configs.json."""
    variant: str = ""
    """`unquantised`: the config without its quantisation."""
    tp: int = 1
    pp: int = 1
    pp_rank: int = 0
    ep: bool = False

    @property
    def parallelism(self) -> Parallelism:
        """The layout this rank is part of."""
        return Parallelism(tp=self.tp, pp=self.pp, ep=self.ep)


class Files(NamedTuple):
    """The config files of a checkpoint."""

    config: dict[str, Any]
    hf_quant: dict[str, Any] | None


@lru_cache(maxsize=1)
def small_configs() -> dict[str, dict[str, Any]]:
    """Small made-up configs by name, one an architecture or format that no bundled model has."""
    configs: dict[str, dict[str, Any]] = json.loads(SMALL_CONFIGS.read_text(encoding="utf-8"))
    return configs


def config_files(case: Case) -> Files:
    """What lies beside the checkpoint's weights, without its quantisation where the case says so."""
    if case.model.startswith(SMALL):
        files = Files(small_configs()[case.model.removeprefix(SMALL)], None)
    else:
        read = read_config(next(entry.path for entry in bundled_models() if entry.name == case.model))
        files = Files(dict(read.config), None if read.hf_quant is None else dict(read.hf_quant))
    if case.variant != UNQUANTISED:
        return files
    config = {name: value for name, value in files.config.items() if name != "quantization_config"}
    return Files(config, None)


def text_model(case: Case) -> Model:
    """The planner's reading of the case's language model, without a vision tower."""
    files = config_files(case)
    model = parse_model(files.config, name=case.model, hf_quant=files.hf_quant)
    return model.model_copy(update={"vision": None})


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the language model alone: the CPU build cannot take images in."""
    wrapper = config["architectures"][0]
    own = dict(config)
    if wrapper in TEXT_CLASS and "text_config" in config:
        text = config["text_config"]
        kept = (*INHERITED, "quantization_config")
        own = {name: config[name] for name in kept if name in config} | text
        own["architectures"] = text.get("architectures") or [TEXT_CLASS[wrapper]]
    own.pop("auto_map", None)
    if own.get("model_type") in REMOTE_CODE_TYPES:
        own = {name: value for name, value in own.items() if value is not None}
        own["model_type"] = REMOTE_CODE_TYPES[own["model_type"]]
    stored = own.get("quantization_config")
    if stored:
        own["quantization_config"] = (
            MODELOPT_METHOD | _without_prefix(stored) if "quant_algo" in stored else stored
        )
    return own


def _without_prefix(stored: dict[str, Any]) -> dict[str, Any]:
    """Excluded modules as the language model alone calls them."""
    ignored = [name.removeprefix("language_model.") for name in stored.get("ignore", ())]
    return stored | ({"ignore": ignored} if ignored else {})


def _files_for_vllm(case: Case) -> dict[str, Any]:
    files = config_files(case)
    hf_quant = files.hf_quant
    if hf_quant is not None:
        hf_quant = MODELOPT_PRODUCER | hf_quant
        hf_quant["quantization"] = UNQUANTISED_HEAD | hf_quant["quantization"]
    return {"config": text_config(files.config), "hf_quant": hf_quant}


def ask(cases: Iterable[Case], *, names: bool = False) -> Iterator[dict[str, Any]]:
    """What vLLM's model classes say of each case, in order; `names` adds every parameter.

    Raises:
        RuntimeError: the process died, with the last of what it wrote.
    """
    lines = [json.dumps(case._asdict() | _files_for_vllm(case) | {"names": names}) for case in cases]
    written = run_in_engine("oracle.py", "\n".join(lines))
    return map(json.loads, written.splitlines())


def run_in_engine(script: str, given: str) -> str:
    """What a script of this folder writes, run by the interpreter that has vLLM.

    Raises:
        RuntimeError: it failed, with the last of what it said.
    """
    done = subprocess.run(
        [ENGINE_PYTHON, str(HERE / script)],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(HERE / "stand_ins")},
    )
    if done.returncode:
        raise RuntimeError(f"{script} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
