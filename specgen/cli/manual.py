"""Makes the manual page, `man specgen`, from the description of the program."""

from __future__ import annotations

from specgen.cli.app_spec import Command, Option, Program
from specgen.core import __version__
from specgen.core.errors import SpecgenError
from specgen.core.exit_codes import ExitCode

FOLDERS = {
    "SPECGEN_CACHE": "Folder for what can be made again: converted GGUF files, the built-in model, costs of passes.",
    "SPECGEN_STATE": "Folder for your data: saved sessions, the history of chats, raw runs of bench.",
}
"""Variables without an option."""


def manual_page(program: Program) -> str:
    """Returns the page in roff, for the macros `an`."""
    lines = [
        ".\\\" Made from specgen's own options by: python -m specgen.cli.shell_files completions",
        f'.TH SPECGEN 1 "" "specgen {__version__}" "User Commands"',
        *(".SH NAME", f"specgen \\- {_text(program.root.help.rstrip('.'))}", ".SH SYNOPSIS"),
        *(f".B specgen {command.name}\n{_text(command.usage)}\n.br" for command in program.commands),
        *(".SH DESCRIPTION", _text(program.root.help), ".SH COMMANDS"),
    ]
    for command in program.commands:
        lines += _command(command)
    lines += [".SH OPTIONS", *(line for option in program.root.options for line in _option(option))]
    lines += [".SH ENVIRONMENT", *_environment(program), ".SH EXIT STATUS", *_exit_codes()]
    lines += [".SH EXAMPLES", ".nf", *(_text(example) for c in program.commands for example in c.examples), ".fi"]
    return "\n".join(lines) + "\n"


def _command(command: Command) -> list[str]:
    lines = [f".SS specgen {command.name}", _text(command.help)]
    if command.argument:
        lines += _entry(f"\\fI{_text(command.argument.value)}\\fR", command.argument.help)
    for heading, options in command.options_by_heading.items():
        lines += [".PP", f".B {_text(heading)}", *(line for option in options for line in _option(option))]
    for paragraph in command.paragraphs:
        lines += [".PP", _text(paragraph)]
    return lines


def _option(option: Option) -> list[str]:
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in option.all_names)
    value = f" \\fI{_text(option.value)}\\fR" if option.value else ""
    return _entry(names + value, f"{option.help} {option.notes}")


def _entry(label: str, text: str) -> list[str]:
    return [".TP", label, _text(text)]


def _environment(program: Program) -> list[str]:
    """Lists each variable once, with its option or what it does."""
    options = [option for command in program.commands for option in command.options]
    meanings = {**FOLDERS, **{option.env: option.long_names[0] for option in options if option.env}}
    return [line for env, meaning in sorted(meanings.items()) for line in _entry(f"\\fB{env}\\fR", meaning)]


def _exit_codes() -> list[str]:
    """Lists each code with the first line of the docstrings of its errors."""
    meanings: dict[int, list[str]] = {
        ExitCode.SUCCESS: ["Done; also if the reader of the output closed the pipe."],
        ExitCode.INTERNAL_ERROR: ["A bug."],
    }
    for error in _all_errors(SpecgenError):
        meanings.setdefault(error.exit_code, []).append((error.__doc__ or "").partition("\n")[0])
    meanings |= {ExitCode.HANGUP: ["SIGHUP."], ExitCode.CTRL_C: ["Ctrl-C."], ExitCode.TERMINATED: ["SIGTERM."]}
    return [line for code, texts in sorted(meanings.items()) for line in _entry(f"{code:d}", " ".join(texts))]


def _all_errors(base: type[SpecgenError]) -> list[type[SpecgenError]]:
    # Only the common tree: which further errors exist depends on what was imported before.
    children = [child for child in base.__subclasses__() if child.__module__ == SpecgenError.__module__]
    return [one for child in children for one in (child, *_all_errors(child))]


def _text(text: str) -> str:
    """Escapes text, so that nothing in it is a request or an escape of roff."""
    text = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    text = text.replace("'", "\\(aq").replace('"', "\\(dq").replace("α", "alpha").replace("±", "+\\-")
    return "\\&" + text if text.startswith((".", "'")) else text
