"""Loads the models of a benchmark: each draft once, all of them with one target in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from specgen.bench.results import Setting
from specgen.core.progress import SILENT, ProgressListener
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import Pair
from specgen.text.vocabulary import compare_tokenizers


@dataclass(frozen=True, slots=True)
class Configuration:
    """Joins a setting and the models that run it.

    All configurations of a backend share one target in memory; those with the same draft also share their models.
    """

    setting: Setting
    models: LoadedModels


def open_configurations(
    baseline: Pair, drafts: Mapping[str, Pair], settings: Sequence[Setting], progress: ProgressListener = SILENT
) -> list[Configuration]:
    """Loads the weights of a target and of every draft.

    Args:
        baseline: The target without a drafter.
        drafts: A pair with the same target for each draft, by the `draft` of its settings.
        settings: What to run besides the baseline.
        progress: Receives the progress of loading.

    Returns:
        The baseline, then a configuration per setting.

    Raises:
        LoadError: A file is damaged.
        DeviceError: Too little memory for all of them.
    """
    target_alone = load_models(baseline, progress)
    loaded: dict[str, LoadedModels] = {}
    for name, pair in drafts.items():
        progress.stage(f"loading draft {name}")
        loaded[name] = target_alone.with_draft(pair, progress)
    labelled = [
        Configuration(with_label(setting, loaded[setting.draft]), loaded[setting.draft]) for setting in settings
    ]
    return [Configuration(Setting("none"), target_alone), *_with_distinct_labels(labelled)]


def open_backends(
    pairs: Mapping[str, tuple[Pair, Mapping[str, Pair]]],
    settings: Sequence[Setting],
    progress: ProgressListener = SILENT,
) -> list[Configuration]:
    """Loads one target on several backends.

    Args:
        pairs: The first two arguments of `open_configurations`, by the backend's name.
        settings: What to run on each backend.
        progress: Receives the progress of loading.

    Returns:
        The configurations of the first backend, then those of the others.

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
        for configuration in open_configurations(baseline, drafts, settings, progress)
    ]


def _with_distinct_labels(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Labels drafts from two folders that share a name and a format by their names on the command line instead."""
    drafts: dict[str, set[str]] = {}
    for one in configurations:
        drafts.setdefault(one.setting.label, set()).add(one.setting.draft)
    return [
        replace(one, setting=replace(one.setting, label=one.setting.draft))
        if len(drafts[one.setting.label]) > 1
        else one
        for one in configurations
    ]


def with_label(setting: Setting, models: LoadedModels) -> Setting:
    """Returns the setting, labelled with the draft that really runs: `auto` is decided by now."""
    info, drafter = models.draft_info, models.pair.settings.drafter
    if info is None:
        return replace(setting, drafter=drafter, draft=drafter, label=drafter)
    weight_format = info.dtype if info.quant == "none" else info.quant
    lookup = "+lookup" if drafter == "model+lookup" else ""
    label = f"{info.name} {weight_format}{lookup}"
    return replace(setting, drafter=drafter, label=label, num_draft_bytes=info.num_bytes)


def idle_weight_bytes(configurations: Sequence[Configuration], running: Configuration) -> int:
    """Returns the bytes of the loaded weights that a run of `running` does not use."""
    sizes = {id(one.models.draft): one.setting.num_draft_bytes for one in configurations}
    sizes |= {id(one.models.target): one.models.target_info.num_bytes for one in configurations}
    for model in (running.models.target, running.models.draft):
        sizes.pop(id(model), None)
    return sum(sizes.values())
