"""Packs what a machine with a GPU may lack into a folder: pure Python wheels, and bitsandbytes for one version of CUDA.

    python -m tests.gpu.prepare [--cuda 130] [--to .gpu]

Run it once, on a machine with internet access. The folder takes about 20 MB and is not put under git. Send it with the
repository, another 20 MB; on the other machine, which needs what `EXPECTED` lists, run `tests/gpu/run.sh`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

PURE = ("transformers", "gguf", "platformdirs", "prompt-toolkit", "wcwidth", "filelock", "rich")
"""Of the versions of this environment."""
FOR_TESTS = ("pytest", "pytest-timeout", "iniconfig", "pluggy")
EXPECTED = (
    *("torch", "numpy", "scipy", "tokenizers", "safetensors", "huggingface-hub", "accelerate", "jinja2", "typer"),
    *("hypothesis", "requests", "regex"),
)
"""What the other machine must have, with what these require. bitsandbytes is packed, too."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MAX_BYTES = 64 * 2**20
"""What a transfer may take, with the repository."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Packs. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.prepare", description=__doc__.partition("\n")[0])
    parser.add_argument("--cuda", default="130", help="CUDA version of the other machine's torch [default 130]")
    parser.add_argument("--to", type=Path, default=Path(".gpu"), help="folder, replaced [default .gpu]")
    options = parser.parse_args(arguments)
    shutil.rmtree(options.to, ignore_errors=True)
    wheels = options.to / "wheels"
    wheels.mkdir(parents=True)
    _download([*PURE, *FOR_TESTS], wheels)
    with tempfile.TemporaryDirectory() as folder:
        _download(["bitsandbytes"], Path(folder))
        (wheel,) = Path(folder).glob("bitsandbytes-*.whl")
        unpack_bitsandbytes(wheel, options.to / "bitsandbytes", options.cuda)
    exclude(options.to)
    packed, repository = (
        sum(path.stat().st_size for path in paths if path.is_file()) for paths in (options.to.rglob("*"), tracked())
    )
    print(f"{options.to}: {packed / 1e6:.0f} MB, the repository: {repository / 1e6:.0f} MB")
    if packed + repository <= MAX_BYTES:
        return 0
    print(f"together more than {MAX_BYTES / 2**20:.0f} MiB", file=sys.stderr)
    return 1


def _download(names: Sequence[str], folder: Path) -> None:
    """Downloads wheels for Linux, of the versions that are installed here, without what they depend on."""
    wanted = [f"{name}=={metadata.version(name)}" for name in names]
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run([*pip, "--python-version", "3.12", "--implementation", "cp", *platforms, *wanted], check=True)


def unpack_bitsandbytes(wheel: Path, folder: Path, cuda: str) -> None:
    """Unpacks bitsandbytes with the library for one version of CUDA, and its metadata, which transformers asks for."""
    library = f"libbitsandbytes_cuda{cuda}.so"
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith(".so") or name.endswith(f"/{library}")]
        if not any(name.endswith(".so") for name in names):
            raise SystemExit(f"{wheel.name} has no {library}")
        archive.extractall(folder, names)


def tracked() -> list[Path]:
    """Returns the files under git in the working folder; none outside of a repository."""
    found = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True)
    return [Path(name) for name in found.stdout.split("\0") if name]


def exclude(folder: Path) -> None:
    """Hides the folder from git, on this machine only."""
    found = subprocess.run(["git", "rev-parse", "--git-path", "info/exclude"], capture_output=True, text=True)
    if found.returncode:
        return  # not a git repository
    path, line = Path(found.stdout.strip()), f"/{folder.name}/"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    if line not in lines:
        path.write_text("\n".join([*lines, line, ""]))


if __name__ == "__main__":
    sys.exit(main())
