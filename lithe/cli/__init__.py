"""The command line: one file a verb, found by its path. Only the verb asked for is imported.

A verb file holds a docstring (its first line is shown by `lithe --help`), `GROUP`, one of GROUPS, and `command`, whose typer
annotations are its arguments; what it returns is the exit code, None for 0. Files with a leading underscore are no verbs.
"""

from __future__ import annotations

import ast
import functools
import io
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from lithe import __version__
from lithe.errors import LitheError, TooLargeError, UsageError

FOLDER = Path(__file__).parent
GROUPS = ("run", "prove", "change", "look up")
USAGE = "Usage: lithe VERB [ARGUMENTS]    (lithe VERB --help tells more; lithe --version)"
INTERRUPTED = 130
PIPE_CLOSED = 141  # what a shell reports of a program whose reader went away


def main() -> None:
    """The entry point of the `lithe` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where the terminal's encoding lacks a letter, that is no failure
    sys.exit(run(sys.argv[1:]))


def run(words: list[str]) -> int:
    """Run one command line and return its exit code. What a user can act on is one line on stderr, never a traceback."""
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except LitheError as problem:
        return _tell(problem, problem.exit_code)
    except KeyboardInterrupt:
        return _tell("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter complains when it flushes at exit
        return PIPE_CLOSED
    except OSError as problem:
        return _tell(problem, LitheError.exit_code)
    except (MemoryError, RuntimeError) as problem:
        if isinstance(problem, MemoryError) or "out of memory" in str(problem) or "can't allocate memory" in str(problem):
            return _tell("out of memory: take a smaller model, batch, context or dtype", TooLargeError.exit_code)
        raise


def verbs() -> dict[str, Path]:
    """The verb files by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.py")) if not path.name.startswith("_")}


def _dispatch(words: list[str]) -> int:
    if not words:
        print(_overview(), file=sys.stderr)
        return UsageError.exit_code
    verb, *rest = words
    if verb in ("--help", "-h"):
        print(_overview())
        return 0
    if verb in ("--version", "-V"):
        print(f"lithe {__version__}")
        return 0
    if verb not in verbs():
        from lithe.registry import near

        raise UsageError(f"there is no verb {verb!r}{near(verb, verbs())}")
    return _call(import_module(f"{__name__}.{verb}").command, verb, rest)


def _call(command: Callable[..., int | None], verb: str, words: list[str]) -> int:
    """Let typer read the words, then run the verb outside of it, so that its errors and Ctrl-C are ours to tell."""
    import typer

    read: list[dict[str, Any]] = []

    @functools.wraps(command)
    def keep(**values: Any) -> None:
        read.append(values)

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(keep)
    try:
        typer.main.get_command(app).main(args=words, prog_name=f"lithe {verb}")
    except SystemExit as end:  # typer always ends so: after its help, a usage error, or words it could read
        if end.code == INTERRUPTED:
            raise KeyboardInterrupt from None  # by Ctrl-C while typer read
        if not read:
            return int(end.code or 0)
    try:
        return command(**read[0]) or 0
    except typer.Exit as end:
        return end.exit_code


def _overview() -> str:
    """Usage and every verb's first docstring line, by group, read without importing any."""
    groups: dict[str, list[str]] = {group: [] for group in (*GROUPS, "other")}
    for verb, path in verbs().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {ast.unparse(node.targets[0]): node.value.value for node in tree.body
                     if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)}
        summary = (ast.get_docstring(tree) or "").partition("\n")[0]
        groups[str(constants.get("GROUP", "other"))].append(f"  {verb:<10} {summary}")
    blocks = ["\n".join([f"{group}:", *lines]) for group, lines in groups.items() if lines]
    return "\n\n".join([USAGE, *blocks])


def _tell(problem: object, code: int) -> int:
    print(f"lithe: {problem}", file=sys.stderr)
    return code
