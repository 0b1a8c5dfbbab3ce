"""Which sources a run executes: the files of the objects that it uses, and from file to file what each imports."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from lithe import registry

COMPILED = {".c", ".cpp", ".h", ".cu"}
OURS = ("lithe.", "lithe_user_")  # how modules of lithe and of methods that lie elsewhere are named


def run_by(functions: Iterable[Any], objects: Iterable[Any]) -> set[Path]:
    """Sources that these functions and methods' objects execute, and all that is compiled, which is one library."""
    roots = {Path(inspect.getsourcefile(each) or "") for each in functions} | held(objects)
    return closure(roots) | {path for path in registry.ROOT.rglob("*") if path.suffix in COMPILED}


def held(objects: Iterable[Any]) -> set[Path]:
    """The files of these objects' classes and of all that they hold, as a method may be made of others."""
    left, seen, found = list(objects), set[int](), set[Path]()
    kept = list(left)  # what is only made for the asking must live on, or its number would be another's
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, (int, float, str, bytes)):
            continue
        seen.add(id(each))
        inner: list[Any] = []
        if isinstance(each, (list, tuple, set, frozenset, dict)):
            inner = list(each.values() if isinstance(each, dict) else each)
        elif type(each).__module__.startswith(OURS):
            found.add(Path(inspect.getsourcefile(type(each)) or ""))
            inner = list(each.modules()) if isinstance(each, nn.Module) else list(getattr(each, "__dict__", {}).values())
        left += inner
        kept += inner
    return found


def closure(roots: Iterable[Path]) -> set[Path]:
    """These files, all of lithe that they import, wherever in them, and so on; what only type checkers read is left out."""
    home, found, new = registry.ROOT, set(), set(roots)
    while new:
        found |= new
        named = {path for file in new for module in imports(file.read_bytes()) for path in files(module, home)}
        new = named - found
    return found


def files(module: str, home: Path) -> list[Path]:
    """What importing a dotted name under lithe runs: the packages above it, and it, where it is a module and no name in one."""
    first, *rest = module.split(".")
    if first != home.name:
        return []
    steps = [home.joinpath(*rest[:n]) for n in range(len(rest) + 1)]
    tried = [path for step in steps for path in (step / "__init__.py", step.with_suffix(".py"))]
    return [path for path in tried if path.is_file() and path.is_relative_to(home)]


@cache
def imports(source: bytes) -> frozenset[str]:
    """Every dotted name that a file imports, or that it imports something of."""
    return frozenset(_named(ast.parse(source)))


def _named(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for instead in node.orelse:
            yield from _named(instead)
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            raise ValueError(f"a relative import, line {node.lineno}: which file it means cannot be told")
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    else:
        for below in ast.iter_child_nodes(node):
            yield from _named(below)
