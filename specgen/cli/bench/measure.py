"""A benchmark's way from checked options to what is told and checked at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from specgen.bench.advice import best_speedup
from specgen.bench.figures import figures_by_setting
from specgen.bench.prompts import BenchPrompt, PromptFormat
from specgen.bench.results import BenchReport, BenchSettings
from specgen.bench.warnings import warnings_of
from specgen.cli.bench import choices as b
from specgen.cli.bench.output import BenchOutput
from specgen.cli.signals import StopSignals
from specgen.cli.streams import Messages
from specgen.core.errors import DifferenceError, LimitError, SpecgenError
from specgen.core.settings import ModelSettings

if TYPE_CHECKING:
    from specgen.bench.runner import Benchmark


def open_benchmark(
    engines: Mapping[str, tuple[ModelSettings, b.DraftPlaces]],
    drafts: Sequence[b.DraftChoice],
    lengths: Sequence[str],
    prompts: Sequence[BenchPrompt],
    config: BenchSettings,
    chat_template: str,
    lookup_texts: tuple[str, ...],
    messages: Messages,
    verbose: int,
) -> Benchmark:
    """Check everything that needs no weights, then read them.

    Args:
        engines: Target and places of the drafts by engine; `""` where only one engine runs the target.
        drafts: Measured on each engine.
        lengths: Draft lengths.
        prompts: What to answer.
        config: How to measure.
        chat_template: As on the command line.
        messages: For progress.
        verbose: How often `-v` was given.

    Raises:
        SpecgenError: Something does not fit or is missing.
    """
    from specgen.cli.request import template_source
    from specgen.loading.libraries import gc_paused, prepare_libraries
    from specgen.render.progress import LoadProgress

    raw = chat_template == "none"
    template = None if raw else template_source(chat_template)
    loading = LoadProgress(messages.console, quiet=messages.quiet, verbose=verbose > 0)
    with loading as progress, gc_paused():
        progress.stage("starting")
        prepare_libraries(verbose > 1)
        from specgen.bench.configurations import open_backends
        from specgen.bench.runner import Benchmark, Host
        from specgen.runtime import learned_costs
        from specgen.runtime.environment import environment
        from specgen.runtime.pair import PairSettings, resolve_pair

        pairs = {}
        for engine, (target, places) in engines.items():
            baseline = resolve_pair(PairSettings(target, drafter="none", lookup_texts=lookup_texts), progress)
            pairs[engine] = (baseline, b.draft_pairs(baseline, drafts, places, progress))
        configurations = open_backends(pairs, b.settings_of(drafts, lengths), progress)
        for models in {id(lane.models): lane.models for lane in configurations}.values():
            learned_costs.load(models)
        return Benchmark(
            configurations,
            prompts,
            config,
            prompt_format=PromptFormat(raw, template),
            host=Host(environment()),
        )


def measure(benchmark: Benchmark, output: BenchOutput, messages: Messages, signals: StopSignals) -> BenchReport:
    """Run it. Ctrl-C ends it behind the round in progress; an error tells what was finished first.

    Raises:
        SpecgenError: The target itself failed.
    """
    from specgen.render.bench.progress import BenchProgressBar

    for notice in benchmark.report().notices:
        messages.warning(notice)
    signals.listener = benchmark.interrupt
    try:
        with BenchProgressBar(messages.console, quiet=messages.quiet) as progress:
            for step in benchmark:
                progress.step(step.stage, step.num_done, step.num_steps)
                output.step(step, benchmark.report())
    except SpecgenError as error:
        if benchmark.report().runs:
            tell(benchmark.report(), output, messages, error, by_category=False, chart=False)
        raise
    except BaseException:
        # A second Ctrl-C, a reader that left, a bug of ours: what was measured is worth more than the reason.
        output.keep(benchmark.report())
        raise
    finally:
        signals.listener = None
    _keep_costs(benchmark)
    return benchmark.report()


def _keep_costs(benchmark: Benchmark) -> None:
    from specgen.runtime import learned_costs

    costs, timed = benchmark.report().costs, benchmark.configurations[0].models.target
    for models in {id(lane.models): lane.models for lane in benchmark.configurations}.values():
        # On a second engine the target is another one.
        learned_costs.save(
            models, measured=costs.verify_seconds if costs is not None and models.target is timed else None
        )


def tell(
    report: BenchReport,
    output: BenchOutput,
    messages: Messages,
    error: SpecgenError | None,
    *,
    by_category: bool,
    chart: bool,
) -> None:
    """Results to where they belong, and beside them every reason to doubt one.

    Args:
        report: What was found.
        output: Takes the results.
        messages: Takes the doubts.
        error: What the program will end with; JSON says it, too.
        by_category: A table by category.
        chart: Bars.
    """
    if not report.runs:
        messages.warning("no run was finished")
        output.finish_empty(report, error)
        return
    output.finish(report, error, by_category=by_category, chart=chart)
    for caution in warnings_of(report):
        messages.warning(caution.message)


def difference_error(report: BenchReport) -> DifferenceError | None:
    """What `--check` says: a text that is not the target's own, or a setting that could not show its text."""
    real = [found for found in report.differences if not found.is_near_tie]
    if real:
        first = real[0]
        num_prompts = sum(found.setting == first.setting for found in real)
        return DifferenceError(
            f"--check: {report.settings[first.setting].name} differs from the target's own text in {num_prompts} of "
            f"{len(report.prompts)} prompts, first on {report.prompts[first.prompt].id} from token {first.position} on",
            "this is a bug of specgen or of a kernel: please report it with --format json",
        )
    if report.failures:
        failure = report.failures[0]
        return DifferenceError(f"--check: {report.settings[failure.setting].name} failed: {failure.message}")
    return None


def limit_error(report: BenchReport, least_speedup: float | None, least_tar: float | None) -> LimitError | None:
    """What `--fail-under-...` says."""
    if least_speedup is None and least_tar is None:
        return None
    best = best_speedup(figures_by_setting(report))
    if best is None or best.speedup is None:
        return LimitError("no setting was measured to the end, so no limit is kept")
    name = best.setting.name
    if least_speedup is not None and best.speedup < least_speedup:
        return LimitError(
            f"--fail-under-speedup {least_speedup:g}: the fastest setting, {name}, is {best.speedup:.3f}x"
        )
    tar = best.counts.acceptance_rate
    if least_tar is not None and (tar is None or tar < least_tar):
        shown = "drafted nothing" if tar is None else f"has a TAR of {tar:.3f}"
        return LimitError(f"--fail-under-tar {least_tar:g}: the fastest, {name}, {shown}")
    return None
