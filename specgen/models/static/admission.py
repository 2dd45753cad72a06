"""Admits recorded passes and drafts: their logits and tokens must be those of plain passes, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from specgen.core.draft_tree import ROOT
from specgen.core.errors import MemoryShortageError
from specgen.engine.contract import TreeTarget, can_branch
from specgen.models.cached_model import CachedModel
from specgen.models.draft_head import DraftHeadModel, DraftHeadParts
from specgen.models.draft_head_layers import DecoderLayers
from specgen.models.packing import is_quantized
from specgen.models.static.model import StaticModel
from specgen.models.static.rounding import Rounding, difference
from specgen.models.static.whole_pass import WholePass, short_windows
from specgen.models.target_features import TargetFeatures

PROBED_DRAFTS = ((0, 0), (2, 1), (4, 2), (6, 6), (16, 6))
"""Tokens of drafts, and how many of them are the model's own; a pass over the last one is padded."""
NUM_PROMPT = 12
NUM_OTHERS = 17
PROBED_WINDOW = 8
"""Window of transformers' layers while their passes are compared: the text is longer, so tokens leave it."""
NUM_RUNS = 3
"""Runs of each probe: the first one is plain, the second is recorded, the third replays."""
NUM_DRAFTED = 3
"""Tokens of a probed draft."""
PROBED_TREES = (
    ((ROOT, 0, 0, 1, ROOT, 4), [0, 2]),
    ((ROOT, ROOT, 1, 2, 1, 0), [1, 2, 3]),
    ((ROOT, 0, 1, 2, ROOT, ROOT), [4]),
)
"""Parents of trees of equally many tokens, for one run each, and the path that is kept."""


@torch.inference_mode()
def admission_failure(static: StaticModel, plain: CachedModel, *, is_draft: bool = False) -> str | None:
    """Compares what a target or a draft model does after a prompt: verdicts and trees, or a draft. Empties both caches.

    Trees of a draft are not compared: they may cost acceptance, never the text.

    Returns:
        Why the recorded passes must not be used; None if they may.
    """
    rounding = _rounding_of(static)
    ids = _probed_text(static.vocab_size)

    def compare() -> str | None:
        with _filled_windows(static, plain):
            if is_draft:
                return drafting_failure(static, plain, ids, rounding)
            return _verdict_failure(static, plain, ids, rounding) or _tree_failure(static, plain, ids, rounding)

    return _failure(compare, static, plain)


def _verdict_failure(static: StaticModel, plain: CachedModel, ids: list[int], rounding: Rounding) -> str | None:
    """Compares the logits over drafts, and the verdicts with what follows from these logits."""
    prompt, others = ids[: NUM_PROMPT + 1], ids[NUM_PROMPT + 1 :]
    own: list[int] = []
    for num_drafted, num_own in PROBED_DRAFTS:
        while len(own) < num_own:
            own.append(_verified(static, [*prompt, *own], [])[1][1])
        draft = [*own, *others][:num_drafted]
        plain.rewind(0)
        expected = plain.logits([*prompt, *draft], num_drafted + 1).clone()
        for _ in range(NUM_RUNS):
            found, verdict = _verified(static, prompt, draft)
            if (reason := difference(found, expected, rounding)) is not None:
                return f"{reason} over {num_drafted + 1} rows"
            top = found.max(dim=-1).indices.tolist()
            num_accepted = next((row for row, token in enumerate(draft) if token != top[row]), num_drafted)
            if verdict != [num_accepted, top[num_accepted], 1, *draft]:
                return f"the verdict over {num_drafted + 1} rows is not that of their logits"
    return None


def _tree_failure(static: StaticModel, plain: CachedModel, ids: list[int], rounding: Rounding) -> str | None:
    """Compares the logits of trees, each of another shape, and of the pass after a path was kept."""
    if not (can_branch(static) and isinstance(plain, TreeTarget)):
        return None
    prompt, tokens = ids[:NUM_PROMPT], ids[NUM_PROMPT:]
    for parents, path in PROBED_TREES:
        given = torch.tensor(tokens[: len(parents)], device=static.device)
        rows: list[Tensor] = []
        for model in (plain, static):
            model.rewind(min(model.length, NUM_PROMPT))
            model.feed(prompt)
            rows.append(model.tree_logits(given, parents).clone())
            model.keep_rows(path)
        text = [*prompt, *(tokens[node] for node in path), ids[0]]
        found, _ = _verified(static, text, [])
        reason = difference(rows[1], rows[0], rounding) or difference(found, plain.logits(text, 1), rounding)
        if reason is not None:
            return f"{reason} in a tree"
    return None


def _verified(static: StaticModel, text: list[int], draft: list[int]) -> tuple[Tensor, list[int]]:
    """Returns the logits of a pass that verifies a draft, and its verdict."""
    static.rewind(min(static.length, len(text) - 1))
    static.feed(text[:-1])
    read = static.verify_greedy(text, torch.tensor(draft, dtype=torch.int64, device=static.device))
    assert read is not None, "the pass is short"
    return static.row_logits(len(draft) + 1).clone(), read()


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
    expected: dict[tuple[int, ...], Tensor] = {}
    for _ in range(NUM_RUNS):
        static.rewind(0)
        static.feed(ids[:-2])  # as after a draft that was accepted whole, two tokens are missing
        path: tuple[int, ...] = ()
        for index in range(NUM_DRAFTED):
            static.draft_token(ids, index)
            logits, drafted = static.drafted_logits(), static.drafted_ids(index + 1)
            if path not in expected:
                plain.rewind(0)
                expected[path] = plain.logits(ids, 1, tail=drafted[:-1]).clone()
            if (found := difference(logits, expected[path], rounding)) is not None:
                return f"{found} in drafted token {index + 1}"
            path = (*path, static.likeliest(logits))
            if tuple(drafted.tolist()) != path:
                return f"recorded passes draft another token than the likeliest one, in drafted token {index + 1}"
    return None


def not_recorded(name: str, reason: str) -> str:
    """Returns the notice for a model or a draft head whose passes run plainly."""
    return f"the passes of {name} are not recorded, so it is slower: {reason}"


def not_fused(name: str, reason: str) -> str:
    """Returns the notice for a model or a draft head that the fused kernels should run, but can't."""
    return f"the fused kernels can't run {name}, so it is slower: {reason}"


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
    step = max(num_ids // (2 * NUM_PROMPT), 1)
    return [(step * (index + 1)) % num_ids for index in range(NUM_PROMPT + NUM_OTHERS)]


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
    """Shortens the windows of transformers' layers. Specgen's decoder keeps its own: most are longer than the text.

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
