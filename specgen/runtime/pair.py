"""Resolves a target and its drafter: finds and checks the files, compares the tokenizers. Loads no weights."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

from specgen.core.draft_name import MTP_NAME, DraftName
from specgen.core.errors import ModelFileError, PairError, PromptError, SettingsError
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import ModelSettings, PairSettings
from specgen.loading.draft_head_folder import check_own_options, check_own_target, shipped_draft
from specgen.loading.mtp_folder import resolve_mtp
from specgen.loading.resolve import find_files, resolve
from specgen.loading.resolved_model import ModelFiles, ResolvedModel
from specgen.loading.weight_sizes import StoredWeights, bytes_per_pass
from specgen.runtime.draft_vocabulary import pair_vocabularies
from specgen.text.generation_config import GenerationDefaults, read_generation_defaults
from specgen.text.vocabulary import Pairing

MAX_LOOKUP_TOKENS = 100_000
"""Tokens of all lookup texts together: their index takes half a KiB per token."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and its drafter, checked and ready to load.

    Args:
        requested: The settings as given.
        settings: The settings with `auto` resolved.
        draft: The draft model or draft head, if there is one.
        shared: Which token ids target and draft share; None without a draft.
        lookup_ids: The lookup texts, encoded without special tokens.
        defaults: What the target's authors ask for.
        started: `perf_counter()` when resolving started.
        notices: What the user should know about the target's files, one line each.
    """

    requested: PairSettings
    settings: PairSettings
    target: ResolvedModel
    draft: ResolvedModel | None
    shared: Pairing | None
    lookup_ids: tuple[list[int], ...]
    defaults: GenerationDefaults
    started: float
    notices: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that prompts and answers are encoded with: the target's."""
        return self.target.tokenizer

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end the target's texts."""
        return self.defaults.rules.end_ids

    @property
    def window(self) -> int | None:
        """Positions of the target; None if its config does not name them."""
        return self.target.config.max_positions

    @property
    def draft_window(self) -> int | None:
        """Positions of the draft model; None without one, or if its config does not name them."""
        return None if self.draft is None else self.draft.config.max_positions

    def with_draft(self, name: DraftName, like: ModelSettings, progress: ProgressListener = SILENT) -> Pair:
        """Returns the same target with another drafter.

        Args:
            like: How to load a draft model, apart from its name.

        Raises:
            LoadError: The draft is missing or damaged.
            PairError: It doesn't share the target's vocabulary, and `--draft-vocab same` insists.
        """
        requested = self.settings.with_draft(name, like)
        settings, resolved, shared = _resolve_drafter(requested, self.target, progress)
        return replace(self, requested=requested, settings=settings, draft=resolved, shared=shared)

    def resolve_max_new_tokens(self, num_prompt_tokens: int, max_new_tokens: int | None, default: int) -> int:
        """Returns the number of new tokens that fit after the prompt.

        Args:
            max_new_tokens: The requested number; None: `default`, or less if the window ends before.

        Raises:
            PromptError: Prompt and answer don't fit into the target's window.
        """
        if self.window is None:
            return max_new_tokens or default
        least = 1 if max_new_tokens is None else max_new_tokens
        if num_prompt_tokens + least > self.window:
            raise PromptError(
                f"prompt {num_prompt_tokens} + {least} new tokens > {self.window} positions of {self.target.name}",
                "shorten the prompt or lower --max-new-tokens" + self._larger_context(),
            )
        return max_new_tokens or min(default, self.window - num_prompt_tokens)

    def _larger_context(self) -> str:
        """Returns a hint if llama.cpp's cache is smaller than the model's window."""
        gguf = self.target.gguf
        if gguf is None or self.window is None or (gguf.header.context_length or 0) <= self.window:
            return ""
        return f", or use a larger --context-size (up to {gguf.header.context_length})"


def resolve_pair(settings: PairSettings, progress: ProgressListener = SILENT) -> Pair:
    """Finds and checks the models of a pair; downloads and converts them where needed.

    Raises:
        LoadError: A model is missing or damaged.
        PairError: Draft and target don't share a vocabulary, and `--draft-vocab same` insists.
        PromptError: The lookup texts are too long.
        SettingsError: An option has no effect on these models.
    """
    started = perf_counter()
    target_files = find_files(settings.target, progress)
    # Before the libraries are imported: a missing draft is reported at once.
    named = settings.draft if settings.drafter != "auto" else None
    draft_files = None if named is None or named.name == MTP_NAME else find_files(named, progress)
    progress.stage("checking files and tokenizers")
    target = resolve(target_files, settings.target, "target")
    defaults = read_generation_defaults(target.path, target.tokenizer, target.config.values)
    decided, draft, shared = _resolve_drafter(settings, target, progress, draft_files)
    if target.gguf is None and (draft is None or draft.gguf is None):
        # An option without effect is a mistake worth reporting.
        for option, value in asdict(settings.target.backend).items():
            if value is not None and option != "name":
                raise SettingsError(
                    f"--{option.replace('_', '-')} {value} is for llama.cpp, but no model here runs on it",
                    "omit it, or use a .gguf file with the extra gguf installed",
                )
    lookup_ids = tuple(target.tokenizer.encode(text, add_special_tokens=False) for text in settings.lookup_texts)
    if (num_tokens := sum(map(len, lookup_ids))) > MAX_LOOKUP_TOKENS:
        raise PromptError(
            f"the files for lookup have {num_tokens} tokens; at most {MAX_LOOKUP_TOKENS} are searched",
            "give only the parts that the answer may repeat",
        )
    notices = (*target.notices, *defaults.notices)
    return Pair(settings, decided, target, draft, shared, lookup_ids, defaults, started, notices)


def _resolve_drafter(
    requested: PairSettings, target: ResolvedModel, progress: ProgressListener, files: ModelFiles | None = None
) -> tuple[PairSettings, ResolvedModel | None, Pairing | None]:
    """Decides what `auto` means for a target, checks the draft, and compares the tokenizers."""
    settings = requested
    if requested.drafter == "auto":
        own = _own_draft(target, requested.draft or ModelSettings("", device=requested.target.device))
        if own is None:
            return replace(requested, drafter="lookup", draft=None), None, None
        draft, settings = own, replace(requested, drafter="model+lookup", draft=own.settings)
    elif requested.draft is None:
        return requested, None, None
    elif requested.draft.name == MTP_NAME:
        draft = resolve_mtp(target, requested.draft)
    else:
        draft = resolve(files or find_files(requested.draft, progress), requested.draft, "draft")
        if draft.draft_head is None:
            cost, vocab = partial(_draft_cost, target, draft), requested.draft.draft_vocab
            return requested, draft, pair_vocabularies(target.tokenizer, draft.tokenizer, vocab, cost)
        check_own_target(draft, target)
    check_own_options(draft, target)
    return settings, draft, Pairing(target.num_tokens)


def _own_draft(target: ResolvedModel, like: ModelSettings) -> ResolvedModel | None:
    """Returns the draft head that was made for a target: in this package, or in the target's checkpoint."""
    if target.fits_own_decoder:
        return shipped_draft(target, like)
    with suppress(ModelFileError, PairError):
        return resolve_mtp(target, like)
    return None


def _draft_cost(target: ResolvedModel, draft: ResolvedModel) -> float | None:
    """Returns the cost of a draft token as a share of the target's: as measured, else by the sizes of the files."""
    # It imports torch, and the commands import this module before they check their options.
    from specgen.runtime.learned_costs import relative_draft_cost

    measured = relative_draft_cost(target.files, draft.files)
    if measured is not None:
        return measured
    sizes = [
        bytes_per_pass(model, StoredWeights(model.config.num_weight_bytes, model.config.dtype))
        for model in (target, draft)
    ]
    return sizes[1] / sizes[0] if all(sizes) else None
