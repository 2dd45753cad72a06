"""Downloads models from the hub. The cache is searched first, so a cached model needs no network."""

from __future__ import annotations

import importlib
import os
import socket
import ssl
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from specgen.core.errors import LoadError, ModelNotFoundError, SettingsError
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import ModelSettings
from specgen.loading.config_check import has_weights
from specgen.loading.draft_head_folder import is_draft_head
from specgen.loading.hub_errors import endpoint, failures, hub_host, translated, without_weights
from specgen.loading.names import hint_for, hub_cache
from specgen.text.tokenizer import has_tokenizer

ALLOW_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
IGNORE_PATTERNS = ["*/*", "consolidated*", "*.bin.index.json"]
"""Subfolders contain ONNX and original weights; `consolidated.safetensors` is Mistral's second copy of the weights."""
PROBE_SECONDS = 1.8
"""Time limit for a connection."""
ANSWER_SECONDS = 10.0
"""Time limit for the first byte of a response, as in the client; HF_HUB_ETAG_TIMEOUT changes it there and here."""


def fetch_snapshot(settings: ModelSettings, progress: ProgressListener = SILENT) -> Path:
    """Returns the folder of a hub model, named after its commit; downloads it if it is not in the cache.

    Raises:
        ModelNotFoundError: The model does not exist, is not accessible, or is not cached while offline.
        ModelFileError: The download is damaged, or the repository has no safetensors.
        LoadError: The hub refused or failed, its certificate or proxy is unusable, or the cache can't be written.
        SettingsError: HF_ENDPOINT is invalid.
    """
    if str(hub_cache()).startswith("~"):  # the client would make a folder named `~` here
        raise LoadError("there is no home folder for the hub's cache", "set HF_HOME or HOME to a folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, revision = settings.name, settings.revision
    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": ALLOW_PATTERNS,
        "ignore_patterns": IGNORE_PATTERNS,
    }
    cached: Path | None = None
    is_complete = True
    try:
        cached = Path(snapshot_download(name, local_files_only=True, **options))
    except LocalEntryNotFoundError as error:
        # The client says so if a file is missing, also one that the model runs without.
        is_complete, cached = False, Path(found) if (found := getattr(error, "snapshot_path", None)) else None
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"invalid hub id {name!r}", hint_for(name, "a hub id looks like owner/name")
        ) from error
    # The snapshot may contain only a tokenizer, or only weights, downloaded by another program.
    if cached is not None and has_weights(cached):
        is_usable = has_tokenizer(cached) or is_draft_head(cached)
        if (is_usable and is_complete) or settings.offline or is_offline() or not _can_connect():
            return cached
    if settings.offline or is_offline():
        raise ModelNotFoundError(
            f"{name} is not on this machine, and downloads are disabled (offline)",
            _unlisted(name) or hint_for(name, "run once without --offline and HF_HUB_OFFLINE to download it"),
        )
    if endpoint() and "://" not in endpoint():
        raise SettingsError(f"invalid HF_ENDPOINT {endpoint()!r}: it has no scheme", f"use https://{endpoint()}")
    if not _can_connect():
        first = _first_host()
        is_proxy = first.netloc != urlsplit(endpoint()).netloc
        through = f" through the proxy {first.netloc.rpartition('@')[2]}" if is_proxy else ""
        check = "HTTPS_PROXY and ALL_PROXY" if is_proxy else "the network"
        raise ModelNotFoundError(
            f"{name} is not on this machine, and {hub_host()} can't be reached{through}",
            _unlisted(name) or hint_for(name, f"check {check}, or use a folder or .gguf file on this machine"),
        )
    progress.stage(f"downloading {name}")
    try:
        snapshot = Path(snapshot_download(name, tqdm_class=_bar_class(progress), max_workers=4, **options))
        if not has_weights(snapshot) and (found := without_weights(_all_files(name, revision), name)) is not None:
            raise found
        return snapshot
    except failures() as error:
        raise translated(error, name, revision) from error


def _unlisted(name: str) -> str | None:
    """Returns a hint if the cache has a model's files under a commit that no branch names, as in a copied cache."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob(f"models--{name.replace('/', '--')}/snapshots/*")
    found = next((folder for folder in sorted(folders) if has_weights(folder)), None)
    return None if found is None else f"the cache has its files, but no branch names them: use --revision {found.name}"


def _can_connect() -> bool:
    """Returns whether the hub is reachable.

    Raises:
        SettingsError: An address in the environment can't be read.
    """
    try:
        if urlsplit(endpoint()).scheme not in ("http", "https"):
            raise ValueError(f"{endpoint()!r} is not an address of a website")
        _ = urlsplit(endpoint()).port, _first_host().port  # raise what the probe would take for a failure
        return is_reachable()
    except ValueError as error:
        hint = "correct or unset it; it may be HF_ENDPOINT, HTTPS_PROXY or ALL_PROXY"
        raise SettingsError(f"invalid address in the environment: {error}", hint) from error


def _all_files(name: str, revision: str | None) -> list[str]:
    """Returns the names of all files of a repository, also of those that are never downloaded."""
    from huggingface_hub import HfApi

    return list(HfApi().list_repo_files(name, revision=revision))


def is_offline() -> bool:
    """Returns whether HF_HUB_OFFLINE disables downloads."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def is_reachable() -> bool:
    """Returns whether the hub, or its proxy, accepts a connection within `PROBE_SECONDS` and then sends a byte.

    The client itself retries for 26.7 s before it fails, and longer if a connection is accepted and no response
    follows. A DNS lookup has no time limit, so the probe runs in a daemon thread.
    """
    hub, first = urlsplit(endpoint()), _first_host()
    is_connected, is_done = threading.Event(), threading.Event()
    answers: list[bool] = []

    def probe() -> None:
        try:
            address = first.hostname or "", first.port or (443 if first.scheme == "https" else 80)
            with socket.create_connection(address, timeout=PROBE_SECONDS) as connection:
                is_connected.set()
                connection.settimeout(_answer_seconds())
                request = _probe_request(first, hub)
                if request:
                    connection.sendall(request)
                answers.append(not request or bool(connection.recv(1)))
        except (OSError, ValueError):
            answers.append(False)
        finally:
            is_connected.set()
            is_done.set()

    threading.Thread(target=probe, name="specgen-probe", daemon=True).start()
    if is_connected.wait(PROBE_SECONDS):
        is_done.wait(_answer_seconds())
    return answers == [True]


def _first_host() -> SplitResult:
    """Returns the address that is connected to: the hub's, or that of a proxy."""
    hub = urlsplit(endpoint())
    proxies = urllib.request.getproxies()
    proxy = proxies.get(hub.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(hub.hostname or ""):
        return hub
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _answer_seconds() -> float:
    given = os.environ.get("HF_HUB_ETAG_TIMEOUT", "")
    return max(ANSWER_SECONDS, float(given)) if given.isdigit() else ANSWER_SECONDS


def _probe_request(first: SplitResult, hub: SplitResult) -> bytes:
    """Returns the bytes that make the first host respond; none for a host that speaks neither HTTP nor TLS (SOCKS).

    No token is sent and no certificate is checked: one byte of a response is enough, and the download checks itself.
    """
    host = hub.hostname or ""
    if first.scheme == "https":
        arrived, hello = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(arrived, hello, server_hostname=first.hostname)
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        return hello.read()
    if first.scheme != "http":
        return b""
    if first == hub:
        request = "HEAD / HTTP/1.1"
    elif hub.scheme == "https":
        host = f"{host}:{hub.port or 443}"
        request = f"CONNECT {host} HTTP/1.1"
    else:
        request = f"HEAD {hub.geturl()} HTTP/1.1"
    return f"{request}\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii")


def _bar_class(progress: ProgressListener) -> type[Any]:
    """Returns a tqdm class that draws nothing and reports downloaded bytes."""
    # tqdm has no type annotations, so the base class is Any.
    base: Any = importlib.import_module("tqdm.std").tqdm

    class ReportingBar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            self.done = kwargs.get("initial") or 0
            kwargs.pop("name", None)  # older clients pass an argument that tqdm rejects
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.done += n or 0
            if self.counts_bytes:
                progress.bytes(int(self.done), int(self.total) if self.total else None)

    return ReportingBar
