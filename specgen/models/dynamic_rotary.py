"""Sets the frequencies of dynamic NTK scaling, which follow the length of the text, before each pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class DynamicRotary:
    """Gives each token the frequencies with which `generate` reads it.

    transformers computes them from the last position of a pass, and keys stay as they were cached: `generate` reads
    the whole prompt with the frequencies of the prompt's length, and each later token with those of the text up to it.
    A token's frequencies therefore depend on its position and the prompt's length only, not on drafts or chunks. Within
    the model's own window they don't change.

    The modules keep the frequencies of the longest text until a pass ends within the window. They are therefore called
    with the positions that make them compute the wanted ones.

    Source: transformers' `modeling_rope_utils.dynamic_rope_update`.

    Args:
        model: A transformers model.
    """

    def __init__(self, model: nn.Module) -> None:
        modules: Iterator[Any] = model.modules()
        self._modules = [(module, kinds) for module in modules if (kinds := _dynamic_kinds(module))]
        self.window: int = min((module.original_max_seq_len for module, _ in self._modules), default=0)
        """Length above which frequencies change, in tokens."""
        self.same_until = self.window
        """Length up to which all tokens have the same frequencies: the window, or the prompt's length if it is more."""

    def __bool__(self) -> bool:
        """Returns whether the model has such modules."""
        return bool(self._modules)

    def begin(self, num_prompt: int) -> bool:
        """Begins a text with a prompt of `num_prompt` tokens.

        Returns:
            Whether its tokens have other frequencies than the cached ones.
        """
        before, self.same_until = self.same_until, max(self.window, num_prompt)
        return self.same_until != before

    @property
    def first_pass_end(self) -> int:
        """Least end of the next pass: a pass that ends within the window returns to the frequencies of the window."""
        return self.window if self.same_until > self.window else 0

    def passes(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yields the borders of the passes that feed the positions from `start` to `end`."""
        border = min(end, max(start, self.same_until))
        if start < border:
            yield start, border
        yield from ((position, position + 1) for position in range(border, end))

    def prepare(self, end: int) -> None:
        """Sets the frequencies of a pass that ends before position `end`."""
        length = max(self.same_until, end)
        for module, kinds in self._modules:
            inputs = torch.zeros(1, device=next(module.buffers()).device)
            for kind in kinds:
                arguments = {} if kind is None else {"layer_type": kind}
                for last in (0, length - 1):
                    module(inputs, torch.tensor([[last]], device=inputs.device), **arguments)


def _dynamic_kinds(module: Any) -> list[str | None]:
    """Returns the types of layers for which a module scales dynamically; None is a module for all of them."""
    kind = getattr(module, "rope_type", None)
    if not hasattr(module, "original_max_seq_len"):
        return []
    given = kind if isinstance(kind, dict) else {None: kind}
    return [layer_type for layer_type, kind in given.items() if isinstance(kind, str) and "dynamic" in kind]
