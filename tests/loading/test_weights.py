"""Loading weights: complete, finite, on the requested device and in the requested format, or an error.

The promises are the same for specgen's decoder (`torch`) and for transformers' code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from specgen.core.errors import MemoryShortageError, ModelFileError, NumericalError
from specgen.core.settings import BackendName, BackendSettings, ModelSettings
from specgen.loading import decoder_weights, memory, weights
from specgen.loading.config_check import check_folder
from specgen.loading.module_sizes import with_module_sizes
from specgen.loading.placement import Placement
from specgen.loading.resolved_model import LoadedModel
from specgen.loading.weight_sizes import needed_bytes
from specgen.loading.weights import load_weights
from specgen.models.decoder_model import DecoderModel
from specgen.models.transformers_model import TransformersModel
from tests.loading.builders import (
    VOCAB,
    RecordedProgress,
    cpu_with,
    edit_json,
    edit_weights,
    fails,
    make_folder,
    make_model,
    resolved,
)

IDS = [3, 4, 5, 6]
BACKENDS: tuple[BackendName, ...] = ("torch", "transformers")


def load(folder: Path, backend: BackendName = "torch", *, from_gguf: bool = False, **settings: Any) -> LoadedModel:
    options = ModelSettings(str(folder), backend=BackendSettings(backend), **settings)
    return load_weights(resolved(folder, options, from_gguf=from_gguf, name="tiny"), VOCAB)


@pytest.fixture(autouse=True)
def cpu(plain_cpu: None) -> None:
    pass


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> BackendName:
    name: BackendName = request.param
    return name


@pytest.mark.parametrize(("name", "kind"), [("torch", DecoderModel), ("transformers", TransformersModel)])
def test_each_backend_runs_its_own_code(folder: Path, name: BackendName, kind: type) -> None:
    assert type(load(folder, name).model) is kind


def test_the_weights_are_those_of_the_file(folder: Path, backend: BackendName) -> None:
    loaded = load(folder, backend)

    assert torch.equal(loaded.model.logits(IDS, 4), make_model()(torch.tensor([IDS])).logits[0])


def test_the_model_is_in_eval_mode_without_gradients(folder: Path, backend: BackendName) -> None:
    module = load(folder, backend).model.module

    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_info_describes_what_runs(folder: Path, backend: BackendName) -> None:
    info = load(folder, backend).info

    assert (info.name, info.quant, info.dtype, info.device) == ("tiny", "none", "float32", "cpu")
    assert (info.num_parameters, info.num_bytes // 1000) == (22_688, 90)
    assert "AVX512-BF16" in info.remark


def test_the_info_of_a_converted_gguf_names_its_source(folder: Path, backend: BackendName) -> None:
    assert load(folder, backend, from_gguf=True).info.remark.startswith("from GGUF")


def test_the_stage_names_role_and_model(folder: Path) -> None:
    report = RecordedProgress()

    load_weights(resolved(folder, ModelSettings(str(folder)), role="draft", name="tiny"), VOCAB, report)

    assert len(report.stages) == 1
    assert "draft" in report.stages[0]
    assert "tiny" in report.stages[0]


def test_a_stage_names_the_key_that_leaves_a_model_to_transformers(folder: Path) -> None:
    edit_json(folder / "config.json", new_key=[3])
    report = RecordedProgress()

    loaded = load_weights(resolved(folder, ModelSettings(str(folder))), VOCAB, report)

    assert type(loaded.model) is TransformersModel
    assert torch.equal(loaded.model.logits(IDS, 4), make_model()(torch.tensor([IDS])).logits[0])
    assert "new_key is [3]" in report.stages[0]
    assert len(report.stages) == 2


def test_no_key_is_named_if_transformers_is_requested(folder: Path) -> None:
    edit_json(folder / "config.json", new_key=[3])
    report = RecordedProgress()
    settings = ModelSettings(str(folder), backend=BackendSettings("transformers"))

    load_weights(resolved(folder, settings), VOCAB, report)

    assert len(report.stages) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_requested_compute_type_is_used(folder: Path, dtype: str, backend: BackendName) -> None:
    loaded = load(folder, backend, dtype=dtype)

    assert loaded.info.dtype == dtype
    assert loaded.info.remark == ""
    assert {parameter.dtype for parameter in loaded.model.module.parameters()} == {getattr(torch, dtype)}


@pytest.mark.fault("F17")
def test_tied_weights_are_not_missing(tmp_path: Path, backend: BackendName) -> None:
    folder = make_folder(tmp_path / "tied", tie_word_embeddings=True)

    assert load(folder, backend).info.num_parameters == 20_640


def test_a_tied_head_that_equals_the_embedding_may_be_stored(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tied", tie_word_embeddings=True)
    expected = load(folder).model.logits(IDS, 4)
    edit_weights(
        folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )

    assert torch.equal(load(folder).model.logits(IDS, 4), expected)


def test_a_tied_head_that_differs_from_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tied", tie_word_embeddings=True)
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))

    fails(ModelFileError, lambda: load(folder), str(folder))


def test_the_frequencies_that_old_checkpoints_store_are_ignored(folder: Path, backend: BackendName) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda tensors: tensors.update({name: torch.ones(4)}))

    assert torch.equal(load(folder, backend).model.logits(IDS, 4), make_model()(torch.tensor([IDS])).logits[0])


def test_weights_in_several_files_are_read(tmp_path: Path, backend: BackendName) -> None:
    folder = make_folder(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2

    loaded = load(folder, backend)

    assert torch.equal(loaded.model.logits(IDS, 4), make_model()(torch.tensor([IDS])).logits[0])


@pytest.mark.parametrize("quant", ["nf4", "fp4", "int8"])
@pytest.mark.fast("torch-*", "transformers-nf4")
def test_the_layers_have_the_requested_weight_format(
    tmp_path: Path, quant: str, monkeypatch: pytest.MonkeyPatch, backend: BackendName
) -> None:
    # bitsandbytes has no product of 4-bit rows shorter than a block.
    folder = make_folder(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    cpu_with(monkeypatch)
    loaded = load(folder, backend, quant=quant)

    assert loaded.info.quant == quant
    assert loaded.info.num_parameters == 82_240
    assert loaded.info.num_bytes < 145_000


@pytest.mark.parametrize("quant", ["nf4", "fp4", "int8"])
@pytest.mark.fast("int8", "nf4")
def test_a_weight_format_gives_the_logits_that_transformers_gives_with_it(tmp_path: Path, quant: str) -> None:
    folder = make_folder(tmp_path / "wide", hidden_size=128, intermediate_size=256)

    ours, theirs = (load(folder, name, quant=quant).model.logits(IDS, 4) for name in BACKENDS)

    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_int8_rows_do_not_influence_each_other(folder: Path, backend: BackendName) -> None:
    edit_weights(folder, lambda tensors: tensors["model.embed_tokens.weight"][40].mul_(100))
    model = load(folder, backend, quant="int8").model

    rows = []
    for tail in (5, 40):
        model.reset()
        rows.append(model.logits([3, 4, tail, tail], 4)[1])

    assert torch.equal(*rows)


def test_nf4_uses_the_compute_type(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch)
    model = load(folder, quant="nf4", dtype="bfloat16").model
    assert isinstance(model, DecoderModel)
    layer: Any = model.decoder.layers[0].attention.o_proj

    assert layer.compute_dtype == torch.bfloat16
    assert not layer.weight.quant_state.nested


@pytest.mark.fault("F17")
def test_a_missing_tensor_is_named(folder: Path, backend: BackendName) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))

    error = fails(ModelFileError, lambda: load(folder, backend), "model.norm.weight")

    assert error.exit_code == 3


@pytest.mark.fault("F164")
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_the_names_of_a_wrapper_are_named(folder: Path, backend: BackendName, prefix: str) -> None:
    def wrap(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    edit_weights(folder, wrap)

    error = fails(ModelFileError, lambda: load(folder, backend), "missing")

    assert repr(prefix) in (error.hint or "")


@pytest.mark.fault("F17")
def test_a_config_with_more_layers_than_the_file_is_refused(folder: Path, backend: BackendName) -> None:
    edit_json(folder / "config.json", num_hidden_layers=5)

    fails(ModelFileError, lambda: load(folder, backend), "model.layers.2.")


@pytest.mark.fault("F18")
def test_a_config_with_fewer_layers_than_the_file_is_refused(folder: Path, backend: BackendName) -> None:
    edit_json(folder / "config.json", num_hidden_layers=1)

    fails(ModelFileError, lambda: load(folder, backend), "model.layers.1.")


def test_a_config_with_another_width_than_the_file_is_refused(folder: Path, backend: BackendName) -> None:
    edit_json(folder / "config.json", intermediate_size=96)

    fails(ModelFileError, lambda: load(folder, backend), "model.layers.0.mlp.down_proj.weight")


def test_a_bias_without_a_place_in_the_config_is_refused(folder: Path, backend: BackendName) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_weights(folder, lambda tensors: tensors.update({name: torch.ones(32)}))

    fails(ModelFileError, lambda: load(folder, backend), name)


def test_the_attention_named_in_the_config_is_ignored(folder: Path, backend: BackendName) -> None:
    edit_json(folder / "config.json", _attn_implementation="flash_attention_2")

    model = load(folder, backend).model

    assert torch.equal(model.logits(IDS, 4), make_model()(torch.tensor([IDS])).logits[0])
    if isinstance(model, TransformersModel):
        assert model.model.config._attn_implementation == "sdpa"


def test_a_quantization_that_the_library_ignores_is_not_reported(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "no-such-method"})

    loaded = load(folder)

    assert type(loaded.model) is TransformersModel
    assert loaded.info.quant == "none"


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.fault("F19")
@pytest.mark.fast("torch-*", "transformers-nan-*")
def test_weights_with_nan_or_infinity_are_refused(folder: Path, name: str, value: float, backend: BackendName) -> None:
    edit_weights(folder, lambda tensors: tensors[name].view(-1)[7:].fill_(value))

    error = fails(NumericalError, lambda: load(folder, backend), name)

    assert error.exit_code == 8


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"num_attention_heads": 5}, ""),
        ({"hidden_act": "no-such-function"}, "no-such-function"),
        ({"rope_parameters": {"rope_type": "no-such-type"}}, "no-such-type"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"head_dim": 0}, ""),
    ],
)
@pytest.mark.fault("F20")
def test_a_config_that_no_backend_runs_is_reported_in_one_line(
    folder: Path, change: dict[str, object], part: str, backend: BackendName
) -> None:
    edit_json(folder / "config.json", **change)

    error = fails(ModelFileError, lambda: load(folder, backend), str(folder), part)

    assert "\n" not in error.message


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
)
@pytest.mark.fault("F39")
def test_a_memory_shortage_suggests_the_most_effective_fix_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, backend: BackendName
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(decoder_weights, "build_layer", refuse)

    error = fails(MemoryShortageError, lambda: load(folder, backend), "cpu", "tiny")

    assert error.exit_code == 5
    assert error.hint is not None
    assert error.hint.index("--quant nf4") < error.hint.index("--draft none")


@pytest.mark.fault("F41")
def test_a_model_larger_than_the_free_memory_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, backend: BackendName
) -> None:
    monkeypatch.setattr(weights, "free_bytes", lambda device: 1000)

    notices = load(folder, backend).notices

    assert len(notices) == 1
    assert "tiny" in notices[0]


@pytest.mark.parametrize("quant", ["none", "int8", "nf4"])
@pytest.mark.fault("F41")
@pytest.mark.fast("torch-none", "torch-int8", "transformers-none")
def test_the_memory_estimate_is_within_a_quarter(tmp_path: Path, quant: str, backend: BackendName) -> None:
    folder = make_folder(tmp_path / "wide", hidden_size=256, intermediate_size=1024, num_hidden_layers=3)
    loaded = load(folder, backend, quant=quant)

    config = with_module_sizes(check_folder(folder, backend), folder)

    assert 0.75 < needed_bytes(config, loaded.info.dtype, quant, "cpu") / loaded.info.num_bytes < 1.25


def test_the_free_memory_of_this_machine_is_known() -> None:
    assert (memory.free_bytes("cpu") or 0) > 2**20


OLD_FORMS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "float16": lambda tensors: {name: tensor.half() for name, tensor in tensors.items()},
    "another order": lambda tensors: {name: tensor.clone() for name, tensor in reversed(tensors.items())},
}


@pytest.mark.parametrize("form", OLD_FORMS)
def test_stored_types_and_orders_of_a_file_do_not_matter(folder: Path, form: str) -> None:
    path = folder / "model.safetensors"
    save_file(OLD_FORMS[form](load_file(path)), path, metadata={"format": "pt"})

    ours, theirs = (load(folder, name, dtype="float32").model.logits(IDS, 4) for name in BACKENDS)

    assert torch.equal(ours, theirs)


@pytest.mark.fault("F172")
@pytest.mark.parametrize("change", ["no metadata", "byte order marks", "utf-16"])
@pytest.mark.fast("torch-*", "transformers-utf-16")
def test_json_files_that_transformers_can_not_read_are_read(folder: Path, backend: BackendName, change: str) -> None:
    expected = load(folder, backend).model.logits(IDS, 1)
    weights = folder / "model.safetensors"
    names = load_file(weights)
    weights.rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    if change != "no metadata":
        index["metadata"] = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in () if change == "no metadata" else ("config.json", "model.safetensors.index.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text, "utf-16" if change == "utf-16" else "utf-8-sig")

    assert torch.equal(load(folder, backend).model.logits(IDS, 1), expected)


@pytest.mark.fault("F20")
def test_a_size_that_a_config_lacks_is_named(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=None)

    fails(ModelFileError, lambda: load(folder), "intermediate_size", "11008")


@pytest.mark.fault("F20")
@pytest.mark.parametrize(
    ("change", "named"),
    [({"rope_parameters": {"rope_type": "ntk", "factor": 2.0}}, "rope_type is 'ntk'"), ({"hidden_act": "x"}, "'x'")],
)
def test_a_name_in_a_config_that_nothing_knows_is_named(folder: Path, change: dict[str, Any], named: str) -> None:
    edit_json(folder / "config.json", **change)

    error = fails(ModelFileError, lambda: load(folder), named)

    assert "damaged" not in (error.hint or "")


@pytest.mark.parametrize("has_kernel", [True, False])
def test_only_weights_that_stay_as_they_were_read_share_memory(
    monkeypatch: pytest.MonkeyPatch, has_kernel: bool
) -> None:
    """What FBGEMM packs is read to memory of its own, which the packed copy replaces."""
    monkeypatch.setattr(decoder_weights, "has_float_matmul", lambda dtype: has_kernel)

    stored = decoder_weights.kept_type(Placement("cpu", False, "bfloat16", "none", ()))
    packed = decoder_weights.kept_type(Placement("cpu", False, "float16", "none", (), "float16"))
    quantized = decoder_weights.kept_type(Placement("cpu", False, "float32", "int8", (), "int8"))
    elsewhere = decoder_weights.kept_type(Placement("cuda:0", False, "bfloat16", "none", ()))

    assert (stored, packed) == (torch.bfloat16, torch.float16 if has_kernel else None)
    assert (quantized, elsewhere) == (None, None)
