"""Checks the structure: which folder may import which, no circles, and what a light import must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache

import pytest

from specgen.cli.program import COMMANDS
from tests.structure import PACKAGE, imports_of, longest_chain, modules_of, parsed

# Imports point from a later folder to an earlier one, lazy imports included.
ORDER = (
    *("core", "text", "storage", "engine", "models", "loading", "runtime"),
    *("verify", "bench", "doctor", "distill", "render", "cli", "__main__", "specgen"),
)
# Libraries, and earlier folders, that a folder must not import.
FORBIDDEN = {
    "text": {"torch", "rich", "typer"},
    "storage": {"torch", "transformers", "tokenizers", "rich", "typer", "specgen.text"},
    "engine": {"transformers", "tokenizers", "rich", "typer", "specgen.text", "specgen.storage"},
    "models": {"tokenizers", "rich", "typer", "specgen.text", "specgen.storage"},
    "loading": {"rich", "typer"},
    "runtime": {"rich", "typer"},
    "runtime.servers": {
        *("torch", "transformers", "tokenizers", "specgen.text"),
        *(f"specgen.{folder}" for folder in ("engine", "models", "loading")),
    },
    "verify": {"rich", "typer"},
    "bench": {"rich", "typer"},
    "doctor": {"rich", "typer"},
    "distill": {"rich", "typer"},
    "render": {
        *("torch", "transformers", "tokenizers", "typer"),
        *(f"specgen.{folder}" for folder in ("text", "storage", "engine", "models", "loading", "runtime")),
    },
    "cli": {"torch", "transformers", "tokenizers", "specgen.engine", "specgen.models"},
}
MODULES = modules_of(PACKAGE)


@cache
def imports(module: str) -> set[str]:
    return {name for name, _ in imports_of(MODULES[module], MODULES)}


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "specgen"


def forbidden_in(module: str) -> set[str]:
    """What the folders forbid that a module is in."""
    return set().union(*(names for place, names in FORBIDDEN.items() if f"{module}.".startswith(f"specgen.{place}.")))


def test_imports_point_to_earlier_folders() -> None:
    backwards = [
        f"{module} imports {imported}"
        for module in MODULES.keys() - {"specgen"}
        for imported in imports(module) & MODULES.keys()
        if ORDER.index(folder_of(imported)) > ORDER.index(folder_of(module))
    ]

    assert backwards == []


def test_no_folder_imports_what_it_must_not() -> None:
    assert [
        f"{module} imports {imported}"
        for module in MODULES.keys() - {"specgen"}
        for imported in imports(module)
        for forbidden in forbidden_in(module)
        if f"{imported}.".startswith(f"{forbidden}.")
    ] == []


def test_core_imports_the_standard_library_only() -> None:
    assert [
        f"{module} imports {imported}"
        for module in MODULES
        if folder_of(module) == "core"
        for imported in imports(module)
        if imported not in MODULES and imported.split(".")[0] not in sys.stdlib_module_names
    ] == []


def test_renderers_import_only_modules_without_torch() -> None:
    assert {name for name in _reached_from("specgen.render") if _imports_torch(name)} == set()


def _reached_from(folder: str) -> set[str]:
    found: set[str] = set()
    pending = [module for module in MODULES if module.startswith(folder)]
    while pending:
        module = pending.pop()
        if module not in found:
            found.add(module)
            pending += imports(module) & MODULES.keys()
    return found


def _imports_torch(module: str) -> bool:
    return any(name.split(".")[0] in ("torch", "transformers") for name in imports(module))


def test_no_file_stands_at_the_top_of_the_package() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def import_graph() -> dict[str, set[str]]:
    return {module: (imports(module) & MODULES.keys()) - {module} for module in MODULES}


def test_the_longest_chain_of_imports_has_at_most_fourteen_modules() -> None:
    chain = longest_chain(import_graph())

    assert len(chain) <= 14, " > ".join(chain)


def test_there_is_no_import_circle_even_a_lazy_one() -> None:
    graph = import_graph()
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("specgen", ["rich", "typer", "torch"]),
        ("specgen.cli.app", ["torch", "transformers", "tokenizers", "numpy", "huggingface_hub", "prompt_toolkit"]),
        # Before torch is imported, options are checked and its threads are limited.
        (", ".join(f"specgen.cli.{command.name}.run" for command in COMMANDS), ["torch", "transformers", "numpy"]),
        ("specgen.render.views", ["torch", "transformers", "typer"]),
        ("specgen.engine.decoding", ["rich.console", "typer", "specgen.text.detokenizer"]),
    ],
)
def test_a_cheap_import_stays_cheap(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert output.strip() == "[]"


# Methods that a library calls; what they do is said there.
LIBRARY_METHODS = {
    *{"forward", "backward", "format_help", "update"},
    *{"append_string", "load_history_strings", "store_string", "get_completions"},
    *{"find_spec", "create_module", "exec_module"},
}


def public_methods(owner: ast.Module | ast.ClassDef) -> dict[str, bool]:
    """Functions that others may call, and whether there is a docstring."""
    return {
        node.name: ast.get_docstring(node) is not None
        for node in owner.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def public_classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def test_every_public_function_says_its_contract() -> None:
    trees = {name: parsed(path) for name, path in MODULES.items()}
    protocols = [
        set(methods)
        for tree in trees.values()
        for owner in public_classes(tree)
        if any("Protocol" in ast.unparse(base) for base in owner.bases)
        and (methods := public_methods(owner))
        and all(methods.values())
    ]

    silent = [
        f"{name}: {getattr(owner, 'name', '')}.{method}"
        for name, tree in trees.items()
        for owner in (tree, *public_classes(tree))
        for methods in [public_methods(owner)]
        # Of a class that has all methods of a protocol, the protocol says what they do.
        for said in [set().union(*(protocol for protocol in protocols if protocol <= set(methods)))]
        for method, is_documented in methods.items()
        if not is_documented and method not in said and not (method in LIBRARY_METHODS and getattr(owner, "bases", []))
    ]

    assert len(protocols) > 4
    assert silent == []


def test_modules_stay_readable() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}

    assert {name: length for name, length in lengths.items() if length > 280} == {}
