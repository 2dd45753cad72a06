"""Loads a draft head and joins it with its target's embeddings and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from specgen.core.errors import ModelFileError, PairError, SettingsError
from specgen.core.library_errors import first_line, library_failures
from specgen.core.results import ModelInfo
from specgen.core.settings import Quantization
from specgen.engine.contract import LanguageModel
from specgen.loading.draft_head_folder import DraftHeadFolder
from specgen.loading.draft_head_tensors import load_tensors
from specgen.loading.placement import has_fast_bf16_cpu
from specgen.loading.start.lean_import import empty_model
from specgen.models.decoder import is_supported
from specgen.models.draft_head import DraftHeadModel, DraftHeadParts
from specgen.models.formats import Float16Linear, Int8Linear, PackedKind, has_int8_matmul, pack_layers, packed_linear
from specgen.models.linear import MatMul, dense, fits_nf4, nf4_copy, pack_layers_nf4
from specgen.models.transformers_model import CachedModel


def load_draft_head(
    folder: DraftHeadFolder, name: str, quant: Quantization, target: LanguageModel, vocab_size: int
) -> tuple[DraftHeadModel, ModelInfo]:
    """Reads a draft head's weights and joins them with its target's embeddings and head.

    Args:
        folder: The checked folder.
        name: Its name, for messages.
        quant: The requested weight format.
        target: Its target, run by transformers; it records its features from now on, if the draft reads them.
        vocab_size: Width of the target's logits.

    Raises:
        ModelFileError: The weights are damaged, or the layers are of an unsupported kind.
        SettingsError: The requested weight format is not available on this machine.
        PairError: It proposes tokens that the target does not have.
    """
    assert isinstance(target, CachedModel), "no other target passes the checks of a pair"
    embedding: Tensor = target.model.get_input_embeddings().weight
    norm: Tensor = target.model.base_model.norm.weight
    stored = load_tensors(folder.path, folder.config.vocab_rows or 0)
    columns = stored.pop("draft_ids", None)
    if columns is not None and int(columns[-1]) >= vocab_size:
        raise PairError(f"the draft {name} proposes token {int(columns[-1])}, but the target has {vocab_size} tokens")
    # On the device and in the type of the target's norm.
    tensors = {key: tensor.to(device=norm.device, dtype=norm.dtype) for key, tensor in stored.items()}
    join = tensors.pop("fc.weight", None)
    body = _load_body(folder, tensors)
    head = _head_rows(target.model, columns)
    weight_format = _choose_format(quant, body.layers[0].mlp.down_proj.weight, target.model)
    num_bytes = weight_format.convert(body.layers)
    model = DraftHeadModel(
        DraftHeadParts(
            body=body,
            embedding=embedding,
            head=weight_format.matmul_of(head.to(norm.dtype)),
            vocab_size=vocab_size if columns is None else columns.shape[0],
            columns=None if columns is None else columns.to(norm.device),
            join=None if join is None else weight_format.matmul_of(join),
            features=None if join is None else target.record_target_features(),
        )
    )
    num_bytes += sum(parameter.nbytes for parameter in body.parameters())
    num_bytes += 0 if join is None else weight_format.num_bytes(join)
    shares_head = columns is None and weight_format.is_dense
    num_bytes += 0 if shares_head else weight_format.num_bytes(head)
    info = ModelInfo(
        name=name,
        quant=weight_format.quant,
        dtype="float16" if weight_format.packed is Float16Linear else str(norm.dtype).removeprefix("torch."),
        device=str(norm.device),
        num_parameters=folder.config.num_parameters,
        num_bytes=num_bytes,
        remark=folder.remark,
    )
    return model, info


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

    def convert(self, layers: nn.Module) -> int:
        """Converts layers to this format, in place; returns the bytes of weights that are no longer parameters."""
        if self.packed is not None:
            return pack_layers(layers, self.packed)
        if self.quant == "nf4":
            pack_layers_nf4(layers)
        return 0

    def matmul_of(self, weight: Tensor) -> MatMul:
        if self.packed is not None:
            return packed_linear(weight, self.packed)
        return nf4_copy(weight) if self.quant == "nf4" and fits_nf4(weight) else dense(weight)

    def num_bytes(self, weight: Tensor) -> int:
        if self.packed is not None:
            return weight.numel() * (2 if self.packed is Float16Linear else 1)
        return int(weight.numel() * (0.5625 if self.quant == "nf4" else weight.itemsize))


def _choose_format(requested: Quantization, weight: Tensor, target: Any) -> _WeightFormat:
    """Returns the requested format of a draft head; for `auto`, the fastest one on this machine.

    Args:
        requested: The requested format.
        weight: One of the draft's weights, in the target's type.
        target: The target.

    Raises:
        SettingsError: The requested format is not available.
    """
    can_nf4 = fits_nf4(weight)
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
    return _WeightFormat(packed=Float16Linear if isinstance(target.get_output_embeddings(), Float16Linear) else None)


def _head_rows(target: Any, columns: Tensor | None) -> Tensor:
    """Returns the weights of a target's head, `[outputs, hidden]`: all, or the rows of some tokens."""
    head = target.get_output_embeddings()
    if not isinstance(head, Float16Linear):
        rows: Tensor = head.weight
    elif target.config.tie_word_embeddings:
        rows = target.get_input_embeddings().weight
    else:
        rows = head.unpacked()
    return rows if columns is None else rows[columns.to(rows.device)]


def _load_body(folder: DraftHeadFolder, tensors: dict[str, Tensor]) -> Any:
    """Returns transformers' base model with the draft head's layers and norm, without embeddings."""
    try:
        model = empty_model(folder.path, attention="sdpa")
        if not is_supported(model):
            raise ModelFileError(f"{folder.path} has decoder layers of an unsupported kind")
        body = model.model
        rotary = type(body.rotary_emb)(config=model.config)
        del body.embed_tokens
        body.load_state_dict(tensors, strict=True, assign=True)
    except library_failures() as error:
        raise ModelFileError(f"{folder.path} can't be loaded: {first_line(error)}", "make it again") from error
    body.rotary_emb = rotary.to(body.norm.weight.device)
    return body.eval().requires_grad_(False)
