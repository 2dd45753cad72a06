"""Names of models: where they lead, and what is said when they lead nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specgen.core.errors import ModelFileError, ModelNotFoundError, SettingsError
from specgen.core.settings import ModelSettings
from specgen.loading.names import BUILT_IN_NAME, find_place, near_names
from tests.loading.builders import fails, make_folder


@pytest.mark.parametrize("name", ["", " ", "smollm2-135m-instruct", "SmolLM2-135M-Instruct"])
def test_an_empty_name_means_the_built_in_model(name: str) -> None:
    place = find_place(ModelSettings(name))

    assert (place.kind, place.name, place.is_gguf) == ("built-in", BUILT_IN_NAME, True)


def test_a_gguf_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "model.GGUF").touch()

    place = find_place(ModelSettings(str(tmp_path / "model.GGUF")))

    assert (place.kind, place.name, place.path) == ("gguf", "model", tmp_path / "model.GGUF")


@pytest.mark.fault("F127")
@pytest.mark.parametrize("name", ["sha256-0123456789abcdef", "model.gguf.bak", "model.bin", "model", "config.json"])
def test_a_gguf_is_recognized_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF" + bytes(60))

    place = find_place(ModelSettings(str(tmp_path / name)))

    assert (place.kind, place.name, place.path) == ("gguf", name, tmp_path / name)


def test_a_folder_is_found_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")

    assert find_place(ModelSettings(str(tmp_path / "link"))).kind == "folder"


def test_the_home_folder_can_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()

    assert find_place(ModelSettings("~/model")).path == tmp_path / "model"


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-0.5B-Instruct", "a_b/c-d.e"])
def test_a_name_of_that_form_is_a_hub_id(name: str) -> None:
    assert find_place(ModelSettings(name)).kind == "hub"


@pytest.mark.fault("F136")
@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B", None),
        ("http://www.huggingface.co/Qwen/Qwen2.5-0.5B/", None),
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B/tree/main", "main"),
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B/blob/v1/config.json?download=true", "v1"),
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B/resolve/main/model.safetensors", "main"),
        ("HTTPS://HuggingFace.co/Qwen/Qwen2.5-0.5B", None),
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B.git", None),
        ("git@hf.co:Qwen/Qwen2.5-0.5B", None),
        ("Qwen/Qwen2.5-0.5B.git", None),
        ("https://hub.example:8080/Qwen/Qwen2.5-0.5B/tree/v2", "v2"),
        ("hf.co/Qwen/Qwen2.5-0.5B", None),
        ("huggingface.co/Qwen/Qwen2.5-0.5B", None),
        ("hf://Qwen/Qwen2.5-0.5B", None),
        ("Qwen/Qwen2.5-0.5B/", None),
        ("Qwen/Qwen2.5-0.5B@refs/pr/7", "refs/pr/7"),
        ("Qwen/Qwen2.5-0.5B@a1b2c3d", "a1b2c3d"),
        ("Qwen/Qwen2.5-0.5B/model.safetensors", None),
    ],
)
def test_a_hub_name_is_understood_as_people_paste_it(
    name: str, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example:8080/")

    place = find_place(ModelSettings(name))

    assert (place.kind, place.name, place.revision) == ("hub", "Qwen/Qwen2.5-0.5B", revision)


@pytest.mark.fault("F136")
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("unsloth/x-GGUF:Q4_K_M", 'hf download unsloth/x-GGUF --include "*Q4_K_M*.gguf"'),
        ("hf.co/unsloth/x-GGUF:Q4_K_M", 'hf download unsloth/x-GGUF --include "*Q4_K_M*.gguf"'),
        ("unsloth/x-GGUF/x-Q8_0.gguf", "hf download unsloth/x-GGUF x-Q8_0.gguf"),
        ("https://huggingface.co/unsloth/x-GGUF/blob/v2/x.gguf", "hf download unsloth/x-GGUF x.gguf --revision v2"),
    ],
)
def test_a_gguf_file_of_the_hub_names_the_command_that_downloads_it(name: str, command: str) -> None:
    fails(ModelNotFoundError, lambda: find_place(ModelSettings(name)), "GGUF", command)


@pytest.mark.fault("F136")
@pytest.mark.parametrize("name", ["https://huggingface.co/datasets/a/b", "hf.co/spaces/a/b", "hf://datasets/a/b"])
def test_an_address_of_no_model_is_called_so(name: str) -> None:
    fails(ModelNotFoundError, lambda: find_place(ModelSettings(name)), name, "data set")


@pytest.mark.fault("F136")
def test_a_name_of_ollama_names_the_command_that_shows_its_file() -> None:
    fails(ModelNotFoundError, lambda: find_place(ModelSettings("llama3.2:1b")), "ollama show --modelfile llama3.2:1b")


@pytest.mark.fault("F136")
@pytest.mark.parametrize("name", ["a/b/c", "./owner/name/", "/owner/name", "../owner/name", "a/b.gguf", "C:/x/y"])
def test_a_path_is_no_pasted_name(name: str) -> None:
    error = fails(ModelNotFoundError, lambda: find_place(ModelSettings(name)), name)

    assert "hf download" not in (error.hint or "")


@pytest.mark.parametrize("name", ["owner/name:nf4", "./folder:nf4", "folder:nf4", "owner/name@main:nf4"])
def test_a_weight_format_after_a_name_names_the_options(name: str) -> None:
    fails(ModelNotFoundError, lambda: find_place(ModelSettings(name)), name, "--draft-quant nf4", "--quant nf4")


@pytest.mark.parametrize("name", ["nf4", "auto", "none"])
def test_a_model_may_have_the_name_of_a_weight_format(name: str) -> None:
    assert find_place(ModelSettings(name)).kind == "hub"


# F26


@pytest.mark.parametrize("quant", ["int8", "nf4", "fp4"])
@pytest.mark.parametrize("name", ["", "file.gguf"])
@pytest.mark.fault("F26")
def test_a_gguf_with_a_weight_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, quant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.gguf").touch()

    error = fails(
        SettingsError,
        lambda: find_place(ModelSettings(name, quant=quant)),  # type: ignore[arg-type]
        f"--quant {quant}",
    )
    assert error.exit_code == 2


@pytest.mark.parametrize("quant", ["auto", "none"])
def test_a_gguf_without_one_is_accepted(quant: str) -> None:
    assert find_place(ModelSettings("", quant=quant)).is_gguf  # type: ignore[arg-type]


# F32


@pytest.mark.fault("F32")
def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")

    fails(ModelFileError, lambda: find_place(ModelSettings(str(tmp_path / "model.gguf"))), "model.gguf")


@pytest.mark.fault("F32")
def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")

    fails(ModelFileError, lambda: find_place(ModelSettings(str(tmp_path / "link"))), "nowhere")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")

    fails(ModelFileError, lambda: find_place(ModelSettings(str(tmp_path / "link"))), "link")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.bin", "model.bin"),
        ("model.pt", "model.pt"),
        ("model.safetensors", "model.safetensors"),
        ("config.json", "config.json"),
        ("notes.txt", "notes.txt"),
    ],
)
@pytest.mark.fault("F32")
def test_a_single_file_instead_of_a_folder_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).touch()

    fails(ModelFileError, lambda: find_place(ModelSettings(str(tmp_path / name))), name, reason)


@pytest.mark.parametrize(
    "name", ["./smollm", "/nowhere/at/all", "../x/y/z", "model.gguf", "a b", "x" * 300, "~nobody/x"]
)
def test_a_path_to_nothing_is_not_found(name: str) -> None:
    fails(ModelNotFoundError, lambda: find_place(ModelSettings(name)), name)


def test_a_name_below_a_file_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    fails(
        ModelNotFoundError, lambda: find_place(ModelSettings(str(tmp_path / "file" / "model"))), str(tmp_path / "file")
    )


def test_near_names_are_suggested(tmp_path: Path) -> None:
    (tmp_path / "SmolLM2.gguf").touch()

    fails(
        ModelNotFoundError,
        lambda: find_place(ModelSettings(str(tmp_path / "smollm.gguf"))),
        str(tmp_path / "SmolLM2.gguf"),
    )


def test_a_missing_folder_has_no_similar_names(tmp_path: Path) -> None:
    assert near_names(tmp_path / "nowhere" / "model") == []


def test_a_nul_character_is_a_settings_error() -> None:
    fails(SettingsError, lambda: find_place(ModelSettings("a\0b")), "NUL")


@pytest.mark.fault("F136")
def test_the_address_of_a_folder_is_its_path(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a b")

    place = find_place(ModelSettings(folder.as_uri()))

    assert (place.kind, place.path) == ("folder", folder)


@pytest.mark.fault("F127")
def test_an_archive_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK\x03\x04")

    fails(ModelFileError, lambda: find_place(ModelSettings(str(tmp_path / "model.zip"))), "zip")


@pytest.mark.fault("F127")
@pytest.mark.parametrize(("start", "what"), [(b"lmgg", "GGML"), (b"MZqFpD", "llamafile"), (b"\x80\x02", "pickle")])
def test_a_file_named_as_pickles_are_is_called_what_it_is(tmp_path: Path, start: bytes, what: str) -> None:
    (tmp_path / "model.bin").write_bytes(start + bytes(60))

    fails(ModelFileError, lambda: find_place(ModelSettings(str(tmp_path / "model.bin"))), what)


@pytest.mark.fault("F136")
@pytest.mark.parametrize("name", ["https://example.com/model.gguf", "s3://bucket/model", "ollama://llama3"])
def test_an_address_of_another_place_is_called_so(name: str) -> None:
    fails(ModelNotFoundError, lambda: find_place(ModelSettings(name)), name, "download")
