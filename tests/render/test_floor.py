from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import specgen.render
from tests.structure import nodes_of, parsed

FOLDER = Path(specgen.render.__path__[0])
MODULES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in FOLDER.rglob("*.py") if path.stem != "__init__"
)
ALLOWED = (
    "specgen.core",
    "specgen.bench.advice",
    "specgen.bench.figures",
    "specgen.bench.results",
    "specgen.bench.warnings",
    "specgen.distill.settings",
    "specgen.doctor.draft_forecast",
    "specgen.doctor.results",
    "specgen.verify.results",
    "specgen.render",
)
PLOTTING = {"bench.plot": "matplotlib"}
"""The only further library; it is imported inside functions, as the first test requires."""


def test_importing_every_module_loads_no_model_library() -> None:
    imports = "".join(f"import specgen.render.{module}\n" for module in MODULES)
    libraries = "'torch', 'transformers', 'tokenizers', 'numpy', 'matplotlib'"
    heavy = f"{{{libraries}, 'specgen.engine', 'specgen.loading', 'specgen.cli'}}"
    script = f"import sys\n{imports}assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()"

    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_render_imports_small_libraries_and_value_modules_only() -> None:
    for module in MODULES:
        names = [node.module or "" for node in nodes_of(file_of(module)) if isinstance(node, ast.ImportFrom)]
        names += [
            alias.name for node in nodes_of(file_of(module)) if isinstance(node, ast.Import) for alias in node.names
        ]
        for name in names:
            top = name.partition(".")[0]
            known = top in ("rich", "wcwidth", PLOTTING.get(module)) or top in sys.stdlib_module_names
            assert known or name.startswith(ALLOWED) or name == "specgen", f"{module} imports {name}"


def test_modules_are_short_and_have_a_docstring() -> None:
    for module in MODULES:
        assert len(file_of(module).read_text().splitlines()) <= 250, module
        assert ast.get_docstring(parsed(file_of(module))), module


def file_of(module: str) -> Path:
    return FOLDER / f"{module.replace('.', '/')}.py"
