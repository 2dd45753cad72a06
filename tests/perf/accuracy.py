"""Measures what weight formats cost in accuracy: perplexity, and distance to the distributions in bfloat16.

    python -m tests.perf.accuracy FOLDER

The text is the beginning of the README, in chunks of 250 tokens with all of the text before them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from specgen.core.settings import ModelSettings
from specgen.loading.libraries import prepare_libraries
from specgen.loading.load import load
from specgen.loading.resolve import find_files, resolve

NUM_TOKENS = 1500
CHUNK = 250
README = Path(__file__).parents[2] / "README.md"
FORMATS: dict[str, Callable[[str], ModelSettings]] = {
    "bfloat16": partial(ModelSettings, quant="none", dtype="bfloat16"),
    "float16": partial(ModelSettings, quant="none", dtype="float16"),
    "int8": partial(ModelSettings, quant="int8"),
    "nf4": partial(ModelSettings, quant="nf4"),
}


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Figures of a format.

    Args:
        perplexity: Of the text.
        divergence: Mean KL divergence from the reference's distributions to the format's, in nats.
        same_choice: Share of positions at which both have the same most probable token.
    """

    perplexity: float
    divergence: float
    same_choice: float


def compare(reference: Tensor, found: Tensor, ids: Tensor) -> Accuracy:
    """Compares log-probabilities `[n, vocab]` of the tokens `ids` `[n]` that follow."""
    divergence = (reference.exp() * (reference - found)).sum(-1).mean()
    same = (reference.argmax(-1) == found.argmax(-1)).float().mean()
    return Accuracy(math.exp(-float(found.gather(1, ids[:, None]).mean())), float(divergence), float(same))


@torch.inference_mode()
def log_probabilities(folder: str, name: str, ids: list[int]) -> Tensor:
    """Returns the log-probabilities `[n - 1, vocab]` after each token but the last, in a weight format."""
    settings = FORMATS[name](folder)
    resolved = resolve(find_files(settings), settings, "target")
    model = load(resolved, resolved.config.vocab_rows or 0).model
    rows = []
    for start in range(0, len(ids), CHUNK):
        end = min(start + CHUNK, len(ids))
        rows.append(model.logits(ids[:end], end - start).float().clone())
    return torch.log_softmax(torch.cat(rows)[:-1], dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    arguments = parser.parse_args()
    prepare_libraries(verbose=False)
    tokenizer = Tokenizer.from_file(str(Path(arguments.folder) / "tokenizer.json"))
    ids = tokenizer.encode(README.read_text()).ids[:NUM_TOKENS]
    following = torch.tensor(ids[1:])
    reference = None
    for name in FORMATS:
        found = log_probabilities(arguments.folder, name, ids)
        reference = found if reference is None else reference
        figures = compare(reference, found, following)
        print(
            f"| {Path(arguments.folder).name} | {name} | {figures.perplexity:.2f} | {figures.divergence:.4f} | "
            f"{100 * figures.same_choice:.1f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
