"""Options of a server that generates instead of this program."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from specgen.cli.app_spec import Option
from specgen.cli.options.fields import options_of
from specgen.core.draft_name import DraftName
from specgen.core.errors import SettingsError
from specgen.runtime.servers import KEY_VARIABLE

if TYPE_CHECKING:
    from specgen.runtime.servers.server import Server

SERVER = "Server"
BASELINE_SERVER = Option(
    ("--baseline-server",),
    "A server of the same model without drafts, for the speedup: it gets the same requests.",
    value="URL",
    heading=SERVER,
    env="SPECGEN_BASELINE_SERVER",
)
SERVER_URL = Option(
    ("--server",),
    "Use a server instead of models here (vLLM, SGLang, llama-server, LM Studio, or OpenAI-compatible), and show what "
    "it reports about its drafts. -t then names one of its models.",
    value="URL",
    heading=SERVER,
    env="SPECGEN_SERVER",
)
_DECIDED = (
    *("quant", "draft_quant", "dtype", "device", "revision", "offline", "draft_device", "draft_vocab"),
    *("draft_revision", "backend", "gpu_layers", "context_size", "threads"),
    *(
        "draft",
        "drafts",
        "draft_tokens",
        "tree",
        "lookup_files",
        "strict",
        "chat_template",
        "same_text",
        "show_special_tokens",
    ),
    *("show_special_tokens", "measure", "calibrate", "alphas", "context_tokens"),
)
"""Fields of the options that mean nothing to a server that runs already."""


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """How a server is reached."""

    HEADING = SERVER

    api_key_env: Annotated[
        str, Option(("--api-key-env",), "Environment variable with the key for the server.", value="NAME")
    ] = KEY_VARIABLE
    insecure_key: Annotated[
        bool, Option(("--insecure-key",), "Send the key over plain http to another machine, too.")
    ] = False
    timeout: Annotated[
        float, Option(("--timeout",), "Longest silence of a server, in seconds.", minimum=1, maximum=86400)
    ] = 300.0


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The server that answers, and one to compare it with."""

    HEADING = SERVER

    server: Annotated[str, SERVER_URL] = ""
    baseline_server: Annotated[str, BASELINE_SERVER] = ""


def served_model(target: str) -> str:
    """Returns which of a server's models `-t` names; SPECGEN_TARGET names one for this program."""
    return "" if target == os.environ.get("SPECGEN_TARGET") else target


def check_given(options_class: type, given: Iterable[str], draft: DraftName | None = None) -> None:
    """Refuses options that a server decided when it started. Those from the environment are ignored.

    Args:
        options_class: The options of the command.
        given: Fields of those that were given.
        draft: A draft model, which `draft_field` refuses later unless the engine takes it with a request.

    Raises:
        SettingsError: One was given on the command line.
    """
    is_model = draft is not None and draft.kind == "model" and draft.text != ""
    for option in _typed(options_class, given):
        if option.field in _DECIDED and not (option.field == "draft" and is_model):
            raise _refused(option)


def draft_field(options_class: type, given: Iterable[str], draft: DraftName, server: Server) -> dict[str, str]:
    """Returns the field of a request that names its draft model; empty unless `-d` was given.

    Raises:
        SettingsError: The engine takes no draft with a request.
    """
    option = next((one for one in _typed(options_class, given) if one.field == "draft"), None)
    if option is None:
        return {}
    if not server.engine.draft_field:
        raise _refused(option)
    return {server.engine.draft_field: draft.text}


def _refused(option: Option) -> SettingsError:
    name = option.long_names[0]
    return SettingsError(f"{name} has no effect with this server: it was set when the server started", f"omit {name}")


def check_without_server(options_class: type, given: Iterable[str]) -> None:
    """Refuses options that only have an effect together with a server. Those from the environment are ignored.

    Raises:
        SettingsError: One was given on the command line.
    """
    for option in _typed(options_class, given):
        if option.field in ("baseline_server", "concurrency"):
            raise SettingsError(f"{option.long_names[0]} needs --server", "give the server with --server URL")


def _typed(options_class: type, given: Iterable[str]) -> list[Option]:
    """Returns the options among those given that are not set by an environment variable."""
    names = set(given)
    return [
        option
        for option in options_of(options_class)
        if option.field in names and (option.env is None or option.env not in os.environ)
    ]
