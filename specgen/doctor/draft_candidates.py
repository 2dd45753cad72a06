"""Finds models that could draft for a target: on this machine, in given folders, and on the hub. Reads no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from specgen.core.draft_name import MTP_NAME
from specgen.core.errors import SpecgenError
from specgen.core.settings import ModelSettings
from specgen.doctor.draft_forecast import Source
from specgen.loading.draft_head_folder import draft_heads_of, shipped_draft
from specgen.loading.hub_family import FamilyMember, family_members
from specgen.loading.mtp_folder import has_mtp
from specgen.loading.names import known_names
from specgen.loading.resolved_model import ResolvedModel

MAX_IN_FOLDER = 64
"""Models of one given folder that are looked at."""


@dataclass(frozen=True, slots=True)
class DraftCandidate:
    """A model that could draft.

    Args:
        draft: The value of `--draft`.
        source: Where it was found.
        on_hub: What the hub says of a model that is not on this machine.
    """

    draft: str
    source: Source
    on_hub: FamilyMember | None = None


def find_candidates(target: ResolvedModel, given: Sequence[str]) -> tuple[list[DraftCandidate], list[str]]:
    """Returns all candidates but the target itself, each once, and notices about places that could not be searched.

    Args:
        given: Names of models, and folders that contain model folders or .gguf files.
    """
    candidates = [DraftCandidate("lookup", "lookup")]
    if target.fits_own_decoder and shipped_draft(target, target.settings) is not None:
        candidates.append(DraftCandidate("auto", "draft head"))
    if has_mtp(target):
        candidates.append(DraftCandidate(MTP_NAME, "draft head"))
    own = target.settings.name or target.name
    # A given target may draft for itself in another format.
    candidates += [DraftCandidate(name, "given") for word in given for name in _expanded(word, without=own)]
    if target.fits_own_decoder:
        candidates += [DraftCandidate(name, "draft head") for name in _draft_heads(target)]
    cached = [name for name in known_names() if name not in (own, target.name)]
    candidates += [DraftCandidate(name, "cache") for name in cached]
    notices = []
    try:
        members = family_members(own, offline=target.settings.offline)
        candidates += [DraftCandidate(one.name, "hub", one) for one in members if one.name not in cached]
    except SpecgenError as error:
        notices.append(f"the hub was not searched: {error.message}")
    return list({_identity(one): one for one in reversed(candidates)}.values())[::-1], notices


def as_draft(candidate: DraftCandidate, like: ModelSettings) -> ModelSettings:
    """Returns how to load a candidate: like the options say, and without a download."""
    return replace(like, offline=like.offline or candidate.source == "cache")


def _expanded(word: str, without: str) -> Iterator[str]:
    """Returns the models in a folder of models, apart from one; any other name as it is."""
    path, left_out = Path(word).expanduser(), Path(without).expanduser().resolve()
    if not path.is_dir() or (path / "config.json").exists():
        yield word
        return
    found = [config.parent for config in path.glob("*/config.json")] + list(path.glob("*.gguf"))
    yield from sorted(str(one) for one in found if one.resolve() != left_out)[:MAX_IN_FOLDER]


def _draft_heads(target: ResolvedModel) -> Iterator[str]:
    """Returns the draft heads for this target in the working folder and next to the target: `distill` writes there."""
    places = [Path(), *([target.path.parent] if target.files.path == Path(target.settings.name) else [])]
    for place in places:
        folders = sorted(config.parent for config in place.glob("*/config.json"))
        yield from (str(one.path) for one in draft_heads_of(target, folders[:MAX_IN_FOLDER], target.settings))


def _identity(candidate: DraftCandidate) -> str:
    """Returns what two names of one folder or file have in common."""
    path = Path(candidate.draft).expanduser()
    return str(path.resolve()) if candidate.source in ("given", "draft head") and path.exists() else candidate.draft
