"""How one replica of a model is run by the engine, and how a card's memory divides."""

from pydantic import Field

from planner.domain.base import Frozen
from planner.domain.dtypes import KvDtype, WeightDtype
from planner.domain.model import Model
from planner.domain.units import bytes_to_gib


class Parallelism(Frozen):
    """How one replica is spread over GPUs."""

    tp: int = Field(default=1, ge=1, le=64)
    pp: int = Field(default=1, ge=1, le=64)
    dp: int = Field(default=1, ge=1, le=256)
    ep: bool = False
    """Experts are split over tp x dp ranks instead of each expert being sliced."""

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tp * self.pp * self.dp


class LoraSlots(Frozen):
    """Adapters that the engine keeps room for (--enable-lora)."""

    max_loras: int = Field(default=1, ge=1, le=1024)
    """Adapters on the card at once."""
    max_lora_rank: int = Field(default=16, ge=1, le=1024)
    fully_sharded: bool = False
    """Both factors are split over the ranks (--fully-sharded-loras), not one of them."""


class Speculation(Frozen):
    """Speculative decoding with a draft model (--speculative-config, method draft_model)."""

    draft: Model
    num_speculative_tokens: int = Field(ge=1, le=64)


class EngineSettings(Frozen):
    """vLLM flags that change memory or latency."""

    max_num_seqs: int = Field(ge=1, le=1_000_000)
    max_num_batched_tokens: int = Field(ge=1, le=10_000_000)
    max_model_len: int = Field(ge=1, le=100_000_000)
    gpu_memory_utilization: float = Field(gt=0, le=1)
    enforce_eager: bool = False
    async_scheduling: bool = True
    block_size: int = Field(default=16, ge=1, le=65_536)
    engine_version: str = ""
    """Empty: the newest release that was read."""
    long_prefill_token_threshold: int = Field(default=0, ge=0, le=100_000_000)
    """A prompt takes at most this many tokens a step; 0: as many as the step has room for."""
    enable_prefix_caching: bool = True
    hybrid_kv_cache_manager: bool = True
    """False: every layer is paged like full attention (--disable-hybrid-kv-cache-manager)."""
    multimodal: bool = True
    """False: no images or videos are taken, so their encoder is not profiled (--limit-mm-per-prompt 0)."""
    kv_cache_memory_bytes: int | None = Field(default=None, ge=0, le=10**15)
    """The KV cache of each GPU as given (--kv-cache-memory-bytes); None: what the profiling run leaves."""
    kv_offload_bytes: int = Field(default=0, ge=0, le=10**15)
    """Host memory for blocks that leave the card, all ranks together (--kv-offloading-size)."""
    lora: LoraSlots | None = None
    speculation: Speculation | None = None


class Layout(Frozen):
    """A model on GPUs: what memory and step time depend on, before any traffic."""

    weight_dtype: WeightDtype | None = None
    """None: as the checkpoint is."""
    kv_dtype: KvDtype = KvDtype.AUTO
    parallelism: Parallelism = Parallelism()


class MemoryBudget(Frozen):
    """One GPU's memory, part by part; the parts add up to `total_bytes`.

    `kv_cache_bytes` is negative where the model does not fit: its size is by how much.
    """

    total_bytes: int
    outside_bytes: int
    """The share `gpu_memory_utilization` leaves alone: CUDA context, NCCL buffers, other processes.

    With a KV cache given in bytes: what that leaves, negative where it is too large.
    """
    weights_bytes: int
    """Of the model alone; vLLM logs `loaded_bytes`."""
    draft_bytes: int = 0
    """Weights of the draft model."""
    lora_bytes: int = 0
    """Slots for adapters, empty or not."""
    activation_bytes: int
    cuda_graph_bytes: int
    non_torch_bytes: int
    kv_cache_bytes: int
    kv_cache_tokens: int
    """As vLLM logs it; 0 where the cache holds no request."""
    kv_blocks: int
    block_size: int
    kv_bytes_per_token: float
    """Growth of one sequence by one token within every window, summed over this rank's layers."""
    max_concurrency: float
    """Requests of `max_model_len` tokens that fit at once, as vLLM logs it."""
    max_model_len: int
    request_bytes: int
    """What must be free for the engine to start: the cache of one request of `max_model_len` tokens."""
    relative_error: float = 0.0
    """Half-width of the 90 % interval on `overhead_bytes`, as a share of it."""

    @property
    def requested_bytes(self) -> int:
        """What the engine may use: total x gpu_memory_utilization."""
        return self.total_bytes - self.outside_bytes

    @property
    def loaded_bytes(self) -> int:
        """What vLLM logs as taken by loading: model, draft model and adapter slots."""
        return self.weights_bytes + self.draft_bytes + self.lora_bytes

    @property
    def overhead_bytes(self) -> int:
        """What neither weights nor KV cache take of the engine's share."""
        return self.activation_bytes + self.cuda_graph_bytes + self.non_torch_bytes

    @property
    def fits(self) -> bool:
        """True where at least one request of `max_model_len` tokens fits beside the weights, and all on the card."""
        return self.shortfall_bytes == 0

    @property
    def shortfall_bytes(self) -> int:
        """What is missing for one request of `max_model_len` tokens, or on the card [bytes]; 0 where it fits."""
        return max(0, self.request_bytes - self.kv_cache_bytes, -self.outside_bytes)

    @property
    def weights_gib(self) -> float:
        """Weights of one rank in GiB."""
        return bytes_to_gib(self.weights_bytes)
