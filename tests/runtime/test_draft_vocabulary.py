"""A draft with another vocabulary in a loaded pair: which way is chosen, that it works, and what the user sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specgen.core.errors import PairError
from specgen.core.settings import DecodeSettings, DraftVocab, ModelSettings, PairSettings, SamplingSettings
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.drafters.translated import SharedTokenDrafter, TextDrafter
from specgen.runtime import learned_costs
from specgen.runtime.draft_vocabulary import Overlap, TranslatedPairing, pair_vocabularies, predict_speedup
from specgen.runtime.generation import Generation, Request
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import resolve_pair
from specgen.storage.cost_store import CostStore
from specgen.text.vocabulary import Pairing
from tests.loading.builders import make_model, make_tokenizer
from tests.toys import ANSWER, WORDS, save_stranger, save_toy, stranger_tokenizer, toy_tokenizer

PROMPT = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vocabularies")
    return {
        "target": save_toy(root / "target"),
        "draft": save_toy(root / "draft"),
        "stranger": save_stranger(root / "stranger"),
        "short": save_stranger(root / "short", num_positions=30),
        # Its words end elsewhere, so most of its tokens are not the target's.
        "letters": save_stranger(root / "letters", words=("Th", "▁q", "uick", "▁brow", "▁f", "▁dr", "▁a")),
    }


def pair_settings(folders: dict[str, Path], draft: str, vocab: DraftVocab, kind: str = "model") -> PairSettings:
    def model(name: str) -> ModelSettings:
        return ModelSettings(str(folders[name]), quant="none", dtype="float32", device="cpu")

    return PairSettings(model("target"), kind, replace(model(draft), draft_vocab=vocab))  # type: ignore[arg-type]


def opened(folders: dict[str, Path], draft: str, vocab: DraftVocab = "auto", kind: str = "model") -> LoadedModels:
    return load_models(resolve_pair(pair_settings(folders, draft, vocab, kind)))


def answer(models: LoadedModels, sampling: SamplingSettings | None = None, prompt: str = PROMPT) -> Generation:
    ids = toy_tokenizer().encode(prompt)
    limits = DecodeSettings(40, 4, end_ids=models.pair.end_ids, strict=True)
    generation = Generation(models, Request(ids, limits, sampling or SamplingSettings()))
    for _ in generation:
        pass
    return generation


@pytest.mark.parametrize("kind", ["model", "model+lookup"])
@pytest.mark.parametrize("vocab", ["shared", "text"])
@pytest.mark.parametrize("draft", ["stranger", "letters"])
@pytest.mark.fast("stranger-*-model", "letters-*-model+lookup")
def test_a_stranger_drafts_the_targets_text(folders: dict[str, Path], draft: str, vocab: DraftVocab, kind: str) -> None:
    models = opened(folders, draft, vocab, kind)

    generation = answer(models)

    assert generation.text == ANSWER
    assert generation.counts.num_accepted > 3
    assert generation.finish_reason == "stop"


@pytest.mark.parametrize("vocab", ["shared", "text"])
def test_the_same_tokens_are_accepted_as_of_a_draft_with_the_same_vocabulary(
    folders: dict[str, Path], vocab: DraftVocab
) -> None:
    """Every token of the answer is shared, so the translation costs no acceptance."""
    found, expected = answer(opened(folders, "stranger", vocab)), answer(opened(folders, "draft"))

    assert found.counts.alpha == expected.counts.alpha == 1.0
    if vocab == "shared":
        assert found.counts.num_rounds == expected.counts.num_rounds


@pytest.mark.parametrize("vocab", ["shared", "text"])
def test_turns_of_a_chat_reuse_both_caches(folders: dict[str, Path], vocab: DraftVocab) -> None:
    models = opened(folders, "stranger", vocab)
    assert models.translated is not None
    longer = PROMPT + ANSWER + "<|im_end|>\n" + PROMPT

    first, second, again = answer(models), answer(models, prompt=longer), answer(models)

    assert first.text == second.text == again.text == ANSWER
    assert second.counts.num_accepted == again.counts.num_accepted == first.counts.num_accepted


def test_sampled_text_with_one_seed_is_that_of_the_target_alone(folders: dict[str, Path]) -> None:
    sampling = SamplingSettings(temperature=1.5, seed=4, same_text=True)
    texts = {answer(opened(folders, "stranger", vocab), sampling).text for vocab in ("shared", "text")}
    alone = load_models(resolve_pair(replace(pair_settings(folders, "draft", "auto"), drafter="none", draft=None)))

    assert texts == {answer(alone, sampling).text}


def test_the_way_is_chosen_and_described(folders: dict[str, Path]) -> None:
    models = opened(folders, "stranger")

    assert models.pair.shared is not None
    assert models.pair.shared.kind in ("shared", "text")
    assert models.draft_info is not None
    # Three of them are control tokens, which are no text.
    assert f" {models.pair.shared.num_shared - 3} of " in models.draft_info.remark
    assert opened(folders, "draft").pair.shared == Pairing(len(toy_tokenizer()))


@pytest.mark.fault("F100")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_that_another_tokenizer_names_differently_is_never_drafted(
    folders: dict[str, Path], tmp_path: Path, temperature: float
) -> None:
    tokenizer = save_toy(tmp_path, fox="<tool_call>") / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"<tool_call>"', '"<reserved_1>"'))
    models = opened({**folders, "renamed": tmp_path}, "renamed")
    masked = toy_tokenizer().convert_tokens_to_ids("<tool_call>")
    fox = toy_tokenizer().encode("The quick brown fox", add_special_tokens=False)

    drafter = models.drafter(models.sampler(SamplingSettings(temperature=temperature)))
    draft = drafter.propose(fox, 4, FixedLength())

    assert models.pair.shared is not None
    assert models.pair.shared.masked_ids == (masked,)
    assert any("<reserved_1>" in notice for notice in models.notices)
    assert draft.ids.shape[0] == 4
    assert masked not in draft.ids.tolist()
    assert draft.probs is None or float(draft.probs[:, masked].sum()) == 0.0
    assert answer(models).text == ANSWER


def test_insisting_on_the_same_vocabulary_is_an_error(folders: dict[str, Path]) -> None:
    with pytest.raises(PairError) as caught:
        resolve_pair(pair_settings(folders, "stranger", "same"))

    assert caught.value.exit_code == 4
    assert "--draft-vocab" in str(caught.value.hint)


@pytest.mark.parametrize("vocab", ["shared", "text"])
def test_insisting_on_another_way_works_with_the_same_vocabulary(folders: dict[str, Path], vocab: DraftVocab) -> None:
    models = opened(folders, "draft", vocab)

    assert isinstance(
        models.drafter(models.sampler(SamplingSettings())), SharedTokenDrafter if vocab == "shared" else TextDrafter
    )
    generation = answer(models)
    assert generation.text == ANSWER
    assert generation.counts.alpha == 1.0


def test_a_draft_without_a_shared_token_says_so_and_writes_text() -> None:
    words = make_tokenizer(["<|im_start|>", "<|im_end|>", "<unk>", "ab", "cd"])

    pairing = pair_vocabularies(toy_tokenizer(), words, "shared")

    assert isinstance(pairing, TranslatedPairing)
    assert pairing.kind == "text"
    assert pairing.notice is not None
    assert " 0 of " in pairing.remark, "control tokens are shared, but mean no text"
    assert pairing.overlap.written_share < 0.1
    assert predict_speedup("text", pairing.overlap, 0.01) == 1.0, "it can't write the sample"


def test_a_pair_without_a_shared_token_loads_warns_and_writes_the_targets_text(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    words = make_tokenizer(["<|im_start|>", "<|im_end|>", "<unk>", "ab", "cd"])
    save_toy(tmp_path, tokenizer=words, model=make_model(0, vocab_size=len(words)))

    for vocab in ("auto", "shared", "text"):
        models = opened({**folders, "words": tmp_path}, "words", vocab)  # type: ignore[arg-type]

        assert models.translated is not None
        assert models.translated.columns is None
        assert models.pair.shared is not None
        assert models.pair.shared.notice in models.notices
        assert answer(models).text == ANSWER


def test_a_window_of_the_draft_ends_drafting_with_a_notice(folders: dict[str, Path]) -> None:
    generation = answer(opened(folders, "short", "shared"))

    assert generation.text == ANSWER
    assert any("window" in notice for notice in generation.notices)


def test_costs_are_learned_for_each_way(folders: dict[str, Path]) -> None:
    keys = [learned_costs.draft_key(opened(folders, "stranger", vocab)) for vocab in ("shared", "text")]

    assert keys[0] != keys[1]


def test_a_measured_cost_decides_instead_of_the_sizes(folders: dict[str, Path], cache: Path) -> None:
    models = opened(folders, "letters", "text")
    files = models.pair.target.files, models.pair.draft.files if models.pair.draft is not None else None
    assert files[1] is not None
    assert learned_costs.relative_draft_cost(files[0], files[1]) is None
    store = CostStore()
    key = learned_costs.draft_key(models)
    assert key is not None
    store.write(learned_costs.target_key(models), {"1": 0.1}, ["1"])
    store.write(key, {learned_costs.TOKEN: 0.05}, [learned_costs.TOKEN])

    assert learned_costs.relative_draft_cost(files[0], files[1]) == 0.5


def test_shared_tokens_are_predicted_to_win_where_nearly_all_are_shared() -> None:
    nearly_all, few = Overlap(0.99, 0.99, 1.05), Overlap(0.5, 0.6, 1.3)

    assert predict_speedup("shared", nearly_all, 0.2) > predict_speedup("text", nearly_all, 0.2)
    assert predict_speedup("text", few, 0.05) > predict_speedup("shared", few, 0.05)
    assert predict_speedup("same", few, 0.1) > predict_speedup("shared", nearly_all, 0.1)
    assert predict_speedup("text", few, 5.0) == 1.0


def test_all_bytes_are_shared_with_a_byte_fallback_vocabulary() -> None:
    pairing = pair_vocabularies(toy_tokenizer(), stranger_tokenizer())

    assert isinstance(pairing, TranslatedPairing)
    assert pairing.num_shared >= 256 + len(WORDS)
    assert 0 < pairing.overlap.target_share <= 1
