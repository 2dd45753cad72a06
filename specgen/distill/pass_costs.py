"""What a pass of the target and a token of a draft cost on this machine, in the form in which both really run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specgen.bench.pass_costs import measure_pass_costs
from specgen.core.results import ModelInfo
from specgen.core.settings import ModelSettings
from specgen.distill.acceptance import MAX_DRAFT, Costs
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import PairSettings, resolve_pair


@dataclass(frozen=True, slots=True)
class Timed:
    """Costs, and of what: the models as `specgen generate` would run them."""

    costs: Costs
    target: ModelInfo
    draft: ModelInfo


def time_costs(target: ModelSettings, draft: Path, prompt_ids: Sequence[int]) -> Timed:
    """Open a session of both and time passes over 1 to `MAX_DRAFT` + 1 tokens behind a prompt, and a drafted token.

    Args:
        target: The target, its weight format and compute type left to specgen.
        draft: A finished draft's folder.
        prompt_ids: The context.

    Raises:
        LoadError: A file is damaged.
        DeviceError: Too little memory.
    """
    own = ModelSettings(str(draft), device=target.device, offline=target.offline)
    models = load_models(resolve_pair(PairSettings(target, "model", own)))
    assert models.draft_info is not None
    found = measure_pass_costs({"draft": models}, prompt_ids, MAX_DRAFT)
    passes = tuple(found.verify_seconds[n] for n in range(1, MAX_DRAFT + 2))
    return Timed(Costs(found.draft_seconds["draft"], passes), models.target_info, models.draft_info)
