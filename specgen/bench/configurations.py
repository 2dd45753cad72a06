"""Settings in, sessions that run them out: every draft loaded once, all of them over one target in memory."""

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
    """A setting and the session that runs it.

    All lanes of an engine share one target in memory; those of one draft, too, share a session.
    """

    setting: Setting
    models: LoadedModels


def open_lanes(
    baseline: Pair, drafts: Mapping[str, Pair], settings: Sequence[Setting], progress: ProgressListener = SILENT
) -> list[Configuration]:
    """Read the weights of a target and of every draft.

    Args:
        baseline: The target without a drafter.
        drafts: A plan of the same target for each draft, by the name the settings have for it.
        settings: What to run, the target alone left out.
        progress: Receives the progress of loading.

    Returns:
        The target alone, then a lane per setting.

    Raises:
        LoadError: A file is damaged.
        DeviceError: Too little memory for all of them.
    """
    alone = load_models(baseline, progress)
    loaded: dict[str, LoadedModels] = {}
    for name, pair in drafts.items():
        progress.stage(f"loading draft {name}")
        loaded[name] = alone.with_draft(pair, progress)
    lanes = [Configuration(with_label(setting, loaded[setting.draft]), loaded[setting.draft]) for setting in settings]
    return [Configuration(Setting("none"), alone), *_told_apart(lanes)]


def open_engines(
    pairs: Mapping[str, tuple[Pair, Mapping[str, Pair]]],
    settings: Sequence[Setting],
    progress: ProgressListener = SILENT,
) -> list[Configuration]:
    """The lanes of one target on several engines, those of the first engine first.

    Args:
        plans: By the engine's name, what `open_lanes` takes.
        settings: What to run on each engine.
        progress: Receives the progress of loading.

    Raises:
        PairError: The engines read the target's tokens differently.
        LoadError: A file is damaged.
        DeviceError: Too little memory for all of them.
    """
    first, *others = [baseline for baseline, _ in pairs.values()]
    for other in others:
        compare_tokenizers(first.tokenizer, other.tokenizer)
    return [
        replace(lane, setting=replace(lane.setting, backend=backend))
        for backend, (baseline, drafts) in pairs.items()
        for lane in open_lanes(baseline, drafts, settings, progress)
    ]


def _told_apart(lanes: Sequence[Configuration]) -> list[Configuration]:
    """Two drafts of the same name and form, from two folders, get the words of the command line as their labels."""
    drafts: dict[str, set[str]] = {}
    for lane in lanes:
        drafts.setdefault(lane.setting.label, set()).add(lane.setting.draft)
    return [
        Configuration(replace(lane.setting, label=lane.setting.draft), lane.models)
        if len(drafts[lane.setting.label]) > 1
        else lane
        for lane in lanes
    ]


def with_label(setting: Setting, models: LoadedModels) -> Setting:
    """The setting, named after its draft as it really runs: what `auto` means is decided by now."""
    info, drafter = models.draft_info, models.pair.settings.drafter
    if info is None:
        return replace(setting, drafter=drafter, draft=drafter, label=drafter)
    form = info.dtype if info.quant == "none" else info.quant
    beside = "+lookup" if drafter == "model+lookup" else ""
    return replace(setting, drafter=drafter, label=f"{info.name} {form}{beside}", num_draft_bytes=info.num_bytes)
