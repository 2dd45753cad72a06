"""Formats what is known of a served answer: its server, its speedup, and the source of each figure."""

from __future__ import annotations

from typing import Any

from specgen.core.results import RunInfo, RunReport, ServedFigures
from specgen.render.formatting import format_speedup
from specgen.render.sanitize import one_line


def served_sources(report: RunReport, served: ServedFigures) -> str:
    """Returns the sources of the figures of a served answer."""
    acceptance = {"response": "TAR of this request", "metrics": "TAR from the server's counters, with no other request"}
    source = acceptance.get(served.acceptance or "", "")
    clock = "its own clock" if served.clock == "response" else "timed here, network included"
    engine = report.info.server.engine if report.info.server else ""
    words = one_line(f"{engine}: {', '.join(filter(None, (source, clock)))}")
    return f"{words}; {served.advice}" if served.advice else words


def served_speedup(report: RunReport, served: ServedFigures) -> str:
    """Returns the speedup over the baseline server; without one, an upper bound."""
    speedup, baseline, server = report.speedup, report.baseline, report.info.server
    if speedup is not None and baseline is not None and server is not None:
        text = "" if not baseline.compared else ", same text"
        if baseline.first_difference is not None:
            text = f", text differs from character {baseline.first_difference} on"
        over = f"{server.baseline_host} without drafts, as you started them"
        if baseline.method == "request":
            over = "the same server without a draft"
        words = f"{format_speedup(speedup)} over {over}"
        return f"{words} ({baseline.num_tokens} tokens{text})"
    if served.ceiling is None:
        return "not measured: give a second server without drafts with --baseline-server"
    how = f", as with: {one_line(served.baseline_command)}" if served.baseline_command else ""
    return (
        f"at most {format_speedup(served.ceiling)}, by its rounds; to measure it, start a second server without "
        f"drafts and give it with --baseline-server{how}"
    )


def server_document(info: RunInfo) -> dict[str, Any]:
    """Returns the server that answers; nothing if this program does."""
    server = info.server
    if server is None:
        return {}
    return {"server": {"engine": server.engine, "host": server.host, "baseline_host": server.baseline_host or None}}


def sources_document(report: RunReport) -> dict[str, Any]:
    """Returns where the figures of a served answer come from; nothing for another one."""
    served = report.served
    if served is None:
        return {}
    sources = {"acceptance": served.acceptance, "decode_s": served.clock, "ttft_s": "client"}
    return {
        "sources": sources,
        "speedup_ceiling": served.ceiling,
        "baseline_command": served.baseline_command or None,
    }
