"""Runs `specgen distill`: makes a small draft for a target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from specgen.cli.bench.inputs import read_prompts
from specgen.cli.distill.options import DistillOptions
from specgen.cli.request import parse_template_variables
from specgen.cli.signals import Stopped
from specgen.cli.streams import Messages, loading
from specgen.core.errors import MemoryShortageError, SettingsError
from specgen.core.settings import ModelSettings
from specgen.distill.settings import Conversation, DistillRequest, DistillSettings, TextSettings, TrainSettings
from specgen.render.progress import DistillBar
from specgen.render.sanitize import one_line

if TYPE_CHECKING:
    from pathlib import Path

    from specgen.distill.run import DistillResult


def run(options: DistillOptions) -> int:
    """Makes a draft and returns the exit code.

    Raises:
        SpecgenError: An option is wrong, the target can't be used, or the folder can't be written.
    """
    request = _request(options)
    messages = Messages(options.color, options.verbosity.quiet)
    try:
        with loading(messages, options.verbosity) as progress:
            from specgen.distill.run import Distillation  # imports torch

            distillation = Distillation(request, progress)
        with DistillBar(messages.console, quiet=messages.quiet) as bar:
            result = distillation.run(bar)
    except Stopped as stopped:
        messages.info(Text("stopped; the same command continues with what is on disk"))
        return stopped.exit_code
    except MemoryError as error:
        raise MemoryShortageError("out of memory while making a draft", "lower --batch-size") from error
    messages.info(_summary(result))
    return 0


def _request(options: DistillOptions) -> DistillRequest:
    hub, data = options.hub, options.data
    target = ModelSettings(options.target, device=hub.device, revision=hub.revision, offline=hub.offline)
    own_prompts = [] if data.prompts is None else _read_conversations(data.prompts)
    settings = _settings(options)
    return DistillRequest(target, settings, options.output, _read_conversations(data.held_out), own_prompts, data.texts)


def _settings(options: DistillOptions) -> DistillSettings:
    draft, data, training = options.draft, options.data, options.training
    layers = _parse_layers(draft.layers)
    return DistillSettings(
        draft.kind,
        (len(layers) or 1) if draft.num_layers is None else draft.num_layers,
        draft.vocab,
        layers,
        training.seed,
        TextSettings(
            data.num_prompts,
            max_new_tokens=data.max_new_tokens,
            greedy_share=data.greedy_share,
            batch_size=data.batch_size,
            template_variables=parse_template_variables(data.chat_template_variables),
        ),
        TrainSettings(training.epochs, training.batch_tokens, training.learning_rate, unroll=training.unroll),
    )


def _parse_layers(text: str | None) -> tuple[int, ...]:
    """Returns the numbers of `27,29`, or none if the option was not given."""
    if text is None:
        return ()
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise SettingsError(f"invalid --layers {text!r}", "give numbers with commas, as in 27,29") from None


def _read_conversations(path: Path | None) -> list[Conversation]:
    return [prompt.messages for prompt in read_prompts(path)]


def _summary(result: DistillResult) -> Text:
    alpha = result.acceptance.alpha(result.length)
    return Text(
        f"{one_line(str(result.folder))}: {result.num_bytes / 1e6:.1f} MB, α {alpha:.2f} on held-out prompts, "
        f"predicted speedup {result.speedup:.2f}x with drafts of {result.length}; see README.md in the folder"
    )
