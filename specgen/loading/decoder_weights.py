"""Loads specgen's decoder from safetensors: checked, layer by layer, in the weight format of a placement."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from specgen.core.errors import ModelFileError, NumericalError
from specgen.loading.packed_formats import packed_head
from specgen.loading.tensor_files import TensorFiles
from specgen.models.build_decoder import MakeLinear, build_layer
from specgen.models.decoder import Decoder, Layer
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.float_linear import FloatLinear
from specgen.models.formats import without_deprecation_warning
from specgen.models.forward_pass import Norm
from specgen.models.fused_layers import fuse
from specgen.models.packing import PACKED_KINDS, PackedKind, compile_ahead, has_float_matmul, holds, packed_linear
from specgen.models.quantized import quantized_linear
from specgen.models.shortlist_head import has_shortlist, shortlist_head
from specgen.models.tensor_names import EMBEDDING, HEAD, NORM, tensor_shapes

if TYPE_CHECKING:
    from specgen.loading.placement import Placement

IGNORED_SUFFIX = "rotary_emb.inv_freq"
"""Old checkpoints hold these tensors; they follow from the config."""


def load_decoder(
    folder: Path, names: Sequence[str], spec: DecoderSpec, placement: Placement, *, is_draft: bool = False
) -> tuple[Decoder, list[str]]:
    """Loads a decoder.

    Args:
        folder: Of the model.
        names: Its safetensors files.
        spec: What its config describes.
        placement: Device, compute type and weight format.
        is_draft: On a CPU, use the layers' format for the head, and a `ShortlistHead` where the vocabulary is large.

    Returns:
        The decoder, and the tensors of the files that it does without: see `specgen.loading.left_over`.

    Raises:
        ModelFileError: A tensor is missing, left over, or of another shape.
        NumericalError: An embedding or a norm contains NaN or infinity.
    """
    files = TensorFiles(folder, names, kept_type(placement))
    ignored = [name for name in files.shapes if name.endswith(IGNORED_SUFFIX)]
    left_out = files.check(tensor_shapes(spec), [*ignored, *([HEAD] if spec.is_tied else [])])
    dtype = torch.float32 if placement.packed_dtype is not None else placement.torch_dtype
    linear, head_linear = linear_makers(placement, dtype, is_draft=is_draft)

    places = placement.layer_devices(len(spec.layers))

    def read(*names: str, device: str) -> Tensor:
        tensor = files.read(*names, device=device)
        if tensor.ndim == 1 or names[0] in (EMBEDDING, HEAD):
            check_finite_tensor(", ".join(names), tensor, folder)
        return tensor

    # The largest tensors first: what their conversion takes is free again for the layers.
    with without_deprecation_warning():
        embedding = read(EMBEDDING, device=places[0])
        if spec.is_tied and HEAD in files.shapes and not torch.equal(read(HEAD, device=places[0]), embedding):
            raise ModelFileError(
                f"{folder} has a head and an embedding that differ, but its config ties them",
                "config and weights don't belong together",
            )
        if placement.packed_dtype is None:
            embedding = embedding.to(dtype)
        head_weight = embedding.to(places[-1]) if spec.is_tied else read(HEAD, device=places[-1])
        if is_draft and placement.device == "cpu" and has_shortlist(spec, head_weight.shape[0]):
            head: nn.Module = shortlist_head(head_weight, head_linear)
        else:
            head = head_linear(head_weight, None)
        del head_weight

        def build(index: int) -> Layer:
            return fuse(build_layer(spec, index, partial(read, device=places[index]), linear, dtype))

        with ThreadPoolExecutor(_num_workers(placement)) as pool:
            layers = list(pool.map(build, range(len(spec.layers))))
    decoder = Decoder(spec, embedding, layers, Norm(read(NORM, device=places[-1]).to(dtype), spec), head)
    if placement.segments:
        decoder.split([part.num_layers for part in placement.segments])
    return decoder.eval().requires_grad_(False), left_out


def kept_type(placement: Placement) -> torch.dtype | None:
    """Returns the type of weights that are used as they were read; None if all are converted, as FBGEMM's are."""
    stays = placement.packed_dtype is None or has_float_matmul(placement.torch_dtype)
    return placement.torch_dtype if placement.device == "cpu" and placement.quant == "none" and stays else None


def _num_workers(placement: Placement) -> int:
    """Returns how many layers are loaded at once: each has its weights in memory twice, as stored and converted."""
    if placement.packed_dtype is not None:
        return min(torch.get_num_threads(), 2)
    # bitsandbytes' functions are parallel themselves.
    return min(torch.get_num_threads(), 4) if placement.quant == "none" else 1


def linear_makers(placement: Placement, dtype: torch.dtype, *, is_draft: bool = False) -> tuple[MakeLinear, MakeLinear]:
    """Returns what makes the matrix products of the layers and the head.

    bitsandbytes' formats leave out the head.
    """
    if placement.packed_dtype is not None:
        kind = PACKED_KINDS[placement.packed_dtype]
        compile_ahead(kind)  # once, not by each thread
        of_head = PACKED_KINDS[packed_head(placement.packed_dtype, is_draft=is_draft)]
        return partial(_packed, kind), partial(_packed, of_head)

    def dense(weight: Tensor, bias: Tensor | None) -> nn.Module:
        return dense_linear(weight.to(dtype), None if bias is None else bias.to(dtype))

    def quantized(weight: Tensor, bias: Tensor | None) -> nn.Module:
        return quantized_linear(weight.to(dtype), None if bias is None else bias.to(dtype), placement.quant)

    return (dense if placement.quant == "none" else quantized), dense


def _packed(kind: PackedKind, weight: Tensor, bias: Tensor | None) -> nn.Module:
    if not holds(kind, weight):
        return dense_linear(weight.float(), None if bias is None else bias.float())
    return packed_linear(weight, kind, bias)


def dense_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Returns a linear layer on the tensors themselves."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def weight_bytes(module: nn.Module) -> int:
    """Returns the bytes that a module's weights take in memory, in any format; shared ones once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in module.parameters()}
    scales = 0
    for part in module.modules():
        scales += int(getattr(part, "num_bytes", 0))
        if isinstance(part, FloatLinear):
            tensors[part.stored.data_ptr()] = part.stored.nbytes
            scales -= part.stored.nbytes
        state = getattr(getattr(part, "weight", None), "quant_state", None)
        scales += 0 if state is None else state.absmax.nbytes
        column_scales = getattr(getattr(part, "weight", None), "SCB", None)
        scales += 0 if column_scales is None else column_scales.nbytes
    return sum(tensors.values()) + scales


def check_finite_tensor(name: str, tensor: Tensor, folder: Path) -> None:
    """Refuses NaN and infinity. For embeddings and norms: each token passes them, and the others take too long.

    Raises:
        NumericalError: The tensor has some.
    """
    # Extremes pass NaN on and take no copy; isfinite() would take a mask as large as the vocabulary.
    low, high = torch.aminmax(tensor)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise NumericalError(
            f"{folder}: the tensor {name} contains NaN or infinity", "the file is damaged: download it again"
        )
