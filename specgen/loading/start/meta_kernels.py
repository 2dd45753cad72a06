"""Imports torch without its Python kernels for the meta device, a device without memory: half a second of a start.

They compute shapes, mostly for compilers. Most operations know their shapes without, and nothing here is compiled.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from specgen.loading.start.first_import import RealParts, stand_in

META_KERNELS = "torch._meta_registrations"
_PACKAGES = ("_decomp", "_prims", "_refs")
_PARTS = (
    *(f"torch.{name}" for name in _PACKAGES),
    *("torch._prims_common.wrappers", "torch.testing._internal.common_dtype", "torch.utils._content_store"),
)
"""What they bring along, and what in torch may ask for that first."""


@contextmanager
def meta_kernels_put_off(torch: ModuleType) -> Iterator[None]:
    """Around the import of torch: whoever asks for the kernels, by an import or by their names in torch, gets them.

    An operation that fails for want of them does not ask. For imports by one thread at a time.
    """

    def leave() -> None:
        if sys.modules.get(META_KERNELS) is kernels:
            del sys.modules[META_KERNELS]
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        all_meta_kernels()

    kernels = sys.modules[META_KERNELS] = stand_in(META_KERNELS, leave)
    # The parts import one another in a circle that can be entered in one place only.
    finder = RealParts(lambda name: name in _PARTS, leave)
    try:
        yield
    finally:
        if sys.modules.get(META_KERNELS) is kernels:
            del sys.modules[META_KERNELS]
    sys.meta_path.insert(0, finder)
    for name in _PACKAGES:
        if name not in vars(torch):
            setattr(torch, name, stand_in(f"torch.{name}", leave))
    try:
        _finish_generators(torch)
    except Exception:  # noqa: BLE001  a torch that is built otherwise is taken as it is
        leave()


def all_meta_kernels() -> None:
    """Import what was put off."""
    importlib.import_module(META_KERNELS)


def _finish_generators(torch: Any) -> None:
    """One of the parts gives random generators their class, and does so once more when it is imported."""
    if finish := getattr(torch._C, "_set_generator_metaclass", None):
        finish(importlib.import_module("torch._opaque_base").OpaqueBaseMeta)
    torch.Generator()
