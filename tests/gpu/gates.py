"""Compares figures of a run with the aims for them: `good` is the floor, `excellent` the aim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.gpu.report import Figure, fields_of

Verdict = Literal["excellent", "good", "missed", "not measured"]
BANDWIDTHS = {"H200": 4800, "H100 PCIe": 2000, "H100": 3350, "4090": 1008, "A100": 2039, "3090": 936, "5090": 1792}
"""GB/s by a part of the card's name, from its data sheet; the first one that fits. Other cards: as copied."""
HOPPER = ("H100", "H200")
FAST_CONSUMER = ("4090",)


@dataclass(frozen=True, slots=True)
class Gate:
    """An aim.

    Args:
        what: Names the figure.
        cards: The aim holds for cards whose name contains one of these.
        measured: Computes it from all figures; None if one is missing.
        good: The floor.
        excellent: The aim. If it is smaller than the floor, smaller is better.
    """

    what: str
    cards: tuple[str, ...]
    measured: Callable[[Sequence[Figure]], float | None]
    good: float
    excellent: float

    def verdict(self, value: float | None) -> Verdict:
        """Judges a figure."""
        if value is None:
            return "not measured"
        sign = -1 if self.excellent < self.good else 1
        if sign * value >= sign * self.excellent:
            return "excellent"
        return "good" if sign * value >= sign * self.good else "missed"


def pass_ms(figures: Sequence[Figure], model: str, quant: str, rows: int) -> float | None:
    """Returns the time of a recorded pass."""
    return _number(figures, "pass", "ms", model=model, quant=quant, runner="static", rows=rows)


def bandwidth(figures: Sequence[Figure]) -> float | None:
    """Returns GB/s of the card's memory."""
    name = card_name(figures)
    known = next((value for part, value in BANDWIDTHS.items() if part in name), None)
    return known if known is not None else _number(figures, "bandwidth", "gb_per_s")


def card_name(figures: Sequence[Figure]) -> str:
    """Returns the card's name."""
    return str((fields_of(figures, "card") or {}).get("card", "unknown"))


def _number(figures: Sequence[Figure], name: str, field: str, **wanted: object) -> float | None:
    found = fields_of(figures, name, **wanted)
    value = None if found is None else found.get(field)
    return None if value is None else float(value)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _over_floor(quant: str) -> Callable[[Sequence[Figure]], float | None]:
    """Share of the bandwidth that the plain loop reaches: the time that the bytes need, over that of a token."""

    def measured(figures: Sequence[Figure]) -> float | None:
        size, speed = _number(figures, "bytes", "gb", model="7B", quant=quant), bandwidth(figures)
        rate = _number(figures, "plain", "tokens_per_s", quant=quant, runner="static")
        token_ms = pass_ms(figures, "7B", quant, 1) if rate is None else 1000 / rate
        floor_ms = _ratio(size, speed)
        return None if floor_ms is None else _ratio(1000 * floor_ms, token_ms)

    return measured


def _over_eager(quant: str) -> Callable[[Sequence[Figure]], float | None]:
    def measured(figures: Sequence[Figure]) -> float | None:
        eager = _number(figures, "pass", "call_ms", model="7B", quant=quant, runner="eager", rows=1)
        recorded = _number(figures, "pass", "call_ms", model="7B", quant=quant, runner="static", rows=1)
        return _ratio(eager, recorded)

    return measured


def _draft_share(quant: str) -> Callable[[Sequence[Figure]], float | None]:
    return lambda figures: _ratio(
        _number(figures, "draft_step", "ms", model="0.5B", quant=quant), pass_ms(figures, "7B", quant, 1)
    )


def _five_rows(quant: str) -> Callable[[Sequence[Figure]], float | None]:
    return lambda figures: _ratio(pass_ms(figures, "7B", quant, 5), pass_ms(figures, "7B", quant, 1))


def _best(field: str, quant: str) -> Callable[[Sequence[Figure]], float | None]:
    """The largest value over all draft lengths, at an acceptance of 0.8."""

    def measured(figures: Sequence[Figure]) -> float | None:
        found = [
            float(figure[field])
            for figure in figures
            if figure["name"] == "loop" and figure.get("quant") == quant and figure.get("alpha") == 0.8
            if figure.get(field) is not None
        ]
        return max(found, default=None)

    return measured


def _busy(quant: str) -> Callable[[Sequence[Figure]], float | None]:
    return lambda figures: _number(figures, "loop", "busy", quant=quant, alpha=0.8, k=4)


GATES = (
    Gate("7B bf16: share of the bandwidth, plain", HOPPER, _over_floor("none"), 0.65, 0.75),
    Gate("7B nf4: share of the bandwidth, plain", HOPPER, _over_floor("nf4"), 0.35, 0.50),
    Gate("7B nf4: share of the bandwidth, plain", FAST_CONSUMER, _over_floor("nf4"), 0.70, 0.80),
    Gate("7B bf16: recorded over eager", HOPPER, _over_eager("none"), 4.0, 8.0),
    Gate("7B nf4: recorded over eager", HOPPER, _over_eager("nf4"), 4.0, 8.0),
    Gate("bf16: draft step over target step", HOPPER, _draft_share("none"), 0.25, 0.15),
    Gate("nf4: draft step over target step", FAST_CONSUMER, _draft_share("nf4"), 0.20, 0.14),
    Gate("7B bf16: v(5)", (*HOPPER, *FAST_CONSUMER), _five_rows("none"), 1.05, 1.03),
    Gate("7B nf4: v(5)", HOPPER, _five_rows("nf4"), 1.40, 1.25),
    Gate("7B nf4: v(5)", FAST_CONSUMER, _five_rows("nf4"), 1.15, 1.07),
    Gate("bf16: GPU busy in a round, k 4", (*HOPPER, *FAST_CONSUMER), _busy("none"), 0.90, 0.97),
    Gate("nf4: GPU busy in a round, k 4", (*HOPPER, *FAST_CONSUMER), _busy("nf4"), 0.90, 0.97),
    Gate("bf16: speedup over recorded plain, α 0.8", HOPPER, _best("speedup", "none"), 1.6, 2.0),
    Gate("nf4: speedup over recorded plain, α 0.8", FAST_CONSUMER, _best("speedup", "nf4"), 1.6, 2.0),
    Gate("nf4: tokens/s, α 0.8", HOPPER, _best("tokens_per_s", "nf4"), 350, 500),
    Gate("nf4: tokens/s, α 0.8", FAST_CONSUMER, _best("tokens_per_s", "nf4"), 260, 340),
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A gate with its figure."""

    gate: Gate
    value: float | None
    verdict: Verdict


def judge(figures: Sequence[Figure]) -> list[Judged]:
    """Judges the gates of the card that the figures are of; none for a card without aims."""
    name = card_name(figures)
    gates = [gate for gate in GATES if any(part in name for part in gate.cards)]
    values = [(gate, gate.measured(figures)) for gate in gates]
    return [Judged(gate, value, gate.verdict(value)) for gate, value in values]


def table(figures: Sequence[Figure]) -> str:
    """Returns the gates as a Markdown table for RESULTS.md."""
    lines = [f"Card: {card_name(figures)}", "", "| figure | measured | good | excellent | verdict |"]
    lines.append("|---|---|---|---|---|")
    for judged in judge(figures):
        value = "" if judged.value is None else f"{judged.value:.3g}"
        gate = judged.gate
        lines.append(f"| {gate.what} | {value} | {gate.good:g} | {gate.excellent:g} | {judged.verdict} |")
    if len(lines) == 4:
        lines.append("| no aims for this card | | | | |")
    return "\n".join(lines) + "\n"
