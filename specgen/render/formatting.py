"""Formats figures, models and settings, in one way for banner, summary, tables and documents."""

from __future__ import annotations

from specgen.core.results import ModelInfo, RunInfo
from specgen.core.units import format_size
from specgen.render.guarantees import NOT_LOSSLESS
from specgen.render.sanitize import one_line


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


def format_model(model: ModelInfo, *, ascii_only: bool = False) -> str:
    """Returns name, format, device and size of a model on one safe line."""
    size = f" {format_size(model.num_bytes)}" if model.num_bytes > 0 else ""
    remark = f" ({model.remark})" if model.remark else ""
    return one_line(f"{model.name} {model.quant} {model.dtype} {model.device}{size}{remark}", ascii_only=ascii_only)


def format_draft(info: RunInfo, *, ascii_only: bool = False) -> str:
    """Returns the drafter of a run."""
    return format_drafter(info.draft, info.drafter, ascii_only=ascii_only)


def format_drafter(draft: ModelInfo | None, drafter: str, *, ascii_only: bool = False) -> str:
    """Returns the draft model, with lookup or without, or the drafter that needs no model."""
    if draft is not None:
        lookup = ", with prompt lookup" if drafter == "model+lookup" else ""
        return format_model(draft, ascii_only=ascii_only) + lookup
    return "none, plain decoding" if drafter == "none" else f"prompt {drafter}, no model"


def format_settings(info: RunInfo) -> str:
    """Returns draft length, token limit and the sampling settings that are in effect."""
    sampling = info.sampling
    length = (
        "draft length chosen by cost" if info.schedule == "auto" else f"drafts of up to {info.num_draft_tokens} tokens"
    )
    words = [length] if info.drafter != "none" else []
    words.append(f"up to {info.max_new_tokens} new tokens")
    if sampling.is_greedy:
        words.append("greedy")
    else:
        words.append(f"temperature {sampling.temperature:g}")
        words += [f"top-k {sampling.top_k}"] if sampling.top_k else []
        words += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
        words += [f"min-p {sampling.min_p:g}"] if sampling.min_p else []
        # Without --same-text the text depends on draft lengths too, hence on timing: the seed does not repeat it.
        words += [f"seed {sampling.seed}"] if sampling.same_text else []
    if sampling.repetition_penalty != 1:
        words.append(f"repetition penalty {sampling.repetition_penalty:g}")
    if info.guarantee == "none":
        words.append(NOT_LOSSLESS)
    return ", ".join(words) + (" (sampling settings of the model)" if info.sampling_source == "model" else "")
