"""What a user pastes or uploads, kept as files named by their content: equal content is one file, one cache entry."""

import atexit
import hashlib
import shutil
import tempfile
from functools import cache
from pathlib import Path


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
