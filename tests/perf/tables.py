"""Formats the runs of modes as tables. The first mode is the baseline of every speedup."""

from __future__ import annotations

from collections.abc import Sequence

from tests.perf.modes import Mode, ratio_with_interval, tpot


def part(mode: Mode, category: str | None, categories: dict[str, str]) -> Mode:
    """Returns the mode with its runs on prompts of one category; None: all of them."""
    runs = [run for run in mode.runs if category is None or categories[run.prompt] == category]
    return Mode(mode.name, mode.run, runs, mode.draft, mode.length, mode.rule)


def speeds(modes: Sequence[Mode]) -> str:
    """Formats a line per mode: rate, speedup over the first mode, acceptance, and time outside of passes."""
    lines = [f"{'mode':<58}{'tok/s':>8}{'ms/tok':>9}  {'speedup [95 %]':<24}{'TAR':>7}{'α':>7}{'tok/rnd':>9}  outside"]
    for mode in modes:
        seconds = sum(run.decode_seconds for run in mode.runs)
        tokens = sum(run.num_tokens for run in mode.runs)
        figures = ""
        if mode.runs[0].counts is not None:
            counts = [run.counts for run in mode.runs if run.counts is not None]
            drafted, accepted = sum(c.num_drafted for c in counts), sum(c.num_accepted for c in counts)
            tested, rounds = sum(c.num_tested for c in counts), sum(c.num_rounds for c in counts)
            overhead = sum(run.overhead_seconds for run in mode.runs)
            tar = f"{accepted / drafted:7.1%}{accepted / tested:7.1%}" if drafted else f"{'n/a':>7}{'n/a':>7}"
            figures = f"{tar}{tokens / rounds:9.2f}{1000 * overhead / rounds:8.2f} ms ({overhead / seconds:.1%})"
        same = sum(run.ids == plain.ids for run, plain in zip(mode.runs, modes[0].runs, strict=True))
        head = f"{mode.name:<58}{tokens / seconds:8.2f}{1000 * seconds / tokens:9.1f}  {_ratio(modes[0], mode):<24}"
        lines.append(f"{head}{figures}  same text {same}/{len(mode.runs)}")
    return "\n".join(lines)


def by_category(modes: Sequence[Mode], categories: dict[str, str]) -> str:
    """Formats the speedup of each mode over the first one, by category of prompt."""
    names = _names(modes[0], categories)
    lines = [" " * 58 + "".join(f"{(name or 'all')[:9]:>10}" for name in names)]
    for mode in modes[1:]:
        cells = [
            tpot(part(modes[0], name, categories).runs) / tpot(part(mode, name, categories).runs) for name in names
        ]
        lines.append(f"{mode.name:<58}{''.join(f'{cell:10.2f}' for cell in cells)}")
    return "\n".join(lines)


def auto_against_fixed(modes: Sequence[Mode], categories: dict[str, str]) -> str:
    """Compares `-k auto` with the fastest fixed length, by category; empty without both.

    The fixed length is chosen afterwards from the same runs, which favours it.
    """
    names, lines = _names(modes[0], categories), []
    for auto in [mode for mode in modes if mode.length == "auto"]:
        fixed = [m for m in modes if m.length not in ("", "auto") and (m.draft, m.rule) == (auto.draft, auto.rule)]
        if not fixed:
            continue
        lines.append(f"{auto.name}: {'':<{max(0, 20 - len(auto.name))}}speedup   best fixed      auto / best [95 %]")
        for name in names:
            plain, own = part(modes[0], name, categories), part(auto, name, categories)
            best = min((part(mode, name, categories) for mode in fixed), key=lambda mode: tpot(mode.runs))
            speedup, of_best = tpot(plain.runs) / tpot(own.runs), tpot(plain.runs) / tpot(best.runs)
            lines.append(
                f"  {name or 'all':<20}{speedup:7.2f}   {of_best:.2f} (k={best.length})     {_ratio(best, own)}"
            )
    if lines:
        lines.append("(the best fixed length is chosen from these same runs, which favours it)")
    return "\n".join(lines)


def block_against_token(modes: Sequence[Mode], categories: dict[str, str]) -> str:
    """Compares block with token verification in otherwise equal modes, by category; empty without both."""
    lines = []
    for block in [mode for mode in modes if mode.rule == "block"]:
        same = [m for m in modes if m.rule == "token" and (m.draft, m.length) == (block.draft, block.length)]
        for token in same:
            lines.append(f"block over token, {block.draft} k={block.length}")
            for name in _names(modes[0], categories):
                ratio = _ratio(part(token, name, categories), part(block, name, categories))
                lines.append(f"  {name or 'all':<20}{ratio}")
    return "\n".join(lines)


def best_of_sweep(modes: Sequence[Mode]) -> str:
    """Compares our modes with the fastest of transformers' assisted generation; empty without any."""
    assisted = [mode for mode in modes if mode.name.startswith("transformers assisted")]
    if not assisted:
        return ""
    best = min(assisted, key=lambda mode: tpot(mode.runs))
    lines = [f"over {best.name}, the fastest of {len(assisted)}"]
    lines += [f"  {mode.name:<58}{_ratio(best, mode)}" for mode in modes if mode.length]
    return "\n".join(lines)


def _ratio(baseline: Mode, mode: Mode) -> str:
    ratio, low, high = ratio_with_interval(baseline, mode)
    return f"{ratio:.3f} [{low:.3f}, {high:.3f}]"


def _names(mode: Mode, categories: dict[str, str]) -> list[str | None]:
    """Returns the categories that were run, in order, and None for all prompts."""
    return [*dict.fromkeys(categories[run.prompt] for run in mode.runs), None]
