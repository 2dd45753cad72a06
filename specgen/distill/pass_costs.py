"""Measures what a pass of the target and a drafted token cost on this machine, with both models as they will run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specgen.bench.pass_costs import measure_pass_costs
from specgen.core.cost_model import PassCosts
from specgen.core.settings import ModelSettings
from specgen.distill.acceptance import MAX_DRAFT
from specgen.distill.card import TimedPair
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import PairSettings, resolve_pair


def time_pair(target: ModelSettings, draft: Path, prompt_ids: Sequence[int]) -> TimedPair:
    """Loads both models and times passes over 1 to `MAX_DRAFT` + 1 tokens after a prompt, and a drafted token.

    Args:
        target: The target, with automatic weight format and compute type.
        draft: Folder of a finished draft.
        prompt_ids: The context.

    Raises:
        LoadError: A file is damaged.
        DeviceError: Too little memory.
    """
    draft_settings = ModelSettings(str(draft), device=target.device, offline=target.offline)
    models = load_models(resolve_pair(PairSettings(target, "model", draft_settings)))
    assert models.draft_info is not None
    costs = measure_pass_costs({"draft": models}, prompt_ids, MAX_DRAFT)
    return TimedPair(
        PassCosts(costs.verify_seconds, costs.draft_seconds["draft"]), models.target_info, models.draft_info
    )
