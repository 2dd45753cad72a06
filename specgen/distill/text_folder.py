"""Generates the training texts of the target into a folder, one file per batch; existing files are not made again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specgen.core.errors import PromptError
from specgen.distill.prompts import SeedPrompt, compose, sources_from
from specgen.distill.settings import Conversation, TextSettings
from specgen.distill.target_texts import num_generated_tokens, read_texts, save_texts
from specgen.distill.text_generation import BatchGenerator
from specgen.text.chat_template import ChatTemplate, Message, encode_messages

SORTED_BATCHES = 8
"""Batches whose prompts are sorted by length together: less padding, and neighbouring batches still differ."""
MAX_TURN_TOKENS = 80
MIN_TURN_CHARS = 15
_MARK = "specgen-user-turn"

OnBatch = Callable[[int, int], None]
"""Receives the batches done and the batches in all."""


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """A batch of prompts to answer, with the category of each prompt and the temperature of each answer.

    Args:
        name: Name of its file, without the suffix.
        prompts: Token ids of each prompt.
        max_new_tokens: Longest answer.
        seed: Of the sampled answers.
    """

    name: str
    prompts: tuple[tuple[int, ...], ...]
    categories: tuple[str, ...]
    temperatures: tuple[float, ...]
    max_new_tokens: int
    seed: int


class TextFolder:
    """A folder of texts that the target generated.

    Args:
        folder: Contains one safetensors file per batch.
        target: Generates the answers.
        tokenizer: The target's.
        settings: Which texts to generate.
        seed: Of the prompts and the sampled answers.
    """

    def __init__(self, folder: Path, target: BatchGenerator, tokenizer: Any, settings: TextSettings, seed: int) -> None:
        self._folder = folder
        self._target = target
        self._tokenizer = tokenizer
        self._settings = settings
        self._template = ChatTemplate(options=settings.template_variables)
        self._seed = seed
        self.num_tokens = 0
        for left_over in folder.glob(".*.safetensors.*"):  # by a process that was killed
            left_over.unlink()

    def generate_bundled(self, on_batch: OnBatch) -> None:
        """Answers the bundled prompts: first those without sources and the target's own, then those with sources."""
        settings, header = self._settings, self._user_header()
        num_self = round(settings.num_prompts * settings.self_share) if header else 0
        num_sourced = (settings.num_prompts - num_self) // 3
        turns = self._turn_batches(header, num_self)
        num_batches = len(turns) + -(-settings.num_prompts // settings.batch_size)
        self._generate(turns, lambda done: on_batch(done, num_batches))
        composed = compose(settings.num_prompts - num_self - num_sourced, self._seed)
        plain = self._batches("plain", [*composed, *self._self_prompts(turns)])
        self._generate(plain, lambda done: on_batch(len(turns) + done, num_batches))
        sources = sources_from([pair for batch in plain for pair in self._answers(batch)])
        sourced = self._batches("sourced", compose(num_sourced, self._seed + 1, sources))
        self._generate(sourced, lambda done: on_batch(len(turns) + len(plain) + done, num_batches))

    def generate_own(self, prompts: Sequence[Conversation], on_batch: OnBatch) -> None:
        """Answers a user's prompts."""
        encoded = [("own", tuple(self.encode(messages))) for messages in prompts[: self._settings.num_prompts]]
        batches = self._encoded_batches("own", encoded)
        self._generate(batches, lambda done: on_batch(done, len(batches)))

    def encode(self, messages: Conversation) -> list[int]:
        """Returns the ids of a prompt, in the chat template if there is one."""
        if self._tokenizer.chat_template:
            return self._template.encode(self._tokenizer, messages)
        return encode_messages(self._tokenizer, messages)

    def _batches(self, stage: str, prompts: Sequence[SeedPrompt]) -> list[PromptBatch]:
        encoded = [(prompt.category, tuple(self.encode([Message("user", prompt.text)]))) for prompt in prompts]
        return self._encoded_batches(stage, encoded)

    def _encoded_batches(self, stage: str, encoded: Sequence[tuple[str, tuple[int, ...]]]) -> list[PromptBatch]:
        """Groups prompts of similar length; the order mixes categories and lengths."""
        rng = random.Random(f"{self._seed} {stage}")  # noqa: S311 - an order, no secret
        settings = self._settings
        fitting = [entry for entry in encoded if len(entry[1]) <= settings.max_prompt_tokens]
        if encoded and not fitting:
            raise PromptError(
                f"all prompts are longer than {settings.max_prompt_tokens} tokens", "give shorter ones with --prompts"
            )
        rng.shuffle(fitting)
        batches: list[list[tuple[str, tuple[int, ...]]]] = []
        stretch = SORTED_BATCHES * settings.batch_size
        for first in range(0, len(fitting), stretch):
            block = sorted(fitting[first : first + stretch], key=lambda entry: (len(entry[1]), entry[1]))
            batches += [block[at : at + settings.batch_size] for at in range(0, len(block), settings.batch_size)]
        rng.shuffle(batches)
        return [
            PromptBatch(
                f"{stage}-{index:05}",
                tuple(ids for _, ids in batch),
                tuple(category for category, _ in batch),
                tuple(0.0 if rng.random() < settings.greedy_share else settings.temperature for _ in batch),
                settings.max_new_tokens,
                rng.randrange(2**31),
            )
            for index, batch in enumerate(batches)
        ]

    def _user_header(self) -> tuple[int, ...]:
        """Returns the ids that the chat template puts before the first user message; empty without a template."""
        if not self._tokenizer.chat_template:
            return ()
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}],
            tokenize=False,
            add_generation_prompt=True,
            **self._settings.template_variables,
        )
        before, mark, _ = text.partition(_MARK)
        return tuple(self._tokenizer.encode(before, add_special_tokens=False)) if mark else ()

    def _turn_batches(self, header: tuple[int, ...], num_turns: int) -> list[PromptBatch]:
        """Returns batches in which the target writes the user's turn (Xu et al. 2024, Magpie, arXiv:2406.08464)."""
        batch_size, batches = self._settings.batch_size, []
        rng = random.Random(f"{self._seed} turns")  # noqa: S311
        for index, first in enumerate(range(0, num_turns, batch_size)):
            size = min(batch_size, num_turns - first)
            prompts, categories, temperatures = (header,) * size, ("turn",) * size, (1.0,) * size
            seed = rng.randrange(2**31)
            name = f"turns-{index:05}"
            batches.append(PromptBatch(name, prompts, categories, temperatures, MAX_TURN_TOKENS, seed))
        return batches

    def _self_prompts(self, batches: Sequence[PromptBatch]) -> list[SeedPrompt]:
        """Returns the user turns that the target wrote, without duplicates and very short ones."""
        texts = [text.strip() for batch in batches for _, text in self._answers(batch)]
        return [SeedPrompt("self", text) for text in dict.fromkeys(texts) if len(text) >= MIN_TURN_CHARS]

    def _answers(self, batch: PromptBatch) -> list[tuple[str, str]]:
        """Returns category and text of each answer of a batch; of user turns only those with an end token."""
        answers = []
        for text, category in zip(read_texts(self._path(batch)), batch.categories, strict=True):
            answer = text.ids[text.num_prompt :].tolist()
            if category != "turn" or answer[-1] in self._target.end_ids:
                answers.append((category, self._tokenizer.decode(answer, skip_special_tokens=True)))
        return answers

    def _generate(self, batches: Sequence[PromptBatch], on_batch: Callable[[int], None]) -> None:
        for index, batch in enumerate(batches):
            path = self._path(batch)
            if not path.exists():
                texts = self._target.generate(batch.prompts, batch.temperatures, batch.max_new_tokens, batch.seed)
                save_texts(path, texts)
            self.num_tokens += num_generated_tokens(path)
            on_batch(index + 1)

    def _path(self, batch: PromptBatch) -> Path:
        return self._folder / f"{batch.name}.safetensors"
