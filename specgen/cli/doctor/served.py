"""Examines a server for `specgen doctor --server`: what it is, what it reports, and how it would report more."""

from __future__ import annotations

import os
import sys

from rich.text import Text

from specgen.cli.connection import address_of, open_at
from specgen.cli.doctor.options import DoctorOptions
from specgen.cli.options.server import check_given, served_model
from specgen.cli.streams import print_text, write_document
from specgen.core.metrics import Counts
from specgen.core.results import RunReport
from specgen.core.settings import ReplySettings, SamplingSettings
from specgen.render.formatting import format_rate, labelled
from specgen.render.jsonl import SCHEMA_VERSION, Document, stats_document
from specgen.render.sanitize import one_line
from specgen.render.terminal import is_ascii_only, make_console
from specgen.runtime.servers.answer import ServedAnswer
from specgen.runtime.servers.conversation import served_info
from specgen.runtime.servers.server import Server
from specgen.runtime.servers.values import ChatRequest

PROBE = "Count from one to ten in words, three times."
"""Repeats itself, so that prompt lookup has something to propose, too."""
NUM_PROBE_TOKENS = 32


def run_served(options: DoctorOptions) -> int:
    """Examines the server, asks it for a short answer, prints the findings and returns the exit code.

    Raises:
        SettingsError: The URL is invalid, or an option means nothing to a server.
        ServerError: The server can't be reached, or fails.
    """
    check_given(DoctorOptions, options.given)
    address = address_of(options.connection, options.server)
    server = open_at(options.connection, address, served_model(options.target or ""))
    report = _probe(server)
    if options.json:
        write_document(_document(server, report))
    else:
        ascii_only = is_ascii_only(make_console(sys.stdout, "auto", os.environ))
        rows = [labelled(label, one_line(words, ascii_only=ascii_only)) for label, words in _rows(server, report)]
        print_text(Text("\n").join(rows), "auto")
    server.client.close()
    return 0


def _probe(server: Server) -> RunReport:
    request = ChatRequest([{"role": "user", "content": PROBE}], NUM_PROBE_TOKENS, {"temperature": 0})
    settings = ReplySettings(SamplingSettings(), "default", NUM_PROBE_TOKENS)
    answer = ServedAnswer(server, request, served_info(server, settings))
    for _ in answer:
        pass
    return answer.report()


def _rows(server: Server, report: RunReport) -> list[tuple[str, str]]:
    """Returns labels and words: facts, then what a short answer showed."""
    facts, counts, served = server.facts, report.counts, report.served
    window = "unknown window" if facts.window is None else f"window of {facts.window} tokens"
    reported = [*facts.exposes]
    if served is not None and served.acceptance == "response":
        reported.append("accepted tokens of each answer")
    if served is not None and served.clock == "response":
        reported.append("its own decoding time")
    return [
        ("server", f"{facts.name} at {server.client.address.host}"),
        ("model", f"{facts.model}, {window}"),
        ("drafts", _drafts(counts, is_reported=served is not None and served.acceptance is not None)),
        ("reported", ", ".join(dict.fromkeys(reported)) or "text only"),
        *([("more", served.advice)] if served is not None and served.advice else []),
        ("speedup", "needs a second server without drafts: specgen bench --server URL --baseline-server URL"),
    ]


def _drafts(counts: Counts, *, is_reported: bool) -> str:
    if not is_reported:
        return "unknown: the server does not report it"
    if not counts.num_drafted:
        return "none in a short answer: off, or it found nothing to propose"
    rate = format_rate(counts.acceptance_rate, num_digits=0)
    doubt = "; a TAR of exactly 100 % may be a fault of the counters" if counts.acceptance_rate == 1 else ""
    return f"on; a short answer accepted {rate} of {counts.num_drafted} drafted tokens{doubt}"


def _document(server: Server, report: RunReport) -> Document:
    facts, served = server.facts, report.served
    return {
        "type": "doctor",
        "schema_version": SCHEMA_VERSION,
        "server": {
            "host": server.client.address.host,
            "engine": facts.engine,
            "version": facts.version,
            "model": facts.model,
            "root": facts.root,
            "window": facts.window,
            "exposes": list(facts.exposes),
            "advice": None if served is None else served.advice or None,
            "acceptance_source": None if served is None else served.acceptance,
            "clock_source": None if served is None else served.clock,
        },
        "stats": stats_document(report.counts),
    }
