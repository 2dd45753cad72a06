"""Notes the commit in wheels and source archives, so that `specgen --version` can tell it; see `specgen.origin`."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NOTE = "specgen/commit.txt"


class CommitNote(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # An editable install asks git each time; a wheel made from a source archive takes over the archive's note.
        if version == "editable" or not (Path(self.root) / ".git").exists():
            return
        command = ["git", "-C", self.root, "rev-parse", "--short=12", "HEAD"]
        try:
            commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return  # no git, or an owner it does not trust: the version alone then
        handle, self.note = tempfile.mkstemp()
        with os.fdopen(handle, "w") as file:
            file.write(commit + "\n")
        os.chmod(self.note, 0o644)
        build_data["force_include"][self.note] = NOTE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if note := getattr(self, "note", None):
            os.unlink(note)
