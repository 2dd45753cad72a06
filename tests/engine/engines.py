"""Lists the backends for the tests of the contract between them and the loop (`test_contract.py`)."""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.engine.contract import LanguageModel
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from specgen.models.static.segments import SegmentedPass
from specgen.models.static.whole_pass import WholePass
from specgen.models.transformers_model import TransformersModel
from tests.decoders import decoder_of
from tests.fakes import assert_close, cached, tiny_model
from tests.models.static.recorder import TraceRecorder

HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None
needs_llama_cpp = [
    pytest.mark.llamacpp,
    pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra gguf"),
]


@dataclass(frozen=True)
class Engine:
    """A backend with the weights of `tiny_model(kind)`.

    Args:
        name: `decoder` (our own), `transformers`, `llama.cpp`, or recorded passes with the semantics of CUDA graphs:
            `static` (our decoder), `static-segments` (its two layers apart) and `static-whole` (transformers).
        kind: Architecture.
    """

    name: str
    kind: str

    def assert_close(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        """Compares logits up to the rounding of the backend: the cache of llama.cpp is float16."""
        if self.name == "llama.cpp":
            assert_close(found, expected, torch.float16, num_roundings=32)
        else:
            assert_close(found, expected)

    def make(self, seed: int = 0, vocab_size: int = 96) -> LanguageModel:
        """A model with an empty cache; the weights are in memory once."""
        if self.name == "decoder":
            return cached(tiny_model(self.kind, seed), vocab_size)
        if self.name == "transformers":
            return TransformersModel(tiny_model(self.kind, seed), vocab_size)
        if self.name == "static":
            return StaticModel(DecoderPass(cached(tiny_model(self.kind, seed)).decoder), vocab_size, TraceRecorder())
        if self.name == "static-segments":
            decoder = decoder_of(tiny_model(self.kind, seed))
            decoder.split((1, 1))
            segmented = SegmentedPass(decoder, [TraceRecorder()])
            return StaticModel(segmented, vocab_size, TraceRecorder())
        if self.name == "static-whole":
            return StaticModel(WholePass(tiny_model(self.kind, seed)), vocab_size, TraceRecorder())
        from tests.llamacpp.builders import tiny_llama_cpp

        return tiny_llama_cpp(_folder(), self.kind, seed, vocab_size)


@cache
def _folder() -> Path:
    # Removed when the process ends; a fixture's folder would be gone before the weights kept in memory.
    keeper: Any = tempfile.TemporaryDirectory(prefix="specgen-tiny-")
    _KEPT.append(keeper)
    return Path(keeper.name)


_KEPT: list[Any] = []


def _parameter(engine: Engine) -> Any:
    marks = needs_llama_cpp if engine.name == "llama.cpp" else []
    return pytest.param(engine, id=f"{engine.name}-{engine.kind}", marks=marks)


ENGINES = [
    _parameter(Engine("transformers", "llama")),
    _parameter(Engine("transformers", "qwen2")),
    _parameter(Engine("transformers", "mistral")),
    _parameter(Engine("decoder", "llama")),
    _parameter(Engine("decoder", "qwen2")),
    _parameter(Engine("decoder", "mistral")),
    _parameter(Engine("static", "llama")),
    _parameter(Engine("static", "qwen2")),
    _parameter(Engine("static", "mistral")),
    _parameter(Engine("static-segments", "llama")),
    _parameter(Engine("static-segments", "mistral")),
    _parameter(Engine("static-whole", "llama")),
    _parameter(Engine("static-whole", "qwen2")),
    _parameter(Engine("static-whole", "mistral")),
    _parameter(Engine("llama.cpp", "llama")),
    _parameter(Engine("llama.cpp", "qwen2")),
]
