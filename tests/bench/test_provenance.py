"""What a record says it rests on: sources in C as much as those in Python, and the precision that ran."""

import shutil

from lithe import registry
from lithe.bench import provenance
from lithe.model.load import load
from lithe.model.machine import machine
from tests.bench.folder import small_text_folder


def test_the_hash_of_the_code_covers_c_and_headers(tmp_path, monkeypatch):
    """Any change of a file that is compiled is another code."""
    shutil.copytree(registry.ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    seen = set()
    files = sorted((tmp_path / "kernels" / "c").iterdir())
    assert {".c", ".h"} <= {path.suffix for path in files}
    for path in [None, *files]:
        if path is not None:
            path.write_text(path.read_text() + "\n")
        provenance._house.cache_clear()
        seen.add(provenance.code_hash())
    provenance._house.cache_clear()
    assert len(seen) == 1 + len(files)


def test_a_record_tells_the_precision_that_ran():
    asked = {"auto": "float32", "bf16": "bfloat16", "int8": "int8:32", "int4:128": "int4:128"}
    for dtype, said in asked.items():
        model = load(small_text_folder(), dtype=dtype)
        assert provenance.record("x", model, measured={}, inputs=[], settings={}).precision == said


def test_the_machine_is_described_and_not_named():
    assert set(machine()) == {"cpu", "cores", "features"} and machine()["cores"] >= 1
