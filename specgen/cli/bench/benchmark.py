"""Loads the models of a benchmark. Imports torch: import it once libraries are prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specgen.bench.configurations import Configuration, Host
from specgen.bench.figures import total
from specgen.bench.open_models import open_backends, open_peers
from specgen.bench.results import BASELINE, Setting
from specgen.bench.runner import Benchmark
from specgen.cli.bench.inputs import DraftChoice, Inputs
from specgen.cli.options.models import OFF
from specgen.cli.request import parse_draft_length, parse_tree
from specgen.core.progress import ProgressListener
from specgen.core.settings import ModelSettings, PairSettings
from specgen.loading.draft_head_folder import unused_draft_notice
from specgen.runtime import learned_costs
from specgen.runtime.environment import environment
from specgen.runtime.loaded_models import LoadedModels
from specgen.runtime.pair import Pair, resolve_pair
from specgen.text.chat_template import FOLDED


def open_benchmark(inputs: Inputs, progress: ProgressListener) -> Benchmark:
    """Checks all models, then reads their weights.

    Raises:
        SpecgenError: A model is missing or damaged, does not fit the others, or memory is too small.
    """
    pairs = {}
    for backend, (target, draft) in inputs.models.items():
        baseline = resolve_pair(PairSettings(target, "none", lookup_texts=inputs.lookup_texts), progress)
        if any(inputs.prompt_format.folds_system(baseline.tokenizer, prompt.messages) for prompt in inputs.prompts):
            baseline = replace(baseline, notices=(*baseline.notices, FOLDED))
        is_auto = any(draft.name.kind == "auto" for draft in inputs.drafts)
        if is_auto and (notice := unused_draft_notice(baseline.target)):
            baseline = replace(baseline, notices=(*baseline.notices, notice))
        pairs[backend] = (baseline, draft_pairs(baseline, inputs.drafts, draft, progress))
    settings = settings_of(inputs.drafts, inputs.lengths, inputs.trees)
    configurations = open_backends(pairs, settings, progress, is_greedy=inputs.settings.sampling.is_greedy)
    for models in _loaded(configurations):
        learned_costs.load(models)
    host = Host(environment())
    benchmark = Benchmark(
        configurations, inputs.prompts, inputs.settings, prompt_format=inputs.prompt_format, host=host
    )
    if inputs.peers:
        (target, _), *_ = inputs.models.values()
        benchmark.add_peers(open_peers(inputs.peers, target, configurations[BASELINE].models.pair, progress))
    return benchmark


def settings_of(
    drafts: Sequence[DraftChoice], lengths: Sequence[str], trees: Sequence[str | None] = (OFF,)
) -> list[Setting]:
    """Combines every draft with every length and every tree."""
    made = [
        Setting(draft.name.kind, draft.key, draft.key, *parse_draft_length(length), draft.quant)
        for draft in drafts
        for length in lengths
    ]
    return [
        replace(setting, num_tree_nodes=num_nodes, tree_schedule=schedule)
        for setting in made
        for num_nodes, schedule in map(parse_tree, trees)
    ]


def draft_pairs(
    baseline: Pair, drafts: Sequence[DraftChoice], like: ModelSettings, progress: ProgressListener
) -> dict[str, Pair]:
    """Pairs the target with each draft, by the draft's key. Files and tokenizers are checked, weights are not read.

    A draft is loaded like `like`, except for its own name and weight format.

    Raises:
        LoadError: A draft is missing or damaged.
        PairError: A draft does not share the target's vocabulary, and `--draft-vocab same` insists.
    """
    return {draft.key: baseline.with_draft(draft.name, replace(like, quant=draft.quant), progress) for draft in drafts}


def save_costs(benchmark: Benchmark) -> None:
    """Saves the measured costs of passes for later runs."""
    report = benchmark.report()
    costs, timed = report.costs, benchmark.configurations[0].models.target
    for models in _loaded(benchmark.configurations):
        # On a second backend the target is another one, whose passes were not measured.
        measured = costs.verify_seconds if costs is not None and models.target is timed else None
        learned_costs.save(models, measured=measured)
    for index, configuration in enumerate(benchmark.configurations):
        # Trees do not show how often the draft's best token is accepted.
        if configuration.setting.drafter == "model" and not configuration.setting.num_tree_nodes:
            counts = total(run for run in report.runs if run.setting == index)
            learned_costs.save_acceptance(configuration.models, counts)


def _loaded(configurations: Sequence[Configuration]) -> list[LoadedModels]:
    """Returns the models of all configurations, each once."""
    return list({id(one.models): one.models for one in configurations}.values())
