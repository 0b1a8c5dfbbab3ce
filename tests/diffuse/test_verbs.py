"""The verbs on a diffusion model of whole words: generate, trace, fit and bench, from a folder with random weights."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lithe.bench.ledger import Ledger
from lithe.bench.parallel._rows import against, good, rows, same_texts
from lithe.bench.parallel._suite import Cell, Course, problems, words
from lithe.bench.parallel._tasks import END, OPEN, TASKS, VOCABULARY, room
from lithe.cli import run
from lithe.errors import FormatError, UsageError
from lithe.model.checkpoint import save
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.model.load import load

PROMPT = "reverse : ant bear cat deer _ _ ="


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model that reads words, attends fully and knows nothing."""
    place = tmp_path_factory.mktemp("words")
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=OPEN))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([END, OPEN])
    made.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text(json.dumps(
        {"eos_token": END, "mask_token": OPEN, "chat_template": "{{ messages[-1]['content'] }}"}))
    for file in ("config.json", "generation_config.json"):
        (place / file).write_text(json.dumps({"eos_token_id": 0, "pad_token_id": 0}))
    config = Config(vocab=len(VOCABULARY), width=32, layers=1, heads=2, kv_heads=2, ffn=32, context=64, tied=True,
                    attends="full", mask_token=VOCABULARY.index(OPEN))
    return save(Decoder(config).init(0), place / "model", tokenizer_from=place)


def told(capsys, *arguments):
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_generate_tells_words_and_passes(folder, capsys):
    said = told(capsys, "generate", str(folder), PROMPT, "--max-tokens", "6", "--method", "steady:tokens=3")
    assert 1 <= said["passes"] <= 2 and set(said["text"].split()) <= set(VOCABULARY)
    assert run(["generate", str(folder), PROMPT, "--method", "prompt_lookup"]) == 3
    assert run(["generate", str(folder), PROMPT, "--constrain", "regex a"]) != 0
    assert "left to right" in capsys.readouterr().err


def test_a_trace_is_a_page(folder, capsys, tmp_path):
    found = told(capsys, "trace", str(folder), PROMPT, "--max-tokens", "6", "--method", "steady:tokens=2", "--html",
                 str(tmp_path / "t.html"))
    assert 1 <= len(found["passes"]) <= 3 and found["prompt"] == 9 and found["words"][0] == "reverse"
    assert "steady:tokens=2" in (tmp_path / "t.html").read_text()
    assert run(["trace", "zoo:tiny", "Once"]) == 3
    assert run(["trace", str(folder), PROMPT, "--max-tokens", "4"]) == 0
    assert "passes for 4 places" in capsys.readouterr().out


def test_the_suite_goes_on_where_its_ledger_ends(folder, capsys, tmp_path):
    words = ["bench", str(folder), "--suite", "parallel", "--ledger", str(tmp_path / "l.jsonl"), "--problems", "3",
             "--method", "steady:tokens=2", "--method", "des"]
    assert run([*words, "--task", "copy"]) == 0
    assert "steady:tokens=2" in capsys.readouterr().err
    before = (tmp_path / "l.jsonl").read_text()
    assert len(before.splitlines()) == 3 and "needs experts" in before  # a method that cannot run is a record, too
    assert run([*words, "--task", "copy", "--task", "square"]) == 0
    after = (tmp_path / "l.jsonl").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 6
    record = Ledger(tmp_path / "l.jsonl").read()[1]
    assert len(record.measured["right"]) == 3 and max(record.measured["passes"]) <= room("copy") // 2
    assert record.measured["places"] <= 2 * sum(record.measured["passes"])
    assert run([*words, "--task", "nothing"]) == 2


def test_rows_compare_with_one_token_a_step_problem_by_problem(folder):
    course = Course(load(folder))
    asked = [Cell(task=task, method=method, problems=4) for task in ("copy", "addr") for method in ("", "steady:tokens=2")]
    found = course.run(asked)
    for record in found:
        record.measured["passes"] = [4] * 4 if record.method == "plain" else [2] * 4
    for record, right in zip(found, ("1111", "1101", "1110", "0000"), strict=True):
        record.measured["right"] = right
    assert good(found) == ["copy"]
    plain, fast = rows(found, ["copy"])
    assert plain.lost == 0 and plain.fewer == 1 and fast.lost == 25 and fast.fewer == 2
    assert fast.lost_interval[0] <= 25 <= fast.lost_interval[1]
    assert rows(found, ["copy"], "steady:tokens=2")[1].headroom == 1
    beside = against([found[1]], [found[0]])
    assert beside.lost == 25 and beside.fewer == 2
    with pytest.raises(UsageError, match="same problems"):
        against([found[1]], [found[2]])


def test_records_tell_texts_bits_and_doubt(folder):
    course = Course(load(folder))
    plain, fast, again = course.run([Cell(task="copy", method=m, problems=5) for m in ("", "steady:tokens=8", "freedave")])
    assert same_texts(plain, again) == (5, 5) and same_texts(plain, fast)[0] < 5
    assert 0 < plain.measured["doubt"] == fast.measured["doubt"] < 6 and plain.measured["bits"] > 0  # nats of 48 words
    assert course.run([Cell(task="copy", method="", problems=5)]) == [plain]


def test_answers_are_read_as_they_were_written(folder):
    model = load(folder)
    for task in TASKS:
        for problem in problems(Cell(task=task, method="", problems=3)):
            assert len(problem.answer) < room(task)
            ids = model.tokenizer.encode(" ".join(problem.answer), bos=False)

            class Said:
                tokens, eos = [*ids, 0], frozenset({0})

            assert words(model, Said) == problem.answer and problem.right(words(model, Said))


@pytest.mark.parametrize("method", ["learn2pd:size=8", "dscd", "cj_grpo:group=2,prompts=1"])
def test_fit_leaves_weights_or_a_model(folder, capsys, tmp_path, method):
    words = ["fit", str(folder), "--method", method, "--data", "tasks:copy,addr", "--examples", "4", "--steps", "2", "--rows",
             "2", "-o", str(tmp_path / "out")]
    made = told(capsys, *words)
    if made["model"]:
        receipt = load(tmp_path / "out").receipts[-1]
        assert receipt["method"] == method.split(":")[0] and receipt["verb"] == "fit"
        assert told(capsys, "generate", str(tmp_path / "out"), PROMPT, "--max-tokens", "2")["passes"] <= 2
    else:
        used = f"{method.split(':')[0]}:heads={tmp_path / 'out'}"
        assert told(capsys, "generate", str(folder), PROMPT, "--max-tokens", "8", "--method", used)["passes"] <= 8
    assert run([*words, "--length", "16"]) == 2  # an option that would say nothing


def test_data_of_a_fit_is_read_defensively(folder, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    for text in ('{"prompt": "copy"}', "[1]", "nonsense", '{"prompt": "", "answer": "ant"}'):
        bad.write_text(text + "\n")
        code = run(["fit", str(folder), "--method", "dscd", "--data", str(bad), "-o", str(tmp_path / "x")])
        assert code == FormatError.exit_code and "line 1" in capsys.readouterr().err
    assert run(["fit", str(folder), "--method", "eagle", "--data", "tasks:copy", "-o", str(tmp_path / "x")]) == 3
    assert run(["fit", "zoo:tiny", "--method", "dscd", "--data", "tasks:copy", "-o", str(tmp_path / "x")]) != 0
