"""The tokenizer of a checkpoint: tokenizer.json as it is, through the `tokenizers` package.

Normalizer, pre-tokenizer, decoder, post-processor and added tokens are those of the file. Names of special tokens and
the chat template come from tokenizer_config.json, special_tokens_map.json and chat_template.jinja.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from specgen.core.errors import ModelFileError
from specgen.core.model_files import describe_content, open_regular, read_optional_json, read_text
from specgen.text.template_sandbox import NO_TEMPLATE, render_template

TOKENIZER_FILE = "tokenizer.json"
_SIGNS_OF_NEWER = ("did not match any variant", "Unknown tokenizer version")
"""Parts of the package's message for a file with something that it does not know."""
WRONG_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
RIGHT_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The rule of Llama 3, which older versions of transformers wrote into files of Mistral Small 3, Nemo, Pixtral and
Devstral, and Mistral's own. Source: transformers' `fix_mistral_regex`."""
_MISTRAL_TYPES = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")


class Tokenizer:
    """Strings to ids and back.

    Args:
        backend: The tokenizer of the file.
        special_tokens: Strings by name, as in `eos_token`.
        chat_template: Jinja source; None: the model has none.
    """

    def __init__(self, backend: Backend, special_tokens: Mapping[str, str], chat_template: str | None) -> None:
        # A file may carry the settings of its training.
        backend.no_truncation()
        backend.no_padding()
        self.backend_tokenizer = backend
        self.special_tokens_map = dict(special_tokens)
        self.chat_template = chat_template
        self.bos_token, self.eos_token = special_tokens.get("bos_token"), special_tokens.get("eos_token")
        self.bos_token_id, self.eos_token_id = self._id_of("bos_token"), self._id_of("eos_token")
        self.unk_token_id = self._id_of("unk_token")
        self.template_lack = NO_TEMPLATE
        """The reason in a message that there is no chat template: the file has none, or all that it has have names."""
        self.notice: str | None = None
        """What the user should know about the file."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the ids of a text. Special tokens are those that the file's post-processor adds."""
        ids: list[int] = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Returns the text of ids."""
        return self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        """Returns the string of a token as it is in the vocabulary; None for an unknown id."""
        return self.backend_tokenizer.id_to_token(token_id)

    def get_vocab(self) -> dict[str, int]:
        """Returns the ids by string, added tokens included. Always the same object: it must not be changed."""
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        # The library takes 0.1 s for a new one, and a start asks for it three times.
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @cached_property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The added tokens by id."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        chat_template: str | None = None,
        tokenize: Literal[False] = False,  # noqa: ARG002  transformers' method has it
        **variables: Any,
    ) -> str:
        """Renders a conversation with the model's own template, or with another one.

        Raises:
            Exception: Whatever the template raises.
        """
        source = self.chat_template if chat_template is None else chat_template
        assert source is not None, "the caller checks that there is a template"
        return render_template(source, conversation, {**self.special_tokens_map, **variables})

    def without_added(self, num_rows: int) -> Tokenizer:
        """Returns a copy without the added tokens whose ids are not below a number: their strings are plain text."""
        state = json.loads(self.backend_tokenizer.to_str())
        dropped = {token["content"] for token in state["added_tokens"] if token["id"] >= num_rows}
        state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < num_rows]
        names = {name: token for name, token in self.special_tokens_map.items() if token not in dropped}
        return Tokenizer(Backend.from_str(json.dumps(state)), names, self.chat_template)

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens_map.get(name)
        return None if token is None else self.backend_tokenizer.token_to_id(token)


def read_tokenizer_file(folder: Path) -> Tokenizer:
    """Loads the tokenizer of a folder that has a tokenizer.json.

    Raises:
        ModelFileError: A file is damaged.
    """
    path = folder / TOKENIZER_FILE
    backend = _read_backend(path)
    config = read_optional_json(folder / "tokenizer_config.json")
    special_map = read_optional_json(folder / "special_tokens_map.json")
    if (folder / "chat_template.jinja").is_file():
        template: str | None = read_text(folder / "chat_template.jinja")
    else:
        template = _default_template(config.get("chat_template")) or processor_template(folder)
    tokenizer = Tokenizer(backend, {**_special_tokens(special_map), **_special_tokens(config)}, template)
    if names := _template_names(config.get("chat_template"), folder):
        tokenizer.template_lack = f"only named chat templates ({', '.join(names)}), and none is the default"
    tokenizer.notice = _repair_split(backend, folder)
    return tokenizer


def _read_backend(path: Path) -> Backend:
    """Reads a tokenizer.json; a byte order mark at its beginning is ignored, as in a model's other files.

    Raises:
        ModelFileError: It can't be read.
    """
    try:
        with open_regular(path) as file:
            start = file.read(64)
        if start.startswith(codecs.BOM_UTF8):
            return Backend.from_str(path.read_text("utf-8-sig"))
        return Backend.from_file(str(path))
    except Exception as error:
        # The bindings raise a bare Exception for any file they can't read.
        if type(error) is not Exception:
            raise
        what = describe_content(start)
        hint = "the file is damaged: download the model again"
        if any(sign in str(error) for sign in _SIGNS_OF_NEWER):
            hint = "the file is damaged, or made with a newer version of the package: pip install -U tokenizers"
        raise ModelFileError(f"invalid tokenizer {path}: {f'it is {what}' if what else error}", hint) from error


def _repair_split(backend: Backend, folder: Path) -> str | None:
    """Replaces the known wrong rule of a file of Mistral's.

    Only in a model of Mistral's own vocabulary (it has `[INST]`): others chose their rule.

    Args:
        backend: The tokenizer of the file; changed in place.
        folder: The model's folder; its config.json names the model type and the version that wrote it.

    Returns:
        A notice if the rule was replaced, or if it is another one than Mistral's and may be wrong.
    """
    config = read_optional_json(folder / "config.json")
    is_new = not str(config.get("transformers_version", "4")).startswith(("0.", "1.", "2.", "3.", "4"))
    if is_new or config.get("model_type") not in _MISTRAL_TYPES or backend.pre_tokenizer is None:
        return None
    state = json.loads(backend.pre_tokenizer.__getstate__())
    steps: list[dict[str, Any]] = state.get("pretokenizers", [state])
    split = next((step for step in steps if step.get("type") == "Split" and "Regex" in step["pattern"]), None)
    if split is None or split["pattern"]["Regex"] == RIGHT_SPLIT:
        return None
    if split["pattern"]["Regex"] != WRONG_SPLIT or backend.token_to_id("[INST]") is None:
        return "the tokenizer does not split text as Mistral's do: if it is one of theirs, its ids are wrong"
    split["pattern"] = {"Regex": RIGHT_SPLIT}
    repaired = json.loads(backend.to_str())
    repaired["pre_tokenizer"] = state
    backend.pre_tokenizer = Backend.from_str(json.dumps(repaired)).pre_tokenizer
    return "the tokenizer file has a wrong split, of an older version of transformers: Mistral's rule is used"


def processor_template(folder: Path) -> str | None:
    """Returns the chat template of a model for images and text, which is in its processor's files; None without one."""
    for name in ("chat_template.json", "processor_config.json"):
        template = _default_template(read_optional_json(folder / name).get("chat_template"))
        if template:
            return template
    return None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the strings of the keys that end in `_token`; a value is a string, or an object with a `content`."""
    found = {}
    extra = config.get("extra_special_tokens")
    for key, value in {**config, **(extra if isinstance(extra, dict) else {})}.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found


def _default_template(found: object) -> str | None:
    """Returns a chat template; of several, the one named `default`, as transformers does."""
    return found if isinstance(found, str) else _named_templates(found).get("default")


def _named_templates(found: object) -> dict[str, str]:
    """Returns named templates, which a file has in a list or an object."""
    if isinstance(found, list):
        found = {str(item.get("name")): item.get("template") for item in found if isinstance(item, dict)}
    named = found.items() if isinstance(found, dict) else ()
    return {name: source for name, source in named if isinstance(source, str)}


def _template_names(found: object, folder: Path) -> list[str]:
    """Returns the names of a model's templates, with those in files of their own."""
    return sorted({*_named_templates(found), *(path.stem for path in folder.glob("additional_chat_templates/*.jinja"))})
