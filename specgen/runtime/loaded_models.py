"""Loads a pair's models and owns their caches, which live from one answer to the next."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from specgen.core.comparison import first_difference
from specgen.core.errors import MemoryShortageError
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.results import BatchInvarianceCheck, ModelInfo
from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.core.units import format_size
from specgen.engine.contract import LanguageModel, RecordingModel, SwitchingModel, padded_rows_of
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.draft_length.tree_length import AcceptanceByShare, TreeLength
from specgen.engine.drafters.base import Drafter
from specgen.engine.drafters.lookup import SEPARATOR, LookupDrafter
from specgen.engine.drafters.translated import TranslatedModel
from specgen.engine.memory_errors import memory_errors
from specgen.engine.sampling import Sampler
from specgen.loading.gpus import leaving_room
from specgen.loading.libraries import freeze_imported_objects
from specgen.loading.llama_cpp import limit_torch_threads
from specgen.loading.load import load
from specgen.loading.resolved_model import LoadedModel, ResolvedModel
from specgen.models.batch_invariance import check_batch_invariance, is_float32
from specgen.runtime.draft_vocabulary import TranslatedPairing
from specgen.runtime.drafting import make_drafter, no_trees_reason, translated_model

if TYPE_CHECKING:
    from specgen.runtime.pair import Pair

MOST_RESERVED = 4000
"""Tokens of an answer that are reserved at once, together with the prompt; most answers end long before their limit."""

LARGE_DRAFT_BYTES, LARGE_DRAFT_RATIO = 50 * 2**20, 0.8
"""From this size on, and this share of the target's parameters, a draft is worth a warning."""


def load_models(pair: Pair, progress: ProgressListener = SILENT) -> LoadedModels:
    """Reads the weights of a pair.

    Raises:
        LoadError: A file is damaged or incomplete.
        DeviceError: The device is missing or has too little memory.
    """
    freeze_imported_objects()
    target = load(leaving_room(pair.target, pair.draft), pair.target.num_tokens, progress)
    invariance = _check_target(target)
    draft = _load_draft(pair, target.model, progress)
    from_draft = () if draft is None else draft.notices
    notices = (*pair.notices, *target.notices, *_invariance_notices(invariance, pair), *from_draft)
    return LoadedModels(pair, target, draft, invariance, notices)


def _check_target(target: LoadedModel) -> BatchInvarianceCheck | None:
    """Checks batch invariance if the target's weights require it; also without a drafter, since one may be added."""
    if target.info.quant != "none":
        return check_batch_invariance(target.model, measures_recurrence=False)
    # In plain float32, tokens change each other's logits by rounding at most; the passes would only delay the start.
    if is_float32(target.model):
        return None
    return check_batch_invariance(target.model, num_tails=2, measures_recurrence=False)


def _invariance_notices(check: BatchInvarianceCheck | None, pair: Pair) -> list[str]:
    """Returns a warning if drafts may change the text; without a drafter, no tokens are checked together."""
    if check is None or check.is_invariant or pair.settings.drafter == "none":
        return []
    return [f"not lossless: {check.reason}; use --draft none for the target's own text"]


def _load_draft(pair: Pair, target: LanguageModel, progress: ProgressListener) -> LoadedModel | None:
    """Loads the draft model or draft head of a pair, if it has one."""
    if pair.draft is None or pair.shared is None:
        return None
    is_translated = isinstance(pair.shared, TranslatedPairing)
    num_tokens = pair.draft.num_tokens if is_translated else pair.shared.num_shared
    draft = load(pair.draft, num_tokens, progress, target=target)
    of_files = (f"the draft: {notice}" for notice in pair.draft.notices)
    notices = [notice for notice in (*of_files, pair.shared.notice, _size_notice(pair.target, pair.draft)) if notice]
    info = replace(draft.info, remark="; ".join(filter(None, (draft.info.remark, pair.shared.remark))))
    return LoadedModel(draft.model, info, (*draft.notices, *notices))


def _size_notice(target: ResolvedModel, draft: ResolvedModel) -> str | None:
    """Returns a warning about a large draft that is about as large as its target or larger, and so rarely helps."""
    num_bytes, ratio = draft.config.num_weight_bytes, draft.config.num_parameters / max(target.config.num_parameters, 1)
    if draft.draft_head is not None or num_bytes < LARGE_DRAFT_BYTES or ratio < LARGE_DRAFT_RATIO:
        return None
    size = f"{format_size(num_bytes)} of weights"
    if draft.path.resolve() == target.path.resolve():
        return f"the draft is the target itself: {size} are loaded twice; a smaller draft is faster"
    how_large = f"{ratio:.0f} times as large as" if ratio >= 1.5 else "as large as"
    return f"the draft {draft.name} ({size}) is {how_large} the target; a smaller draft is faster"


class LoadedModels:
    """Loaded models with caches that live from one answer to the next.

    Args:
        batch_invariance: The target's check, if its weights required one.
        notices: What the user should know about loading, one line each.
    """

    def __init__(
        self,
        pair: Pair,
        target: LoadedModel,
        draft: LoadedModel | None,
        batch_invariance: BatchInvarianceCheck | None = None,
        notices: tuple[str, ...] = (),
    ) -> None:
        self.pair = pair
        self.target, self.target_info = target.model, target.info
        # Once, not per round: a check against a protocol takes 20 µs.
        self._switching = target.model if isinstance(target.model, SwitchingModel) else None
        self._set_draft(draft)
        self.batch_invariance = batch_invariance
        self.notices = notices
        self.load_seconds = perf_counter() - pair.started
        self.lookup = LookupDrafter(self._known_lookup_texts(pair))
        self.draft_length = CostAwareLength(CostTable(padded=padded_rows_of(self.target)))
        """Decides draft lengths by cost; what it learns serves later answers, too."""
        self.tree_acceptance = AcceptanceByShare()
        """Acceptance in trees; what it learns serves later answers, too."""
        self.reported: set[str] = set()
        """Notices of answers that later ones don't repeat."""
        self._text_ids: list[int] = []

    def _known_lookup_texts(self, pair: Pair) -> list[list[int]]:
        """Returns the lookup texts, broken at tokens that the target can't be fed."""
        end = self.target.num_embeddings
        return [[token if token < end else SEPARATOR for token in text] for text in pair.lookup_ids]

    def _set_draft(self, draft: LoadedModel | None) -> None:
        self.draft: LanguageModel | None = None if draft is None else draft.model
        self.draft_info: ModelInfo | None = None if draft is None else draft.info
        self.translated: TranslatedModel | None = None
        """The draft model with another vocabulary, as the target's tokens see it; None if it has the target's."""
        if self.draft is not None and self.pair.shared is not None:
            self.translated = translated_model(self.pair.shared, self.draft, self.pair.draft_window)
        self.limit_torch_threads()

    def limit_torch_threads(self) -> None:
        """Leaves all cores to llama.cpp if neither model runs on torch."""
        limit_torch_threads(self.target, self.draft)

    @property
    def devices(self) -> list[torch.device]:
        """Devices to wait for before a clock is read."""
        return [self.target.device] if self.draft is None else [self.target.device, self.draft.device]

    @property
    def is_draft_window_full(self) -> bool:
        """Whether the text fills the window of the draft model."""
        if self.translated is not None:
            return self.translated.num_positions_left(self._text_ids) < 1
        window = self.pair.draft_window
        return window is not None and len(self._text_ids) >= window

    @property
    def draft_limit(self) -> int | None:
        """In a text of this length or longer, drafts save no time on this target. None: they may save time in any."""
        return None if self._switching is None else self._switching.draft_limit

    @property
    def text_ids(self) -> Sequence[int]:
        """The text so far; each cache contains a prefix of it."""
        return self._text_ids

    def reuse_prefix(self, prompt_ids: Sequence[int]) -> None:
        """Starts a new text; keeps in the caches what it has in common with the last one, except its last token."""
        difference = first_difference(self._text_ids, prompt_ids[:-1])
        shared = max(0, len(prompt_ids) - 1) if difference is None else difference
        self.target.rewind(min(shared, self.target.length))
        draft = self.translated or self.draft
        if draft is not None:
            draft.rewind(min(shared, draft.length))
        self.lookup.rewind(shared)
        self._text_ids = list(prompt_ids)

    def reserve(self, num_prompt_tokens: int, num_new_tokens: int) -> None:
        """Makes room for an answer in caches of fixed size. Without memory for it, they grow when they must."""
        num_tokens = max(num_prompt_tokens + 1, min(num_prompt_tokens + num_new_tokens, MOST_RESERVED))
        models: list[object] = [self.target, self.draft]
        for model in models:
            if isinstance(model, RecordingModel):
                with suppress(MemoryShortageError), memory_errors():
                    model.reserve(num_tokens)

    def append(self, token_ids: Sequence[int]) -> None:
        """Adds emitted tokens to the text."""
        self._text_ids += token_ids

    def clear_caches(self) -> None:
        """Empties all caches; their memory stays allocated."""
        self.reuse_prefix(())

    def reset_caches(self) -> None:
        """Replaces all caches: a pass that was interrupted may have left them inconsistent."""
        self.target.reset()
        draft = self.translated or self.draft
        if draft is not None:
            draft.reset()
        self.lookup.rewind(0)
        self._text_ids = []

    def sampler(self, sampling: SamplingSettings) -> Sampler:
        """Returns the sampler of the next answer, seeded by the settings."""
        return Sampler.seeded(sampling, self.target.device, self.target.vocab_size, self.pair.defaults.rules)

    def drafter(self, sampler: Sampler) -> Drafter:
        """Returns the drafter of the next answer."""
        return make_drafter(self, sampler)

    def length_policy(self, settings: DecodeSettings) -> LengthPolicy | None:
        """Returns what decides the drafts of the next answer; None: the settings' constant length."""
        assert settings.tree_schedule != "default", "`with_trees` has decided"
        by_cost = self.draft_length if self.weighs_costs(settings) else None
        if not self._has_trees(settings):
            return by_cost
        is_fixed = settings.tree_schedule != "auto"
        return TreeLength(settings.num_tree_nodes, by_cost, is_fixed=is_fixed, acceptance=self.tree_acceptance)

    def weighs_costs(self, settings: DecodeSettings) -> bool:
        """Returns whether an answer's policy weighs costs, and so learns them from its rounds."""
        # Where costs size the trees, a constant length limits their paths.
        return settings.schedule == "auto" or (settings.tree_schedule == "auto" and self._has_trees(settings))

    def _has_trees(self, settings: DecodeSettings) -> bool:
        return settings.num_tree_nodes > 0 and no_trees_reason(self) is None

    def check_batch_invariance(self) -> BatchInvarianceCheck:
        """Checks the target's batch invariance now, whatever its weights; clears the caches."""
        self.clear_caches()
        self.batch_invariance = check_batch_invariance(self.target)
        return self.batch_invariance

    def replace_draft(self, pair: Pair, progress: ProgressListener = SILENT) -> list[str]:
        """Replaces the drafter by that of another pair with the same target; after an error, the old one stays.

        Returns:
            What the user should know about loading.

        Raises:
            LoadError: A file is damaged.
            DeviceError: There is too little memory next to the old draft.
        """
        draft = _load_draft(pair, self.target, progress)
        notices = [] if draft is None else list(draft.notices)
        if self.pair.settings.drafter == "none":
            notices += _invariance_notices(self.batch_invariance, pair)
        self.pair = pair
        self._set_draft(draft)
        # The cost of a target pass stays the same; the cost of a draft token and the acceptance rate don't.
        self.draft_length, self.tree_acceptance = CostAwareLength(self.draft_length.costs), AcceptanceByShare()
        return notices

    def with_draft(self, pair: Pair, progress: ProgressListener = SILENT) -> LoadedModels:
        """Returns models with the same target in memory and the drafter of another pair.

        The two share the target's cache: call `clear_caches` before an answer that follows one of the other.

        Raises:
            LoadError: A file is damaged.
            DeviceError: There is too little memory next to the loaded models.
        """
        draft = _load_draft(pair, self.target, progress)
        notices = (*([] if draft is None else draft.notices), *_invariance_notices(self.batch_invariance, pair))
        target = LoadedModel(self.target, self.target_info)
        return LoadedModels(pair, target, draft, self.batch_invariance, notices)
