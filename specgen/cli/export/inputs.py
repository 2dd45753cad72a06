"""Reads and checks what `specgen export` starts: from options, or from the results of a benchmark."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from specgen.cli.export.options import ExportOptions, PairOptions
from specgen.cli.prompt_input import read_text
from specgen.core.draft_name import MTP_NAME
from specgen.core.errors import ModelFileError, SettingsError
from specgen.core.model_files import read_json
from specgen.loading.config_check import DRAFT_HEAD_KEY
from specgen.loading.names import BUILT_IN_NAME
from specgen.runtime.servers.launch.bench_results import BenchChoice, read_bench_results
from specgen.runtime.servers.launch.values import LaunchRequest, ServerPlacement, Speculation

_NAMES = "give a hub id, a folder or a .gguf file"


def read_request(options: ExportOptions) -> LaunchRequest:
    """Returns what to launch. Loads nothing, and asks no hub.

    Raises:
        SettingsError: An option is missing, or a name is not one that a server can use.
        PromptError: The results can't be read.
    """
    pair, server = options.pair, options.server
    chosen = _from_options(pair) if pair.results is None else _from_results(pair)
    speculation = None if pair.baseline else chosen.speculation
    place = ServerPlacement(server.gpus, server.nodes, server.port)
    target = _checked(chosen.target, "-t")
    if speculation is not None and speculation.draft is not None:
        speculation = replace(speculation, draft=_checked(speculation.draft, "-d"))
    draft_quant = chosen.draft_quant if speculation is not None else ""
    return LaunchRequest(target, speculation, place, chosen.quant, draft_quant)


def _from_results(options: PairOptions) -> BenchChoice:
    assert options.results is not None, "the caller checks it"
    for name, value in (("--draft", options.draft), ("--draft-tokens", options.draft_tokens)):
        if value is not None:
            raise SettingsError(f"{name} and --from both choose the draft", f"omit {name}, or --from")
    chosen = read_bench_results(read_text(options.results, "results"), str(options.results))
    if options.target is not None:
        return replace(chosen, target=options.target)
    if "/" not in chosen.target:
        raise SettingsError(
            f"the results name the target {chosen.target!r}, but not where it is", "add -t with its folder or file"
        )
    return chosen


def _from_options(options: PairOptions) -> BenchChoice:
    if options.target is None:
        raise SettingsError("the target is missing", "give -t MODEL, or --from with results of specgen bench")
    if options.baseline or (options.draft is not None and options.draft.kind == "none"):
        return BenchChoice(options.target, None, "")
    if options.draft is None or options.draft_tokens is None:
        missing = "-d MODEL" if options.draft is None else "-k N"
        raise SettingsError(f"{missing} is missing", "specgen bench finds it; -d none or --baseline starts no draft")
    if options.draft.kind == "auto":
        raise SettingsError("invalid --draft 'auto': only specgen chooses a draft itself", "name it, or give --from")
    speculation = Speculation(options.draft.model, options.draft.has_lookup, options.draft_tokens)
    return BenchChoice(options.target, speculation, "")


def _checked(name: str, option: str) -> str:
    """Returns the name of a model as a server takes it, local ones with their whole path.

    Raises:
        SettingsError: Only specgen knows such a model, or the engine would read the name as an option.
    """
    if not name.strip() or name.lower() == BUILT_IN_NAME:
        raise SettingsError(f"invalid {option} {name!r}: a server can't load the built-in model", _NAMES)
    if name.startswith("-") or not name.isprintable():
        raise SettingsError(f"invalid {option} {name!r}: not the name of a model", _NAMES)
    if name == MTP_NAME and option == "-d":
        return name
    path = os.path.abspath(os.path.expanduser(name))
    if not os.path.exists(path):
        return name
    with suppress(ModelFileError):
        if os.path.isdir(path) and DRAFT_HEAD_KEY in read_json(Path(path) / "config.json"):
            raise SettingsError(
                f"{name} is a draft of specgen distill, a format of specgen's own that no server reads",
                "give -d MODEL or -d lookup",
            )
    return path
