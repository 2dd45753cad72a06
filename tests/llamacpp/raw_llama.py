"""Runs a GGUF with llama.cpp alone, as its own program does: the oracle of `test_gguf_sweep.py`.

    python -m tests.llamacpp.raw_llama FILE PROMPT TOKENS

Prints `{"text": ..., "num_prompt": ..., "ended": ...}`, or nothing if llama.cpp refuses the file; it may also end the
process. Nothing of specgen is used.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any


def main() -> None:
    sys.exit(_run())


def _run() -> int:
    import llama_cpp.llama_cpp as library
    import numpy as np

    path, prompt, limit = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
    silent = library.llama_log_callback(lambda *_: None)  # must outlive every call
    library.llama_log_set(silent, ctypes.c_void_p(0))
    library.llama_backend_init()
    model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
    if not model:
        return 3
    vocabulary = library.llama_model_get_vocab(model)
    ids = _encode(library, vocabulary, prompt)
    params = library.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 128, 1, 1
    params.n_batch = params.n_ubatch = 128
    context = library.llama_init_from_model(model, params)
    if not context:
        return 4
    found: list[int] = []
    new, has_ended = ids, False
    while len(found) < limit:
        tokens = (library.llama_token * len(new))(*new)  # the batch holds their address only
        batch = library.llama_batch_get_one(tokens, len(new))
        if library.llama_decode(context, batch):
            return 5
        width = library.llama_vocab_n_tokens(vocabulary)
        logits = np.ctypeslib.as_array(library.llama_get_logits_ith(context, -1), (width,))
        if not np.isfinite(logits).all():
            return 8
        token = int(logits.argmax())
        has_ended = bool(library.llama_vocab_is_eog(vocabulary, token))
        if has_ended:
            break
        found.append(token)
        new = [token]
    text = b"".join(_piece(library, vocabulary, token) for token in found)
    print(json.dumps({"text": text.decode("utf-8", "replace"), "num_prompt": len(ids), "ended": has_ended}))
    return 0


def _encode(library: Any, vocabulary: Any, prompt: bytes) -> list[int]:
    room = len(prompt) + 16
    ids = (library.llama_token * room)()
    return list(ids[: library.llama_tokenize(vocabulary, prompt, len(prompt), ids, room, True, True)])


def _piece(library: Any, vocabulary: Any, token: int) -> bytes:
    room = ctypes.create_string_buffer(1 << 16)
    length = library.llama_token_to_piece(vocabulary, token, room, len(room), 0, False)
    return room.raw[:length]


if __name__ == "__main__":
    main()
