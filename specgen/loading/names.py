"""Decides what a model's name refers to: the built-in model, a file or folder, or a hub id, in this order.

Reads file names only; imports no torch.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import unquote, urlsplit

from specgen.core.draft_name import DRAFT_WORDS
from specgen.core.errors import ModelFileError, ModelNotFoundError, SettingsError
from specgen.core.model_files import describe_content, is_gguf, open_regular, reason
from specgen.core.settings import ModelSettings, Quantization

BUILT_IN_NAME = "smollm2-135m-instruct"

SHIPPED = Path(__file__).parent.parent / "drafts"
"""Draft heads that come with the package, one folder per target."""

_OLLAMA_NAME = re.compile(r"[A-Za-z0-9][\w.-]*:[A-Za-z0-9][\w.-]*")
_HOSTS = (
    r"(?i:(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/|git@hf\.co:|hf://)(?:models/)?"
    r"(?P<kind>(?:datasets|spaces)/)?)"
)
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB_ID = re.compile(rf"{_PART}(/{_PART})?")
_PASTED_NAME = re.compile(
    rf"(?P<host>{_HOSTS})?(?P<id>{_PART}/{_PART}?)(?:\.git)?"
    r"(?::(?P<tag>[\w.-]+)|@(?P<revision>[\w./-]+))?"
    r"(?:/(?:(?:tree|blob|resolve|raw)/(?P<tree>[^/?#]+))?/?(?P<file>[^?#]*?))?/?(?:[?#].*)?"
)
_MODEL_FILE = re.compile(r".*\.(gguf|safetensors|json|bin)", re.IGNORECASE)

PlaceKind = Literal["built-in", "gguf", "folder", "hub"]


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """What a model's name refers to.

    Args:
        kind: `built-in`, `gguf` (a file), `folder`, or `hub`.
        path: The file or folder; None for the built-in model and the hub.
        revision: Branch, tag or commit that is part of the name of a hub model.
    """

    kind: PlaceKind
    name: str
    path: Path | None = None
    revision: str | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether its weights come from a GGUF, which is already quantized."""
        return self.kind in ("built-in", "gguf")


@dataclass(frozen=True, slots=True)
class _HubName:
    """The parts of a hub name or address.

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


def find_place(settings: ModelSettings) -> ModelPlace:
    """Decides what a model's name refers to. Never blocks, and uses no network.

    Raises:
        ModelNotFoundError: The name is a path to a missing file.
        ModelFileError: The file can't be a model.
        SettingsError: A weight format is requested for a GGUF, which is already quantized.
    """
    place = _place(settings.name)
    if place.is_gguf and settings.quant not in ("auto", "none"):
        raise SettingsError(
            f"--quant {settings.quant} can't be applied to {place.name}: a GGUF is already quantized",
            "omit --quant, or use a safetensors model",
        )
    return place


def _place(name: str) -> ModelPlace:
    if name.strip() == "" or name.lower() == BUILT_IN_NAME:
        return ModelPlace("built-in", BUILT_IN_NAME)
    if "\0" in name:
        raise SettingsError(f"invalid model name {name!r}: it contains a NUL character")
    if name.startswith("file://"):
        name = unquote(urlsplit(name).path)
    path = Path(os.path.expanduser(name))  # Path.expanduser() raises for an unknown user's home
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if os.path.islink(path):  # Path.is_symlink() raises for a name that is too long
            raise ModelFileError(
                f"{name} is a link to {os.readlink(path)}, which can't be followed: {reason(error)}"
            ) from error
        if (format_ := name.rpartition(":")[2]) in get_args(Quantization) and format_ != name:
            options = f"--draft-quant {format_}, or --quant {format_} for the target"
            raise ModelNotFoundError(
                f"no model at {name}: only bench takes a weight format after the name of a draft",
                f"give it as {options}",
            ) from error
        if (found := _read_hub_name(name)) is not None and found.id != name:
            return _hub_place(found, name)
        # `models/llama` may be a hub id, too; if the hub does not know it, the error lists similar local names.
        if name.lower().endswith(".gguf") or not _HUB_ID.fullmatch(name):
            if "://" in name or name.startswith("ollama "):
                hint = "download the model's file and give its path; only addresses of the hub are downloaded"
                raise ModelNotFoundError(f"{name} is not a name of a model, nor an address of the hub", hint) from error
            near = near_names(path)
            otherwise = "use a hub id, a .gguf file or a folder with safetensors"
            if _OLLAMA_NAME.fullmatch(name):
                otherwise = f"Ollama shows the file of its model after FROM: ollama show --modelfile {name}"
            hint = f"did you mean {' or '.join(near)}?" if near else otherwise
            raise ModelNotFoundError(f"no model at {name}: {reason(error)}", hint) from error
        return ModelPlace("hub", name)
    if stat.S_ISDIR(mode):
        own = path.resolve().name or name
        # The folder of a shipped draft has its target's name, and banners show both names.
        return ModelPlace("folder", f"{own}-draft" if path.parent == SHIPPED else own, path)
    if not stat.S_ISREG(mode):
        raise ModelFileError(
            f"{name} is neither a file nor a folder", "use a .gguf file or a folder with config.json and safetensors"
        )
    return _file(name, path)


def _read_hub_name(name: str) -> _HubName | None:
    """Reads the name of a hub model as people paste it; returns None for any other text.

    Paths that begin with `/`, `.` or `~` never are. Addresses may begin with HF_ENDPOINT.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") + "/"
    name = name.strip()
    if "://" in endpoint and name.startswith(endpoint):
        name = "hf://" + name.removeprefix(endpoint)
    match = _PASTED_NAME.fullmatch(name)
    if match is None:
        return None
    file = match["file"] or None
    # `a/b/c` is a path unless it ends like a file of a model; below an address it may be anything.
    if file is not None and not match["host"] and not _MODEL_FILE.fullmatch(file):
        return None
    return _HubName(match["id"], match["revision"] or match["tree"], match["tag"], file, match["kind"] is None)


def _hub_place(found: _HubName, name: str) -> ModelPlace:
    """Returns the place of a pasted name.

    Raises:
        ModelNotFoundError: It names a GGUF file, which is not downloaded, or no model.
    """
    if not found.is_model:
        raise ModelNotFoundError(f"{name} is a data set or a space, not a model", "use the hub id of a model")
    is_gguf_file = found.file is not None and found.file.lower().endswith(".gguf")
    if found.tag or is_gguf_file:
        what = found.file if is_gguf_file else f'--include "*{found.tag}*.gguf"'
        revision = f" --revision {found.revision}" if found.revision else ""
        raise ModelNotFoundError(
            f"{name} is a GGUF file on the hub, which specgen does not download",
            f"download it and give its path: hf download {found.id} {what}{revision} --local-dir .",
        )
    return ModelPlace("hub", found.id, revision=found.revision)


def _file(name: str, path: Path) -> ModelPlace:
    if path.suffix.lower() == ".gguf":
        return ModelPlace("gguf", path.stem, path)
    if is_gguf(path):
        return ModelPlace("gguf", path.name, path)
    with open_regular(path) as file:
        what = describe_content(file.read(64)) or ""
    is_pickle = path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
    if is_pickle and (not what or "pickle" in what):
        raise ModelFileError(f"{name} is a pickle, which can run code: only safetensors and GGUF are read")
    if path.suffix.lower() == ".safetensors" or path.name == "config.json":
        raise ModelFileError(f"{name} is one file of a model", f"use its folder: {path.parent}")
    raise ModelFileError(
        f"{name} is not a .gguf file" + (f" but {what}" if what else ""),
        "use a .gguf file or a folder with safetensors",
    )


def shipped_folders() -> list[Path]:
    """Returns the folders of the draft heads that come with the package."""
    return sorted(path.parent for path in SHIPPED.glob("*/config.json"))


def known_names() -> list[str]:
    """Returns the built-in model and the models in the hub's cache that have a config, as `owner/name`."""
    found = []
    for folder in hub_cache().glob("models--*"):
        if any(os.path.exists(snapshot / "config.json") for snapshot in folder.glob("snapshots/*")):
            found.append("/".join(folder.name.split("--")[1:]))
    return [BUILT_IN_NAME, *sorted(found, key=str.lower)]


def hint_for(name: str, otherwise: str) -> str:
    """Returns a hint for a name that is neither on this machine nor on the hub: similar names, and what else to do.

    Args:
        otherwise: What to do if the name is correct.
    """
    names = near_names(Path(name)) or _close(name, [known for known in known_names() if known != name])
    words = [f"--draft {word}" for word in _close(name, DRAFT_WORDS, cutoff=0.75) if word != name]
    return f"did you mean {' or '.join([*words, *names])}? if not, {otherwise}" if words or names else otherwise


def near_names(path: Path) -> list[str]:
    """Returns files and folders in the same folder whose names are similar, for a hint."""
    try:
        with os.scandir(path.parent) as entries:
            # A folder may hold millions of files; the first thousand are enough for a hint.
            names = [entry.name for _, entry in zip(range(1000), entries, strict=False)]
    except OSError:
        return []
    return [str(path.with_name(found)) for found in _close(path.name, names)]


def _close(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    lower = {one.lower(): one for one in known}
    return [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=2, cutoff=cutoff)]


def hub_cache() -> Path:
    """Finds the cache as huggingface_hub does, whose import would take too long for completion."""
    if chosen := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expanduser(chosen))
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    return Path(os.path.expanduser(home)) / "hub"
