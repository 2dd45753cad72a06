"""Words of `specgen bench` in, checked values out: lists of drafts and lengths, prompts, forms of output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from specgen.cli.engine_options import ENGINE
from specgen.cli.prompt_input import decode, read_capped
from specgen.cli.request import BESIDE, draft_length_from
from specgen.core.errors import PromptError, SettingsError
from specgen.core.settings import MAX_DRAFT_TOKENS, BackendSettings, DtypeName, ModelSettings, Quantization

if TYPE_CHECKING:
    from specgen.bench.prompts import BenchPrompt
    from specgen.bench.results import Setting
    from specgen.core.progress import ProgressListener
    from specgen.runtime.pair import DrafterKind, Pair

Backend = Annotated[
    Literal["auto", "transformers", "llama.cpp", "both"],
    typer.Option(
        "--backend",
        envvar="SPECGEN_BACKEND",
        help="What runs a model, as in generate; both: a GGUF target on llama.cpp and on transformers, in one table.",
        rich_help_panel=ENGINE,
    ),
]
BenchFormat = Literal["auto", "table", "json", "ndjson", "csv", "md"]

QUICK_LENGTHS = "4,auto"
DEFAULT_LENGTHS = "2,4,auto"
QUICK_PROMPTS = 3
QUICK_TOKENS = 24
QUICK_REPEATS = 3
QUICK_SECONDS = 40.0
"""Time for all of `--quick` but loading."""

_RANGE = re.compile(r"(\d{1,3})-(\d{1,3})(?:\+(\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """A draft as named on the command line: `lookup`, `auto`, a model and the form of its weights, both together."""

    name: str
    quant: Quantization
    has_lookup: bool = False

    @property
    def is_lookup(self) -> bool:
        """Whether it drafts without a model."""
        return self.name == "lookup"

    @property
    def key(self) -> str:
        """The words that ask for it, as in `-d`; told apart by them in tables and JSON."""
        form = "" if self.quant == "auto" else f":{self.quant}"
        return f"{self.name}{form}{BESIDE if self.has_lookup else ''}"

    @property
    def kind(self) -> DrafterKind:
        """Which drafter of a session it is."""
        if self.is_lookup:
            return "lookup"
        if self.name == "auto":
            return "auto"
        return "model+lookup" if self.has_lookup else "model"


def drafts_from(names: Sequence[str], quant: Quantization) -> list[DraftChoice]:
    """Drafts to compare, each once. `MODEL:nf4` overrules `--draft-quant`; `MODEL:nf4+lookup` has lookup beside it.

    Raises:
        SettingsError: `none` is among them.
    """
    choices = []
    for word in names:
        name, has_lookup = word.removesuffix(BESIDE), word.endswith(BESIDE)
        model, separator, form = name.rpartition(":")
        if separator and form in get_args(Quantization):
            # The literal is one of the names just checked.
            choices.append(DraftChoice(model, form, has_lookup))  # type: ignore[arg-type]
        else:
            choices.append(DraftChoice(name, "auto" if name in ("lookup", "auto") else quant, has_lookup))
    if any(choice.name == "none" for choice in choices):
        raise SettingsError("--draft none: the target alone is always measured", "leave it out")
    return list(dict.fromkeys(choices))


def lengths_from(text: str) -> list[str]:
    """Draft lengths from `1,2,4`, `1-8`, `2-8+2`, `auto` or a mixture.

    Raises:
        SettingsError: A part is none of these or out of range.
    """
    lengths: list[str] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            lengths.append(part.strip())
            continue
        first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
        if first > last or step == 0:
            raise SettingsError(f"--draft-tokens {part} is no range", "give the smaller length first, as in 2-8+2")
        lengths += [str(length) for length in range(first, last + 1, step)]
    lengths = list(dict.fromkeys(lengths))
    for length in lengths:
        try:
            num_draft_tokens, _ = draft_length_from(length)
        except SettingsError as error:
            hint = f"give lengths as in 1,2,4 or 1-8 or 2-8+2, up to {MAX_DRAFT_TOKENS}, or auto"
            raise SettingsError(error.message, hint) from None
        if num_draft_tokens == 0:
            raise SettingsError("--draft-tokens 0: the target alone is always measured", "leave 0 out")
    return lengths


def settings_of(drafts: Sequence[DraftChoice], lengths: Sequence[str]) -> list[Setting]:
    """Every draft with every length."""
    from specgen.bench.results import Setting

    made = []
    for draft in drafts:
        for length in lengths:
            num_draft_tokens, schedule = draft_length_from(length)
            made.append(Setting(draft.kind, draft.key, draft.key, num_draft_tokens, schedule, draft.quant))
    return made


@dataclass(frozen=True, slots=True)
class DraftPlaces:
    """Options all drafts share."""

    dtype: DtypeName
    device: str
    revision: str | None
    offline: bool
    backend: BackendSettings = field(default_factory=BackendSettings)


def draft_pairs(
    baseline: Pair, drafts: Sequence[DraftChoice], places: DraftPlaces, progress: ProgressListener
) -> dict[str, Pair]:
    """A plan for each draft, by its key: files and tokenizers are checked, no weights read.

    Raises:
        LoadError: A draft is missing or damaged.
        PairError: A draft does not share the target's vocabulary.
    """
    pairs = {}
    for draft in drafts:
        if draft.is_lookup:
            pairs[draft.key] = baseline.with_draft("lookup", None, progress)
            continue
        model = ModelSettings(
            draft.name, draft.quant, places.dtype, places.device, places.revision, places.offline, places.backend
        )
        pairs[draft.key] = baseline.with_draft(draft.kind, model, progress)
    return pairs


def on_both_engines(target: ModelSettings, places: DraftPlaces) -> dict[str, tuple[ModelSettings, DraftPlaces]]:
    """A GGUF target on llama.cpp, and unpacked on transformers; drafts in GGUF files run on the engine of the target.

    `--dtype` then concerns what runs beside or on transformers' target, and llama.cpp's options llama.cpp alone.
    """
    native, unpacked = replace(target.backend, name="llama.cpp"), BackendSettings("transformers")
    # A draft that is no GGUF file runs on transformers beside either.
    drafts = replace(places, dtype="auto", backend=replace(native, name="auto"))
    return {
        "llama.cpp": (replace(target, backend=native, dtype="auto"), drafts),
        "transformers": (replace(target, backend=unpacked), replace(places, backend=unpacked)),
    }


def prompts_for(path: Path | None, limit: int | None) -> list[BenchPrompt]:
    """Prompts of a file, or the bundled ones; at most `limit`, of as many categories as that allows.

    Raises:
        PromptError: The file can't be read or holds no prompts.
    """
    from specgen.bench.prompts import bundled_prompts, choose_evenly, parse_prompts

    prompts = bundled_prompts() if path is None else parse_prompts(_read(path), str(path))
    return prompts if limit is None else choose_evenly(prompts, limit)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return decode(read_capped(file, str(path)), str(path))
    except OSError as error:
        raise PromptError(f"can't read the prompts of {path}: {error.strerror or error}") from error
