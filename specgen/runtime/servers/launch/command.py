"""Makes the command line of any engine, with the remarks that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args
from urllib.parse import urlsplit

from specgen.core.errors import SettingsError
from specgen.runtime.servers.launch import EngineName, llama_server, sglang, vllm
from specgen.runtime.servers.launch.values import LaunchCommand, LaunchRequest, ServerPlacement
from specgen.runtime.servers.server import Server


@dataclass(frozen=True, slots=True)
class Launcher:
    """Starts the server of an engine.

    Args:
        command: Makes the command line.
        checked: What the command lines were checked with, as a remark.
    """

    command: Callable[[LaunchRequest], LaunchCommand]
    checked: str


LAUNCHERS: dict[EngineName, Launcher] = {
    "vllm": Launcher(vllm.vllm_command, vllm.CHECKED),
    "sglang": Launcher(sglang.sglang_command, sglang.CHECKED),
    "llama-server": Launcher(llama_server.llama_server_command, llama_server.CHECKED),
}
assert tuple(LAUNCHERS) == get_args(EngineName)


def baseline_command(server: Server) -> str:
    """Returns the line that starts the model of a server without drafts, on the next port; empty if it is unknown."""
    names: dict[str, EngineName] = {"vLLM": "vllm", "SGLang": "sglang", "llama-server": "llama-server"}
    facts, name = server.facts, names.get(server.facts.engine)
    place = ServerPlacement(port=(urlsplit(server.client.address.url).port or 8000) + 1)
    if name is None:
        return ""
    try:
        return launch_command(name, LaunchRequest(facts.root or facts.model, None, place)).line
    except SettingsError:
        return ""


def launch_command(engine: EngineName, request: LaunchRequest) -> LaunchCommand:
    """Returns the command line that starts an engine, with its remarks.

    Raises:
        SettingsError: The engine can't run this pair; the message says why.
    """
    command = LAUNCHERS[engine].command(request)
    speculation = request.speculation
    common = [LAUNCHERS[engine].checked]
    if speculation is not None and speculation.is_adaptive:
        common.append(
            f"-k auto chose lengths by cost; {speculation.num_draft_tokens} is its mean, and the engine keeps to it"
        )
    if speculation is not None:
        common.append(
            "what is fastest in specgen on one machine need not be so in this engine on another: measure it there with "
            "specgen bench --server URL, against a server without drafts (specgen export --baseline)"
        )
    return replace(command, remarks=(*command.remarks, *common))
