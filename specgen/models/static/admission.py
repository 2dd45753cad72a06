"""Admits recorded passes and drafts: their logits and tokens must be those of plain passes, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, Protocol

import torch
from torch import Tensor

from specgen.core.errors import MemoryShortageError
from specgen.engine.near_ties import gap_between
from specgen.models.cached_model import CachedModel
from specgen.models.draft_head import DraftHeadModel, DraftHeadParts
from specgen.models.draft_head_layers import DecoderLayers
from specgen.models.packing import is_quantized
from specgen.models.static.model import StaticModel
from specgen.models.static.whole_pass import WholePass, short_windows
from specgen.models.target_features import TargetFeatures

PROBED_ROWS = (1, 3, 5, 8)
NUM_PROMPT = 12
PROBED_WINDOW = 8
"""Window of transformers' layers while their passes are compared: the text is longer, so tokens leave it."""
NUM_RUNS = 3
"""Runs of each probe: the first one is plain, the second is recorded, the third replays."""
NUM_DRAFTED = 3
"""Tokens of a probed draft."""


@torch.inference_mode()
def admission_failure(static: StaticModel, plain: CachedModel) -> str | None:
    """Compares the logits and likeliest tokens of a prompt and of passes over a few rows. Empties both caches.

    Returns:
        Why the recorded passes must not be used; None if they may.
    """
    rounding = _rounding_of(static)
    ids = _probed_text(static.vocab_size)

    def compare() -> str | None:
        with _filled_windows(static, plain):
            for rows in PROBED_ROWS:
                text = ids[: NUM_PROMPT + rows]
                expected = _probe(plain, text, rows)
                for _ in range(NUM_RUNS):
                    if (found := difference(_probe(static, text, rows), expected, rounding)) is not None:
                        return f"{found} over {rows} rows"
            return drafting_failure(static, plain, ids, rounding)

    return _failure(compare, static, plain)


class RecordedDrafter(Protocol):
    """What `StaticModel` and `StaticDraftHead` have in common."""

    def feed(self, ids: Sequence[int]) -> None:
        """As in `LanguageModel`."""

    def rewind(self, length: int) -> None:
        """As in `LanguageModel`."""

    def reset(self) -> None:
        """As in `LanguageModel`."""

    def draft_token(self, ids: Sequence[int], index: int) -> None:
        """As in `GreedyDrafter`."""

    def drafted_ids(self, count: int) -> Tensor:
        """As in `GreedyDrafter`."""

    def drafted_logits(self) -> Tensor:
        """Returns the logits that the token drafted last was chosen from, `[1, vocab_size]`."""

    def likeliest(self, logits: Tensor) -> int:
        """Reads the id of the likeliest token of `[1, vocab_size]` logits."""

    def take_failure(self) -> str | None:
        """As in `RecordingModel`."""


@torch.inference_mode()
def head_admission_failure(
    parts: DraftHeadParts, make_recorded: Callable[[DraftHeadParts], RecordedDrafter]
) -> str | None:
    """Compares a draft head's recorded passes with its plain ones, on features of a text that no target has read.

    Args:
        parts: The draft head; its layers are `DecoderLayers`.
        make_recorded: Makes the draft head with recorded passes.

    Returns:
        As in `admission_failure`.
    """
    ids = _probed_text(parts.embedding.shape[0])
    if parts.features is not None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(len(ids), parts.embedding.shape[1], generator=generator)
        features = TargetFeatures()
        features.append(0, rows.to(device=parts.like.device, dtype=parts.dtype))
        parts = replace(parts, features=features)
    assert isinstance(parts.layers, DecoderLayers), "the caller checks it"
    static, plain = make_recorded(parts), DraftHeadModel(parts)
    rounding = Rounding(parts.dtype, len(parts.layers.spec.layers), is_quantized(parts.layers.module))
    return _failure(lambda: drafting_failure(static, plain, ids, rounding), static, plain)


def drafting_failure(
    static: RecordedDrafter, plain: CachedModel | DraftHeadModel, ids: Sequence[int], rounding: Rounding
) -> str | None:
    """Compares a greedy draft, whose tokens are fed back on the device, with plain passes over the same tokens.

    Args:
        static: Drafts.
        plain: Has the same weights.
        ids: A text.
        rounding: As in `difference`.
    """
    expected: list[Tensor] = []
    first: list[int] = []
    plain.rewind(0)
    for _ in range(NUM_RUNS):
        static.rewind(0)
        static.feed(ids[:-2])  # as after a draft that was accepted whole, two tokens are missing
        for index in range(NUM_DRAFTED):
            static.draft_token(ids, index)
            logits, drafted = static.drafted_logits(), static.drafted_ids(index + 1)
            if len(expected) == index:
                expected.append(plain.logits(ids, 1, tail=drafted[:-1]).clone())
                first.append(int(drafted[-1]))
            if (found := difference(logits, expected[index], rounding)) is not None:
                return f"{found} in drafted token {index + 1}"
            if drafted.tolist() != [*first[:index], static.likeliest(logits)]:
                return f"recorded passes draft another token than the likeliest one, in drafted token {index + 1}"
    return None


@dataclass(frozen=True, slots=True)
class Rounding:
    """What rounding explains.

    Args:
        dtype: The type that the model computes in.
        num_layers: Of the model.
        is_packed: Its weights have 4 or 8 bits.
    """

    dtype: torch.dtype
    num_layers: int
    is_packed: bool = False

    @property
    def tolerance(self) -> float:
        """Returns the largest relative distance of the logits of two correct passes.

        They add in another order and round at other places. A rounding has a relative error of up to epsilon / 2, whose
        root mean square is about 0.2 epsilon. In 16 bits, sums are kept in float32, so the errors that add up are those
        of the hidden state, rounded after attention and after feed-forward: 2 L in either pass, and independent. So the
        distance is about 0.2 epsilon sqrt(4 L) = 0.4 epsilon sqrt(L), and the limit is twice that: in bfloat16 8.8e-3
        for 2 layers, 3.5e-2 for 32. On a CPU it is 0.9 to 2.3 epsilon in bfloat16 and 1.3 to 2.8 in float16 (24 and 30
        layers: Qwen2.5-Coder 0.5B and SmolLM2 135M), where the limits are 3.9 and 4.4.

        float32: the error of a product's sum counts, too; it grows with the root of the terms of a partial sum. The
        limit allows 64 times the above: 8.6e-6 for 2 layers. On a CPU it is 3 to 11 epsilon, where the limit is 250.

        Packed weights: kernels for few and for many rows round the unpacked weights differently (bitsandbytes 0.50
        rounds scale, code and product in one, the product only in the other), which is an error of each product. The
        weights of both kinds alone put logits 1.1e-2 to 2.7e-2 apart in these models, as much as all else: twice the
        limit. A wrong row, position or mask moves logits by about their own size.
        """
        factor = (64 if self.dtype == torch.float32 else 1) * (2 if self.is_packed else 1)
        return 0.8 * factor * torch.finfo(self.dtype).eps * sqrt(self.num_layers)


def not_recorded(name: str, reason: str) -> str:
    """Returns the notice for a model or a draft head whose passes run plainly."""
    return f"the passes of {name} are not recorded, so it is slower: {reason}"


def _rounding_of(static: StaticModel) -> Rounding:
    """Packed weights have an integer type, and compute in that of the others."""
    types = [parameter.dtype for parameter in static.module.parameters() if parameter.is_floating_point()]
    if static.decoder is not None:
        num_layers = len(static.decoder.spec.layers)
    else:
        config: Any = static.module.config
        num_layers = config.get_text_config(decoder=True).num_hidden_layers
    return Rounding(types[0] if types else torch.float32, num_layers, is_quantized(static.module))


def _probed_text(num_ids: int) -> list[int]:
    step = max(num_ids // (NUM_PROMPT + sum(PROBED_ROWS) + 1), 1)
    return [(step * (index + 1)) % num_ids for index in range(NUM_PROMPT + max(PROBED_ROWS))]


def _failure(
    compare: Callable[[], str | None], static: RecordedDrafter, plain: CachedModel | DraftHeadModel
) -> str | None:
    """Returns what a comparison found, why it failed, or why recording failed. Empties both caches."""
    try:
        found = compare()
    except Exception as error:  # noqa: BLE001 - after any failure, the plain passes may still work
        static.reset()
        if isinstance(error, MemoryShortageError):
            return "too little memory for a cache of fixed size"
        return f"recording failed: {str(error).partition(chr(10))[0] or type(error).__name__}"
    finally:
        plain.reset()
    static.rewind(0)
    return found or static.take_failure()


@contextmanager
def _filled_windows(static: StaticModel, plain: CachedModel) -> Iterator[None]:
    """Shortens the windows of transformers' layers. Specgen's decoder has its windows from one place for all passes.

    Raises:
        RuntimeError: They can't be shortened, so a short text shows nothing about them.
    """
    static_pass = static.static_pass
    if not isinstance(static_pass, WholePass) or not static_pass.has_window:
        yield
        return
    with short_windows(static_pass.model.config, PROBED_WINDOW) as are_short:
        if not are_short:
            raise RuntimeError("its windows can't be compared in a short text")
        plain.reset()  # its cache was made for the long ones
        yield
    static.reset()


def difference(found: Tensor, expected: Tensor, rounding: Rounding) -> str | None:
    """Returns how logits of recorded passes differ from those of plain ones beyond rounding; None if they don't.

    Args:
        found: `[rows, vocab]`, of recorded passes.
        expected: `[rows, vocab]`, of plain ones.
        rounding: What may differ.
    """
    distance = relative_distance(found, expected)
    if not distance <= rounding.tolerance:
        return f"recorded passes differ from plain ones by {distance:.1e}"
    tops = torch.stack([expected.argmax(-1), found.argmax(-1)], -1)
    for own, other in expected.gather(-1, tops).tolist():
        gap = gap_between(own, other, rounding.dtype)
        if not gap.is_near_tie:
            return f"recorded passes choose another token than plain ones, with logits {gap.distance:.1e} apart,"
    return None


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference over the norm of what is expected; NaN if a value is NaN."""
    return float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(expected.dtype).tiny))


def _probe(model: CachedModel, text: list[int], num_rows: int) -> Tensor:
    model.rewind(0)
    model.feed(text[:-num_rows])
    return model.logits(text, num_rows).clone()
