"""Distance between what a draft and its target say next, over the tokens a draft can propose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 1024
"""Rows whose logits exist at once."""


class HeadLoss(torch.autograd.Function):
    """Mean cross entropy of a mixture of the teacher's law and its best token; chunk by chunk, gradient included."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, features: Tensor, head: Tensor, hard_share: float) -> Tensor:
        """Both `[rows, hidden]`, `head` `[m, hidden]`: one number."""
        total = torch.zeros((), device=outputs.device)
        gradient = torch.empty_like(outputs)
        for first in range(0, outputs.shape[0], CHUNK):
            rows = slice(first, first + CHUNK)
            teacher = functional.linear(features[rows], head)
            best = teacher.argmax(-1, keepdim=True)
            wanted = teacher.softmax(-1).mul_(1 - hard_share)
            wanted.scatter_add_(1, best, torch.full_like(best, hard_share, dtype=wanted.dtype))
            logs = functional.linear(outputs[rows], head).log_softmax(-1)
            total -= torch.dot(wanted.flatten(), logs.flatten())
            gradient[rows] = logs.exp_().sub_(wanted) @ head
        num_rows = max(1, outputs.shape[0])
        ctx.save_for_backward(gradient / num_rows)
        return total / num_rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None


def head_loss(outputs: Tensor, features: Tensor, head: Tensor, hard_share: float) -> Tensor:
    """Cross entropy of the draft's law, wanted: the target's (and its best token, `hard_share` of it).

    Source: Hinton et al. 2015, arXiv:1503.02531, at temperature 1, over the rows of `head` alone.
    """
    result: Tensor = HeadLoss.apply(outputs, features, head, hard_share)  # type: ignore[no-untyped-call]
    return result


def feature_loss(outputs: Tensor, features: Tensor, scale: Tensor) -> Tensor:
    """Smooth L1 distance in units of each channel's spread `scale` `[hidden]` (Li et al. 2024, arXiv:2401.15077)."""
    return functional.smooth_l1_loss(outputs / scale, features / scale)
