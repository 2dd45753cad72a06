"""Tests the help, the completions and the manual page; the completions by a Tab in the shells that are installed."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
import typer

from specgen.cli.app import make_app
from specgen.cli.app_spec import Command
from specgen.cli.help import format_command
from specgen.cli.program import program
from specgen.cli.root import model_names
from specgen.cli.shell_files import MANUAL, shell_files
from tests.cli.children import ROOT
from tests.processes.environment import environment

FOLDER = ROOT / "completions"
TIMEOUT_SECONDS = 20


def test_the_files_are_up_to_date() -> None:
    kept = {path.name: path.read_text() for path in FOLDER.iterdir()}

    assert kept == shell_files(), "run: python -m specgen.cli.shell_files completions"


def test_all_options_of_all_commands_are_known() -> None:
    """Compares the description with the options that Typer's parser accepts."""
    group: Any = typer.main.get_command(make_app())
    described = {command.name: command.options for command in program().commands}

    assert set(described) == set(group.commands)
    for name, command in group.commands.items():
        accepted = {
            flag
            for parameter in command.params
            if parameter.param_type_name == "option"
            for flag in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {flag for option in described[name] for flag in option.all_names} == accepted | {"-h", "--help"}


def test_values_follow_from_the_types_of_the_fields() -> None:
    generate = program().commands[0]
    options = {name: option for option in generate.options for name in option.names}

    assert options["--quant"].words == ("auto", "none", "int8", "nf4", "fp4")
    assert options["-d"].words == ("auto", "lookup", "mtp", "none")
    assert options["-d"].takes_model
    assert options["-t"].takes_file
    assert options["-o"].takes_file
    assert options["-o"].words == ()
    assert options["--json"].value == ""
    assert options["--stop"].is_repeatable


def test_an_argument_that_names_a_model_completes_like_one() -> None:
    arguments = {command.name: command.argument for command in program().commands}
    distill, generate = arguments["distill"], arguments["generate"]

    assert distill is not None
    assert generate is not None
    assert (distill.takes_model, distill.takes_file) == (True, True)
    assert (generate.takes_model, generate.takes_file) == (False, False)


def test_a_required_option_is_marked_and_has_no_default() -> None:
    (distill,) = [command for command in program().commands if command.name == "distill"]

    page = format_command(distill, 80)

    assert page.startswith("Usage: specgen distill [OPTIONS] -o FOLDER TARGET\n")
    assert "[required]" in page


def test_no_page_shows_a_python_object() -> None:
    pages = {**shell_files(), **{command.name: format_command(command, 100) for command in program().commands}}

    assert {name for name, page in pages.items() if "<class" in page or "Ellipsis" in page} == set()


def test_every_example_is_shown_under_examples() -> None:
    commands = {command.name: command for command in program().commands}

    assert [example.split()[1] for example in commands["distill"].examples] == ["distill", "generate"]
    for command in commands.values():
        assert command.examples, command.name
        assert [text for text in command.paragraphs if "specgen " in text] == []


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_broken_example_fits_the_terminal_and_joins_to_the_original(width: int) -> None:
    for command in program().commands:
        page = format_command(command, width).partition("Examples:\n")[2]

        assert [line for line in page.splitlines() if len(line) > width] == []
        assert page.replace(" \\\n     ", "").splitlines() == [f"  {example}" for example in command.examples]


def test_help_in_a_pager_is_as_wide_as_the_terminal() -> None:
    shell = pexpect.spawn(
        "/bin/sh",
        ["-c", f"unset COLUMNS; {sys.executable} -m specgen generate --help | cat"],
        dimensions=(200, 64),
        encoding="utf-8",
        timeout=TIMEOUT_SECONDS,
    )

    lines = shell.read().split("\r\n")

    assert len(lines) > 50
    assert 55 < max(map(len, lines)) <= 64


def test_a_shell_runs_a_broken_example_like_the_original() -> None:
    whole = Command(
        "x", "Help.", epilog='Examples:\n\nprintf "%s|" specgen "a -b > c | d" --x "e f" -k 4 --y 5 "g h" | sed -n p'
    )

    page = format_command(whole, 40).partition("Examples:\n")[2]

    assert page.count("\\\n") > 1
    assert subprocess.check_output(["/bin/sh", "-c", page], text=True) == "specgen|a -b > c | d|--x|e f|-k|4|--y|5|g h|"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with a model, one without files, and one whose name contains shell code."""
    cache = tmp_path / "hub"
    for name in ("models--acme--tiny-1B", "models--acme--$(touch ran)"):
        (cache / name / "snapshots" / "abc").mkdir(parents=True)
        (cache / name / "snapshots" / "abc" / "config.json").write_text("{}")
    (cache / "models--acme--unfinished").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    return cache


@pytest.mark.usefixtures("hub")
def test_only_cached_models_with_safe_names_are_listed() -> None:
    assert model_names() == ["smollm2-135m-instruct", "acme/tiny-1B"]


HEAVY = {"torch", "transformers", "tokenizers", "huggingface_hub", "numpy", "scipy", "rich.console", "prompt_toolkit"}
LIGHT_COMMANDS = [["--list", "models"], ["--list", "sessions"], ["--version"], ["--help"], ["chat", "-h"]]


def test_a_tab_help_and_version_import_no_slow_library() -> None:
    """A Tab takes 0.13 s of processor time because of this, and help 0.19 s. One new interpreter runs them all."""
    code = (
        "import json, sys; from specgen.cli.app import run; commands, heavy = map(json.loads, sys.argv[1:]);"
        "found = [[run(words), sorted(set(heavy) & set(sys.modules))] for words in commands];"
        "print(json.dumps(found), file=sys.stderr)"
    )
    words = [json.dumps(LIGHT_COMMANDS), json.dumps(sorted(HEAVY))]

    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment())

    assert json.loads(done.stderr) == [[0, []]] * len(LIGHT_COMMANDS)


# --------------------------------------------------------------------------------------------------- real shells


@pytest.fixture
def shell_environment(tmp_path: Path, hub: Path) -> dict[str, str]:
    """An environment with a `specgen` in the path, without the user's settings. `specgen --list` is the real program;
    any other call prints its arguments, so that a test sees what the shell completed."""
    program = tmp_path / "bin" / "specgen"
    program.parent.mkdir()
    real = f'[ "$1" = --list ] && exec "{sys.executable}" -m specgen "$@"'
    program.write_text(f"#!/bin/sh\n{real}\nprintf 'ran'; printf '<%s>' \"$@\"; echo\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "local.gguf").touch()
    (tmp_path / "home" / "drafts").mkdir()
    return environment(
        PATH=f"{program.parent}:{os.environ['PATH']}",
        PYTHONPATH=str(ROOT),
        HOME=str(tmp_path / "home"),
        XDG_CONFIG_HOME=str(tmp_path / "home"),
        XDG_DATA_HOME=str(tmp_path / "home"),
        HF_HUB_CACHE=str(hub),
        LC_ALL="C.UTF-8",
    )


def spawn(command: list[str], env: dict[str, str], *setup: str) -> Any:
    """Starts a shell and waits for its prompt."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    size = (24, 200)
    child = pexpect.spawn(
        command[0], command[1:], env=env, encoding="utf-8", timeout=TIMEOUT_SECONDS, cwd=env["HOME"], dimensions=size
    )
    for line in (*setup, "specgen ready"):
        child.send(line + "\r")
    child.expect_exact("ran<ready>")
    return child


BASH = ["bash", "--norc", "--noprofile", "-i"]
COMPINIT = "autoload -U compinit; compinit -u -D"


def bash(env: dict[str, str]) -> Any:
    return spawn(BASH, env, f"source {FOLDER}/specgen.bash")


def bash_completion(env: dict[str, str]) -> Any:
    """Lets the package bash-completion find the file by its name, at the first Tab."""
    package = Path("/usr/share/bash-completion/bash_completion")
    if not package.exists():
        pytest.skip("no bash-completion here")
    place = Path(env["HOME"]) / "bash-completion" / "completions"
    place.mkdir(parents=True)
    shutil.copy(FOLDER / "specgen.bash", place / "specgen")
    return spawn(BASH, env, f"source {package}")


def zsh(env: dict[str, str]) -> Any:
    """Lets zsh find the file by its name in `fpath`, at the first Tab."""
    return spawn(["zsh", "-f", "-i"], env, f"fpath=({FOLDER} $fpath); {COMPINIT}")


def zsh_sourced(env: dict[str, str]) -> Any:
    return spawn(["zsh", "-f", "-i"], env, COMPINIT, f"source {FOLDER}/_specgen")


def fish(env: dict[str, str]) -> Any:
    return spawn(["fish", "--no-config", "-i"], env, f"set fish_complete_path {FOLDER} $fish_complete_path")


@pytest.mark.parametrize("shell", [bash, bash_completion, zsh, zsh_sourced, fish])
def test_a_tab_completes(shell: Callable[[dict[str, str]], Any], shell_environment: dict[str, str]) -> None:
    child = shell(shell_environment)

    for typed, words in [
        ("gen", "<generate>"),
        ("--vers", "<--version>"),
        ("generate --max-n", "<generate><--max-new-tokens>"),
        ("generate --quant nf", "<generate><--quant><nf4>"),
        ("bench --format=nd", "<bench><--format=ndjson>"),
        ("chat --no-h", "<chat><--no-history>"),
        ("chat --voc", "<chat><--voc>"),
        ("generate -t acme/t", "<generate><-t><acme/tiny-1B>"),
        ("generate -d look", "<generate><-d><lookup>"),
        ("generate -t loc", "<generate><-t><local.gguf>"),
        ("generate -o loc", "<generate><-o><local.gguf>"),
        ("distill acme/t", "<distill><acme/tiny-1B>"),
        ("distill loc", "<distill><local.gguf>"),
        ("distill --voc", "<distill><--vocab>"),
        ("export llama", "<export><llama-server>"),
        ("distill acme/tiny-1B -o draf", "<distill><acme/tiny-1B><-o><drafts>"),
    ]:
        child.send(f"specgen {typed}\t")
        child.send("\r")
        child.expect(r"ran(<[^\r]*)\r")
        # Zsh removes the slash after a folder when the line is sent.
        assert child.match.group(1).replace("/>", ">") == words, f"{typed} and a Tab"

    child.send("specgen generate --quant n\t\t")
    child.expect(r"(?s)none.*nf4|nf4.*none")
    child.close(force=True)
    assert not (Path(shell_environment["HOME"]) / "ran").exists()


# ---------------------------------------------------------------------------------------------------- manual page


def test_the_manual_page_renders_without_a_warning() -> None:
    if shutil.which("groff") is None:
        pytest.skip("no groff here")

    done = subprocess.run(
        ["groff", "-ww", "-man", "-P-cbou", "-Tutf8", "-K", "utf8", FOLDER / MANUAL],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stderr == ""
    for words in (
        "specgen generate",
        "--draft-tokens",
        "SPECGEN_TARGET",
        "SPECGEN_CACHE",
        "SPECGEN_STATE",
        "EXIT STATUS",
    ):
        assert words in done.stdout
