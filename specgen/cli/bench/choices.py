"""Parses the drafts and draft lengths that `specgen bench` compares."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from specgen.bench.results import Setting
from specgen.cli.request import parse_draft_length
from specgen.core.errors import SettingsError
from specgen.core.progress import ProgressListener
from specgen.core.settings import MAX_DRAFT_TOKENS, BackendSettings, ModelSettings, Quantization
from specgen.runtime.pair import LOOKUP_SUFFIX, DrafterKind, Pair

_RANGE = re.compile(r"(\d{1,3})-(\d{1,3})(?:\+(\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """A draft as named on the command line: `lookup`, `auto`, or a model with its weight format, with lookup or not."""

    name: str
    quant: Quantization
    has_lookup: bool = False

    @property
    def is_lookup(self) -> bool:
        """Whether it drafts without a model."""
        return self.name == "lookup"

    @property
    def key(self) -> str:
        """The value of `--draft` for it; identifies it in tables and JSON."""
        quant = "" if self.quant == "auto" else f":{self.quant}"
        return f"{self.name}{quant}{LOOKUP_SUFFIX if self.has_lookup else ''}"

    @property
    def kind(self) -> DrafterKind:
        """The kind of drafter."""
        if self.is_lookup:
            return "lookup"
        if self.name == "auto":
            return "auto"
        return "model+lookup" if self.has_lookup else "model"


def parse_drafts(names: Sequence[str], quant: Quantization) -> list[DraftChoice]:
    """Returns the drafts to compare, each once. `MODEL:nf4` overrides `quant`; `MODEL:nf4+lookup` adds lookup.

    Raises:
        SettingsError: `none` is among them.
    """
    choices = []
    for word in names:
        name, has_lookup = word.removesuffix(LOOKUP_SUFFIX), word.endswith(LOOKUP_SUFFIX)
        model, separator, format_ = name.rpartition(":")
        if separator and format_ in get_args(Quantization):
            # The literal is one of the names just checked.
            choices.append(DraftChoice(model, format_, has_lookup))  # type: ignore[arg-type]
        else:
            choices.append(DraftChoice(name, "auto" if name in ("lookup", "auto") else quant, has_lookup))
    if any(choice.name == "none" for choice in choices):
        raise SettingsError("invalid --draft 'none': the target alone is always measured", "omit it")
    return list(dict.fromkeys(choices))


def parse_lengths(text: str) -> list[str]:
    """Returns draft lengths from `1,2,4`, `1-8`, `2-8+2`, `auto` or a mixture, each once.

    Raises:
        SettingsError: A part is none of these, or out of range.
    """
    lengths: list[str] = []
    for part in map(str.strip, text.split(",")):
        span = _RANGE.fullmatch(part)
        if span is None:
            lengths.append(part)
            continue
        first, last, step = int(span[1]), int(span[2]), int(span[3] or 1)
        if first > last or step == 0:
            raise SettingsError(f"invalid --draft-tokens {part!r}", "give the smaller length first, as in 2-8+2")
        lengths += [str(length) for length in range(first, last + 1, step)]
    for length in lengths:
        _check_length(length)
    return list(dict.fromkeys(lengths))


def _check_length(length: str) -> None:
    try:
        num_draft_tokens, _ = parse_draft_length(length)
    except SettingsError as error:
        hint = f"give lengths as in 1,2,4 or 1-8 or 2-8+2, up to {MAX_DRAFT_TOKENS}, or auto"
        raise SettingsError(error.message, hint) from None
    if num_draft_tokens == 0:
        raise SettingsError("invalid --draft-tokens '0': the target alone is always measured", "omit 0")


def settings_of(drafts: Sequence[DraftChoice], lengths: Sequence[str]) -> list[Setting]:
    """Combines every draft with every length."""
    return [
        Setting(draft.kind, draft.key, draft.key, *parse_draft_length(length), draft.quant)
        for draft in drafts
        for length in lengths
    ]


def draft_pairs(
    baseline: Pair, drafts: Sequence[DraftChoice], like: ModelSettings, progress: ProgressListener
) -> dict[str, Pair]:
    """Pairs the target with each draft. Files and tokenizers are checked, weights are not read.

    Args:
        baseline: The target alone.
        drafts: The drafts; the keys of the result are theirs.
        like: How to load a draft; name and weight format are each draft's own.
        progress: Receives the progress of downloads.

    Raises:
        LoadError: A draft is missing or damaged.
        PairError: A draft does not share the target's vocabulary.
    """
    return {
        draft.key: baseline.with_draft("lookup", None, progress)
        if draft.is_lookup
        else baseline.with_draft(draft.kind, replace(like, name=draft.name, quant=draft.quant), progress)
        for draft in drafts
    }


def on_both_backends(target: ModelSettings, draft: ModelSettings) -> dict[str, tuple[ModelSettings, ModelSettings]]:
    """Returns how to load a GGUF target with llama.cpp, and converted with torch, with its drafts.

    `--dtype` applies to what torch runs, and the options of llama.cpp only to what llama.cpp runs.
    """
    llama_cpp, torch = replace(target.backend, name="llama.cpp"), BackendSettings("torch")
    # Next to a target on llama.cpp, a draft that is not a GGUF file runs on torch.
    drafts = replace(draft, dtype="auto", backend=replace(llama_cpp, name="auto"))
    return {
        "llama.cpp": (replace(target, backend=llama_cpp, dtype="auto"), drafts),
        "torch": (replace(target, backend=torch), replace(draft, backend=torch)),
    }
