"""The engines that run models, for tests of the contract between them and the loop (`test_contract.py`)."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from specgen.engine.contract import LanguageModel
from specgen.models.decoder import DecoderModel
from tests.fakes import cached, tiny_model

HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None
needs_llama_cpp = [
    pytest.mark.llamacpp,
    pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs the extra gguf"),
]


@dataclass(frozen=True)
class Engine:
    """One of the engines, on the weights of `tiny_model(kind)`.

    Args:
        name: `transformers`, `lean` (our forward over the same weights) or `llama.cpp`.
        kind: Architecture.
        tolerance: How far its logits may be from transformers' own in float32: llama.cpp's cache is float16.
        same_pass: How far its own may be apart when the same tokens came in other passes. A wrong cache is off by 1.
    """

    name: str
    kind: str
    tolerance: float
    same_pass: float

    def make(self, seed: int = 0, vocab_size: int = 96) -> LanguageModel:
        """A model with an empty cache; the weights are in memory once."""
        if self.name == "transformers":
            return cached(tiny_model(self.kind, seed), vocab_size)
        if self.name == "lean":
            return DecoderModel(_movable(self.kind, seed), vocab_size)
        from tests.llamacpp.builders import tiny_llama_cpp

        return tiny_llama_cpp(_folder(), self.kind, seed, vocab_size)


@cache
def _movable(kind: str, seed: int) -> Any:
    """A copy: the lean model moves weights into memory of its own."""
    return copy.deepcopy(tiny_model(kind, seed))


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
    _parameter(Engine("transformers", "llama", 1e-4, 1e-4)),
    _parameter(Engine("transformers", "qwen2", 1e-4, 1e-4)),
    _parameter(Engine("transformers", "mistral", 1e-4, 1e-4)),
    _parameter(Engine("lean", "llama", 1e-4, 1e-4)),
    _parameter(Engine("lean", "qwen2", 1e-4, 1e-4)),
    _parameter(Engine("llama.cpp", "llama", 0.05, 0.05)),
    _parameter(Engine("llama.cpp", "qwen2", 0.05, 0.05)),
]
