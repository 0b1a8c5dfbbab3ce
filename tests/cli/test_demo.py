"""`lithe demo`: every method of its recipe beside plain decoding, and a verdict that can be no."""

import re

import pytest

from lithe import recipe, registry
from lithe.cli import run
from lithe.cli.demo import KINDS
from tests.bench.methods import FOLLOWS, LOSSY, write

MODEL = ["demo", "--model", "zoo:tiny-draft"]


@pytest.fixture
def shown(capsys):
    def go(*words: str) -> tuple[int, str, str]:
        return run([*MODEL, *words]), *capsys.readouterr()

    return go


@pytest.fixture
def mine(tmp_path):
    """A recipe of these methods, by path."""
    paths = write(tmp_path, follows=FOLLOWS, lossy=LOSSY)

    def make(*names: str) -> str:
        (tmp_path / "mine.toml").write_text(f"methods = {[paths[name] for name in names]}\nmax_tokens = 8\n")
        return str(tmp_path / "mine.toml")

    return make


def table(out: str) -> dict[str, list[str]]:
    """The cells of each method of the closing table."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    return {cells[0]: cells[1:] for cells in rows}


def test_the_shipped_demo_shows_all_its_methods(shown):
    code, out, err = shown("--max-tokens", "6")
    assert (code, err) == (0, "")
    methods = ["plain", *(str(registry.parse(spec)) for spec in recipe.read("demo", *recipe.KEYS)["methods"])]
    assert list(table(out)) == methods and len(methods) == 4
    assert all(cells[-1] == "yes" for cells in table(out).values())
    assert "identical output: yes; up to " in out and "of the passes saved" in out
    for kind in KINDS:
        assert re.search(rf"^{kind} ─", out, re.MULTILINE)
    for name in methods:
        assert out.count(f"\n {name}  ") == len(KINDS)
    assert "…" not in out  # nothing is cut off in 80 columns


def test_passes_are_counted_and_the_next_commands_can_be_copied(shown, mine):
    _, out, _ = shown("--show", mine("follows"))
    assert table(out)["plain"][:2] == [f"████████ {8 * len(KINDS)}", "1.00"]
    assert int(table(out)["follows"][0].split()[-1]) <= 8 * len(KINDS)
    assert "lithe methods, lithe show NAME, lithe bench zoo:tiny --method NAME\n" in out


def test_a_method_that_changes_the_text_is_shown_to(shown, mine):
    code, out, _ = shown("--show", mine("follows", "lossy"))
    assert code == 1 and "identical output: no" in out
    assert (table(out)["follows"][-1], table(out)["lossy"][-1]) == ("yes", "NO")


def test_accepted_tokens_are_coloured_on_a_terminal(process, mine):
    words = [*MODEL, "--show", mine("follows"), "--max-tokens", "24"]
    child = process(*words, terminal=True, TERM="xterm-256color", COLUMNS="100")
    assert child.end() == 0
    text = child.out.decode()
    assert "\x1b[32m" in text and "identical output: yes" in text  # green: the first source that appears
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    for kind in KINDS:  # colours change nothing else: both say the same
        part = plain.partition(f"{kind} ─")[2].partition("─\r\n")[2]
        one, two = re.findall(r"\r\n (?:plain|follows)  (.*?)\r\n\d+ tokens in", part, re.DOTALL)[:2]
        assert one == two != ""


@pytest.mark.parametrize(("words", "said"), [
    (["--show", "pair"], "recipe 'pair' says draft, which has no meaning here"), (["--show", "nothing"], "no recipe 'nothing'"),
    (["--show", "{empty}"], "lists no methods to show"), (["--max-tokens", "0"], "--max-tokens"),
    (["--model", "zoo:tinny"], "did you mean tiny"), (["extra"], "unexpected extra argument")])  # fmt: skip
def test_what_cannot_be_shown_is_told(shown, tmp_path, words, said):
    (tmp_path / "empty.toml").write_text('summary = "nothing"\n')
    code, out, err = shown(*(word.format(empty=tmp_path / "empty.toml") for word in words))
    assert (code, out) == (2, "") and said in err


def test_names_are_no_markup(shown, tmp_path, mine):
    (tmp_path / "[bold]").mkdir()
    odd = write(tmp_path / "[bold]", odd=FOLLOWS)["odd"]
    (tmp_path / "[x].toml").write_text(f"methods = ['{odd}']\nmax_tokens = 1\n")
    assert shown("--show", str(tmp_path / "[x].toml"))[0] == 0
