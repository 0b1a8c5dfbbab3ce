"""The hash of what a run executes follows every file that it does execute, and no other."""

import ast
import json
import os
import shutil
import subprocess
import sys

from lithe import registry
from lithe.bench import sources
from lithe.decode import loop, plan
from lithe.model.load import load
from tests.bench.folder import small_text_folder

HASHES = """
import json, sys
from pathlib import Path
from lithe import registry
from lithe.bench.provenance import code_hash
from lithe.decode.loop import run
from lithe.decode.plan import plan
made = registry.parse("prompt_lookup", "draft")
made = made.entry.module.Method(made.knobs, None)
told = {"": code_hash(made, run=(run, plan))}
for name in sys.argv[1:]:
    file = Path(registry.ROOT, name)
    with open(file, "a") as opened:
        opened.write("\\n")
    told[name] = code_hash(made, run=(run, plan))
print(json.dumps([str(registry.ROOT), told]))
"""
IDLE = ["cli/show.py", "compress/api.py", "decode/draft/medusa.py", "decode/tree/sequoia.py", "papers.toml"]
USED = ["decode/loop.py", "decode/draft/prompt_lookup.py", "decode/grams.py", "decode/plan.py", "kernels/c/layer.c",
        "kernels/c/simd.h", "model/decoder.py", "ops/tree.py", "sampling/sequence.py", "registry.py"]  # fmt: skip


def test_only_what_is_executed_counts(tmp_path):
    """In a copy of the sources each file is changed in turn."""
    shutil.copytree(registry.ROOT, tmp_path / "lithe", ignore=shutil.ignore_patterns("__pycache__", "zoo"))
    told = subprocess.run([sys.executable, "-c", HASHES, *IDLE, *USED], capture_output=True, text=True, check=True,
                          cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    where, hashes = json.loads(told.stdout)
    assert where == str(tmp_path / "lithe")
    before = ""
    for name in IDLE + USED:
        assert (hashes[name] == hashes[before]) == (name in IDLE), name
        before = name


def test_a_method_brings_the_files_of_those_that_it_holds_and_no_others():
    model = load(small_text_folder())
    run = lambda spec: {path.stem for path in sources.run_by([loop.run], plan.plan(model, draft=spec).parts)
                        if path.parent.name == "draft" and path.suffix == ".py"}
    assert run("suffix") == {"suffix"}
    assert run("blend:drafts=suffix+prompt_lookup") == {"blend", "suffix", "prompt_lookup"}


def test_imports_are_found_wherever_they_stand_and_not_those_for_type_checkers():
    source = ("import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from c import d\nelse:\n    import e\n"
              "def late():\n    from f.g import h as i, j\n")
    assert sources.imports(source.encode()) == {"a.b", "typing.TYPE_CHECKING", "e", "f.g.h", "f.g.j"}


def test_what_a_process_has_imported_is_covered():
    """All that importing the loop brings into a fresh process."""
    script = ("import sys, lithe.decode.loop\n"
              "print('\\n'.join(m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] == 'lithe'))")
    brought = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split("\n")
    covered = {str(path) for path in sources.run_by([loop.run], [])}
    assert set(filter(None, brought)) <= covered and len(brought) > 20


def test_no_import_of_lithe_is_relative_or_made_of_text_where_decoding_runs():
    """What such imports bring in cannot be read from the source."""
    for path in sources.run_by([loop.run, plan.plan], []):
        if path.suffix == ".py" and path != registry.ROOT / "registry.py" and path != registry.ROOT / "__init__.py":
            calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
            assert not {"import_module", "importlib.import_module", "__import__"} & calls, path
