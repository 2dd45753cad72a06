"""Conversations with toy models: loaded in a tenth of a second, deterministic, in float32 on the CPU."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from specgen.core.events import Prefill, TextEvent
from specgen.core.settings import DecodeSettings, ModelSettings, PairSettings, ReplySettings, SamplingSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.randomness import TorchRandomness
from specgen.engine.sampling import Sampler
from specgen.loading.resolved_model import LoadedModel
from specgen.models.decoder_model import DecoderModel
from specgen.runtime.conversation import Conversation
from specgen.runtime.generation import Generation
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import resolve_pair
from specgen.storage.transcript import Transcript, from_json
from specgen.text.chat_template import ChatTemplate
from tests.fakes import CPU, ids_of
from tests.toys import random_toy, save_toy, toy_tokenizer

GREEDY = SamplingSettings()
SHORT = ReplySettings(GREEDY, max_new_tokens=12, num_draft_tokens=3)
OWN_TEMPLATE = ChatTemplate()

QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) "
    "or (message.role == 'assistant') %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""Qwen2.5's own template without its part for tools."""
REWRITING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}Earlier: {% endif %}{{ m['content'] }}"
    "<|im_end|>\n{% endfor %}{{ messages|length }} so far\n<|im_start|>assistant\n"
)
"""Formats earlier replies differently from the current one, like templates that remove reasoning blocks."""
NO_SYSTEM_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def noisy_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Saves a toy whose replies depend on the whole conversation and have any bytes, incomplete characters too."""
    return save_toy(folder, model=random_toy(seed, **changes))


def wordy_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Saves a toy whose replies are words, in tokens that the tokenizer itself would not choose."""
    model = random_toy(seed, **changes)
    tokenizer = toy_tokenizer()
    strings = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    silent = [index for index, string in enumerate(strings) if not string.strip("Ġ").isalpha() or not string.isascii()]
    silent = [index for index in silent if not strings[index].startswith("Ġ")] + list(range(len(tokenizer), 320))
    with torch.no_grad():
        model.lm_head.weight[silent] = 0.0
    return save_toy(folder, model=model)


@cache
def _loaded(folder: Path, drafter: str, draft: Path | None) -> LoadedModels:
    settings = PairSettings(
        ModelSettings(str(folder), "none", "float32", "cpu"),
        drafter="model" if draft else drafter,  # type: ignore[arg-type]
        draft=None if draft is None else ModelSettings(str(draft), "none", "float32", "cpu"),
    )
    return load_models(resolve_pair(settings))


def open_toy(folder: Path, *, drafter: str = "lookup", draft: Path | None = None) -> LoadedModels:
    """A session with empty caches; weights are read once per test run."""
    loaded = _loaded(folder, drafter, draft)
    target = DecoderModel(loaded.target.decoder, loaded.target.vocab_size)
    draft = None
    if loaded.draft is not None and loaded.draft_info is not None:
        draft = LoadedModel(DecoderModel(loaded.draft.decoder, loaded.draft.vocab_size), loaded.draft_info)
    return LoadedModels(loaded.pair, LoadedModel(target, loaded.target_info), draft)


def converse(
    models: LoadedModels,
    settings: ReplySettings = SHORT,
    *,
    template: ChatTemplate = OWN_TEMPLATE,
    system: str | None = None,
) -> Conversation:
    return Conversation(models, settings, template, system)


def reply(conversation: Conversation, text: str | None = None) -> Generation:
    """Adds a message, if one is given, and runs the reply to its end."""
    if text is not None:
        conversation.say(text)
    generation = conversation.begin_reply()
    for _ in conversation.stream(generation):
        pass
    conversation.end_reply(generation)
    return generation


def prefill_of(events: Sequence[TextEvent]) -> Prefill:
    return next(event for event in events if isinstance(event, Prefill))


def fresh_ids(models: LoadedModels, generation: Generation) -> list[int]:
    """Returns what the target alone generates for the same prompt with empty caches."""
    request = generation.request
    target = DecoderModel(models.target.decoder, models.target.vocab_size)
    limits = DecodeSettings(request.decode.max_new_tokens, num_draft_tokens=0, end_ids=request.decode.end_ids)
    sampler = Sampler(request.sampling, TorchRandomness(request.sampling.seed, CPU))
    return ids_of(list(decode(target, NoDrafter(), request.prompt_ids, sampler, DecodeOptions(limits))))


def assert_caches_fit(models: LoadedModels) -> None:
    """Checks that both caches contain a prefix of the text: their next logits are those of empty caches."""
    caches = [models.target] if models.draft is None else [models.target, models.draft]
    for cached in caches:
        assert cached.length <= len(models.text_ids)
        if cached.length == 0:
            continue
        text = models.text_ids[: cached.length + 1]
        if len(text) == cached.length:
            continue
        length = cached.length
        fresh = DecoderModel(cached.decoder, cached.vocab_size)
        actual, expected = cached.logits(text, 1), fresh.logits(text, 1)
        cached.rewind(length)
        assert (actual - expected).abs().max() < 1e-4
    assert models.lookup._text.ids == models.text_ids[: models.lookup.num_indexed]


def saved(path: Path) -> Transcript:
    """Reads a session file without taking its lock."""
    return from_json(path.read_bytes())


def random_text(seed: int) -> str:
    """Returns words, code and characters of several bytes."""
    rng = random.Random(seed)
    words = ["The", "quick", "fox", "né", "日本", "🙂", "<|im_end|>", "a.b(c)", "\n", "<tool_call>"]
    return " ".join(rng.choice(words) for _ in range(rng.randint(1, 6)))
