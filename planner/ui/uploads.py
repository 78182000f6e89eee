"""What a user pastes or uploads, kept as files named by their content: equal content is one file, one cache entry."""

import atexit
import hashlib
import shutil
import tempfile
from functools import cache
from pathlib import Path

PRICE_TEMPLATE = """\
provider,instance_type,region,purchase,usd_per_hour,discount_ratio,gpu,gpu_count,interconnect,as_of,notes
aws,p5.48xlarge,us-east-1,reserved_1y,38.50,,,,,2026-11-01,our contract
gcp,*,*,on_demand,,0.15,,,,2026-11-01,15 % off everything on demand
our-datacentre,h100-box,fra1,on_demand,9.20,,H100-SXM-80GB,8,nvswitch,2026-11-01,own hardware by the hour
"""
"""A contract price, a discount on everything of one kind, and hardware the catalog does not have."""


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="llm-serving-planner-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def kept(raw: bytes, name: str) -> Path:
    """A private file `name` with this content, removed when the program ends."""
    file = _folder() / hashlib.sha256(raw).hexdigest()[:16] / name
    if not file.exists():
        file.parent.mkdir(mode=0o700, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_bytes(raw)
        partial.replace(file)
    return file


def is_kept(reference: str) -> bool:
    """True for the path of a kept file."""
    return reference.startswith(str(_folder()))


def without_folder(message: str) -> str:
    """A message in which kept files go by their name alone."""
    words = message.split(" ")
    root = str(_folder())
    return " ".join(word[word.rindex("/") + 1 :] if word.startswith(root) else word for word in words)
