"""The one base class of domain objects, and the one exception for input a user can mend."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value: hashable, compared by content, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class InputError(ValueError):
    """Input that a user can mend; its message is one line saying what, where and what is legal.

    The command line prints it and exits with code 2.
    """
