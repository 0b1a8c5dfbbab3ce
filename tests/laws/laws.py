"""The house's laws, as functions of a source tree: each returns what breaks it. They read; nothing is imported or run."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lithe import papers, registry
from lithe.errors import LitheError

# Each room may import from those before it; rooms of one line never import each other.
ORDER = (
    ("ops",), ("kernels",), ("model",), ("sampling",), ("train",),
    ("attention", "blocks", "decode", "diffuse", "compress", "tune", "data"),
    ("loops",), ("serve",), ("bench", "contracts"), ("cli",),
)  # fmt: skip
RANK = {room: rank for rank, rooms in enumerate(ORDER, 1) for room in rooms}
FLOOR, FACE = 0, len(ORDER)  # files right under lithe/; the package itself, which only the command line may import
FILE_LINES, FUNCTION_LINES = 300, 50
ROWS = 181
# What git ignores or keeps to itself (in a worktree .git is a file): no part of the project.
OUTSIDE = {".git", ".venv", ".lithe", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis",
           "build", "dist"}
# Spelled with one-letter classes, so that this file does not break its own law.
MACHINES = re.compile(r"/[w]ork/|/[h]ome/\w|/[r]oot/|/[U]sers/\w|[p]ypi\.|[p]ythonhosted|[d]ownload\.pytorch|[i]ndex-url")


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def sources(root: Path) -> list[Path]:
    """Every Python file of the package."""
    return sorted(path for path in (root / "lithe").rglob("*.py") if not OUTSIDE & set(path.parts))


def methods(root: Path) -> list[Path]:
    """Every method's file: lithe/<room>/<shelf>/<name>.py."""
    return sorted(path for path in (root / "lithe").glob("*/*/*.py") if not path.name.startswith("_"))


def at(path: Path, root: Path, node: ast.AST | None = None) -> str:
    return f"{path.relative_to(root)}" + (f":{node.lineno}" if node is not None else "")


def imports_point_down(root: Path) -> list[str]:
    """A room imports from lower rooms and itself only; the package's face, which may import all, is imported by none."""
    broken = []
    for path in sources(root):
        room = path.relative_to(root / "lithe").parts[0]
        rank = FLOOR if room.endswith(".py") else RANK.get(room)
        if rank is None:
            broken.append(f"{at(path, root)}: room {room!r} has no place in the order")
        elif not room.startswith("__"):
            broken += [f"{at(path, root, node)}: {room} imports {target}" for node, target in _imports(path, root)
                       if not _downward(room, rank, target, root)]
    return broken


def _downward(room: str, rank: int, target: str, root: Path) -> bool:
    parts = target.split(".")
    if len(parts) == 1:
        return rank == FACE
    if parts[1].startswith("__") or (root / "lithe" / f"{parts[1]}.py").exists():
        return True
    if not (root / "lithe" / parts[1]).is_dir():
        return rank == FACE  # not a module, so something that the face offers
    return parts[1] == room or RANK.get(parts[1], FACE) < rank


def _imports(path: Path, root: Path) -> Iterator[tuple[ast.AST, str]]:
    """Every module of the package that a file imports, `import_module` of a constant included."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            targets = [f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}", root) or base == "lithe" else base
                       for alias in node.names]
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and isinstance(node.args[0], ast.Constant):
            targets = [str(node.args[0].value)]
        else:
            continue
        yield from ((node, target) for target in targets if target.split(".")[0] == "lithe")


def _is_module(name: str, root: Path) -> bool:
    place = root.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").exists()


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def methods_are_leaves(root: Path) -> list[str]:
    """Nobody imports a method's file."""
    names = {".".join(path.relative_to(root).with_suffix("").parts) for path in methods(root)}
    return [f"{at(path, root, node)}: imports the method {target}"
            for path in sources(root) for node, target in _imports(path, root) if target in names]


def methods_are_not_spelled(root: Path) -> list[str]:
    """No string in code names another file's method: not bare, as a spec, by shelf, by address or as a module."""
    broken = []
    for path in sources(root):
        others = [m for m in methods(root) if m.stem != path.stem or path not in methods(root)]
        spelled = re.compile("|".join(map(_spelling, others)) or "(?!)")
        docs = _docstrings(parse(path))
        broken += [f"{at(path, root, node)}: spells a method, {node.value!r}" for node in ast.walk(parse(path))
                   if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
                   and spelled.match(node.value)]
    return broken


def _spelling(method: Path) -> str:
    room, shelf, name = (re.escape(part) for part in (method.parts[-3], method.parts[-2], method.stem))
    return rf"(?:{shelf}=|(?:{room}/)?{shelf}/)?{name}(?:$|:)|lithe[./]{room}[./]{shelf}[./]{name}\b"


def _docstrings(tree: ast.Module) -> set[int]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr)}


def cards_are_literals(root: Path) -> list[str]:
    """Every method's card can be read without running its file."""
    broken = []
    for path in methods(root):
        try:
            registry.read(path, root / "lithe")
        except LitheError as problem:
            broken.append(str(problem))
    return broken


def files_and_functions_are_short(root: Path) -> list[str]:
    """A file under lithe/ stays under 300 lines and a function under 50."""
    broken = []
    for path in sources(root):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines >= FILE_LINES:
            broken.append(f"{at(path, root)}: {lines} lines")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 >= FUNCTION_LINES:
                broken.append(f"{at(path, root, node)}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    return broken


def papers_are_whole(root: Path) -> list[str]:
    """papers.toml has each of the 181 rows once, in order, with legal words; lines stay readable."""
    file = root / "lithe" / "papers.toml"
    try:
        rows = papers.papers(file)
    except LitheError as problem:
        return [str(problem)]
    broken = [f"{at(file, root)}:{number}: {len(line)} characters"
              for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 160]
    if list(rows) != list(range(ROWS)):
        broken.append(f"{at(file, root)}: its rows are not 0 to {ROWS - 1} in this order")
    if len({paper.id for paper in rows.values()}) < len(rows):
        broken.append(f"{at(file, root)}: an id stands there twice")
    return broken


def methods_have_their_rows(root: Path) -> list[str]:
    """A numbered method's row exists and names its file; a file that a row names exists, and its card names the row."""
    rows = papers.papers(root / "lithe" / "papers.toml")
    cards = {path.relative_to(root).as_posix(): registry.read(path, root / "lithe").card for path in methods(root)}
    broken = [f"{where}: row {card.row} of papers.toml does not name it" for where, card in cards.items()
              if card.row is not None and (card.row not in rows or where not in rows[card.row].where)]
    for paper in rows.values():
        for where in paper.where:
            if not (root / where).exists():
                broken.append(f"papers.toml row {paper.row}: there is no {where}")
            elif where in cards and cards[where].row != paper.row:
                broken.append(f"papers.toml row {paper.row}: the card of {where} says row {cards[where].row}")
    return broken


def nothing_names_a_machine(root: Path) -> list[str]:
    """No file of the project holds a path of somebody's machine or the host of a package registry."""
    broken = []
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(name for name in inside if name not in OUTSIDE and not name.endswith(".egg-info"))
        for path in (Path(folder, name) for name in sorted(files) if name not in OUTSIDE):
            data = path.read_bytes() if path.is_file() else b""
            lines = [] if b"\0" in data[:1024] else data.decode("utf-8", "replace").splitlines()
            broken += [f"{at(path, root)}:{number}: {found[0]}" for number, line in enumerate(lines, 1)
                       if (found := MACHINES.search(line))]
    return broken
