"""Defines what a model needs of passes at fixed addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from specgen.models.static.features import StaticFeatures
from specgen.models.static.inputs import PassInputs
from specgen.models.static.trees import TreeInputs

if TYPE_CHECKING:
    from specgen.models.decoder import Decoder


class StaticPass(Protocol):
    """Computes passes on a cache of fixed capacity; knows no text and no length."""

    device: torch.device
    num_embeddings: int
    """Ids from here on can't be fed."""
    module: nn.Module
    """The weights."""
    features: StaticFeatures | None
    """Inputs of the head by position, if a draft head reads them."""
    can_branch: bool
    """Whether the pass computes trees."""
    has_exact_rows: bool
    """Whether the logits of a row of consecutive tokens are the same, bit for bit, for any number of rows."""
    reads_whole_cache: bool
    """Whether a pass takes the same time for every bucket."""

    @property
    def decoder(self) -> Decoder | None:
        """The weights as specgen's decoder, if it computes the passes."""

    def record_features(self, first: int, capacity: int) -> StaticFeatures:
        """Records the inputs of the head from the next pass on, for positions from `first` on."""

    def grow(self, capacity: int, num_kept: int) -> None:
        """Replaces the cache by one with room for `capacity` tokens that contains the first `num_kept` of the old."""

    def release(self) -> None:
        """Frees the cache."""

    def clear(self, first: int) -> None:
        """Overwrites the cache from a position on, where it may contain NaN."""

    def run_earlier(self, inputs: PassInputs, rows: int, bucket: int) -> None:
        """Computes what a recorded pass needs from other devices. Its owner calls it before each run or replay."""

    @property
    def has_failed(self) -> bool:
        """Whether recording failed on another device."""

    def take_failure(self) -> str | None:
        """Returns once why recording failed on another device, if it did."""

    def keep_path(self, tree: TreeInputs) -> None:
        """Moves the path of a tree to the positions after the text."""

    def run(self, ids: Tensor, positions: Tensor, bucket: int, num_last: int, tree: TreeInputs | None = None) -> Tensor:
        """Computes a pass.

        Args:
            ids: `[n]`.
            positions: `[n]`, consecutive; what the cache held from the first on is lost.
            bucket: At least the last position + 1, at most the capacity: so much of the cache is read.
            num_last: Rows of logits wanted, counted from the end.
            tree: The ids are rows of this tree.

        Returns:
            `[num_last, logits]`, in the model's type.
        """
