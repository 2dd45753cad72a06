"""Models of real shapes with random weights, made on the device. Only this module knows how specgen builds a model.

Their texts are noise, their speed is that of a real model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from specgen.engine.contract import LanguageModel
from specgen.engine.decoding import DecodeOptions
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.decoder_weights import dense_linear, weight_bytes
from specgen.models.build_decoder import build_layer, layer_tensors
from specgen.models.cuda import prepare_cuda, recorded
from specgen.models.decoder import Decoder
from specgen.models.decoder_model import DecoderModel
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.forward_pass import Norm
from specgen.models.fused.support import fuses
from specgen.models.quantized import nf4_linear
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from specgen.models.static.recorder import CudaRecorder, PlainRecorder, Recorder
from specgen.models.static.whole_pass import WholePass
from specgen.models.tensor_names import EMBEDDING, HEAD, NORM, tensor_shapes
from specgen.models.weight_memory import joined

Shape = Literal["7B", "8B", "1.5B", "0.5B"]
Quant = Literal["none", "nf4"]
STD = 0.02
"""Of random weights; also transformers' default."""


def preload() -> None:
    """Imports what takes seconds and does not start CUDA, so that forked processes have it."""
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM, StaticCache

    assert all((AutoModelForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM, StaticCache))


def prepare(name: str) -> torch.device:
    """Starts a device, and sets what specgen sets on CUDA.

    Raises:
        RuntimeError: It can't be used.
    """
    if name == "cpu":
        torch.set_num_threads(1)
        return torch.device("cpu")
    if not torch.backends.cuda.is_built():
        raise RuntimeError("this torch has no CUDA")
    device = torch.device("cuda", 0)
    torch.zeros(1, device=device)
    prepare_cuda()
    return device


def config_of(shape: Shape, *, is_tiny: bool) -> Any:
    """Returns a transformers config with the sizes of Qwen2.5 (7B, 1.5B, 0.5B) or of Llama 3.1 (8B)."""
    from transformers import LlamaConfig, Qwen2Config

    # hidden, intermediate, layers, heads, key-value heads, vocabulary
    sizes = {
        "7B": (3584, 18944, 28, 28, 4, 152064),
        "8B": (4096, 14336, 32, 32, 8, 128256),
        "1.5B": (1536, 8960, 28, 12, 2, 151936),
        "0.5B": (896, 4864, 24, 14, 2, 151936),
    }[shape]
    if is_tiny:
        sizes = (128, 256, 2, 4, 2, 512) if shape in ("7B", "8B") else (64, 128, 1, 4, 2, 512)
    hidden, intermediate, layers, heads, kv_heads, vocab = sizes
    kind: Any = LlamaConfig if shape == "8B" else Qwen2Config
    return kind(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        tie_word_embeddings=shape in ("1.5B", "0.5B"),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def spec_of(shape: Shape, *, is_tiny: bool) -> DecoderSpec:
    """Returns the decoder of a shape."""
    return decoder_spec(config_of(shape, is_tiny=is_tiny).to_dict())


def random_tensors(
    spec: DecoderSpec, device: torch.device, dtype: torch.dtype, *, is_steady: bool = False
) -> Callable[[str], Tensor]:
    """Returns random tensors of a checkpoint by name.

    Args:
        spec: The decoder; with its own head if steady.
        device: Where they are made.
        dtype: Their type.
        is_steady: The layers add little, and the head prefers the id after the last one by far. So no rounding
            changes the greedy text, which counts upwards.
    """
    shapes, generator = tensor_shapes(spec), torch.Generator(device).manual_seed(0)
    kept: dict[str, Tensor] = {}

    def normal(name: str) -> Tensor:
        std = STD
        if is_steady:
            std = 1.0 if name == EMBEDDING else STD / 10 if "o_proj" in name or "down_proj" in name else STD
        return torch.empty(shapes[name], dtype=dtype, device=device).normal_(0, std, generator=generator)

    def tensor(name: str) -> Tensor:
        if len(shapes[name]) == 1:
            fill = torch.zeros if name.endswith("bias") else torch.ones
            return fill(shapes[name], dtype=dtype, device=device)
        if name == EMBEDDING:
            kept.setdefault(name, normal(name))
            return kept[name]
        if name == HEAD and is_steady:
            return tensor(EMBEDDING).roll(1, 0)
        return normal(name)

    return tensor


def random_decoder(
    spec: DecoderSpec,
    device: torch.device,
    *,
    quant: Quant = "none",
    dtype: torch.dtype = torch.bfloat16,
    is_steady: bool = False,
) -> Decoder:
    """Returns a decoder with random weights.

    Args:
        spec: The decoder.
        device: Where it is made.
        quant: Weight format of its layers.
        dtype: The type it computes in.
        is_steady: As in `random_tensors`.
    """
    tensors = random_tensors(spec, device, dtype, is_steady=is_steady)
    linear = nf4_linear if quant == "nf4" else dense_linear

    def joined_tensors(*names: str) -> Tensor:
        return joined([tensors(name) for name in names])

    layers = [build_layer(spec, index, joined_tensors, linear, dtype) for index in range(len(spec.layers))]
    embedding = tensors(EMBEDDING)
    head = dense_linear(embedding if spec.is_tied else tensors(HEAD), None)
    return Decoder(spec, embedding, layers, Norm(tensors(NORM), spec), head).eval().requires_grad_(False)


def with_nf4_head(decoder: Decoder) -> Decoder:
    """Packs a draft's head, in place."""
    decoder.head = nf4_linear(dense_weight(decoder.head).detach(), None)
    return decoder


def bytes_per_token(decoder: Decoder) -> int:
    """Returns the bytes of weights that a pass reads: all but the rows of an embedding that is not the head, too."""
    is_dense = isinstance(decoder.head, nn.Linear)
    is_head = is_dense and dense_weight(decoder.head).data_ptr() == decoder.embedding.data_ptr()
    return weight_bytes(decoder) - (0 if is_head else decoder.embedding.nbytes)


def dense_weight(linear: nn.Module) -> Tensor:
    """Returns the weight of a layer that is not quantized."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight


def random_normal(shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Returns random numbers. After a recording that failed, torch's default generator of CUDA may fail."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.empty(tuple(shape), dtype=dtype, device=device).normal_(generator=generator)


def recorder_for(device: torch.device) -> Recorder:
    """Returns what records passes on a device."""
    return CudaRecorder(device) if device.type == "cuda" else PlainRecorder()


def eager_model(decoder: Decoder) -> DecoderModel:
    """Returns a model whose passes are launched operation by operation."""
    return DecoderModel(decoder, decoder.spec.vocab_size)


def static_model(decoder: Decoder, recorder: Recorder | None = None) -> StaticModel:
    """Returns a model with recorded passes."""
    static_pass = DecoderPass(decoder, is_fused=fuses_decoder(decoder))
    return StaticModel(static_pass, decoder.spec.vocab_size, recorder or recorder_for(decoder.device))


def fuses_decoder(decoder: Decoder) -> bool:
    """Returns whether specgen uses fused kernels for a decoder."""
    return all(fuses(segment.spec, segment.like) for segment in decoder.segments)


def whole_model(model: Any) -> StaticModel:
    """Returns a transformers model with recorded passes."""
    static_pass = WholePass(model)
    return StaticModel(static_pass, model.config.vocab_size, recorder_for(static_pass.device))


def admission(decoder: Decoder) -> str | None:
    """Returns why specgen would not use the recorded passes of a decoder as target or draft; None if it would."""
    found = [recorded(eager_model(decoder), recorder_for(decoder.device), is_draft=each) for each in (False, True)]
    reasons = [one.reason or one.unfused_reason for one in found]
    return next((reason for reason in reasons if reason is not None), None)


def failure_of(model: StaticModel) -> str | None:
    """Returns why recording failed, if it did."""
    return model.take_failure()


def num_recorded(model: StaticModel) -> int:
    """Returns the number of recordings in memory."""
    return len(model.replays.recorded_keys)


def auto_options(target: LanguageModel, options: DecodeOptions) -> DecodeOptions:
    """Returns options with the policy of `-k auto`, which knows no costs yet."""
    padded = target.padded_rows if isinstance(target, StaticModel) else None
    policy = CostAwareLength(CostTable(padded=padded), DraftCost())
    return DecodeOptions(options.settings, policy, clock=options.clock)


@torch.no_grad()
def transformers_model(config: Any, decoder: Decoder) -> Any:
    """Returns transformers' model on the tensors of a dense decoder, without a copy."""
    from transformers import AutoModelForCausalLM

    spec = decoder.spec
    tensors: dict[str, Tensor] = {EMBEDDING: decoder.embedding, NORM: decoder.norm.weight}
    if not spec.is_tied:
        tensors[HEAD] = dense_weight(decoder.head)
    for index, layer in enumerate(decoder.layers):
        tensors |= layer_tensors(spec, layer, index)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=decoder.dtype)
    model.load_state_dict({name: tensor.detach() for name, tensor in tensors.items()}, strict=False, assign=True)
    if spec.is_tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(decoder.device)
    assert not any(parameter.is_meta for parameter in model.parameters()), "every tensor has a name of the checkpoint"
    return model.eval().requires_grad_(False)


def quantize_layers(model: Any) -> Any:
    """Replaces the linear layers of a transformers model by nf4 ones, in place; not the head."""
    for parent in list(model.model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                bias = None if child.bias is None else child.bias.detach()
                setattr(parent, name, nf4_linear(child.weight.detach(), bias))
    return model
