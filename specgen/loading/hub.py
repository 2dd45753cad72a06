"""A hub id in, a local snapshot folder out. Asks the cache first, so a cached model starts without a network."""

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

from specgen.core.errors import LoadError, ModelFileError, ModelNotFoundError, SpecgenError
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import ModelSettings
from specgen.loading.config_check import has_weights
from specgen.loading.names import hint_for
from specgen.storage.cache import is_disk_full

WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
UNWANTED_FILES = ["*/*", "consolidated*", "*.bin.index.json"]
"""Folders hold ONNX and original weights; `consolidated.safetensors` is Mistral's second copy of all of them."""
PROBE_SECONDS = 1.8
"""For a connection, and as much again for the first byte of an answer."""


def fetch_snapshot(settings: ModelSettings, progress: ProgressListener = SILENT) -> Path:
    """Find a hub model in the cache, or download it. The folder's name is the commit.

    Raises:
        ModelNotFoundError: No such model, no access, or offline and not cached.
        ModelFileError: The download arrived damaged.
        LoadError: The hub refused or failed, or the disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, revision = settings.name, settings.revision
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": WANTED_FILES, "ignore_patterns": UNWANTED_FILES}
    try:
        cached = Path(snapshot_download(name, local_files_only=True, **wanted))
        # transformers may have left a snapshot with a tokenizer only.
        if has_weights(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ModelNotFoundError(f"{name!r} is no hub id", hint_for(name, "a hub id looks like owner/name")) from error
    if settings.offline or is_offline():
        raise ModelNotFoundError(
            f"{name} is not on this machine, and the hub is switched off (offline)",
            hint_for(name, "leave out --offline and HF_HUB_OFFLINE once to download it"),
        )
    if not _is_reachable():
        raise ModelNotFoundError(
            f"{name} is not on this machine, and {hub_host()} can't be reached",
            hint_for(name, "check the network, or give a folder or a .gguf file that is already here"),
        )
    progress.stage(f"downloading {name}")
    try:
        return Path(snapshot_download(name, tqdm_class=_bar_class(progress), max_workers=4, **wanted))
    except _failures() as error:
        raise _translated(error, name, revision) from error


def is_offline() -> bool:
    """Whether the user's environment switches the hub off."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_host() -> str:
    """The hub's host name, for messages."""
    return urlsplit(_endpoint()).hostname or _endpoint()


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _is_reachable() -> bool:
    """Whether the hub, or the proxy before it, accepts a connection within `PROBE_SECONDS` and then says anything.

    The client itself retries for 26.7 s before it says no, and longer where a connection is accepted and nothing
    follows. A name server that does not answer can't be given a time limit, so the probe runs in a thread that is
    left behind.
    """
    hub = urlsplit(_endpoint())
    proxy = urllib.request.getproxies().get(hub.scheme)
    first = hub
    if proxy and not urllib.request.proxy_bypass(hub.hostname or ""):
        first = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    is_connected, is_done = threading.Event(), threading.Event()
    answers: list[bool] = []

    def probe() -> None:
        try:
            address = first.hostname or "", first.port or _port(first.scheme)
            with socket.create_connection(address, timeout=PROBE_SECONDS) as connection:
                is_connected.set()
                greeting = _greeting(first, hub)
                if greeting:
                    connection.sendall(greeting)
                answers.append(not greeting or bool(connection.recv(1)))
        except (OSError, ValueError):
            answers.append(False)
        finally:
            is_connected.set()
            is_done.set()

    threading.Thread(target=probe, name="specgen-probe", daemon=True).start()
    if is_connected.wait(PROBE_SECONDS):
        is_done.wait(PROBE_SECONDS)
    return answers == [True]


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _greeting(first: SplitResult, hub: SplitResult) -> bytes:
    """What makes the first host on the way answer; nothing for one that speaks neither HTTP nor TLS (SOCKS).

    No token is sent, and no certificate looked at: one byte of an answer is enough, and the download itself checks.
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
    if first is hub:
        request = "HEAD / HTTP/1.1"
    elif hub.scheme == "https":
        host = f"{host}:{hub.port or 443}"
        request = f"CONNECT {host} HTTP/1.1"
    else:
        request = f"HEAD {hub.geturl()} HTTP/1.1"
    return f"{request}\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii")


def _failures() -> tuple[type[Exception], ...]:
    """What a download can raise. The client's HTTP library is httpx, httpx2 or requests, by its version."""
    from huggingface_hub import errors

    named = [getattr(errors, name, OSError) for name in ("HTTPError", "XetDownloadError", "EntryNotFoundError")]
    return (OSError, ValueError, RuntimeError, *named)


def _translated(error: Exception, name: str, revision: str | None) -> SpecgenError:
    """The client's exception as one of ours. Its text is left out: it may quote a request with its headers."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return ModelNotFoundError(
            f"{name} is gated: its owner wants its terms accepted",
            f"accept them at {_endpoint()}/{name}, then run: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFoundError(f"{name} has no revision {revision!r}", "leave out --revision, or name a commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"no model {name} on {hub_host()}, or it is private",
            hint_for(name, "check the name, or run: hf auth login"),
        )
    status = getattr(getattr(_http_error(error), "response", None), "status_code", None)
    if isinstance(status, int):
        return LoadError(f"{hub_host()} refused {name}: HTTP {status}", _status_hint(status))
    if is_disk_full(error):
        return LoadError(
            f"the disk of the hub's cache is full while downloading {name}",
            "free some space, or name another disk in HF_HOME; the download goes on where it stopped",
        )
    if isinstance(error, OSError) and "onsistency check failed" in str(error):
        return ModelFileError(f"the download of {name} arrived damaged", "run again: it is fetched anew")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return ModelNotFoundError(f"{hub_host()} did not answer for {name}", "check the network and run again")
    return LoadError(
        f"the download of {name} broke off ({type(error).__name__})", "run again: it goes on where it stopped"
    )


def _http_error(error: BaseException | None) -> BaseException | None:
    """The error with the hub's answer: the client wraps a 500 into "not in the cache"."""
    while error is not None and getattr(error, "response", None) is None:
        error = error.__cause__
    return error


def _status_hint(status: int) -> str:
    if status == 401:
        return "the hub token is not valid: run hf auth login"
    if status == 403:
        return "the hub token gives no access to this model: ask its owner, or run hf auth login"
    if status == 429:
        return "too many requests: wait some minutes, or run hf auth login for a higher limit"
    if status >= 500:
        return "the hub has trouble: try again in some minutes"
    return "check the name and the revision"


def _bar_class(progress: ProgressListener) -> type[Any]:
    """A progress bar that draws nothing and reports the bytes of the bar that is furthest."""
    # By name, for tqdm has no types: a subclass of Any is what it is here anyway.
    base: Any = importlib.import_module("tqdm.std").tqdm

    class ReportingBar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            self.done = kwargs.get("initial") or 0
            kwargs.pop("name", None)  # older clients hand on what tqdm refuses
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.done += n or 0
            if self.counts_bytes:
                progress.bytes(int(self.done), int(self.total) if self.total else None)

    return ReportingBar
