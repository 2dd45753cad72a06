"""Builds the tokenizer that a GGUF header describes, with the `tokenizers` package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from specgen.loading.gguf.end_tokens import END_TOKENS

_SPECIAL, _USER_DEFINED = (2, 3), 4
"""Types of tokens that are matched in the text before anything else; special are unknown and control."""
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD, _SPACES = r"[^\r\n\p{L}\p{N}]?", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = rf"{_WORD}{_UPPER}*{_LOWER}+%s|{_WORD}{_UPPER}+{_LOWER}*%s"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SYMBOLS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


@dataclass(frozen=True, slots=True)
class _Splitting:
    """How a byte-level vocabulary splits text into words.

    Args:
        pattern: Matches one word; empty: GPT-2's own.
        separates_digits: Each digit is a word, before the pattern is applied.
        ignores_merges: A word that is a token is not built by merges.
        adds_bos: A text begins with the bos token unless the file says otherwise.
    """

    pattern: str = ""
    separates_digits: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False


_QWEN2 = _Splitting(rf"{_CONTRACTIONS}|{_WORD}\p{{L}}+|\p{{N}}|{_SYMBOLS}|{_SPACES}")
_LLAMA3_PATTERN = rf"{_CONTRACTIONS}|{_WORD}\p{{L}}+|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_LLAMA3 = _Splitting(_LLAMA3_PATTERN, ignores_merges=True, adds_bos=True)
_GPT_4O = _Splitting(
    rf"{_CASES % (_CONTRACTIONS + '?', _CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_SYMBOLS_OR_SLASH}|{_SPACES}"
)
_TEKKEN = _Splitting(rf"{_CASES % ('', '')}|\p{{N}}|{_SYMBOLS_OR_SLASH}|{_SPACES}", ignores_merges=True, adds_bos=True)
_SPLITTINGS: Mapping[str, _Splitting] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), _Splitting()),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        _Splitting(separates_digits=True),
    ),
    **dict.fromkeys(("qwen2", "stablelm2", "hunyuan", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), _QWEN2),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "midm-2.0", "lfm2"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _Splitting(_LLAMA3_PATTERN)),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT_4O),
}
"""By the name of llama.cpp's pre-tokenizer. Sources: llama-vocab.cpp, and the tokenizer.json it was made from.

A file without a name, or with `default`, is split as GPT-2's on every backend, as transformers does: llama.cpp has a
rule for it that no model was trained with, and warns."""
_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3n", "gemma-embedding")
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


class UnsupportedTokenizer(Exception):
    """A tokenizer that is not built here. The text names the entry and its value."""


def build_tokenizer(entries: Mapping[str, Any]) -> Tokenizer:
    """Builds a tokenizer.

    Args:
        entries: Of the header: `general.architecture`, and all that begin with `tokenizer.`.

    Raises:
        UnsupportedTokenizer: Another library must read it.
        Exception: The vocabulary is inconsistent; the bindings have no type of their own for it.
    """
    kind, tokens = entries.get("tokenizer.ggml.model"), entries.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or len(set(tokens)) != len(tokens):
        raise UnsupportedTokenizer("tokenizer.ggml.tokens has a token twice" if tokens else "it has no tokens")
    if kind == "gpt2":
        backend, adds_bos = _byte_level(entries, tokens)
    elif kind == "llama":
        backend, adds_bos = _sentencepiece(entries, tokens), True
    else:
        raise UnsupportedTokenizer(f"tokenizer.ggml.model is {kind!r}")
    named = {_special(entries, key) for key in (*_NAMED.values(), "eot", "eom")}
    # As in llama.cpp, what ends a text is a control token, whatever its type says.
    named |= {token for token in tokens if token.encode() in END_TOKENS}
    types = entries.get("tokenizer.ggml.token_type") or [None] * len(tokens)
    vocabulary = backend.get_vocab()
    typed = [(token, kind) for token, kind in zip(tokens, types, strict=True) if token in vocabulary]
    special = [token for token, kind in typed if kind in _SPECIAL or token in named]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    user_defined = [token for token, kind in typed if kind == _USER_DEFINED and token not in named]
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in user_defined])
    backend.post_processor = _template(entries, adds_bos=adds_bos)
    return backend


def save_tokenizer(backend: Tokenizer, entries: Mapping[str, Any], folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and the chat template."""
    backend.save(str(folder / "tokenizer.json"))
    named = {name: token for name, key in _NAMED.items() if (token := _special(entries, key)) is not None}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if isinstance(template := entries.get("tokenizer.chat_template"), str) and template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _byte_level(entries: Mapping[str, Any], tokens: Sequence[str]) -> tuple[Tokenizer, bool]:
    name = entries.get("tokenizer.ggml.pre", "default")
    splitting = _SPLITTINGS.get(name)
    if splitting is None:
        raise UnsupportedTokenizer(f"tokenizer.ggml.pre is {name!r}")
    merges = entries.get("tokenizer.ggml.merges")
    if merges is None:
        raise UnsupportedTokenizer("tokenizer.ggml.merges is missing")
    backend = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in merges],
            continuing_subword_prefix="",
            end_of_word_suffix="",
            ignore_merges=splitting.ignores_merges,
        )
    )
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if splitting.separates_digits else []
    if splitting.pattern:
        steps.append(pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splitting.pattern))
    backend.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend, splitting.adds_bos


def _sentencepiece(entries: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    # As in llama.cpp, the kind of table decides, whatever the architecture (Phi-3, MiniCPM, InternLM).
    is_gemma = entries.get("general.architecture") in _GEMMA
    if is_gemma:
        # The files have runs of spaces as they are; the order of Gemma's merges is that of its tokens.
        tokens = ["▁" * len(token) if " " in token and not token.strip() else token for token in tokens]
        scores: Sequence[float] = range(0, -len(tokens), -1)
    else:
        scores = entries.get("tokenizer.ggml.scores") or ()
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(scores) != len(tokens) or len(vocabulary) != len(tokens):
        raise UnsupportedTokenizer("tokenizer.ggml.scores is missing")
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, scores),
            fuse_unk=True,
            byte_fallback=True,
            unk_token=(_special(entries, "unknown") or "<unk>") if is_gemma else None,
        )
    )
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if is_gemma:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        has_prefix = entries.get("tokenizer.ggml.add_space_prefix") is not False
        scheme: Any = "first" if has_prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        steps += [decoders.Strip(content=" ", left=1)] if has_prefix else []
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Returns the pairs of tokens that join to a token, the best token first: a file has none for SentencePiece."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, index in vocabulary.items():
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(scores[index], len(left), len(right), left, right) for left, right in pairs]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _template(entries: Mapping[str, Any], *, adds_bos: bool) -> Any:
    def named(key: str, default: bool) -> list[tuple[str, int]]:
        token, index = _special(entries, key), entries.get(f"tokenizer.ggml.{key}_token_id")
        is_added = entries.get(f"tokenizer.ggml.add_{key}_token", default)
        return [(token, index)] if is_added and token is not None and isinstance(index, int) else []

    first, last = named("bos", adds_bos), named("eos", False)

    def sequence(name: str, kind: int) -> list[str]:
        return [
            *(f"{token}:{kind}" for token, _ in first),
            f"${name}:{kind}",
            *(f"{token}:{kind}" for token, _ in last),
        ]

    single = sequence("A", 0)
    return processors.TemplateProcessing(
        single=single, pair=[*single, *sequence("B", 1)], special_tokens=[*first, *last]
    )


def _special(entries: Mapping[str, Any], key: str) -> str | None:
    tokens, index = entries["tokenizer.ggml.tokens"], entries.get(f"tokenizer.ggml.{key}_token_id")
    # -1, as a signed or unsigned number, means that the model has no such token.
    return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None
