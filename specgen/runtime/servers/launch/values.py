"""Defines what a server is to run, and the command line that starts it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from specgen.core.errors import SettingsError
from specgen.core.settings import MAX_DRAFT_TOKENS

Vocabulary = Literal["same", "shared", "text"]
MTP_DRAFT = "mtp"
"""The draft is the multi-token-prediction head in the target's checkpoint."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """What drafts, and how many tokens.

    Args:
        draft: The draft model, or `MTP_DRAFT`; None drafts by lookup only.
        has_lookup: Lookup drafts, alone or together with the model.
        num_draft_tokens: Tokens of a draft.
        is_adaptive: The number is the mean length of `-k auto` in a benchmark.
        vocabulary: How the draft's tokens become the target's.
    """

    draft: str | None
    has_lookup: bool
    num_draft_tokens: int
    is_adaptive: bool = False
    vocabulary: Vocabulary = "same"

    def __post_init__(self) -> None:
        if not 1 <= self.num_draft_tokens <= MAX_DRAFT_TOKENS:
            raise SettingsError(
                f"invalid --draft-tokens {self.num_draft_tokens}", f"give an integer from 1 to {MAX_DRAFT_TOKENS}"
            )


@dataclass(frozen=True, slots=True)
class ServerPlacement:
    """Where a server runs.

    Args:
        num_gpus: GPUs of each node.
        num_nodes: Machines that run one model together.
        port: TCP port; None is the engine's own default.
    """

    num_gpus: int = 1
    num_nodes: int = 1
    port: int | None = None

    @property
    def world_size(self) -> int:
        """GPUs of all nodes."""
        return self.num_gpus * self.num_nodes

    @property
    def port_words(self) -> list[str]:
        """The option that sets the port; all engines call it the same."""
        return [] if self.port is None else ["--port", str(self.port)]


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """What a server is to run.

    Args:
        target: Hub id, folder or GGUF file.
        speculation: None starts the server without drafts.
        quant: The weight format in which specgen ran the target; empty if unknown.
        draft_quant: That of the draft.
    """

    target: str
    speculation: Speculation | None
    placement: ServerPlacement = ServerPlacement()
    quant: str = ""
    draft_quant: str = ""

    @property
    def models(self) -> list[str]:
        """The target, and the draft model if there is one."""
        draft = None if self.speculation is None else self.speculation.draft
        return [self.target, *([] if draft is None else [draft])]


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """A command line, and what to know before it is run.

    Args:
        words: The program and its arguments.
        remarks: One sentence or two each.
    """

    words: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The words, quoted for a POSIX shell."""
        return shlex.join(self.words)


def is_gguf_name(name: str) -> bool:
    """Returns whether a name is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def refuse_gguf(engine: str, request: LaunchRequest) -> None:
    """Refuses GGUF files for an engine that reads safetensors.

    Raises:
        SettingsError: The target or the draft is a GGUF file.
    """
    for name in filter(is_gguf_name, request.models):
        raise SettingsError(
            f"{engine} does not read GGUF files: {name}", "give the hub id or the safetensors folder of the same model"
        )


def placement_remarks(place: ServerPlacement, *, others_add: str = "") -> list[str]:
    """Returns how the other machines are started; nothing for one machine.

    Args:
        place: Where the server runs.
        others_add: An option that only they get.
    """
    if place.num_nodes == 1:
        return []
    also = f" and {others_add}" if others_add else ""
    return [f"HEAD is the address of the first node; the others run the same line with --node-rank 1, 2, ...{also}"]


def draft_remarks(engine: str, speculation: Speculation | None) -> list[str]:
    """Returns what an engine without combined drafts omits; nothing if it omits nothing."""
    is_combined = speculation is not None and speculation.draft is not None and speculation.has_lookup
    return [f"{engine} can't combine a draft model with lookup: this uses the model only"] if is_combined else []


def quant_remarks(request: LaunchRequest, formats: str, more: Mapping[str, str] | None = None) -> list[str]:
    """Returns which models specgen ran in a format of its own, and what to start instead.

    Args:
        request: The models; the draft counts only if it is used.
        formats: Those that the engine reads.
        more: What else to know of a format, by its name.
    """
    num_models, remarks = len(request.models), []
    for role, quant in (("target", request.quant), ("draft", request.draft_quant))[:num_models]:
        if quant in ("nf4", "fp4", "int8"):
            remarks.append(
                f"the {role} ran in {quant}; here it runs in the checkpoint's own format: start it from a checkpoint "
                f"of the same model in {formats}{(more or {}).get(quant, '')}"
            )
    return remarks


def refuse_mtp(engine: str, speculation: Speculation) -> None:
    """Refuses the head in a checkpoint for an engine whose options for it were not checked.

    Raises:
        SettingsError: The draft is such a head.
    """
    if speculation.draft == MTP_DRAFT:
        raise SettingsError(
            f"specgen can't write a command line of {engine} for --draft {MTP_DRAFT}", "export vllm, or give -d lookup"
        )


def refuse_other_vocabulary(engine: str, speculation: Speculation) -> None:
    """Refuses a draft with other tokens than the target's.

    Raises:
        SettingsError: The draft has a vocabulary of its own.
    """
    if speculation.vocabulary != "same":
        raise SettingsError(
            f"{engine} can't use a draft with another vocabulary than the target's: {speculation.draft}",
            "use a model of the target's family, or -d lookup",
        )
