"""Prompts in, the target's answers out, many at once: token ids, and the inputs of its head at every position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from specgen.distill.layers import Layer, RmsNorm, head_size, rotation

COMPACT_BELOW = 0.75
"""Share of rows still writing below which the finished ones are taken out of the batch."""
PREFILL_TOKENS = 8192
"""Tokens of one pass over prompts, over all rows: bounds the memory for it."""


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A text of the target.

    Args:
        ids: Prompt and answer; an end token is the last one.
        num_prompt: How many of them are the prompt.
        features: float16 `[len(ids) - 1, hidden]`: the head's input at each position but the last.
    """

    ids: list[int]
    num_prompt: int
    features: Tensor


class BatchGenerator:
    """The target in float32, for many texts at once. The weights are copied: bfloat16 products are slow on most CPUs.

    Args:
        model: A transformers causal language model of a kind `layers.Layer` knows.
        vocab_size: Tokens that may be written.
        end_ids: Tokens that end an answer.
    """

    def __init__(self, model: Any, vocab_size: int, end_ids: frozenset[int]) -> None:
        config = model.config
        self.model = model
        self.embedding: Tensor = model.get_input_embeddings().weight.detach().float()
        self.layers = [Layer(layer, config).requires_grad_(False) for layer in model.model.layers]
        self.norm = RmsNorm(model.model.norm).requires_grad_(False)
        head = model.get_output_embeddings().weight.detach()
        is_tied = head.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        self.head: Tensor = self.embedding if is_tied else head.float()
        self.device = self.head.device
        self.vocab_size = vocab_size
        self.end_ids = end_ids
        self._num_kv_heads: int = config.num_key_value_heads
        self._head_size = head_size(config)

    @torch.inference_mode()
    def write(
        self, prompts: Sequence[Sequence[int]], temperatures: Sequence[float], max_new_tokens: int, seed: int
    ) -> list[GeneratedText]:
        """Answer prompts.

        Args:
            prompts: Token ids; similar lengths waste least.
            temperatures: One per prompt; 0 is greedy.
            max_new_tokens: Longest answer.
            seed: Of the drawn answers; the same batch gives the same texts.
        """
        batch = _Batch(self, prompts, temperatures, max_new_tokens, seed)
        new = batch.read_prompts()
        for _ in range(max_new_tokens):
            if not batch.take(new):
                break
            new = batch.step()
        return batch.finish()

    def run(self, ids: Tensor, turn: tuple[Tensor, Tensor], cache: list[_LayerCache], mask: Tensor | None) -> Tensor:
        """Run new tokens `[rows, new]`; extends the cache.

        Returns:
            Head inputs `[rows, new, hidden]`.
        """
        hidden = functional.embedding(ids, self.embedding)
        for layer, held in zip(self.layers, cache, strict=True):
            held.mask = mask
            hidden = layer(hidden, turn, held.attend)
        normed: Tensor = self.norm(hidden)
        return normed

    def new_cache(self, num_rows: int, capacity: int) -> list[_LayerCache]:
        """An empty cache of each layer, `[rows, kv heads, capacity, size]`."""
        shape = (num_rows, self._num_kv_heads, capacity, self._head_size)
        return [
            _LayerCache(torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device))
            for _ in self.layers
        ]


class _LayerCache:
    """Keys and values of one layer, `[rows, kv heads, capacity, size]`."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.length = 0
        self.rows = slice(None)
        self.mask: Tensor | None = None

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        last = self.length + keys.shape[2]
        self.keys[self.rows, :, self.length : last] = keys
        self.values[self.rows, :, self.length : last] = values
        held_keys, held_values = self.keys[self.rows, :, :last], self.values[self.rows, :, :last]
        if queries.shape[2] > 1:
            is_grouped = queries.shape[1] > keys.shape[1]
            return functional.scaled_dot_product_attention(
                queries, held_keys, held_values, attn_mask=self.mask, enable_gqa=is_grouped
            )
        # One query per row: two products of small matrices, the heads of a group together.
        grouped = queries.reshape(queries.shape[0], keys.shape[1], -1, queries.shape[3])
        scores = grouped @ held_keys.transpose(2, 3) * queries.shape[3] ** -0.5
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask, float("-inf"))
        seen: Tensor = scores.softmax(-1) @ held_values
        return seen.reshape(queries.shape)

    def keep(self, rows: Tensor) -> None:
        # Only what is used is copied; the room behind it stays empty.
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = torch.zeros(len(rows), *old.shape[1:], device=old.device)
            new[:, :, : self.length] = old[rows, :, : self.length]
            setattr(self, name, new)


class _Batch:
    """Texts being written, prompts padded on the left so that all rows end at the same place."""

    def __init__(
        self,
        target: BatchGenerator,
        prompts: Sequence[Sequence[int]],
        temperatures: Sequence[float],
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self.target = target
        self.prompts = [list(prompt) for prompt in prompts]
        self.width = max(len(prompt) for prompt in self.prompts)
        self.length = self.width
        self.texts = [list(prompt) for prompt in self.prompts]
        self.features: list[list[Tensor]] = [[] for _ in prompts]
        device = target.device
        self.padding = torch.tensor([self.width - len(prompt) for prompt in prompts], device=device)
        self.active = torch.arange(len(prompts), device=device)
        self.temperatures = torch.tensor(temperatures, device=device)
        self.is_done = [False] * len(prompts)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.cache = target.new_cache(len(prompts), self.width + max_new_tokens)

    def read_prompts(self) -> Tensor:
        """Feed the prompts, some rows at a time; the first new token of each row."""
        num_rows, width = len(self.prompts), self.width
        step = max(1, PREFILL_TOKENS // width)
        device = self.target.device
        last = []
        for first in range(0, num_rows, step):
            rows = range(first, min(first + step, num_rows))
            ids = torch.tensor([[0] * (width - len(self.prompts[row])) + self.prompts[row] for row in rows])
            padding = self.padding[first : first + step, None]
            columns = torch.arange(width, device=device)
            positions = (columns - padding).clamp(min=0)
            # A padded position sees itself, so that no row of the mask is empty.
            sees = (columns[None, :] <= columns[:, None]) & (columns[None, None, :] >= padding[:, :, None])
            mask = (sees | torch.eye(width, dtype=torch.bool, device=device))[:, None]
            for held in self.cache:
                held.rows, held.length = slice(first, first + step), 0
            hidden = self.target.run(ids.to(device), rotation(self.target.model, positions), self.cache, mask)
            for place, row in enumerate(rows):
                # The last position's comes with the first new token.
                self.features[row].append(hidden[place, width - len(self.prompts[row]) :].half())
            last.append(hidden[:, -1])
        for held in self.cache:
            held.rows, held.length = slice(None), width
        return self._choose(torch.cat(last))

    def step(self) -> Tensor:
        """Feed the tokens just taken; the next of each row."""
        ids = torch.tensor([[self.texts[row][-1]] for row in self.active.tolist()], device=self.target.device)
        padding = self.padding[self.active, None]
        columns = torch.arange(self.length + 1, device=self.target.device)
        mask = (columns >= padding)[:, None, None]
        turn = rotation(self.target.model, self.length - padding)
        hidden = self.target.run(ids, turn, self.cache, mask)[:, 0]
        self.length += 1
        for held in self.cache:
            held.length = self.length
        halves = hidden.half()
        for place, row in enumerate(self.active.tolist()):
            self.features[row].append(halves[place : place + 1])
        return self._choose(hidden)

    def take(self, new: Tensor) -> bool:
        """Add a token to each row; False when all are done."""
        for row, token in zip(self.active.tolist(), new.tolist(), strict=True):
            if not self.is_done[row]:
                self.texts[row].append(token)
                self.is_done[row] = token in self.target.end_ids
        writing = [place for place, row in enumerate(self.active.tolist()) if not self.is_done[row]]
        if not writing:
            return False
        if len(writing) < COMPACT_BELOW * len(self.active):
            places = torch.tensor(writing, device=self.target.device)
            self.active = self.active[places]
            for held in self.cache:
                held.keep(places)
        return True

    def finish(self) -> list[GeneratedText]:
        return [
            GeneratedText(text, len(prompt), torch.cat(features)[: len(text) - 1])
            for text, prompt, features in zip(self.texts, self.prompts, self.features, strict=True)
        ]

    def _choose(self, hidden: Tensor) -> Tensor:
        """Next tokens `[rows]` from head inputs `[rows, hidden]`."""
        logits = functional.linear(hidden, self.target.head)[:, : self.target.vocab_size]
        chosen = logits.argmax(-1)
        temperatures = self.temperatures[self.active]
        drawn = temperatures > 0
        if bool(drawn.any()):
            probs = (logits[drawn] / temperatures[drawn, None]).softmax(-1)
            chosen[drawn] = torch.multinomial(probs, 1, generator=self.generator)[:, 0]
        return chosen
