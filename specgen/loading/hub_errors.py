"""Converts what the hub's client raises into errors with a cause and a remedy."""

from __future__ import annotations

import errno
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from specgen.core.errors import LoadError, ModelFileError, ModelNotFoundError, SpecgenError
from specgen.core.model_files import listed, reason
from specgen.loading.names import hint_for, hub_cache
from specgen.storage.folders import is_disk_full

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


def endpoint() -> str:
    """Returns the address of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def hub_host() -> str:
    """Returns the hub's host name, for messages."""
    return urlsplit(endpoint()).hostname or endpoint()


def failures() -> tuple[type[Exception], ...]:
    """Returns what a download can raise; the client uses httpx, httpx2 or requests, depending on its version."""
    from huggingface_hub import errors

    named = [getattr(errors, name, OSError) for name in ("HTTPError", "XetDownloadError", "EntryNotFoundError")]
    return (OSError, ValueError, RuntimeError, ImportError, *named)  # ImportError: a SOCKS proxy


def translated(error: Exception, name: str, revision: str | None) -> SpecgenError:
    """Converts the client's exception. Its text is omitted, because it may quote a request with its headers."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return ModelNotFoundError(
            f"{name} is gated: its terms must be accepted first",
            f"accept them at {endpoint()}/{name}, then run: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFoundError(f"{name} has no revision {revision!r}", "omit --revision, or use a commit hash")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"no model {name} on {hub_host()}, or it is private",
            hint_for(name, "check the name, or run: hf auth login"),
        )
    causes = list(_causes(error))
    statuses = [getattr(getattr(cause, "response", None), "status_code", None) for cause in causes]
    status = next((status for status in statuses if isinstance(status, int)), None)
    if status is not None:  # the client wraps a 500 into "not cached"
        return LoadError(f"{hub_host()} refused {name}: HTTP {status}", _status_hint(status))
    if is_disk_full(error):
        return LoadError(
            f"the disk of the hub's cache is full while downloading {name}",
            "free some space, or set HF_HOME to another disk; the download continues where it stopped",
        )
    if (found := _bundle_error(causes) or _connection_error(causes) or _cache_error(causes)) is not None:
        return found
    if isinstance(error, OSError) and "onsistency check failed" in str(error):
        return ModelFileError(f"the download of {name} is damaged", "run again to download it again")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return ModelNotFoundError(f"{hub_host()} did not answer for {name}", "check the network and run again")
    return LoadError(
        f"the download of {name} failed ({type(error).__name__})", "run again: it continues where it stopped"
    )


def without_weights(files: list[str], name: str) -> ModelFileError | None:
    """Returns the error for a repository without safetensors that can be read; None if it has some.

    Args:
        files: All files of the repository.
    """
    if any(file.endswith(".safetensors") and "/" not in file for file in files):
        return None
    if ggufs := sorted(file for file in files if file.lower().endswith(".gguf")):
        return ModelFileError(
            f"{name} has only GGUF files: {listed(ggufs)}",
            f"download one and give its path: hf download {name} {ggufs[0]} --local-dir .",
        )
    if pickles := sorted(file for file in files if file.endswith(_PICKLES)):
        return ModelFileError(
            f"{name} has its weights in {pickles[0]}, which can run code: only safetensors and GGUF are read",
            "look for a safetensors version of the model",
        )
    return None


def _connection_error(causes: list[BaseException]) -> LoadError | None:
    for cause in causes:
        text = str(cause)
        if isinstance(cause, UnicodeEncodeError):
            return LoadError(
                "the token for the hub contains a character that is not ASCII", "correct it, or run: hf auth login"
            )
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in text:
            why = getattr(cause, "verify_message", "") or "it is not signed by a known authority"
            return LoadError(
                f"the certificate of {hub_host()} can't be verified: {why}",
                "if a proxy signs the connections of your network, set SSL_CERT_FILE to a file with its certificate",
            )
        if "SOCKS" in text and (isinstance(cause, ImportError) or "Missing dependencies" in text):
            package = "socksio" if "socksio" in text else "pysocks"
            return LoadError(
                f"the proxy is a SOCKS proxy, which needs the package {package}", f"install it: pip install {package}"
            )
        if isinstance(cause, ValueError) and re.search(r"scheme.*proxy|proxy.*scheme", text, re.IGNORECASE):
            return LoadError(
                "the address of the proxy has an unknown scheme",
                "use http, https or socks5 in HTTPS_PROXY or ALL_PROXY",
            )
    return None


def _bundle_error(causes: list[BaseException]) -> LoadError | None:
    """Returns the error for a file of certificates that the client could not read; its own error has no name."""
    path = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR") or ""
    is_missing = path and not os.path.exists(path) and any(isinstance(cause, FileNotFoundError) for cause in causes)
    if is_missing or (path and any(getattr(cause, "library", "") == "X509" for cause in causes)):
        what = "is missing" if is_missing else "holds no certificate that can be read"
        return LoadError(f"{path} {what}", "correct SSL_CERT_FILE or SSL_CERT_DIR, or unset it")
    return None


def _cache_error(causes: list[BaseException]) -> LoadError | None:
    for cause in causes:
        if not isinstance(cause, OSError):
            continue
        # Folders below /proc, and some of FUSE, refuse a new file as if its folder were missing.
        folder = hub_cache()
        is_in_cache = isinstance(cause.filename, str) and (
            cause.filename.startswith(str(folder)) or Path(cause.filename) in folder.parents
        )
        if cause.errno in _NOT_WRITABLE or is_in_cache:
            return LoadError(
                f"can't write to the hub's cache {hub_cache()}: {reason(cause)}",
                "set HF_HOME to a folder that you can write to",
            )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status_hint(status: int) -> str:
    hints = {
        401: "invalid hub token: run hf auth login",
        403: "the hub token gives no access to this model: ask its owner, or run hf auth login",
        429: "too many requests: wait some minutes, or run hf auth login for a higher limit",
    }
    other = "the hub has a problem: try again in some minutes" if status >= 500 else "check the name and the revision"
    return hints.get(status, other)
