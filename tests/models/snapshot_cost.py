"""Measures what copies of running states cost, on an idle machine.

`python -m tests.models.snapshot_cost [SECONDS] [transformers|llama.cpp]`. The model has the shapes of Qwen3.5 0.8B and
random weights, float32 on transformers and float16 on llama.cpp. It shows nothing of real weights or other kernels.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers

from specgen.models.llama_cpp import LlamaCppModel
from specgen.models.transformers_model import TransformersModel

VOCAB_SIZE = 248_320
DRAFT = torch.tensor([7, 8, 9])
NUM_PROMPT, MAX_TOKENS = 48, 400
Times = dict[str, list[float]]


def transformers_model() -> TransformersModel:
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


class PlainModel(LlamaCppModel):
    """Has one sequence and never returns to earlier states."""

    def _params(self) -> Any:
        params = super()._params()
        params.n_seq_max = 1
        self.is_recurrent = False
        return params


def llama_cpp_models() -> tuple[LlamaCppModel, LlamaCppModel]:
    """Makes the model, and one without rollback. The file is written to the temporary folder, once."""
    from tests.llamacpp.builders import load
    from tests.llamacpp.hybrids import make_large_qwen35

    path = Path(tempfile.gettempdir()) / "specgen-random-qwen35-0.8b.gguf"
    if not path.exists():
        make_large_qwen35(path)
    weights, threads = load(path).weights, torch.get_num_threads()
    torch.set_num_threads(1)  # its threads would spin when llama.cpp's start
    return LlamaCppModel(weights, VOCAB_SIZE, 512, threads), PlainModel(weights, VOCAB_SIZE, 512, threads)


def timed(times: Times, name: str, call: Callable[[], object]) -> None:
    """Adds the seconds of a call."""
    start = perf_counter()
    call()
    times[name].append(perf_counter() - start)


def run_transformers(seconds: float) -> tuple[Times, float]:
    """Returns the times, and the seconds that a copy adds to a round of accepted tokens."""
    target, ids, times = transformers_model(), list(range(1, NUM_PROMPT + 1)), defaultdict[str, list[float]](list)
    target.feed(ids[:-1])
    end = perf_counter() + seconds
    while perf_counter() < end and len(ids) < MAX_TOKENS:
        timed(times, "one", lambda: target.logits(ids, 1))
        ids.append(5)
        # The round would take the same copy, and finds it taken.
        timed(times, "copy", lambda: target.states.checkpoints.note_draft(target.length))
        timed(times, "round", lambda: target.logits(ids, len(DRAFT) + 1, tail=DRAFT))
        ids.extend([*DRAFT.tolist(), 11])
        timed(times, "rewind", lambda: target.rewind(target.length))
    return times, sum(median(times[name][2:]) for name in ("copy", "rewind"))


def run_llama_cpp(seconds: float) -> tuple[Times, float]:
    """As `run_transformers`; the states are written elsewhere in the pass, so rounds without rollback are compared."""
    target, plain = llama_cpp_models()
    ids, times = list(range(1, NUM_PROMPT + 1)), defaultdict[str, list[float]](list)
    for model in (target, plain):
        model.feed(ids[:-1])
    end = perf_counter() + seconds
    turns = [("one", "round", target), ("plain one", "plain round", plain)]
    while perf_counter() < end and len(ids) < MAX_TOKENS:
        turns.reverse()
        for one, _, model in turns:
            timed(times, one, lambda model=model: model.logits(ids, 1))  # type: ignore[misc]
        ids.append(5)
        for _, round_, model in turns:
            timed(times, round_, lambda model=model: model.logits(ids, len(DRAFT) + 1, tail=DRAFT))  # type: ignore[misc]
        ids.extend([*DRAFT.tolist(), 11])
    # The first ones read the weights from the disk.
    pairs = zip(times["round"][2:], times["plain round"][2:], strict=True)
    return times, median(with_rollback - without for with_rollback, without in pairs)


def main(seconds: float = 25.0, backend: str = "transformers") -> None:
    """Prints the shares of a copy in a pass over one token and in a round of accepted tokens."""
    times, extra = run_transformers(seconds) if backend == "transformers" else run_llama_cpp(seconds)
    found = {name: median(values[2:]) for name, values in times.items()}
    figures = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in found.items())
    print(f"{figures}, extra {1000 * extra:.2f} ms ({len(times['one'])} rounds)")
    share = extra / (extra + found["round"]) if backend == "transformers" else extra / found["round"]
    print(f"extra / pass over one token {extra / found['one']:.2%}, extra / round {share:.2%}")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *sys.argv[2:])
