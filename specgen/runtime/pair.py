"""Model settings in, all that is known without weights out: folders, tokenizers, windows, whether the pair fits."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal

from specgen.core.errors import PairError, PromptError, SettingsError
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import ModelSettings
from specgen.loading.config_check import ConfigFacts, check_folder
from specgen.loading.draft_head_folder import (
    SHIPPED,
    DraftHeadFacts,
    check_draft_head,
    check_own_target,
    is_draft_head,
    shipped_draft,
)
from specgen.loading.resolve import ModelFolder, prepare_folder
from specgen.text.tokenizer import check_num_rows, end_ids, generation_defaults, load_tokenizer
from specgen.text.vocabulary import Pairing, compare_tokenizers, table_size

DrafterKind = Literal["auto", "model", "lookup", "model+lookup", "none"]
"""`auto`: the draft that is shipped for the target with lookup beside it, if there is one, else lookup alone."""

MAX_LOOKUP_TOKENS = 100_000
"""Tokens of all given texts together: their index takes half a kilobyte each."""


@dataclass(frozen=True, slots=True)
class PairSettings:
    """Which models work together.

    Args:
        target: The model whose text is wanted.
        drafter: What drafts.
        draft: The draft model, for `drafter="model"` and `"model+lookup"`; for `auto` how to load a shipped one, its
            name left open.
        lookup_texts: Texts the answer may repeat; prompt lookup searches them, too.
    """

    target: ModelSettings
    drafter: DrafterKind = "lookup"
    draft: ModelSettings | None = None
    lookup_texts: tuple[str, ...] = ()


class Pair:
    """A session before its weights are read.

    Args:
        settings: The models.
        progress: Receives the progress of loading.

    Raises:
        LoadError: A model is missing or damaged.
        PairError: Draft and target don't share a vocabulary.
        PromptError: The texts for lookup are too long.
    """

    def __init__(self, settings: PairSettings, progress: ProgressListener = SILENT) -> None:
        self.requested = settings
        self.settings = settings
        """As asked, `auto` decided."""
        self.started = perf_counter()
        self.target: ModelFolder = prepare_folder(settings.target, progress)
        # Before the libraries are imported: a draft that is not there is told at once.
        given = settings.draft if settings.drafter != "auto" else None
        draft = None if given is None else prepare_folder(given, progress)
        self.draft: ModelFolder | None = None
        progress.stage("checking files and tokenizers")
        self.facts: ConfigFacts = _facts(self.target, settings.target, "target")
        self.draft_facts: ConfigFacts | None = None
        self.draft_head: DraftHeadFacts | None = None
        """The draft, if it is a shallow one."""
        self.tokenizer: Any = load_tokenizer(self.target.path)
        self.num_tokens = table_size(self.tokenizer)
        """The highest id plus one: the width of the target's laws. Kept, for it takes a look at every token."""
        check_num_rows(self.num_tokens, self.facts.vocab_rows, self.target.path)
        self.pairing: Pairing | None = None
        self.end_ids = end_ids(self.tokenizer, self.target.path)
        self.sampling_defaults = generation_defaults(self.target.path)
        self._plan_drafter(progress, draft)
        self._refuse_idle_settings()
        self.lookup_ids = self._lookup_ids()

    def _lookup_ids(self) -> list[list[int]]:
        """The texts for lookup as an answer would write them: without special tokens."""
        texts = self.settings.lookup_texts
        ids: list[list[int]] = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        num_tokens = sum(map(len, ids))
        if num_tokens > MAX_LOOKUP_TOKENS:
            raise PromptError(
                f"the files for lookup have {num_tokens} tokens; at most {MAX_LOOKUP_TOKENS} are searched",
                "give the parts that the answer may repeat",
            )
        return ids

    def _refuse_idle_settings(self) -> None:
        """An option that changes nothing is a mistake worth telling."""
        backend = self.settings.target.backend
        if self.target.gguf is not None or (self.draft is not None and self.draft.gguf is not None):
            return
        for name, value in (
            ("gpu-layers", backend.gpu_layers),
            ("context-size", backend.context_size),
            ("threads", backend.threads),
        ):
            if value is not None:
                raise SettingsError(
                    f"--{name} {value} is for llama.cpp, and no model here runs on it",
                    "leave it out, or give a .gguf file with the extra gguf installed",
                )

    def _plan_drafter(self, progress: ProgressListener, draft_folder: ModelFolder | None = None) -> None:
        self.draft = self.draft_facts = self.pairing = self.draft_head = None
        if self.settings.drafter == "auto":
            # A shallow draft runs on its target's embeddings, which llama.cpp does not give away.
            shipped = None if self.target.gguf is not None else shipped_draft(self.target.path)
            if shipped is None:
                self.settings = replace(self.settings, drafter="lookup", draft=None)
                return
            draft = self.settings.draft or ModelSettings("", device=self.settings.target.device)
            self.settings = replace(self.settings, drafter="model+lookup", draft=replace(draft, name=str(shipped)))
        if self.settings.draft is not None:
            self._plan_draft(self.settings.draft, draft_folder or prepare_folder(self.settings.draft, progress))

    def _plan_draft(self, settings: ModelSettings, folder: ModelFolder) -> None:
        self.draft = folder
        if self.draft.path.parent == SHIPPED:
            # It bears its target's name, and the two stand beside each other in every banner.
            self.draft = replace(self.draft, name=f"{self.draft.name}-draft")
        if is_draft_head(self.draft.path):
            self._plan_draft_head(settings, self.draft)
            return
        self.draft_facts = _facts(self.draft, settings, "draft")
        tokenizer = load_tokenizer(self.draft.path)
        check_num_rows(table_size(tokenizer), self.draft_facts.vocab_rows, self.draft.path)
        self.pairing = compare_tokenizers(self.tokenizer, tokenizer)

    def _plan_draft_head(self, settings: ModelSettings, folder: ModelFolder) -> None:
        """A draft that borrows from the target: it runs where, and as, the target runs."""
        facts = check_draft_head(folder.path)
        if self.target.gguf is not None:
            raise PairError(
                f"the draft {folder.name} runs on its target's embeddings, and llama.cpp does not give them away",
                "add --backend transformers, or choose another draft",
            )
        check_own_target(facts, folder.name, self.target.path, self.target.name)
        for name, value, known in (
            ("draft-device", settings.device, ("auto", self.settings.target.device)),
            ("draft-quant", settings.quant, ("auto", "none", "nf4", "int8")),
        ):
            if value not in known:
                raise SettingsError(
                    f"--{name} {value} can't be applied to {folder.name}, which is a part of its target", "leave it out"
                )
        self.draft_head, self.draft_facts = facts, facts.config
        self.pairing = Pairing(self.num_tokens)

    def with_drafter(self, kind: DrafterKind, draft: ModelSettings | None, progress: ProgressListener = SILENT) -> Pair:
        """The same target with another drafter; this plan stays as it is.

        Raises:
            LoadError: The draft is missing or damaged.
            PairError: It doesn't share the target's vocabulary.
        """
        other = copy.copy(self)
        other.requested = other.settings = replace(self.settings, drafter=kind, draft=draft)
        other._plan_drafter(progress)
        return other

    def resolve_max_new_tokens(self, num_prompt_tokens: int, max_new_tokens: int | None, default: int) -> int:
        """New tokens that fit behind the prompt.

        Args:
            num_prompt_tokens: Length of the prompt.
            max_new_tokens: What was asked for; None: `default`, or less if the window ends before.
            default: Budget where nothing was asked for.

        Raises:
            PromptError: Prompt and budget don't fit into the target's window.
        """
        window = self.facts.max_positions
        if window is None:
            return max_new_tokens or default
        wanted = 1 if max_new_tokens is None else max_new_tokens
        if num_prompt_tokens + wanted > window:
            raise PromptError(
                f"prompt {num_prompt_tokens} + {wanted} new tokens > {window} positions of {self.target.name}",
                "shorten the prompt or lower --max-new-tokens" + self._larger_context(),
            )
        return max_new_tokens or min(default, window - num_prompt_tokens)

    def _larger_context(self) -> str:
        """llama.cpp's cache may be smaller than the model's window."""
        gguf, window = self.target.gguf, self.facts.max_positions
        if gguf is None or window is None or (gguf.header.context_length or 0) <= window:
            return ""
        return f", or give a larger --context-size (up to {gguf.header.context_length})"


def _facts(folder: ModelFolder, settings: ModelSettings, role: Literal["target", "draft"]) -> ConfigFacts:
    if folder.gguf is None:
        return check_folder(folder.path)
    from specgen.loading.llama_cpp import gguf_facts

    return gguf_facts(folder.gguf.header, settings.backend, folder.name, role)


def resolve_pair(settings: PairSettings, progress: ProgressListener = SILENT) -> Pair:
    """Finds, downloads and checks the models of a pair; loads no weights."""
    return Pair(settings, progress)
