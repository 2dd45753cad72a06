"""Decides from a config.json whether a model generates text on its own, and says what it is for if it does not."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from specgen.core.errors import ModelFileError
from specgen.loading.config_reader import text_config

_KINDS = {
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "for images and text",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES": "for speech",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "for text and other media",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "of an encoder and a decoder",
}
"""What the models of transformers' mappings are for."""
_OTHER_HEADS = (
    *("ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction", "ForMultipleChoice", "ForQuestionAnswering"),
    *("ForSequenceClassification", "ForTokenClassification", "ForRewardModel"),
)
"""Ends of the names of classes that don't write the next token."""


def generating_type(config: dict[str, Any], folder: Path) -> str:
    """Returns the model type of a config.

    Raises:
        ModelFileError: transformers does not know it, or the model does not generate text on its own.
    """
    causal: Any = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    known: Any = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelFileError(f"{folder / 'config.json'} has no model_type", "use the folder of a language model")
    if model_type in causal:
        if _has_encoder(config):
            raise _unsuitable(folder, model_type, config)
        if _is_encoder(config):
            reason = f"{folder} is an encoder ({model_type}), which does not generate text"
            raise ModelFileError(reason, "use a model that generates text")
        return model_type
    if model_type in known:
        raise _unsuitable(folder, model_type, config)
    if "auto_map" in config:
        raise ModelFileError(
            f"{folder} contains its own code for {model_type!r}; code from a model is never run",
            "choose a model that transformers supports without extra code",
        )
    raise ModelFileError(
        f"{folder}: the installed transformers does not support the model type {model_type!r}",
        "upgrade transformers, or choose another model",
    )


def _unsuitable(folder: Path, model_type: str, config: dict[str, Any]) -> ModelFileError:
    """Returns the error for a model that transformers knows, but not as one for text only."""
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    kind = next((words for name, words in _KINDS.items() if model_type in getattr(auto, name, ())), None)
    inner = text_config(config).get("model_type")
    if kind is None and inner in (None, model_type):
        return ModelFileError(
            f"{folder} has the model type {model_type}, which does not generate text", "use a model that generates text"
        )
    inside = "" if inner in (None, model_type) else f"; the text model inside has the type {inner}"
    message = f"{folder} has the model type {model_type}, {kind or 'for text and other media'}, which is not supported"
    is_alone = inner in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return ModelFileError(
        f"{message}{inside}", f"use a model for text only{f', with the model type {inner}' if is_alone else ''}"
    )


def _has_encoder(config: dict[str, Any]) -> bool:
    """Returns whether a config of a type that has a causal model describes an encoder and a decoder."""
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    model_type = config["model_type"]
    is_causal = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] in _classes(config)
    can_have = any(model_type in getattr(auto, name) for name in _KINDS if "TO_SEQ" in name or "SEQ_2_SEQ" in name)
    return can_have and bool(config.get("is_encoder_decoder", not is_causal))


def _is_encoder(config: dict[str, Any]) -> bool:
    """Returns whether a config names neither a head nor a decoder, of a type that fills gaps by default."""
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    is_named = bool(_classes(config)) or config.get("is_decoder") is not None
    return config["model_type"] in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_named


def refuse_other_heads(config: dict[str, Any], folder: Path) -> None:
    """Refuses a checkpoint that was saved as another model than a causal one: a classifier, or an encoder.

    Raises:
        ModelFileError: It was.
    """
    classes = _classes(config)
    if classes and all(name.endswith(_OTHER_HEADS) for name in classes) and not config.get("is_decoder"):
        raise ModelFileError(
            f"{folder} is a {classes[0]}, which does not generate text", "use a model that generates text"
        )


def _classes(config: dict[str, Any]) -> list[str]:
    found = config.get("architectures")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
