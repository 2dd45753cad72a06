"""Checks all parts of a model that is split over several GGUF files, as `llama-gguf-split` writes them.

llama.cpp opens the first part and finds the others by their names, so each is checked like a single file. The first
part has all metadata; later ones have only their tensors.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from specgen.core.errors import ModelFileError
from specgen.core.model_files import listed
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.gguf.metadata import GgufHeader

MAX_PARTS = 1000
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def scan_parts(path: Path, header: GgufHeader) -> GgufHeader:
    """Returns the header of the whole model; reads and checks the other parts, if there are any.

    Args:
        path: The first part, or a file that is not split.
        header: Its header.

    Raises:
        ModelFileError: It is a later part, or another part is missing, damaged or of another model.
    """
    if header.num_parts <= 1:
        return header
    headers = [header, *(_scan_part(part, header, number) for number, part in enumerate(_others(path, header), 1))]
    largest = max(headers, key=lambda part: part.num_parameters)
    return replace(
        header,
        quantization=largest.quantization,
        num_parameters=sum(part.num_parameters for part in headers),
        num_weight_bytes=sum(part.num_weight_bytes for part in headers),
        num_cache_values=sum(part.num_cache_values for part in headers),
        state_layers=frozenset().union(*(part.state_layers for part in headers)),
        vocab_rows=next((part.vocab_rows for part in headers if part.vocab_rows is not None), None),
    )


def first_part(path: Path) -> Path | None:
    """Returns the name of the first part, by the name of another one; None if the name is not that of a part."""
    match = _NAME.fullmatch(path.name)
    return path.with_name(f"{match[1]}-00001-of-{match[3]}.gguf") if match else None


def _others(path: Path, header: GgufHeader) -> list[Path]:
    first = first_part(path)
    if header.part != 0:
        hint = f"give the first one: {first}" if first else "give the first one"
        raise ModelFileError(f"{path} is part {header.part + 1} of {header.num_parts} of a model", hint)
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[2]) != 1 or int(match[3]) != header.num_parts or header.num_parts > MAX_PARTS:
        raise ModelFileError(
            f"{path} is the first of {header.num_parts} parts of a model, but its name doesn't say so",
            f"llama.cpp finds the others by their names: rename it to NAME-00001-of-{header.num_parts:05}.gguf",
        )
    others = [path.with_name(f"{match[1]}-{n:05}-of-{match[3]}.gguf") for n in range(2, header.num_parts + 1)]
    if missing := [part.name for part in others if not part.exists()]:
        raise ModelFileError(
            f"incomplete: of the {header.num_parts} parts of {path}, {listed(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            "download the other parts into the same folder",
        )
    return others


def _scan_part(path: Path, first: GgufHeader, number: int) -> GgufHeader:
    header = scan_gguf(path)
    if (header.part, header.num_parts) != (number, first.num_parts):
        raise ModelFileError(
            f"{path} says it is part {header.part + 1} of {header.num_parts}, not {number + 1} of {first.num_parts}",
            "download it again",
        )
    return header
