"""A shallow draft's facts and its loaded target in, the draft ready to run on the target's embeddings and head out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from specgen.engine.contract import LanguageModel
from specgen.engine.lean import is_known
from specgen.engine.model import CachedModel
from specgen.engine.products import Product, dense, fits_packing, pack_layers, packed_copy
from specgen.engine.shallow import ShallowModel, ShallowParts
from specgen.errors import ModelFileError, PairError, SettingsError
from specgen.loading.failures import first_line, library_failures
from specgen.loading.shallow import ShallowFacts, load_tensors
from specgen.report import ModelInfo
from specgen.settings import Quantization


def open_shallow(
    facts: ShallowFacts, name: str, quant: Quantization, target: LanguageModel, vocab_size: int
) -> tuple[ShallowModel, ModelInfo]:
    """Read a shallow draft's weights and join them with its target's embeddings and head.

    Args:
        facts: What is known of the draft.
        name: What to call it.
        quant: Its weight format. Device and compute type are the target's.
        target: Its target, run by transformers; from now on it keeps its head's inputs, if the draft reads them.
        vocab_size: Width of the target's laws.

    Raises:
        ModelFileError: The weights are damaged, or the layers are of a kind that can't be run.
        SettingsError: 4-bit weights are asked for and not to be had.
        PairError: It proposes tokens the target does not have.
    """
    assert isinstance(target, CachedModel), "the plan lets no other target through"
    embedding: Tensor = target.model.get_input_embeddings().weight
    head: Tensor = target.model.get_output_embeddings().weight
    stored = load_tensors(facts)
    columns = stored.pop("draft_ids", None)
    if columns is not None and int(columns[-1]) >= vocab_size:
        raise PairError(f"the draft {name} proposes token {int(columns[-1])}, and the target has {vocab_size} tokens")
    tensors = {key: tensor.to(device=head.device, dtype=embedding.dtype) for key, tensor in stored.items()}
    join = tensors.pop("fc.weight", None)
    body = _body(facts, tensors)
    is_packed = _is_packed(quant, body)
    pack = _packed_or_dense if is_packed else dense
    rows = head if columns is None else head[columns.to(head.device)]
    if is_packed:
        pack_layers(body.layers)
    model = ShallowModel(
        ShallowParts(
            body=body,
            embedding=embedding,
            # Left in bfloat16, the head alone would take as long as several 4-bit layers.
            head=pack(rows),
            vocab_size=vocab_size if columns is None else columns.shape[0],
            columns=None if columns is None else columns.to(head.device),
            join=None if join is None else pack(join),
            features=None if join is None else target.keep_head_inputs(),
        )
    )
    borrowed = 0 if columns is None else rows.nbytes
    info = ModelInfo(
        name=name,
        quant="nf4" if is_packed else "none",
        dtype=str(embedding.dtype).removeprefix("torch."),
        device=str(head.device),
        num_parameters=facts.config.num_parameters,
        num_bytes=sum(parameter.nbytes for parameter in body.parameters())
        + (join.nbytes if join is not None else 0)
        + borrowed,
        remark=facts.remark,
    )
    return model, info


def _body(facts: ShallowFacts, tensors: dict[str, Tensor]) -> Any:
    """transformers' base model with the draft's layers and norm, and no embeddings."""
    import transformers
    from accelerate import init_empty_weights

    auto_config: Any = transformers.AutoConfig
    auto_model: Any = transformers.AutoModelForCausalLM
    try:
        config = auto_config.from_pretrained(facts.folder, trust_remote_code=False, local_files_only=True)
        config._attn_implementation = "sdpa"
        with init_empty_weights():
            model = auto_model.from_config(config, trust_remote_code=False)
        if not is_known(model):
            raise ModelFileError(f"{facts.folder} has layers of a kind that no draft can be run with")
        body = model.model
        rotary = type(body.rotary_emb)(config=config)
        del body.embed_tokens
        body.load_state_dict(tensors, strict=True, assign=True)
    except library_failures() as error:
        raise ModelFileError(f"{facts.folder} can't be loaded: {first_line(error)}", "make it again") from error
    body.rotary_emb = rotary.to(body.norm.weight.device)
    return body.eval().requires_grad_(False)


def _is_packed(quant: Quantization, body: Any) -> bool:
    """Whether the draft's weights are packed in 4 bits: wherever that is faster, unless it is asked otherwise.

    Raises:
        SettingsError: It is asked for, and there is no fast kernel for it here.
    """
    can_be = fits_packing(body.layers[0].mlp.down_proj.weight)
    if quant == "nf4" and not can_be:
        raise SettingsError(
            "--draft-quant nf4 can't be applied to a shallow draft here: it needs bfloat16 on a CPU with AVX512-BF16",
            "leave it out",
        )
    return can_be and quant in ("auto", "nf4")


def _packed_or_dense(weight: Tensor) -> Product:
    return packed_copy(weight) if fits_packing(weight) else dense(weight)
