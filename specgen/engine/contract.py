"""Defines the interface of a language model with a cache, for the loop and the drafters.

Implementations: `models.decoder_model.DecoderModel` (our forward pass), `models.static.model.StaticModel` (recorded
passes, for CUDA), `models.transformers_model.TransformersModel` and `models.llama_cpp.LlamaCppModel` (GGUF files).
The protocols after `LanguageModel` are optional: the loop uses what a model has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

DRAFT_NOT_FINITE = "the draft model's logits contain NaN or infinity"


class TargetModel(Protocol):
    """Computes logits for the decoding loop. `TableModel` in `enumeration.py` is the smallest implementation."""

    device: torch.device
    vocab_size: int
    length: int

    def feed(self, ids: Sequence[int]) -> None:
        """Extends the cache to `ids`, without computing logits. `ids` must start with the cached tokens."""

    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        """Computes the logits at the last positions of `ids` followed by `tail`, and extend the cache to them.

        Args:
            ids: The text; starts with the cached tokens.
            num_last: Number of positions, at least 1; none of them may be in the cache already.
            tail: `[n]` further ids, possibly on a device; the first of them may be in the cache already.

        Returns:
            float32 `[num_last, vocab_size]`, on the model's device.
        """

    def rewind(self, length: int) -> None:
        """Shortens the cache to at most `length` tokens: to the longest prefix that the model can return to.

        A cache of keys and values is cropped to `length`. One with running states returns to a copy of them, made
        before the draft or at the end of a prompt; the next call then feeds the accepted tokens again, in front of the
        next draft, so that no pass is added.
        """


class LanguageModel(TargetModel, Protocol):
    """A model that can be target or draft.

    A draft's logits may be narrower than `vocab_size`: the ids after them have probability zero.
    Cache rule: between rounds the cache holds a prefix of `ids[:-1]`; the next call feeds what is missing.
    The model's next call may overwrite the tensor that `logits` returned: copy it to keep it.
    """

    num_embeddings: int
    """Ids from this one on can't be fed."""
    forward_seconds: float
    """Total time inside the model's forward."""
    num_forwards: int

    def reset(self) -> None:
        """Empties the cache, and frees its memory if the backend can."""


@runtime_checkable
class RecordingModel(Protocol):
    """A model that records its passes: they have few sizes, and the first ones of a size are slow."""

    @property
    def has_failed(self) -> bool:
        """Whether recording failed, so that passes run as if there were none."""

    @property
    def num_warmups(self) -> int:
        """Passes so far that were slower than later ones of their size: first runs and recordings."""

    def reserve(self, num_tokens: int) -> None:
        """Makes room for a text, so that no recording is lost while it grows."""

    def padded_rows(self, num_rows: int) -> int:
        """Returns how many rows a pass over `num_rows` tokens really computes."""

    def forget(self) -> None:
        """Empties the cache and overwrites it: NaN in what was removed would spoil later passes."""

    def take_failure(self) -> str | None:
        """Returns once why recording failed, if it did; passes then run as if there were no recording."""


@runtime_checkable
class SwitchingModel(Protocol):
    """A model that may read a long text otherwise than a short one."""

    switch_length: int | None
    """A longer text is read again from its beginning; None: never. A pass over both sides reads it twice."""
    draft_limit: int | None
    """In a text of this length or longer, each token needs a pass of its own: drafts save no time. None: in no text."""


@runtime_checkable
class TreeModel(Protocol):
    """A model that computes several continuations of a text in one pass."""

    can_branch: bool
    """Whether it can for the loaded weights."""

    def tree_logits(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        """Adds rows to a tree after the cached tokens. Each row sees the cached tokens, its ancestors and itself.

        The cache's length stays; any other call that changes the cache drops the tree.

        Args:
            tokens: `[n]` ids of the new rows.
            parents: Row of the token before each of them, over all rows since the tree is empty, or `ROOT`.

        Returns:
            float32 `[n, vocab_size]`, the logits after each new row.
        """


@runtime_checkable
class TreeTarget(TreeModel, Protocol):
    """A target that verifies drafts that branch."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Moves the keys and values of a path to their places, extends the cache by it, and drops the tree.

        Args:
            rows: The path, from a child of the root on.
        """


@runtime_checkable
class GreedyVerifier(Protocol):
    """A target that verifies a greedy draft on its device."""

    def verify_greedy(
        self, ids: Sequence[int], draft_ids: Tensor, is_draft_finite: Tensor | None = None
    ) -> Callable[[], list[int]] | None:
        """Extends the cache to `ids` and the draft, and applies the accept rule of greedy decoding, without reading.

        Returns:
            A function that waits for the result and returns it: the number of accepted tokens, the target's own token,
            1 if all logits are finite, and the draft's ids. To be called before the next pass. None if the model can't;
            the cache is then as before.
        """


@runtime_checkable
class GreedyDrafter(Protocol):
    """A draft model that feeds its likeliest token back on its device."""

    def draft_token(self, ids: Sequence[int], index: int) -> None:
        """Drafts the token after `ids` and the `index` tokens drafted so far, without reading it."""

    def drafted_ids(self, count: int) -> Tensor:
        """Returns the first drafted tokens, `[count]`, on the device. The next draft overwrites them."""

    def is_draft_finite(self) -> Tensor:
        """Returns whether the logits of the drafted tokens were finite, `[1]` bool, on the device."""

    def send_confidence(self, index: int) -> None:
        """Starts to copy the probability of the token drafted last to the host; it may be read after the next one's."""

    def confidence(self, index: int) -> float:
        """Reads the probability of a drafted token that was sent; NaN if its logits were not finite.

        Waits for the device, but not for tokens that are drafted after it.
        """


def can_branch(model: object) -> bool:
    """Returns whether a model computes trees."""
    return isinstance(model, TreeModel) and model.can_branch


def rows_in_one_pass(target: SwitchingModel | None, num_tokens: int) -> int:
    """Returns how many tokens may follow a text in one pass, so that none is read again. None has no limit."""
    if target is not None and target.draft_limit is not None:
        return max(0, target.draft_limit - num_tokens)
    switch = None if target is None else target.switch_length
    return sys.maxsize if switch is None or num_tokens > switch else switch - num_tokens


def num_warmup_passes(*models: object) -> int:
    """Returns how many first passes of a size are slow: one, and of recorded passes also the second, which records."""
    return 2 if any(isinstance(model, RecordingModel) for model in models) else 1


def padded_rows_of(target: LanguageModel) -> Callable[[int], int] | None:
    """Returns how many rows a target's passes really compute; None if as many as are asked for."""
    return target.padded_rows if isinstance(target, RecordingModel) else None
