"""A proof in, its lines for people and its JSON document out; nothing is printed here."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from specgen.render.formatting import format_draft, format_model
from specgen.render.guarantees import format_promise
from specgen.render.json_text import Document
from specgen.render.jsonl import SCHEMA_VERSION
from specgen.render.messages import labelled
from specgen.render.sanitize import one_line
from specgen.verify.results import TextCheck, VerifyReport

PROMPT_CELLS = 40


def format_proof(proof: VerifyReport, *, ascii_only: bool = False) -> Text:
    """One line per check and per prompt, then the verdict."""
    rows = [
        ("target", format_model(proof.info.target, ascii_only=ascii_only)),
        ("draft", format_draft(proof.info, ascii_only=ascii_only)),
    ]
    for distribution in proof.distributions:
        verdict = "same law" if distribution.is_exact else "DIFFERENT LAW"
        rows.append(
            (
                "law",
                f"{verdict}, {distribution.processors}: {distribution.num_outcomes} outcomes, "
                f"error {distribution.error:.0e}",
            )
        )
    rows.append(
        ("rows", proof.batch_invariance.reason or "independent: no later token changes an earlier logit by a bit")
    )
    rows += [("greedy", one_line(_text_line(text), ascii_only=ascii_only)) for text in proof.texts]
    rows.append(("promise", format_promise(proof.info)))
    return Text("\n").join(labelled(label, words) for label, words in rows)


def _text_line(text: TextCheck) -> str:
    shown = text.prompt if len(text.prompt) <= PROMPT_CELLS else text.prompt[: PROMPT_CELLS - 1] + "…"
    counts = f"{text.num_tokens} tokens, {text.num_accepted} of {text.num_drafted} drafted accepted"
    if text.gap is None:
        return f"same: {counts}: {shown}"
    word = text.verdict if text.verdict == "near-tie" else "DIFFERENT"
    return (
        f"{word} at {text.position} (gap {text.gap.size:.2g}, rounding up to {text.gap.limit:.2g}): {counts}: {shown}"
    )


def proof_document(proof: VerifyReport) -> Document:
    """The one document of `specgen verify --json`."""
    return {
        "type": "proof",
        "schema_version": SCHEMA_VERSION,
        "target": proof.info.target.name,
        "draft": None if proof.info.draft is None else proof.info.draft.name,
        "drafter": proof.info.drafter,
        "promise": proof.info.promise,
        "laws": [
            {
                "processors": distribution.processors,
                "outcomes": distribution.num_outcomes,
                "error": distribution.error,
                "is_exact": distribution.is_exact,
            }
            for distribution in proof.distributions
        ],
        "rows": {
            "is_independent": proof.batch_invariance.is_invariant,
            "max_difference": proof.batch_invariance.max_difference,
            "int8_threshold": proof.batch_invariance.threshold,
        },
        "texts": [_text_document(text) for text in proof.texts],
        "has_real_difference": proof.has_real_difference,
    }


def _text_document(text: TextCheck) -> dict[str, Any]:
    return {
        "prompt": text.prompt,
        "verdict": text.verdict,
        "tokens": text.num_tokens,
        "drafted": text.num_drafted,
        "accepted": text.num_accepted,
        "first_difference": text.position,
        "gap": None if text.gap is None else text.gap.size,
        "limit": None if text.gap is None else text.gap.limit,
    }
