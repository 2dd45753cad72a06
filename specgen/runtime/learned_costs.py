"""Loads and saves measured pass costs, so that `-k auto` starts with the costs of earlier runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from specgen.core import __version__
from specgen.core.cost_model import Forecast, PassCosts, forecast
from specgen.core.draft_name import MTP_NAME
from specgen.core.events import Round
from specgen.core.machine import processor_name, version_of
from specgen.core.metrics import Counts
from specgen.core.results import ModelInfo
from specgen.core.settings import MAX_CHECKED_TOKENS, BackendSettings, DraftVocab
from specgen.engine.contract import LanguageModel, RecordingModel, padded_rows_of
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.draft_length.row_cost import RowCost
from specgen.loading.resolved_model import ModelFiles, ResolvedModel
from specgen.loading.weight_sizes import StoredWeights, bytes_per_pass
from specgen.models.kernels import KERNELS_VERSION
from specgen.storage.cost_store import CostKey, CostStore

if TYPE_CHECKING:
    from specgen.runtime.loaded_models import LoadedModels

DECISIVE = ("torch", "transformers", "bitsandbytes", "llvmlite", "llama-cpp-python")
TOKEN = "token"  # noqa: S105 - a name in the file
"""Key of a draft token's cost; costs of target passes have the number of tokens as key."""
ROW = "row"
"""Key of the cost of a further token in a pass of the draft over a tree."""
ALPHA = "alpha"
MIN_TESTED = 30
"""Tested draft tokens from which on an acceptance rate is worth saving."""


def load(models: LoadedModels, store: CostStore | None = None) -> None:
    """Starts with the pass costs that earlier runs of the same models measured."""
    store = store or CostStore()
    passes = {int(name): seconds for name, seconds in store.read(target_key(models)).items() if is_length(name)}
    costs = CostTable(passes, padded_rows_of(models.target))
    models.draft_length = _draft_length(models, costs, store)


def load_draft_costs(models: LoadedModels, store: CostStore | None = None) -> None:
    """Loads the costs of a draft that replaced another one; the measured costs of the target stay."""
    models.draft_length = _draft_length(models, models.draft_length.costs, store or CostStore())


def _draft_length(models: LoadedModels, costs: CostTable, store: CostStore) -> CostAwareLength:
    """Returns a policy that starts with the draft's costs in earlier runs, or with an estimate from its size."""
    key, pair, draft = draft_key(models), models.pair, models.draft_info
    if key is None or pair.draft is None or pair.shared is None or draft is None:
        return CostAwareLength(costs)
    of_target, of_draft = (
        StoredWeights(info.num_bytes, info.dtype, info.quant, info.device) for info in (models.target_info, draft)
    )
    read = bytes_per_pass(pair.target, of_target)
    share = bytes_per_pass(pair.draft, of_draft, of_target) / read if read else 0.0
    alpha = store.read(acceptance_key(pair.target.files, pair.draft.files, pair.shared.kind)).get(ALPHA)
    known = store.read(key)
    token, row = known.get(TOKEN), known.get(ROW)
    cost = DraftCost(token, costs, share)
    if token is not None and row is not None:
        cost.rows = RowCost(row / token)
    return CostAwareLength(costs, cost, alpha)


def save(models: LoadedModels, store: CostStore | None = None, measured: Mapping[int, float] | None = None) -> None:
    """Saves the measured pass costs; does nothing if none were measured.

    Args:
        measured: Passes timed on their own, seconds by length; they replace what was observed during answers.
    """
    store = store or CostStore()
    costs, token = models.draft_length.costs, models.draft_length.draft_cost
    passes = {**costs.known, **(measured or {})}
    confirmed = costs.confirmed | set(measured or {})
    if confirmed:
        named = {str(n): seconds for n, seconds in passes.items() if n <= MAX_CHECKED_TOKENS}
        store.write(target_key(models), named, map(str, confirmed))
    drafting = draft_key(models)
    if drafting is not None and token.is_confirmed:
        found, rows = {TOKEN: token.typical_seconds}, token.rows
        if rows.is_supported:
            found[ROW] = rows.share * token.typical_seconds
        store.write(drafting, found, [TOKEN, *([ROW] if rows.is_measured else [])])


def observe(models: LoadedModels, round_: Round) -> None:
    """Updates the costs from a round whose policy does not weigh them; others update them themselves."""
    if round_.is_warmup:
        return
    draft_length, num_passes = models.draft_length, round_.num_draft_passes
    draft_length.costs.observe(round_.num_fed, round_.verify_seconds)
    if num_passes and round_.source == "model":
        draft_cost, pass_rows = draft_length.draft_cost, () if round_.tree is None else round_.pass_rows
        draft_cost.rows.observe(pass_rows, round_.draft_seconds)
        draft_cost.observe(draft_cost.rows.passes(pass_rows) or num_passes, round_.draft_seconds)


def save_acceptance(models: LoadedModels, counts: Counts, store: CostStore | None = None) -> None:
    """Saves how often drafts of this model were accepted by this target; does nothing after too few tokens."""
    pair = models.pair
    if pair.draft is None or pair.shared is None or counts.num_tested < MIN_TESTED or not counts.alpha:
        return
    write_alpha(acceptance_key(pair.target.files, pair.draft.files, pair.shared.kind), counts.alpha, store)


def relative_draft_cost(target: ModelFiles, draft: ModelFiles, store: CostStore | None = None) -> float | None:
    """Returns what a draft token costs as a share of a target pass, as earlier runs measured it; None if none did."""
    store = store or CostStore()
    one_pass = store.find({"role": "target", "model": model_identity(target)}).get("1")
    if one_pass is None:
        return None
    facts: CostKey = {"role": "draft", "model": model_identity(draft)}
    keys = [facts, *({**facts, "vocab": kind} for kind in ("shared", "text"))]
    tokens = [token for key in keys if (token := store.find(key).get(TOKEN)) is not None]
    return min(tokens) / one_pass if tokens else None


def write_alpha(key: CostKey, alpha: float, store: CostStore | None = None) -> None:
    """Stores an acceptance rate; see `acceptance_key`."""
    (store or CostStore()).write(key, {ALPHA: alpha}, [ALPHA])


def acceptance_key(target: ModelFiles, draft: ModelFiles, kind: DraftVocab) -> CostKey:
    """Returns what an acceptance rate depends on: the two models, and how the draft's vocabulary is used."""
    return {"role": "acceptance", "target": model_identity(target), "model": model_identity(draft), "vocab": kind}


def predict(models: LoadedModels, counts: Counts, baseline: Counts) -> Forecast:
    """Returns the speedup that the learned costs predict for an answer.

    Args:
        baseline: Of the target alone, after the same prompt.
    """
    draft_length = models.draft_length
    token, row = draft_length.draft_cost.typical_seconds, draft_length.draft_cost.rows.share
    return forecast(
        counts,
        PassCosts(
            draft_length.costs.known,
            token,
            tree_pass_seconds={1: token, 2: token * (1 + row)},
            # The mean cost of a chain's token contains what its first pass reads.
            reading_seconds={1: 0.0, 2: row * token if counts.num_tree_rounds else 0.0},
            round_seconds=counts.other_seconds / counts.timed.num_rounds,
            plain_round_seconds=baseline.other_seconds / baseline.timed.num_rounds,
        ),
    )


def target_key(models: LoadedModels) -> CostKey:
    """Returns what the cost of a target pass depends on."""
    return _cost_key(models.pair.target, models.target, models.target_info)


def draft_key(models: LoadedModels) -> CostKey | None:
    """Returns what the cost of a draft token depends on; None without a draft model."""
    if models.pair.draft is None or models.draft is None or models.draft_info is None:
        return None
    key = _cost_key(models.pair.draft, models.draft, models.draft_info)
    kind = "same" if models.pair.shared is None else models.pair.shared.kind
    # One of the target's tokens may take several of the draft's.
    return key if kind == "same" else {**key, "vocab": kind}


def _cost_key(resolved: ResolvedModel, model: LanguageModel, info: ModelInfo) -> CostKey:
    is_cuda = model.device.type == "cuda"
    return {
        "role": resolved.role,
        "model": model_identity(resolved.files),
        "parameters": info.num_parameters,
        "bytes": info.num_bytes,
        "quant": info.quant,
        "dtype": info.dtype,
        "device": info.device,
        "processor": torch.cuda.get_device_name(model.device) if is_cuda else processor_name(),
        # llama.cpp has its own threads; torch's number does not matter for it.
        "threads": getattr(model, "num_threads", torch.get_num_threads()),
        "engine": _backend_key(model, resolved.settings.backend),
        "versions": " ".join([f"specgen {__version__} kernels {KERNELS_VERSION}", *map(_version, DECISIVE)]),
    }


def _version(library: str) -> str:
    return f"{library} {version_of(library)}"


def model_identity(files: ModelFiles) -> str:
    """Identifies a model by its shape: costs don't depend on its weights, so a folder may move or be trained again."""
    try:
        if files.gguf is not None:
            return f"gguf {files.gguf.path.name} {files.gguf.path.stat().st_size}"
        digest = hashlib.sha256((files.path / "config.json").read_bytes()).hexdigest()
        # A head in the target's own folder shares its config.
        return f"{digest} {MTP_NAME}" if files.name == MTP_NAME else digest
    except OSError:  # moved while the program runs
        return files.name


def is_length(name: str) -> bool:
    """Returns whether a stored name is the length of a target pass."""
    return name.isascii() and name.isdigit() and len(name) <= 3 and 1 <= int(name) <= MAX_CHECKED_TOKENS


_NAMES_ON_DISK = {"DecoderModel": "LeanModel", "DraftHeadModel": "ShallowModel"}
"""Class names of version 0.1.0, so that its files stay valid."""


def _backend_key(model: LanguageModel, backend: BackendSettings) -> str:
    """Identifies the code that runs a model, in the spelling of version 0.1.0."""
    kind = type(model).__name__
    if isinstance(model, RecordingModel) and model.has_failed:
        kind += " without recording"
    return (
        f"{_NAMES_ON_DISK.get(kind, kind)} EngineSettings(backend={backend.name!r}, gpu_layers={backend.gpu_layers!r}, "
        f"context_size={backend.context_size!r}, threads={backend.threads!r})"
    )
