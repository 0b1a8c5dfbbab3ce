"""Recipes: named combinations of methods, one TOML file each, shipped in `recipes/` or written by the user."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from lithe.errors import UsageError
from lithe.registry import ROOT, near

FOLDER = ROOT / "recipes"
KEYS = {"summary": str, "draft": str, "tree": str, "accept": str, "warps": list, "methods": list, "prompts": str,
        "max_tokens": int}


def names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str, *uses: str) -> dict[str, Any]:
    """A recipe by name or by path. Raises UsageError for an unknown recipe, key or type of value.

    uses: the keys that this use of it can honour, beside the summary; a recipe that says more is not for it.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no recipe {name!r}{near(name, names())}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise UsageError(f"recipe {path}: {problem}") from None
    for key, value in recipe.items():
        if key not in KEYS:
            raise UsageError(f"recipe {path} has unknown key {key!r}{near(key, KEYS)}")
        if key not in ("summary", *uses):
            raise UsageError(f"recipe {name!r} says {key}, which has no meaning here; what has: {', '.join(uses)}")
        items = value if isinstance(value, list) else []
        if type(value) is not KEYS[key] or not all(isinstance(item, str) for item in items):
            raise UsageError(f"recipe {path}: {key} must be a {KEYS[key].__name__}{' of str' * bool(items)}, not {value!r}")
        if isinstance(value, int) and value < 1:
            raise UsageError(f"recipe {path}: {key} must be at least 1, not {value}")
    return recipe
