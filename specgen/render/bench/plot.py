"""Plots a benchmark as SVG or PNG: speedup by draft length, and acceptance by position.

Colours are Okabe and Ito's, which are distinct in any colour vision; markers and dashes differ as well.
"""

from __future__ import annotations

import importlib.util
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from specgen.bench.figures import SettingFigures, total
from specgen.bench.results import BASELINE, BenchReport
from specgen.core.cost_model import expected_speedup
from specgen.core.errors import SettingsError
from specgen.render.sanitize import one_line

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (2, 2)), (0, (8, 2)), (0, (3, 1, 1, 1)), (0, (5, 5)))
STYLES = tuple(zip(COLOURS, MARKERS, DASHES, strict=True))
SUFFIXES = (".svg", ".png")


def check_plot(path: Path) -> None:
    """Checks before the measurement that a plot can be made.

    Raises:
        SettingsError: The suffix is invalid, or matplotlib is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise SettingsError(f"invalid --plot '{path}': must end in .svg or .png", "rename the file")
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingsError("--plot needs matplotlib", "install it with: pip install 'specgen-cli[plot]'")


def plot_bytes(report: BenchReport, figures: Sequence[SettingFigures], suffix: str) -> bytes:
    """Returns the picture of all settings; `suffix` is `.svg` or `.png`."""
    # Not pyplot: it keeps global state and may open a display.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # A pair of dollar signs in a model's name must not become a formula.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "specgen", "text.parse_math": False}):
        figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        measured = [item for item in figures if item.setting.has_drafter and item.speedup is not None]
        groups: dict[str, list[SettingFigures]] = defaultdict(list)
        for item in measured:
            tree = f" --tree {item.setting.tree}" if item.setting.num_tree_nodes else ""
            on_backend = f" on {item.setting.backend}" if item.setting.backend else ""
            groups[one_line(item.setting.label + tree + on_backend)].append(item)
        _speedups(left, report, groups)
        _positions(right, groups)
        figure.suptitle(_title(report), fontsize=10)
        output = io.BytesIO()
        metadata = {"Date": None} if suffix.lower() == ".svg" else None
        figure.savefig(output, format=suffix.lower().removeprefix("."), metadata=metadata)
    return output.getvalue()


def _title(report: BenchReport) -> str:
    target = report.target
    num_prompts, num_repeats = len({run.prompt for run in report.runs}), len({run.repeat for run in report.runs})
    name = one_line(f"{target.name} {target.quant if target.quant != 'none' else target.dtype} on {target.device}")
    return f"{name}: {report.config.num_tokens} tokens, prompts: {num_prompts}, repeats: {num_repeats}"


def _speedups(axes: Any, report: BenchReport, groups: Mapping[str, Sequence[SettingFigures]]) -> None:
    """Plots measured speedups with their intervals, `auto` at the right, and the curve predicted from pass costs."""
    measured = [item for own in groups.values() for item in own]
    lengths = {item.setting.num_draft_tokens for item in measured if item.setting.schedule == "constant"}
    longest = max(lengths, default=0)
    x_positions: dict[str, float] = {str(length): float(length) for length in sorted(lengths)}
    if any(item.setting.schedule == "auto" for item in measured):
        x_positions["auto"] = longest + max(1.0, 0.15 * longest)
    step = 0.02 * max(x_positions.values(), default=1.0)
    for number, ((colour, marker, dashes), (label, own)) in enumerate(zip(cycle(STYLES), groups.items(), strict=False)):
        # Drafts of the same length are plotted side by side.
        shift = step * (number - (len(groups) - 1) / 2)
        at = [x_positions[item.setting.length] + shift for item in own]
        values = [item.speedup or 0.0 for item in own]
        bounds = [
            (item.interval.low, item.interval.high) if item.interval else (value, value)
            for item, value in zip(own, values, strict=True)
        ]
        low = [max(value - bound, 0.0) for value, (bound, _) in zip(values, bounds, strict=True)]
        high = [max(bound - value, 0.0) for value, (_, bound) in zip(values, bounds, strict=True)]
        style = {"linestyle": "none", "capsize": 3, "markersize": 6, "color": colour, "marker": marker}
        axes.errorbar(at, values, yerr=[low, high], label=label, **style)
        if points := _predicted(report, own, longest):
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, linewidth=1.3)
    axes.axhline(1.0, color="#666666", linewidth=1)
    # At the left edge, since `auto` is at the right one.
    place = ("axes fraction", "data")
    axes.annotate("baseline: the target alone", (0.01, 1.0), xycoords=place, ha="left", va="bottom", fontsize=8)
    axes.set_xticks(list(x_positions.values()), list(x_positions))
    axes.set_xlabel("draft length, tokens")
    axes.set_ylabel("speedup over the baseline")
    # The interval of two repeats that disagree may have any size: it is clipped instead of filling the picture.
    axes.set_ylim(0, 1.3 * max([1.0, *(item.speedup or 0.0 for item in measured)]))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, title="measured, 95 % interval; dashed: predicted", title_fontsize=8)


def _predicted(report: BenchReport, own: Sequence[SettingFigures], longest: int) -> list[tuple[int, float]]:
    """Returns lengths and speedups by Leviathan's model, from the α of these runs and the measured costs.

    For draft models only: the acceptance of lookup differs by position, and it often drafts nothing.
    """
    # The costs were measured on the first backend.
    timed = [item for item in own if item.setting.backend == report.settings[BASELINE].backend]
    fixed = [item for item in timed if item.setting.schedule == "constant" and item.setting.drafter == "model"]
    indices = {item.index for item in fixed}
    alpha = total(run for run in report.runs if run.setting in indices).alpha
    if not fixed or report.costs is None or alpha is None:
        return []
    costs = report.costs.of(fixed[0].setting.label)
    points = ((k, expected_speedup([alpha] * k, costs)) for k in range(1, longest + 1))
    return [(k, value) for k, value in points if value is not None]


def _positions(axes: Any, groups: Mapping[str, Sequence[SettingFigures]]) -> None:
    """Plots the acceptance of the tokens tested at each position, for the longest drafts of each drafter."""
    for (colour, marker, dashes), (label, own) in zip(cycle(STYLES), groups.items(), strict=False):
        longest = max(own, key=lambda item: len(item.counts.acceptance_by_position))
        rates = longest.counts.acceptance_by_position
        if known := [(i, 100 * rate) for i, rate in enumerate(rates, 1) if rate is not None]:
            style = {"linestyle": dashes, "linewidth": 1.3, "color": colour, "marker": marker}
            axes.plot(*zip(*known, strict=True), label=f"{label} -k {longest.setting.length}", **style)
    axes.set_ylim(0, 105)
    axes.set_xlabel("position in the draft")
    axes.set_ylabel("accepted of the tokens tested there, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
