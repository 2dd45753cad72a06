"""Prompts in, files of the target's own texts out, batch by batch: what is there already is not written again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from specgen.core.errors import OutputError, PromptError
from specgen.distill.prompts import SeedPrompt, compose, sources_from
from specgen.distill.settings import TextSettings
from specgen.distill.text_generation import BatchGenerator, GeneratedText
from specgen.storage.atomic_write import replacement, sync
from specgen.text.chat_template import ChatTemplate, Message, encode_text

SORTED_BATCHES = 8
"""Batches whose prompts are sorted by length together: less padding, and still a mixture in each stretch."""
MAX_TURN_TOKENS = 80
MIN_TURN_CHARS = 15
_MARK = "specgen-user-turn"


@dataclass(frozen=True, slots=True)
class Shard:
    """One batch to write: ids of its prompts, their categories and temperatures."""

    name: str
    prompts: tuple[tuple[int, ...], ...]
    categories: tuple[str, ...]
    temperatures: tuple[float, ...]
    max_new_tokens: int
    seed: int


class TextFolder:
    """The files of the target's texts.

    Args:
        folder: Made if need be; holds one safetensors file per batch.
        target: Writes.
        tokenizer: The target's.
        settings: What to write.
        seed: Of prompts and drawn answers.
    """

    def __init__(self, folder: Path, target: BatchGenerator, tokenizer: Any, settings: TextSettings, seed: int) -> None:
        self.folder = folder
        self.target = target
        self.tokenizer = tokenizer
        self.settings = settings
        self.seed = seed
        self.num_tokens = 0
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.safetensors.*"):  # by a run that was killed
            left.unlink()

    def write_bundled(self, tell: Callable[[int, int], None], is_ours: Callable[[int], bool] = lambda _: True) -> None:
        """Write answers to the bundled prompts: plain ones and the target's own first, then those that need sources.

        Args:
            tell: Told batches done and batches in all.
            is_ours: Whether a batch of this index is for this process; others may write beside it.
        """
        settings = self.settings
        num_self = round(settings.num_prompts * settings.self_share) if self._user_header() else 0
        num_sourced = (settings.num_prompts - num_self) // 3
        turns = self._turn_shards(num_self)
        num_shards = len(turns) + -(-settings.num_prompts // settings.batch_size)
        self._write_all(turns, lambda done: tell(done, num_shards), is_ours)
        composed = compose(settings.num_prompts - num_self - num_sourced, self.seed)
        plain = self._shards("plain", [*composed, *self._own_turns(turns)])
        self._write_all(plain, lambda done: tell(len(turns) + done, num_shards), is_ours)
        sources = sources_from([pair for shard in plain for pair in self._answers(shard)])
        sourced = self._shards("sourced", compose(num_sourced, self.seed + 1, sources))
        self._write_all(sourced, lambda done: tell(len(turns) + len(plain) + done, num_shards), is_ours)

    def write_own(self, prompts: Sequence[SeedPrompt], tell: Callable[[int, int], None]) -> None:
        """Write answers to a user's prompts."""
        shards = self._shards("own", list(prompts)[: self.settings.num_prompts])
        self._write_all(shards, lambda done: tell(done, len(shards)), lambda _: True)

    def encoded(self, text: str) -> list[int]:
        """Ids of a prompt: in the chat template if there is one."""
        if self.tokenizer.chat_template:
            return ChatTemplate().encode(self.tokenizer, [Message("user", text)])
        return encode_text(self.tokenizer, text)

    def _shards(self, stage: str, prompts: Sequence[SeedPrompt]) -> list[Shard]:
        """Batches of prompts of similar length, in an order that mixes kinds and lengths."""
        rng = random.Random(f"{self.seed} {stage}")  # noqa: S311 - an order, no secret
        settings = self.settings
        encoded = [(prompt.category, tuple(self.encoded(prompt.text))) for prompt in prompts]
        fitting = [entry for entry in encoded if len(entry[1]) <= settings.max_prompt_tokens]
        if prompts and not fitting:
            raise PromptError(
                f"no prompt has at most {settings.max_prompt_tokens} tokens", "give shorter ones with --prompts"
            )
        rng.shuffle(fitting)
        batches: list[list[tuple[str, tuple[int, ...]]]] = []
        stretch = SORTED_BATCHES * settings.batch_size
        for first in range(0, len(fitting), stretch):
            block = sorted(fitting[first : first + stretch], key=lambda entry: (len(entry[1]), entry[1]))
            batches += [block[at : at + settings.batch_size] for at in range(0, len(block), settings.batch_size)]
        rng.shuffle(batches)
        return [
            Shard(
                f"{stage}-{index:05}",
                tuple(ids for _, ids in batch),
                tuple(category for category, _ in batch),
                tuple(0.0 if rng.random() < settings.greedy_share else settings.temperature for _ in batch),
                settings.max_new_tokens,
                rng.randrange(2**31),
            )
            for index, batch in enumerate(batches)
        ]

    def _user_header(self) -> list[int]:
        """What the chat template puts before a user's first words; empty without a template."""
        if not self.tokenizer.chat_template:
            return []
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
        )
        before, found, _ = text.partition(_MARK)
        ids: list[int] = self.tokenizer.encode(before, add_special_tokens=False) if found else []
        return ids

    def _turn_shards(self, num_turns: int) -> list[Shard]:
        """Batches in which the target writes the user's turn (Xu et al. 2024, Magpie, arXiv:2406.08464)."""
        header = tuple(self._user_header())
        sizes = [min(self.settings.batch_size, num_turns - at) for at in range(0, num_turns, self.settings.batch_size)]
        seeds = random.Random(f"{self.seed} turns")  # noqa: S311
        return [
            Shard(
                f"turns-{index:05}",
                (header,) * size,
                ("turn",) * size,
                (1.0,) * size,
                MAX_TURN_TOKENS,
                seeds.randrange(2**31),
            )
            for index, size in enumerate(sizes)
        ]

    def _own_turns(self, shards: Sequence[Shard]) -> list[SeedPrompt]:
        texts = [text.strip() for shard in shards for _, text in self._answers(shard)]
        return [SeedPrompt("self", text) for text in dict.fromkeys(texts) if len(text) >= MIN_TURN_CHARS]

    def _answers(self, shard: Shard) -> list[tuple[str, str]]:
        """Category and text of each finished answer of a batch."""
        found = []
        for text, category in zip(read_shard(self.folder / f"{shard.name}.safetensors"), shard.categories, strict=True):
            answer = text.ids[text.num_prompt :].tolist()
            if category != "turn" or answer[-1] in self.target.end_ids:
                found.append((category, self.tokenizer.decode(answer, skip_special_tokens=True)))
        return found

    def _write_all(self, shards: Sequence[Shard], tell: Callable[[int], None], is_ours: Callable[[int], bool]) -> None:
        for index, shard in enumerate(shards):
            path = self.folder / f"{shard.name}.safetensors"
            if is_ours(index) and not path.exists():
                written = self.target.write(shard.prompts, shard.temperatures, shard.max_new_tokens, shard.seed)
                save_shard(path, written)
            if path.exists():
                self.num_tokens += num_written(path)
            tell(index + 1)


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the target, read back: `ids` int64 `[n]`, `features` float16 `[n - 1, hidden]`."""

    ids: Tensor
    num_prompt: int
    features: Tensor


def save_shard(path: Path, written: Sequence[GeneratedText]) -> None:
    """Write a batch of texts, whole or not at all.

    Raises:
        OutputError: There is no room, or no right to write.
    """
    tensors = {
        "ids": torch.tensor([token for text in written for token in text.ids], dtype=torch.int32),
        "lengths": torch.tensor([len(text.ids) for text in written]),
        "num_prompt": torch.tensor([text.num_prompt for text in written]),
        "features": torch.cat([text.features for text in written]).cpu(),
    }
    num_new = sum(len(text.ids) - text.num_prompt for text in written)
    save_tensors(path, tensors, {"num_new": str(num_new)})


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OutputError: There is no room, or no right to write.
    """
    try:
        with replacement(path) as temporary:
            save_file(tensors, temporary, metadata)
            sync(temporary)
    except Exception as error:  # the library has an error class of its own for a full disk
        raise OutputError(
            f"cannot write {path}: {error}", "free some space, or choose other folders with -o and --texts"
        ) from error


def num_written(path: Path) -> int:
    """Tokens of a batch that the target wrote, by the file's header alone."""
    with safe_open(path, "pt") as file:
        return int((file.metadata() or {}).get("num_new", 0))


def read_shard(path: Path) -> Iterator[Text]:
    """The texts of a file."""
    with safe_open(path, "pt") as file:
        ids, lengths = file.get_tensor("ids").long(), file.get_tensor("lengths").tolist()
        prompts, features = file.get_tensor("num_prompt").tolist(), file.get_tensor("features")
    parts = zip(ids.split(lengths), prompts, features.split([length - 1 for length in lengths]), strict=True)
    for part in parts:
        yield Text(*part)
