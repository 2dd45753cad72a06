"""Formats what `doctor` found, as lines for people or as a JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.text import Text

from specgen.bench.results import MeasuredCosts
from specgen.core.cost_model import PassCosts, best_draft_length, break_even_alpha
from specgen.core.units import format_size
from specgen.doctor.results import ModelPlan, PairReport, SystemReport
from specgen.render.formatting import (
    format_count,
    format_drafter,
    format_milliseconds,
    format_rate,
    format_speedup,
    labelled,
)
from specgen.render.jsonl import SCHEMA_VERSION, Document
from specgen.render.sanitize import one_line
from specgen.render.theme import glyphs

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
LENGTHS = (1, 2, 4, 8)


def format_system(system: SystemReport, *, ascii_only: bool = False) -> Text:
    """Formats machine, libraries, terminal and caches."""
    machine, libraries, terminal = system.machine, system.libraries, system.terminal
    memory = f"{_size(machine.total_bytes)}, {_size(machine.free_bytes)} free"
    lines = [
        labelled("system", machine.system),
        labelled("cpu", f"{machine.processor}, {machine.num_cores} cores, {machine.num_threads} threads"),
        labelled("", " ".join(machine.flags) or "no instructions that speed up matrix products"),
        labelled("memory", memory),
    ]
    for gpu in machine.gpus:
        free = f"{_size(gpu.total_bytes)}, {_size(gpu.free_bytes)} free"
        lines.append(labelled(gpu.device, f"{gpu.name}, compute {gpu.capability}, {free}"))
    lines.append(labelled("cuda", libraries.cuda))
    lines += [labelled("4 bit", f"bitsandbytes on {name}: {what}") for name, what in libraries.bitsandbytes.items()]
    versions = [f"{name} {version}" for name, version in libraries.versions.items() if version]
    for start in range(0, len(versions), 4):
        lines.append(labelled("versions" if start == 0 else "", ", ".join(versions[start : start + 4])))
    missing = [name for name, version in libraries.versions.items() if version is None]
    lines += [labelled("missing", ", ".join(missing))] if missing else []
    size = f"{terminal.columns} columns" if terminal.is_terminal else "stdout is not a terminal"
    lines.append(labelled("terminal", f"{size}, {terminal.color}, {terminal.encoding}, TERM={terminal.term or '-'}"))
    for cache in system.caches:
        models = format_count(cache.num_models, "model")
        contents = f"{models}, {_size(cache.num_bytes)}; {_size(cache.free_bytes)} free on its disk"
        lines.append(labelled("cache", f"{cache.name}: {cache.path}, {contents}"))
    return _safe(lines, ascii_only)


def format_pair(pair: PairReport, alphas: Sequence[float] = ALPHAS, *, ascii_only: bool = False) -> Text:
    """Formats compatibility, memory, context window and measured costs, the best draft length for each of `alphas`."""
    lines = [line for model in pair.models for line in _model_lines(model)]
    if pair.drafter == "lookup":
        lines.append(labelled("draft", format_drafter(None, pair.drafter)))
    elif pair.drafter == "model+lookup":
        lines.append(labelled("", "with prompt lookup"))
    if pair.num_shared_tokens is not None:
        lines.append(labelled("tokens", f"compatible: {pair.num_shared_tokens} ids mean the same token in both"))
    lines += [labelled("", pair.notice)] if pair.notice else []
    window = "not in any config" if pair.window is None else f"{pair.window} positions"
    lines.append(labelled("window", f"{window}; memory planned for {pair.num_positions}"))
    for device in pair.devices:
        verdict = {True: "fits", False: "DOES NOT FIT", None: "unknown whether it fits"}[device.fits]
        lines.append(labelled(device.device, f"{verdict}: {_size(device.needed)} needed, {_size(device.free)} free"))
    if pair.library_bytes is not None and all(model.device == "cpu" for model in pair.models):
        peak = f"{_size(pair.peak_bytes)}, of which {_size(pair.library_bytes)} for the program itself"
        lines.append(labelled("peak", f"about {peak}"))
    text = _safe(lines, ascii_only)
    return text if pair.costs is None else text.append("\n").append(_measured(pair.costs, alphas, ascii_only))


def _model_lines(model: ModelPlan) -> list[Text]:
    memory = model.memory
    parts = f"weights {_size(memory.weights)}, cache {_size(memory.cache)}, activations {_size(memory.activations)}"
    copies = f", copies {_size(memory.copies)}" if memory.copies else ""
    description = f"{model.name} {model.model_type} {model.num_parameters / 1e6:.0f} M {model.quant} {model.dtype}"
    why = f" ({'; '.join(model.remarks)})" if model.remarks else ""
    return [labelled(model.role, f"{description} {model.device}{why}"), labelled("", parts + copies)]


def _measured(costs: MeasuredCosts, alphas: Sequence[float], ascii_only: bool) -> Text:
    """Formats v(n), draft cost, break-even acceptance, and best length by acceptance."""
    alpha = glyphs(ascii_only=ascii_only).alpha
    one = costs.verify(1)
    if not one:
        return labelled("costs", "nothing was measured")
    curve = ", ".join(f"{n}: {seconds / one:.2f}" for n, seconds in sorted(costs.verify_seconds.items()))
    passes = labelled("v(n)", f"a pass over n tokens, in units of one token ({format_milliseconds(one)}): {curve}")
    # Without a draft, or if it failed.
    if not costs.draft_seconds:
        return passes
    ((label, draft),) = costs.draft_seconds.items()
    needs = [(k, break_even_alpha(k, costs.of(label))) for k in LENGTHS]
    words = [f"-k {k} {format_rate(need, num_digits=0, missing='never')}" for k, need in needs]
    best = [f"{format_rate(value, num_digits=0)}: {_best_length(value, costs.of(label))}" for value in alphas]
    unit = "a proposal" if label == "lookup" else "a token"
    lines = [
        passes,
        labelled(label, f"{unit} costs {format_milliseconds(draft)}, {draft / one:.2f} passes over one token"),
        labelled("pays", f"from this {alpha} upwards: {', '.join(words)}"),
        labelled("best", f"length at {alpha} of {', '.join(best)}"),
    ]
    return Text("\n").join(lines)


def _best_length(alpha: float, costs: PassCosts) -> str:
    k, speedup = best_draft_length(alpha, costs)
    return f"-k {k} ({format_speedup(speedup)})" if k else "none"


def doctor_document(
    system: SystemReport, pair: PairReport | None, error: Document | None, alphas: Sequence[float] = ALPHAS
) -> Document:
    """Returns everything as one document."""
    return {
        "type": "doctor",
        "schema_version": SCHEMA_VERSION,
        "machine": asdict(system.machine),
        "libraries": {
            "versions": dict(system.libraries.versions),
            "cuda": system.libraries.cuda,
            "bitsandbytes": dict(system.libraries.bitsandbytes),
        },
        "terminal": asdict(system.terminal),
        "caches": [asdict(cache) for cache in system.caches],
        "pair": None if pair is None else _pair_document(pair, alphas),
        "error": error,
    }


def _pair_document(pair: PairReport, alphas: Sequence[float]) -> Document:
    document: Document = {
        "models": [asdict(model) for model in pair.models],
        "devices": [{**asdict(device), "fits": device.fits} for device in pair.devices],
        "drafter": pair.drafter,
        "num_shared_tokens": pair.num_shared_tokens,
        "notice": pair.notice,
        "window": pair.window,
        "num_positions": pair.num_positions,
        "library_bytes": pair.library_bytes,
        "peak_bytes": pair.peak_bytes if all(model.device == "cpu" for model in pair.models) else None,
        "costs": None,
    }
    if pair.costs is not None:
        document["costs"] = _costs_document(pair.costs, alphas)
    return document


def _costs_document(costs: MeasuredCosts, alphas: Sequence[float]) -> Document:
    document: Document = {
        "verify_s": {str(n): seconds for n, seconds in sorted(costs.verify_seconds.items())},
        "draft_token_s": None,
        "break_even_alpha": None,
        "best_length_by_alpha": None,
    }
    for label, seconds in costs.draft_seconds.items():
        draft_costs = costs.of(label)
        best = {alpha: best_draft_length(alpha, draft_costs) for alpha in alphas}
        document |= {
            "draft_token_s": seconds,
            "break_even_alpha": {str(k): break_even_alpha(k, draft_costs) for k in LENGTHS},
            "best_length_by_alpha": {
                f"{alpha:g}": {"k": k, "speedup": speedup} for alpha, (k, speedup) in best.items()
            },
        }
    return document


def _size(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else format_size(num_bytes)


def _safe(lines: Sequence[Text], ascii_only: bool) -> Text:
    """Makes names and paths from outside safe, and keeps each line on one line."""
    safe = []
    for line in lines:
        text = Text(one_line(line.plain, ascii_only=ascii_only) if line.plain.strip() else "")
        if line.plain.startswith(" "):
            text = Text(" " * (len(line.plain) - len(line.plain.lstrip()))).append(text)
        for span in line.spans:
            text.stylize(span.style, span.start, span.end)
        safe.append(text)
    return Text("\n").join(safe)
