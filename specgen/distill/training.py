"""Texts of the target in, a trained draft out: batches, steps, and checkpoints to go on from."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from safetensors import safe_open
from torch import Tensor

from specgen.distill.draft import Draft
from specgen.distill.loss import feature_loss, head_loss
from specgen.distill.settings import TrainSettings
from specgen.distill.texts import Text, save_tensors

CHECKPOINT_SECONDS = 120.0
CLIP_NORM = 1.0
STEP_DECAY = 0.8
"""Weight of a step of the draft over the one before it: it counts only where that one was right."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What a draft shares with its target: `embedding` `[vocab, hidden]`, `head` `[m, hidden]` rows of `draft_ids`.

    `row_of` `[vocab]` is the row of a token in `head`, -1 for tokens that can't be drafted.
    """

    embedding: Tensor
    head: Tensor
    draft_ids: Tensor
    row_of: Tensor


def share(embedding: Tensor, head: Tensor, draft_ids: Tensor) -> Shared:
    """What a draft over these tokens shares."""
    row_of = torch.full((head.shape[0],), -1, device=head.device)
    row_of[draft_ids] = torch.arange(len(draft_ids), device=head.device)
    return Shared(embedding, head[draft_ids].contiguous(), draft_ids, row_of)


def frequent_ids(texts: Sequence[Text], num_ids: int, vocab_size: int, always: Sequence[int]) -> Tensor:
    """The tokens the target writes most, ascending; ties go to the lower id, which tokenizers learn earlier.

    Args:
        texts: What it wrote.
        num_ids: How many; 0 is all.
        vocab_size: Tokens there are.
        always: Taken whatever their number: end tokens.
    """
    if not num_ids or num_ids >= vocab_size:
        return torch.arange(vocab_size)
    counts = torch.zeros(vocab_size)
    for text in texts:
        counts += torch.bincount(text.ids[text.num_prompt :], minlength=vocab_size)
        # A prompt's words come back in answers.
        counts += 0.1 * torch.bincount(text.ids[: text.num_prompt], minlength=vocab_size)
    counts[list(always)] = math.inf
    return counts.argsort(descending=True, stable=True)[:num_ids].sort().values


def feature_scale(texts: Sequence[Text]) -> Tensor:
    """Spread of each channel of the target's head inputs, `[hidden]`."""
    sample = torch.cat([text.features for text in texts[:200]]).float()
    return sample.std(0).clamp(min=1e-4)


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of similar length, padded on the right: `ids` `[batch, n]`, `features` `[batch, n, hidden]`."""

    ids: Tensor
    features: Tensor
    num_prompts: Tensor
    lengths: Tensor


def batch_of(texts: Sequence[Text], device: torch.device) -> Batch:
    """A batch; the last token of each text has no feature and is only predicted."""
    width = max(len(text.ids) for text in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.int64)
    features = torch.zeros(len(texts), width, texts[0].features.shape[1])
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = text.ids
        features[row, : len(text.features)] = text.features
    num_prompts = torch.tensor([text.num_prompt for text in texts])
    lengths = torch.tensor([len(text.ids) for text in texts])
    return Batch(ids.to(device), features.to(device), num_prompts.to(device), lengths.to(device))


def batches(texts: Sequence[Text], batch_tokens: int, seed: str) -> list[list[int]]:
    """Indices of the texts of each step of one epoch: similar lengths together, steps in random order."""
    rng = random.Random(seed)  # noqa: S311
    order = sorted(range(len(texts)), key=lambda index: len(texts[index].ids) + rng.uniform(0, 8))
    steps: list[list[int]] = [[]]
    width = 0
    for index in order:
        width = max(width, len(texts[index].ids))
        if steps[-1] and (len(steps[-1]) + 1) * width > batch_tokens:
            steps.append([])
            width = len(texts[index].ids)
        steps[-1].append(index)
    rng.shuffle(steps)
    return steps


class Trainer:
    """Trains a draft; its state at a step follows from the seed and the texts alone.

    Args:
        draft: Trained in place.
        texts: The target's.
        shared: What it shares with the target.
        settings: How.
        seed: Of the order.
        checkpoint: File to go on from, and to write every `CHECKPOINT_SECONDS`.
    """

    def __init__(
        self,
        draft: Draft,
        texts: Sequence[Text],
        shared: Shared,
        settings: TrainSettings,
        *,
        seed: int,
        checkpoint: Path,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.draft, self.texts, self.shared, self.settings = draft, texts, shared, settings
        self.seed, self.checkpoint, self._clock = seed, checkpoint, clock
        self.scale = feature_scale(texts).to(shared.head.device)
        self.step = 0
        self.steps_per_epoch = len(batches(texts, settings.batch_tokens, f"{seed} 0"))
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
        """Train to the end; yields the loss of each step. A checkpoint is written now and then, and at the end."""
        self._load()
        last_saved = self._clock()
        order: list[list[int]] = []
        epoch = -1
        while self.step < self.num_steps:
            if self.step // self.steps_per_epoch != epoch or self.step % self.steps_per_epoch >= len(order):
                epoch = self.step // self.steps_per_epoch
                order = batches(self.texts, self.settings.batch_tokens, f"{self.seed} {epoch}")
            chosen = order[self.step % self.steps_per_epoch % len(order)]
            loss = self._train_on(batch_of([self.texts[index] for index in chosen], self.shared.head.device))
            self.step += 1
            if self._clock() - last_saved >= CHECKPOINT_SECONDS or self.step == self.num_steps:
                self._save()
                last_saved = self._clock()
            yield loss

    def _rate(self) -> float:
        warmup = max(1, round(self.settings.warmup_share * self.num_steps))
        if self.step < warmup:
            return self.settings.learning_rate * (self.step + 1) / warmup
        done = (self.step - warmup) / max(1, self.num_steps - warmup)
        return self.settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def _train_on(self, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP_NORM)
        self.optimizer.step()
        return float(loss.detach())

    def loss(self, batch: Batch) -> Tensor:
        """Weighted mean over the steps of a draft: head loss where the next token can be drafted, feature loss."""
        settings = self.settings
        num_steps = settings.unroll if self.draft.kind == "features" else 1
        outputs = self.draft.unroll(self.shared.embedding[batch.ids], batch.features, num_steps)
        positions = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        following = torch.roll(batch.ids, -1, 1)
        total = torch.zeros((), device=batch.ids.device)
        weights = 0.0
        for step, output in enumerate(outputs):
            first = batch.num_prompts[:, None] - 1 + step
            in_answer = (positions >= first) & (positions < batch.lengths[:, None] - 1)
            known = in_answer & (self.shared.row_of[following] >= 0)
            weight = STEP_DECAY**step
            loss = head_loss(output[known], batch.features[known], self.shared.head, settings.hard_share)
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
        save_tensors(self.checkpoint, tensors, {"step": str(self.step)})

    def _load(self) -> None:
        if not self.checkpoint.exists():
            return
        with safe_open(self.checkpoint, "pt") as file:
            self.step = int(file.metadata()["step"])
            for name, value in self.parameters.items():
                with torch.no_grad():
                    value.copy_(file.get_tensor(f"draft.{name}"))
                self.optimizer.state[value] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": file.get_tensor(f"exp_avg.{name}").to(value.device),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}").to(value.device),
                }
