"""Generates text with a language model, faster by speculative decoding; the output is the target model's own.

import specgen

models = specgen.load("Qwen/Qwen2.5-1.5B-Instruct", draft="Qwen/Qwen2.5-0.5B-Instruct+lookup")
print(models.generate("Why is the sky blue?").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from specgen.core import __version__

if TYPE_CHECKING:
    from specgen.core.progress import ProgressListener
    from specgen.runtime.library import LoadKeywords, Models


__all__ = ["__version__", "load"]


def load(
    target: str = "",
    draft: str = "auto",
    *,
    progress: ProgressListener | None = None,
    **options: Unpack[LoadKeywords],
) -> Models:
    """Loads a target and its drafter. torch is imported here, not by `import specgen`.

    Args:
        target: Hub id, folder or .gguf file; "" is the built-in model.
        draft: A model, `lookup`, `MODEL+lookup`, `none`, or `auto`, as in `specgen generate --draft`.
        progress: Receives the progress of downloads and loading.
        options: See `specgen.runtime.library.LoadKeywords`.

    Returns:
        Models with the methods `generate`, `stream` and `chat`.

    Raises:
        LoadError: A model is missing or damaged.
        PairError: A draft head was made for another target.
        DeviceError: The device is missing or has too little memory.
    """
    from specgen.runtime import library

    return library.load(target, draft, options, progress)
