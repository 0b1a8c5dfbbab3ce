"""The ledger keeps every line, whoever writes at once and however the last write ended."""

import json
import subprocess
import sys
import warnings

import pytest

from lithe.bench.ledger import SCHEMA, Ledger, Record
from lithe.bench.provenance import code_hash, digest, machine
from lithe.errors import FormatError, UsageError

KNOWN = dict(suite="bench", model="m", model_hash=None, method="plain", prompts_hash="p", code_hash="c", machine={"cores": 2},
             device="cpu", precision="float32", threads=1, torch="2", lithe="0", commit=None, measured={"tokens": 3})


def a_record(**fields):
    return Record(**KNOWN | fields)


def test_what_is_appended_is_read_back(tmp_path):
    ledger = Ledger(tmp_path / "deep" / "ledger.jsonl")
    records = [a_record(method="ä", knobs={"k": 3}), a_record(settings={"law": "Law()"})]
    for record in records:
        ledger.append(record)
    assert ledger.read() == records


def test_the_place_follows_the_environment_and_must_be_writable(tmp_path, monkeypatch):
    monkeypatch.setenv("LITHE_LEDGER", str(tmp_path / "here.jsonl"))
    assert Ledger().path == tmp_path / "here.jsonl"
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "ledger.jsonl"):
        with pytest.raises(UsageError, match="--no-ledger"):
            Ledger(place)


def test_a_torn_line_is_told_and_left_out_and_swallows_nothing(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(a_record(method="first"))
    with ledger.path.open("a") as file:
        file.write(json.dumps({"schema": 1, "suite": "bench"})[:-5])
    with pytest.warns(UserWarning, match="line 2 is torn"):
        assert [r.method for r in ledger.read()] == ["first"]
    ledger.append(a_record(method="second"))
    with pytest.warns(UserWarning, match="line 2 is torn"):
        assert [r.method for r in ledger.read()] == ["first", "second"]


def test_records_of_a_newer_lithe_or_of_nobody_are_refused(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for line, reason in (({"schema": SCHEMA + 1}, "newer lithe"), ({"schema": 1, "extra": 2}, "not a record"),
                         ([1], "not a ledger"), ({"suite": "x"}, "not a ledger")):
        ledger.path.write_text(json.dumps(line) + "\n")
        with pytest.raises(FormatError, match=reason):
            ledger.read()


def test_processes_that_append_at_once_never_mix_their_lines(tmp_path):
    path = tmp_path / "ledger.jsonl"
    script = ("import json, sys; from lithe.bench.ledger import Ledger, Record\n"
              "ledger, known = Ledger(sys.argv[1]), json.loads(sys.argv[3]) | {'measured': {'padding': 'x' * 20000}}\n"
              "for i in range(40): ledger.append(Record(**known | {'method': f'{sys.argv[2]}-{i}'}))")
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), str(n), json.dumps(KNOWN)]) for n in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [record.method for record in Ledger(path).read()]
    assert sorted(found) == sorted(f"{n}-{i}" for n in range(3) for i in range(40))
    for n in range(3):
        assert [m for m in found if m.startswith(f"{n}-")] == [f"{n}-{i}" for i in range(40)]


def test_the_code_hash_follows_the_methods_file(tmp_path):
    from lithe import registry
    from tests.bench.methods import LOSSY, write

    path = write(tmp_path, mine=LOSSY)["mine"]
    made = registry.parse(path).entry.module.Method(None, None)
    before = code_hash(made)
    assert before != code_hash() and before == code_hash(made, None)
    with open(path, "a") as file:
        file.write("# changed\n")
    assert code_hash(made) != before


def test_hashes_tell_inputs_apart_and_the_machine_has_no_name():
    assert digest(["a", "b"]) != digest(["ab"]) and digest([[1, 2]]) == digest([(1, 2)])
    assert set(machine()) == {"cpu", "cores", "features"}
