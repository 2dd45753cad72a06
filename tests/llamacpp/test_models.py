"""GGUF files from name to answer: pairs of both backends, cache reuse in a chat, and the command line."""

from __future__ import annotations

import json
import random
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.errors import PairError, PromptError, SettingsError
from specgen.core.events import Prefill, RoundText
from specgen.core.settings import (
    BackendSettings,
    DecodeSettings,
    ModelSettings,
    PairSettings,
    ReplySettings,
    SamplingSettings,
)
from specgen.doctor.examine import examine_pair
from specgen.loading import resolve
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.llama_cpp import PROBE, default_num_threads, limit_torch_threads, tokenizer_notice
from specgen.models.decoder_model import DecoderModel
from specgen.models.llama_cpp import LlamaCppModel
from specgen.runtime.conversation import Conversation
from specgen.runtime.generation import Generation, Request
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import resolve_pair
from specgen.text.chat_template import ChatTemplate, Message
from tests.cli.chat.scenes import OWN_TEMPLATE
from tests.cli.children import run_child
from tests.llamacpp.builders import load, toy_vocabulary, write_gguf
from tests.loading.builders import RecordedProgress, fails
from tests.real_models import real_model
from tests.toys import ANSWER, save_toy, successors, table_model, toy_tokenizer

WIDTH = 320


def save_toy_gguf(path: Path, *, num_positions: int = 512, **changes: Any) -> Path:
    """`tests.toys.save_toy` as a GGUF: it answers `ANSWER` to any chat."""
    model = table_model(successors(**changes), num_positions)
    return write_gguf(path, model, toy_vocabulary(toy_tokenizer(), WIDTH))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("toys")
    other = toy_vocabulary(toy_tokenizer(), WIDTH)
    return {
        "gguf": save_toy_gguf(root / "toy.gguf"),
        "wrong": save_toy_gguf(root / "wrong.gguf", fox=" quick"),
        "folder": save_toy(root / "toy"),
        "foreign": write_gguf(
            root / "foreign.gguf",
            table_model(successors()),
            type(other)([*other.tokens[100:], *other.tokens[:100]], [1] * WIDTH, other.merges, 187, 189),
        ),
    }


def named(path: Path, **backend: Any) -> ModelSettings:
    if path.suffix == ".gguf":
        return ModelSettings(str(path), backend=BackendSettings(**{"name": "llama.cpp", "threads": 1, **backend}))
    return ModelSettings(str(path), "none", "float32", "cpu")


def opened(target: ModelSettings, draft: ModelSettings | str = "none") -> LoadedModels:
    if isinstance(draft, ModelSettings):
        return load_models(resolve_pair(PairSettings(target, "model", draft)))
    return load_models(resolve_pair(PairSettings(target, draft)))  # type: ignore[arg-type]


def answer(models: LoadedModels, text: str = "hello") -> Generation:
    ids = ChatTemplate().encode(models.pair.tokenizer, [Message("user", text)])
    limits = DecodeSettings(64, 5, end_ids=models.pair.end_ids)
    generation = Generation(models, Request(ids, limits, SamplingSettings()))
    for _ in generation:
        pass
    return generation


# plans


def test_a_gguf_answers_with_its_own_tokenizer_template_and_end(files: dict[str, Path]) -> None:
    models = opened(named(files["gguf"]))

    generation = answer(models)

    assert isinstance(models.target, LlamaCppModel)
    assert (generation.text, generation.finish_reason) == (ANSWER, "stop")
    assert models.notices == ()
    assert "llama.cpp" in models.target_info.remark


def test_the_tokenizer_is_extracted_once_and_the_weights_never(files: dict[str, Path], cache: Path) -> None:
    report = RecordedProgress()
    first = resolve_pair(PairSettings(named(files["gguf"]), "none"), report)
    again = RecordedProgress()
    second = resolve_pair(PairSettings(named(files["gguf"]), "none"), again)

    assert first.target.path == second.target.path
    (extracted,) = [stage for stage in report.stages if stage not in again.stages]
    assert ["tokenizer" in extracted, "toy.gguf" in extracted] == [True, True]
    assert len(again.stages) == 1
    assert not list(cache.rglob("*.safetensors"))


def test_the_other_backend_gives_the_same_answer(files: dict[str, Path]) -> None:
    through_transformers = ModelSettings(str(files["gguf"]), backend=BackendSettings("torch"), device="cpu")

    models = opened(through_transformers)

    assert isinstance(models.target, DecoderModel)
    assert answer(models).text == ANSWER


def test_auto_without_the_extra_converts_as_before(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "has_llama_cpp", lambda: False)

    pair = resolve_pair(PairSettings(ModelSettings(str(files["gguf"])), "none"))

    assert pair.target.gguf is None
    assert (pair.target.path / "model.safetensors").exists()


def test_the_context_limits_prompt_and_answer(files: dict[str, Path]) -> None:
    pair = resolve_pair(PairSettings(named(files["gguf"], context_size=300), "none"))

    assert pair.resolve_max_new_tokens(200, None, 256) == 100
    fails(
        PromptError,
        lambda: pair.resolve_max_new_tokens(300, 1, 256),
        "> 300 positions of toy",
        "--context-size (up to 512)",
    )


def test_options_of_llama_cpp_are_refused_for_transformers(files: dict[str, Path]) -> None:
    settings = ModelSettings(str(files["folder"]), backend=BackendSettings(threads=2))

    fails(SettingsError, lambda: resolve_pair(PairSettings(settings, "none")), "--threads 2", "llama.cpp")


# pairs


@pytest.mark.parametrize(("target", "draft"), [("gguf", "gguf"), ("gguf", "folder"), ("folder", "gguf")])
@pytest.mark.fast("gguf-folder")
def test_either_backend_drafts_for_either(files: dict[str, Path], target: str, draft: str) -> None:
    models = opened(named(files[target]), named(files[draft]))

    generation = answer(models)

    assert generation.text == ANSWER
    assert generation.counts.acceptance_rate == 1.0
    assert isinstance(models.target, LlamaCppModel) is (target == "gguf")
    assert isinstance(models.draft, LlamaCppModel) is (draft == "gguf")


@pytest.mark.parametrize("target", ["gguf", "folder"])
@pytest.mark.fast("folder")
def test_a_wrong_draft_changes_no_text(files: dict[str, Path], target: str) -> None:
    generation = answer(opened(named(files[target]), named(files["wrong"])))

    assert generation.text == ANSWER
    assert generation.counts.num_rejected > 0


def test_different_vocabularies_are_translated_unless_the_same_one_is_requested(files: dict[str, Path]) -> None:
    foreign = named(files["foreign"])
    settings = PairSettings(named(files["folder"]), "model", foreign)

    shared = resolve_pair(settings).shared
    assert shared is not None
    assert shared.kind in ("shared", "text")
    same = replace(settings, draft=replace(foreign, draft_vocab="same"))
    fails(PairError, lambda: resolve_pair(same), "--draft-vocab")


def test_torch_leaves_the_cores_to_llama_cpp_if_it_runs_no_model(files: dict[str, Path]) -> None:
    cores = default_num_threads()
    native, torch_model = opened(named(files["gguf"])).target, opened(named(files["folder"])).target
    try:
        limit_torch_threads(native, None)
        assert torch.get_num_threads() == 1
        limit_torch_threads(native, torch_model)
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(1)


# chat


def test_a_chat_reuses_the_cache(files: dict[str, Path]) -> None:
    models = opened(named(files["gguf"]), named(files["gguf"]))
    conversation = Conversation(models, ReplySettings(SamplingSettings(), max_new_tokens=64), OWN_TEMPLATE)
    prefills, texts = [], []
    for message in ("hello", "again"):
        conversation.say(message)
        generation = conversation.begin_reply()
        for event in conversation.stream(generation):
            if isinstance(event, Prefill):
                prefills.append(event)
            assert not isinstance(event, RoundText) or event.round.num_rejected == 0
        conversation.end_reply(generation)
        texts.append(generation.text)

    first, second = prefills
    assert texts == [ANSWER, ANSWER]
    assert second.num_reused_tokens >= first.num_prompt_tokens
    conversation.take_back()
    conversation.models.reset_caches()
    assert models.target.length == 0


# tokens


def corpus() -> list[str]:
    """Source code, prose and random mixtures of scripts, in NFC."""
    root = Path(__file__).parent.parent.parent
    texts = [path.read_text() for path in sorted(root.glob("specgen/**/*.py"))] + [(root / "README.md").read_text()]
    # Names of control tokens: the tokenizer reads `<|im_end|>` as the token, llama.cpp as text; `</s>` in Qwen's table,
    # an ordinary token for the tokenizer, is one that llama.cpp always cuts out.
    texts = [text.replace("<|", "< |").replace("</s>", "< /s>") for text in texts]
    pool = "abc ABC 012 .,;:!?'\"()[]{}<>|#@$%^&*-_=+\\/~`\t\n\r  'll 're"
    pool += "éüßøåçŁДЖΩλשלוםمرحبا日本語中文한국어🙂🎉👨\u00a0\u200b\u3000½²①ﬁ"
    chance = random.Random(0)
    texts += ["".join(chance.choice(pool) for _ in range(chance.randint(1, 60))) for _ in range(1500)]
    return [unicodedata.normalize("NFC", text) for text in [*texts, PROBE]]


def check_tokens(models: LoadedModels, texts: list[str]) -> None:
    """Checks that ids equal llama.cpp's own on the corpus, and that each token has the same string."""
    tokenizer, weights = models.pair.tokenizer, load(models.pair.target.gguf.path).weights  # type: ignore[union-attr]
    differing = [text for text in texts if tokenizer.encode(text, add_special_tokens=False) != weights.tokenize(text)]
    assert differing == []
    spelled = {index: token for token, index in tokenizer.get_vocab().items()}
    assert [index for index, token in spelled.items() if weights.token_text(index) != token] == []


@pytest.mark.thorough
def test_the_ids_of_a_toy_are_llama_cpps_own(files: dict[str, Path]) -> None:
    check_tokens(opened(named(files["gguf"])), corpus()[::9])


def test_a_different_tokenizer_is_reported(files: dict[str, Path]) -> None:
    tokenizer = resolve_pair(PairSettings(named(files["gguf"]), "none")).tokenizer
    weights = load(files["gguf"]).weights
    assert tokenizer_notice(tokenizer, weights) is None

    class Spaced:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return list(tokenizer.encode(text.replace("n't", " n't"), add_special_tokens=add_special_tokens))

    assert "token 7" in (tokenizer_notice(Spaced(), weights) or "")


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_the_ids_of_a_real_model_are_llama_cpps_own(name: str) -> None:
    path = real_model(f"{name}.gguf")
    assert scan_gguf(path).tokenizer_model == "gpt2"

    check_tokens(opened(named(path, context_size=512)), corpus())


# the command line


def test_the_command_line_runs_a_gguf_as_it_is(files: dict[str, Path], cache: Path) -> None:
    done = run_child(
        *("generate", "-t", str(files["gguf"]), "-d", str(files["wrong"]), "--threads", "1", "--json", "hello"),
        module="specgen",
        env={"SPECGEN_BACKEND": "auto", "SPECGEN_CACHE": str(cache)},
    )

    document = json.loads(done.out)
    assert (done.code, document["text"]) == (0, ANSWER)
    assert "llama.cpp, 1 thread" in json.dumps(document)


def test_a_pipe_receives_only_the_answer(files: dict[str, Path], cache: Path) -> None:
    done = run_child(
        *("generate", "-t", str(files["gguf"]), "-q", "hello"),
        module="specgen",
        env={"SPECGEN_BACKEND": "auto", "SPECGEN_CACHE": str(cache)},
    )

    assert (done.code, done.out.decode().strip(), done.err) == (0, ANSWER, "")


def test_doctor_plans_the_memory_of_a_gguf_by_its_header(files: dict[str, Path]) -> None:
    report = examine_pair(resolve_pair(PairSettings(named(files["gguf"]), "none")))

    (target,) = report.models
    header = scan_gguf(files["gguf"])
    layers = table_model(successors()).model.layers
    num_values = sum(
        part.weight.shape[0] for layer in layers for part in (layer.self_attn.k_proj, layer.self_attn.v_proj)
    )
    assert (target.quant, target.dtype, target.device) == (header.quantization, "mixed", "cpu")
    assert target.memory.weights == header.num_weight_bytes
    # Keys and values in float16 for the whole window.
    assert target.memory.cache == 2 * num_values * 512
    assert report.num_positions == 512


@pytest.mark.fault("F127")
@pytest.mark.parametrize("backend", ["llama.cpp", "torch"])
def test_a_gguf_runs_under_any_name(tmp_path: Path, backend: str, files: dict[str, Path], cache: Path) -> None:
    blob = tmp_path / "sha256-0123456789abcdef"
    blob.symlink_to(files["gguf"])

    options = ("--draft", "none", "--backend", backend, "-n", "4", "--no-stats", "hi")
    made = run_child("generate", "--target", str(blob), *options, module="specgen", env={"SPECGEN_CACHE": str(cache)})

    assert made.out.decode().strip()
    assert ANSWER.startswith(made.out.decode().strip())


@pytest.mark.fault("F128")
def test_llama_cpp_opens_all_parts_of_a_split_model(tmp_path: Path, files: dict[str, Path], cache: Path) -> None:
    first = split(files["gguf"], tmp_path / "toy.gguf")

    options = ("--draft", "none", "--no-stats", "hi")
    env = {"SPECGEN_BACKEND": "auto", "SPECGEN_CACHE": str(cache)}
    made = run_child("generate", "--target", str(first), *options, module="specgen", env=env)

    assert made.out.decode() == f"{ANSWER}\n"


def split(path: Path, target: Path) -> Path:
    """Writes the tensors of a GGUF to several files, as llama-gguf-split does; returns the first."""
    import gguf

    reader: Any = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, "llama", split_max_tensors=5)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (first,) = target.parent.glob("toy-00001-of-*.gguf")
    return first
