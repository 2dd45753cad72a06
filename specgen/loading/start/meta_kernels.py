"""Imports torch without its Python kernels for the meta device (a device without memory), which saves 0.5 s at start.

They compute shapes, mostly for compilers. Most operations know their shapes without them, and nothing is compiled here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from specgen.loading.start.first_import import RealModules, placeholder

META_KERNELS = "torch._meta_registrations"
_PACKAGES = ("_decomp", "_prims", "_refs")
_PARTS = (
    *(f"torch.{name}" for name in _PACKAGES),
    *("torch._prims_common.wrappers", "torch.testing._internal.common_dtype", "torch.utils._content_store"),
)
"""Modules that the kernels import, and modules of torch that may import those first."""


@contextmanager
def meta_kernels_put_off(torch: ModuleType) -> Iterator[None]:
    """Postpones the kernels during the import of torch; using them by import or by name imports them.

    An operation that fails because they are missing does not import them. For imports by one thread at a time.
    """

    def leave() -> None:
        if sys.modules.get(META_KERNELS) is kernels:
            del sys.modules[META_KERNELS]
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        all_meta_kernels()

    kernels = sys.modules[META_KERNELS] = placeholder(META_KERNELS, leave)
    # The parts import each other in a cycle that works from only one starting point.
    finder = RealModules(lambda name: name in _PARTS, leave)
    try:
        yield
    finally:
        if sys.modules.get(META_KERNELS) is kernels:
            del sys.modules[META_KERNELS]
    sys.meta_path.insert(0, finder)
    for name in _PACKAGES:
        if name not in vars(torch):
            setattr(torch, name, placeholder(f"torch.{name}", leave))
    try:
        _finish_generators(torch)
    except Exception:  # noqa: BLE001  with an unknown version of torch, import everything
        leave()


def all_meta_kernels() -> None:
    """Imports the postponed kernels."""
    importlib.import_module(META_KERNELS)


def _finish_generators(torch: Any) -> None:
    """Sets the metaclass of random generators, as one of the postponed parts does at import."""
    if finish := getattr(torch._C, "_set_generator_metaclass", None):
        finish(importlib.import_module("torch._opaque_base").OpaqueBaseMeta)
    torch.Generator()
