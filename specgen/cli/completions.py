"""Makes completion scripts for three shells from the description of the program.

The scripts contain the commands, options and their fixed values, so that a Tab does not start Python. Only names of
models and sessions come from `specgen --list`, which imports none of the libraries that load models. The shell itself
completes files.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from specgen.cli.app_spec import Command, Option, Program

NOTE = "# Made from specgen's own options by: specgen --show-completion "


def bash_script(program: Program) -> str:
    """Returns the script for bash 3.2 or newer, with or without the package bash-completion."""
    names = [command.name for command in program.commands]
    values, options = [], []
    for command in (*program.commands, program.root):
        values += _bash_values(command)
        option_names = " ".join(name for option in command.options for name in option.all_names)
        options.append(f'    {command.name or _quote("")}) _specgen_words "{option_names}" ;;')
    arguments = [f"    {command.name}) {_bash_action(argument)};;" for command, argument in _arguments(program)]
    return f"""{NOTE}bash
_specgen_words() {{ COMPREPLY=($(compgen -W "$1" -- "$cur")); }}
_specgen_names() {{ command "$specgen" --list "$1" 2>/dev/null; }}
_specgen_files() {{
  local IFS=$'\\n'
  # A hub id has a slash but is not a path: it is shown as it is.
  if [[ ${{#COMPREPLY[@]}} == 0 ]] && type compopt &>/dev/null; then compopt -o filenames; fi
  COMPREPLY+=($(compgen -f -- "$cur"))
}}
_specgen() {{
  local specgen=$1 cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} command= word
  COMPREPLY=()
  # --option=value comes as three words.
  if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}; fi
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case $word in {"|".join(names)}) command=$word; break ;; esac
  done
  case $command:$prev in
{_lines(values)}
  esac
  if [[ $cur == -* ]]; then
    case $command in
{_lines(options)}
    esac
  elif [[ -z $command ]]; then _specgen_words "{" ".join(names)}"
  else
    case $command in
{_lines(arguments)}
    esac
  fi
}}
complete -F _specgen specgen
"""


def _bash_values(command: Command) -> list[str]:
    """Returns a branch for each action; options with the same action share it."""
    valued = sorted((option for option in command.options if option.value), key=_bash_action)
    lines = []
    for action, options in groupby(valued, key=_bash_action):
        labels = "|".join(f"{command.name}:{name}" for option in options for name in option.names)
        lines.append(f"    {labels}) {action}return ;;")
    return lines


def _bash_action(option: Option) -> str:
    words = " ".join([*option.words, *(f"$(_specgen_names {one})" for one in option.lists)])
    return (f'_specgen_words "{words}"; ' if words else "") + ("_specgen_files; " if option.takes_file else "")


def zsh_script(program: Program) -> str:
    """Returns the script for zsh: a file `_specgen` in a folder of `fpath`, or text to `source`."""
    commands = [f"    {_quote(f'{command.name}:{command.help}')}" for command in program.commands]
    branches, known = [], _arguments(program)
    for command in program.commands:
        specs = [spec for option in command.options for spec in _zsh_specs(option)]
        # The prompt has no spec: one without completions would keep a half-typed option from being completed.
        specs += [_quote(f"1:{argument.value}:{_zsh_action(argument)}") for c, argument in known if c is command]
        branches.append(f"      {command.name}) _arguments {_continued(specs)} ;;")
    root = [spec for option in program.root.options for spec in _zsh_specs(option)]
    return f"""#compdef specgen
{NOTE}zsh
# _specgen_pick LIST WORD...: names on this machine, words, and files; LIST is - for no names.
_specgen_pick() {{
  local -a names=("${{@:2}}")
  [[ $1 == - ]] || names+=(${{(f)"$(command specgen --list $1 2>/dev/null)"}})
  _alternative 'names:name:compadd -a names' 'files:file or folder:_files'
}}
_specgen() {{
  local curcontext=$curcontext state line
  local -A opt_args
  local -a commands=(
{_lines(commands)}
  )
  _arguments -C {_continued([*root, "'1:command:->command'", "'*::argument:->argument'"])}
  case $state in
    command) _describe -t commands command commands ;;
    argument) case $line[1] in
{_lines(branches)}
    esac ;;
  esac
}}
# Autoloaded from fpath, this file is the body of the function; sourced, it only registers.
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _specgen "$@"; else compdef _specgen specgen; fi
"""


def _zsh_specs(option: Option) -> list[str]:
    """Returns a spec of `_arguments` for each name. Names of an option exclude each other unless it is repeatable."""
    before = "*" if option.is_repeatable else f"({' '.join(option.all_names)})"
    after = f":{_zsh_text(option.value.replace('|', ' '))}:{_zsh_action(option)}" if option.value else ""
    specs = []
    for name in option.all_names:
        joint = ("=" if name.startswith("--") else "+") if option.value else ""
        specs.append(_quote(f"{before}{name}{joint}[{_zsh_text(option.help)}]{after}"))
    return specs


def _zsh_action(option: Option) -> str:
    if option.takes_file and (option.words or option.lists):
        # The space in front keeps _arguments from putting its own words between these.
        return " " + " ".join(["_specgen_pick", *(option.lists or "-"), *option.words])
    if option.takes_file:
        return "_files"
    return f"({' '.join(option.words)})" if option.words else " "


def _zsh_text(text: str) -> str:
    for sign in ("\\", ":", "[", "]"):
        text = text.replace(sign, "\\" + sign)
    return text


def _continued(specs: list[str]) -> str:
    return "".join(f"\\\n        {spec} " for spec in specs).rstrip()


def fish_script(program: Program) -> str:
    """Returns the script for fish 3 or newer."""
    nowhere = f"-n 'not __fish_seen_subcommand_from {' '.join(command.name for command in program.commands)}'"
    lines = [f"{NOTE}fish", "complete -c specgen -f"]
    lines += [
        f"complete -c specgen {nowhere} -a {command.name} -d {_fish_quote(command.help)}"
        for command in program.commands
    ]
    for command in (program.root, *program.commands):
        where = f"-n '__fish_seen_subcommand_from {command.name}'" if command.name else nowhere
        for option in command.options:
            lines += [f"complete -c specgen {where} {line}" for line in _fish_lines(option)]
    for command, argument in _arguments(program):
        where = f"-n '__fish_seen_subcommand_from {command.name}'"
        files = "-F " if argument.takes_file else ""
        lines.append(f"complete -c specgen {where} {files}-a {_fish_quote(_fish_words(argument))}")
    return _lines(lines) + "\n"


def _fish_lines(option: Option) -> list[str]:
    names = [f"-s {name[1:]}" for name in option.short_names] + [f"-l {name[2:]}" for name in option.long_names]
    words = _fish_words(option)
    if option.value:
        names.append("-r -F" if option.takes_file else "-x")
        names += [f"-a {_fish_quote(words)}"] if words else []
    help_text = f"-d {_fish_quote(option.help)}"
    return [" ".join([*names, help_text]), *(f"-l {name[2:]} {help_text}" for name in option.off_names)]


def _fish_words(option: Option) -> str:
    return " ".join([*option.words, *(f"(specgen --list {one} 2>/dev/null)" for one in option.lists)])


SCRIPTS: dict[str, Callable[[Program], str]] = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}
FILES = {"bash": "specgen.bash", "zsh": "_specgen", "fish": "specgen.fish"}
"""The name that each shell looks for."""


def _arguments(program: Program) -> list[tuple[Command, Option]]:
    """Returns the arguments that are files, models or fixed words. A prompt is not completed."""
    arguments = [(command, command.argument) for command in program.commands if command.argument is not None]
    return [(command, argument) for command, argument in arguments if argument.takes_file or argument.words]


def _lines(lines: list[str]) -> str:
    return "\n".join(lines)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
