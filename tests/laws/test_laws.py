"""The laws hold for this house, and each of them can fail."""

from pathlib import Path

import pytest

from tests.laws import laws

ROOT = Path(__file__).parents[2]
LAWS = [laws.imports_point_down, laws.methods_are_leaves, laws.methods_are_not_spelled, laws.cards_are_literals,
        laws.files_and_functions_are_short, laws.papers_are_whole, laws.methods_have_their_rows, laws.nothing_names_a_machine]
OURS = "lithe/decode/draft/alpha.py"
DONE = f'status = "mechanism"\nwhere = ["{OURS}"]\ndeviations = "none"\nour_figure = "1"\n'


def paper(row: int) -> str:
    said = DONE if row == 0 else 'status = "planned"\n'
    return (f'[[paper]]\nrow = {row}\nid = "paper-{row}"\ntitle = "Paper {row}"\nfamily = "prune"\nroom = "compress"\n'
            f'kind = "method"\n{said}confidence = "code"\npaper_figure = "twice as fast"\n')


METHOD = '"""Says alpha."""\n\nCARD = Card(paper="Alpha", row=0)\n\n\nclass Method:\n    name = "alpha"\n'
# A small house in which all is well: one method, which is row 0, and a loop that knows no method.
HOUSE = {
    "lithe/__init__.py": "from lithe.decode import loop\n",
    "lithe/card.py": '"""The word alpha may stand in a docstring."""\n',
    "lithe/ops/tree.py": "from lithe.card import knob\n",
    "lithe/decode/loop.py": "import lithe.ops.tree\nfrom lithe import __version__, card\nfrom .plan import plan\n",
    "lithe/decode/plan.py": "from importlib import import_module\n\nname = 'alphabet'\n",
    OURS: METHOD,
    "lithe/cli/run.py": "import lithe\nfrom lithe import generate\nfrom lithe.decode.loop import step\n",
    "lithe/bench/runner.py": "from lithe.decode import loop\n",
    "lithe/papers.toml": "".join(map(paper, range(laws.ROWS))),
}


def toml(old: str, new: str) -> dict[str, str]:
    """The house's papers with one thing changed."""
    assert old in HOUSE["lithe/papers.toml"]
    return {"lithe/papers.toml": HOUSE["lithe/papers.toml"].replace(old, new, 1)}


BROKEN = [
    (laws.imports_point_down, {"lithe/ops/tree.py": "from lithe.decode import loop\n"}),
    (laws.imports_point_down, {"lithe/ops/tree.py": "def late():\n    import lithe.decode.loop\n"}),
    (laws.imports_point_down, {"lithe/ops/tree.py": "if TYPE_CHECKING:\n    from lithe.decode.loop import Step\n"}),
    (laws.imports_point_down, {"lithe/ops/tree.py": "from ..decode import loop\n"}),
    (laws.imports_point_down, {"lithe/ops/tree.py": "importlib.import_module('lithe.decode.loop')\n"}),
    (laws.imports_point_down, {"lithe/tune/rack.py": "from lithe.decode.loop import step\n"}),
    (laws.imports_point_down, {"lithe/serve/engine.py": "import lithe.bench.runner\n"}),
    (laws.imports_point_down, {"lithe/card.py": "from lithe.ops.tree import Tree\n"}),
    (laws.imports_point_down, {"lithe/decode/loop.py": "from lithe import generate\n"}),
    (laws.imports_point_down, {"lithe/decode/loop.py": "import lithe\n"}),
    (laws.imports_point_down, {"lithe/attic/box.py": "\n"}),
    (laws.methods_are_leaves, {"lithe/bench/runner.py": "from lithe.decode.draft.alpha import Method\n"}),
    (laws.methods_are_leaves, {"lithe/decode/loop.py": "from lithe.decode.draft import alpha\n"}),
    (laws.methods_are_leaves, {"lithe/decode/loop.py": "from .draft import alpha\n"}),
    (laws.methods_are_leaves, {"lithe/decode/draft/beta.py": "import lithe.decode.draft.alpha\n"}),
    *((laws.methods_are_not_spelled, {"lithe/cli/run.py": f"def f(x):\n    return {text}\n"}) for text in (
        "'alpha'", "f'alpha:k={x}'", "'draft=alpha'", "'draft/alpha'", "'decode/draft/alpha:k=1'", "'lithe.decode.draft.alpha'",
        "{'alpha': x}")),
    (laws.methods_are_not_spelled, {"lithe/decode/draft/beta.py": METHOD.replace("Alpha", "Beta")}),
    (laws.cards_are_literals, {OURS: METHOD.replace("row=0", "row=ROW")}),
    (laws.cards_are_literals, {OURS: METHOD.replace("row=0", "promises=('speed',)")}),
    (laws.cards_are_literals, {OURS: METHOD.removeprefix('"""Says alpha."""')}),
    (laws.cards_are_literals, {"lithe/decode/draft/helper.py": "def help():\n    pass\n"}),
    (laws.files_and_functions_are_short, {"lithe/ops/tree.py": "x = 1\n" * 300}),
    (laws.files_and_functions_are_short, {"lithe/ops/tree.py": "def f():\n" + "    x = 1\n" * 49}),
    (laws.papers_are_whole, toml(paper(1), "")),
    (laws.papers_are_whole, toml("row = 180\n", "row = 181\n")),
    (laws.papers_are_whole, toml("row = 180\n", "row = 179\n")),
    (laws.papers_are_whole, toml(paper(1) + paper(2), paper(2) + paper(1))),
    (laws.papers_are_whole, toml("paper-1\"", "paper-2\"")),
    (laws.papers_are_whole, toml('kind = "method"', 'kind = "essay"')),
    (laws.papers_are_whole, toml('status = "planned"', 'status = "done"')),
    (laws.papers_are_whole, toml('status = "planned"', 'status = "measured"')),
    (laws.papers_are_whole, toml('confidence = "code"', 'confidence = "rumour"')),
    (laws.papers_are_whole, toml('deviations = "none"\n', "")),
    (laws.papers_are_whole, toml('title = "Paper 7"\n', "")),
    (laws.papers_are_whole, toml('family = "prune"', 'famly = "prune"')),
    (laws.papers_are_whole, toml('family = "prune"', f'family = "{"prune" * 40}"')),
    (laws.methods_have_their_rows, {OURS: METHOD.replace("row=0", "row=5")}),
    (laws.methods_have_their_rows, {OURS: METHOD.replace("row=0", "row=None")}),
    (laws.methods_have_their_rows, {OURS: METHOD.replace("row=0", "row=999")}),
    (laws.methods_have_their_rows, {"lithe/decode/draft/beta.py": METHOD}),
    (laws.methods_have_their_rows, toml(OURS, "lithe/decode/draft/gone.py")),
    (laws.nothing_names_a_machine, {"docs/log/x.md": "see /" + "work/shared/y\n"}),
    (laws.nothing_names_a_machine, {"Makefile": "pip install --index" + "-url x\n"}),
]  # fmt: skip


def build(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_house_keeps(law):
    assert law(ROOT) == []


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_small_house_keeps(law, tmp_path):
    assert law(build(tmp_path, HOUSE)) == []


@pytest.mark.parametrize(("law", "change"), BROKEN, ids=[f"{law.__name__}-{i}" for i, (law, _) in enumerate(BROKEN)])
def test_breaking_it_shows(law, change, tmp_path):
    assert law(build(tmp_path, HOUSE | change))


def test_every_law_is_broken_once():
    assert {law for law, _ in BROKEN} == set(LAWS)
