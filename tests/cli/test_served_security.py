"""What every command does with a server's key, and with a server that can't be trusted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specgen.cli.app import make_app
from tests.cli.conftest import Cli
from tests.runtime.servers.fake import (
    KEY,
    LLAMA_PAGES,
    PLAIN_PAGES,
    Reply,
    as_json,
    chunk,
    plain_answer,
    serving,
    timed,
)

COMMANDS = {
    "generate": ("generate", "--no-stdin", "-vv", "-o", "FOLDER/answer", "Hi"),
    "generate --json": ("generate", "--no-stdin", "--json", "Hi"),
    "generate ndjson": ("generate", "--no-stdin", "--format", "ndjson", "Hi"),
    "generate, compared": ("generate", "--no-stdin", "--baseline-server", "URL", "--json", "Hi"),
    "doctor": ("doctor",),
    "doctor --json": ("doctor", "--json", "-vv"),
    "batch": ("batch", "FOLDER/in", "-o", "FOLDER/out"),
    "bench": (
        *("bench", "--baseline-server", "URL", "-r", "1", "--num-prompts", "1", "-n", "3", "-vv"),
        *("--export-json", "FOLDER/runs", "--export-csv", "FOLDER/csv", "--export-md", "FOLDER/md"),
    ),
    "bench --json": (
        "bench",
        "--baseline-server",
        "URL",
        "-r",
        "1",
        "--num-prompts",
        "1",
        "-n",
        "3",
        "--format",
        "json",
    ),
}


def answered(request: dict[str, Any]) -> Reply:
    """Answers in the form that was asked for."""
    whole = {**chunk(), "usage": {"completion_tokens": 3}}
    return timed(1.0, draft_n=2, draft_n_accepted=1) if request["stream"] else as_json(whole)


def repeated(request: dict[str, Any]) -> Reply:
    """Refuses a request, and repeats its key."""
    return as_json({"error": {"message": f"wrong key {KEY}"}}, 401)


@pytest.mark.parametrize("reply", [answered, repeated])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_shows_the_key(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, reply: Callable[[dict[str, Any]], Reply]
) -> None:
    monkeypatch.setenv("SPECGEN_API_KEY", KEY)
    (tmp_path / "in").write_text(json.dumps({"prompt": "Hi"}) + "\n")
    with serving(LLAMA_PAGES, reply) as fake:
        name, *options = (word.replace("URL", fake.url).replace("FOLDER", str(tmp_path)) for word in COMMANDS[command])
        ended = cli(name, "--server", fake.url, *options)
        assert {headers["Authorization"] for headers in fake.headers} == {f"Bearer {KEY}"}

    assert (ended.code == 0) == (reply is answered)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in ended.out + ended.err.encode() + written


def test_no_option_takes_a_key() -> None:
    """An option's value would be in the list of processes and in the shell's history."""
    from typer.main import get_command

    command: Any = get_command(make_app())
    named = {name for one in command.commands.values() for option in one.params for name in option.opts}

    assert {name for name in named if "key" in name or ("token" in name and "tokens" not in name)} == {
        "--api-key-env",
        "--insecure-key",
    }


def test_the_host_that_gets_the_prompt_is_shown(cli: Cli) -> None:
    with serving(PLAIN_PAGES, plain_answer()) as fake:
        ended = cli("generate", "--server", fake.url, "--no-stdin", "Hi")

    assert fake.url.removeprefix("http://") in ended.err


def test_another_machine_is_reached_by_the_proxy_of_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    pages = {f"http://far.example:8000{path}": page for path, page in PLAIN_PAGES.items()}
    with serving(pages, plain_answer()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert cli("generate", "--server", "http://far.example:8000", "--no-stdin", "Hi").out == b"one two\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a file with a certificate of this machine that nobody has signed, and its key."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    call = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name]
    try:
        subprocess.run([*call, "-keyout", str(file), "-out", f"{file}.crt"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


@pytest.mark.process
def test_certificates_are_checked_against_those_of_the_user(
    cli: Cli, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(PLAIN_PAGES, plain_answer(), certificate=certificate) as fake:
        call = ("generate", "--server", fake.url, "--no-stdin", "Hi")
        unknown = cli(*call)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        known = cli(*call)

    assert (unknown.code, known.code, len(fake.requests)) == (10, 0, 1)
    assert known.out == b"one two\n"
