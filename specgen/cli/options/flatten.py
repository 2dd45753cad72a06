"""Makes the functions that Typer reads out of the dataclasses of the commands' options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from specgen.cli.options.fields import OptionField, build, option_fields

T = TypeVar("T")


def flattened(options_class: type[T]) -> Callable[[Callable[[T], int]], Callable[..., int]]:
    """Decorates a function of one options dataclass: Typer sees a parameter for each option.

    Typer splits the command line into words and reads environment variables. Types, ranges and defaults are those of
    the dataclass: an option that was not given is None or an empty list here.
    """

    def decorate(run: Callable[[T], int]) -> Callable[..., int]:
        def function(context: typer.Context, **words: Any) -> int:
            given = {name: word for name, word in words.items() if word is not None and word != []}
            return run(build(options_class, given, f"see {context.command_path} --help"))

        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [context, *map(_parameter, option_fields(options_class))]
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return function

    return decorate


def _parameter(field: OptionField) -> inspect.Parameter:
    option = field.option
    # The number of `-v` is an int; any other value stays a word, so that its errors are ours.
    word: Any = int if option.counts else bool if field.is_switch else str
    word = list[word] if option.is_repeatable and not option.counts else word
    if field.is_argument:
        info: Any = typer.Argument(metavar=option.value)
    else:
        *names, last = option.names
        names.append("/".join([last, *option.off_names]))
        info = typer.Option(*names, envvar=option.env, count=option.counts)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if option.is_required else None,
        annotation=Annotated[word if option.is_required else word | None, info],
    )
