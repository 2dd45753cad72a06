"""A draft's head on a part of the vocabulary: what it computes is the whole head's, and texts bring what they need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from specgen.core.settings import ModelSettings, Quantization
from specgen.loading.weights import load_weights
from specgen.models import decoder_model as decoder_module
from specgen.models import shortlist_head as module
from specgen.models.decoder_model import DecoderModel
from specgen.models.shortlist_head import MIN_VOCAB, NUM_FIRST, NUM_REMEMBERED, ShortlistHead, shortlist_head
from tests.decoders import decoder_model
from tests.loading.builders import make_model, resolved

SIZES = (8, 4, 4, 4, 3)


def dense(weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


@pytest.fixture
def weight(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(module, "NUM_FIRST", SIZES[0])
    monkeypatch.setattr(module, "BLOCK_SIZE", SIZES[1])
    return torch.randn(sum(SIZES), 6)


def computed_ids(head: ShortlistHead) -> list[int]:
    return torch.isfinite(head(torch.ones(1, 6)))[0].nonzero().flatten().tolist()


def test_its_logits_are_those_of_the_whole_head_or_minus_infinity(weight: Tensor) -> None:
    head, rows = shortlist_head(weight, dense), torch.randn(3, 6)
    head.read(torch.tensor([17]), is_prompt=True)

    logits = head(rows)

    torch.testing.assert_close(logits[:, :8], rows @ weight[:8].T)
    torch.testing.assert_close(logits[:, 16:20], rows @ weight[16:20].T)
    assert logits[:, 8:16].eq(-torch.inf).all()
    assert logits[:, 20:].eq(-torch.inf).all()


@pytest.mark.parametrize(
    ("read", "expected"), [(8, range(8, 12)), (11, range(8, 12)), (12, range(12, 16)), (22, range(20, 23))]
)
def test_a_token_of_the_text_brings_its_block(weight: Tensor, read: int, expected: range) -> None:
    head = shortlist_head(weight, dense)

    head.read(torch.tensor([3, read]), is_prompt=True)

    assert computed_ids(head) == [*range(8), *expected]


def test_an_unused_block_is_forgotten_and_the_first_ids_never(weight: Tensor) -> None:
    head = shortlist_head(weight, dense)
    head.read(torch.tensor([9]), is_prompt=True)

    head.read(torch.zeros(NUM_REMEMBERED - 1, dtype=torch.int64), is_prompt=True)
    assert 9 in computed_ids(head)
    head.read(torch.zeros(1, dtype=torch.int64), is_prompt=True)

    assert computed_ids(head) == list(range(8))


def test_a_text_that_often_needs_other_blocks_gets_all(weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MISSES", 3)
    head = shortlist_head(weight, dense)
    head.read(torch.tensor([9, 0, 13]), is_prompt=False)
    assert computed_ids(head) == list(range(16))

    head.read(torch.tensor([17]), is_prompt=False)

    assert computed_ids(head) == list(range(23))


def test_rare_misses_do_not_bring_all_blocks(weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MISSES", 2)
    head = shortlist_head(weight, dense)

    for read in (9, 13):
        head.read(torch.tensor([read] + [0] * module.NUM_WATCHED), is_prompt=False)

    assert computed_ids(head) == list(range(16))


def test_a_prompt_has_no_misses(weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MISSES", 2)
    head = shortlist_head(weight, dense)

    head.read(torch.tensor([9, 13, 17]), is_prompt=True)

    assert computed_ids(head) == list(range(20))


def test_what_is_computed_follows_from_the_text_alone(weight: Tensor) -> None:
    head = shortlist_head(weight, dense)
    head.read(torch.tensor([0, 9, 13]), is_prompt=True)

    head.read(torch.tensor([17]), is_prompt=False)
    head.cut(2)

    assert computed_ids(head) == list(range(12))
    head.cut(0)
    assert computed_ids(head) == list(range(8))


def test_of_a_tree_the_kept_path_remains(weight: Tensor) -> None:
    head = shortlist_head(weight, dense)
    head.read(torch.tensor([0, 0]), is_prompt=True)
    head.read(torch.tensor([1, 9, 17]), is_prompt=False)

    head.keep_rows(2, [0, 2])

    assert computed_ids(head) == [*range(8), *range(16, 20)]
    head.cut(3)
    assert computed_ids(head) == list(range(8))


@pytest.mark.parametrize("num_rows", [64, 3])
def test_parts_that_a_4_bit_kernel_cannot_have_stay(monkeypatch: pytest.MonkeyPatch, num_rows: int) -> None:
    monkeypatch.setattr(decoder_module, "has_fast_nf4", lambda weight: weight.shape[0] % 32 == 0)
    monkeypatch.setattr(decoder_module, "fast_nf4_linear", lambda weight, bias: nn.Identity())
    monkeypatch.setattr(decoder_module, "faster_of", lambda usual, other, row: other)
    model = decoder_model(make_model(tie_word_embeddings=True), 64)
    sizes = [64, num_rows]
    model.decoder.head = ShortlistHead([dense(torch.randn(size, 32), None) for size in sizes], sizes)

    model.use_nf4_head()

    assert [type(part) for part in model.decoder.head.parts] == [
        nn.Identity,
        nn.Identity if num_rows == 64 else nn.Linear,
    ]


@pytest.mark.parametrize("ends", [0, 1])
def test_the_same_text_has_the_same_logits_after_another_one(large_vocab_folder: Path, ends: int) -> None:
    settings, late = ModelSettings("x", dtype="float32", quant="none"), MIN_VOCAB - 1
    draft = load_weights(resolved(large_vocab_folder, settings, role="draft"), MIN_VOCAB).model
    before = draft.logits([1, 2, 3], 1)

    draft.rewind(3)
    draft.logits([1, 2, 3, late, 5], 1)
    draft.rewind(2 * ends)

    assert torch.equal(torch.isfinite(draft.logits([1, 2, 3], 1)), torch.isfinite(before))


@pytest.fixture(scope="module")
def large_vocab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large-vocab")
    make_model(vocab_size=MIN_VOCAB, hidden_size=16, tie_word_embeddings=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.fast("none")
def test_a_draft_with_a_large_vocabulary_has_a_shortlist_and_a_target_never(
    large_vocab_folder: Path, quant: Quantization
) -> None:
    settings, last = ModelSettings("x", dtype="float32", quant=quant), MIN_VOCAB - 1
    target = load_weights(resolved(large_vocab_folder, settings, role="target"), MIN_VOCAB).model
    draft = load_weights(resolved(large_vocab_folder, settings, role="draft"), MIN_VOCAB).model
    text = [1, 2, last]

    whole, shortened = target.logits(text, 1)[0], draft.logits(text, 1)[0]

    assert torch.isfinite(whole).all()
    has_logits = torch.isfinite(shortened)
    assert has_logits[:NUM_FIRST].all()
    assert has_logits[last]
    assert 0.6 < float(has_logits.float().mean()) < 0.75
    torch.testing.assert_close(shortened[has_logits], whole[has_logits], rtol=1e-4, atol=1e-4)


def test_a_tree_reads_its_first_token_too(large_vocab_folder: Path) -> None:
    settings = ModelSettings("x", dtype="float32", quant="none")
    draft = load_weights(resolved(large_vocab_folder, settings, role="draft"), MIN_VOCAB).model
    assert isinstance(draft, DecoderModel)
    draft.feed([1, 2])

    logits = draft.tree_logits(torch.tensor([MIN_VOCAB - 1]), [-1])

    assert torch.isfinite(logits[0, -1])


def test_small_vocabularies_are_computed_whole(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    settings = ModelSettings("x", dtype="float32", quant="none")

    draft = load_weights(resolved(tmp_path, settings, role="draft"), 64).model

    assert torch.isfinite(draft.logits([1], 1)).all()
