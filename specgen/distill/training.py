"""Trains a draft on texts of its target, with checkpoints to continue from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from safetensors import safe_open
from torch import Tensor

from specgen.distill.batches import Batch, batch_indices, pad_batch
from specgen.distill.draft import Draft
from specgen.distill.loss import feature_loss, head_loss
from specgen.distill.settings import TrainSettings
from specgen.distill.shared_weights import SharedWeights
from specgen.distill.text_files import save_tensors
from specgen.distill.text_generation import TargetText

CHECKPOINT_SECONDS = 120.0
CLIP_NORM = 1.0
STEP_DECAY = 0.8
"""Weight of a draft step relative to the step before it, as a step counts only if the one before was right."""


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """How one training runs.

    Args:
        settings: Of the training.
        seed: Of the order of the texts.
        checkpoint: File to continue from, written every `CHECKPOINT_SECONDS` and at the end.
        clock: Seconds, for the checkpoints.
    """

    settings: TrainSettings
    seed: int
    checkpoint: Path
    clock: Callable[[], float] = monotonic


class Trainer:
    """Trains a draft. Its state at a step depends only on the seed and the texts.

    Args:
        draft: Trained in place.
        texts: Texts of the target.
        shared: Weights of the target that the draft uses.
        options: How to train.
    """

    def __init__(
        self, draft: Draft, texts: Sequence[TargetText], shared: SharedWeights, options: TrainerOptions
    ) -> None:
        self.draft, self.texts, self.shared, self.options = draft, texts, shared, options
        settings = self.settings = options.settings
        self.scale = feature_scale(texts).to(shared.head.device)
        self.step = 0
        self.steps_per_epoch = len(self._order(0))
        self.num_steps = max(1, round(settings.epochs * self.steps_per_epoch))
        self.parameters = dict(draft.named_parameters())
        matrices = [value for value in self.parameters.values() if value.ndim > 1]
        vectors = [value for value in self.parameters.values() if value.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
        )

    def run(self) -> Iterator[float]:
        """Trains to the end and yields the loss of each step."""
        self._load()
        clock = self.options.clock
        last_saved = clock()
        order: list[list[int]] = []
        epoch = -1
        while self.step < self.num_steps:
            if self.step // self.steps_per_epoch != epoch or self.step % self.steps_per_epoch >= len(order):
                epoch = self.step // self.steps_per_epoch
                order = self._order(epoch)
            indices = order[self.step % self.steps_per_epoch % len(order)]
            loss = self._train_on(pad_batch([self.texts[index] for index in indices], self.shared.head.device))
            self.step += 1
            if clock() - last_saved >= CHECKPOINT_SECONDS or self.step == self.num_steps:
                self._save()
                last_saved = clock()
            yield loss

    def _order(self, epoch: int) -> list[list[int]]:
        return batch_indices(self.texts, self.settings.batch_tokens, f"{self.options.seed} {epoch}")

    def _learning_rate(self) -> float:
        """Returns the rate of this step: a linear warmup, then a cosine down to 2 % of the peak."""
        warmup = max(1, round(self.settings.warmup_share * self.num_steps))
        if self.step < warmup:
            return self.settings.learning_rate * (self.step + 1) / warmup
        done = (self.step - warmup) / max(1, self.num_steps - warmup)
        return self.settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def _train_on(self, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP_NORM)
        self.optimizer.step()
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
            loss = head_loss(output[can_draft], batch.features[can_draft], self.shared.head, settings.hard_share)
            if settings.feature_weight:
                distance = feature_loss(output[in_answer], batch.features[in_answer], self.scale)
                loss = loss + settings.feature_weight * distance
            total = total + weight * loss
            weights += weight
        return total / weights

    def _save(self) -> None:
        tensors = {f"draft.{name}": value.detach().cpu() for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            state = self.optimizer.state[value]
            tensors |= {f"{key}.{name}": state[key].cpu() for key in ("exp_avg", "exp_avg_sq")}
        save_tensors(self.options.checkpoint, tensors, {"step": str(self.step)})

    def _load(self) -> None:
        if not self.options.checkpoint.exists():
            return
        with safe_open(self.options.checkpoint, "pt") as file:
            self.step = int(file.metadata()["step"])
            for name, value in self.parameters.items():
                with torch.no_grad():
                    value.copy_(file.get_tensor(f"draft.{name}"))
                self.optimizer.state[value] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": file.get_tensor(f"exp_avg.{name}").to(value.device),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}").to(value.device),
                }


def feature_scale(texts: Sequence[TargetText]) -> Tensor:
    """Returns the standard deviation of each channel of the target's features, `[hidden]`."""
    sample = torch.cat([text.features for text in texts[:200]]).float()
    return sample.std(0).clamp(min=1e-4)
