"""Names the tokens of a GGUF that end a text because of what they spell, as llama.cpp does.

Fine-tunes often keep the eos of their base model and end a turn with another token.
"""

from __future__ import annotations

from collections.abc import Mapping

END_TOKENS = frozenset(
    {
        *(b"<|eot_id|>", b"<|im_end|>", b"<|end|>", b"<|return|>", b"<|call|>", b"<|flush|>", b"<|calls|>"),
        *(b"<end_of_turn>", b"<|endoftext|>", b"</s>", b"<|eom_id|>", b"<EOT>", b"_<EOT>", b"[EOT]", b"[EOS]"),
        *(b"<|end_of_text|>", b"<end_of_utterance>", b"<eos>", b"<turn|>", b"<|tool_response>"),
    }
)
"""Source: llama-vocab.cpp, `special_eog_ids`."""


def ending_ids(spelled: Mapping[bytes, int]) -> list[int]:
    """Returns the ids of the tokens that end a text.

    Args:
        spelled: The tokens of the file that are in `END_TOKENS`, and their ids.
    """
    excluded = set()
    # In these formats <|end|> ends a part of a reply (harmony, Solar), and </s> is text (Gemma 4).
    if {b"<|return|>", b"<|call|>"} <= spelled.keys() or {b"<|calls|>", b"<|flush|>"} <= spelled.keys():
        excluded.add(b"<|end|>")
    if b"<|tool_response>" in spelled:
        excluded.add(b"</s>")
    return [token_id for token, token_id in spelled.items() if token not in excluded]
