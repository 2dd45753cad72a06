#!/usr/bin/env python3
"""Makes the README's picture: runs specgen on a terminal of its own, and draws what the terminal showed at the end.

    python .readme/picture.py .readme/generate.svg -- generate -t TARGET -d DRAFT "PROMPT"

Run it alone on the machine: the figures in the picture are those of this run.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, LINES = 96, 60


def run_on_terminal(arguments: list[str]) -> pyte.Screen:
    """The terminal after `specgen ARGUMENTS` has ended."""
    terminal, end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-m", "specgen", *arguments],
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(LINES)},
        stdin=end,
        stdout=end,
        stderr=end,
    )
    os.close(end)
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux ends a terminal nobody holds any more with an error
            break
        if not data:
            break
        stream.feed(data)
    if child.wait():
        sys.exit("\n".join(line.rstrip() for line in screen.display).rstrip() + f"\nended with {child.returncode}")
    return screen


def line_of(screen: pyte.Screen, row: int) -> Text:
    """A row of the terminal, with its styles."""
    text = Text(no_wrap=True)
    for column in range(COLUMNS):
        cell = screen.buffer[row][column]
        color = None if cell.fg == "default" else {"brown": "yellow"}.get(cell.fg, cell.fg)
        style = Style(color=color, bold=cell.bold, underline=cell.underscore, strike=cell.strikethrough)
        text.append(cell.data, style)
    text.rstrip()
    return text


def draw(command: str, screen: pyte.Screen) -> str:
    """The picture, whose fonts come from the reader's own machine."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text(f"$ {command}", "bold"), no_wrap=False)
    lines = [line_of(screen, row) for row in range(LINES)]
    while lines and not lines[-1].plain:
        lines.pop()
    for line in lines:
        console.print(line, soft_wrap=True)
    svg = console.export_svg(title="specgen", unique_id="specgen")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("arguments", nargs="+")
    given = parser.parse_args()
    screen = run_on_terminal(given.arguments)
    with open(given.file, "w", encoding="utf-8") as file:
        file.write(draw("specgen " + shlex.join(given.arguments), screen))


if __name__ == "__main__":
    main()
