"""Something to do around the first import of a module or in its place, whoever imports it and whenever."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


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
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :] if self in sys.meta_path else []
        found = (find(fullname, path, target) for finder in behind if (find := getattr(finder, "find_spec", None)))
        spec: ModuleSpec | None = next(filter(None, found), None)
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


def stand_in(name: str, leave: Callable[[], None], kept: Mapping[str, Any] | None = None) -> ModuleType:
    """A module in place of one that was left out, until somebody asks for more of it.

    Args:
        name: Of the module.
        leave: Takes the stand-ins away.
        kept: What it has of its own.
    """

    def real(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        leave()
        return getattr(importlib.import_module(name), attribute)

    module = ModuleType(name)
    vars(module).update({**(kept or {}), "__getattr__": real})
    return module


class RealParts(MetaPathFinder, Loader):
    """Answers an import of what was left out with the real part, after the stand-ins have left.

    Args:
        is_left_out: Told the name of a module.
        leave: Takes the stand-ins away, and this.
    """

    def __init__(self, is_left_out: Callable[[str], bool], leave: Callable[[], None]) -> None:
        self._is_left_out = is_left_out
        self._leave = leave
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if self._is_left_out(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        # Not as it is looked for: what then is there already would be executed a second time.
        self._leave()
        part = importlib.import_module(spec.name)
        self._specs[spec.name] = part.__spec__
        return part

    def exec_module(self, module: ModuleType) -> None:
        # It was executed by its own loader, and is to be found there again.
        module.__spec__ = self._specs.pop(module.__name__)
