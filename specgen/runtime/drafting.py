"""Makes the drafter of loaded models, and decides whether it proposes trees."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from specgen.core.events import Notice
from specgen.core.settings import DecodeSettings
from specgen.engine.contract import LanguageModel, can_branch
from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.drafters.model import MaskedDrafter, ModelDrafter
from specgen.engine.drafters.translated import SharedTokenDrafter, SharedTokens, TextDrafter, TranslatedModel
from specgen.engine.drafters.tree import TreeDrafter
from specgen.engine.sampling import Sampler
from specgen.models.draft_head import DraftHeadModel
from specgen.runtime.draft_vocabulary import TranslatedPairing
from specgen.text.translation import Translation
from specgen.text.vocabulary import Pairing

if TYPE_CHECKING:
    from specgen.runtime.loaded_models import LoadedModels


def make_drafter(models: LoadedModels, sampler: Sampler) -> Drafter:
    """Returns the drafter of an answer."""
    kind, pair, vocab_size = models.pair.settings.drafter, models.pair, models.target.vocab_size
    if models.draft is None:
        return models.lookup if kind == "lookup" else NoDrafter()
    if models.translated is not None:
        is_text = models.translated.columns is None
        model: ModelDrafter = (TextDrafter if is_text else SharedTokenDrafter)(models.translated, vocab_size, sampler)
    elif pair.shared is not None and pair.shared.masked_ids:
        masked = torch.tensor(pair.shared.masked_ids)
        model = MaskedDrafter(models.draft, vocab_size, sampler, pair.draft_window, masked)
    else:
        columns = models.draft.columns if isinstance(models.draft, DraftHeadModel) else None
        made = TreeDrafter if no_trees_reason(models) is None else ModelDrafter
        model = made(models.draft, vocab_size, sampler, pair.draft_window, columns)
    return CombinedDrafter(models.lookup, model) if kind == "model+lookup" else model


def end_of_drafts(models: LoadedModels) -> Notice | None:
    """Returns why drafting ends at the text so far; None if it goes on."""
    window = models.pair.draft_window
    if window is not None and models.is_draft_window_full:
        return Notice(
            "draft_window", f"the text is longer than the draft's window of {window} tokens: drafting stops here"
        )
    limit = models.draft_limit
    if limit is not None and len(models.text_ids) >= limit:
        reason = "the target's rotary embedding changes with each further token (rope_type dynamic)"
        return Notice("draft_limit", f"drafting stops at {limit} tokens: {reason}")
    return None


def translated_model(pairing: Pairing, model: LanguageModel, max_positions: int | None) -> TranslatedModel | None:
    """Returns the draft model as the target's tokens see it; None if the vocabularies are the same."""
    if not isinstance(pairing, TranslatedPairing) or pairing.tables is None:
        return None
    shared = None
    if pairing.kind == "shared":
        target_ids, draft_ids = zip(*pairing.pairs, strict=True)
        shared = SharedTokens(torch.tensor(target_ids), torch.tensor(draft_ids))
    return TranslatedModel(model, Translation(*pairing.tables), shared, max_positions)


def with_trees(models: LoadedModels, settings: DecodeSettings, *, is_greedy: bool) -> DecodeSettings:
    """Returns the settings with the trees that these models draft: see `TreeSchedule`."""
    is_wanted = settings.schedule == "auto" and is_greedy and all(device.type == "cpu" for device in models.devices)
    is_default = settings.tree_schedule == "default"
    if no_trees_reason(models) is not None or (is_default and not is_wanted):
        return replace(settings, num_tree_nodes=0, tree_schedule="constant")
    return replace(settings, tree_schedule="auto") if is_default else settings


def no_trees_reason(models: LoadedModels) -> str | None:
    """Returns why drafts can't branch; None if they can."""
    if models.draft is None:
        return "no draft model"
    if models.translated is not None or (models.pair.shared is not None and models.pair.shared.masked_ids):
        return "the draft has other tokens than the target"
    for name, model in (("target", models.target), ("draft", models.draft)):
        if not can_branch(model):
            return f"the passes of the {name} can't branch"
    return None
