"""A plan in, loaded models whose caches live from one answer to the next out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from specgen.core.progress import SILENT, ProgressListener
from specgen.core.results import BatchInvarianceCheck, ModelInfo
from specgen.core.settings import SamplingSettings
from specgen.engine.contract import LanguageModel
from specgen.engine.draft_length.cost_aware import CostAwareLength
from specgen.engine.draft_length.cost_table import CostTable, DraftCost
from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.sampling import Sampler
from specgen.loading.draft_head import load_draft_head
from specgen.loading.libraries import freeze_imported_objects
from specgen.loading.load import OpenedModel, open_model, share_threads
from specgen.models.batch_invariance import check_batch_invariance, is_float32
from specgen.models.draft_head import DraftHeadModel
from specgen.runtime.pair import Pair

if TYPE_CHECKING:
    import torch


def load_models(pair: Pair, progress: ProgressListener = SILENT) -> LoadedModels:
    """Read the weights of a plan.

    Raises:
        LoadError: A file is damaged or incomplete.
        DeviceError: No such device, or too little memory.
    """
    freeze_imported_objects()
    target = open_model(
        pair.target,
        pair.facts,
        pair.tokenizer,
        pair.settings.target,
        role="target",
        vocab_size=pair.num_tokens,
        progress=progress,
    )
    batch_invariance = _check_target(target)
    notices = [*target.notices, *_batch_invariance_notices(batch_invariance, pair)]
    draft, draft_info, draft_notices = _open_draft(pair, target.model, progress)
    share_threads(target.model, draft)
    models = LoadedModels(pair, target.model, target.info, draft, draft_info, (*notices, *draft_notices))
    models.batch_invariance = batch_invariance
    return models


def _check_target(target: OpenedModel) -> BatchInvarianceCheck | None:
    """The target's self-test, where its weights call for one; without a drafter, too: one may join later."""
    if target.info.quant != "none":
        return check_batch_invariance(target.model)
    # Rows of plain float32 interact by rounding at most; the passes would only make the start longer.
    return None if is_float32(target.model) else check_batch_invariance(target.model, num_tails=2)


def _batch_invariance_notices(batch_invariance: BatchInvarianceCheck | None, pair: Pair) -> list[str]:
    """What a plan's user must be told of the self-test: without a drafter no rows are checked together."""
    if batch_invariance is None or batch_invariance.is_invariant or pair.settings.drafter == "none":
        return []
    return [f"not lossless: {batch_invariance.reason}; --draft none gives the target's own text"]


def _open_draft(
    pair: Pair, target: LanguageModel, progress: ProgressListener
) -> tuple[LanguageModel | None, ModelInfo | None, list[str]]:
    """The draft model of a plan, if it has one, and what loading it has to tell."""
    settings = pair.settings.draft
    if pair.draft is None or settings is None or pair.pairing is None or pair.draft_facts is None:
        return None, None, []
    if pair.draft_head is not None:
        progress.stage(f"loading draft {pair.draft.name}")
        model, info = load_draft_head(pair.draft_head, pair.draft.name, settings.quant, target, pair.pairing.num_shared)
        return model, info, []
    opened = open_model(
        pair.draft,
        pair.draft_facts,
        pair.tokenizer,
        settings,
        role="draft",
        vocab_size=pair.pairing.num_shared,
        progress=progress,
    )
    notices = [*opened.notices, *([pair.pairing.notice] if pair.pairing.notice else [])]
    return opened.model, opened.info, notices


class LoadedModels:
    """Loaded models, with caches that live from one answer to the next.

    Args:
        plan: What they were loaded from.
        target: The target.
        target_info: What really runs.
        draft: The draft model, if there is one.
        draft_info: Likewise.
        notices: What loading has to tell.
    """

    def __init__(
        self,
        pair: Pair,
        target: LanguageModel,
        target_info: ModelInfo,
        draft: LanguageModel | None,
        draft_info: ModelInfo | None,
        notices: tuple[str, ...] = (),
    ) -> None:
        self.pair = pair
        self.target = target
        self.draft = draft
        self.target_info = target_info
        self.draft_info = draft_info
        self.notices = notices
        self.load_seconds = perf_counter() - pair.started
        self.batch_invariance: BatchInvarianceCheck | None = None
        """The target's self-test, where its weights called for one."""
        self.lookup = LookupDrafter(pair.lookup_ids)
        self.draft_length = CostAwareLength(CostTable(), DraftCost())
        """Decides draft lengths by cost; what it learns serves the next answer, too."""
        self.text_ids: list[int] = []
        """The text whose prefixes the caches hold."""

    def check_batch_invariance(self) -> BatchInvarianceCheck:
        """The self-test, run now whatever the weights are; empties the target's cache."""
        self.batch_invariance = check_batch_invariance(self.target)
        self.text_ids = []
        return self.batch_invariance

    def sampler(self, sampling: SamplingSettings) -> Sampler:
        """Make the sampler of the next answer, from the settings' seed."""
        return Sampler.seeded(sampling, self.target.device, self.target.vocab_size)

    def drafter(self, sampler: Sampler) -> Drafter:
        """Make the drafter of the next answer."""
        if self.draft is not None:
            window = None if self.pair.draft_facts is None else self.pair.draft_facts.max_positions
            columns = self.draft.columns if isinstance(self.draft, DraftHeadModel) else None
            model = ModelDrafter(self.draft, self.target.vocab_size, sampler, window, columns)
            return CombinedDrafter(self.lookup, model) if self.pair.settings.drafter == "model+lookup" else model
        return self.lookup if self.pair.settings.drafter == "lookup" else NoDrafter()

    def reuse_prefix(self, prompt_ids: Sequence[int]) -> None:
        """Keep of the caches what `prompt_ids` begins with, and never its last token."""
        shared = 0
        for old, new in zip(self.text_ids, prompt_ids[:-1], strict=False):
            if old != new:
                break
            shared += 1
        self.target.rewind(min(shared, self.target.length))
        if self.draft is not None:
            self.draft.rewind(min(shared, self.draft.length))
        self.lookup.rewind(shared)
        self.text_ids = list(prompt_ids)

    def replace_drafter(self, pair: Pair, progress: ProgressListener = SILENT) -> list[str]:
        """Go on with the drafter of another plan of the same target; an error leaves the old one in place.

        Returns:
            What loading has to tell.

        Raises:
            LoadError: A file is damaged.
            DeviceError: Too little memory beside the old draft.
        """
        draft, draft_info, notices = _open_draft(pair, self.target, progress)
        if self.pair.settings.drafter == "none":
            notices += _batch_invariance_notices(self.batch_invariance, pair)
        self.pair, self.draft, self.draft_info = pair, draft, draft_info
        share_threads(self.target, self.draft)
        # What a target pass costs stays true; what a draft token costs, and how often it is right, does not.
        self.draft_length = CostAwareLength(self.draft_length.costs, DraftCost())
        return notices

    def with_draft(self, pair: Pair, progress: ProgressListener = SILENT) -> LoadedModels:
        """Another session over the same target in memory, with the drafter of another plan.

        The two share the target's cache: each must `forget` before an answer that follows one of the other.

        Raises:
            LoadError: A file is damaged.
            DeviceError: Too little memory beside what is loaded.
        """
        draft, draft_info, notices = _open_draft(pair, self.target, progress)
        share_threads(self.target, draft)
        notices += _batch_invariance_notices(self.batch_invariance, pair)
        models = LoadedModels(pair, self.target, self.target_info, draft, draft_info, tuple(notices))
        models.batch_invariance = self.batch_invariance
        return models

    def clear_caches(self) -> None:
        """Empty all caches."""
        self.target.rewind(0)
        if self.draft is not None:
            self.draft.rewind(0)
        self.lookup.rewind(0)
        self.text_ids = []

    @property
    def devices(self) -> list[torch.device]:
        """Devices to wait for before a clock is read."""
        return [self.target.device] if self.draft is None else [self.target.device, self.draft.device]


def peak_memory_bytes(devices: Sequence[torch.device]) -> int:
    """Most memory in use so far: of the CUDA devices if there are any, else the process's largest resident size."""
    import torch

    if any(device.type == "cuda" for device in devices):
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
