"""Formats what `doctor` found, as lines for people or as a JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.text import Text

from specgen.core.cost_model import MeasuredCosts, PassCosts, best_draft_length, break_even_alpha
from specgen.core.units import format_size
from specgen.doctor.results import ModelPlan, PairReport, SystemReport
from specgen.render.formatting import (
    format_break_even,
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

_ROLLBACKS = {
    "crop": "rejected tokens are cropped",
    "snapshot_and_replay": "running states are restored from a snapshot, accepted tokens are fed again",
    "unknown": "depends on kernels that need a GPU; the memory of snapshots is not counted",
}


class _Block:
    """Labelled lines. Names and paths from outside are made safe, and each stays on one line."""

    def __init__(self, *, ascii_only: bool) -> None:
        self._ascii_only = ascii_only
        self._lines: list[Text] = []

    def add(self, label: str, value: str) -> None:
        self._lines.append(labelled(label, one_line(value, ascii_only=self._ascii_only)))

    @property
    def text(self) -> Text:
        return Text("\n").join(self._lines)


def format_system(system: SystemReport, *, ascii_only: bool = False) -> Text:
    """Formats machine, libraries, terminal and caches."""
    machine, libraries, terminal = system.machine, system.libraries, system.terminal
    block = _Block(ascii_only=ascii_only)
    block.add("system", machine.system)
    block.add("cpu", f"{machine.processor}, {machine.num_cores} cores, {machine.num_threads} threads")
    block.add("", " ".join(machine.flags) or "no instructions that speed up matrix products")
    block.add("memory", f"{_size(machine.total_bytes)}, {_size(machine.free_bytes)} free")
    for gpu in machine.gpus:
        free = f"{_size(gpu.total_bytes)}, {_size(gpu.free_bytes)} free"
        block.add(gpu.device, f"{gpu.name}, compute {gpu.capability}, {free}")
    block.add("cuda", libraries.cuda)
    for name, what in libraries.bitsandbytes.items():
        block.add("4 bit", f"bitsandbytes on {name}: {what}")
    if libraries.versions.get("llama-cpp-python"):
        block.add("gguf", f"llama.cpp {libraries.llama_cpp}")
    versions = [f"{name} {version}" for name, version in libraries.versions.items() if version]
    for start in range(0, len(versions), 4):
        block.add("" if start else "versions", ", ".join(versions[start : start + 4]))
    if missing := [name for name, version in libraries.versions.items() if version is None]:
        block.add("missing", ", ".join(missing))
    size = f"{terminal.columns} columns" if terminal.is_terminal else "stdout is not a terminal"
    block.add("terminal", f"{size}, {terminal.color}, {terminal.encoding}, TERM={terminal.term or '-'}")
    for cache in system.caches:
        contents = f"{format_count(cache.num_models, 'model')}, {_size(cache.num_bytes)}"
        block.add("cache", f"{cache.name}: {cache.path}, {contents}; {_size(cache.free_bytes)} free on its disk")
    return block.text


def format_pair(pair: PairReport, alphas: Sequence[float] = ALPHAS, *, ascii_only: bool = False) -> Text:
    """Formats compatibility, memory, context window and measured costs, the best draft length for each of `alphas`."""
    block = _Block(ascii_only=ascii_only)
    for model in pair.models:
        _add_model(block, model)
    if pair.drafter == "lookup":
        block.add("draft", format_drafter(None, pair.drafter))
    elif pair.drafter == "model+lookup":
        block.add("", "with prompt lookup")
    if pair.num_shared_tokens is not None:
        same = f"compatible: {pair.num_shared_tokens} ids mean the same token in both"
        block.add("tokens", pair.vocab_remark or same)
    if pair.notice:
        block.add("", pair.notice)
    window = "not in any config" if pair.window is None else f"{pair.window} positions"
    block.add("window", f"{window}; memory planned for {pair.num_positions}")
    for device in pair.devices:
        verdict = {True: "fits", False: "DOES NOT FIT", None: "unknown whether it fits"}[device.fits]
        block.add(device.device, f"{verdict}: {_size(device.needed)} needed, {_size(device.free)} free")
    if pair.library_bytes is not None and _is_on_cpu(pair):
        peak = f"{_size(pair.peak_bytes)}, of which {_size(pair.library_bytes)} for the program itself"
        block.add("peak", f"about {peak}")
    if pair.costs is not None:
        _add_costs(block, pair.costs, alphas, glyphs(ascii_only=ascii_only).alpha)
    return block.text


def _add_model(block: _Block, model: ModelPlan) -> None:
    memory = model.memory
    parts = f"weights {_size(memory.weights)}, cache {_size(memory.cache)}, activations {_size(memory.activations)}"
    graphs = f", recorded passes about {_size(memory.graphs)} (an estimate)" if memory.graphs else ""
    copies = f", copies {_size(memory.copies)}" if memory.copies else ""
    description = f"{model.name} {model.model_type} {model.num_parameters / 1e6:.0f} M {model.quant} {model.dtype}"
    why = f" ({'; '.join(model.remarks)})" if model.remarks else ""
    block.add(model.role, f"{description} {model.device}{why}")
    block.add("", parts + graphs + copies)
    rollback = memory.rollback
    if rollback.num_snapshots or rollback.kind == "unknown":
        kind = _ROLLBACKS[rollback.kind]
        size = "unknown size" if rollback.snapshot_bytes is None else _size(rollback.snapshot_bytes)
        sizes = f"{rollback.num_snapshots} snapshots of {size}"
        block.add("rollback", f"{kind}; {sizes}" if rollback.num_snapshots else kind)


def _add_costs(block: _Block, costs: MeasuredCosts, alphas: Sequence[float], alpha: str) -> None:
    """Adds v(n), draft cost, break-even acceptance, and the best length by acceptance."""
    one = costs.verify(1)
    if not one:
        block.add("costs", "nothing was measured")
        return
    curve = ", ".join(f"{n}: {seconds / one:.2f}" for n, seconds in sorted(costs.verify_seconds.items()))
    block.add("v(n)", f"a pass over n tokens, in units of one token ({format_milliseconds(one)}): {curve}")
    # At most one draft; none if it failed or was not requested.
    for label, seconds in costs.draft_seconds.items():
        own = costs.of(label)
        unit = "a proposal" if label == "lookup" else "a token"
        best = [f"{format_rate(value, num_digits=0)}: {_best_length(value, own)}" for value in alphas]
        block.add(label, f"{unit} costs {format_milliseconds(seconds)}, {seconds / one:.2f} passes over one token")
        block.add("pays", f"from this {alpha} upwards: {format_break_even(own, LENGTHS)}")
        block.add("best", f"length at {alpha} of {', '.join(best)}")


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
        **asdict(system),
        "pair": None if pair is None else _pair_document(pair, alphas),
        "error": error,
    }


def _pair_document(pair: PairReport, alphas: Sequence[float]) -> Document:
    return {
        "models": [asdict(model) for model in pair.models],
        "devices": [{**asdict(device), "fits": device.fits} for device in pair.devices],
        "drafter": pair.drafter,
        "num_shared_tokens": pair.num_shared_tokens,
        "draft_vocab": pair.draft_vocab,
        "notice": pair.notice,
        "window": pair.window,
        "num_positions": pair.num_positions,
        "library_bytes": pair.library_bytes,
        "peak_bytes": pair.peak_bytes if _is_on_cpu(pair) else None,
        "costs": None if pair.costs is None else _costs_document(pair.costs, alphas),
    }


def _costs_document(costs: MeasuredCosts, alphas: Sequence[float]) -> Document:
    draft: Document = dict.fromkeys(("draft_token_s", "break_even_alpha", "best_length_by_alpha"))
    for label, seconds in costs.draft_seconds.items():
        own = costs.of(label)
        best = {f"{alpha:g}": best_draft_length(alpha, own) for alpha in alphas}
        draft = {
            "draft_token_s": seconds,
            "break_even_alpha": {str(k): break_even_alpha(k, own) for k in LENGTHS},
            "best_length_by_alpha": {alpha: {"k": k, "speedup": speedup} for alpha, (k, speedup) in best.items()},
        }
    return {"verify_s": {str(n): seconds for n, seconds in sorted(costs.verify_seconds.items())}, **draft}


def _is_on_cpu(pair: PairReport) -> bool:
    return all(model.device == "cpu" for model in pair.models)


def _size(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else format_size(num_bytes)
