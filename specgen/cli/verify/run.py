"""`specgen verify`: a pair of models in, the proof that its text is the target's own out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from specgen.cli import engine_options as e
from specgen.cli import options as o
from specgen.cli.interruption import exit_stopped
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.stdout import discard_stdout, require_stdout
from specgen.core.errors import DifferenceError, SettingsError
from specgen.core.settings import BackendSettings, DecodeSettings, ModelSettings, SamplingSettings

if TYPE_CHECKING:
    from specgen.render.progress import LoadProgress
    from specgen.runtime.pair import Pair
    from specgen.verify.checks import EncodedPrompt
    from specgen.verify.results import TextCheck, VerifyReport

EPILOG = """Examples:

specgen verify

specgen verify -t Qwen/Qwen2.5-1.5B-Instruct -d Qwen/Qwen2.5-0.5B-Instruct --dtype float32 --quant none

Exit code 6: a greedy text differs from the target's own by more than rounding explains."""

PROMPTS = (
    "Explain how a binary search works, with a short example.",
    "Write a Python function that reverses a linked list.",
    "List the planets of the solar system and one fact about each.",
    "Repeat this line three times: the quick brown fox jumps over the lazy dog.",
)


def verify(
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            help="Prompt to compare on. Can be repeated; default: four.",
            rich_help_panel=o.INPUT,
        ),
    ] = None,
    target: o.Target = "",
    draft: o.DraftName = o.DEFAULT_DRAFT,
    quant: o.Quant = "auto",
    draft_quant: o.DraftQuant = "auto",
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    draft_device: o.DraftDevice = None,
    revision: o.Revision = None,
    draft_revision: o.DraftRevision = None,
    offline: o.Offline = False,
    backend: e.Backend = "auto",
    gpu_layers: e.GpuLayers = None,
    context_size: e.ContextSize = None,
    threads: e.Threads = None,
    draft_tokens: o.DraftTokens = "5",
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", help="Tokens compared per prompt.", rich_help_panel=o.SAMPLING)
    ] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.", rich_help_panel=o.OUTPUT)] = False,
    color: o.Color = "auto",
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Prove on your own pair that the text is the target's: laws on tables, rows of a pass, greedy answers."""
    from specgen.cli.request import draft_length_from
    from specgen.cli.streams import Messages, print_text, write_document
    from specgen.render.progress import LoadProgress
    from specgen.render.verify import format_verify_report, verify_document

    num_draft_tokens, schedule = draft_length_from(draft_tokens)
    if draft == "none" or not num_draft_tokens:
        raise SettingsError("without drafts there is nothing to verify", "give --draft MODEL or lookup, and -k above 0")
    limits = DecodeSettings(max_new_tokens, num_draft_tokens, schedule)
    engine = BackendSettings(backend, gpu_layers, context_size, threads)
    model_settings = (
        ModelSettings(target, quant, dtype, device, revision, offline, engine),
        ModelSettings(draft, draft_quant, dtype, draft_device or device, draft_revision, offline, engine),
    )
    messages = Messages(color, quiet)
    require_stdout("the proof")
    with StopSignals():
        try:
            with LoadProgress(messages.console, quiet=quiet, verbose=verbose > 0) as progress:
                proof = _prove(model_settings, prompts or list(PROMPTS), limits, progress, verbose=verbose > 1)
        except Stopped as stopped:
            exit_stopped(stopped, as_json=as_json)
    try:
        if as_json:
            write_document(verify_document(proof))
        else:
            print_text(format_verify_report(proof), color)
    except BrokenPipeError:
        discard_stdout()
    if proof.has_real_difference:
        messages.error(_difference(proof))
        raise typer.Exit(DifferenceError.exit_code)


def _prove(
    model_settings: tuple[ModelSettings, ModelSettings],
    prompts: list[str],
    limits: DecodeSettings,
    progress: LoadProgress,
    *,
    verbose: bool,
) -> VerifyReport:
    progress.stage("starting")
    from specgen.loading.libraries import prepare_libraries

    prepare_libraries(verbose)
    from specgen.cli.request import pair_settings
    from specgen.runtime.generation import Request, run_info
    from specgen.runtime.loaded_models import load_models
    from specgen.runtime.pair import resolve_pair
    from specgen.verify.checks import compare_texts, distribution_errors
    from specgen.verify.results import VerifyReport

    pair = resolve_pair(pair_settings(*model_settings), progress)
    limits = replace(limits, end_ids=pair.end_ids)
    made = [_prompt(pair, text) for text in prompts]
    budgets = [
        pair.resolve_max_new_tokens(len(prompt.ids), limits.max_new_tokens, limits.max_new_tokens) for prompt in made
    ]
    progress.stage("walking every outcome on tables")
    distributions = tuple(distribution_errors())
    models = load_models(pair, progress)
    progress.stage("comparing passes with different tails")
    batch_invariance = models.check_batch_invariance()
    texts: list[TextCheck] = []
    for number, (prompt, budget) in enumerate(zip(made, budgets, strict=True), 1):
        progress.stage(f"answering prompt {number} of {len(made)} with the draft and without")
        texts.append(compare_texts(models, prompt, replace(limits, max_new_tokens=budget)))
    info = run_info(models, Request((), limits, SamplingSettings()))
    return VerifyReport(info, distributions, batch_invariance, tuple(texts))


def _prompt(pair: Pair, text: str) -> EncodedPrompt:
    from specgen.cli.prompt_input import as_utf8
    from specgen.text.chat_template import ChatTemplate, Message, encode_text
    from specgen.verify.checks import EncodedPrompt

    text = as_utf8(text, "the prompt")
    if pair.tokenizer.chat_template:
        return EncodedPrompt(text, ChatTemplate().encode(pair.tokenizer, [Message("user", text)]))
    return EncodedPrompt(text, encode_text(pair.tokenizer, text))


def _difference(proof: VerifyReport) -> DifferenceError:
    different = [(text, text.gap) for text in proof.texts if text.gap is not None and not text.gap.is_near_tie]
    if not different:
        return DifferenceError("the loop's law on tables is not the target's", "this is a bug of specgen: report it")
    hint = (
        "--draft none gives the target's own text"
        if proof.info.guarantee == "none"
        else "with --dtype float32 --quant none on both sides this is a bug: report it"
    )
    first, gap = different[0]
    return DifferenceError(
        f"{len(different)} of {len(proof.texts)} greedy texts differ from the target's own, the first at token "
        f"{first.position} by {gap.distance:.2g} where rounding explains {gap.tolerance:.2g}",
        hint,
    )
