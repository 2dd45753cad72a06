"""Generates answers of the target in batches, with its features: the inputs of the output head at every position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from specgen.models.decoder import Decoder
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.kv_slots import rotations_at

COMPACT_BELOW = 0.75
"""Share of unfinished rows below which the finished ones are removed from the batch."""
PREFILL_TOKENS = 8192
"""Tokens of one pass over prompts, of all rows together; bounds its memory."""


@dataclass(frozen=True, slots=True)
class TargetText:
    """A prompt with the target's answer.

    Args:
        ids: int64 `[n]`: prompt and answer; an end token is the last one.
        num_prompt: Length of the prompt.
        features: float16 `[n - 1, hidden]`: the head's input at each position but the last.
    """

    ids: Tensor
    num_prompt: int
    features: Tensor


class BatchGenerator:
    """The target, for many texts at once.

    Args:
        target: In float32: bfloat16 products are slow on most CPUs.
        vocab_size: Number of tokens that may be generated.
        end_ids: Tokens that end an answer.
    """

    def __init__(self, target: Decoder, vocab_size: int, end_ids: frozenset[int]) -> None:
        self.target = target
        self.device = target.device
        self.vocab_size = vocab_size
        self.end_ids = end_ids

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
        batch = _Batch(self, prompts, temperatures, max_new_tokens, seed)
        next_ids = batch.prefill()
        for _ in range(max_new_tokens):
            if not batch.append(next_ids):
                break
            next_ids = batch.step()
        return batch.texts()

    def features(self, ids: Tensor, positions: Tensor, slots: _BatchSlots) -> Tensor:
        """Runs new tokens `[rows, new]` at positions `[rows, new]` and extends the slots.

        Returns:
            Head inputs `[rows, new, hidden]`.
        """
        target = self.target
        rotations = rotations_at(target.spec, positions, target.dtype)
        features: Tensor = target.norm(target.run_layers(target.embed(ids), rotations, slots))
        return features


class _BatchSlots:
    """Keys and values of many rows, `[rows, kv heads, capacity, size]` per layer; all rows have the same length."""

    def __init__(self, spec: DecoderSpec, num_rows: int, capacity: int, device: torch.device) -> None:
        shape = (num_rows, spec.num_kv_heads, capacity, spec.head_size)
        self._keys = [torch.zeros(shape, device=device) for _ in spec.layers]
        self._values = [torch.zeros(shape, device=device) for _ in spec.layers]
        self.length = 0
        self.rows = slice(None)
        self.mask: Tensor | None = None

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries, keys, values = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
        last = self.length + keys.shape[2]
        self._keys[layer][self.rows, :, self.length : last] = keys
        self._values[layer][self.rows, :, self.length : last] = values
        all_keys = self._keys[layer][self.rows, :, :last]
        all_values = self._values[layer][self.rows, :, :last]
        if queries.shape[2] > 1:
            is_grouped = queries.shape[1] > keys.shape[1]
            attended = functional.scaled_dot_product_attention(
                queries, all_keys, all_values, attn_mask=self.mask, enable_gqa=is_grouped
            )
            return attended.transpose(1, 2).flatten(2)
        # One query per row: two products of small matrices, with the heads of a group together.
        grouped = queries.reshape(queries.shape[0], keys.shape[1], -1, queries.shape[3])
        scores = grouped @ all_keys.transpose(2, 3) * queries.shape[3] ** -0.5
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask, float("-inf"))
        weighted: Tensor = scores.softmax(-1) @ all_values
        return weighted.reshape(queries.shape).transpose(1, 2).flatten(2)

    def keep_rows(self, rows: Tensor) -> None:
        # Only the used positions are copied.
        for tensors in (self._keys, self._values):
            for index, old in enumerate(tensors):
                new = torch.zeros(len(rows), *old.shape[1:], device=old.device)
                new[:, :, : self.length] = old[rows, :, : self.length]
                tensors[index] = new


class _Batch:
    """Texts in progress. Prompts are padded on the left, so that all rows have the same length."""

    def __init__(
        self,
        generator: BatchGenerator,
        prompts: Sequence[Sequence[int]],
        temperatures: Sequence[float],
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self.owner = generator
        self.prompts = [list(prompt) for prompt in prompts]
        self.width = max(len(prompt) for prompt in self.prompts)
        self.length = self.width
        self.ids = [list(prompt) for prompt in prompts]
        self.features: list[list[Tensor]] = [[] for _ in prompts]
        device = generator.device
        self.padding = torch.tensor([self.width - len(prompt) for prompt in prompts], device=device)
        self.active = torch.arange(len(prompts), device=device)
        self.temperatures = torch.tensor(temperatures, device=device)
        self.is_done = [False] * len(prompts)
        self.generator = torch.Generator(device).manual_seed(seed)
        spec = generator.target.spec
        self.slots = _BatchSlots(spec, len(prompts), self.width + max_new_tokens, device)

    def prefill(self) -> Tensor:
        """Runs the prompts, some rows at a time; returns the first new token of each row."""
        num_rows, width = len(self.prompts), self.width
        step = max(1, PREFILL_TOKENS // width)
        device = self.owner.device
        last = []
        for first in range(0, num_rows, step):
            rows = range(first, min(first + step, num_rows))
            ids = torch.tensor([[0] * (width - len(self.prompts[row])) + self.prompts[row] for row in rows])
            padding = self.padding[first : first + step, None]
            columns = torch.arange(width, device=device)
            positions = (columns - padding).clamp(min=0)
            # A padded position attends to itself, so that no row of the mask is empty.
            attends = (columns[None, :] <= columns[:, None]) & (columns[None, None, :] >= padding[:, :, None])
            mask = (attends | torch.eye(width, dtype=torch.bool, device=device))[:, None]
            self.slots.rows, self.slots.length, self.slots.mask = slice(first, first + step), 0, mask
            hidden = self.owner.features(ids.to(device), positions, self.slots)
            for index, row in enumerate(rows):
                self.features[row].append(hidden[index, width - len(self.prompts[row]) :].half())
            last.append(hidden[:, -1])
        self.slots.rows, self.slots.length = slice(None), width
        return self._choose(torch.cat(last))

    def step(self) -> Tensor:
        """Runs the tokens appended last; returns the next token of each active row."""
        ids = torch.tensor([[self.ids[row][-1]] for row in self.active.tolist()], device=self.owner.device)
        padding = self.padding[self.active, None]
        columns = torch.arange(self.length + 1, device=self.owner.device)
        self.slots.mask = (columns >= padding)[:, None, None]
        hidden = self.owner.features(ids, self.length - padding, self.slots)[:, 0]
        self.length += 1
        self.slots.length = self.length
        features = hidden.half()
        for index, row in enumerate(self.active.tolist()):
            self.features[row].append(features[index : index + 1])
        return self._choose(hidden)

    def append(self, next_ids: Tensor) -> bool:
        """Appends a token to each unfinished row; returns whether a row is still unfinished."""
        for row, token in zip(self.active.tolist(), next_ids.tolist(), strict=True):
            if not self.is_done[row]:
                self.ids[row].append(token)
                self.is_done[row] = token in self.owner.end_ids
        unfinished = [index for index, row in enumerate(self.active.tolist()) if not self.is_done[row]]
        if not unfinished:
            return False
        if len(unfinished) < COMPACT_BELOW * len(self.active):
            indices = torch.tensor(unfinished, device=self.owner.device)
            self.active = self.active[indices]
            self.slots.keep_rows(indices)
        return True

    def texts(self) -> list[TargetText]:
        return [
            TargetText(torch.tensor(ids), len(prompt), torch.cat(features)[: len(ids) - 1])
            for ids, prompt, features in zip(self.ids, self.prompts, self.features, strict=True)
        ]

    def _choose(self, hidden: Tensor) -> Tensor:
        """Returns the next tokens `[rows]`, from head inputs `[rows, hidden]`."""
        logits = self.owner.target.logits(hidden)[:, : self.owner.vocab_size]
        chosen = logits.argmax(-1)
        temperatures = self.temperatures[self.active]
        is_sampled = temperatures > 0
        if bool(is_sampled.any()):
            probs = (logits[is_sampled] / temperatures[is_sampled, None]).softmax(-1)
            chosen[is_sampled] = torch.multinomial(probs, 1, generator=self.generator)[:, 0]
        return chosen
