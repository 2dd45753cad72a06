"""Reads and checks what `specgen generate --server` needs, and connects to the server."""

from __future__ import annotations

from typing import Any

from specgen.cli.connection import open_servers
from specgen.cli.generate.options import GenerateOptions
from specgen.cli.options.groups import SamplingOptions
from specgen.cli.options.server import check_given, draft_field, served_model
from specgen.cli.prompt_input import read_prompt
from specgen.cli.request import check_stops, parse_template_variables, system_message
from specgen.core.results import RunInfo
from specgen.core.settings import DEFAULT_MAX_NEW_TOKENS, ReplySettings
from specgen.runtime.servers import conversation
from specgen.runtime.servers.answer import ServedAnswer
from specgen.runtime.servers.server import Server
from specgen.runtime.servers.values import ChatRequest


def open_served_answer(options: GenerateOptions) -> ServedAnswer:
    """Reads the prompt, connects to the servers and returns an answer that is ready to start.

    Raises:
        SettingsError: An option means nothing to a server, or is out of range.
        PromptError: The prompt is missing, or a file can't be read.
        ServerError: A server can't be reached, or refuses the key.
    """
    draft = options.models.draft
    check_given(GenerateOptions, options.given, draft)
    options.sampling.resolve(None)
    check_stops(options.answer.stops)
    connection, prompt = options.connection, options.prompt
    text = read_prompt(prompt.prompt_argument, prompt.prompt, prompt.files, prompt.reads_stdin)
    system = system_message(prompt.system)
    turns = [*([] if system is None else [("system", system)]), ("user", text)]
    variables = parse_template_variables(prompt.chat_template_variables)
    server, baseline = open_servers(options.server, connection, served_model(options.models.target))
    fields: dict[str, Any] = {"chat_template_kwargs": variables} if variables else {}
    request = ChatRequest(
        [{"role": role, "content": content} for role, content in turns],
        options.answer.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
        sampling_fields(options.sampling, server),
        options.answer.stops,
        options.answer.ignore_eos,
        fields | draft_field(GenerateOptions, options.given, draft, server),
    )
    server.body(request, stream=True)  # refuses what the engine does not know, before anything is shown
    return ServedAnswer(server, request, run_info(server, baseline, request, options.sampling), baseline)


def sampling_fields(options: SamplingOptions, server: Server) -> dict[str, float]:
    """Returns the sampling settings to send. Without a temperature the answer is greedy.

    What is given is sent even if it is the neutral value, so that an engine that does not know it is noticed.
    """
    names = ("top_k", "top_p", "min_p", "repetition_penalty")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return conversation.sampling_fields(options.resolve(None)[0], server) | given


def run_info(server: Server, baseline: Server | None, request: ChatRequest, options: SamplingOptions) -> RunInfo:
    """Returns what is known before the first token."""
    sampling, source = options.resolve(None)
    return conversation.served_info(
        server, ReplySettings(sampling, source, request.max_tokens), baseline, request.fields
    )
