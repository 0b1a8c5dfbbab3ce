"""Make the zoo from its data, all steps in order: tokenizer, tokens, training, export, evaluation, card.

python tools/zoo/make.py [MODEL ...]: a step whose result is there is left out, and an interrupted training resumes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from models import MODELS

from lithe.train import checkpoint

HERE = Path(__file__).resolve().parent
ZOO = Path(".lithe/zoo")


def trained(name: str) -> bool:
    path = checkpoint.latest(ZOO / name)
    if path is None:
        return False
    state = checkpoint.read_state(path)
    schedule = state["schedule"]
    return schedule["decay_from"] is not None and state["step"] >= schedule["decay_from"] + schedule["decay_steps"]


def evaluated(name: str) -> bool:
    path, newest = ZOO / name / "heldout.json", checkpoint.latest(ZOO / name)
    return path.exists() and json.loads(path.read_text())["step"] == checkpoint.read_state(newest)["step"]


def run(script: str, *arguments: str) -> None:
    """One step in a process of its own; its exit code becomes ours when it fails."""
    print(f"== {script} {' '.join(arguments)}", flush=True)
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    code = subprocess.run([sys.executable, str(HERE / script), *arguments], env={**os.environ, "PYTHONPATH": path}).returncode
    if code:
        sys.exit(code)


def main() -> None:
    if not (ZOO / "tokenizer" / "tokenizer.json").exists():
        run("tokenizer.py", str(ZOO / "tokenizer"))
    if not (ZOO / "tokens" / "tokens.json").exists():
        run("tokens.py", str(ZOO))
    for name in sys.argv[1:] or sorted(MODELS, reverse=True):
        if not trained(name):
            run("pretrain.py", name)
        run("export.py", name)
        if not evaluated(name):
            run("evaluate.py", name, "--rival")
        run("card.py", name)


if __name__ == "__main__":
    main()
