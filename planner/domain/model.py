"""A model's architecture, normalised: what it takes to count its bytes and its operations."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from planner.domain.base import Frozen
from planner.domain.dtypes import WeightDtype

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


class GemmRole(StrEnum):
    """What a matrix product of a layer is for; also names the module whose weights it reads."""

    QKV = "qkv"
    ATTENTION_OUT = "attention_out"
    MLA_DOWN = "mla_down"
    """Hidden to the query and KV latents, fused where queries have a latent; whole on every rank."""
    MLA_Q_UP = "mla_q_up"
    MLA_KV_UP = "mla_kv_up"
    INDEXER = "indexer"
    LINEAR_IN = "linear_in"
    LINEAR_GATES = "linear_gates"
    """Hidden to the decay and write strength of each value head."""
    LINEAR_OUT = "linear_out"
    MAMBA_IN = "mamba_in"
    MAMBA_OUT = "mamba_out"
    GATE_UP = "gate_up"
    DOWN = "down"
    SHARED_GATE_UP = "shared_gate_up"
    SHARED_DOWN = "shared_down"
    ROUTER = "router"
    LATENT_IN = "latent_in"
    LATENT_OUT = "latent_out"
    EXPERTS = "experts"
    HEAD = "head"


class QkNorm(StrEnum):
    """Where queries and keys are normalised, if they are."""

    NONE = "none"
    PER_HEAD = "per_head"
    """One weight of head_dim for queries and one for keys (Qwen3, Gemma 3)."""
    ALL_HEADS = "all_heads"
    """One weight over all heads' width, whole on every rank (OLMo 2)."""
    ALL_HEADS_SPLIT = "all_heads_split"
    """One weight over all heads' width, split with the heads (MiniMax M2, Cohere)."""


class SoftmaxAttention(Frozen):
    """Multi-head or grouped-query attention; full, sliding-window or chunked by its scope."""

    kind: Literal["softmax"] = "softmax"
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    v_head_dim: Positive
    window_tokens: int | None = None
    """A query sees this many last tokens (sliding window)."""
    chunk_tokens: int | None = None
    """A query sees the tokens of its own chunk (Llama 4 chunked local attention)."""
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    output_gate: bool = False
    """The query projection also makes a gate of the same width (Qwen3-Next, Qwen3.5)."""
    sinks: bool = False
    """One learned sink a head (gpt-oss)."""
    keys_are_values: bool = False
    """The checkpoint has no value projection; vLLM still computes and caches both (Gemma 4 full layers)."""


class LatentAttention(Frozen):
    """Multi-head latent attention (DeepSeek V2/V3, Kimi K2): one compressed KV vector a token on every rank."""

    kind: Literal["mla"] = "mla"
    heads: Positive
    q_lora_rank: int | None
    kv_lora_rank: Positive
    qk_nope_head_dim: NonNegative
    qk_rope_head_dim: NonNegative
    v_head_dim: Positive
    indexer_heads: NonNegative = 0
    """Heads of this layer's own sparse-attention indexer (DeepSeek V3.2, GLM-5); 0 means it has none."""
    indexer_head_dim: NonNegative = 0
    indexer_topk: NonNegative = 0
    """Tokens a query attends to; set without heads where a layer reuses an earlier layer's choice (GLM-5.2)."""


class LinearAttention(Frozen):
    """Gated delta net or a sibling: a constant state a sequence instead of a growing cache (Qwen3-Next, Qwen3.5)."""

    kind: Literal["linear"] = "linear"
    key_heads: Positive
    value_heads: Positive
    key_head_dim: Positive
    value_head_dim: Positive
    conv_kernel: Positive
    state_bytes_per_value: Positive = 4


class MambaMixer(Frozen):
    """Mamba-2 mixer (Nemotron-H): a convolution state and an SSM state a sequence."""

    kind: Literal["mamba"] = "mamba"
    heads: Positive
    head_dim: Positive
    state_size: Positive
    groups: Positive
    conv_kernel: Positive
    conv_bias: bool = True
    projection_bias: bool = False
    state_bytes_per_value: Positive = 4

    def groups_on_rank(self, tp: int) -> int:
        """B/C groups one of `tp` ranks holds; a single group is repeated on every rank."""
        return max(1, self.groups // tp)


Attention = Annotated[
    SoftmaxAttention | LatentAttention | LinearAttention | MambaMixer, Field(discriminator="kind")
]


class DenseFfn(Frozen):
    """A feed-forward block that every token passes."""

    kind: Literal["dense"] = "dense"
    intermediate: Positive
    gated: bool = True
    """True: gate, up and down (SwiGLU); False: up and down."""
    bias: bool = False


class MoeFfn(Frozen):
    """Routed experts, with or without experts that every token passes."""

    kind: Literal["moe"] = "moe"
    experts: Positive
    experts_per_token: Positive
    intermediate: Positive
    """Of one expert."""
    gated: bool = True
    bias: bool = False
    """Experts and router have biases (gpt-oss)."""
    shared_intermediate: NonNegative = 0
    """Of all shared experts together; 0 means none."""
    shared_gate: bool = False
    """A sigmoid gate on the shared expert (Qwen2-MoE, Qwen3-Next)."""
    correction_bias: bool = False
    """One fp32 routing bias an expert (DeepSeek V3)."""
    router_fp32: bool = False
    latent: int | None = None
    """Width of the experts' input where tokens are first projected down (Nemotron 3 Super); None: hidden."""
    parallel_dense: DenseFfn | None = None
    """A dense block beside the experts in the same layer (Gemma 4)."""


Ffn = Annotated[DenseFfn | MoeFfn, Field(discriminator="kind")]


class QuantMethod(StrEnum):
    """Who stored the weights, where vLLM keeps more beside them than their format says."""

    OTHER = "other"
    COMPRESSED_TENSORS = "compressed-tensors"
    FP8 = "fp8"
    MODELOPT = "modelopt"


class Quantization(Frozen):
    """How a linear layer's weights are stored when not in the model's own dtype."""

    dtype: WeightDtype
    method: QuantMethod = QuantMethod.OTHER
    """The family of the checkpoint's `quant_method`."""
    group_size: int | None = None
    """Weights that share one scale along the input dimension; None: one scale a channel or tensor."""
    per_tensor_scale: bool = False
    """One scale a tensor instead of one an output channel."""
    zero_points: bool = False
    dynamic_activations: bool = True
    """False: the checkpoint holds one activation scale a tensor."""
    kv_fp8: bool = False
    """The checkpoint asks for an fp8 KV cache."""


class Layer(Frozen):
    """One decoder layer; hybrids may have only a mixer or only a feed-forward block in it."""

    attention: Attention | None
    ffn: Ffn | None
    norms: NonNegative = 2
    """RMS or layer norms over the hidden width."""
    norm_bias: bool = False
    scalars: NonNegative = 0
    """Learned numbers outside projections and norms (layer scale, router scale), whole on every rank."""
    quantized: tuple[tuple[GemmRole, Quantization], ...] = ()
    """How each quantised module is stored; the others are in the model's own dtype."""

    def stored(self, role: GemmRole) -> Quantization | None:
        """How the weights of `role` are stored; None: in the model's own dtype."""
        return next((how for module, how in self.quantized if module is role), None)


class TowerFamily(StrEnum):
    """Whose image processor and forward pass a vision tower has; decides what the engine profiles."""

    GEMMA3 = "gemma3"
    GEMMA4 = "gemma4"
    KIMI_K25 = "kimi_k25"
    LLAMA4 = "llama4"
    PIXTRAL = "pixtral"
    QWEN2_VL = "qwen2_vl"
    QWEN2_5_VL = "qwen2_5_vl"
    QWEN3_VL = "qwen3_vl"


class TowerSplit(StrEnum):
    """How tensor-parallel ranks share a product of a vision tower."""

    WHOLE = "whole"
    COLUMN = "column"
    """Outputs are split, and the bias with them."""
    ROW = "row"
    """Inputs are split; the bias is whole."""


class TowerLinear(Frozen):
    """A product of a vision tower outside its blocks: patch embedding, merger, projector."""

    name: str
    inputs: Positive
    outputs: Positive
    split: TowerSplit = TowerSplit.WHOLE
    bias: bool = False
    copies: Positive = 1


class TowerVector(Frozen):
    """Learned numbers of a vision tower outside products, whole on every rank: norms, position tables."""

    name: str
    values: NonNegative


class TowerBlock(Frozen):
    """One transformer block of a vision tower: attention and a feed-forward block, split over the ranks."""

    intermediate: Positive
    gated: bool = False
    attention_bias: bool = True
    mlp_bias: bool = False
    norm_values: NonNegative
    """Of all its norms together."""


class RotaryTable(Frozen):
    """Cosines and sines of rotary positions; layers with the same table share it."""

    rows: Positive
    """Positions."""
    width: Positive
    """Rotated dimensions of a head."""
    fp32: bool = False
    """Kept in fp32 instead of the model's dtype."""


class VisionTower(Frozen):
    """The encoder of a multimodal checkpoint, with what brings its output to the language model's width."""

    family: TowerFamily
    hidden: Positive
    heads: Positive
    kv_heads: Positive | None = None
    """None: as many as heads."""
    head_dim: Positive | None = None
    """None: hidden / heads."""
    layers: Positive
    block: TowerBlock
    linears: tuple[TowerLinear, ...]
    vectors: tuple[TowerVector, ...]
    replicated: bool = False
    """Whole on every rank, blocks too, since vLLM runs the class of the transformers library (Gemma 4)."""
    patch_size: Positive
    """Pixels on a side."""
    patch_values: Positive
    """Numbers one patch is made of: channels x frames x pixels."""
    merge_size: Positive = 1
    """Patches on a side that become one token of the language model."""
    image_patches: Positive | None = None
    """Patches of one image or tile; None: images keep their size, within the processor's limits."""
    image_tokens: Positive | None = None
    """Tokens of one image or tile in the language model; None as above."""
    output_width: Positive
    """Values the engine keeps for each token until it is used."""
    deepstack_layers: NonNegative = 0
    """Blocks whose features also enter the language model (Qwen3-VL)."""


class OuterTensor(StrEnum):
    """What stands before and after the decoder layers."""

    EMBEDDING = "embedding"
    """Learned positions among it."""
    FINAL_NORM = "final_norm"
    HEAD = "head"


class Model(Frozen):
    """A decoder-only language model, as its config.json describes it."""

    name: str
    architecture: str
    """The class vLLM would load: `architectures[0]` of the config."""
    hidden: Positive
    vocab: Positive
    tied_embeddings: bool
    max_position: Positive
    activation_dtype: WeightDtype
    """bf16 or fp16 (or fp32 loaded as bf16): the dtype of everything that is not quantised."""
    layer_kinds: tuple[Layer, ...] = Field(min_length=1)
    layer_pattern: tuple[NonNegative, ...] = Field(min_length=1)
    """For each layer in order, its index into `layer_kinds`."""
    final_norm: bool = True
    every_stage: frozenset[OuterTensor] = frozenset()
    """What vLLM builds on every pipeline stage, though only the first or the last one uses it."""
    norm_bias: bool = False
    lm_head_bias: bool = False
    position_embeddings: NonNegative = 0
    """Rows of a learned position table (GPT-2 family); 0 with rotary positions."""
    rotary: tuple[RotaryTable, ...] = ()
    """The tables of rotary positions, each once."""
    quantization: Quantization | None = None
    """What most of the weights are stored as; `Layer.quantized` says it module by module."""
    head_quantization: Quantization | None = None
    vision: VisionTower | None = None
    source: str = ""

    def __hash__(self) -> int:
        return hash((self.name, self.source, self.architecture, self.quantization, len(self.layer_pattern)))

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layer_pattern)

    @property
    def weight_dtype(self) -> WeightDtype:
        """How the linear layers are stored."""
        return self.quantization.dtype if self.quantization is not None else self.activation_dtype

    @property
    def has_moe(self) -> bool:
        """True where any layer routes tokens to experts."""
        return any(isinstance(kind.ffn, MoeFfn) for kind in self.layer_kinds)
