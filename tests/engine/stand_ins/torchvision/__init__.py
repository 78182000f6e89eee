"""Stands in for torchvision, whose PyPI wheels are built for CUDA: vLLM's multimodal classes import it for images.

Put on the oracle's path only. Any submodule and any name in it exists and does nothing.
"""

import importlib.abc
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

__version__ = "0.0.0"


class _Anything(type):
    """A class whose every attribute is another such class."""

    def __getattr__(cls, name: str) -> type:
        return __getattr__(name)


def __getattr__(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname.startswith(f"{__name__}."):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = __getattr__


sys.meta_path.append(_Finder())
