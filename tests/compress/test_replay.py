"""A folder's receipt is enough to make it again, bit for bit."""

import json
import random

import pytest

from lithe.cli import run
from lithe.compress.api import compress
from lithe.compress.replay import replay
from lithe.errors import FormatError, UsageError
from tests.bench.folder import LETTERS, small_text_folder


@pytest.fixture
def made(tmp_path):
    (tmp_path / "text.txt").write_text("".join(random.Random(0).choices(LETTERS, k=600)))
    compress(str(small_text_folder()), ["wanda_sp:ratio=0.3,unit=channel", "gptq:bits=3"], calibration=tmp_path / "text.txt",
             out=tmp_path / "m", length=32, seed=3)
    return tmp_path


def test_it_is_made_again_bit_for_bit(made, capsys):
    assert run(["replay", str(made / "m"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] and found["was"] == found["now"] and found["worst"] == 0 and found["changed"] == {}


def test_another_folder_is_found_out(made, capsys):
    own = json.loads((made / "m" / "lithe.json").read_text())
    for receipt in own["receipts"]:
        receipt["knobs"]["exact"] = receipt["knobs"]["exact"].replace("bits=3.0", "bits=4.0")
    (made / "m" / "lithe.json").write_text(json.dumps(own))
    assert run(["replay", str(made / "m")]) == 1
    assert "not the same" in capsys.readouterr().out


def test_another_text_or_model_is_refused(made, tmp_path):
    (made / "other.txt").write_text("a" * 600)
    with pytest.raises(UsageError, match="not the calibration text"):
        replay(made / "m", calibration=str(made / "other.txt"))
    with pytest.raises(UsageError, match="not the model"):
        replay(made / "m", model=str(small_text_folder(bos=True, context=32)))
    with pytest.raises(FormatError, match="no compression"):
        replay(small_text_folder())
