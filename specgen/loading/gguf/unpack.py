"""Unpacks the weights of a GGUF file into safetensors, for the families that specgen's decoder runs.

Names of tensors come from the `gguf` package's own table, values from its `dequantize`. What the makers of GGUF files
change on the way is undone here: the order of rotated rows (Llama), and 1 added to norms (Gemma).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from torch import Tensor

from specgen.core.errors import ModelFileError, NumericalError
from specgen.loading.config_reader import UnsupportedConfig
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.gguf.contents import GgufContents, GgufTensor, read_contents
from specgen.loading.gguf.float_values import PIECE_VALUES, float_pieces, float_values
from specgen.loading.gguf.model_config import FAMILIES, REQUIRED, Family, config_of, has_other_query_scale
from specgen.loading.gguf.rotary import FACTORS
from specgen.loading.safetensors_writer import SafetensorsWriter
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.tensor_names import HEAD, tensor_shapes

JOB_VALUES = 32 * PIECE_VALUES
"""Values that a thread unpacks before it writes them. The embeddings of small models are most of their weights."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A part of a tensor.

    Args:
        name: The tensor's in a checkpoint.
        first: Number of its first value.
        count: How many values.
        num_heads: Its rows are stored in pairs, head by head; 0: they are not.
        offset: Was added to the values.
        is_checked: The values must be finite.
    """

    name: str
    tensor: GgufTensor
    first: int
    count: int
    num_heads: int
    offset: float
    is_checked: bool


def can_unpack(architecture: str) -> bool:
    """Returns whether files of a GGUF architecture can be unpacked here."""
    return architecture in FAMILIES


def unpack(path: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> DecoderSpec:
    """Writes config.json and safetensors of a GGUF file.

    Args:
        dtype: Of the written weights.

    Raises:
        UnsupportedConfig: The file describes something that specgen's decoder can't run.
        ModelFileError: Entries of the header or tensors are missing, left over or misshapen.
        NumericalError: An embedding or a norm contains NaN or infinity.
    """
    contents = read_contents(path)
    architecture = str(contents.entries.get("general.architecture"))
    family = FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedConfig(f"the architecture is {architecture!r}")
    for key in (f"{architecture}.{name}" for name in REQUIRED):
        if key not in contents.entries:
            raise ModelFileError(f"{path}: the entry {key} is missing", "download it again")
    divisors = float_values(path, contents.tensors[FACTORS]).flatten().tolist() if FACTORS in contents.tensors else ()
    try:
        config = config_of(contents, family, divisors)
        spec = decoder_spec(config)
    except UnsupportedConfig as error:
        if has_other_query_scale(contents, architecture):
            # transformers would take the query scale of the smaller models.
            raise ModelFileError(f"{path} can't be converted: {error}", "use a folder with safetensors") from error
        raise
    stored = _stored(architecture, spec, contents)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    _check_shapes(path, stored, spec)
    jobs = [job for name, tensor in stored.items() for job in _jobs(name, tensor, spec, family)]
    with (
        SafetensorsWriter(folder / "model.safetensors", tensor_shapes(spec), dtype) as writer,
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
    ):
        for _ in pool.map(lambda job: writer.write(job.name, job.first, _converted(path, job, dtype)), jobs):
            pass  # it raises what a thread raised
    return spec


def _stored(architecture: str, spec: DecoderSpec, contents: GgufContents) -> dict[str, GgufTensor]:
    """Returns the tensors that the decoder needs, by their names in a checkpoint."""
    number = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(number, len(spec.layers))
    names = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in tensor_shapes(spec)}
    missing = [name for name, own in names.items() if own not in contents.tensors]
    if missing:
        raise ModelFileError(f"{contents.path}: missing tensors: {', '.join(missing[:3])}", "download it again")
    if left := sorted(contents.tensors.keys() - set(names.values()) - {FACTORS}):
        raise UnsupportedConfig(f"it has the tensor {left[0]}")
    return {name: contents.tensors[str(own)] for name, own in names.items()}


def _check_shapes(path: Path, stored: Mapping[str, GgufTensor], spec: DecoderSpec) -> None:
    for name, shape in tensor_shapes(spec).items():
        found = stored[name].shape
        while len(found) > len(shape) and found[0] == 1:
            found = found[1:]
        if found != shape:
            raise ModelFileError(f"{path}: {stored[name].name} has the shape {found}, not {shape}", "download it again")


def _jobs(name: str, tensor: GgufTensor, spec: DecoderSpec, family: Family) -> Iterator[_Job]:
    """Yields the parts of a tensor. One whose rows are reordered is whole."""
    paired = {".q_proj.": spec.num_heads, ".k_proj.": spec.num_kv_heads} if family.permutes_rotary else {}
    num_heads = next((heads for part, heads in paired.items() if part in name), 0)
    offset = family.norm_offset if name.endswith("norm.weight") else 0.0
    is_checked = len(tensor.shape) == 1 or name.endswith(("embed_tokens.weight", HEAD))
    size = tensor.num_values
    step = size if num_heads else JOB_VALUES
    for first in range(0, size, step):
        yield _Job(name, tensor, first, min(step, size - first), num_heads, offset, is_checked)


def _converted(path: Path, job: _Job, dtype: torch.dtype) -> Tensor:
    values = torch.empty(job.count, dtype=dtype)
    filled = 0
    for piece in float_pieces(path, job.tensor, job.first, job.count):
        if job.is_checked and not piece.isfinite().all():
            raise NumericalError(f"{path}: the tensor {job.tensor.name} contains NaN or infinity", "download it again")
        values[filled : filled + len(piece)] = piece - job.offset if job.offset else piece
        filled += len(piece)
    if not job.num_heads:
        return values
    # From pairs to halves: the two rows of a rotated pair are half a head apart.
    width = job.tensor.shape[-1] if len(job.tensor.shape) > 1 else 1
    return values.view(job.num_heads, -1, 2, width).transpose(1, 2).contiguous()
