"""Makes tiny random checkpoints with a multi-token-prediction head, and computes its logits over a whole text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fakes import TINY
from tests.hybrids import HYBRIDS, hybrid_model
from tests.toys import toy_tokenizer

_MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
_ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_OTHERS: dict[str, dict[str, Any]] = {
    "Glm4Moe": {"head_dim": 8, "use_qk_norm": True, "num_mtp_layers": 1, **_MOE, **_ROUTED},
    "DeepseekV3": {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "num_mtp_layers": 1,
        **_MOE,
        **_ROUTED,
    },
    "Mellum": {
        "head_dim": 8,
        "num_experts": 4,
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 6,
        "num_mtp_layers": 1,
        **_MOE,
    },
}
AS_A_LAYER = ("Glm4Moe", "DeepseekV3")
"""Their head is a further layer; the others have names that begin with `mtp`."""
QWEN = ("Qwen3_5", "Qwen3_5Moe", "Qwen3Next")
# Mellum is not in all supported versions of transformers.
KINDS = tuple(kind for kind in (*QWEN, *_OTHERS) if hasattr(transformers, f"{kind}ForCausalLM"))


@cache
def target_model(kind: str, vocab_size: int = 96, **changes: Any) -> Any:
    """Makes a random float32 model of an architecture whose checkpoints have a head."""
    if kind in QWEN and not changes:
        model = copy.deepcopy(hybrid_model(kind, vocab_size))
    else:
        torch.manual_seed(3)
        own = HYBRIDS[kind] if kind in QWEN else _OTHERS[kind]
        config_class = getattr(transformers, f"{kind}TextConfig", None) or getattr(transformers, f"{kind}Config")
        config = config_class(**{**TINY, **own, "vocab_size": vocab_size, **changes})
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    # With equal weights, the next norm would hide whether the last one was applied.
    generator = torch.Generator().manual_seed(5)
    model.model.norm.weight.data += torch.randn(model.config.hidden_size, generator=generator) * 0.3
    return model


def random_tensors(model: Any, kind: str) -> dict[str, Tensor]:
    """Returns a random head's tensors by their names in a checkpoint; experts are stored one by one."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = ["sliding_attention" if kind == "Mellum" else "full_attention"]
    if getattr(config, "mlp_layer_types", None):
        config.mlp_layer_types = ["sparse"]
    if hasattr(config, "first_k_dense_replace"):
        config.first_k_dense_replace = 0
    hidden = config.hidden_size
    generator = torch.Generator().manual_seed(11)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    if kind in AS_A_LAYER:
        stem = f"model.layers.{model.config.num_hidden_layers}."
        own, layer_stem = ("eh_proj", "enorm", "hnorm", "shared_head.norm"), stem
    else:
        stem = "mtp."
        own, layer_stem = ("fc", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"), "mtp.layers.0."
    # Qwen stores the weights of norms minus 1.
    center = 0.0 if kind in QWEN else 1.0
    tensors = {f"{stem}{own[0]}.weight": random(hidden, 2 * hidden)}
    tensors |= {f"{stem}{name}.weight": center + random(hidden) for name in own[1:]}
    with torch.device("meta"):
        block = type(model.model.layers[-1])(config, 0)
    for name, like in block.state_dict().items():
        value = random(*like.shape) + (center if name.endswith("norm.weight") else 0.0)
        if like.ndim < 3:
            tensors[layer_stem + name] = value
            continue
        experts = f"{layer_stem}{name.rpartition('.')[0]}"
        for index, matrix in enumerate(value):
            if name.endswith("gate_up_proj"):
                gate, up = matrix.chunk(2)
                tensors |= {f"{experts}.{index}.gate_proj.weight": gate, f"{experts}.{index}.up_proj.weight": up}
            else:
                tensors[f"{experts}.{index}.down_proj.weight"] = matrix
    return {name: value.contiguous() for name, value in tensors.items()}


def save_with_mtp(
    folder: Path, kind: str, *, is_oracle: bool = False, change: Change = lambda tensors: tensors, **changes: Any
) -> Path:
    """Saves a target and its head in one file, with the tests' tokenizer.

    Args:
        is_oracle: The target reads the last token only, and the head computes the same.
        change: Returns the tensors to save.
        **changes: Of the target's config.
    """
    tokenizer = toy_tokenizer()
    model = target_model(kind, len(tokenizer), **changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **random_tensors(model, kind)}
    if is_oracle:
        tensors = without_layers(tensors, kind)
    save_file(change(tensors), path, metadata={"format": "pt"})
    return folder


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def without_layers(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Returns tensors with which no layer adds anything, and the head reads the token alone."""
    (product,) = (name for name in tensors if name.endswith(("mtp.fc.weight", "eh_proj.weight")))
    (norm,) = (name for name in tensors if name.endswith(("norm_embedding.weight", "enorm.weight")))
    (last,) = (name for name in tensors if name.endswith(("mtp.norm.weight", "shared_head.norm.weight")))
    hidden = tensors[product].shape[0]
    outputs = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "down_proj")
    changed = {name: value * 0 if name.endswith(outputs) else value for name, value in tensors.items()}
    changed[product] = torch.cat([torch.eye(hidden), torch.zeros(hidden, hidden)], dim=1)
    changed[norm] = torch.full((hidden,), 0.0 if kind in QWEN else 1.0)
    changed[last] = tensors["model.norm.weight"].clone()
    return changed


class SlowMtp:
    """A head's logits as its definition says: over the whole text each time.

    At index i from 1 on, it reads the token at i and the target's feature at i - 1; for drafted tokens, its own output
    in place of that feature.

    Args:
        kind: Of the target.
        vocab_size: Of the target.
    """

    def __init__(self, kind: str, vocab_size: int = 96) -> None:
        self.target = target_model(kind, vocab_size)
        tensors = random_tensors(self.target, kind)
        self._outputs = QwenHead(self.target, tensors) if kind in QWEN else MtpModelHead(self.target, tensors)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], tail: Sequence[int] = (), start: int = 1) -> Tensor:
        """Returns `[1, vocab]` after a text and drafted tokens."""
        text = [*ids, *tail]
        features = self.target.model(torch.tensor([ids])).last_hidden_state[0][: len(ids) - 1]
        output = torch.zeros(1, self.target.config.hidden_size)
        # Drafted tokens run one at a time: each needs the output before it.
        for length in range(len(ids), len(text) + 1):
            if length > len(ids):
                features = torch.cat([features, output[-1:]])
            if length > start:
                output = self._outputs(text[start:length], features[start - 1 : length - 1])
        logits: Tensor = self.target.lm_head(output[-1:])
        return logits


class MtpModelHead:
    """Outputs of transformers' `MtpModel`."""

    def __init__(self, target: Any, tensors: dict[str, Tensor]) -> None:
        from transformers.modeling_layers import MtpModel

        self._model = MtpModel(target, 1).eval()
        stem = "mtp.layers.0." if "mtp.fc.weight" in tensors else f"model.layers.{target.config.num_hidden_layers}."
        own = {
            "mtp.fc": "eh_proj",
            "mtp.pre_fc_norm_embedding": "enorm",
            "mtp.pre_fc_norm_hidden": "hnorm",
            "mtp.norm": "post_norm",
            f"{stem}shared_head.norm": "post_norm",
            **{f"{stem}{name}": name for name in ("eh_proj", "enorm", "hnorm")},
        }
        renamed = {}
        for name, value in tensors.items():
            module = name.removesuffix(".weight")
            inner = own[module] + ".weight" if module in own else "mtp_block." + name.removeprefix(stem)
            renamed[f"layers.0.{inner}"] = value
        expected = self._model.layers.state_dict()
        fused = {name.removeprefix("layers."): value for name, value in with_fused_experts(renamed).items()}
        assert fused.keys() == expected.keys()
        self._model.layers.load_state_dict(fused)

    def __call__(self, ids: Sequence[int], features: Tensor) -> Tensor:
        positions = torch.arange(1, len(ids) + 1)[None]
        output: Tensor = self._model.forward_layer(0, features[None], positions, None, input_ids=torch.tensor([ids]))
        return output[0]


def with_fused_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors in which all experts of a layer are one tensor, as in transformers' modules."""
    single = {name: value for name, value in tensors.items() if ".experts." in name}
    fused = {name: value for name, value in tensors.items() if name not in single}
    for stem in {name.partition(".experts.")[0] for name in single}:
        count = 1 + max(int(name.partition(".experts.")[2].partition(".")[0]) for name in single)
        of = {part: [single[f"{stem}.experts.{i}.{part}_proj.weight"] for i in range(count)] for part in _PRODUCTS}
        gate_up = [torch.cat(pair) for pair in zip(of["gate"], of["up"], strict=True)]
        fused[f"{stem}.experts.gate_up_proj"] = torch.stack(gate_up)
        fused[f"{stem}.experts.down_proj"] = torch.stack(of["down"])
    return fused


_PRODUCTS = ("gate", "up", "down")


class QwenHead:
    """Outputs of the head of Qwen3-Next and Qwen3.5, in plain products: gated attention, then a gated feed-forward.

    Weights of norms are stored minus 1. Sources: the checkpoints' names, and the release of Qwen3-Next.
    """

    norm_offset = 1.0

    def __init__(self, target: Any, tensors: dict[str, Tensor]) -> None:
        self._config, self._tensors = target.config, tensors
        self._embedding: Tensor = target.get_input_embeddings().weight

    def __call__(self, ids: Sequence[int], features: Tensor) -> Tensor:
        embedded = self._embedding[torch.tensor(ids)]
        joined = [self._norm("pre_fc_norm_embedding", embedded), self._norm("pre_fc_norm_hidden", features)]
        hidden = torch.cat(joined, dim=-1) @ self._tensors["mtp.fc.weight"].T
        hidden = hidden + self._attention(self._norm("layers.0.input_layernorm", hidden))
        hidden = hidden + self._feed_forward(self._norm("layers.0.post_attention_layernorm", hidden))
        return self._norm("norm", hidden)

    def _weight(self, name: str) -> Tensor:
        return self._tensors[f"mtp.layers.0.{name}.weight"]

    def _norm(self, name: str, values: Tensor) -> Tensor:
        scale = (values.pow(2).mean(-1, keepdim=True) + self._config.rms_norm_eps).rsqrt()
        return values * scale * (self.norm_offset + self._tensors[f"mtp.{name}.weight"])

    def _attention(self, hidden: Tensor) -> Tensor:
        config, num_tokens = self._config, hidden.shape[0]
        size, num_heads, num_kv = config.head_dim, config.num_attention_heads, config.num_key_value_heads
        queries, gates = (
            (hidden @ self._weight("self_attn.q_proj").T).view(num_tokens, num_heads, 2 * size).chunk(2, -1)
        )
        keys = (hidden @ self._weight("self_attn.k_proj").T).view(num_tokens, num_kv, size)
        values = (hidden @ self._weight("self_attn.v_proj").T).view(num_tokens, num_kv, size)
        queries = self._rotated(self._norm("layers.0.self_attn.q_norm", queries))
        keys = self._rotated(self._norm("layers.0.self_attn.k_norm", keys))
        mixed = torch.zeros(num_tokens, num_heads, size)
        for token in range(num_tokens):
            for head in range(num_heads):
                group = head * num_kv // num_heads
                scores = keys[: token + 1, group] @ queries[token, head] / size**0.5
                mixed[token, head] = scores.softmax(0) @ values[: token + 1, group]
        gated = mixed.flatten(1) * gates.flatten(1).sigmoid()
        return gated @ self._weight("self_attn.o_proj").T

    def _rotated(self, heads: Tensor) -> Tensor:
        rope = self._config.rope_parameters
        size = int(self._config.head_dim * rope.get("partial_rotary_factor", 1.0))
        frequencies = rope["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        angles = (torch.arange(1, heads.shape[0] + 1)[:, None] * frequencies)[:, None]
        first, second = heads[..., : size // 2], heads[..., size // 2 : size]
        turned = [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()]
        return torch.cat([*turned, heads[..., size:]], dim=-1)

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        if "mtp.layers.0.mlp.gate_proj.weight" in self._tensors:
            return self._gated("mlp", hidden)
        probabilities = (hidden @ self._weight("mlp.gate").T).softmax(-1)
        weights, chosen = probabilities.topk(self._config.num_experts_per_tok, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        mixed = (hidden @ self._weight("mlp.shared_expert_gate").T).sigmoid() * self._gated("mlp.shared_expert", hidden)
        for token in range(hidden.shape[0]):
            for weight, expert in zip(weights[token], chosen[token].tolist(), strict=True):
                mixed[token] += weight * self._gated(f"mlp.experts.{expert}", hidden[token])
        return mixed

    def _gated(self, name: str, hidden: Tensor) -> Tensor:
        gate, up = (hidden @ self._weight(f"{name}.{part}_proj").T for part in ("gate", "up"))
        return (gate * gate.sigmoid() * up) @ self._weight(f"{name}.down_proj").T
