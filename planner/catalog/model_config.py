"""Reads any config.json into a `Model`. The file is data: nothing in it is run or followed."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from planner.catalog.architectures import NOT_MODELLED, TEXT_ARCHITECTURES, Decoder
from planner.catalog.architectures.stages import EVERY_STAGE
from planner.catalog.architectures.wrappers import TEXT_CLASS, text_fields, with_vision
from planner.catalog.config_fields import Fields, shown
from planner.catalog.quantization import QuantizationRules, read_rules
from planner.catalog.rotary import rotary_tables
from planner.domain.base import InputError
from planner.domain.dtypes import WeightDtype
from planner.domain.model import GemmRole, Layer, Model, Quantization
from planner.formulas.quantized import quantizable_roles, with_weight_dtype

__all__ = [
    "ConfigFiles",
    "parse_json_object",
    "parse_model",
    "read_config",
    "read_json_object",
    "with_weight_dtype",
]

MAX_CONFIG_BYTES = 8 * 2**20
"""Larger files are no model configs; the largest known, with every module listed, are below 1 MiB."""

DTYPES: dict[str, WeightDtype] = {
    "bfloat16": WeightDtype.BF16,
    "float16": WeightDtype.FP16,
    "half": WeightDtype.FP16,
    "float32": WeightDtype.BF16,
    "auto": WeightDtype.BF16,
}
"""vLLM loads float32 checkpoints as bfloat16."""


class ConfigFiles(NamedTuple):
    """What was read from disk for one model."""

    config: Mapping[str, object]
    hf_quant: Mapping[str, object] | None
    path: Path


def read_config(path: Path) -> ConfigFiles:
    """Reads a config file, or `config.json` of a folder, and the `hf_quant_config.json` beside it.

    Raises:
        InputError: not there, larger than 8 MiB, not UTF-8, not JSON, NaN in it, nested too deeply, no object.
    """
    file = path / "config.json" if path.is_dir() else path
    hf_quant = _quant_path(file)
    return ConfigFiles(
        read_json_object(file), read_json_object(hf_quant) if hf_quant.is_file() else None, file
    )


def config_files(path: Path) -> tuple[Path, ...]:
    """The files that `read_config` may read for this path."""
    return tuple(file for one in (path, path / "config.json") for file in (one, _quant_path(one)))


def _quant_path(config: Path) -> Path:
    """`X_hf_quant_config.json` beside `X_config.json` or `X.json`, `hf_quant_config.json` beside `config.json`."""
    if config.name == "config.json":
        return config.with_name("hf_quant_config.json")
    stem = config.name.removesuffix(".json").removesuffix("_config")
    return config.with_name(f"{stem}_hf_quant_config.json")


def read_json_object(file: Path) -> Mapping[str, object]:
    """One JSON object from a file of at most 8 MiB.

    Raises:
        InputError: see `read_config`.
    """
    if _is_special(file):
        raise InputError(f"model config {file}: not a regular file")
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"model config {file}: cannot be read ({reason})") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise InputError(
            f"model config {file}: larger than {MAX_CONFIG_BYTES // 2**20} MiB, no model config is"
        )
    return parse_json_object(raw, str(file))


def _is_special(file: Path) -> bool:
    """A device, or a pipe that may be waited for without end."""
    try:
        return file.exists() and not (file.is_file() or file.is_dir())
    except (OSError, ValueError):
        return False


def parse_json_object(raw: bytes, where: str) -> Mapping[str, object]:
    """One JSON object from bytes; `where` names them in errors.

    Raises:
        InputError: not UTF-8, not JSON, NaN in it, nested too deeply, no object.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"model config {where}: not UTF-8 at byte {error.start}") from None
    try:
        # Published Nemotron configs hold Infinity in a field that does not matter here; NaN is always damage.
        value = json.loads(text, parse_constant=lambda name: _constant(name, where))
    except RecursionError:
        raise InputError(f"model config {where}: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"model config {where}: not JSON at line {error.lineno} column {error.colno} ({error.msg})"
        ) from None
    except InputError:
        raise
    except ValueError:
        raise InputError(f"model config {where}: holds a whole number too long to be read") from None
    if not isinstance(value, dict):
        raise InputError(f"model config {where}: must be a JSON object, got {shown(value)}")
    return value


def _constant(name: str, where: str) -> float:
    if name == "NaN":
        raise InputError(f"model config {where}: holds NaN, which is no number")
    return float(name.replace("Infinity", "inf"))


def parse_model(
    config: Mapping[str, object],
    *,
    name: str,
    hf_quant: Mapping[str, object] | None = None,
    source: str = "",
) -> Model:
    """The model a config describes; `source` is where the config came from and names it in errors.

    Raises:
        InputError: an unknown architecture or quantisation, a field missing, out of range or at odds with another.
    """
    fields = Fields(config, source or name)
    architecture = _architecture(fields)
    text = text_fields(fields) if architecture in TEXT_CLASS else fields
    decoder = TEXT_ARCHITECTURES[_text_class(architecture, text)](text)
    if architecture in TEXT_CLASS:
        decoder = with_vision(decoder, fields, architecture)
    quant_fields = None if hf_quant is None else Fields(hf_quant, f"{fields.where} (hf_quant_config)")
    rules = read_rules(fields if fields.has("quantization_config") else text, quant_fields)
    layers, pattern = _kinds(_quantized_layers(decoder, rules))
    try:
        return Model(
            name=name,
            architecture=architecture,
            hidden=decoder.hidden,
            vocab=decoder.vocab,
            tied_embeddings=decoder.tied_embeddings,
            max_position=decoder.max_position,
            activation_dtype=_dtype(text),
            layer_kinds=layers,
            layer_pattern=pattern,
            every_stage=EVERY_STAGE.get(_text_class(architecture, text), frozenset()),
            norm_bias=decoder.norm_bias,
            lm_head_bias=decoder.head_bias,
            position_embeddings=decoder.position_embeddings,
            rotary=rotary_tables(text, architecture, decoder),
            quantization=None if rules is None else rules.main,
            head_quantization=_head_quantization(rules, decoder),
            vision=decoder.vision,
            source=source,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise fields.refuse(f"{field}: {first['msg'].lower()}") from None


def _architecture(fields: Fields) -> str:
    """The class vLLM would load."""
    declared = fields.values.get("architectures")
    if declared is None or declared == []:
        return _architecture_of_type(fields)
    classes = fields.texts("architectures")
    known = [name for name in classes if name in TEXT_ARCHITECTURES or name in TEXT_CLASS]
    if not known and classes[0] in NOT_MODELLED:
        raise fields.refuse(f"architecture {classes[0]} is not modelled: {NOT_MODELLED[classes[0]]}")
    if not known:
        raise fields.refuse(f"architecture {shown(classes[0])} is not known{_nearest_class(classes[0])}")
    return known[0]


def _nearest_class(name: str) -> str:
    near = get_close_matches(name, [*TEXT_ARCHITECTURES, *TEXT_CLASS], n=1, cutoff=0.5)
    return f"; the nearest known is {near[0]}" if near else ""


def _architecture_of_type(fields: Fields) -> str:
    """The one known class whose name spells the model type, as transformers names them."""
    model_type = fields.text("model_type")
    if not model_type:
        raise fields.refuse("architectures and model_type are missing")
    is_text = model_type.endswith("_text") or not fields.has("text_config")
    suffix = "ForCausalLM" if is_text else "ForConditionalGeneration"
    plain = _letters(model_type.removesuffix("_text"))
    found = {
        TEXT_ARCHITECTURES.get(name, name): name
        for name in reversed([*TEXT_ARCHITECTURES, *TEXT_CLASS])
        if name.endswith(suffix) and _letters(name.removesuffix(suffix)) == plain
    }
    if len(found) != 1:
        raise fields.refuse(
            f"architectures is missing and model_type {shown(model_type)} does not say which class it is"
        )
    return next(iter(found.values()))


def _letters(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _text_class(architecture: str, text: Fields) -> str:
    if architecture not in TEXT_CLASS:
        return architecture
    inner = text.texts("architectures") if isinstance(text.values.get("architectures"), list) else []
    named = [name for name in inner if name in TEXT_ARCHITECTURES]
    return named[0] if named else TEXT_CLASS[architecture]


def _dtype(text: Fields) -> WeightDtype:
    name = text.text("dtype", "torch_dtype", default="bfloat16").removeprefix("torch.")
    if name not in DTYPES:
        raise text.refuse(f"dtype {shown(name)} is not understood; known: {', '.join(DTYPES)}")
    return DTYPES[name]


def _quantized_layers(decoder: Decoder, rules: QuantizationRules | None) -> list[Layer]:
    """Each layer with what the checkpoint says of its modules."""
    if rules is None:
        return list(decoder.layers)
    seen: dict[tuple[int, int], Layer] = {}
    layers = []
    for index, layer in enumerate(decoder.layers):
        key = (id(layer), index if rules.name_layers else 0)
        if key not in seen:
            seen[key] = layer.model_copy(update={"quantized": _stored(decoder, rules, index)})
        layers.append(seen[key])
    return layers


def _stored(
    decoder: Decoder, rules: QuantizationRules, index: int
) -> tuple[tuple[GemmRole, Quantization], ...]:
    stored = []
    roles = quantizable_roles(decoder.layers[index])
    for role, suffixes in decoder.names.items():
        if role not in roles or (rules.experts_only and role is not GemmRole.EXPERTS):
            continue
        quantization = rules.stored(tuple(f"model.layers.{index}.{suffix}" for suffix in suffixes))
        if quantization is not None:
            stored.append((role, quantization))
    return tuple(stored)


def _head_quantization(rules: QuantizationRules | None, decoder: Decoder) -> Quantization | None:
    """Output projections are quantised only where a mixed checkpoint lists them."""
    if rules is None or decoder.tied_embeddings:
        return None
    return next((how for patterns, how in rules.overrides if patterns.match("lm_head")), None)


def _kinds(layers: list[Layer]) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """The distinct layers in order of appearance, and each layer's place among them."""
    indices: dict[Layer, int] = {}
    by_identity: dict[int, int] = {}
    pattern = []
    for layer in layers:
        if id(layer) not in by_identity:
            by_identity[id(layer)] = indices.setdefault(layer, len(indices))
        pattern.append(by_identity[id(layer)])
    return tuple(indices), tuple(pattern)
