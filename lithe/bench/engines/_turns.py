"""An engine's process as the suite sees it: asked for one task at a time over a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from threading import Timer
from time import perf_counter, sleep
from typing import Any

from lithe.bench.engines import LITHE, LLAMA, PACKAGES
from lithe.errors import LitheError

PAUSE_S = 0.03  # before a turn: threads of whoever had the last one spin for some milliseconds before they sleep
LIMIT_S = 300.0  # without an answer, after which a process counts as stuck
TAIL = 400  # characters of a dead process's last words


class EngineError(LitheError):
    """An engine could not do its task. The message is for the user."""


def missing(engine: str) -> str | None:
    """Why an engine cannot run here, or None."""
    needed = [PACKAGES[engine], *(["gguf"] if engine == LLAMA else [])]
    return None if engine == LITHE or all(map(find_spec, needed)) else "not installed: pip install 'lithe[engines]'"


class Worker:
    """A process of its own. Leaving the context ends it."""

    def __init__(self, engine: str, **settings: Any):
        self.engine, self.settings = engine, settings
        self.busy: list[float] = []  # share of a processor used while it waited for its turn
        self.peak_mb = 0.0
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (close does)
        own = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "LITHE_THREADS")}
        self.begun = perf_counter()
        self.process = subprocess.Popen(  # a session of its own: Ctrl-C is for the suite, which ends its workers
            [sys.executable, "-m", f"{__package__}._worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said,
            text=True, env=own, start_new_session=True)

    def open(self) -> dict[str, Any]:
        """Load the model. What the engine says of itself."""
        return self.ask("open", engine=self.engine, settings=self.settings)

    def turn(self, task: str, **words: Any) -> Any:
        """A task when all others are at rest."""
        sleep(PAUSE_S)
        return self.ask(task, **words)

    def ask(self, task: str, **words: Any) -> Any:
        """The answer to a task. Raises EngineError where there is none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        guard = Timer(LIMIT_S, self.process.kill)
        guard.start()
        begun = perf_counter()
        try:
            self.process.stdin.write(json.dumps({"do": task, **words}) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline() or "{}")
        except BrokenPipeError:
            answer = {}
        finally:
            guard.cancel()
        if not answer and perf_counter() - begun >= LIMIT_S:
            raise EngineError(f"it gave no answer to {task!r} for {LIMIT_S:.0f} s")
        if "ok" not in answer:
            raise EngineError(answer.get("error") or f"its process ended at {task!r}: {self._last_words()}")
        self.busy.append(answer["busy"])
        self.peak_mb = answer["peak_mb"]
        return answer["ok"]

    def _last_words(self) -> str:
        self.process.wait()
        self.said.seek(0)
        return self.said.read().decode("utf-8", "replace").strip()[-TAIL:] or f"exit code {self.process.returncode}"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.said.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def cost_of_import(module: str) -> tuple[float, float]:
    """Seconds from the start of a Python process until a module is imported, and its peak of memory in MB."""
    begun = perf_counter()
    script = f"import {module}; print(flush=True); from lithe.bench.memory import peak_mb; print(peak_mb())"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        took = perf_counter() - begun
        said = process.stdout.read()
    if process.returncode:
        raise EngineError(f"{module} cannot be imported")
    return took, float(said)
