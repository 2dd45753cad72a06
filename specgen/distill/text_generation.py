"""Generates answers of the target in batches, with its features: the inputs of the output head at every position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from specgen.distill.target_texts import TargetText
from specgen.models.decoder import Decoder
from specgen.models.stored_slots import KvSlots, rotations_at

COMPACT_BELOW = 0.75
"""Share of unfinished rows below which the finished ones are removed from the batch."""
PREFILL_TOKENS = 8192
"""Tokens of one pass over prompts, of all rows together; bounds its memory."""


class BatchGenerator:
    """The target, for many texts at once.

    Args:
        target: In the type that the device multiplies fastest.
        vocab_size: Number of tokens that may be generated.
        end_ids: Tokens that end an answer.
    """

    def __init__(self, target: Decoder, vocab_size: int, end_ids: frozenset[int]) -> None:
        self.target, self.vocab_size, self.end_ids = target, vocab_size, end_ids

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], temperatures: Sequence[float], max_new_tokens: int, seed: int
    ) -> list[TargetText]:
        """Answers prompts.

        Args:
            prompts: Token ids; similar lengths need least padding.
            temperatures: One per prompt; 0 is greedy.
            max_new_tokens: Longest answer.
            seed: Of the sampled answers; the same batch gives the same texts.
        """
        batch = _Batch(self, prompts, temperatures, max_new_tokens)
        random = torch.Generator(self.target.device).manual_seed(seed)
        features = batch.prefill()
        for _ in range(max_new_tokens):
            if not batch.append(self._choose(features, batch.temperatures, random)):
                break
            features = batch.step()
        return batch.texts()

    def _choose(self, features: Tensor, temperatures: Tensor, random: torch.Generator) -> Tensor:
        """Returns the next tokens `[rows]`, from features `[rows, hidden]`."""
        logits = self.target.logits(features)[:, : self.vocab_size].float()
        chosen = logits.argmax(-1)
        is_sampled = temperatures > 0
        if bool(is_sampled.any()):
            # `multinomial` draws a number for each token of the vocabulary, which takes longer than the pass.
            sums = (logits[is_sampled] / temperatures[is_sampled, None]).softmax(-1).cumsum(-1)
            # The last sum is about 1. A draw may be rounded up to it, and then no sum is above the draw.
            drawn = torch.rand(len(sums), 1, generator=random, device=sums.device) * sums[:, -1:]
            found = torch.searchsorted(sums, drawn, right=True)[:, 0]
            chosen[is_sampled] = found.clamp(max=self.vocab_size - 1)
        return chosen


class _BatchSlots(KvSlots):
    """Keys and values of many rows, `[rows, kv heads, capacity, size]` per layer; all rows have the same length."""

    def __init__(self, target: Decoder, num_rows: int, capacity: int) -> None:
        spec, like = target.spec, target.segments[0].like
        shape = (num_rows, spec.num_kv_heads, capacity, spec.head_size)
        self._keys = [like.new_zeros(shape) for _ in spec.layers]
        self._values = [like.new_zeros(shape) for _ in spec.layers]
        self._scale = spec.attention_scale
        self.length = 0
        self.rows = slice(None)
        self.mask: Tensor | None = None

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As in `KvSlots`."""
        queries, keys, values = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
        last = self.length + keys.shape[2]
        self._keys[layer][self.rows, :, self.length : last] = keys
        self._values[layer][self.rows, :, self.length : last] = values
        all_keys = self._keys[layer][self.rows, :, :last]
        all_values = self._values[layer][self.rows, :, :last]
        if queries.shape[2] > 1:
            is_grouped = queries.shape[1] > keys.shape[1]
            attended = functional.scaled_dot_product_attention(
                queries, all_keys, all_values, attn_mask=self.mask, scale=self._scale, enable_gqa=is_grouped
            )
            return attended.transpose(1, 2).flatten(2)
        # One query per row: two products of small matrices, with the heads of a group together.
        grouped = queries.reshape(queries.shape[0], keys.shape[1], -1, queries.shape[3])
        scores = grouped @ all_keys.transpose(2, 3) * self._scale
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask, float("-inf"))
        weighted: Tensor = scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ all_values
        return weighted.reshape(queries.shape).transpose(1, 2).flatten(2)

    def keep_rows(self, rows: Tensor) -> None:
        # Only the used positions are copied.
        for tensors in (self._keys, self._values):
            for index, old in enumerate(tensors):
                new = old.new_zeros(len(rows), *old.shape[1:])
                new[:, :, : self.length] = old[rows, :, : self.length]
                tensors[index] = new


class _Batch:
    """Texts in progress. Prompts are padded on the left, so that all rows have the same length."""

    def __init__(
        self,
        owner: BatchGenerator,
        prompts: Sequence[Sequence[int]],
        temperatures: Sequence[float],
        max_new_tokens: int,
    ) -> None:
        self._target, self._end_ids = owner.target, owner.end_ids
        self._device = owner.target.device
        self._prompts = [list(prompt) for prompt in prompts]
        self._ids = [list(prompt) for prompt in prompts]
        self._width = max(len(prompt) for prompt in prompts)
        self._padding = self._tensor([self._width - len(prompt) for prompt in prompts])
        self._temperatures = self._tensor(temperatures)
        self._features: list[list[Tensor]] = [[] for _ in prompts]
        self._active = torch.arange(len(prompts), device=self._device)
        self._is_done = [False] * len(prompts)
        self._slots = _BatchSlots(owner.target, len(prompts), self._width + max_new_tokens)

    @property
    def temperatures(self) -> Tensor:
        """Temperatures of the active rows."""
        return self._temperatures[self._active]

    def prefill(self) -> Tensor:
        """Runs the prompts, some rows at a time; returns the features of their last tokens `[rows, hidden]`."""
        num_rows, width, slots = len(self._prompts), self._width, self._slots
        step = max(1, PREFILL_TOKENS // width)
        last = []
        for first in range(0, num_rows, step):
            rows = range(first, min(first + step, num_rows))
            ids = self._tensor([[0] * (width - len(self._prompts[row])) + self._prompts[row] for row in rows])
            padding = self._padding[first : first + step, None]
            columns = torch.arange(width, device=self._device)
            # A padded position attends to itself, so that no row of the mask is empty.
            attends = (columns[None, :] <= columns[:, None]) & (columns[None, None, :] >= padding[:, :, None])
            mask = (attends | torch.eye(width, dtype=torch.bool, device=self._device))[:, None]
            slots.rows, slots.length, slots.mask = slice(first, first + step), 0, mask
            hidden = self._run(ids, (columns - padding).clamp(min=0))
            for index, row in enumerate(rows):
                self._features[row].append(hidden[index, width - len(self._prompts[row]) :].half())
            last.append(hidden[:, -1])
        slots.rows, slots.length = slice(None), width
        return torch.cat(last)

    def step(self) -> Tensor:
        """Runs the tokens appended last; returns the features of the active rows `[rows, hidden]`."""
        active = self._active.tolist()
        padding = self._padding[self._active, None]
        columns = torch.arange(self._slots.length + 1, device=self._device)
        self._slots.mask = (columns >= padding)[:, None, None]
        hidden = self._run(self._tensor([[self._ids[row][-1]] for row in active]), self._slots.length - padding)[:, 0]
        self._slots.length += 1
        features = hidden.half()
        for index, row in enumerate(active):
            self._features[row].append(features[index : index + 1])
        return hidden

    def append(self, next_ids: Tensor) -> bool:
        """Appends a token to each unfinished row; returns whether a row is still unfinished."""
        for row, token in zip(self._active.tolist(), next_ids.tolist(), strict=True):
            if not self._is_done[row]:
                self._ids[row].append(token)
                self._is_done[row] = token in self._end_ids
        unfinished = [index for index, row in enumerate(self._active.tolist()) if not self._is_done[row]]
        if 0 < len(unfinished) < COMPACT_BELOW * len(self._active):
            indices = self._tensor(unfinished)
            self._active = self._active[indices]
            self._slots.keep_rows(indices)
        return bool(unfinished)

    def texts(self) -> list[TargetText]:
        return [
            TargetText(torch.tensor(ids), len(prompt), torch.cat(features)[: len(ids) - 1].cpu())
            for ids, prompt, features in zip(self._ids, self._prompts, self._features, strict=True)
        ]

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Returns the features `[rows, new, hidden]` of new tokens `[rows, new]`; extends the slots."""
        target = self._target
        rotations = rotations_at(target.spec, positions, target.dtype)
        features: Tensor = target.norm(target.run_layers(target.embed(ids), rotations, self._slots))
        return features

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, device=self._device)
