"""Reads the names of hub models as people paste them: addresses, quantizations, revisions and files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_HOSTS = (
    r"(?i:(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/|git@hf\.co:|hf://)(?:models/)?"
    r"(?P<kind>(?:datasets|spaces)/)?)"
)
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(
    rf"(?P<host>{_HOSTS})?(?P<id>{_PART}/{_PART}?)(?:\.git)?"
    r"(?::(?P<tag>[\w.-]+)|@(?P<revision>[\w./-]+))?"
    r"(?:/(?:(?:tree|blob|resolve|raw)/(?P<tree>[^/?#]+))?/?(?P<file>[^?#]*?))?/?(?:[?#].*)?"
)
_FILE = re.compile(r".*\.(gguf|safetensors|json|bin)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HubName:
    """What a pasted name says.

    Args:
        id: `owner/name`.
        revision: Branch, tag or commit.
        tag: A quantization, as in `owner/name:Q4_K_M`.
        file: A file of the repository.
        is_model: Not a data set or a space.
    """

    id: str
    revision: str | None = None
    tag: str | None = None
    file: str | None = None
    is_model: bool = True


def read_hub_name(name: str) -> HubName | None:
    """Reads a name; None if it is not one of the hub. Paths that begin with `/`, `.` or `~` never are.

    Addresses may begin with HF_ENDPOINT.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") + "/"
    name = name.strip()
    if "://" in endpoint and name.startswith(endpoint):
        name = "hf://" + name.removeprefix(endpoint)
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    file = match["file"] or None
    # `a/b/c` is a path unless it ends like a file of a model; below an address it may be anything.
    if file is not None and not match["host"] and not _FILE.fullmatch(file):
        return None
    return HubName(match["id"], match["revision"] or match["tree"], match["tag"], file, match["kind"] is None)
