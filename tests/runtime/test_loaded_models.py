"""What is said about a pair whose draft can't help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specgen.core.settings import ModelSettings
from specgen.loading.resolve import find_files, resolve
from specgen.loading.resolved_model import ResolvedModel
from specgen.runtime.loaded_models import _size_notice
from tests.loading.builders import make_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    folder = tmp_path_factory.mktemp("models") / "model"
    make_folder(folder)
    settings = ModelSettings(str(folder))
    return resolve(find_files(settings), settings, "target")


def sized(model: ResolvedModel, num_parameters: int, path: str = "/elsewhere") -> ResolvedModel:
    config = replace(model.config, num_parameters=num_parameters, num_weight_bytes=2 * num_parameters)
    return replace(model, config=config, files=replace(model.files, path=Path(path)))


@pytest.mark.fault("F139")
@pytest.mark.parametrize(
    ("target", "draft", "part"),
    [
        (10**9, 10**9, "as large as the target"),
        (10**8, 4 * 10**9, "40 times as large as the target"),
        (10**9, 10**8, None),
        (10**6, 10**7, None),
    ],
)
def test_a_draft_as_large_as_its_target_is_a_notice(
    model: ResolvedModel, target: int, draft: int, part: str | None
) -> None:
    notice = _size_notice(sized(model, target, "/target"), sized(model, draft))

    assert (notice is None) == (part is None)
    assert part is None or part in (notice or "")


@pytest.mark.fault("F139")
def test_a_target_that_drafts_for_itself_is_loaded_twice(model: ResolvedModel) -> None:
    large = sized(model, 10**9)

    assert "twice" in (_size_notice(large, large) or "")
