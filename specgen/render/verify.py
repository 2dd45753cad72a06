"""Formats a `VerifyReport` as lines for people and as its JSON document."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from specgen.render.formatting import format_drafter, format_guarantee, format_model, labelled
from specgen.render.jsonl import SCHEMA_VERSION, Document, old_guarantee
from specgen.render.sanitize import one_line
from specgen.verify.results import ReferenceCheck, TextCheck, VerifyReport

PROMPT_CELLS = 40


def format_verify_report(report: VerifyReport, *, ascii_only: bool = False) -> Text:
    """Formats one line per check and per prompt, then the guarantee."""
    rows = [
        ("target", format_model(report.info.target, ascii_only=ascii_only)),
        ("draft", format_drafter(report.info.draft, report.info.drafter, ascii_only=ascii_only)),
    ]
    for check in report.distributions:
        verdict = "exact" if check.is_exact else "DIFFERENT DISTRIBUTION"
        figures = f"{check.num_outcomes} outcomes, error {check.error:.0e}"
        rows.append(("sampling", f"{verdict}, {check.processors}: {figures}"))
    rows.append(
        ("logits", report.batch_invariance.reason or "batch invariant: later tokens do not change earlier logits")
    )
    rows += [("greedy", one_line(_text_line(text), ascii_only=ascii_only)) for text in report.texts]
    rows += [("against", one_line(_reference_line(check), ascii_only=ascii_only)) for check in report.references]
    rows.append(("output", format_guarantee(report.info)))
    return Text("\n").join(labelled(label, words) for label, words in rows)


def _text_line(text: TextCheck) -> str:
    counts = f"{text.num_tokens} tokens, {text.num_accepted} of {text.num_drafted} drafted accepted"
    return f"{_verdict(text)}: {counts}: {_shortened(text.prompt)}"


def _reference_line(check: ReferenceCheck) -> str:
    counts = f"{check.num_tokens} tokens of transformers, logits differ by {check.logit_error:.1e}"
    return f"{_verdict(check)}: {counts}: {_shortened(check.prompt)}"


def _verdict(check: TextCheck | ReferenceCheck) -> str:
    if check.gap is None:
        return "same"
    verdict = check.verdict if check.verdict == "near-tie" else "DIFFERENT"
    gap = f"logits {check.gap.distance:.2g} apart, rounding explains {check.gap.tolerance:.2g}"
    return f"{verdict} at {check.position} ({gap})"


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= PROMPT_CELLS else prompt[: PROMPT_CELLS - 1] + "…"


def verify_document(report: VerifyReport) -> Document:
    """Returns the one document of `specgen verify --json`.

    Schema version 1 keeps the names of 0.1.0: the type `proof`, and `promise`, `laws`, `rows`, `gap` and `limit` next
    to the new names.
    """
    figures = {
        "max_difference": report.batch_invariance.max_difference,
        "int8_threshold": report.batch_invariance.threshold,
    }
    distributions = [
        {
            "processors": check.processors,
            "outcomes": check.num_outcomes,
            "error": check.error,
            "is_exact": check.is_exact,
        }
        for check in report.distributions
    ]
    return {
        "type": "proof",
        "schema_version": SCHEMA_VERSION,
        "target": report.info.target.name,
        "draft": None if report.info.draft is None else report.info.draft.name,
        "drafter": report.info.drafter,
        "guarantee": report.info.guarantee,
        "promise": old_guarantee(report.info),
        "distributions": distributions,
        "laws": distributions,
        "batch_invariance": {"is_invariant": report.batch_invariance.is_invariant, **figures},
        "rows": {"is_independent": report.batch_invariance.is_invariant, **figures},
        "texts": [_text_document(text) for text in report.texts],
        "against": [_reference_document(check) for check in report.references],
        "has_real_difference": report.has_real_difference,
    }


def _text_document(text: TextCheck) -> dict[str, Any]:
    distance = None if text.gap is None else text.gap.distance
    tolerance = None if text.gap is None else text.gap.tolerance
    return {
        "prompt": text.prompt,
        "verdict": text.verdict,
        "tokens": text.num_tokens,
        "drafted": text.num_drafted,
        "accepted": text.num_accepted,
        "first_difference": text.position,
        "logit_gap": distance,
        "gap": distance,
        "tolerance": tolerance,
        "limit": tolerance,
    }


def _reference_document(check: ReferenceCheck) -> dict[str, Any]:
    return {
        "prompt": check.prompt,
        "backend": "transformers",
        "verdict": check.verdict,
        "tokens": check.num_tokens,
        "logit_error": check.logit_error,
        "first_difference": check.position,
        "logit_gap": None if check.gap is None else check.gap.distance,
        "tolerance": None if check.gap is None else check.gap.tolerance,
    }
