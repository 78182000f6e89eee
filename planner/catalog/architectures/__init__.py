"""How each `architectures` class of a config.json is read; one module a family."""

from planner.catalog.architectures import classic, dense, hybrid, latent, moe
from planner.catalog.architectures.base import Architecture, Decoder

TEXT_ARCHITECTURES: dict[str, Architecture] = {
    **classic.ARCHITECTURES,
    **dense.ARCHITECTURES,
    **moe.ARCHITECTURES,
    **latent.ARCHITECTURES,
    **hybrid.ARCHITECTURES,
}

NOT_MODELLED: dict[str, str] = {
    "BambaForCausalLM": "Mamba layers beside feed-forward blocks",
    "DeepseekV4ForCausalLM": "compressed sparse attention and hyper-connections",
    "FalconH1ForCausalLM": "attention and Mamba in parallel in one layer",
    "FalconMambaForCausalLM": "Mamba-1 layers",
    "Gemma3nForCausalLM": "per-layer embeddings and shared keys and values",
    "Gemma3nForConditionalGeneration": "per-layer embeddings and shared keys and values",
    "JambaForCausalLM": "Mamba-1 layers",
    "KimiK3ForConditionalGeneration": "Kimi delta attention and attention residuals",
    "KimiLinearForCausalLM": "Kimi delta attention",
    "MambaForCausalLM": "Mamba-1 layers",
    "MiniMaxM3ForCausalLM": "block-sparse attention with its own index keys",
    "MiniMaxM3SparseForCausalLM": "block-sparse attention with its own index keys",
    "Step3p5ForCausalLM": "head-wise gates and heads that differ between layers",
    "Step3p7FlashForCausalLM": "a class vLLM does not have; Step 3.7 has head-wise gates",
    "Step3p7ForConditionalGeneration": "head-wise gates and heads that differ between layers",
}
"""Classes that are known to need what the formulas do not have, with what that is."""

__all__ = ["NOT_MODELLED", "TEXT_ARCHITECTURES", "Architecture", "Decoder"]
