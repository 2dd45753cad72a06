"""A shallow draft's facts and its loaded target in, the draft ready to run on the target's embeddings and head out."""

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
from specgen.loading.draft_head_folder import DraftHeadFacts, load_tensors
from specgen.loading.placement import has_fast_bf16_cpu
from specgen.loading.start.lean_import import empty_model
from specgen.models.decoder import is_supported
from specgen.models.draft_head import DraftHeadModel, DraftHeadParts
from specgen.models.formats import Float16Linear, Int8Linear, convert_layers, converted, has_int8_matmul
from specgen.models.linear import MatMul, dense, fits_nf4, nf4_copy, pack_layers_nf4
from specgen.models.transformers_model import CachedModel


def load_draft_head(
    facts: DraftHeadFacts, name: str, quant: Quantization, target: LanguageModel, vocab_size: int
) -> tuple[DraftHeadModel, ModelInfo]:
    """Read a shallow draft's weights and join them with its target's embeddings and head.

    Args:
        facts: What is known of the draft.
        name: What to call it.
        quant: Its weight format.
        target: Its target, run by transformers; from now on it keeps its head's inputs, if the draft reads them.
        vocab_size: Width of the target's laws.

    Raises:
        ModelFileError: The weights are damaged, or the layers are of a kind that can't be run.
        SettingsError: A weight format is asked for that can't be had here.
        PairError: It proposes tokens the target does not have.
    """
    assert isinstance(target, CachedModel), "the plan lets no other target through"
    embedding: Tensor = target.model.get_input_embeddings().weight
    norm: Tensor = target.model.base_model.norm.weight
    stored = load_tensors(facts)
    columns = stored.pop("draft_ids", None)
    if columns is not None and int(columns[-1]) >= vocab_size:
        raise PairError(f"the draft {name} proposes token {int(columns[-1])}, and the target has {vocab_size} tokens")
    # Computed where and in what the target's head computes.
    tensors = {key: tensor.to(device=norm.device, dtype=norm.dtype) for key, tensor in stored.items()}
    join = tensors.pop("fc.weight", None)
    body = _body(facts, tensors)
    head = _head_rows(target.model, columns)
    form = _form(quant, body.layers[0].mlp.down_proj.weight, target.model)
    num_bytes = form.take(body.layers)
    pieces = [form.matmul_of(weight.to(norm.dtype)) for weight in (head, join) if weight is not None]
    model = DraftHeadModel(
        DraftHeadParts(
            body=body,
            embedding=embedding,
            head=pieces[0],
            vocab_size=vocab_size if columns is None else columns.shape[0],
            columns=None if columns is None else columns.to(norm.device),
            join=None if join is None else pieces[1],
            features=None if join is None else target.record_target_features(),
        )
    )
    num_bytes += sum(parameter.nbytes for parameter in body.parameters())
    num_bytes += form.num_bytes(join) + (0 if columns is None and form.is_dense else form.num_bytes(head))
    info = ModelInfo(
        name=name,
        quant=form.quant,
        dtype="float16" if form.kind is Float16Linear else str(norm.dtype).removeprefix("torch."),
        device=str(norm.device),
        num_parameters=facts.config.num_parameters,
        num_bytes=num_bytes,
        remark=facts.remark,
    )
    return model, info


@dataclass(frozen=True, slots=True)
class _WeightFormat:
    """How the draft's products are computed: dense, 4 bits, or narrow weights under float32.

    What a draft computes decides its speed and its acceptance, never the text, so the fastest one is the default. The
    head has the layers' form: left in bfloat16 it would take as long as several 4-bit layers.
    """

    quant: str = "none"
    kind: type[Float16Linear] | type[Int8Linear] | None = None

    @property
    def is_dense(self) -> bool:
        return self.quant == "none" and self.kind is None

    def take(self, layers: nn.Module) -> int:
        """Bring layers into this form; bytes of what are no parameters any more."""
        if self.kind is not None:
            return convert_layers(layers, self.kind)
        if self.quant == "nf4":
            pack_layers_nf4(layers)
        return 0

    def matmul_of(self, weight: Tensor) -> MatMul:
        if self.kind is not None:
            return converted(weight, self.kind)
        return nf4_copy(weight) if self.quant == "nf4" and fits_nf4(weight) else dense(weight)

    def num_bytes(self, weight: Tensor | None) -> int:
        if weight is None:
            return 0
        size = {Float16Linear: 2.0, Int8Linear: 1.0}.get(self.kind) if self.kind is not None else None
        return int(weight.numel() * (size or (0.5625 if self.quant == "nf4" else weight.itemsize)))


def _form(quant: Quantization, weight: Tensor, target: Any) -> _WeightFormat:
    """The draft's form: what is asked for, else the fastest here.

    Args:
        quant: What is asked for.
        weight: One of the draft's, as the target computes.
        target: The target.

    Raises:
        SettingsError: It can't be had.
    """
    has_nf4_kernel = fits_nf4(weight)
    can_narrow = weight.device.type == "cpu" and weight.dtype == torch.float32 and has_int8_matmul()
    for form, is_possible, needed in (
        (_WeightFormat("nf4"), has_nf4_kernel, "bfloat16 on a CPU with AVX512-BF16"),
        (_WeightFormat("int8", Int8Linear), can_narrow, "float32 arithmetic on a CPU"),
    ):
        if quant == form.quant and not is_possible:
            raise SettingsError(
                f"--draft-quant {quant} can't be applied to a shallow draft here: it needs {needed}", "leave it out"
            )
        if is_possible and (quant == form.quant or (quant == "auto" and (has_nf4_kernel or not has_fast_bf16_cpu()))):
            return form
    return _WeightFormat(kind=Float16Linear if isinstance(target.get_output_embeddings(), Float16Linear) else None)


def _head_rows(target: Any, columns: Tensor | None) -> Tensor:
    """The weights of a target's head, `[outputs, hidden]`: all, or those of some tokens."""
    head = target.get_output_embeddings()
    if not isinstance(head, Float16Linear):
        rows: Tensor = head.weight
    elif target.config.tie_word_embeddings:
        rows = target.get_input_embeddings().weight
    else:
        rows = head.unpacked()
    return rows if columns is None else rows[columns.to(rows.device)]


def _body(facts: DraftHeadFacts, tensors: dict[str, Tensor]) -> Any:
    """transformers' base model with the draft's layers and norm, and no embeddings."""
    try:
        model = empty_model(facts.folder, attention="sdpa")
        if not is_supported(model):
            raise ModelFileError(f"{facts.folder} has layers of a kind that no draft can be run with")
        body = model.model
        rotary = type(body.rotary_emb)(config=model.config)
        del body.embed_tokens
        body.load_state_dict(tensors, strict=True, assign=True)
    except library_failures() as error:
        raise ModelFileError(f"{facts.folder} can't be loaded: {first_line(error)}", "make it again") from error
    body.rotary_emb = rotary.to(body.norm.weight.device)
    return body.eval().requires_grad_(False)
