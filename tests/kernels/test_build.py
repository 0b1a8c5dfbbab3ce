"""Building: sanitizers find nothing, two processes at once are safe, and without a compiler the user is told once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lithe.kernels import build
from tests.kernels.variants import VARIANTS, compiled

ROOT = Path(__file__).parents[2]
LINEAR = "from lithe.kernels.linear import linear; from lithe.kernels.pack import pack; import torch"


def python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **env})


@compiled
@pytest.mark.parametrize("name", [*VARIANTS[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS[1:])])
def test_sanitizers_find_nothing(name, tmp_path):
    sanitized(build.VARIANTS[name][1], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in VARIANTS, reason="its loops want AVX2")
def test_the_avx512_code_holds_where_no_processor_runs_it(tmp_path):
    sanitized((*build.VARIANTS["avx2"][1], "-Wno-psabi", "-include", str(Path(__file__).with_name("emulated.h"))), tmp_path)


def sanitized(extra: tuple[str, ...], tmp_path: Path, test: str = "selftest.c") -> None:
    """Build the self-test under sanitizers and run it."""
    program, sources = tmp_path / "selftest", [p for p in build.SOURCES.glob("*.c") if p.name != "cpu.c"]
    flags = [flag for flag in build.COMMON if flag not in ("-shared", "-O3")]
    made = subprocess.run([build.compiler(), *flags, "-O1", *extra, "-fsanitize=address,undefined",
                           "-fno-sanitize-recover=all", *map(str, sources), str(Path(__file__).with_name(test)),
                           "-o", str(program), "-lpthread", "-lm"], capture_output=True, text=True)
    if "cannot find" in made.stderr or "unsupported option" in made.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert made.returncode == 0, made.stderr
    # The pool's threads and scratch live as long as the process: what is left at its end is no leak.
    done = subprocess.run([str(program)], capture_output=True, text=True, env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    assert done.returncode == 0, done.stdout + done.stderr


ROUNDS = """
import lithe
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
model = lithe.load("zoo:tiny-draft", dtype="int8")
for draft in ("suffix:alpha=8", "blend", "draft_model:tokens=4"):
    made = plan(model, draft=draft)
    assert max(done.nodes for _ in range(2) for done in run(made, [request(model, "one two one two one", max_tokens=30)])) > 1
"""


@pytest.mark.slow
@compiled
def test_drafted_rounds_hold_under_sanitizers(tmp_path):
    """Passes, drafts and rounds as decoding runs them, in a library whose every access is checked."""
    cc, library = tmp_path / "cc", [build.compiler(), "-print-file-name=libasan.so"]
    cc.write_text(f'#!/bin/sh\nexec {build.compiler()} -fsanitize=address,undefined -fno-sanitize-recover=all "$@"\n')
    cc.chmod(0o755)
    found = subprocess.run(library, capture_output=True, text=True).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip("this compiler has no sanitizer to load before Python")
    done = python(ROUNDS, CC=str(cc), XDG_CACHE_HOME=str(tmp_path), LD_PRELOAD=found, ASAN_OPTIONS="detect_leaks=0")
    assert done.returncode == 0, done.stdout + done.stderr


@compiled
def test_two_processes_build_once(tmp_path):
    code = "from lithe.kernels import library; print(library.load().name)"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), "LITHE_KERNELS": VARIANTS[-2:][0]}
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    assert {process.communicate()[0].strip() for process in both} == {env["LITHE_KERNELS"]}
    assert len(list(tmp_path.rglob(f"{env['LITHE_KERNELS']}-*.so"))) == 1


def test_without_a_compiler_it_says_so_once_and_works(tmp_path):
    code = f"{LINEAR}\nfor _ in range(3): print(linear(pack(torch.ones(4, 8), 'fp32'), torch.ones(2, 8)).sum().item())"
    done = python(code, PATH=str(tmp_path), CC="", XDG_CACHE_HOME=str(tmp_path), LITHE_KERNELS="")
    assert done.returncode == 0 and done.stdout.split() == ["64.0"] * 3, done.stderr
    assert done.stderr.count("compiled kernels are off") == 1 and "no C compiler" in done.stderr


def test_unknown_variants_are_refused():
    done = python("from lithe.kernels import library; library.load()", LITHE_KERNELS="sse9")
    assert done.returncode and "choose" in done.stderr


@compiled
def test_a_forked_child_has_working_threads():
    code = f"""{LINEAR}
import os
packed, x = pack(torch.ones(64, 64), "fp32"), torch.ones(4, 64)
first = linear(packed, x, threads=3)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(linear(packed, x, threads=3), first) else 1)
assert os.waitpid(child, 0)[1] == 0 and torch.equal(linear(packed, x, threads=3), first)
"""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    done = python(code)
    assert done.returncode == 0, done.stderr


@compiled
def test_calls_from_several_threads_do_not_mix():
    code = f"""{LINEAR}
from concurrent.futures import ThreadPoolExecutor
packed, x = pack(torch.randn(96, 128), "int8"), torch.randn(16, 128)
alone = linear(packed, x, threads=1)
with ThreadPoolExecutor(4) as pool:
    assert all(pool.map(lambda n: torch.equal(linear(packed, x[:n], threads=2), alone[:n]), [1, 3, 16, 7] * 50))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@compiled
def test_threads_without_cores_give_way_to_one():
    """Four threads on one core wait for each other at every step; the same bits come out, soon from the caller alone."""
    code = f"""{LINEAR}
import os, time
from lithe.kernels import library
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
packed, x = pack(torch.randn(64, 64), "fp32"), torch.randn(4, 64)
first, end = linear(packed, x, threads=1), time.perf_counter() + 20
while not library.alone() and time.perf_counter() < end:
    assert torch.equal(linear(packed, x, threads=4), first)
assert library.alone()
"""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not pin processes to cores")
    done = python(code)
    assert done.returncode == 0, done.stderr
