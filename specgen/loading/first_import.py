"""Something to do around the first import of a module, whoever imports it and whenever."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def around_import(name: str, around: Callable[[ModuleType], AbstractContextManager[None]]) -> None:
    """Enter a context while a module is executed; nothing happens if it was imported before.

    Args:
        name: Of the module.
        around: Given the module, empty as yet.
    """
    if name not in sys.modules and not any(isinstance(one, _Around) and one.name == name for one in sys.meta_path):
        sys.meta_path.insert(0, _Around(name, around))


class _Around(MetaPathFinder):
    """Answers for one module with the spec of whoever else knows it, and leaves when that is executed."""

    def __init__(self, name: str, around: Callable[[ModuleType], AbstractContextManager[None]]) -> None:
        self.name = name
        self._around = around

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next((spec for finder in behind if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            with self._around(module):
                run(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
