"""Loads a model folder's tokenizer. Reads no weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from specgen.core.errors import ModelFileError, PairError, first_line, library_failures
from specgen.core.model_files import MAX_JSON_BYTES, read_optional_json
from specgen.text.tokenizer_file import TOKENIZER_FILE, Tokenizer, processor_template, read_tokenizer_file
from specgen.text.vocabulary import table_size

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_READ = (
    *("tokenizer*", "vocab*", "merges*", "added_tokens.json", "special_tokens_map.json", "tekken.json"),
    *("*.model", "*.tiktoken", "*.jinja", "chat_template*", "additional_chat_templates/*"),
)
"""Files that transformers reads into memory for a tokenizer: by name, or by pattern where names vary."""

_MAX_DROPPED = 8
"""Added tokens without an embedding; with more, the tokenizer is another model's."""
T = TypeVar("T")


def load_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer of a model folder.

    Returns:
        A `Tokenizer`; without a tokenizer.json, a `transformers.PreTrainedTokenizerBase`, which has the same methods.

    Raises:
        ModelFileError: It is missing, damaged, comes with its own code, or can't decode token by token.
    """
    if not has_tokenizer(folder):
        hint = f"copy {_FILES[0]} of the same model into it"
        if folder.parent.name == "snapshots":  # the hub's cache: nothing should be copied into it
            hint = f"download the repository into a folder (hf download --local-dir), and {hint}"
        raise ModelFileError(f"{folder} has no tokenizer", hint)
    for path in sorted(path for pattern in _READ for path in folder.glob(pattern)):
        if path.is_file() and path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFileError(f"{path} is too large for a tokenizer: more than {MAX_JSON_BYTES >> 20} MiB")
    if not (folder / TOKENIZER_FILE).is_file():
        return _read_other(folder)
    return read_tokenizer_file(folder)


def _read_other(folder: Path) -> Any:
    """Loads a tokenizer without a tokenizer.json, by transformers."""
    _refuse_code(folder / "tokenizer_config.json")
    from transformers import AutoTokenizer

    tokenizer: Any = checked_library_call(
        lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
        f"the tokenizer of {folder} can't be loaded",
    )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelFileError(
            f"the tokenizer of {folder} is in Python only: the `tokenizers` package has no {type(tokenizer).__name__}",
            f"choose a model that has a {TOKENIZER_FILE}",
        )
    if not tokenizer.chat_template:
        # transformers reads these files for a processor only.
        tokenizer.chat_template = processor_template(folder)
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a folder has a file that a tokenizer is read from."""
    return any((folder / name).is_file() for name in _FILES)


def check_num_rows(num_tokens: int, num_rows: int | None, folder: Path) -> None:
    """Refuses a tokenizer with ids beyond the model's embeddings (F28): on CUDA such an id breaks the whole process.

    Args:
        num_tokens: The tokenizer's `table_size`.
        num_rows: Rows of the model's embeddings; None if unknown.
        folder: For messages.

    Raises:
        PairError: The tokenizer belongs to another model.
    """
    if num_rows is not None and num_tokens > num_rows:
        raise PairError(
            f"the tokenizer of {folder} has ids up to {num_tokens - 1}, but its model has {num_rows} embeddings",
            "the tokenizer belongs to another model: download the folder again",
        )


def fit_tokenizer(tokenizer: Any, num_rows: int | None, folder: Path) -> tuple[Any, str | None]:
    """Drops a few added tokens for which the model has no embedding: fine-tunes get a padding token that way.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        num_rows: Rows of the model's embeddings; None if unknown.
        folder: For messages.

    Returns:
        The tokenizer, and a notice if tokens were dropped.

    Raises:
        PairError: More is missing than added tokens without a function: the tokenizer belongs to another model.
    """
    if num_rows is None or not isinstance(tokenizer, Tokenizer) or table_size(tokenizer) <= num_rows:
        check_num_rows(table_size(tokenizer), num_rows, folder)
        return tokenizer, None
    dropped = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if i >= num_rows}
    needed = {tokenizer.bos_token_id, tokenizer.eos_token_id, *tokenizer.encode("")}
    if len(dropped) > _MAX_DROPPED or not needed.isdisjoint(dropped):
        check_num_rows(table_size(tokenizer), num_rows, folder)
    fitting = tokenizer.without_added(num_rows)
    check_num_rows(table_size(fitting), num_rows, folder)
    names = ", ".join(f"{content!r} ({token_id})" for token_id, content in sorted(dropped.items()))
    return fitting, f"the model has {num_rows} embeddings and none for {names}: the tokenizer is used without"


def checked_library_call(call: Callable[[], T], what: str) -> T:
    """Calls a library's loader and converts the exceptions it raises for a damaged file.

    Raises:
        ModelFileError: The loader failed.
    """
    try:
        return call()
    except Exception as error:
        # The Rust tokenizers raise a bare Exception for a tokenizer.json they can't read.
        if type(error) is not Exception and not isinstance(error, library_failures()):
            raise
        hint = "its files are damaged, or need code or a newer library: download the model again"
        raise ModelFileError(f"{what}: {first_line(error)}", hint) from error


def _refuse_code(path: Path) -> None:
    config = read_optional_json(path)
    if "auto_map" not in config:
        return
    import transformers

    known = config.get("tokenizer_class")
    # If transformers has the class too, it is used, and the folder's code is never loaded.
    if not (isinstance(known, str) and hasattr(transformers, known)):
        raise ModelFileError(
            f"{path} needs its own code for {known!r}, and code from a model is never run",
            "choose a model whose tokenizer is part of transformers",
        )
