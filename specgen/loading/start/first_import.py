"""Import hooks: run code around the first import of a module, or replace it by a placeholder until it is needed."""

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
    """Enters a context while a module is executed; does nothing if it is already imported.

    Args:
        name: Name of the module.
        around: Called with the module, which is still empty.
    """
    if name not in sys.modules and not any(isinstance(one, _Around) and one.name == name for one in sys.meta_path):
        sys.meta_path.insert(0, _Around(name, around))


class _Around(MetaPathFinder):
    """Finds one module with the other finders, and removes itself when the module is executed."""

    def __init__(self, name: str, around: Callable[[ModuleType], AbstractContextManager[None]]) -> None:
        self.name = name
        self._around = around

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        later = sys.meta_path[sys.meta_path.index(self) + 1 :] if self in sys.meta_path else []
        specs = (find(fullname, path, target) for finder in later if (find := getattr(finder, "find_spec", None)))
        spec: ModuleSpec | None = next(filter(None, specs), None)
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


def placeholder(name: str, leave: Callable[[], None], kept: Mapping[str, Any] | None = None) -> ModuleType:
    """Returns a placeholder for a module; the real module is imported when another attribute is used.

    Args:
        name: Name of the module.
        leave: Removes the placeholders.
        kept: Attributes of the placeholder.
    """

    def real(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        leave()
        return getattr(importlib.import_module(name), attribute)

    module = ModuleType(name)
    vars(module).update({**(kept or {}), "__getattr__": real})
    return module


class RealModules(MetaPathFinder, Loader):
    """Imports the real module for a placeholder's submodule, after the placeholders were removed.

    Args:
        is_left_out: Returns whether a module, given by name, is left out.
        leave: Removes the placeholders and this finder.
    """

    def __init__(self, is_left_out: Callable[[str], bool], leave: Callable[[], None]) -> None:
        self._is_left_out = is_left_out
        self._leave = leave
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if self._is_left_out(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        # Not in find_spec: a module that was imported meanwhile would be executed a second time.
        self._leave()
        part = importlib.import_module(spec.name)
        self._specs[spec.name] = part.__spec__
        return part

    def exec_module(self, module: ModuleType) -> None:
        # Its own loader has executed it, and must be able to find it again.
        module.__spec__ = self._specs.pop(module.__name__)
