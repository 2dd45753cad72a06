"""Formats figures, models, settings and guarantees, and lays them out as blocks of labelled lines."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from specgen.core.cost_model import PassCosts, break_even_alpha
from specgen.core.results import ModelInfo, RunInfo
from specgen.core.settings import SamplingSettings
from specgen.core.units import format_size
from specgen.render.sanitize import one_line

LABEL_CELLS = 9
_NOT_LOSSLESS = "NOT LOSSLESS"
_GUARANTEES = {
    "exact": "the target's own tokens",
    "near_tie": "the target's own tokens up to near ties",
    "same_distribution": "the target's distribution",
    "none": _NOT_LOSSLESS,
    "unchecked": "the server's own, not checked",
}


def format_rate(rate: float | None, *, num_digits: int = 1, missing: str = "n/a") -> str:
    """Returns a fraction as percent, `55.6 %`; `missing` for None."""
    return missing if rate is None else f"{100 * rate:.{num_digits}f} %"


def format_speedup(speedup: float) -> str:
    """Returns `1.62x`."""
    return f"{speedup:.2f}x"


def format_milliseconds(seconds: float) -> str:
    """Returns `12.3 ms`."""
    return f"{1000 * seconds:.1f} ms"


def format_duration(seconds: float) -> str:
    """Returns `0.12 s`, or `12.3 ms` below a tenth of a second."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else format_milliseconds(seconds)


def format_count(number: int, word: str) -> str:
    """Returns `1 model`, `2 models`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def format_break_even(costs: PassCosts, lengths: Iterable[int]) -> str:
    """Returns the least acceptance rate that pays, by draft length: `-k 2 35 %, -k 4 never`."""
    rates = ((k, break_even_alpha(k, costs)) for k in lengths)
    return ", ".join(f"-k {k} {format_rate(rate, num_digits=0, missing='never')}" for k, rate in rates)


def format_model(model: ModelInfo, *, ascii_only: bool = False) -> str:
    """Returns name, format, device and size of a model on one safe line."""
    size = f" {format_size(model.num_bytes)}" if model.num_bytes > 0 else ""
    remark = f" ({model.remark})" if model.remark else ""
    # Of a served model only the name is known.
    words = " ".join(filter(None, (model.name, model.quant, model.dtype, model.device)))
    return one_line(f"{words}{size}{remark}", ascii_only=ascii_only)


def format_drafter(draft: ModelInfo | None, drafter: str, *, ascii_only: bool = False) -> str:
    """Returns the draft model, with lookup or without, or the drafter that needs no model."""
    if draft is not None:
        lookup = ", with prompt lookup" if drafter == "model+lookup" else ""
        return format_model(draft, ascii_only=ascii_only) + lookup
    if drafter == "server":
        return "as the server was started"
    return "none, plain decoding" if drafter == "none" else f"prompt {drafter}, no model"


def sampling_words(sampling: SamplingSettings) -> list[str]:
    """Returns the sampling settings that are in effect, but for the seed."""
    is_sampled = not sampling.is_greedy
    words = {
        "greedy": not is_sampled,
        f"temperature {sampling.temperature:g}": is_sampled,
        f"top-k {sampling.top_k}": is_sampled and sampling.top_k,
        f"top-p {sampling.top_p:g}": is_sampled and sampling.top_p < 1,
        f"min-p {sampling.min_p:g}": is_sampled and sampling.min_p,
        f"repetition penalty {sampling.repetition_penalty:g}": sampling.repetition_penalty != 1,
    }
    return [word for word, applies in words.items() if applies]


def format_settings(info: RunInfo) -> str:
    """Returns draft length, token limit and the sampling settings that are in effect."""
    length = f"drafts of up to {info.num_draft_tokens} tokens"
    words = {
        "draft length chosen by cost" if info.schedule == "auto" else length: info.drafter not in ("none", "server"),
        "trees sized by cost": info.num_tree_nodes > 0 and info.tree_schedule == "auto",
        f"trees of {info.num_tree_nodes} tokens": info.num_tree_nodes > 0 and info.tree_schedule == "constant",
        f"up to {info.max_new_tokens} new tokens": True,
        **dict.fromkeys(sampling_words(info.sampling), True),
        # Without --same-text the text depends on draft lengths, and so on timing: the seed does not repeat it.
        f"seed {info.sampling.seed}": info.sampling.same_text and not info.sampling.is_greedy,
        _NOT_LOSSLESS: info.guarantee == "none",
    }
    source = " (sampling settings of the model)" if info.sampling_source == "model" else ""
    return ", ".join(word for word, applies in words.items() if applies) + source


def format_guarantee(info: RunInfo) -> str:
    """Returns the guarantee of a text in words; without one, also the reason."""
    words, check = _GUARANTEES[info.guarantee], info.batch_invariance
    return f"{words}: {check.reason}" if info.guarantee == "none" and check else words


def labelled(label: str, value: str) -> Text:
    """Returns a line of a block: the label in its column, then the value."""
    return Text().append(f"{label:<{LABEL_CELLS}}", "label").append(value)


def fit_block(block: Text, console: Console) -> Text:
    """Wraps lines made by `labelled` for a terminal; elsewhere each stays on one line, for grep."""
    return wrap_block(block, console.width) if console.is_terminal else block


def wrap_block(block: Text, width: int) -> Text:
    """Wraps lines made by `labelled` at words, and indents their continuation lines by the width of the label."""
    lines = []
    for line in block.split("\n", allow_blank=True):
        pieces = wrap_words(line[LABEL_CELLS:], width - LABEL_CELLS)
        lines.append(line[:LABEL_CELLS].append_text(Text(f"\n{'':{LABEL_CELLS}}").join(pieces)))
    return Text("\n").join(lines)


def wrap_words(text: Text, width: int) -> list[Text]:
    """Splits a line at spaces, but not at no-break spaces, into lines of at most `width` cells.

    A word that is wider, such as a path, stays whole, so that it can be copied.
    """
    breaks, used = [], 0
    for word in re.finditer("[^ ]+ *", text.plain):
        if used and used + cell_len(word[0].rstrip(" ")) > width:
            breaks.append(word.start())
            used = 0
        used += cell_len(word[0])
    pieces = list(text.divide(breaks))
    for piece in pieces[:-1]:
        piece.rstrip()
    return pieces
