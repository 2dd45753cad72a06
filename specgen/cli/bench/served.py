"""Reads and checks what `specgen bench --server` needs, and connects to the servers."""

from __future__ import annotations

from dataclasses import replace

from specgen.bench.served import ServedBenchmark
from specgen.cli.bench.inputs import QUICK_PROMPTS, bench_settings, read_prompts
from specgen.cli.bench.options import BenchOptions
from specgen.cli.connection import address_of, open_at
from specgen.cli.options.server import check_given, served_model
from specgen.core.errors import SettingsError

MAX_CONCURRENCY = 256


def open_served_benchmark(options: BenchOptions) -> ServedBenchmark:
    """Checks the options, reads the prompts and connects to the servers.

    Raises:
        SettingsError: An option means nothing to a server, there is no baseline, or a server can't write answers of
            equal length.
        PromptError: A file can't be read.
        ServerError: A server can't be reached, or refuses the key.
    """
    check_given(BenchOptions, options.given)
    if not options.baseline_server:
        raise SettingsError(
            "bench --server needs a server to compare with",
            "start the same model without drafts, and give it with --baseline-server",
        )
    runs, connection = options.runs, options.connection
    if options.limits.check and runs.temperature > 0:
        raise SettingsError("--check compares greedy texts, but --temperature is above 0", "omit --temperature")
    settings = replace(bench_settings(runs), concurrencies=parse_concurrencies(options.concurrency))
    prompts = read_prompts(runs.prompts, runs.num_prompts or (QUICK_PROMPTS if runs.quick else None))
    if (most := max(settings.concurrencies)) > len(prompts):
        raise SettingsError(
            f"--concurrency {most} needs as many prompts, but there are {len(prompts)}", "give more with --prompts"
        )
    addresses = [address_of(connection, url) for url in (options.baseline_server, *options.servers)]
    model = served_model(options.target)
    # A run that is sent again would be timed with its wait.
    servers = [open_at(connection, address, model, num_retries=0) for address in addresses]
    for server in servers:
        if not settings.stops_at_end and not server.engine.has_ignore_eos:
            why = "can't ignore the end token, so lengths would differ"
            raise SettingsError(f"{server.client.address.host} {why}", "add --stop-at-eos")
    variables = settings.template_variables
    return ServedBenchmark(servers, prompts, settings, {"chat_template_kwargs": variables} if variables else {})


def parse_concurrencies(text: str) -> tuple[int, ...]:
    """Returns numbers of requests at a time from `1,8`, each once.

    Raises:
        SettingsError: A part is not an integer, or is out of range.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= MAX_CONCURRENCY for part in parts):
        raise SettingsError(
            f"invalid --concurrency {text!r}", f"give integers from 1 to {MAX_CONCURRENCY}, as in --concurrency 1,8"
        )
    return tuple(dict.fromkeys(map(int, parts)))
