"""Writes documents as strict JSON that is safe on a terminal."""

from __future__ import annotations

import json
import math
from typing import Any

from specgen.render.sanitize import UNSAFE

Document = dict[str, Any]


def _json_escape(code: int) -> str:
    units = chr(code).encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


# JSON escapes C0 itself; the others would reach a terminal unchanged. After `json.dumps` they occur in strings only.
_ESCAPES = {code: _json_escape(code) for code in UNSAFE if code >= 0x20}


def dumps(document: Document) -> str:
    """Returns one line of strict JSON, without control or bidi characters; NaN and infinity become null."""
    text = json.dumps(_finite(document), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
