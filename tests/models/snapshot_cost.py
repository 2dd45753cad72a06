"""Measures what copies of running states cost: `python -m tests.models.snapshot_cost [SECONDS]`, on an idle machine.

The model has the shapes of Qwen3.5 0.8B and random float32 weights. It shows nothing of real weights or other kernels.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
import transformers

from specgen.models.transformers_model import TransformersModel

VOCAB_SIZE = 248_320
DRAFT = [7, 8, 9]


def model() -> TransformersModel:
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
    return TransformersModel(transformers.Qwen3_5ForCausalLM(config).eval(), VOCAB_SIZE)


def main(seconds: float = 25.0) -> None:
    """Prints the shares of a copy in a pass over one token, and of copy and rewind in a round of accepted tokens."""
    target, ids, times = model(), list(range(1, 65)), defaultdict[str, list[float]](list)

    def timed(name: str, call: Callable[[], object]) -> None:
        start = perf_counter()
        call()
        times[name].append(perf_counter() - start)

    target.feed(ids[:-1])
    end = perf_counter() + seconds
    while perf_counter() < end:
        timed("one", lambda: target.logits(ids, 1))
        ids.append(5)
        # The round would take the same copy, and finds it taken.
        timed("copy", lambda: target.states.checkpoints.note_draft(target.length))
        timed("round", lambda: target.logits(ids, len(DRAFT) + 1, tail=torch.tensor(DRAFT)))
        ids.extend([*DRAFT, 11])
        timed("rewind", lambda: target.rewind(target.length))
    found = {name: median(values) for name, values in times.items()}
    extra = found["copy"] + found["rewind"]
    print(", ".join(f"{name} {1000 * value:.2f} ms" for name, value in found.items()), f"({len(times['one'])} rounds)")
    print(f"copy / pass {found['copy'] / found['one']:.2%}, extra / round {extra / (extra + found['round']):.2%}")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
