"""A name that a test replaces is looked up where it is replaced: otherwise the test runs without its replacement."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure import PACKAGE, modules_of, nodes_of, parsed

MODULES = modules_of(PACKAGE)


def replaced(path: Path) -> Iterator[tuple[str, str]]:
    """The names of the package that a test replaces by `setattr`, each with its module."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in nodes:
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr" and len(node.args) > 1:
            first, second = node.args[:2]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                module, _, name = first.value.rpartition(".")
                yield module, name
            elif isinstance(first, ast.Name) and isinstance(second, ast.Constant):
                yield imported.get(first.id, ""), str(second.value)


def is_copied(module: str, name: str) -> bool:
    """Whether another module of the package has the name from the top on, and its own module does not use it."""
    uses = {node.id for node in nodes_of(MODULES[module]) if isinstance(node, ast.Name)}
    return name not in uses and any(
        isinstance(node, ast.ImportFrom) and node.module == module and name in [alias.name for alias in node.names]
        for path in MODULES.values()
        for node in ast.iter_child_nodes(parsed(path))
    )


@pytest.mark.thorough
def test_a_replaced_name_is_looked_up_where_it_is_replaced() -> None:
    folder = Path(__file__).parent
    found = {
        (str(path.relative_to(folder)), module, name)
        for path in folder.rglob("*.py")
        for module, name in replaced(path)
        if module in MODULES
    }
    assert len(found) > 100
    assert [each for each in sorted(found) if is_copied(*each[1:])] == []
