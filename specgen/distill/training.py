"""Trains a draft on texts of its target, with checkpoints to continue from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from specgen.distill.draft import SharedWeights, TrainableDraft
from specgen.distill.settings import DistillSettings
from specgen.distill.target_texts import Batch, TargetText, batch_indices, pad_batch, save_tensors

CHECKPOINT_SECONDS = 120.0
CLIP_NORM = 1.0
STEP_DECAY = 0.8
"""Weight of a draft step relative to the step before it, as a step counts only if the one before was right."""
CHUNK = 1024
"""Rows whose logits are in memory at once."""


class Trainer:
    """Trains a draft. Its state at a step depends only on the seed and the texts.

    Args:
        draft: Trained in place.
        texts: Texts of the target.
        shared: Weights of the target that the draft uses.
        settings: How to train, and the seed of the order of the texts.
    """

    def __init__(
        self, draft: TrainableDraft, texts: Sequence[TargetText], shared: SharedWeights, settings: DistillSettings
    ) -> None:
        self.draft, self.texts, self.shared = draft, texts, shared
        self.settings, self._seed = settings.train, settings.seed
        sample = torch.cat([text.features for text in texts[:200]]).float()
        self._scale = sample.std(0).clamp(min=1e-4).to(shared.head.device)
        """Standard deviation of each channel of the target's features, `[hidden]`."""
        self.step = 0
        self._steps_per_epoch = len(self._order(0))
        self.num_steps = max(1, round(self.settings.epochs * self._steps_per_epoch))
        self.parameters = dict(draft.named_parameters())
        matrices = [value for value in self.parameters.values() if value.ndim > 1]
        vectors = [value for value in self.parameters.values() if value.ndim == 1]
        decay = self.settings.weight_decay
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=self.settings.learning_rate,
            betas=(0.9, 0.95),
        )

    def run(self, checkpoint: Path, clock: Callable[[], float] = monotonic) -> Iterator[float]:
        """Trains to the end and yields the loss of each step.

        Args:
            checkpoint: File to continue from, written every `CHECKPOINT_SECONDS` and at the end.
            clock: Seconds.
        """
        if checkpoint.exists():
            self._load(checkpoint)
        last_saved = clock()
        order: list[list[int]] = []
        epoch = -1
        while self.step < self.num_steps:
            if self.step // self._steps_per_epoch != epoch or self.step % self._steps_per_epoch >= len(order):
                epoch = self.step // self._steps_per_epoch
                order = self._order(epoch)
            indices = order[self.step % self._steps_per_epoch % len(order)]
            loss = self._train_on(pad_batch([self.texts[index] for index in indices], self.shared.head.device))
            self.step += 1
            if clock() - last_saved >= CHECKPOINT_SECONDS or self.step == self.num_steps:
                self._save(checkpoint)
                last_saved = clock()
            yield loss

    def _order(self, epoch: int) -> list[list[int]]:
        return batch_indices(self.texts, self.settings.batch_tokens, f"{self._seed} {epoch}")

    def _learning_rate(self) -> float:
        """Returns the rate of this step: a linear warmup, then a cosine down to 2 % of the peak."""
        warmup = max(1, round(self.settings.warmup_share * self.num_steps))
        if self.step < warmup:
            return self.settings.learning_rate * (self.step + 1) / warmup
        done = (self.step - warmup) / max(1, self.num_steps - warmup)
        return self.settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def _train_on(self, batch: Batch) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        loss = self.loss(batch)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP_NORM)
        self._optimizer.step()
        return float(loss.detach())

    def loss(self, batch: Batch) -> Tensor:
        """Returns the weighted mean over the draft steps of the head loss and the feature loss.

        The head loss covers the positions whose next token can be drafted.
        """
        settings = self.settings
        num_steps = settings.unroll if self.draft.kind == "features" else 1
        outputs = self.draft.unroll(self.shared.embedding[batch.ids], batch.features, num_steps)
        positions = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        next_ids = torch.roll(batch.ids, -1, 1)
        total = torch.zeros((), device=batch.ids.device)
        weights = 0.0
        for step, output in enumerate(outputs):
            first = batch.num_prompts[:, None] - 1 + step
            in_answer = (positions >= first) & (positions < batch.lengths[:, None] - 1)
            can_draft = in_answer & (self.shared.row_of[next_ids] >= 0)
            weight = STEP_DECAY**step
            loss = head_loss(output[can_draft], batch.features[can_draft], self.shared, settings.hard_share)
            if settings.feature_weight:
                distance = feature_loss(output[in_answer], batch.features[in_answer], self._scale)
                loss = loss + settings.feature_weight * distance
            total = total + weight * loss
            weights += weight
        return total / weights

    def _save(self, checkpoint: Path) -> None:
        tensors = {f"draft.{name}": value.detach().cpu() for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            state = self._optimizer.state[value]
            tensors |= {f"{key}.{name}": state[key].cpu() for key in ("exp_avg", "exp_avg_sq")}
        save_tensors(checkpoint, tensors, {"step": str(self.step)})

    def _load(self, checkpoint: Path) -> None:
        with safe_open(checkpoint, "pt") as file:
            self.step = int(file.metadata()["step"])
            for name, value in self.parameters.items():
                with torch.no_grad():
                    value.copy_(file.get_tensor(f"draft.{name}"))
                self._optimizer.state[value] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": file.get_tensor(f"exp_avg.{name}").to(value.device),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}").to(value.device),
                }


class HeadLoss(torch.autograd.Function):
    """Computes the mean cross entropy to a mixture of the target's distribution and its best token, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, features: Tensor, shared: SharedWeights, hard_share: float) -> Tensor:
        """Returns the scalar loss; `outputs` and `features` are `[rows, hidden]`."""
        total = torch.zeros((), device=outputs.device)
        gradient = torch.empty_like(outputs)
        for first in range(0, outputs.shape[0], CHUNK):
            rows = slice(first, first + CHUNK)
            teacher = shared.logits(features[rows])
            best = teacher.argmax(-1, keepdim=True)
            expected = teacher.softmax(-1).mul_(1 - hard_share)
            expected.scatter_add_(1, best, torch.full_like(best, hard_share, dtype=expected.dtype))
            logs = shared.logits(outputs[rows]).log_softmax(-1)
            total -= torch.dot(expected.flatten(), logs.flatten())
            gradient[rows] = logs.exp_().sub_(expected).to(shared.head.dtype) @ shared.head
        num_rows = max(1, outputs.shape[0])
        ctx.save_for_backward(gradient / num_rows)
        return total / num_rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None


def head_loss(outputs: Tensor, features: Tensor, shared: SharedWeights, hard_share: float) -> Tensor:
    """Returns the cross entropy to the target: `hard_share` of it to its best token, the rest to its distribution.

    Source: Hinton et al. 2015, arXiv:1503.02531, at temperature 1, over the tokens that the draft can propose.
    """
    result: Tensor = HeadLoss.apply(outputs, features, shared, hard_share)  # type: ignore[no-untyped-call]
    return result


def feature_loss(outputs: Tensor, features: Tensor, scale: Tensor) -> Tensor:
    """Returns the smooth L1 distance in units of `scale` `[hidden]`, the standard deviation of each channel.

    Source: Li et al. 2024, arXiv:2401.15077.
    """
    return functional.smooth_l1_loss(outputs / scale, features / scale)
