"""Builds tiny random models of every decoder architecture that transformers knows, as folders on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.hybrids import HYBRIDS, LIMITED, MAMBA
from tests.toys import toy_tokenizer

WINDOW = 24
"""Tokens that a layer with a sliding window or chunked attention reads."""
MODEL_TYPES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

_WIDTH, _HEADS, _HEAD_SIZE, _LAYERS = 32, 4, 8, 4
_SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "embedding_size", "emb_dim"), _WIDTH
    ),
    **dict.fromkeys(
        ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "decoder_layers", "encoder_layers"), _LAYERS
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), _HEADS),
    **dict.fromkeys(("num_key_value_heads", "decoder_num_key_value_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "global_head_dim", "v_head_dim", "swa_head_dim"), _HEAD_SIZE),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("qk_head_dim", "linear_key_head_dim", "linear_value_head_dim"), _HEAD_SIZE),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), _HEADS),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 64),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp", "expert_ffn_hidden_size"),
        16,
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 320),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 512),
    **dict.fromkeys(("sliding_window", "window_size", "attention_chunk_size", "local_attention"), WINDOW),
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "sliding_window_pattern": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "initializer_range": 0.3,
}
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3], **MAMBA},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "dots3_note_text": {"num_key_value_heads": _HEADS},
    "falcon_h1": HYBRIDS["FalconH1"],
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, **MAMBA},
    "hrm_text": {"num_layers_per_stack": 1, "H_cycles": 1, "L_cycles": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": HYBRIDS["Mamba2"],
    "moshi": {"sliding_window": 512},  # its masks know no window, so a smaller one is all of the context
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (16, 32)},
    "zamba2": LIMITED["Zamba2"],
    "zaya": {"num_experts_per_tok": 1},
}
"""Sizes that must fit each other, by model type."""


def build_folder(model_type: str, folder: Path, noise: float = 0.0) -> None:
    """Saves a random float32 model with the tests' tokenizer; with noise, a draft that sometimes agrees with it."""
    config = _tiny_config(transformers.CONFIG_MAPPING[model_type], _OWN.get(model_type, {}))
    torch.manual_seed(0)
    auto_model: Any = transformers.AutoModelForCausalLM
    model = auto_model.from_config(config).float().eval()
    _spread(model, noise)
    model.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)


def empty_model(model_type: str) -> Any:
    """Builds a model without memory for its weights."""
    config = _tiny_config(transformers.CONFIG_MAPPING[model_type], _OWN.get(model_type, {}))
    auto_model: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        return auto_model.from_config(config)


def _tiny_config(config_class: Any, own: dict[str, Any]) -> Any:
    """Returns a config with the class's defaults, each known size made small."""
    return config_class(**{**_small_values(config_class), **own})


def _small_values(config_class: Any) -> dict[str, Any]:
    values = config_class().to_dict()
    aliases = {key for key in config_class.attribute_map if config_class.attribute_map[key] in values}
    small = {key: size for key, size in _SIZES.items() if key in values and key not in aliases}
    for key, value in values.items():
        # Sizes and kinds per layer follow from the number of layers if they are not given.
        if key not in small and isinstance(value, list) and key.startswith(("layer_types", "mlp_layer_types")):
            small[key] = None
    if "qk_rope_head_dim" in values:
        # Latent attention: other sizes follow from these.
        small |= {"num_key_value_heads": _HEADS}
        small.pop("head_dim", None)
    for name, inner in config_class.sub_configs.items():
        if isinstance(values.get(name), dict) and inner is not transformers.AutoConfig:
            small[name] = _small_values(inner)
        elif isinstance(values.get(name), dict):
            inner_class: Any = transformers.CONFIG_MAPPING[values[name]["model_type"]]
            small[name] = {"model_type": values[name]["model_type"], **_small_values(inner_class)}
    return small


def _spread(model: torch.nn.Module, noise: float) -> None:
    """Scales weights so that the logits of a random model are far apart, then adds noise, a share of their spread."""
    for parameter in model.parameters():
        if parameter.ndim >= 2 and 0 < parameter.std() < 0.1:
            parameter.data *= 0.2 / parameter.std()
        if noise:
            parameter.data += noise * parameter.std(correction=0) * torch.randn_like(parameter)


_COMPOSED = "its config is made of those of other models, which have no small defaults"
_SIZES_UNKNOWN = "no small sizes are known that fit each other"
UNBUILT: dict[str, str] = {
    **dict.fromkeys(("blt", "dots3_note", "musicgen", "musicgen_melody", "phi4_multimodal"), _COMPOSED),
    **dict.fromkeys(("cohere_compass_text", "dbrx", "dots3_note_text", "gemma4_assistant"), _SIZES_UNKNOWN),
    **dict.fromkeys(("inkling2_loop_text", "inkling2_text", "longcat_flash"), _SIZES_UNKNOWN),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text", "zamba"), _SIZES_UNKNOWN),
    **dict.fromkeys(("emu3", "mllama"), "its text model is saved under a type that no causal model has: refused"),
    "gemma3n": "needs the library timm for its images; gemma3n_text is the text model inside",
    "xmod": "needs a language to be set in code",
}
"""Architectures that are not tried, and why."""
BROKEN: dict[str, str] = {
    "cpmant": "its code can't continue from a cache with several tokens",
    "prophetnet": "its code can't continue from a cache with several tokens",
    "xlm": "has no cache of the usual kind: its code fails in the second pass",
}
"""Architectures that are refused by a pass at load, and why."""
REFUSED: dict[str, str] = {
    "bailing_hybrid": "BailingHybridDeltaAttention",
    "deepseek_v4": "DeepseekV4HCACache",
    "falcon_mamba": "FalconMambaMixer",
    "gemma4_unified_assistant": "Gemma4UnifiedTextAttention",
    "inkling_text": "InklingShortConvolution",
    "jamba": "JambaMambaMixer",
    "kimi_linear": "KimiLinearDeltaAttention",
    "lara_mini": "LaraMiniGatedDeltaNet",
    "lfm3": "Lfm3ShortConv",
    "mamba": "MambaMixer",
    "minimax": "MiniMaxLightningAttention",
    "nemotron_h": "NemotronHMamba2Mixer",
    "openai-gpt": "Attention",
    "recurrent_gemma": "RecurrentGemmaRecurrentBlock",
    "reformer": "ReformerAttention",
    "rwkv": "RwkvSelfAttention",
    "xlnet": "XLNetRelativeAttention",
    "xlstm": "xLSTMLayer",
    "zamba2": "Zamba2MambaMixer",
    "zaya": "ZayaAttention",
}
"""Architectures whose rejected draft tokens can't be removed, and the kind of the layers that cause it."""
