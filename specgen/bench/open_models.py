"""Loads the models of a benchmark: its configurations, each draft once and all with one target, and its peers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from specgen.bench.configurations import Configuration
from specgen.bench.peers import LlamaCppPeer, Peer, TransformersPeer
from specgen.bench.results import Setting
from specgen.core.errors import SettingsError
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import MAX_TREE_NODES, BackendSettings, DecodeSettings, ModelSettings, PairSettings
from specgen.models.transformers_model import TransformersModel
from specgen.runtime.drafting import no_trees_reason, with_trees
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import Pair, resolve_pair
from specgen.text.vocabulary import compare_tokenizers


def open_configurations(
    baseline: Pair,
    drafts: Mapping[str, Pair],
    settings: Sequence[Setting],
    progress: ProgressListener = SILENT,
    *,
    is_greedy: bool = True,
) -> list[Configuration]:
    """Loads the weights of a target and of every draft; returns the baseline, then a configuration per setting.

    Args:
        baseline: The target without a drafter.
        drafts: A pair with the same target for each draft, by the `draft` of its settings.
        settings: What to run besides the baseline.
        progress: Receives the progress of loading.
        is_greedy: No token is drawn; decides what the default of trees resolves to.

    Raises:
        LoadError: A file is damaged.
        DeviceError: Too little memory for all of them.
    """
    target_alone = load_models(baseline, progress)
    loaded = {name: target_alone.with_draft(pair, progress) for name, pair in drafts.items()}
    # What the default of trees resolves to may be among the settings already.
    known = {
        _completed(setting, loaded[setting.draft], is_greedy=is_greedy): loaded[setting.draft] for setting in settings
    }
    labelled = [Configuration(setting, models) for setting, models in known.items()]
    return [Configuration(Setting("none"), target_alone), *_with_distinct_labels(labelled)]


def open_backends(
    pairs: Mapping[str, tuple[Pair, Mapping[str, Pair]]],
    settings: Sequence[Setting],
    progress: ProgressListener = SILENT,
    *,
    is_greedy: bool = True,
) -> list[Configuration]:
    """Loads one target on several backends; returns the configurations of the first one, then those of the others.

    Args:
        pairs: The first two arguments of `open_configurations`, by the backend's name.
        settings: What to run on each backend.
        progress: Receives the progress of loading.
        is_greedy: As in `open_configurations`.

    Raises:
        PairError: The backends tokenize differently.
        LoadError: A file is damaged.
        DeviceError: Too little memory for all of them.
    """
    first, *others = [baseline for baseline, _ in pairs.values()]
    for other in others:
        compare_tokenizers(first.tokenizer, other.tokenizer)
    return [
        replace(configuration, setting=replace(configuration.setting, backend=backend))
        for backend, (baseline, drafts) in pairs.items()
        for configuration in open_configurations(baseline, drafts, settings, progress, is_greedy=is_greedy)
    ]


def _with_distinct_labels(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Labels drafts from two folders that share a name and a format by their names on the command line instead."""
    drafts: dict[str, set[str]] = defaultdict(set)
    for one in configurations:
        drafts[one.setting.label].add(one.setting.draft)
    return [
        replace(one, setting=replace(one.setting, label=one.setting.draft))
        if len(drafts[one.setting.label]) > 1
        else one
        for one in configurations
    ]


def _completed(setting: Setting, models: LoadedModels, *, is_greedy: bool) -> Setting:
    """Returns the setting as it really runs: drafts and trees by default are known by now."""
    completed = replace(_with_label(setting, models), can_branch=no_trees_reason(models) is None)
    if setting.tree_schedule != "default":
        return completed
    given = DecodeSettings(1, schedule=setting.schedule, num_tree_nodes=MAX_TREE_NODES, tree_schedule="default")
    made = with_trees(models, given, is_greedy=is_greedy)
    return replace(completed, num_tree_nodes=made.num_tree_nodes, tree_schedule=made.tree_schedule)


def _with_label(setting: Setting, models: LoadedModels) -> Setting:
    """Returns the setting, labelled with the draft that really runs: `auto` is decided by now."""
    info, drafter = models.draft_info, models.pair.settings.drafter
    if info is None:
        return replace(setting, drafter=drafter, draft=drafter, label=drafter)
    weight_format = info.dtype if info.quant == "none" else info.quant
    lookup = "+lookup" if drafter == "model+lookup" else ""
    kind = "same" if models.pair.shared is None else models.pair.shared.kind
    vocab = "" if kind == "same" else f" by {'shared tokens' if kind == 'shared' else kind}"
    label = f"{info.name} {weight_format}{vocab}{lookup}"
    return replace(setting, drafter=drafter, label=label, num_draft_bytes=info.num_bytes)


def open_peers(
    names: Sequence[str], target: ModelSettings, baseline: Pair, progress: ProgressListener = SILENT
) -> list[Peer]:
    """Loads peers.

    Args:
        names: As on the command line: `transformers`, `llama-cpp` or `llama-cpp=FILE.gguf`.
        target: The target's settings.
        baseline: The target alone.
        progress: Receives the progress of loading.

    Raises:
        SettingsError: llama-cpp has no file.
        PairError: A file has another tokenizer than the target.
        SpecgenError: A model can't be loaded.
    """
    return [_open_peer(name, target, baseline, progress) for name in dict.fromkeys(names)]


def _open_peer(name: str, target: ModelSettings, baseline: Pair, progress: ProgressListener) -> Peer:
    kind, _, file = name.partition("=")
    progress.stage(f"loading peer {kind}")
    if kind == "transformers":
        pair = resolve_pair(PairSettings(replace(target, backend=BackendSettings("transformers")), "none"), progress)
        model = load_models(pair, progress).target
        assert isinstance(model, TransformersModel), "the backend was chosen"
        return TransformersPeer(model)
    if not file and baseline.target.gguf is None:
        raise SettingsError("--peer llama-cpp needs a GGUF file, but the target is not one", "give llama-cpp=FILE")
    backend = replace(target.backend, name="llama.cpp")
    settings = ModelSettings(file or target.name, backend=backend)
    pair = resolve_pair(PairSettings(settings, "none"), progress)
    compare_tokenizers(baseline.tokenizer, pair.tokenizer)
    return LlamaCppPeer(pair, has_target_weights=not file)
