"""Linear layers with 16-bit weights as they are stored; inputs, sums and outputs are float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from specgen.core.machine import cpu_flags
from specgen.core.settings import MAX_CHECKED_TOKENS
from specgen.models.cpu_vectors import has_bfloat16_products
from specgen.models.float_weight import FloatWeight
from specgen.models.formats import Float16Linear, NativeLinear
from specgen.models.native_weight import Prologue

MOST_OWN_ROWS = 16
"""Rows of a prompt up to which our own kernel of bfloat16 weights is about as fast as torch's."""
MOST_AMX_ROWS = 32
"""The same on AMX, where our own kernel computes so many rows at once."""
_reads_prompt: ContextVar[bool] = ContextVar("reads_prompt", default=False)


@contextmanager
def reading_prompt() -> Iterator[None]:
    """Marks passes that read a prompt: their rows need not equal the same rows of other passes."""
    token = _reads_prompt.set(True)
    try:
        yield
    finally:
        _reads_prompt.reset(token)


class FloatLinear(NativeLinear):
    """Base of these layers."""

    def __init__(self, weight: FloatWeight) -> None:
        super().__init__(weight)
        self.stored = weight.stored


class BFloat16Linear(FloatLinear):
    """A linear layer with bfloat16 weights.

    On CPUs with bfloat16 products, torch's kernel computes the rows of long prompts: it is faster, and rounds them to
    bfloat16. Rows of drafts run on our own kernel, which keeps at least 16 bits of each input, and computes a row alike
    in all passes.
    """

    native_weight: FloatWeight

    def __init__(self, weight: FloatWeight) -> None:
        super().__init__(weight)
        self._may_round = has_bfloat16_products(cpu_flags())

    def after(self, prologue: Prologue, inputs: Tensor) -> Tensor:
        """As in `NativeLinear`."""
        num_rows = math.prod(inputs.shape[:-1])
        if not self._may_round or num_rows <= self._most_own_rows():
            return super().after(prologue, inputs)
        outputs = self.native_weight.multiply_rounded(inputs.reshape(num_rows, -1).float(), prologue)
        return outputs.reshape(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def _most_own_rows(self) -> int:
        if not _reads_prompt.get():
            return MAX_CHECKED_TOKENS
        return MOST_AMX_ROWS if self.native_weight.packs_columns else MOST_OWN_ROWS


class NativeFloat16Linear(FloatLinear, Float16Linear):
    """Computes the same as `Float16Linear`, but for the order of additions."""
