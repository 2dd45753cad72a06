"""Removes tokens that a checkpoint's rules forbid from the target's logits, and adds their biases.

A draft may propose them: they are rejected like any other wrong token, so the text stays the target's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from specgen.core.draft_tree import ROOT, path_to
from specgen.core.settings import TokenRules

Ngram = tuple[int, ...]


class ForbiddenTokens:
    """Applies rules to the logits of one text.

    Args:
        rules: Of the target.
        num_prompt: Tokens of the prompt.
    """

    def __init__(self, rules: TokenRules, num_prompt: int) -> None:
        self._rules, self._num_prompt = rules, num_prompt
        self._always = rules.suppress_tokens | {word[0] for word in rules.bad_words_ids if len(word) == 1}
        self._words = [word for word in rules.bad_words_ids if len(word) > 1]
        self._followers: defaultdict[Ngram, set[int]] = defaultdict(set)
        """What followed each sequence of one token less than `no_repeat_ngram_size`."""
        self._num_indexed = 0

    def remove(
        self, logits: Tensor, ids: Sequence[int], draft_ids: Sequence[int], parents: Sequence[int] | None = None
    ) -> Tensor:
        """Returns the logits with all biases, and with minus infinity for forbidden tokens.

        Args:
            logits: `[drafted + 1, vocab]`; row i is for the token after `ids` and the first i of `draft_ids`.
            ids: The text so far. From call to call it only grows.
            draft_ids: `[drafted]`.
            parents: Of a draft that branches: row i + 1 is for the token after the path to token i.
        """
        width = logits.shape[-1]
        if parents is None:
            rows = enumerate(self._forbidden(ids, draft_ids))
        else:
            rows = enumerate([*self._forbidden(ids, path)][-1] for path in _paths(draft_ids, parents))
        if self._rules.sequence_bias:
            logits = logits + self._biases(logits, ids, _paths(draft_ids, parents))
        if len(ids) == 1 and (forced := self._rules.forced_bos_token_id) is not None and forced < width:
            others = torch.arange(width, device=logits.device) != forced
            logits = torch.cat([logits[:1].masked_fill(others, -torch.inf), logits[1:]])
        places = [(row, token) for row, tokens in rows for token in tokens if token < width]
        if not places:
            return logits
        index = torch.tensor(places, device=logits.device).unbind(1)
        return logits.index_put(index, torch.tensor(-torch.inf, dtype=logits.dtype, device=logits.device))

    def _biases(self, logits: Tensor, ids: Sequence[int], paths: Sequence[Sequence[int]]) -> Tensor:
        """Returns what is added to the logits of each row; as in transformers, before any other rule."""
        biases = torch.zeros(logits.shape, dtype=torch.float32)
        longest = max(len(sequence) for sequence, _ in self._rules.sequence_bias)
        for row, path in enumerate(paths):
            text = [*ids[-longest:], *path]
            for sequence, bias in self._rules.sequence_bias:
                if sequence[-1] < logits.shape[-1] and _ends_with(text, len(text), sequence[:-1]):
                    biases[row, sequence[-1]] += bias
        return biases.to(logits.device)

    def _forbidden(self, ids: Sequence[int], draft_ids: Sequence[int]) -> Iterator[set[int]]:
        """Yields the forbidden tokens of each row."""
        rules, size = self._rules, self._rules.no_repeat_ngram_size
        text = [*ids, *draft_ids]
        if size:
            self._index(text, len(ids))
        drafted: defaultdict[Ngram, set[int]] = defaultdict(set)
        for length in range(len(ids), len(text) + 1):
            found = set(self._always)
            if length == self._num_prompt:
                found |= rules.begin_suppress_tokens
            if length - self._num_prompt < rules.min_new_tokens or length < rules.min_length:
                found |= rules.end_ids
            found |= {word[-1] for word in self._words if _ends_with(text, length, word[:-1])}
            if size and length >= size - 1:
                if length > len(ids) and length >= size:
                    drafted[tuple(text[length - size : length - 1])].add(text[length - 1])
                last = tuple(text[length - size + 1 : length])
                found |= self._followers.get(last, set()) | drafted.get(last, set())
            yield found

    def _index(self, text: list[int], length: int) -> None:
        """Adds the sequences that end within the first `length` tokens and are new."""
        size = self._rules.no_repeat_ngram_size
        for end in range(max(self._num_indexed, size - 1), length):
            self._followers[tuple(text[end - size + 1 : end])].add(text[end])
        self._num_indexed = length


def _paths(draft_ids: Sequence[int], parents: Sequence[int] | None) -> list[Sequence[int]]:
    """Returns the drafted tokens before each row's token."""
    if parents is None:
        return [draft_ids[:length] for length in range(len(draft_ids) + 1)]
    return [[draft_ids[node] for node in path_to(parents, index)] for index in range(ROOT, len(parents))]


def _ends_with(text: list[int], length: int, word: Ngram) -> bool:
    return length >= len(word) and tuple(text[length - len(word) : length]) == word
