"""Toy models whose answers are known in advance: a table gives the next token for the last one.

A toy is a real Llama with a real byte-level tokenizer, so it uses the same loading, engine and text code as any other
model. Its attention and MLP add nothing, its embedding is the identity, and its output layer is the table.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from specgen.core.draft_name import DraftName
from specgen.core.settings import ModelSettings

WORDS = ("The", "Ġquick", "Ġbrown", "Ġfox", "Ġdrinks", "Ġcaf", "Ġat", "Ġdaw", "Ġlat")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOL_TOKENS = ("<tool_call>", "</tool_call>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAIN = ("\n", "The", " quick", " brown", " fox", " drinks", " caf", b"\xc3", b"\xa9", " at", b"\xe6", b"\x97", b"\xa5")
"""What a toy answers after the line end of `assistant\\n`: words, then characters of several tokens each."""
END = "<|im_end|>"
ANSWER = "The quick brown fox drinks café at日🙂."


def draft_named_by(settings: ModelSettings) -> tuple[DraftName, ModelSettings]:
    """Returns the arguments of `with_draft` for a draft model."""
    return DraftName(settings.name), settings


@cache
def toy_tokenizer(*, extra: Sequence[str] = (), template: str | None = CHAT_TEMPLATE, normalizer: Any = None) -> Any:
    """Returns a byte-level BPE of 292 tokens: all bytes, some words, special tokens, tool tokens that are not special.

    Args:
        extra: Further tokens at the end.
        template: Chat template.
        normalizer: Applied to text other than special tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for word in WORDS:
        for length in range(2, len(word) + 1):
            if word[:length] not in tokens:
                tokens.append(word[:length])
                merges.append((word[: length - 1], word[length - 1]))
    raw = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    if normalizer is not None:
        raw.normalizer = normalizer
    raw.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    raw.add_tokens([AddedToken(text, special=False) for text in (*TOOL_TOKENS, *extra)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|endoftext|>", eos_token=END, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def token_id(token: str | bytes) -> int:
    """Returns the only id of a word, or of one byte of a character."""
    tokenizer = toy_tokenizer()
    if isinstance(token, bytes):
        from tokenizers import pre_tokenizers

        # The alphabet maps bytes to printable characters; a lone byte can't be encoded as text.
        pretty = {char: index for index, char in enumerate(_byte_characters())}
        assert set(pretty) == set(pre_tokenizers.ByteLevel.alphabet())
        return int(tokenizer.convert_tokens_to_ids(_byte_characters()[token[0]]))
    (only,) = tokenizer.encode(token)
    return int(only)


@cache
def _byte_characters() -> list[str]:
    """Returns GPT-2's printable character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@cache
def stranger_tokenizer(*, words: Sequence[str] = WORDS) -> Any:
    """Returns a BPE with word marks and byte tokens, whose ids have nothing in common with the toy's."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    marked = [word.replace("Ġ", "▁") for word in words]
    tokens = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(set("".join(marked)) | {"▁", "."})]
    merges = []
    for word in marked:
        for length in range(2, len(word) + 1):
            if word[:length] not in tokens:
                tokens.append(word[:length])
                merges.append((word[: length - 1], word[length - 1]))
    raw = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges, byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|endoftext|>", eos_token=END)


def save_stranger(folder: Path, *, words: Sequence[str] = WORDS, num_positions: int = 512) -> Path:
    """Writes a model folder that answers `ANSWER` with the tokens of `stranger_tokenizer`."""
    tokenizer = stranger_tokenizer(words=tuple(words))
    chain = [*tokenizer.encode("\n" + ANSWER), tokenizer.convert_tokens_to_ids(END)]
    return save_toy(folder, tokenizer=tokenizer, model=table_model(dict(itertools.pairwise(chain)), num_positions))


def successors(**changes: str | bytes) -> dict[int, int]:
    """Returns the next token of each token of `ANSWER`; its end token is followed by its start.

    Args:
        **changes: Other successors of words: `fox=" quick"`.
    """
    chain = [*CHAIN, b"\xf0", b"\x9f", b"\x99", b"\x82", ".", END, "The"]
    ids = [token_id(token) for token in chain]
    table = dict(itertools.pairwise(ids))
    for word, successor in changes.items():
        table[token_id(f" {word}")] = token_id(successor)
    return table


def table_model(table: Mapping[int, int], num_positions: int = 512) -> Any:
    """Returns a Llama whose next token after i is `table[i]`; float32, one millisecond per pass."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width = 320
    assert len(toy_tokenizer()) <= width
    config = LlamaConfig(
        vocab_size=width,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=num_positions,
        tie_word_embeddings=False,
        bos_token_id=token_id("<|endoftext|>"),
        eos_token_id=token_id(END),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(width))
        model.lm_head.weight.zero_()
        for last, following in table.items():
            model.lm_head.weight[following, last] = 1.0
    return model


def save_toy(
    folder: Path, *, num_positions: int = 512, tokenizer: Any = None, model: Any = None, **changes: str | bytes
) -> Path:
    """Writes a complete model folder that answers `ANSWER` in any chat.

    Args:
        folder: Created.
        num_positions: The model's window.
        tokenizer: Default: `toy_tokenizer()`.
        model: Default: `table_model`.
        **changes: See `successors`.
    """
    (model or table_model(successors(**changes), num_positions)).save_pretrained(folder)
    (tokenizer or toy_tokenizer()).save_pretrained(folder)
    return folder


def random_toy(seed: int = 0, **changes: Any) -> Any:
    """Returns a random Llama over the toy tokenizer's ids: it generates any bytes, and control tokens."""
    from tests.loading.builders import make_model

    return make_model(
        seed, **{"vocab_size": 320, "max_position_embeddings": 512, "bos_token_id": 287, "eos_token_id": 289, **changes}
    )
