"""Multiple choice: what is right is what the model finds likeliest, token by token."""

import json

import pytest
import torch

from lithe.bench import choices
from lithe.bench.choices import Question
from lithe.cli import run
from lithe.errors import FormatError, UsageError
from lithe.model.decoder import ALL
from tests.bench.folder import small_text_folder, small_text_model


def nats(model, text, choice):
    ids, behind = (model.tokenizer.encode(one) for one in (text, text + choice))
    with torch.inference_mode():
        law = model(torch.tensor([behind]), logits=ALL).logits[0].log_softmax(-1)
    return -sum(float(law[i - 1, behind[i]]) for i in range(len(ids), len(behind)))


@pytest.mark.parametrize("bos", [False, True])
def test_the_likeliest_choice_counts_as_a_whole_and_by_byte(bos):
    model = small_text_model(bos=bos)
    asked = [Question(text=text, choices=("cat", "dog sat on", "the"), answer=n % 3)
             for n, text in enumerate(("a quick", "over the ", "lazy", "fox jumps", "brown"))]
    wanted = []
    for question in asked:
        behind = [choice if question.text.endswith(" ") else f" {choice}" for choice in question.choices]
        whole = [nats(model, question.text, choice) for choice in behind]
        each = [n / len(choice) for n, choice in zip(whole, question.choices, strict=True)]
        wanted.append([min(range(3), key=scores.__getitem__) == question.answer for scores in (whole, each)])
    found = choices.accuracy(model, asked)
    assert found.accuracy == sum(a for a, _ in wanted) / 5 and found.accuracy_by_byte == sum(b for _, b in wanted) / 5
    assert found.chance == pytest.approx(1 / 3) and found.accuracy_interval[0] <= found.accuracy <= found.accuracy_interval[1]


def test_questions_that_cannot_be_are_told(tmp_path):
    good = {"text": "the", "choices": ["cat", "dog"], "answer": 1}
    for bad, told in (({"answer": 2}, "0 to 1"), ({"answer": True}, "0 to 1"), ({"choices": ["cat"]}, "two"),
                      ({"choices": ["cat", ""]}, "texts"), ({"text": 3}, "texts")):
        (tmp_path / "q.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | bad) + "\n")
        with pytest.raises(FormatError, match=told):
            choices.questions(tmp_path / "q.jsonl")
    long = Question(text="the " * 2000, choices=("cat", "dog"), answer=0)
    with pytest.raises(UsageError, match="question 1 takes"):
        choices.accuracy(small_text_model(), [long])


def test_the_command_tells_accuracy(tmp_path, capsys):
    (tmp_path / "q.jsonl").write_text(json.dumps({"text": "the", "choices": ["cat", "dog"], "answer": 1}) + "\n")
    asked = ["eval", str(small_text_folder()), str(tmp_path / "q.jsonl"), "--no-ledger"]
    assert run([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 1
    assert run(asked) == 0 and "blind guesses 50.0%" in capsys.readouterr().out
    assert run([*asked, "--dense", "zoo:tiny"]) == 2 and "questions" in capsys.readouterr().err
