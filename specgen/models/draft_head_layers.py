"""The layers of draft heads with their cache, and what joins embeddings and features before them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specgen.models.attention_kernel import kernel_for
from specgen.models.decoder import Layer, Segment
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.forward_pass import Function
from specgen.models.fused_layers import last_norm
from specgen.models.kv_slots import SliceSlots
from specgen.models.native_layers import NativeLayers


class HeadLayers(ABC):
    """The layers of a draft head and their cache.

    Args:
        module: The weights.
    """

    can_branch = False
    """Whether they compute trees."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @abstractmethod
    def run(self, hidden: Tensor, first: int) -> Tensor:
        """Turns inputs `[n, hidden]` at positions `first` on into outputs; what was cached from there on is lost."""

    @abstractmethod
    def release(self) -> None:
        """Empties the cache and frees its memory."""

    def run_rows(self, hidden: Tensor, length: int, parents: Sequence[int]) -> Tensor:
        """Turns inputs `[n, hidden]` of rows of a tree after `length` positions into outputs.

        Args:
            hidden: The inputs.
            length: Positions before the tree.
            parents: As in `TreeModel.tree_logits`.
        """
        raise NotImplementedError

    def last_norm(self, norm: nn.Module) -> Function:
        """Returns what computes the norm after these layers."""
        return norm

    def drop_rows(self) -> None:  # noqa: B027  most layers have no trees
        """Forgets the tree."""


class DecoderLayers(HeadLayers):
    """Layers of specgen's decoder with a cache.

    Args:
        spec: Describes them.
        layers: At least one.
        like: A tensor of the type and device that they compute in.
    """

    can_branch = True

    def __init__(self, spec: DecoderSpec, layers: Sequence[Layer], like: Tensor) -> None:
        super().__init__(nn.ModuleList(layers))
        self.spec = spec
        self.segment = Segment(spec, layers, like.dtype)
        self._layers = NativeLayers(self.segment)
        # In a pass of a few tokens, our own kernel attends in less time than torch's.
        may_attend = like.dtype == torch.float32 and like.device.type == "cpu" and kernel_for(spec) is not None
        self._slots = SliceSlots(spec, like, attends_by_row=may_attend)

    def run(self, hidden: Tensor, first: int) -> Tensor:
        """As in `HeadLayers`."""
        return self._layers.run(hidden, self._slots.begin(first, hidden.shape[0]), self._slots)

    def run_rows(self, hidden: Tensor, length: int, parents: Sequence[int]) -> Tensor:
        """As in `HeadLayers`."""
        return self._layers.run(hidden, self._slots.begin_rows(length, parents), self._slots)

    def last_norm(self, norm: nn.Module) -> Function:
        """As in `HeadLayers`."""
        return last_norm(norm, self.segment.layers)

    def drop_rows(self) -> None:
        """As in `HeadLayers`."""
        self._slots.drop_rows()

    def release(self) -> None:
        """As in `HeadLayers`."""
        self._slots.release()


class FeatureJoin(nn.Module):
    """Joins embeddings and features, `[n, hidden]` each, by one matrix product.

    Args:
        product: `[n, 2 * hidden]` to `[n, hidden]`, embedding first.
        embedding_norm: Applied to the embeddings before; None: nothing is.
        feature_norm: Likewise for the features.
    """

    def __init__(
        self, product: nn.Module, embedding_norm: nn.Module | None = None, feature_norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.product, self.embedding_norm, self.feature_norm = product, embedding_norm, feature_norm

    def forward(self, embedded: Tensor, features: Tensor) -> Tensor:
        if self.embedding_norm is not None and self.feature_norm is not None:
            embedded, features = self.embedding_norm(embedded), self.feature_norm(features)
        joined: Tensor = self.product(torch.cat([embedded, features], dim=-1))
        return joined
