"""The floors: who may import whom, lazy imports counted; no circles; and what a cheap import may not pull in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "specgen"

# Floor of each part, and what of the heavy libraries it may import. Imports point to the same floor or a lower one.
FLOORS = {
    "specgen": 0,
    "specgen.errors": 0,
    "specgen.settings": 0,
    "specgen.events": 0,
    "specgen.metrics": 1,
    "specgen.forecast": 1,
    "specgen.report": 1,
    "specgen.transcript": 1,
    "specgen.engine": 2,
    "specgen.text": 3,
    "specgen.prompting": 3,
    "specgen.saved_sessions": 3,
    "specgen.cost_store": 3,
    "specgen.known_costs": 4,
    "specgen.session_lock": 3,
    "specgen.template_choice": 3,
    "specgen.template_limits": 3,
    "specgen.turns": 3,
    "specgen.loading": 3,
    "specgen.bench": 3,
    "specgen.bench.lanes": 4,
    "specgen.bench.memory": 4,
    "specgen.bench.probe": 4,
    "specgen.bench.runner": 4,
    "specgen.bench.sameness": 4,
    "specgen.distill": 4,
    "specgen.distill.prompts": 3,
    "specgen.distill.values": 3,
    "specgen.doctor": 4,
    "specgen.doctor.values": 3,
    "specgen.origin": 3,
    "specgen.machine": 3,
    "specgen.machine_values": 0,
    "specgen.borrowing": 4,
    "specgen.opening": 4,
    "specgen.plan": 4,
    "specgen.session": 4,
    "specgen.generation": 4,
    "specgen.conversation": 4,
    "specgen.near_ties": 3,
    "specgen.proof": 4,
    "specgen.render": 4,
    "specgen.cli": 5,
    "specgen.__main__": 6,
}
FORBIDDEN = {
    "specgen.engine": {"rich", "typer", "tokenizers", "specgen.text", "specgen.loading"},
    "specgen.loading": {"rich", "typer", "specgen.engine", "specgen.text"},
    "specgen.text": {"rich", "typer", "torch", "transformers", "specgen.engine"},
    "specgen.saved_sessions": {"rich", "typer", "torch", "transformers", "tokenizers", "specgen.engine"},
    "specgen.cost_store": {"rich", "typer", "torch", "transformers", "tokenizers", "specgen.engine"},
    "specgen.bench": {"rich", "typer", "torch", "transformers", "specgen.engine", "specgen.loading"},
    "specgen.bench.probe": {"rich", "typer"},
    "specgen.bench.runner": {"rich", "typer"},
    "specgen.distill": {"rich", "typer"},
    "specgen.doctor": {"rich", "typer"},
    "specgen.conversation": {"rich", "typer", "specgen.saved_sessions"},
    "specgen.render": {
        *{"typer", "torch", "transformers", "tokenizers", "specgen.engine", "specgen.text", "specgen.loading"},
        *{"specgen.plan", "specgen.session", "specgen.generation", "specgen.prompting", "specgen.proof"},
        *{f"specgen.distill.{name}" for name in ("run", "training", "fitting", "draft", "layers")},
        *{f"specgen.distill.{name}" for name in ("texts", "writing", "saving")},
        *{"specgen.doctor.examine", "specgen.doctor.memory_plan", "specgen.machine"},
        *{"specgen.bench.lanes", "specgen.bench.probe", "specgen.bench.runner", "specgen.bench.sameness"},
    },
    "specgen.cli": {"torch", "transformers", "tokenizers", "specgen.engine"},
}
WORDS_MAY_IMPORT = {"specgen.errors", "specgen.events", "specgen.forecast", "specgen.metrics", "specgen.settings"}


def module_name(path: Path) -> str:
    parts = ["specgen", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imports_of(path: Path) -> set[str]:
    """Modules a file imports, at its top or inside functions; imports for type checkers only left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
    return found


def part_of(module: str) -> str:
    return max((part for part in FLOORS if module == part or module.startswith(part + ".")), key=len)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_downwards(module: str) -> None:
    part = part_of(module)
    for imported in imports_of(MODULES[module]):
        if imported.split(".")[0] == "specgen":
            assert FLOORS[part_of(imported)] <= FLOORS[part], f"{module} reaches up to {imported}"
        for forbidden in FORBIDDEN.get(part, ()):
            assert not f"{imported}.".startswith(f"{forbidden}."), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in sorted(MODULES) if FLOORS[part_of(name)] <= 1])
def test_the_words_of_the_house_import_nothing_heavy(module: str) -> None:
    for imported in imports_of(MODULES[module]):
        assert imported in WORDS_MAY_IMPORT or imported.split(".")[0] in sys.stdlib_module_names


def test_there_is_no_import_circle_even_a_lazy_one() -> None:
    graph = {module: {name for name in imports_of(path) if name in MODULES} for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for imported in graph[module] - {module}:
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("specgen", ["rich", "typer", "torch"]),
        ("specgen.cli.app", ["torch", "transformers", "tokenizers", "numpy", "huggingface_hub", "prompt_toolkit"]),
        ("specgen.render.views", ["torch", "transformers", "typer"]),
        ("specgen.engine.decoding", ["rich.console", "typer", "specgen.text"]),
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
    trees = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
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
