"""Tiny random targets of every supported architecture, and texts with their features."""

from __future__ import annotations

from typing import Any

import torch

from specgen.distill.target_texts import TargetText

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
FAMILIES = ("Llama", "Qwen2", "Qwen3", "Mistral")


def make_target(family: str = "Llama", seed: int = 0, **changes: Any) -> Any:
    """A random model, float32, full attention."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**{**SIZES, "sliding_window": None, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        for name, parameter in model.named_parameters():
            # With its initial value, a bias or scale that is ignored would have no effect.
            if name.endswith("bias") or parameter.ndim == 1:
                torch.nn.init.normal_(parameter.data, mean=float(not name.endswith("bias")), std=0.2)
    return model.requires_grad_(False)


def make_text(model: Any, length: int, num_prompt: int, seed: int) -> TargetText:
    """A random text with transformers' own head inputs."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.config.vocab_size, (length,), generator=generator)
    return TargetText(ids, num_prompt, model.model(ids[None]).last_hidden_state[0, :-1])
