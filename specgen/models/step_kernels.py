"""Compiles what a short pass needs between its products, for this machine."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from specgen.models.native_code import Function, NativeCode, bits_of
from specgen.models.native_weight import Prologue
from specgen.models.prologue_code import PROLOGUES
from specgen.models.step_code import NORM_ARGUMENTS, step_code

_COMPILING = Lock()
"""Layers are loaded in several threads."""


@dataclass(frozen=True, slots=True)
class StepKernels:
    """The functions of `step_code`.

    Args:
        run_steps: Runs steps.
        norm: Computes norms.
        norm_address: Where that is; so is the next one.
        add_address: Where sums are computed.
        code: They live as long as it does.
    """

    run_steps: Function
    norm: Function
    norm_address: int
    add_address: int
    code: NativeCode


def step_kernels() -> StepKernels | None:
    """Returns the functions, compiled for this machine; None if it runs no kernels of our own."""
    with _COMPILING:
        return compiled_steps()


@lru_cache(maxsize=1)
def compiled_steps() -> StepKernels | None:
    """Returns what `step_kernels` does, which lets one thread at a time compile."""
    try:
        code = NativeCode(step_code(PROLOGUES))
        run_steps, norm = code.function("run_steps", 4), code.function("norm", 4)
    except (ImportError, RuntimeError):
        return None
    return StepKernels(run_steps, norm, code.address("norm"), code.address("add"), code)


def norm_arguments(norm: Prologue, num_norms: int, num_rows: int, row_stride: int) -> list[int]:
    """Returns the arguments of norms: see `NORM_ARGUMENTS`."""
    assert norm.weight is not None, "it is a norm"
    return [norm.weight.data_ptr(), bits_of(norm.epsilon), norm.weight.shape[0], num_norms, num_rows, row_stride]


@dataclass(frozen=True, slots=True)
class NativeNorm:
    """Computes a norm after a product by our own kernel. Passes that are too long for `NativeLayers` use it.

    Args:
        prologue: The norm.
    """

    prologue: Prologue

    def __call__(self, hidden: Tensor) -> Tensor:
        """Returns the norms of float32 `[..., size]`."""
        kernels, size = step_kernels(), hidden.shape[-1]
        assert kernels is not None, "it was made for them"
        outputs = hidden.clone(memory_format=torch.contiguous_format)
        if num_rows := outputs.numel() // size:
            arguments = norm_arguments(self.prologue, 1, num_rows, size)
            block = (ctypes.c_int64 * len(NORM_ARGUMENTS))(*arguments)
            kernels.norm(ctypes.addressof(block), outputs.data_ptr(), 0, 1)
        return outputs
