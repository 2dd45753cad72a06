"""Numbers and models in, the words for them out: one spelling of each for banner, summary and tables."""

from __future__ import annotations

from specgen.core.results import ModelInfo, RunInfo
from specgen.core.units import format_size
from specgen.render.guarantees import NOT_LOSSLESS
from specgen.render.sanitize import one_line


def format_rate(rate: float | None) -> str:
    """A fraction as percent; `n/a` if there is none, never 0 %."""
    return "n/a" if rate is None else f"{100 * rate:.1f} %"


def format_duration(seconds: float) -> str:
    """`0.12 s`, or `12.3 ms` below a tenth of a second."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def format_count(number: int, word: str) -> str:
    """`1 model`, `2 models`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def format_model(model: ModelInfo, *, ascii_only: bool = False) -> str:
    """Name, format, device and size of a model on one safe line."""
    size = f" {format_size(model.num_bytes)}" if model.num_bytes > 0 else ""
    remark = f" ({model.remark})" if model.remark else ""
    return one_line(f"{model.name} {model.quant} {model.dtype} {model.device}{size}{remark}", ascii_only=ascii_only)


def format_draft(info: RunInfo, *, ascii_only: bool = False) -> str:
    """What proposes the drafts of a run."""
    return format_drafter(info.draft, info.drafter, ascii_only=ascii_only)


def format_drafter(draft: ModelInfo | None, drafter: str, *, ascii_only: bool = False) -> str:
    """A draft model and what is beside it, or what proposes without one."""
    if draft is not None:
        beside = ", prompt lookup beside it" if drafter == "model+lookup" else ""
        return format_model(draft, ascii_only=ascii_only) + beside
    return "none, plain decoding" if drafter == "none" else f"prompt {drafter}, no model"


def format_settings(info: RunInfo) -> str:
    """Draft length, budget and sampling; only what is switched on."""
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
        # Without it the order of events decides, which the clock may change: the seed alone repeats nothing.
        words += [f"seed {sampling.seed}"] if sampling.same_text else []
    if sampling.repetition_penalty != 1:
        words.append(f"repetition penalty {sampling.repetition_penalty:g}")
    if info.guarantee == "none":
        words.append(NOT_LOSSLESS)
    return ", ".join(words) + (" (sampling from the model's own settings)" if info.sampling_source == "model" else "")
