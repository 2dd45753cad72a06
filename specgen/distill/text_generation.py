"""Generates answers of the target in batches, with its features: the inputs of the output head at every position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from specgen.distill.layers import Layer, RmsNorm, head_size, rotary_embedding

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
    """The target in float32, for many texts at once. Copies the weights, as bfloat16 products are slow on most CPUs.

    Args:
        model: A transformers causal language model that `layers.Layer` supports.
        vocab_size: Number of tokens that may be generated.
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

    def forward(
        self, ids: Tensor, rotary: tuple[Tensor, Tensor], cache: list[_LayerCache], mask: Tensor | None
    ) -> Tensor:
        """Runs new tokens `[rows, new]` and extends the cache.

        Returns:
            Head inputs `[rows, new, hidden]`.
        """
        hidden = functional.embedding(ids, self.embedding)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            layer_cache.mask = mask
            hidden = layer(hidden, rotary, layer_cache.attend)
        normed: Tensor = self.norm(hidden)
        return normed

    def new_cache(self, num_rows: int, capacity: int) -> list[_LayerCache]:
        """Returns an empty cache for each layer."""
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
        all_keys, all_values = self.keys[self.rows, :, :last], self.values[self.rows, :, :last]
        if queries.shape[2] > 1:
            is_grouped = queries.shape[1] > keys.shape[1]
            return functional.scaled_dot_product_attention(
                queries, all_keys, all_values, attn_mask=self.mask, enable_gqa=is_grouped
            )
        # One query per row: two products of small matrices, with the heads of a group together.
        grouped = queries.reshape(queries.shape[0], keys.shape[1], -1, queries.shape[3])
        scores = grouped @ all_keys.transpose(2, 3) * queries.shape[3] ** -0.5
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask, float("-inf"))
        seen: Tensor = scores.softmax(-1) @ all_values
        return seen.reshape(queries.shape)

    def keep_rows(self, rows: Tensor) -> None:
        # Only the used positions are copied.
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = torch.zeros(len(rows), *old.shape[1:], device=old.device)
            new[:, :, : self.length] = old[rows, :, : self.length]
            setattr(self, name, new)


class _Batch:
    """Texts in progress. Prompts are padded on the left, so that all rows have the same length."""

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
        self.ids = [list(prompt) for prompt in prompts]
        self.features: list[list[Tensor]] = [[] for _ in prompts]
        device = target.device
        self.padding = torch.tensor([self.width - len(prompt) for prompt in prompts], device=device)
        self.active = torch.arange(len(prompts), device=device)
        self.temperatures = torch.tensor(temperatures, device=device)
        self.is_done = [False] * len(prompts)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.cache = target.new_cache(len(prompts), self.width + max_new_tokens)

    def prefill(self) -> Tensor:
        """Runs the prompts, some rows at a time; returns the first new token of each row."""
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
            # A padded position attends to itself, so that no row of the mask is empty.
            attends = (columns[None, :] <= columns[:, None]) & (columns[None, None, :] >= padding[:, :, None])
            mask = (attends | torch.eye(width, dtype=torch.bool, device=device))[:, None]
            for layer_cache in self.cache:
                layer_cache.rows, layer_cache.length = slice(first, first + step), 0
            rotary = rotary_embedding(self.target.model, positions)
            hidden = self.target.forward(ids.to(device), rotary, self.cache, mask)
            for index, row in enumerate(rows):
                self.features[row].append(hidden[index, width - len(self.prompts[row]) :].half())
            last.append(hidden[:, -1])
        for layer_cache in self.cache:
            layer_cache.rows, layer_cache.length = slice(None), width
        return self._choose(torch.cat(last))

    def step(self) -> Tensor:
        """Runs the tokens appended last; returns the next token of each active row."""
        ids = torch.tensor([[self.ids[row][-1]] for row in self.active.tolist()], device=self.target.device)
        padding = self.padding[self.active, None]
        columns = torch.arange(self.length + 1, device=self.target.device)
        mask = (columns >= padding)[:, None, None]
        rotary = rotary_embedding(self.target.model, self.length - padding)
        hidden = self.target.forward(ids, rotary, self.cache, mask)[:, 0]
        self.length += 1
        for layer_cache in self.cache:
            layer_cache.length = self.length
        features = hidden.half()
        for index, row in enumerate(self.active.tolist()):
            self.features[row].append(features[index : index + 1])
        return self._choose(hidden)

    def append(self, next_ids: Tensor) -> bool:
        """Appends a token to each unfinished row; returns whether a row is still unfinished."""
        for row, token in zip(self.active.tolist(), next_ids.tolist(), strict=True):
            if not self.is_done[row]:
                self.ids[row].append(token)
                self.is_done[row] = token in self.target.end_ids
        unfinished = [index for index, row in enumerate(self.active.tolist()) if not self.is_done[row]]
        if not unfinished:
            return False
        if len(unfinished) < COMPACT_BELOW * len(self.active):
            indices = torch.tensor(unfinished, device=self.target.device)
            self.active = self.active[indices]
            for layer_cache in self.cache:
                layer_cache.keep_rows(indices)
        return True

    def texts(self) -> list[TargetText]:
        return [
            TargetText(torch.tensor(ids), len(prompt), torch.cat(features)[: len(ids) - 1])
            for ids, prompt, features in zip(self.ids, self.prompts, self.features, strict=True)
        ]

    def _choose(self, hidden: Tensor) -> Tensor:
        """Returns the next tokens `[rows]`, from head inputs `[rows, hidden]`."""
        logits = functional.linear(hidden, self.target.head)[:, : self.target.vocab_size]
        chosen = logits.argmax(-1)
        temperatures = self.temperatures[self.active]
        is_sampled = temperatures > 0
        if bool(is_sampled.any()):
            probs = (logits[is_sampled] / temperatures[is_sampled, None]).softmax(-1)
            chosen[is_sampled] = torch.multinomial(probs, 1, generator=self.generator)[:, 0]
        return chosen
