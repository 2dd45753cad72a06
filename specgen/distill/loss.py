"""Defines the loss of a draft: its distance from the target, over the tokens that the draft can propose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 1024
"""Rows whose logits are in memory at once."""


class HeadLoss(torch.autograd.Function):
    """Computes the mean cross entropy to a mixture of the target's distribution and its best token, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, features: Tensor, head: Tensor, hard_share: float) -> Tensor:
        """Returns the scalar loss; `outputs` and `features` are `[rows, hidden]`, `head` is `[m, hidden]`."""
        total = torch.zeros((), device=outputs.device)
        gradient = torch.empty_like(outputs)
        for first in range(0, outputs.shape[0], CHUNK):
            rows = slice(first, first + CHUNK)
            teacher = functional.linear(features[rows], head)
            best = teacher.argmax(-1, keepdim=True)
            expected = teacher.softmax(-1).mul_(1 - hard_share)
            expected.scatter_add_(1, best, torch.full_like(best, hard_share, dtype=expected.dtype))
            logs = functional.linear(outputs[rows], head).log_softmax(-1)
            total -= torch.dot(expected.flatten(), logs.flatten())
            gradient[rows] = logs.exp_().sub_(expected) @ head
        num_rows = max(1, outputs.shape[0])
        ctx.save_for_backward(gradient / num_rows)
        return total / num_rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None


def head_loss(outputs: Tensor, features: Tensor, head: Tensor, hard_share: float) -> Tensor:
    """Returns the cross entropy to the target: `hard_share` of it to its best token, the rest to its distribution.

    Source: Hinton et al. 2015, arXiv:1503.02531, at temperature 1, over the rows of `head`.
    """
    result: Tensor = HeadLoss.apply(outputs, features, head, hard_share)  # type: ignore[no-untyped-call]
    return result


def feature_loss(outputs: Tensor, features: Tensor, scale: Tensor) -> Tensor:
    """Returns the smooth L1 distance in units of `scale` `[hidden]`, the standard deviation of each channel.

    Source: Li et al. 2024, arXiv:2401.15077.
    """
    return functional.smooth_l1_loss(outputs / scale, features / scale)
