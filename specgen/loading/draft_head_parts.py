"""Assembles draft heads, of specgen's own format and of checkpoints, and chooses the format of their weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from specgen.core.errors import SettingsError
from specgen.core.results import ModelInfo
from specgen.core.settings import Quantization
from specgen.engine.contract import LanguageModel
from specgen.loading.decoder_weights import dense_linear, weight_bytes
from specgen.loading.placement import Placement
from specgen.loading.resolved_model import LoadedModel, ModelConfig, ResolvedModel
from specgen.models.draft_head import DraftHeadModel, DraftHeadParts
from specgen.models.draft_head_layers import DecoderLayers
from specgen.models.formats import PackedLinear, has_int8_matmul
from specgen.models.fused.support import kinds_of_passes
from specgen.models.packing import (
    FLOAT_KINDS,
    PACKED_KINDS,
    PackedFormat,
    fast_nf4_linear,
    has_fast_nf4,
    is_quantized,
    packed_linear,
)
from specgen.models.static.admission import head_admission_failure, not_fused, not_recorded
from specgen.models.static.draft_head import StaticDraftHead
from specgen.models.static.model import StaticModel
from specgen.models.static.recorder import renewed


@dataclass(frozen=True, slots=True)
class HeadFormat:
    """How a draft head's weights are stored: as they are, in 4 bits, or packed under float32 arithmetic.

    A draft's numbers decide its speed and its acceptance, never the text, so the fastest format is the default. The
    head has the format of the layers: in bfloat16 it would take as long as several 4-bit layers.
    """

    quant: str = "none"
    packed: PackedFormat | None = None

    @property
    def is_dense(self) -> bool:
        """Whether the weights stay as they are."""
        return self.quant == "none" and self.packed is None

    def dtype(self, arithmetic: torch.dtype) -> str:
        """Returns the compute type for people, as in `ModelInfo`."""
        return self.packed if self.packed in FLOAT_KINDS else str(arithmetic).removeprefix("torch.")

    def linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """Returns a matrix product in this format."""
        if self.packed is not None:
            return packed_linear(weight, PACKED_KINDS[self.packed], bias)
        if self.quant == "nf4" and has_fast_nf4(weight):
            return fast_nf4_linear(weight, bias)
        return dense_linear(weight, bias)


def choose_format(requested: Quantization, weight: Tensor, target: nn.Module, head: nn.Module) -> HeadFormat:
    """Returns the requested format of a draft head; for `auto`, the fastest one on this machine.

    Args:
        weight: One of the draft's weights, in the target's type.
        target: The weights of the target.
        head: The target's.

    Raises:
        SettingsError: The requested format is not available.
    """
    kept = next((name for name, kind in FLOAT_KINDS.items() if isinstance(head, kind)), None)
    return _fastest_format(requested, weight, kept, has_nf4=is_quantized(target))


def draft_head_placement(draft: ResolvedModel, target: ModelConfig, placement: Placement, device: str) -> Placement:
    """Returns where a draft head will run and the format that `choose_format` will return. Loads nothing.

    Args:
        target: The config of its target.
        placement: That of its target.
        device: That of the target's head.

    Raises:
        SettingsError: As for `choose_format`.
    """
    head, packed = draft.draft_head, placement.packed_dtype
    assert head is not None, "the caller checks it"
    dtype = placement.torch_dtype if packed is None else torch.float32
    if head.spec is None:
        hidden = draft.config.values["hidden_size"]
        shape = (hidden, 2 * hidden)
    else:
        shape = (head.spec.hidden_size, head.spec.intermediate_size)
    is_of_library = packed is None and (placement.quant != "none" or target.quant_method == "bitsandbytes")
    chosen = _fastest_format(
        draft.settings.quant,
        torch.empty((), dtype=dtype, device=device).expand(shape),  # has sizes, but no memory
        packed if packed in FLOAT_KINDS else None,
        has_nf4=packed == "nf4" or is_of_library,
    )
    return Placement(device, False, chosen.dtype(dtype), chosen.quant, (head.remark,), chosen.packed)


def _fastest_format(requested: Quantization, weight: Tensor, kept: PackedFormat | None, *, has_nf4: bool) -> HeadFormat:
    """Returns what `choose_format` does, also for a target that is not loaded.

    Args:
        kept: The format of 16-bit weights of the target's head on our own kernel.
        has_nf4: The target has layers in a format of bitsandbytes, or in nf4.
    """
    # For `auto`, only if the target loaded bitsandbytes anyway: its import takes 2.7 s.
    may_nf4 = requested == "nf4" or (requested == "auto" and has_nf4)
    can_nf4 = may_nf4 and has_fast_nf4(weight)
    can_int8 = weight.device.type == "cpu" and weight.dtype == torch.float32 and has_int8_matmul()
    for weight_format, is_available, requirement in (
        (HeadFormat("nf4"), can_nf4, "a CPU with AVX2, or bfloat16 on one with AVX512-BF16"),
        (HeadFormat("int8", "int8"), can_int8, "float32 arithmetic on a CPU"),
    ):
        if requested == weight_format.quant and not is_available:
            raise SettingsError(
                f"--draft-quant {requested} can't be applied to a draft head here: it needs {requirement}",
                "omit --draft-quant",
            )
        if is_available and requested in (weight_format.quant, "auto"):
            return weight_format
    return HeadFormat(packed=kept)


def drafting_head(
    head: nn.Module, tied: Tensor | None, weight_format: HeadFormat, dtype: torch.dtype, columns: Tensor | None = None
) -> nn.Module:
    """Returns what computes a draft head's logits: the target's head, or a copy in the draft's format.

    Args:
        head: The target's.
        tied: The target's embedding if the head has its weights.
        weight_format: Of the draft head.
        dtype: The type it computes in.
        columns: As in `DraftHeadParts`.
    """
    packed = weight_format.packed
    has_format = weight_format.is_dense or (packed is not None and isinstance(head, PACKED_KINDS[packed]))
    if columns is None and has_format:
        return head
    if tied is not None:
        rows = tied
    elif isinstance(head, PackedLinear):
        rows = head.unpacked()
    else:
        assert isinstance(head.weight, Tensor), "a dense layer"
        rows = head.weight
    if columns is not None:
        rows = rows[columns.to(rows.device)]
    return weight_format.linear(rows.to(dtype), None) if rows.is_floating_point() else head


def assembled(
    resolved: ResolvedModel, parts: DraftHeadParts, weight_format: HeadFormat, target: LanguageModel, head: nn.Module
) -> LoadedModel:
    """Returns a draft head that is ready to run.

    Args:
        head: The target's, which is not counted if the draft uses it.
    """
    own = [parts.layers.module, parts.norm, parts.join, None if parts.head is head else parts.head]
    info = ModelInfo(
        name=resolved.name,
        quant=weight_format.quant,
        dtype=weight_format.dtype(parts.dtype),
        device=str(parts.like.device),
        num_parameters=resolved.config.num_parameters,
        num_bytes=weight_bytes(nn.ModuleList(module for module in own if module is not None)),
        remark="" if resolved.draft_head is None else resolved.draft_head.remark,
    )
    # Its passes are recorded if its target's are.
    if not isinstance(target, StaticModel):
        return LoadedModel(DraftHeadModel(parts), info)
    if not isinstance(parts.layers, DecoderLayers):
        reason = "its layer runs on transformers' code"
        return LoadedModel(DraftHeadModel(parts), info, (not_recorded(resolved.name, reason),))
    notices: tuple[str, ...] = ()
    for is_fused in kinds_of_passes((parts.layers.spec, parts.like)):
        # The target records on, so a failed recording must not spoil its recorder.
        probed = partial(StaticDraftHead, recorder=renewed(target.recorder), is_fused=is_fused)
        failure = head_admission_failure(parts, probed)
        if failure is None:
            return LoadedModel(StaticDraftHead(parts, target.recorder, is_fused=is_fused), info, notices)
        notices = (not_fused(resolved.name, failure) if is_fused else not_recorded(resolved.name, failure),)
    return LoadedModel(DraftHeadModel(parts), info, notices)
