"""Formats a `VerifyReport` as lines for people and as its JSON document."""

from __future__ import annotations

from rich.text import Text

from specgen.render.formatting import format_drafter, format_guarantee, format_model, labelled
from specgen.render.jsonl import SCHEMA_VERSION, Document, old_guarantee
from specgen.render.sanitize import one_line
from specgen.verify.results import ReferenceCheck, TextCheck, VerifyReport

PROMPT_CELLS = 40


def format_verify_report(report: VerifyReport, *, ascii_only: bool = False) -> Text:
    """Formats one line per check and per prompt, then the guarantee."""
    info = report.info
    rows = [
        ("target", format_model(info.target, ascii_only=ascii_only)),
        ("draft", format_drafter(info.draft, info.drafter, ascii_only=ascii_only)),
    ]
    for check in report.distributions:
        verdict = "exact" if check.is_exact else "DIFFERENT DISTRIBUTION"
        figures = f"{check.num_outcomes} outcomes, error {check.error:.0e}"
        rows.append(("sampling", f"{verdict}, {check.processors}: {figures}"))
    logits = report.batch_invariance.reason or "batch invariant: later tokens do not change earlier logits"
    rows.append(("logits", logits))
    if difference := report.batch_invariance.recurrent_difference:
        rule = "recurrent layers compute one token and several by different rules"
        rows.append(("", f"{rule}: logits differ by up to {difference:.1e}, so near ties may be decided differently"))
    for text in report.texts:
        counts = f"{text.num_tokens} tokens, {text.num_accepted} of {text.num_drafted} drafted accepted"
        rows.append(("greedy", _comparison(text, counts, ascii_only=ascii_only)))
    for reference in report.references:
        counts = f"{reference.num_tokens} tokens of transformers, logits differ by {reference.logit_error:.1e}"
        rows.append(("against", _comparison(reference, counts, ascii_only=ascii_only)))
    rows.append(("output", format_guarantee(info)))
    return Text("\n").join(labelled(label, words) for label, words in rows)


def _comparison(check: TextCheck | ReferenceCheck, counts: str, *, ascii_only: bool) -> str:
    verdict = "same"
    if check.gap is not None:
        word = check.verdict if check.verdict == "near-tie" else "DIFFERENT"
        gap = f"logits {check.gap.distance:.2g} apart, rounding explains {check.gap.tolerance:.2g}"
        verdict = f"{word} at {check.position} ({gap})"
    prompt = check.prompt if len(check.prompt) <= PROMPT_CELLS else check.prompt[: PROMPT_CELLS - 1] + "…"
    return one_line(f"{verdict}: {counts}: {prompt}", ascii_only=ascii_only)


def verify_document(report: VerifyReport) -> Document:
    """Returns the one document of `specgen verify --json`.

    Schema version 1 keeps the names of 0.1.0: the type `proof`, and `promise`, `laws`, `rows`, `gap` and `limit` next
    to the new names.
    """
    info, check = report.info, report.batch_invariance
    figures = {"max_difference": check.max_difference, "int8_threshold": check.threshold}
    distributions = [
        {"processors": one.processors, "outcomes": one.num_outcomes, "error": one.error, "is_exact": one.is_exact}
        for one in report.distributions
    ]
    return {
        "type": "proof",
        "schema_version": SCHEMA_VERSION,
        "target": info.target.name,
        "draft": None if info.draft is None else info.draft.name,
        "drafter": info.drafter,
        "guarantee": info.guarantee,
        "promise": old_guarantee(info),
        "distributions": distributions,
        "laws": distributions,
        "batch_invariance": {
            "is_invariant": check.is_invariant,
            **figures,
            "recurrent_difference": check.recurrent_difference,
        },
        "rows": {"is_independent": check.is_invariant, **figures},
        "texts": [_text_document(text) for text in report.texts],
        "against": [_reference_document(reference) for reference in report.references],
        "has_real_difference": report.has_real_difference,
    }


def _text_document(text: TextCheck) -> Document:
    distance, tolerance = (None, None) if text.gap is None else (text.gap.distance, text.gap.tolerance)
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


def _reference_document(check: ReferenceCheck) -> Document:
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
