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
from specgen.loading.draft_head_folder import ShallowFacts, load_tensors
from specgen.loading.placement import has_fast_bf16_cpu
from specgen.loading.start.lean_import import empty_model
from specgen.models.decoder import is_known
from specgen.models.draft_head import ShallowModel, ShallowParts
from specgen.models.formats import ByteLinear, HalfLinear, has_byte_products, narrow_layers, narrowed
from specgen.models.linear import Product, dense, fits_packing, pack_layers, packed_copy
from specgen.models.transformers_model import CachedModel


def open_shallow(
    facts: ShallowFacts, name: str, quant: Quantization, target: LanguageModel, vocab_size: int
) -> tuple[ShallowModel, ModelInfo]:
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
    pieces = [form.product(weight.to(norm.dtype)) for weight in (head, join) if weight is not None]
    model = ShallowModel(
        ShallowParts(
            body=body,
            embedding=embedding,
            head=pieces[0],
            vocab_size=vocab_size if columns is None else columns.shape[0],
            columns=None if columns is None else columns.to(norm.device),
            join=None if join is None else pieces[1],
            features=None if join is None else target.keep_head_inputs(),
        )
    )
    num_bytes += sum(parameter.nbytes for parameter in body.parameters())
    num_bytes += form.num_bytes(join) + (0 if columns is None and form.is_dense else form.num_bytes(head))
    info = ModelInfo(
        name=name,
        quant=form.quant,
        dtype="float16" if form.kind is HalfLinear else str(norm.dtype).removeprefix("torch."),
        device=str(norm.device),
        num_parameters=facts.config.num_parameters,
        num_bytes=num_bytes,
        remark=facts.remark,
    )
    return model, info


@dataclass(frozen=True, slots=True)
class _Form:
    """How the draft's products are computed: dense, 4 bits, or narrow weights under float32.

    What a draft computes decides its speed and its acceptance, never the text, so the fastest one is the default. The
    head has the layers' form: left in bfloat16 it would take as long as several 4-bit layers.
    """

    quant: str = "none"
    kind: type[HalfLinear] | type[ByteLinear] | None = None

    @property
    def is_dense(self) -> bool:
        return self.quant == "none" and self.kind is None

    def take(self, layers: nn.Module) -> int:
        """Bring layers into this form; bytes of what are no parameters any more."""
        if self.kind is not None:
            return narrow_layers(layers, self.kind)
        if self.quant == "nf4":
            pack_layers(layers)
        return 0

    def product(self, weight: Tensor) -> Product:
        if self.kind is not None:
            return narrowed(weight, self.kind)
        return packed_copy(weight) if self.quant == "nf4" and fits_packing(weight) else dense(weight)

    def num_bytes(self, weight: Tensor | None) -> int:
        if weight is None:
            return 0
        size = {HalfLinear: 2.0, ByteLinear: 1.0}.get(self.kind) if self.kind is not None else None
        return int(weight.numel() * (size or (0.5625 if self.quant == "nf4" else weight.itemsize)))


def _form(quant: Quantization, weight: Tensor, target: Any) -> _Form:
    """The draft's form: what is asked for, else the fastest here.

    Args:
        quant: What is asked for.
        weight: One of the draft's, as the target computes.
        target: The target.

    Raises:
        SettingsError: It can't be had.
    """
    can_pack = fits_packing(weight)
    can_narrow = weight.device.type == "cpu" and weight.dtype == torch.float32 and has_byte_products()
    for form, is_possible, needed in (
        (_Form("nf4"), can_pack, "bfloat16 on a CPU with AVX512-BF16"),
        (_Form("int8", ByteLinear), can_narrow, "float32 arithmetic on a CPU"),
    ):
        if quant == form.quant and not is_possible:
            raise SettingsError(
                f"--draft-quant {quant} can't be applied to a shallow draft here: it needs {needed}", "leave it out"
            )
        if is_possible and (quant == form.quant or (quant == "auto" and (can_pack or not has_fast_bf16_cpu()))):
            return form
    return _Form(kind=HalfLinear if isinstance(target.get_output_embeddings(), HalfLinear) else None)


def _head_rows(target: Any, columns: Tensor | None) -> Tensor:
    """The weights of a target's head, `[outputs, hidden]`: all, or those of some tokens."""
    head = target.get_output_embeddings()
    if not isinstance(head, HalfLinear):
        rows: Tensor = head.weight
    elif target.config.tie_word_embeddings:
        rows = target.get_input_embeddings().weight
    else:
        rows = head.unpacked()
    return rows if columns is None else rows[columns.to(rows.device)]


def _body(facts: ShallowFacts, tensors: dict[str, Tensor]) -> Any:
    """transformers' base model with the draft's layers and norm, and no embeddings."""
    try:
        model = empty_model(facts.folder, attention="sdpa")
        if not is_known(model):
            raise ModelFileError(f"{facts.folder} has layers of a kind that no draft can be run with")
        body = model.model
        rotary = type(body.rotary_emb)(config=model.config)
        del body.embed_tokens
        body.load_state_dict(tensors, strict=True, assign=True)
    except library_failures() as error:
        raise ModelFileError(f"{facts.folder} can't be loaded: {first_line(error)}", "make it again") from error
    body.rotary_emb = rotary.to(body.norm.weight.device)
    return body.eval().requires_grad_(False)
