"""Loads a draft head and joins it with its target's embeddings and head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from specgen.core.errors import ModelFileError, PairError, SettingsError, first_line, library_failures
from specgen.core.progress import ProgressListener
from specgen.core.results import ModelInfo
from specgen.core.settings import Quantization
from specgen.engine.contract import LanguageModel
from specgen.loading.decoder_weights import dense_linear, weight_bytes
from specgen.loading.draft_head_folder import PREFIX, WEIGHTS, invalid_draft_head
from specgen.loading.placement import has_fast_bf16_cpu
from specgen.loading.resolved_model import LoadedModel, ResolvedModel
from specgen.models.build_decoder import build_layer, in_memory
from specgen.models.decoder import Decoder, Norm
from specgen.models.decoder_model import DecoderModel
from specgen.models.draft_head import DraftHeadModel, DraftHeadParts
from specgen.models.formats import Float16Linear, Int8Linear, PackedKind, has_int8_matmul, packed_linear
from specgen.models.quantized import fits_nf4, is_quantized, nf4_linear
from specgen.models.static.draft_head import StaticDraftHead
from specgen.models.static.model import StaticModel
from specgen.models.tensor_names import NORM


def load_draft_head(
    resolved: ResolvedModel, vocab_size: int, progress: ProgressListener, target: LanguageModel | None
) -> LoadedModel:
    """Reads a draft head's weights and joins them with its target's embeddings and head.

    Args:
        vocab_size: Width of the target's logits.
        target: Its target, specgen's decoder; it records its features from now on, if the draft reads them.

    Raises:
        ModelFileError: The weights are damaged, or the layers are of an unsupported kind.
        SettingsError: The requested weight format is not available on this machine.
        PairError: It proposes tokens that the target does not have, or the target runs on transformers.
    """
    config, head, name = resolved.config, resolved.draft_head, resolved.name
    assert head is not None, "the format says so"
    progress.stage(f"loading draft {name}")
    decoder = target.decoder if isinstance(target, DecoderModel | StaticModel) else None
    if decoder is None or not isinstance(target, DecoderModel | StaticModel):
        raise PairError(
            f"the draft head {name} needs a target that specgen runs itself, but this one runs on transformers",
            "choose another draft, as in --draft lookup",
        )
    stored = load_tensors(resolved.path, config.vocab_rows or 0)
    columns = stored.pop("draft_ids", None)
    if columns is not None and int(columns[-1]) >= vocab_size:
        raise PairError(f"the draft {name} proposes token {int(columns[-1])}, but the target has {vocab_size} tokens")
    # On the device of the target's head, and in its type.
    device = decoder.output_device
    tensors = {key: tensor.to(device=device, dtype=decoder.dtype) for key, tensor in stored.items()}
    join = tensors.pop("fc.weight", None)
    weight_format = _choose_format(resolved.settings.quant, tensors["layers.0.mlp.down_proj.weight"], decoder)
    linear = weight_format.linear

    named = in_memory({PREFIX + key: tensor for key, tensor in tensors.items()})
    spec = head.spec
    shares_head = columns is None and weight_format.is_dense
    parts = DraftHeadParts(
        spec=spec,
        layers=[build_layer(spec, index, named, linear, decoder.dtype) for index in range(len(spec.layers))],
        norm=Norm(named(NORM), spec),
        embedding=decoder.embedding.to(device),  # a copy, if the target's layers are on several devices
        head=decoder.head if shares_head else linear(_head_rows(decoder, columns).to(decoder.dtype), None),
        dtype=decoder.dtype,
        vocab_size=vocab_size if columns is None else columns.shape[0],
        columns=None if columns is None else columns.to(device),
        join=None if join is None else linear(join, None),
        features=None if join is None else target.record_target_features(),
    )
    own = [*parts.layers, parts.norm, parts.join, None if shares_head else parts.head]
    info = ModelInfo(
        name=name,
        quant=weight_format.quant,
        dtype="float16" if weight_format.packed is Float16Linear else str(decoder.dtype).removeprefix("torch."),
        device=str(device),
        num_parameters=config.num_parameters,
        num_bytes=weight_bytes(nn.ModuleList(module for module in own if module is not None)),
        remark=head.remark,
    )
    # Its passes are recorded if its target's are.
    model = StaticDraftHead(parts, target.recorder) if isinstance(target, StaticModel) else DraftHeadModel(parts)
    return LoadedModel(model, info)


def load_tensors(folder: Path, num_target_ids: int) -> dict[str, Tensor]:
    """Reads the weights, as stored.

    Args:
        folder: The draft head; its tensors must have been checked.
        num_target_ids: Rows of the target's embeddings.

    Raises:
        ModelFileError: They can't be read, contain NaN or infinity, or `draft_ids` are not ascending target ids.
    """
    path = folder / WEIGHTS
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except library_failures() as error:
        raise ModelFileError(f"{path} can't be read: {first_line(error)}", "make the draft again") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
            raise invalid_draft_head(folder, f"the tensor {name} contains NaN or infinity")
    ids = tensors.get("draft_ids")
    if ids is not None:
        is_ascending = bool((ids[1:] > ids[:-1]).all())
        if not is_ascending or int(ids[0]) < 0 or int(ids[-1]) >= num_target_ids:
            raise invalid_draft_head(folder, "draft_ids are not ascending ids of the target's vocabulary")
    return tensors


@dataclass(frozen=True, slots=True)
class _WeightFormat:
    """How a draft head's weights are stored: as they are, in 4 bits, or packed under float32 arithmetic.

    A draft's numbers decide its speed and its acceptance, never the text, so the fastest format is the default. The
    head has the format of the layers: in bfloat16 it would take as long as several 4-bit layers.
    """

    quant: str = "none"
    packed: PackedKind | None = None

    @property
    def is_dense(self) -> bool:
        return self.quant == "none" and self.packed is None

    def linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        if self.packed is not None:
            return packed_linear(weight, self.packed, bias)
        if self.quant == "nf4" and fits_nf4(weight):
            return nf4_linear(weight, bias)
        return dense_linear(weight, bias)


def _choose_format(requested: Quantization, weight: Tensor, target: Decoder) -> _WeightFormat:
    """Returns the requested format of a draft head; for `auto`, the fastest one on this machine.

    Args:
        weight: One of the draft's weights, in the target's type.

    Raises:
        SettingsError: The requested format is not available.
    """
    # For `auto`, only if the target loaded bitsandbytes anyway: its import takes 2.7 s.
    may_nf4 = requested == "nf4" or (requested == "auto" and is_quantized(target))
    can_nf4 = may_nf4 and fits_nf4(weight)
    can_int8 = weight.device.type == "cpu" and weight.dtype == torch.float32 and has_int8_matmul()
    is_auto_faster = can_nf4 or not has_fast_bf16_cpu()
    for weight_format, is_available, requirement in (
        (_WeightFormat("nf4"), can_nf4, "bfloat16 on a CPU with AVX512-BF16"),
        (_WeightFormat("int8", Int8Linear), can_int8, "float32 arithmetic on a CPU"),
    ):
        if requested == weight_format.quant and not is_available:
            raise SettingsError(
                f"--draft-quant {requested} can't be applied to a draft head here: it needs {requirement}",
                "omit --draft-quant",
            )
        if is_available and (requested == weight_format.quant or (requested == "auto" and is_auto_faster)):
            return weight_format
    return _WeightFormat(packed=Float16Linear if isinstance(target.head, Float16Linear) else None)


def _head_rows(target: Decoder, columns: Tensor | None) -> Tensor:
    """Returns the weights of a target's head, `[outputs, hidden]`: all, or the rows of some tokens."""
    head = target.head
    if target.spec.is_tied:
        rows: Tensor = target.embedding.to(target.output_device)
    elif isinstance(head, Float16Linear):
        rows = head.unpacked()
    else:
        rows = head.weight  # type: ignore[assignment]  # a dense layer: the head is never quantized
    return rows if columns is None else rows[columns.to(rows.device)]
