"""Measures what copies of running states cost, on an idle machine.

`python -m tests.models.snapshot_cost [SECONDS] [transformers|llama.cpp]`. The model has the layers of Qwen3.5 0.8B with
random weights, float32 on transformers and float16 on llama.cpp, whose vocabulary has 64 tokens only. It shows nothing
of real weights or other kernels. On llama.cpp, nothing is copied before a draft.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import transformers

from specgen.models.llama_cpp import LlamaCppModel
from specgen.models.transformers_model import TransformersModel

VOCAB_SIZE = 248_320
DRAFT = [7, 8, 9]
NUM_PROMPT, MAX_TOKENS = 48, 400
Parts = tuple[TransformersModel | LlamaCppModel, Callable[[], None]]
"""A model, and what copies its states as before a draft."""


def transformers_model() -> Parts:
    """Makes the model: 18 layers with a gated delta rule, 6 with attention."""
    config = transformers.Qwen3_5TextConfig(
        vocab_size=VOCAB_SIZE,
        tie_word_embeddings=True,
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        linear_num_value_heads=16,
        linear_num_key_heads=16,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
    )
    target = TransformersModel(transformers.Qwen3_5ForCausalLM(config).eval(), VOCAB_SIZE)
    return target, lambda: target.states.checkpoints.note_draft(target.length)


def llama_cpp_model() -> Parts:
    """Makes the same layers as a GGUF file in the temporary folder, once."""
    from tests.llamacpp.builders import load
    from tests.llamacpp.hybrids import VOCAB, make_large_qwen35

    path = Path(tempfile.gettempdir()) / "specgen-qwen35-0.8b-random.gguf"
    if not path.exists():
        make_large_qwen35(path)
    target = LlamaCppModel(load(path).weights, VOCAB, 512, torch.get_num_threads())
    return target, lambda: target._states.note_draft(target.length)


def main(seconds: float = 25.0, backend: str = "transformers") -> None:
    """Prints the shares of a copy in a pass over one token, and of copy and rewind in a round of accepted tokens."""
    target, copy = transformers_model() if backend == "transformers" else llama_cpp_model()
    ids, times = list(range(1, NUM_PROMPT + 1)), defaultdict[str, list[float]](list)

    def timed(name: str, call: Callable[[], object]) -> None:
        start = perf_counter()
        call()
        times[name].append(perf_counter() - start)

    target.feed(ids[:-1])
    end = perf_counter() + seconds
    while perf_counter() < end and len(ids) < MAX_TOKENS:
        timed("one", lambda: target.logits(ids, 1))
        ids.append(5)
        # The round would take the same copy, and finds it taken.
        timed("copy", copy)
        timed("round", lambda: target.logits(ids, len(DRAFT) + 1, tail=torch.tensor(DRAFT)))
        ids.extend([*DRAFT, 11])
        timed("rewind", lambda: target.rewind(target.length))
    # The first ones of each kind read the weights from the disk and get memory.
    found = {name: median(values[2:]) for name, values in times.items()}
    extra = found["copy"] + found["rewind"]
    print(", ".join(f"{name} {1000 * value:.2f} ms" for name, value in found.items()), f"({len(times['one'])} rounds)")
    print(f"copy / pass {found['copy'] / found['one']:.2%}, extra / round {extra / (extra + found['round']):.2%}")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *sys.argv[2:])
