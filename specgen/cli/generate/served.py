"""Reads and checks what `specgen generate --server` needs, and connects to the server."""

from __future__ import annotations

from specgen.cli.generate.options import GenerateOptions
from specgen.cli.options.groups import SamplingOptions
from specgen.cli.options.server import check_given, served_model
from specgen.cli.prompt_input import read_prompt
from specgen.cli.request import check_stops, parse_template_variables, system_message
from specgen.core.errors import SettingsError
from specgen.core.results import ModelInfo, RunInfo, ServerInfo
from specgen.core.settings import DEFAULT_MAX_NEW_TOKENS
from specgen.runtime.served import ServedAnswer
from specgen.servers.server import Server, open_server
from specgen.servers.values import ChatRequest


def open_served_answer(options: GenerateOptions) -> ServedAnswer:
    """Reads the prompt, connects to the servers and returns an answer that is ready to start.

    Raises:
        SettingsError: An option means nothing to a server, or is out of range.
        PromptError: The prompt is missing, or a file can't be read.
        ServerError: A server can't be reached, or refuses the key.
    """
    check_given(GenerateOptions, options.given)
    options.sampling.resolve(None)
    check_stops(options.answer.stops)
    connection, prompt = options.connection, options.prompt
    address = connection.address(options.server.server)
    baseline_url = options.server.baseline_server
    baseline_address = connection.address(baseline_url) if baseline_url else None
    text = read_prompt(prompt.prompt_argument, prompt.prompt, prompt.files, prompt.reads_stdin)
    system = system_message(prompt.system)
    turns = [*([] if system is None else [("system", system)]), ("user", text)]
    variables = parse_template_variables(prompt.chat_template_variables)
    model = served_model(options.models.target)
    server = open_server(address, model, connection.http())
    baseline = None if baseline_address is None else open_server(baseline_address, "", connection.http())
    request = ChatRequest(
        [{"role": role, "content": content} for role, content in turns],
        options.answer.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
        sampling_fields(options.sampling, server),
        options.answer.stops,
        options.answer.ignore_eos,
        {"chat_template_kwargs": variables} if variables else {},
    )
    server.body(request, stream=True)  # refuses what the engine does not know, before anything is shown
    return ServedAnswer(server, request, run_info(server, baseline, request, options.sampling), baseline)


def sampling_fields(options: SamplingOptions, server: Server) -> dict[str, float]:
    """Returns the sampling settings to send. Without a temperature the answer is greedy.

    A server has defaults of its own, llama-server samples with temperature 0.8: so what is not given is sent, too,
    as far as the engine knows it.
    """
    settings, _ = options.resolve(None)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    values = {name: float(value) for name in names if (value := getattr(options, name)) is not None}
    values["temperature"] = settings.temperature
    neutral: dict[str, float] = {"repetition_penalty": 1.0}
    if not settings.is_greedy:
        neutral |= {"top_k": -1, "top_p": 1.0, "min_p": 0.0, "seed": settings.seed}
    values |= {name: value for name, value in neutral.items() if name not in values and _takes(server, name)}
    return {name: int(value) if name in ("top_k", "seed") else value for name, value in values.items()}


def _takes(server: Server, name: str) -> bool:
    # An engine that knows `ignore_eos` is known well enough to send it neutral values.
    return name in server.engine.sampling_fields and (server.engine.has_ignore_eos or name == "seed")


def run_info(server: Server, baseline: Server | None, request: ChatRequest, options: SamplingOptions) -> RunInfo:
    """Returns what is known before the first token."""
    facts, host = server.facts, server.client.address.host
    sampling, source = options.resolve(None)
    baseline_host = "" if baseline is None else baseline.client.address.host
    marks_tokens = facts.engine == "llama-server"
    return RunInfo(
        target=ModelInfo(facts.model, "", "", "", remark=f"{facts.name} at {host}"),
        draft=None,
        drafter="server",
        num_draft_tokens=0,
        sampling=sampling,
        sampling_source=source,
        max_new_tokens=request.max_tokens,
        load_seconds=0.0,
        server=ServerInfo(facts.name, host, baseline_host, marks_tokens),
    )


def check_without_server(options: GenerateOptions) -> None:
    """Refuses a baseline server without a server.

    Raises:
        SettingsError: Only `--baseline-server` is given.
    """
    if options.server.baseline_server and "baseline_server" in options.given:
        raise SettingsError("--baseline-server needs --server", "give the server to compare with --server")
