"""Models with recorded passes for the tests: real code, random weights, and a CUDA graph's semantics on a CPU."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from specgen.engine.draft_length.fixed import FixedLength
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from specgen.models.static.segments import SegmentedPass
from specgen.models.static.whole_pass import WholePass
from tests.decoders import decoder_of
from tests.models.static.recorder import TraceRecorder

HOST_READING_METHODS = ("tolist", "item", "numpy", "__bool__", "__float__", "__int__", "__index__")


class UntilUnsure(FixedLength):
    """Drafts until a token is less likely than half of those here."""

    uses_confidence = True

    def start_round(self, num_replayed: int = 0) -> None:
        self.is_sure = True

    def should_draft(self) -> bool:
        return self.is_sure

    def on_token(self, confidence: float) -> None:
        self.is_sure = confidence > 0.17


def static_model(model: Any, vocab_size: int = 96) -> StaticModel:
    """Returns recorded passes of specgen's decoder with the weights of a transformers model."""
    return StaticModel(DecoderPass(decoder_of(model)), vocab_size, TraceRecorder())


def segmented_model(model: Any, num_layers: tuple[int, ...], vocab_size: int = 96) -> StaticModel:
    """Returns recorded passes of specgen's decoder in segments of these lengths, each with a recorder of its own."""
    decoder = decoder_of(model)
    decoder.split(num_layers)
    return StaticModel(SegmentedPass(decoder, [TraceRecorder() for _ in num_layers[1:]]), vocab_size, TraceRecorder())


def whole_model(model: Any, vocab_size: int = 96) -> StaticModel:
    """Returns recorded passes of a transformers model's own forward."""
    return StaticModel(WholePass(model), vocab_size, TraceRecorder())


def distance_in(reason: str | None) -> float | None:
    """Returns the distance of logits in the reason why passes are not recorded; None if it has none."""
    found = re.search(r"\d\.\de[+-]\d\d", reason or "")
    return None if found is None else float(found[0])


def traces_of(model: StaticModel) -> list[Any]:
    assert isinstance(model.recorder, TraceRecorder)
    return model.recorder.traces


@contextmanager
def host_reads(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Lists the calls by which specgen reads a tensor's values on the host."""
    reads: list[str] = []
    for name in HOST_READING_METHODS:
        original = getattr(torch.Tensor, name)

        def counting(self: torch.Tensor, *args: Any, _name: str = name, _original: Any = original) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.startswith("specgen."):
                reads.append(f"{caller}: {_name}")
            return _original(self, *args)

        patch.setattr(torch.Tensor, name, counting)
    yield reads
    patch.undo()
