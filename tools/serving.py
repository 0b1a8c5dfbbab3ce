"""Write the parameters into docs/serving.md from the one declaration that the server checks them by.

    python tools/serving.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from lithe.serve.http import _bodies, _params, _shared

PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
BEGIN, END = "<!-- parameters -->", "<!-- end of parameters -->"
FACTS = _params.Facts(models=(), vocab=0, context=0)
WORDS = {"from 0 to -1": "token ids", "at most 0": "the context", "from -1 to 0": "from -1 to the vocabulary"}


def table() -> str:
    both = _params.lines(_shared.Shared, FACTS)
    names = {line[0] for line in both}
    parts = ["Both endpoints:", rows(both)]
    for path, kind in (("/v1/completions", _bodies.Completion), ("/v1/chat/completions", _bodies.Chat)):
        own = [line for line in _params.lines(kind, FACTS) if line[0] not in names or line not in both]
        parts += [f"`{path}` alone:", rows(own)]
    refused = dict(_params.unknown(_bodies.Completion) + _params.unknown(_bodies.Chat))
    parts += ["Refused, each with a 400 that names it, unless null or without effect:",
              "; ".join(f"`{name}` ({why})" for name, why in sorted(refused.items())) + "."]
    return "\n\n".join(parts)


def rows(lines: list[tuple[str, str, str, str]]) -> str:
    def cell(text: str) -> str:
        for old, new in WORDS.items():
            text = text.replace(old, new)
        return text.replace("|", "\\|")

    return "\n".join(["| parameter | is | default | meaning |", "|---|---|---|---|",
                      *(f"| `{name}` | {cell(kind)} | {default} | {cell(meaning)} |" for name, kind, default, meaning in lines)])


def written(page: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(written(page) != page)
    PAGE.write_text(written(page), encoding="utf-8")
