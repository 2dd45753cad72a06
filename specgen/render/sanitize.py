"""Makes untrusted text safe for a terminal: model output, names and messages of other programs, user input.

Each character is mapped on its own, so `sanitize(a + b) == sanitize(a) + sanitize(b)`. A rule about whole escape
sequences would miss one that is split over two tokens, or over accepted and rejected text.
"""

from __future__ import annotations

from collections.abc import Iterator


def _ranges() -> Iterator[tuple[int, int]]:
    yield 0x00, 0x08  # C0 except tab and newline; after a carriage return text would overwrite earlier text
    yield 0x0B, 0x1F
    yield 0x7F, 0x9F  # DEL and C1: 0x9B is a one-character CSI
    yield 0x061C, 0x061C  # bidi marks, embeddings, overrides and isolates reorder the text that is read
    yield 0x200E, 0x200F
    yield 0x2028, 0x202E  # line and paragraph separator, then bidi
    yield 0x2066, 0x2069
    yield 0xD800, 0xDFFF  # lone surrogates can't be encoded
    yield 0xFEFF, 0xFEFF
    yield 0xE0000, 0xE007F  # tags: invisible text


UNSAFE: tuple[int, ...] = tuple(code for first, last in _ranges() for code in range(first, last + 1))
"""Code points that never reach a terminal. Joiners and variation selectors are allowed: emoji, Indic and Persian text
need them, and terminals do not act on them."""


def _escape(code: int) -> str:
    """Returns the character in Python's notation: `\\x1b`, `\\u202e`, `\\U000e0041`."""
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"<U+{code:04X}>"


_PICTURES = {code: _picture(code) for code in UNSAFE}
_ESCAPES = {code: _escape(code) for code in UNSAFE}


def sanitize(text: str, *, ascii_only: bool = False) -> str:
    """Makes every unsafe character visible, as `␛` or in ASCII as `\\x1b`; keeps newline, tab and printable characters.

    The result can be encoded as UTF-8; safe text is unchanged. The text may be a chunk of any size.
    """
    return text.translate(_ESCAPES if ascii_only else _PICTURES)


def one_line(text: str, *, ascii_only: bool = False) -> str:
    """Sanitizes names and messages, with newlines and tabs as spaces, so that each stays on one line."""
    return sanitize(text.replace("\r\n", " ").replace("\n", " ").replace("\t", " ").strip(), ascii_only=ascii_only)
