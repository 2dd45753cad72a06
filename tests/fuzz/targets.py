"""What is fuzzed: for each target a maker of inputs, near whole ones and far from them, and the promise to check."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specgen.core.errors import ModelFileError
from specgen.loading.gguf.header import scan_gguf
from specgen.render.sanitize import one_line, sanitize
from specgen.storage.transcript import ChatMessage, SavedModel, Transcript, TranscriptError, from_json, to_json
from tests.loading.builders import array, gguf, pair, tensor, text

MAX_SECONDS = 1.0
"""Processor time of one input, so that a machine that does other work as well is no finding."""
MAX_BYTES = 50 * 2**20
"""What the scan of one input may hold at once. Counted by Python's allocator: the process's own peak (ru_maxrss) shows
only growth beyond everything that ran before."""
EXTREMES = (0, 1, 2, 7, 8, 9, 12, 13, 255, 2**16, 2**28, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


def mutate(source: random.Random, data: bytes) -> bytes:
    """A few damages: bytes flipped, cut, doubled, replaced by numbers that parsers get wrong."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 3, 8))):
        at = source.randrange(len(changed) + 1)
        match source.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = changed[at : at + source.randrange(1, 64)]
            case 3:
                changed[at : at + 8] = struct.pack("<Q", source.choice(EXTREMES))
            case 4:
                changed[at : at + 4] = struct.pack("<I", source.choice(EXTREMES) & 0xFFFFFFFF)
            case _:
                changed[at : at + source.randrange(16)] = source.randbytes(source.randrange(16))
    return bytes(changed)


# --- The GGUF scan ----------------------------------------------------------------------------------------------------

_FOLDER = Path(tempfile.gettempdir())


def make_gguf_bytes(source: random.Random) -> bytes:
    """A file of random keys and tensors, whole or damaged; sometimes noise behind the magic."""
    if source.random() < 0.05:
        return b"GGUF\3\0\0\0" + source.randbytes(source.randrange(400))
    pairs = [pair("general.architecture", 8, text("llama"))]
    for number in range(source.randrange(6)):
        kind = source.randrange(14)
        value = text("x" * source.randrange(20)) if kind == 8 else source.randbytes(source.randrange(12))
        if kind == 9:
            value = array(source.randrange(14), source.choice((0, 1, 3, *EXTREMES[-6:])), source.randbytes(24))
        pairs.append(pair(f"key.{source.choice((number, 0))}", kind, value))
    tensors = [
        tensor(
            f"t{source.choice((number, 0))}",
            [source.choice((1, 2, 32, *EXTREMES[-6:])) for _ in range(source.randrange(6))],
            source.choice((0, 1, 2, 8, 30, 99)),
            source.choice((0, 32, 64, 2**50)),
        )
        for number in range(source.randrange(4))
    ]
    whole = gguf(pairs, tensors, data=bytes(source.randrange(512)))
    return whole if source.random() < 0.2 else mutate(source, whole)


def check_gguf(data: bytes) -> None:
    """P9: a header or a ModelFileError, at once and in little memory."""
    path = _FOLDER / f"specgen-fuzz-{os.getpid()}.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    started = time.process_time()
    try:
        with contextlib.suppress(ModelFileError):
            scan_gguf(path)
        num_seconds, num_bytes = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        path.unlink()
    assert num_seconds < MAX_SECONDS, "too slow"
    assert num_bytes < MAX_BYTES, "too much memory"


# --- The sanitizer ----------------------------------------------------------------------------------------------------

_ATTACKS = (
    *("\x1b]52;c;ZXZpbA==\x07", "\x1b]8;;http://evil\x1b\\", "\x1bP1$r\x1b\\", "\x1b[6n", "\x1b]0;title\x07"),
    *("\x9b31m", "\x90q", "\u202e", "\u2066", "\U000e0041", "\u2028", "\r", "\b", "\x7f", "\x00", "\ud800", "\ufeff"),
    *("👩‍👩‍👧", "नमस्ते", "日本", "e\u0301", "\n", "\t", "plain ", "[red]", ":smile:"),
)


def make_hostile(source: random.Random) -> bytes:
    """Attacks whole, in pieces and shuffled, between any characters at all."""
    parts = []
    for _ in range(source.randrange(1, 12)):
        part = source.choice(_ATTACKS)
        if source.random() < 0.4:
            part = part[: source.randrange(len(part) + 1)]
        if source.random() < 0.4:
            part += chr(source.choice((source.randrange(0x100), source.randrange(0x110000))))
        parts.append(part)
    return "".join(parts).encode("utf-8", "surrogatepass")


def check_sanitizer(data: bytes) -> None:
    """P6: nothing a terminal obeys, idempotent, and the same under any cut."""
    whole = data.decode("utf-8", "surrogatepass")
    for ascii_only in (False, True):
        shown = sanitize(whole, ascii_only=ascii_only)
        assert not any(_acts(character) for character in shown), repr(shown)
        assert sanitize(shown, ascii_only=ascii_only) == shown
        shown.encode()
        for cut in {0, 1, len(whole) // 2, max(len(whole) - 1, 0)}:
            halves = sanitize(whole[:cut], ascii_only=ascii_only) + sanitize(whole[cut:], ascii_only=ascii_only)
            assert halves == shown, cut
    assert not set("\n\t") & set(one_line(whole))


def _acts(character: str) -> bool:
    code = ord(character)
    if character in "\n\t":
        return False
    return (
        code < 0x20
        or 0x7F <= code < 0xA0
        or code in (0x2028, 0x2029, 0x061C, 0x200E, 0x200F)
        or 0x202A <= code <= 0x202E
        or 0x2066 <= code <= 0x2069
        or 0xD800 <= code < 0xE000
        or 0xE0000 <= code <= 0xE007F
    )


# --- The session loader -----------------------------------------------------------------------------------------------


def _json_value(source: random.Random, depth: int = 0) -> Any:
    kinds = ("none", "bool", "int", "float", "text", "list", "dict")
    match source.choice(kinds[: 5 if depth > 2 else 7]):
        case "none":
            return None
        case "bool":
            return source.random() < 0.5
        case "int":
            return source.choice((0, 1, -1, 2, 10**30, *EXTREMES))
        case "float":
            return source.choice((0.5, -1e308, 1e-320, float("inf"), float("nan")))
        case "text":
            return source.choice(("", "user", "assistant", "system", "\x1b[31m", "\ud800", "x" * 300))
        case "list":
            return [_json_value(source, depth + 1) for _ in range(source.randrange(4))]
        case _:
            return {source.choice(_NAMES): _json_value(source, depth + 1) for _ in range(source.randrange(4))}


_SESSION = Transcript(
    (ChatMessage("user", "hello"), ChatMessage("assistant", "reply", "thought", True, {"num_tokens": 3})),
    "Be brief.",
    SavedModel("toy"),
    "model",
    SavedModel("draft"),
    {"temperature": 0.5},
    "2026-01-01T00:00:00+00:00",
)
_WHOLE = to_json(_SESSION)
_NAMES = (*json.loads(_WHOLE), "role", "content", "thinking", "name", "revision", "unknown")


def _replace_somewhere(source: random.Random, value: Any) -> Any:
    if isinstance(value, (dict, list)) and value and source.random() < 0.8:
        key = source.choice(list(value)) if isinstance(value, dict) else source.randrange(len(value))
        if source.random() < 0.15:
            del value[key]
        else:
            value[key] = _replace_somewhere(source, value[key])
        return value
    return _json_value(source)


def make_session(source: random.Random) -> bytes:
    """A saved session with damaged bytes, or with values of other kinds in it."""
    if source.random() < 0.4:
        return mutate(source, _WHOLE)
    document = json.loads(_WHOLE)
    for _ in range(source.choice((1, 1, 2, 4))):
        document = _replace_somewhere(source, document)
    return json.dumps(document).encode()


def check_session(data: bytes) -> None:
    """P8: a session or a TranscriptError; what is read can be written, and read again as the same."""
    try:
        found = from_json(data)
    except TranscriptError:
        return
    assert from_json(to_json(found)) == found


Maker = Callable[[random.Random], bytes]
TARGETS: dict[str, tuple[Maker, Callable[[bytes], None]]] = {
    "gguf": (make_gguf_bytes, check_gguf),
    "sanitizer": (make_hostile, check_sanitizer),
    "session": (make_session, check_session),
}
