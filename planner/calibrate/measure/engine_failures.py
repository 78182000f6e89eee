"""What went wrong in vLLM, told in one line and sorted by what can be done about it."""

from planner.calibrate.measure.engine_protocol import FailureKind, one_line

_NO_ROOM = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "bad_alloc",
    "no available memory for the cache",
    "kv cache is needed, which is larger than",
    "maximum number of tokens that can be stored in kv cache",
    "is less than desired",
)
LONGEST_CHAIN = 20
"""Of exceptions that came from each other."""


class StartError(Exception):
    """The engine did not start: what kind of failure, in one line."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(one_line(message))
        self.kind = kind


def failure_kind(error: BaseException) -> FailureKind:
    """What to do about an exception of vLLM."""
    text = str(error).lower()
    if is_out_of_memory(error):
        return FailureKind.OUT_OF_MEMORY
    if "connector" in text or "kv_transfer" in text or "kv transfer" in text:
        return FailureKind.CONTEXT
    return FailureKind.ENGINE


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less of everything would have fitted, by the exception or one that it came from."""
    link: BaseException | None = error
    for _ in range(LONGEST_CHAIN):
        if link is None:
            return False
        if isinstance(link, MemoryError) or says_out_of_memory(str(link)):
            return True
        link = link.__cause__ or link.__context__
    return False


def says_out_of_memory(message: str) -> bool:
    """Whether a message of vLLM, torch, CUDA or the operating system says that memory ran out.

    >>> says_out_of_memory("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    True
    """
    lower = message.lower()
    return any(words in lower for words in _NO_ROOM)


def reason(error: BaseException) -> str:
    """What an exception of vLLM says, in one line: pydantic's wrapping and the list of every model known left out."""
    text = str(error) or type(error).__name__
    _, _, value = text.partition("Value error, ")
    text = (value or text).partition("[type=")[0]
    text = text.partition("Supported architectures:")[0].rstrip(" :")
    return one_line(text)
