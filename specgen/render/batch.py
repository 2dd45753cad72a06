"""Makes the lines of a batch's output, its document and its summary."""

from __future__ import annotations

import secrets

from rich.text import Text

from specgen.core import __version__
from specgen.core.batch import BatchAnswer, BatchResult, BatchTotals
from specgen.core.errors import SpecgenError
from specgen.render.formatting import format_duration, format_rate, labelled
from specgen.render.jsonl import SCHEMA_VERSION, Document, dumps, error_document, stats_document
from specgen.render.timings import warmup_document


def result_line(result: BatchResult) -> str:
    """Returns a line as OpenAI's Batch API writes it, with specgen's figures in `response.body.specgen`."""
    id_, answer = f"batch_req_{secrets.token_hex(8)}", result.answer
    line: Document = {"id": id_, "custom_id": result.request.id, "response": None, "error": None}
    if isinstance(answer, SpecgenError):
        line["error"] = {"code": answer.code, "message": answer.message}
    else:
        body = {"id": f"chatcmpl-{id_}", **answer.body, "specgen": answer_document(answer)}
        line["response"] = {"status_code": 200, "request_id": id_, "body": body}
    return dumps(line)


def answer_document(answer: BatchAnswer) -> Document:
    """Returns the figures of an answer; null means unknown."""
    drafted, accepted = answer.num_drafted, answer.num_accepted
    rate = accepted / drafted if drafted and accepted is not None else None
    known = {"num_draft_tokens": drafted, "num_accepted_draft_tokens": accepted, "draft_acceptance_rate": rate}
    if (counts := answer.counts) is not None:
        speed = counts.tokens_per_second
    else:
        speed = answer.num_tokens / answer.seconds if answer.num_tokens and answer.seconds > 0 else None
    return {
        "schema_version": SCHEMA_VERSION,
        "specgen_version": __version__,
        "tokens": answer.num_tokens,
        "decode_s": round(answer.seconds, 9),
        "tokens_per_s": speed,
        **({} if counts is None else warmup_document(counts)),
        "stats": known if counts is None else stats_document(counts),
        **({"earlier_replies": list(answer.earlier_replies)} if answer.earlier_replies else {}),
        **({"notices": [answer.problem]} if answer.problem else {}),
    }


def totals_document(totals: BatchTotals, *, is_complete: bool, error: SpecgenError | None) -> Document:
    """Returns the one document of `--json`."""
    return {
        "type": "batch",
        "schema_version": SCHEMA_VERSION,
        "specgen_version": __version__,
        "is_complete": is_complete,
        "requests": totals.num_requests,
        "answered": totals.num_answered,
        "failed": totals.num_failed,
        "skipped": totals.num_skipped,
        "tokens": totals.num_tokens,
        "num_draft_tokens": totals.num_drafted,
        "num_accepted_draft_tokens": totals.num_accepted,
        "draft_acceptance_rate": totals.acceptance_rate,
        "total_s": round(totals.seconds, 9),
        "tokens_per_s": totals.tokens_per_second,
        "error": None if error is None else error_document(error),
    }


def format_progress(totals: BatchTotals) -> str:
    """Formats the known figures, as in `190.2 tok/s  TAR 71.6 %  2 failed`."""
    parts = []
    if (rate := totals.tokens_per_second) is not None:
        parts.append(f"{rate:.1f} tok/s")
    if totals.acceptance_rate is not None:
        parts.append(f"TAR {format_rate(totals.acceptance_rate)}")
    if totals.num_failed:
        parts.append(f"{totals.num_failed} failed")
    return "  ".join(parts)


def format_totals(totals: BatchTotals) -> Text:
    """Formats the summary of a run."""
    answered = f"{totals.num_answered} in {format_duration(totals.seconds)}"
    failed = [f"{totals.num_failed} failed"] if totals.num_failed else []
    earlier = [f"{totals.num_skipped} from an earlier run"] if totals.num_skipped else []
    left = totals.num_requests - totals.num_done
    missing = [f"{left} left"] if left else []
    lines = [labelled("answers", "   ".join([answered, *failed, *earlier, *missing]))]
    if totals.num_tokens:
        rate = totals.tokens_per_second
        speed = f"   {rate:.1f} tok/s, prompts included" if rate is not None else ""
        lines.append(labelled("tokens", f"{totals.num_tokens}{speed}"))
    if totals.num_drafted:
        accepted = f"accepted {totals.num_accepted} of {totals.num_drafted} drafted"
        lines.append(labelled("TAR", f"{format_rate(totals.acceptance_rate)}   {accepted}"))
    return Text("\n").join(lines)
