"""Collects what `specgen doctor` reports. Imports torch: import it once libraries are prepared."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from specgen.bench.prompts import bundled_prompts
from specgen.core.errors import MemoryShortageError, PairError, SpecgenError
from specgen.core.machine import Machine
from specgen.core.progress import ProgressListener
from specgen.doctor.examine import examine_caches, examine_libraries, examine_pair, measure_pair
from specgen.doctor.results import CacheState, LibraryState, PairReport
from specgen.runtime.environment import inspect_machine
from specgen.runtime.pair import PairSettings, resolve_pair
from specgen.text.chat_template import encode_text


@dataclass(frozen=True, slots=True)
class PairRequest:
    """The pair to examine.

    Args:
        settings: The models.
        context_tokens: Tokens to plan memory for; None for the default.
        measures: Load the models and time passes.
    """

    settings: PairSettings
    context_tokens: int | None
    measures: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of the machine and a pair of models on it.

    Args:
        machine: Hardware and system.
        libraries: Their versions, and whether they work.
        caches: Folders with cached files.
        pair: The models; None if none were given or the target can't be examined.
        error: What is wrong with the pair; None if nothing is.
    """

    machine: Machine
    libraries: LibraryState
    caches: Sequence[CacheState]
    pair: PairReport | None = None
    error: SpecgenError | None = None


def examine(request: PairRequest | None, progress: ProgressListener) -> Findings:
    """Examines the machine, and a pair if one is given."""
    progress.stage("examining the machine")
    machine = inspect_machine()
    libraries, caches = examine_libraries(machine), examine_caches()
    if request is None:
        return Findings(machine, libraries, caches)
    pair, error = _examine_pair(request, progress)
    return Findings(machine, libraries, caches, pair, error or (_memory_error(pair) if pair is not None else None))


def _examine_pair(request: PairRequest, progress: ProgressListener) -> tuple[PairReport | None, SpecgenError | None]:
    """Returns what is known of the pair, and what went wrong.

    If the measurement fails, the memory plan is still returned; if draft and target don't fit together, the target's.
    """
    settings, report = request.settings, None
    try:
        try:
            pair = resolve_pair(settings, progress)
        except PairError:
            with suppress(SpecgenError):
                alone = replace(settings, drafter="none", draft=None)
                report = examine_pair(resolve_pair(alone, progress), request.context_tokens)
            raise
        report = examine_pair(pair, request.context_tokens)
        if not request.measures or any(device.fits is False for device in report.devices):
            return report, None
        longest = max((prompt.messages[0].content for prompt in bundled_prompts()), key=len)
        return measure_pair(pair, report, encode_text(pair.tokenizer, longest), progress), None
    except SpecgenError as error:
        return report, error


def _memory_error(pair: PairReport) -> MemoryShortageError | None:
    full = next((device for device in pair.devices if device.fits is False), None)
    if full is None:
        return None
    option = "--context-size" if pair.models[0].dtype == "mixed" else "--quant nf4"
    return MemoryShortageError(
        f"the models do not fit into the memory of {full.device}", f"try {option} or a smaller model, or no draft"
    )
