"""A plan in, loaded models whose caches live from one answer to the next out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from specgen.engine.costs import CostTable, DraftCost
from specgen.engine.drafters import Drafter, ModelDrafter, NoDrafter
from specgen.engine.lengths import CostAwareLength
from specgen.engine.lookup import LookupDrafter
from specgen.engine.model import CachedModel
from specgen.engine.randomness import PositionNoise, Randomness
from specgen.loading.pairs import table_size
from specgen.loading.progress import SILENT, LoadReport
from specgen.loading.weights import load_model
from specgen.plan import Plan
from specgen.report import ModelInfo
from specgen.settings import SamplingSettings

if TYPE_CHECKING:
    import torch


def open_session(plan: Plan, report: LoadReport = SILENT) -> Session:
    """Read the weights of a plan.

    Raises:
        LoadError: A file is damaged or incomplete.
        DeviceError: No such device, or too little memory.
    """
    settings = plan.settings
    loaded = load_model(
        plan.target.path,
        settings.target,
        role="target",
        from_gguf=plan.target.from_gguf,
        report_stage=report.stage,
        name=plan.target.name,
        revision=plan.target.revision,
    )
    notices = list(loaded.notices)
    draft, draft_info, draft_notices = _load_draft(plan, report)
    notices += draft_notices
    return Session(
        plan, CachedModel(loaded.model, table_size(plan.tokenizer)), loaded.info, draft, draft_info, tuple(notices)
    )


def _load_draft(plan: Plan, report: LoadReport) -> tuple[CachedModel | None, ModelInfo | None, list[str]]:
    """The draft model of a plan, if it has one, and what loading it has to tell."""
    settings = plan.settings.draft
    if plan.draft is None or settings is None or plan.pairing is None:
        return None, None, []
    loaded = load_model(
        plan.draft.path,
        settings,
        role="draft",
        from_gguf=plan.draft.from_gguf,
        report_stage=report.stage,
        name=plan.draft.name,
        revision=plan.draft.revision,
    )
    notices = [*loaded.notices, *([plan.pairing.notice] if plan.pairing.notice else [])]
    return CachedModel(loaded.model, plan.pairing.num_shared), loaded.info, notices


class Session:
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
        plan: Plan,
        target: CachedModel,
        target_info: ModelInfo,
        draft: CachedModel | None,
        draft_info: ModelInfo | None,
        notices: tuple[str, ...] = (),
    ) -> None:
        self.plan = plan
        self.target = target
        self.draft = draft
        self.target_info = target_info
        self.draft_info = draft_info
        self.notices = notices
        self.load_seconds = perf_counter() - plan.started
        self.lookup = LookupDrafter()
        self.lengths = CostAwareLength(CostTable(), DraftCost())
        """Decides draft lengths by cost; what it learns serves the next answer, too."""
        self.text_ids: list[int] = []
        """The text whose prefixes the caches hold."""

    def noise(self, sampling: SamplingSettings) -> PositionNoise | None:
        """Chance tied to positions, if the settings want it."""
        if sampling.is_greedy or not sampling.same_text:
            return None
        return PositionNoise(sampling.seed, self.target.vocab_size)

    def drafter(
        self, sampling: SamplingSettings, randomness: Randomness, noise: PositionNoise | None = None
    ) -> Drafter:
        """The drafter of the next answer."""
        if self.draft is not None:
            window = None if self.plan.draft_facts is None else self.plan.draft_facts.max_positions
            return ModelDrafter(self.draft, self.target.vocab_size, sampling, randomness, window, noise)
        return self.lookup if self.plan.settings.drafter == "lookup" else NoDrafter()

    def roll_back_to(self, prompt_ids: Sequence[int]) -> None:
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

    def use_drafter(self, plan: Plan, report: LoadReport = SILENT) -> list[str]:
        """Go on with the drafter of another plan of the same target; an error leaves the old one in place.

        Returns:
            What loading has to tell.

        Raises:
            LoadError: A file is damaged.
            DeviceError: Too little memory beside the old draft.
        """
        draft, draft_info, notices = _load_draft(plan, report)
        self.plan, self.draft, self.draft_info = plan, draft, draft_info
        # What a target pass costs stays true; what a draft token costs, and how often it is right, does not.
        self.lengths = CostAwareLength(self.lengths.costs, DraftCost())
        return notices

    @property
    def devices(self) -> list[torch.device]:
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
