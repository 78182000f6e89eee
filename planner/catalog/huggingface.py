"""Fetches a model's config from the Hugging Face hub: two JSON files, never code."""

import logging
import socket
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from planner.domain.base import InputError

PROBE_TIMEOUT_S = 5.0


class HubConfig(NamedTuple):
    """Where a model's config files lie in the hub's local cache."""

    config: Path
    hf_quant: Path | None


def fetch_config(model_id: str, hint: str = "") -> HubConfig:
    """Downloads (or finds cached) `config.json` and, where there is one, `hf_quant_config.json`.

    `hint` is added to every error, to say what is bundled.

    Raises:
        InputError: offline, unknown, gated, no such file, or the hub does not answer.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return HubConfig(_download(model_id, "config.json"), _quantization(model_id))
    except GatedRepoError:
        reason = "is gated on Hugging Face; log in with `hf auth login` or give a path to its config.json"
    except RepositoryNotFoundError:
        reason = "is not on Hugging Face, or private"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = "is not bundled and Hugging Face cannot be reached (offline)"
    except EntryNotFoundError:
        reason = "has no config.json on Hugging Face"
    except HFValidationError:
        reason = "is no Hugging Face model id (org/name)"
    except Exception as error:
        # The hub library's transport, and with it its errors, differs between its versions.
        reason = f"could not be fetched from Hugging Face ({type(error).__name__})"
    raise InputError(f'model "{model_id}" {reason}{hint}')


def _quantization(model_id: str) -> Path | None:
    """The quantisation file of Model Optimizer checkpoints; most repositories have none."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return _download(model_id, "hf_quant_config.json")
    except EntryNotFoundError:
        return None


def _download(model_id: str, filename: str) -> Path:
    """The file in the hub's cache; asks the network only where it answers at once, for the library is patient."""
    from huggingface_hub import constants, hf_hub_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    offline = constants.HF_HUB_OFFLINE or not _is_reachable(constants.ENDPOINT)
    return Path(hf_hub_download(model_id, filename, local_files_only=offline))


@lru_cache(maxsize=4)
def _is_reachable(endpoint: str) -> bool:
    """True where the hub, or a proxy that may lead to it, can be tried."""
    # Imported here: it brings TLS along, which an answer from bundled files never needs.
    from urllib.request import getproxies

    address = urlsplit(endpoint)
    if getproxies().get(address.scheme):
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True
