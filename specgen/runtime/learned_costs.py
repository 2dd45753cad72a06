"""A session in; what its passes cost, as earlier runs on this machine found it, into its draft lengths, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from specgen import __version__
from specgen.core.cost_model import Forecast, PassCosts, forecast
from specgen.core.events import Round
from specgen.core.machine import processor_name, version_of
from specgen.core.metrics import Counts
from specgen.core.results import ModelInfo
from specgen.core.settings import MAX_DRAFT_TOKENS, BackendSettings
from specgen.engine.contract import LanguageModel
from specgen.engine.draft_length.cost_aware import CostAwareLength
from specgen.engine.draft_length.cost_table import CostTable, DraftCost
from specgen.loading.resolve import ModelFolder
from specgen.storage.cost_store import CostKey, CostStore

if TYPE_CHECKING:
    from specgen.runtime.loaded_models import LoadedModels

DECISIVE = ("torch", "transformers", "bitsandbytes", "llama-cpp-python")
TOKEN = "token"  # noqa: S105 - a name in the file
"""Name of a draft token's cost among a draft's entries; the target's are named after the length of the pass."""


def load(models: LoadedModels, store: CostStore | None = None) -> None:
    """Let a session begin with the costs an earlier one of the same models found."""
    store = store or CostStore()
    passes = {int(name): seconds for name, seconds in store.read(target_facts(models)).items() if _is_length(name)}
    costs = CostTable(passes)
    models.draft_length = CostAwareLength(costs, DraftCost(_token_seconds(models, store), costs))


def load_draft(models: LoadedModels, store: CostStore | None = None) -> None:
    """Likewise for a draft that came later; what the session learned of its target stays."""
    costs = models.draft_length.costs
    models.draft_length = CostAwareLength(costs, DraftCost(_token_seconds(models, store or CostStore()), costs))


def _token_seconds(models: LoadedModels, store: CostStore) -> float | None:
    facts = draft_facts(models)
    return None if facts is None else store.read(facts).get(TOKEN)


def save(models: LoadedModels, store: CostStore | None = None, measured: Mapping[int, float] | None = None) -> None:
    """Remember what a session found out. Nothing happens where it measured nothing.

    Args:
        session: The session.
        store: Where; default: the user's cache.
        measured: Passes timed on their own, seconds by length; they count more than what was seen on the way.
    """
    store = store or CostStore()
    costs, token = models.draft_length.costs, models.draft_length.draft_cost
    passes = {**costs.known, **(measured or {})}
    confirmed = costs.confirmed | set(measured or {})
    if confirmed:
        named = {str(n): seconds for n, seconds in passes.items() if n <= MAX_DRAFT_TOKENS + 1}
        store.write(target_facts(models), named, map(str, confirmed))
    drafting = draft_facts(models)
    if drafting is not None and token.is_confirmed:
        store.write(drafting, {TOKEN: token.seconds}, [TOKEN])


def observe(models: LoadedModels, round_: Round) -> None:
    """Learn costs from a round with a fixed draft length; `-k auto` learns from its rounds by itself."""
    draft_length, num_drafted = models.draft_length, len(round_.draft_ids) + round_.num_cut
    draft_length.costs.observe(num_drafted + 1, round_.verify_seconds)
    if num_drafted and round_.source == "model":
        draft_length.draft_cost.observe(num_drafted, round_.draft_seconds)


def predict(models: LoadedModels, counts: Counts, alone: Counts) -> Forecast:
    """What the costs a session has learned predict for an answer.

    Args:
        session: Has learned from this answer.
        counts: Of the answer.
        alone: Of the target alone, behind the same prompt.
    """
    draft_length = models.draft_length
    return forecast(
        counts,
        PassCosts(
            draft_length.costs.known,
            draft_length.draft_cost.seconds,
            round_seconds=counts.other_seconds / counts.num_rounds,
            plain_round_seconds=alone.other_seconds / alone.num_rounds,
        ),
    )


def target_facts(models: LoadedModels) -> CostKey:
    """What the cost of the target's passes depends on."""
    pair = models.pair
    return _facts("target", pair.target, models.target, models.target_info, pair.settings.target.backend)


def draft_facts(models: LoadedModels) -> CostKey | None:
    """What the cost of a draft token depends on; None without a draft model."""
    pair, settings = models.pair, models.pair.settings.draft
    if models.draft is None or models.draft_info is None or pair.draft is None or settings is None:
        return None
    return _facts("draft", pair.draft, models.draft, models.draft_info, settings.backend)


def _facts(role: str, folder: ModelFolder, model: LanguageModel, info: ModelInfo, backend: BackendSettings) -> CostKey:
    import torch

    is_cuda = model.device.type == "cuda"
    return {
        "role": role,
        "model": _identity(folder),
        "parameters": info.num_parameters,
        "bytes": info.num_bytes,
        "quant": info.quant,
        "dtype": info.dtype,
        "device": info.device,
        "processor": torch.cuda.get_device_name(model.device) if is_cuda else processor_name(),
        # llama.cpp has threads of its own, and torch's number beside it says nothing.
        "threads": getattr(model, "num_threads", torch.get_num_threads()),
        "engine": _backend_key(model, backend),
        "versions": " ".join([f"specgen {__version__}", *(f"{name} {version_of(name)}" for name in DECISIVE)]),
    }


def _identity(folder: ModelFolder) -> str:
    """A model by its shape. Costs depend on that and not on the numbers, so a folder may move or be trained further."""
    try:
        if folder.gguf is not None:
            return f"gguf {folder.gguf.path.name} {folder.gguf.path.stat().st_size}"
        return hashlib.sha256((folder.path / "config.json").read_bytes()).hexdigest()
    except OSError:  # moved away while it runs
        return folder.name


def _is_length(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= 3 and 1 <= int(name) <= MAX_DRAFT_TOKENS + 1


_NAMES_ON_DISK = {"DecoderModel": "LeanModel", "DraftHeadModel": "ShallowModel"}
"""Classes as version 0.1.0 called them: its files stay valid."""


def _backend_key(model: LanguageModel, backend: BackendSettings) -> str:
    """Which code runs a model, in the spelling of version 0.1.0."""
    kind = type(model).__name__
    return (
        f"{_NAMES_ON_DISK.get(kind, kind)} EngineSettings(backend={backend.name!r}, gpu_layers={backend.gpu_layers!r}, "
        f"context_size={backend.context_size!r}, threads={backend.threads!r})"
    )
