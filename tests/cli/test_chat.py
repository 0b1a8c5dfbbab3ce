"""`lithe chat` from end to end, with what is typed in a script."""

import io
import json
import re
import sys

import pytest

from lithe.cli import run
from lithe.model import template
from tests.bench.methods import WARM, write
from tests.cli.folders import ROUND, drafts, spoken


@pytest.fixture
def chat(capsys, monkeypatch):
    """Run it with these lines typed; what was shown, its exit code, and the prompts that the template was given."""
    asked: list[list[dict]] = []
    render = template.ChatTemplate.render

    def listen(self, messages, **variables):
        asked.append(json.loads(json.dumps(messages)))
        return render(self, messages, **variables)

    monkeypatch.setattr(template.ChatTemplate, "render", listen)

    def go(*lines: str | bytes, words: tuple = (), model: object = None) -> tuple[int, str, str, list]:
        data = b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        code = run(["chat", str(model or spoken()), *map(str, words)])
        return code, *capsys.readouterr(), asked[1:]  # the first asks whether there is a template at all

    return go


def answers(out: str) -> list[str]:
    return re.findall(r"^(?:> )+([^>\n]+)\n\d+ tokens? in", out, re.MULTILINE)


def test_a_conversation_is_remembered_until_new(chat):
    code, out, err, asked = chat("hi", "", "and?", "/new", "  again ", "/bye", "never read", words=("--max-tokens", 5))
    assert (code, err) == (0, "")
    assert answers(out) == ["é€", "é€", "é€"]
    first = [{"role": "user", "content": "hi"}]
    assert asked == [first, [*first, {"role": "assistant", "content": "é€"}, {"role": "user", "content": "and?"}],
                     [{"role": "user", "content": "again"}]]


def test_the_end_of_input_ends_it(chat):
    assert chat(words=("--max-tokens", 2))[0] == 0
    code, out, _, _ = chat("hi", words=("--max-tokens", 5))
    assert code == 0 and out.startswith("Ask something. /new forgets what was said, /bye or Ctrl-D ends.\n")
    assert chat(b"without a line's end", words=("--max-tokens", 5))[3][-1][-1]["content"] == "without a line's end"


def test_a_system_message_opens_every_conversation(chat):
    _, _, _, asked = chat("hi", "/new", "ho", words=("--max-tokens", 1, "--system", "Be kind."))
    assert [messages[0] for messages in asked] == [{"role": "system", "content": "Be kind."}] * 2
    assert [messages[-1]["content"] for messages in asked] == ["hi", "ho"]


def test_an_unknown_command_is_no_message(chat):
    _, out, _, asked = chat("/quit", "/new", "/usr/bin is a folder", words=("--max-tokens", 1))
    assert "There is no /quit. Ask something." in out
    assert [messages[-1]["content"] for messages in asked] == ["/usr/bin is a folder"]


def test_markup_in_what_is_said_is_only_text(chat):
    code, out, _, asked = chat("[bold]x[/] [/nonsense]", words=("--max-tokens", 5))
    assert code == 0 and answers(out) == ["é€"] and asked[0][0]["content"] == "[bold]x[/] [/nonsense]"


def test_an_answer_ends_at_the_end_of_text(chat):
    _, out, _, asked = chat("hi", "ho", model=spoken(ends=True))
    assert answers(out) == ["é€😀 "] * 2
    assert asked[1][1] == {"role": "assistant", "content": "é€😀 "}


def test_what_does_not_fit_is_told_and_forgotten(chat):
    code, out, _, asked = chat("hi", "much " * 40, "ho", "/new", "ha", words=("--max-tokens", 5))
    assert code == 0 and len(answers(out)) == 3
    told = " ".join(out.split())
    assert re.search(r"the prompt has 2\d\d tokens, but the model's context is 96, .*/new starts afresh", told)
    assert [message["content"] for message in asked[2]] == ["hi", "é€", "ho"]  # the long one is not part of the conversation


def test_a_conversation_that_has_grown_too_long_is_told(chat):
    code, out, _, _ = chat(*["hello there"] * 6, "/new", "hi", words=("--max-tokens", 5))
    assert code == 0 and out.count("/new starts afresh") > 1 and answers(out.rpartition("afresh")[2]) == ["é€"]


@pytest.mark.parametrize("draft", drafts(), ids=lambda spec: spec.partition(":")[0])
def test_every_draft_answers_the_same(chat, draft):
    plain, fast = (answers(chat("hi", "ho", words=("--max-tokens", 12, *more))[1]) for more in ((), ("--method", draft)))
    assert plain == fast and len(plain) == 2


def test_sampling_with_a_seed_repeats(chat, tmp_path):
    words = ("--max-tokens", 8, "--method", write(tmp_path, warm=WARM)["warm"], "--seed")
    said = [chat("hi", words=(*words, seed), model="zoo:tiny-draft")[1].rpartition(", ")[0] for seed in (3, 3, 4)]
    assert said[0] == said[1] != said[2]


def test_a_model_that_cannot_chat_says_so_before_it_asks(chat):
    code, out, err, _ = chat("hi", model=spoken(template=None))
    assert (code, out) == (3, "") and err == ("lithe: this model has no chat template; give it plain text, or one trained on "
                                              "conversations\n")


def test_what_is_typed_must_be_utf8(chat):
    code, _, err, _ = chat(b"\xff\xfe\n")
    assert code == 4 and err == "lithe: what was typed is not UTF-8; set the terminal, or convert the file, to it\n"


def test_on_a_terminal(process):
    child = process("chat", str(spoken()), "--max-tokens", "5", terminal=True, TERM="xterm-256color")
    child.read(until=b"> ")
    child.type("hi\n")
    assert "é€".encode() in child.read(until=b"tokens/s")
    child.read(until=b"> ")
    child.type("\x04")  # Ctrl-D
    assert child.end() == 0 and ROUND[1].encode() in child.out
