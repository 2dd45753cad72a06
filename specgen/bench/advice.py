"""Recommends a setting, or not to speculate."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from specgen.bench.figures import SettingFigures
from specgen.bench.results import Setting

CLOSE = 0.01
"""Settings this close to the fastest count as equal; the one with the smallest draft is recommended."""
MIN_SPEEDUP = 1.02
"""Least speedup that is worth a second model when one repeat leaves the uncertainty unknown."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Holds what to use.

    Args:
        figures: Of the recommended setting; None: do not speculate.
        reason: One or two sentences.
    """

    figures: SettingFigures | None
    reason: str


def recommend(figures: Sequence[SettingFigures]) -> Recommendation:
    """Recommends the fastest setting with the right text; among equally fast ones, the one with the smallest draft.

    Recommends none if the baseline may be as fast: the interval of the fastest contains 1, or its speedup is below
    1.02.
    """
    usable = _usable(figures)
    if not usable:
        return Recommendation(None, "no setting finished with the baseline's text" + _peers(figures))
    best = max(usable, key=_speedup)
    if _speedup(best) < MIN_SPEEDUP or (best.interval is not None and best.interval.low <= 1):
        return Recommendation(None, _why_not(best, figures) + _peers(figures))
    # A setting that may be slower than the baseline is not recommended, however small its draft.
    sure = [f for f in usable if f.interval is None or f.interval.low > 1]
    close = [f for f in sure if _speedup(f) >= _speedup(best) * (1 - CLOSE)]
    chosen = min(close, key=lambda f: (f.setting.num_draft_bytes, -_speedup(f)))
    return Recommendation(chosen, _why(chosen, best, figures) + _peers(figures))


def best_speedup(figures: Sequence[SettingFigures]) -> SettingFigures | None:
    """Returns the fastest setting with the right text, which `--fail-under-...` checks."""
    return max(_usable(figures), key=_speedup, default=None)


def command_line_for(setting: Setting) -> str:
    """Returns the options that make `generate` and `chat` use a setting."""
    if setting.drafter == "server":
        return f"--server {shlex.quote(setting.draft)}"
    backend = f" --backend {setting.backend}" if setting.backend else ""
    if setting.drafter == "none":
        return f"-d none{backend}"
    quant = f" --draft-quant {setting.quant}" if setting.drafter.startswith("model") and setting.quant != "auto" else ""
    # The drafter that `auto` resolves to has no name of its own on the command line.
    is_auto = setting.draft.partition(":")[0] == "auto"
    lookup = "+lookup" if setting.drafter == "model+lookup" and not is_auto else ""
    name = setting.draft.removesuffix(lookup)
    name = (name if setting.quant == "auto" else name.removesuffix(f":{setting.quant}")) + lookup
    # With `-k auto`, the default depends on the sampling and the devices.
    is_named = setting.num_tree_nodes > 0 or (setting.can_branch and setting.schedule == "auto")
    tree = f" --tree {setting.tree}" if is_named else ""
    return f"-d {shlex.quote(name)}{quant} -k {setting.length}{tree}{backend}"


def _usable(figures: Sequence[SettingFigures]) -> list[SettingFigures]:
    own = [f for f in figures if not f.is_baseline and f.setting.drafter != "peer"]
    return [f for f in own if f.speedup is not None and f.text_verdict != "different"]


def _speedup(figures: SettingFigures) -> float:
    return figures.speedup or 0.0


def _why(chosen: SettingFigures, best: SettingFigures, figures: Sequence[SettingFigures]) -> str:
    rank = "the fastest measured"
    if chosen is not best:
        rank = f"within {CLOSE:.0%} of the fastest ({best.setting.name}, {_speedup(best):.2f}x), with a smaller draft"
    once = " in one repeat" if chosen.interval is None else ""
    reason = f"{_speedup(chosen):.2f}x{once}{_speeds(chosen, figures)}, {rank}: {_cost_and_yield(chosen, figures)}"
    return reason + _at_other_loads(chosen, figures)


def _at_other_loads(chosen: SettingFigures, figures: Sequence[SettingFigures]) -> str:
    """Returns the speedups of the same server at every concurrency, if there are several: at high ones drafts cost."""
    same = [f for f in figures if f.setting.draft == chosen.setting.draft and f.speedup is not None]
    if chosen.setting.drafter != "server" or len(same) < 2:
        return ""
    return "; " + ", ".join(f"{_speedup(f):.2f}x at concurrency {f.setting.concurrency}" for f in same)


def _speeds(chosen: SettingFigures, figures: Sequence[SettingFigures]) -> str:
    """Returns the speeds that the speedup compares: a ratio alone hides a slow baseline."""
    own = chosen.counts.tokens_per_second
    baseline = next((f.counts.tokens_per_second for f in figures if f.index == chosen.baseline_index), None)
    return "" if own is None or baseline is None else f" ({own:.1f} against {baseline:.1f} tok/s)"


def _peers(figures: Sequence[SettingFigures]) -> str:
    """Returns the speeds of other programs."""
    speeds = [(f.setting.label, f.counts.tokens_per_second) for f in figures if f.setting.drafter == "peer"]
    return "".join(f"; {label}: {speed:.1f} tok/s" for label, speed in speeds if speed is not None)


def _why_not(best: SettingFigures, figures: Sequence[SettingFigures]) -> str:
    uncertainty = " in one repeat"
    if best.interval is not None:
        uncertainty = f" (95 % interval {best.interval.low:.2f} to {best.interval.high:.2f})"
    speedup = f"{_speedup(best):.2f}x{uncertainty}"
    return f"The fastest setting, {best.setting.name}, is {speedup}: {_cost_and_yield(best, figures)}"


def _cost_and_yield(figures: SettingFigures, every: Sequence[SettingFigures]) -> str:
    """Returns what a round costs and yields, in steps of the baseline."""
    counts = figures.counts
    if counts.is_served:  # not all of its rounds are known
        tar = counts.acceptance_rate
        return "its drafts are not known" if tar is None else f"{100 * tar:.0f} % of its draft tokens are accepted"
    step_seconds = next((f.counts.tpot_seconds for f in every if f.index == figures.baseline_index), None)
    if not step_seconds or not counts.num_rounds:
        return "the reason was not measured"
    timed = counts.timed
    cost = timed.seconds / timed.num_rounds / step_seconds
    share = 100 * (counts.draft_share or 0)
    text = f"a round costs {cost:.2f} steps of the target alone and yields {timed.tokens_per_round:.2f} tokens"
    return f"{text} (drafting takes {share:.0f} % of the time)"
