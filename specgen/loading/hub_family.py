"""Searches the hub for smaller models of a target's family, by name. Downloads nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from specgen.core.errors import ModelNotFoundError
from specgen.loading.hub import is_offline, is_reachable
from specgen.loading.hub_errors import failures, hub_host, translated

_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z0-9])")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
MAX_LISTED = 200


@dataclass(frozen=True, slots=True)
class FamilyMember:
    """A model of the hub.

    Args:
        name: `owner/name`.
        num_parameters: As its name says.
    """

    name: str
    num_parameters: float


def family_members(name: str, *, offline: bool) -> list[FamilyMember]:
    """Returns models of the same owner whose names differ from a model's in the size only, and that are smaller.

    A name that has no size, or is not that of a hub model, has no family.

    Raises:
        ModelNotFoundError: Downloads are disabled, or the hub can't be reached.
        LoadError: The hub refused or failed.
    """
    size = size_in(name)
    if size is None or not _HUB_NAME.fullmatch(name):
        return []
    if offline or is_offline():
        raise ModelNotFoundError("downloads are disabled (offline)")
    if not is_reachable():
        raise ModelNotFoundError(f"{hub_host()} can't be reached")
    from huggingface_hub import HfApi

    owner, model = name.split("/")
    match = _SIZE.search(model)
    assert match is not None, "it has a size"
    before, after = model[: match.start()], model[match.end() :]
    try:
        listed = [one.id for one in HfApi().list_models(author=owner, search=before, limit=MAX_LISTED)]
    except failures() as error:
        raise translated(error, name, None) from error
    pattern = re.compile(re.escape(f"{owner}/{before}") + r"\d+(\.\d+)?[BbMm]" + re.escape(after))
    found = [FamilyMember(one, number) for one in listed if pattern.fullmatch(one) and (number := size_in(one))]
    return sorted((one for one in found if one.num_parameters < size), key=lambda one: one.num_parameters)


def size_in(name: str) -> float | None:
    """Returns the number of parameters in a model's name, as in `1.5B` or `135M`; None without one."""
    match = _SIZE.search(name.rpartition("/")[2])
    return None if match is None else float(match[1]) * (1e9 if match[2] in "Bb" else 1e6)
