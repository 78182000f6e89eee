"""How each `architectures` class of a config.json is read; one module a family."""

from planner.catalog.architectures import dense, hybrid, latent, moe
from planner.catalog.architectures.base import Architecture, Decoder

TEXT_ARCHITECTURES: dict[str, Architecture] = {
    **dense.ARCHITECTURES,
    **moe.ARCHITECTURES,
    **latent.ARCHITECTURES,
    **hybrid.ARCHITECTURES,
}

__all__ = ["TEXT_ARCHITECTURES", "Architecture", "Decoder"]
