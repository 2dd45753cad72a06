"""Loads the models of a benchmark. Imports torch: import it once libraries are prepared."""

from __future__ import annotations

from collections.abc import Sequence

from specgen.bench.configurations import Configuration, open_backends
from specgen.bench.runner import Benchmark, Host
from specgen.cli.bench.choices import draft_pairs, settings_of
from specgen.cli.bench.inputs import Inputs
from specgen.core.progress import ProgressListener
from specgen.runtime import learned_costs
from specgen.runtime.environment import environment
from specgen.runtime.loaded_models import LoadedModels
from specgen.runtime.pair import PairSettings, resolve_pair


def open_benchmark(inputs: Inputs, progress: ProgressListener) -> Benchmark:
    """Checks all models, then reads their weights.

    Raises:
        SpecgenError: A model is missing or damaged, does not fit the others, or memory is too small.
    """
    pairs = {}
    for backend, (target, draft) in inputs.models.items():
        settings = PairSettings(target, drafter="none", lookup_texts=inputs.lookup_texts)
        baseline = resolve_pair(settings, progress)
        pairs[backend] = (baseline, draft_pairs(baseline, inputs.drafts, draft, progress))
    configurations = open_backends(pairs, settings_of(inputs.drafts, inputs.lengths), progress)
    for models in _loaded(configurations):
        learned_costs.load(models)
    return Benchmark(
        configurations,
        inputs.prompts,
        inputs.settings,
        prompt_format=inputs.prompt_format,
        host=Host(environment()),
    )


def save_costs(benchmark: Benchmark) -> None:
    """Saves the measured costs of passes for later runs."""
    costs, timed = benchmark.report().costs, benchmark.configurations[0].models.target
    for models in _loaded(benchmark.configurations):
        # On a second backend the target is another one, whose passes were not measured.
        measured = costs.verify_seconds if costs is not None and models.target is timed else None
        learned_costs.save(models, measured=measured)


def _loaded(configurations: Sequence[Configuration]) -> list[LoadedModels]:
    """Returns the models of all configurations, each once."""
    return list({id(one.models): one.models for one in configurations}.values())
