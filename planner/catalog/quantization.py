"""How quantised checkpoints say what is stored how: `quantization_config` and hf_quant_config.json."""

from collections.abc import Callable
from typing import NamedTuple

from planner.catalog.config_fields import Fields, shown
from planner.catalog.module_patterns import ModulePatterns
from planner.domain.dtypes import WeightDtype
from planner.domain.model import Quantization, QuantMethod


class QuantizationRules(NamedTuple):
    """What a checkpoint says of its modules, before it is asked about any one of them."""

    default: Quantization | None
    """What modules are stored as that nothing else is said about."""
    ignored: ModulePatterns
    overrides: tuple[tuple[ModulePatterns, Quantization], ...] = ()
    experts_only: bool = False

    def stored(self, names: tuple[str, ...]) -> Quantization | None:
        """How the module made of the parts `names` is stored; None: not quantised."""
        if any(self.ignored.match(name) for name in names):
            return None
        for patterns, quantization in self.overrides:
            if any(patterns.match(name) for name in names):
                return quantization
        return self.default

    @property
    def main(self) -> Quantization | None:
        """What most modules are stored as."""
        return self.default or (self.overrides[0][1] if self.overrides else None)

    @property
    def name_layers(self) -> bool:
        """True where one layer may be stored unlike another."""
        return self.ignored.name_layers or any(patterns.name_layers for patterns, _ in self.overrides)


def read_rules(config: Fields, hf_quant: Fields | None) -> QuantizationRules | None:
    """The rules of a checkpoint, None where it is not quantised; vLLM asks config.json first.

    Raises:
        InputError: a method, format or width that is not understood.
    """
    section = config.section("quantization_config") or config.section("compression_config")
    if section is None and hf_quant is not None:
        section = hf_quant.section("quantization") or hf_quant
        if not section.has("quant_algo"):
            return None
        return _stamped(_modelopt(section), QuantMethod.MODELOPT)
    if section is None or not section.values:
        return None
    method = section.text("quant_method", default="modelopt" if section.has("quant_algo") else "")
    reader = _METHODS.get(method.lower())
    if reader is None:
        raise section.refuse(
            f"quant_method {shown(method)} is not understood; known: {', '.join(sorted(_METHODS))}"
        )
    return _stamped(reader(section), _FAMILIES.get(reader, QuantMethod.OTHER))


def _stamped(rules: QuantizationRules, method: QuantMethod) -> QuantizationRules:
    def stamp(how: Quantization) -> Quantization:
        return how.model_copy(update={"method": method})

    default = None if rules.default is None else stamp(rules.default)
    return rules._replace(
        default=default, overrides=tuple((patterns, stamp(how)) for patterns, how in rules.overrides)
    )


def _fp8(section: Fields) -> QuantizationRules:
    if section.has("quantized_layers") or section.text("quant_algo"):
        raise section.refuse("quant_method fp8 with modelopt's mixed precision is not understood")
    ignored = _patterns(section, "modules_to_not_convert", "ignored_layers")
    if section.has("weight_block_size"):
        block = section.wholes("weight_block_size", low=1)
        if block != [128, 128]:
            raise section.refuse(f"weight_block_size must be [128, 128], got {shown(block)}")
        return QuantizationRules(Quantization(dtype=WeightDtype.FP8_BLOCK), ignored)
    scheme = section.text("activation_scheme", default="dynamic")
    if scheme not in {"dynamic", "static"}:
        raise section.refuse(f"activation_scheme {shown(scheme)} is not understood; known: dynamic, static")
    quantization = Quantization(
        dtype=WeightDtype.FP8, per_tensor_scale=True, dynamic_activations=scheme == "dynamic"
    )
    return QuantizationRules(quantization, ignored)


def _fbgemm_fp8(section: Fields) -> QuantizationRules:
    return QuantizationRules(
        Quantization(dtype=WeightDtype.FP8), _patterns(section, "modules_to_not_convert")
    )


def _awq(section: Fields) -> QuantizationRules:
    _four_bits(section, "bits", "w_bit")
    quantization = Quantization(
        dtype=WeightDtype.AWQ,
        group_size=_group_size(section, "group_size", "q_group_size"),
        zero_points=section.flag("zero_point", default=True),
    )
    return QuantizationRules(quantization, _patterns(section, "modules_to_not_convert"))


def _gptq(section: Fields) -> QuantizationRules:
    _four_bits(section, "bits")
    skipped = []
    dynamic = section.section("dynamic")
    for pattern in dynamic.values if dynamic is not None else ():
        if not pattern.startswith("-:"):
            raise section.refuse(f"dynamic rule {shown(pattern)} is not understood; only -: rules are")
        skipped.append("re:" + pattern.removeprefix("-:"))
    quantization = Quantization(
        dtype=WeightDtype.GPTQ, group_size=_group_size(section, "group_size"), zero_points=True
    )
    patterns = [*skipped, *section.texts("modules_to_not_convert")]
    return QuantizationRules(quantization, ModulePatterns(patterns, section.where))


def _four_bits(section: Fields, *names: str) -> None:
    bits = section.whole(*names, high=32)
    if bits != 4:
        raise section.refuse(f"{names[0]} must be 4, got {bits}")


def _group_size(section: Fields, *names: str) -> int | None:
    """Weights a scale; -1 means one scale a channel."""
    size = section.whole(*names, low=-1, high=65_536)
    if size == 0:
        raise section.refuse(f"{names[0]} must be -1 or above 0, got 0")
    return None if size == -1 else size


def _mxfp4(section: Fields) -> QuantizationRules:
    quantization = Quantization(dtype=WeightDtype.MXFP4, group_size=32)
    return QuantizationRules(quantization, ModulePatterns((), section.where), experts_only=True)


def _modelopt(section: Fields) -> QuantizationRules:
    ignored = _patterns(section, "exclude_modules", "ignore")
    algorithm = section.text("quant_algo")
    kv_fp8 = _kv_fp8(section)
    if algorithm.upper() != "MIXED_PRECISION":
        return QuantizationRules(_modelopt_algorithm(section, algorithm, kv_fp8=kv_fp8), ignored)
    layers = section.section("quantized_layers")
    if layers is None:
        raise section.refuse("quantized_layers is missing")
    named: dict[str, list[str]] = {}
    for name in layers.values:
        own = layers.section(name)
        named.setdefault("" if own is None else own.text("quant_algo"), []).append(name)
    overrides = tuple(
        (ModulePatterns(names, section.where), _modelopt_algorithm(section, own, kv_fp8=kv_fp8))
        for own, names in sorted(named.items(), key=lambda item: -len(item[1]))
    )
    return QuantizationRules(None, ignored, overrides)


def _modelopt_algorithm(section: Fields, algorithm: str, *, kv_fp8: bool) -> Quantization:
    match algorithm.upper():
        case "FP8":
            return Quantization(
                dtype=WeightDtype.FP8, per_tensor_scale=True, dynamic_activations=False, kv_fp8=kv_fp8
            )
        case "FP8_PER_CHANNEL_PER_TOKEN":
            return Quantization(dtype=WeightDtype.FP8, kv_fp8=kv_fp8)
        case "NVFP4" | "W4A16_NVFP4":
            size = section.whole("group_size", default=16, high=65_536)
            if size != 16:
                raise section.refuse(f"group_size of NVFP4 must be 16, got {size}")
            static = algorithm.upper() == "NVFP4"
            return Quantization(
                dtype=WeightDtype.NVFP4, group_size=16, dynamic_activations=not static, kv_fp8=kv_fp8
            )
    raise section.refuse(
        f"quant_algo {shown(algorithm)} is not understood; known: FP8, FP8_PER_CHANNEL_PER_TOKEN, "
        "NVFP4, W4A16_NVFP4, MIXED_PRECISION"
    )


def _kv_fp8(section: Fields) -> bool:
    """True where keys and values are meant to be cached in fp8."""
    if section.text("kv_cache_quant_algo").upper() == "FP8":
        return True
    scheme = section.values.get("kv_cache_scheme")
    if isinstance(scheme, str):
        return scheme.upper() == "FP8"
    inner = section.section("kv_cache_scheme")
    return inner is not None and inner.get("num_bits") == 8 and inner.get("type") == "float"


def _compressed_tensors(section: Fields) -> QuantizationRules:
    sparsity = section.section("sparsity_config")
    if sparsity is not None and sparsity.text("format", default="dense") != "dense":
        raise section.refuse("sparse checkpoints (sparsity_config) are not understood")
    groups = section.section("config_groups")
    if groups is None or not groups.values:
        raise section.refuse("config_groups is missing")
    ignored = _patterns(section, "ignore")
    kv_fp8 = _kv_fp8(section)
    default: Quantization | None = None
    overrides: list[tuple[ModulePatterns, Quantization]] = []
    for name in groups.values:
        group = groups.section(name)
        if group is None:
            raise section.refuse(f"config_groups {shown(name)} is empty")
        quantization = _compressed_group(group, kv_fp8=kv_fp8)
        targets = group.texts("targets") or ["Linear"]
        if "Linear" in targets:
            default = quantization
        else:
            overrides.append((ModulePatterns(targets, section.where), quantization))
    return QuantizationRules(default, ignored, tuple(overrides))


def _compressed_group(group: Fields, *, kv_fp8: bool) -> Quantization:
    weights = group.section("weights")
    if weights is None:
        raise group.refuse("weights are missing")
    activations = group.section("input_activations")
    kind = (weights.text("type"), weights.whole("num_bits", high=32))
    strategy = weights.text("strategy", default="tensor")
    match kind:
        case ("float", 8) if activations is not None:
            return _compressed_fp8(weights, activations, strategy, kv_fp8=kv_fp8)
        case ("int", 8) if activations is not None and strategy == "channel":
            return Quantization(
                dtype=WeightDtype.INT8, dynamic_activations=activations.flag("dynamic"), kv_fp8=kv_fp8
            )
        case ("int", 4) if activations is None and strategy in {"group", "channel"}:
            size = weights.whole("group_size", high=65_536) if strategy == "group" else None
            asymmetric = not weights.flag("symmetric", default=True)
            return Quantization(
                dtype=WeightDtype.INT4, group_size=size, zero_points=asymmetric, kv_fp8=kv_fp8
            )
        case ("float", 4):
            size = weights.whole("group_size", high=65_536)
            if size in {16, 32}:
                dtype = WeightDtype.NVFP4 if size == 16 else WeightDtype.MXFP4
                return Quantization(dtype=dtype, group_size=size, kv_fp8=kv_fp8)
    raise group.refuse(
        f"{kind[1]}-bit {kind[0] or 'untyped'} weights by {strategy} "
        f"with{'out' if activations is None else ''} quantised activations are not understood"
    )


def _compressed_fp8(weights: Fields, activations: Fields, strategy: str, *, kv_fp8: bool) -> Quantization:
    if strategy == "block":
        block = weights.wholes("block_structure", low=1)
        if block != [128, 128]:
            raise weights.refuse(f"block_structure must be [128, 128], got {shown(block)}")
        return Quantization(dtype=WeightDtype.FP8_BLOCK, kv_fp8=kv_fp8)
    if strategy not in {"channel", "tensor"}:
        raise weights.refuse(f"strategy {shown(strategy)} is not understood; known: block, channel, tensor")
    return Quantization(
        dtype=WeightDtype.FP8,
        per_tensor_scale=strategy == "tensor",
        dynamic_activations=activations.flag("dynamic"),
        kv_fp8=kv_fp8,
    )


def _patterns(section: Fields, *names: str) -> ModulePatterns:
    return ModulePatterns((name for field in names for name in section.texts(field)), section.where)


_METHODS: dict[str, Callable[[Fields], QuantizationRules]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "awq": _awq,
    "gptq": _gptq,
    "gptq_marlin": _gptq,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
    "compressed-tensors": _compressed_tensors,
}
_FAMILIES: dict[Callable[[Fields], QuantizationRules], QuantMethod] = {
    _fp8: QuantMethod.FP8,
    _modelopt: QuantMethod.MODELOPT,
    _compressed_tensors: QuantMethod.COMPRESSED_TENSORS,
}
