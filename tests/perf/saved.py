"""Saves runs after every prompt, and loads them to continue an interrupted comparison."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from specgen.core.metrics import Counts
from tests.perf.modes import Mode, Run

FREE = {"json", "resume", "minutes"}
"""Arguments that may differ when a comparison continues."""


def write(path: Path, arguments: Mapping[str, Any], target: Mapping[str, Any], modes: Sequence[Mode]) -> None:
    """Replaces the file atomically."""
    document = {
        "environment": {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()},
        "target": target,
        "arguments": arguments,
        "modes": [mode.name for mode in modes],
        "runs": [asdict(run) for mode in modes for run in mode.runs],
    }
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(document))
    os.replace(part, path)


def read(path: Path, arguments: Mapping[str, Any], modes: Sequence[Mode]) -> int:
    """Loads the runs of an earlier comparison into the modes, without the costs that `-k auto` had learned.

    Returns:
        Number of finished turns.

    Raises:
        SystemExit: The file was made with other arguments.
    """
    if not path.exists():
        return 0
    document = json.loads(path.read_text())
    before = {name: value for name, value in document["arguments"].items() if name not in FREE}
    now = {name: value for name, value in json.loads(json.dumps(arguments)).items() if name not in FREE}
    if before != now or document["modes"] != [mode.name for mode in modes]:
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        raise SystemExit(f"{path} was made with other arguments ({', '.join(changed) or 'other modes'})")
    for mode in modes:
        runs = [Run(**saved) for saved in document["runs"] if saved["mode"] == mode.name]
        for run in runs:
            run.counts = None if run.counts is None else Counts(**run.counts)  # type: ignore[arg-type]
        mode.runs = sorted(runs, key=lambda run: run.turn)
    return min(len(mode.runs) for mode in modes)
