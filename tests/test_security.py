"""What of the security checklist no other file holds: the network after loading, secrets, floors, our own source."""

from __future__ import annotations

import ast
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from prompt_toolkit.application import create_app_session

from tests.cli.conftest import EXACT, Cli, clean_environment, cli
from tests.structure import nodes_of
from tests.toys import ANSWER, save_toy

__all__ = ["clean_environment", "cli"]
ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "specgen").rglob("*.py"))
CANARY = "hf_" + "CANARYcanary" * 3
AUDIT: dict[str, Any] = runpy.run_path(str(ROOT / ".ci" / "audit"))


# --- The network ------------------------------------------------------------------------------------------------------


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """No name is looked up and no connection opened; attempts are written down, for a library may swallow the error."""
    made: list[object] = []

    def refuse(*arguments: object, **_: object) -> Any:
        made.append(arguments[-1:])
        raise AssertionError(f"the network was asked: {arguments!r}")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return made


def test_the_block_would_see_an_attempt(attempts: list[object]) -> None:
    with pytest.raises(AssertionError, match="network was asked"):
        socket.create_connection(("127.0.0.1", 9))

    assert attempts


@pytest.mark.parametrize("draft", ["none", "lookup", "model"])
def test_nothing_is_contacted_with_models_of_this_machine(
    cli: Cli, attempts: list[object], tmp_path: Path, draft: str
) -> None:
    target = save_toy(tmp_path / "target")
    drafts = save_toy(tmp_path / "draft") if draft == "model" else draft

    ended = cli("generate", "hello", "-t", target, "-d", drafts, *EXACT, "--no-stats")

    assert (ended.code, ended.out.decode()) == (0, f"{ANSWER}\n")
    assert attempts == []


COMMANDS = {
    "generate": ["generate", "hello"],
    "chat": ["chat", "--no-save", "--no-stats"],
    "bench": ["bench", "-d", "lookup", "-n", "8", "-r", "1", "--num-prompts", "1"],
    "doctor": ["doctor", "-d", "lookup"],
    "doctor measuring": ["doctor", "-d", "lookup", "--measure"],
    "verify": ["verify", "-p", "hello"],
}


@pytest.mark.usefixtures("checked_sampler")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.fast("generate", "verify", "chat", "doctor")
def test_no_command_contacts_anything(
    cli: Cli, attempts: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("SPECGEN_STATE", str(tmp_path / "state"))
    lines = iter(["hello"])

    def read(*_: object) -> str:
        for line in lines:
            return line
        raise EOFError

    # A chat wants a terminal; typed is what the script says.
    monkeypatch.setattr("specgen.cli.chat.run.is_terminal", lambda stream: stream is sys.stdin)
    monkeypatch.setattr("specgen.cli.chat.line_editor.LineEditor.read", read)
    monkeypatch.setattr("specgen.cli.chat.loop.end_of_input_code", lambda signals: signals.exit_code)

    # prompt_toolkit remembers the first stdin it sees; a later test of this process may have a terminal.
    with create_app_session():
        ended = cli(*COMMANDS[command], "-t", save_toy(tmp_path / "toy"), *EXACT)

    assert (ended.code, attempts) == (0, [])
    if command == "chat":
        assert ANSWER in ended.out.decode()


# --- Secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--json"], ["--format", "ndjson"], ["-vv"], ["-n", "0"], ["-t", "/nowhere"]])
def test_a_token_of_the_environment_is_never_shown(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, CANARY)

    ended = cli("generate", "hello", "-t", save_toy(tmp_path / "toy"), *EXACT, *more)

    assert CANARY not in ended.out.decode() + ended.err


def test_we_never_read_a_token() -> None:
    for path in SOURCES:
        source = path.read_text()
        assert "HF_TOKEN" not in source, path
        assert "get_token(" not in source, path


# --- Floors -----------------------------------------------------------------------------------------------------------


def test_the_dependencies_obey_their_floors_and_none_is_forbidden() -> None:
    assert AUDIT["findings"](AUDIT["floors"]()) == []


def test_an_old_or_forbidden_dependency_is_found() -> None:
    assert [finding.split()[0] for finding in AUDIT["findings"]({"torch": Version("99")})] == ["torch"]
    assert [finding.split()[0] for finding in AUDIT["findings"]({"kernels": Version("1.0")})] == ["kernels"]


# --- Our own source ---------------------------------------------------------------------------------------------------


def test_text_of_others_is_never_parsed_as_markup() -> None:
    for path in SOURCES:
        names = {node.id for node in nodes_of(path) if isinstance(node, ast.Name)}
        imported = {alias.name for node in nodes_of(path) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert not {"Markdown", "Syntax", "from_markup"} & (names | imported), path


def test_private_files_are_made_private_and_never_through_a_link() -> None:
    for name in ("storage/atomic_write.py", "storage/lock.py", "cli/chat/line_editor.py"):
        source = (ROOT / "specgen" / name).read_text()
        assert "O_NOFOLLOW" in source
        assert "0o600" in source


def test_nothing_but_the_two_fetchers_knows_an_address() -> None:
    package = ROOT / "specgen"
    knowing = {
        path.relative_to(package).as_posix()
        for path in SOURCES
        if "http://" in path.read_text() or "https://" in path.read_text()
    }

    # Messages name the hub; model_files.py has the first bytes of a Git LFS pointer; the others explain `--server`.
    fetchers = {"loading/hub.py", "loading/builtin.py"}
    naming = {"loading/hub_errors.py", "loading/libraries.py", "core/model_files.py", "cli/app.py"}
    examples = {f"cli/{command}/options.py" for command in ("batch", "bench", "chat")}
    assert knowing <= fetchers | naming | examples | {"runtime/servers/values.py"}, knowing
