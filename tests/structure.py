"""Prints figures about the structure of the package: `python -m tests.structure [PACKAGE_FOLDER]`.

Lazy imports count, imports for type checkers do not. The architecture test uses the same readers.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "specgen"


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted names of a package's modules, and their files."""
    found = {}
    for path in package.rglob("*.py"):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file, for all tests that read sources. None of them changes it."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file's syntax tree."""
    return tuple(ast.walk(parsed(path)))


def imports_of(path: Path, modules: Mapping[str, Path]) -> list[tuple[str, bool]]:
    """Modules that a file imports, and whether each import stands inside a function."""
    return list(_imports(parsed(path), modules, inside=False))


def _imports(node: ast.AST, modules: Mapping[str, Path], *, inside: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield (name if name in modules else child.module), inside
        elif isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            yield from _imports(ast.Module(child.orelse, []), modules, inside=inside)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, modules, inside=inside or is_function)


def room_of(module: str) -> str:
    """The folder or file right below the package that a module belongs to."""
    return ".".join(module.split(".")[:2])


def longest_chain(graph: Mapping[str, set[str]]) -> list[str]:
    """The longest path of imports; empty for a graph with a circle."""

    @cache
    def below(module: str) -> tuple[str, ...]:
        return (module, *max((below(other) for other in sorted(graph[module])), key=len, default=()))

    try:
        return list(max((below(module) for module in graph), key=len, default=()))
    except RecursionError:
        return []


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a function, without `self` and `cls`."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def figures(package: Path) -> dict[str, object]:
    """The figures by name."""
    modules = modules_of(package)
    found = {module: imports_of(path, modules) for module, path in modules.items()}
    own = {module: [(name, inside) for name, inside in names if name in modules] for module, names in found.items()}
    graph = {module: {name for name, _ in names} - {module} for module, names in own.items()}
    arrows = {
        (room_of(module), room_of(name))
        for module, names in graph.items()
        for name in names
        if room_of(module) != room_of(name) and package.name not in (room_of(module), room_of(name))
    }
    trees = {module: parsed(path) for module, path in modules.items()}
    # A GPU kernel takes each tensor and each size by itself.
    functions = [
        (num_parameters(node), f"{module}.{node.name}")
        for module, tree in trees.items()
        if ".fused.kernels." not in module
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    chain = longest_chain(graph)
    sizes = {module: len(path.read_text().splitlines()) for module, path in modules.items()}
    return {
        "single files beside __init__ and __main__": sum(
            path.stem not in ("__init__", "__main__") for path in package.glob("*.py")
        ),
        "rooms": len({room_of(module) for module in modules} - {package.name}),
        "arrows": len(arrows),
        "longest import chain": len(chain),
        "that chain": " > ".join(module.removeprefix(f"{package.name}.") for module in chain),
        "modules": len([module for module, size in sizes.items() if size > 3]),
        "lines": sum(sizes.values()),
        "largest module": max((size, module) for module, size in sizes.items()),
        "largest signature, GPU kernels apart": max(functions),
        "functions of more than five, GPU kernels apart": sum(number > 5 for number, _ in functions),
        "imports of our own": sum(map(len, own.values())),
        "of them inside functions": sum(inside for names in own.values() for _, inside in names),
        "third-party imports inside functions": sum(
            inside and name.split(".")[0] not in sys.stdlib_module_names and name not in modules
            for names in found.values()
            for name, inside in names
        ),
    }


if __name__ == "__main__":
    for name, value in figures(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE).items():
        print(f"{name:<46} {value}")
