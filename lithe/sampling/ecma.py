r"""Patterns of JSON Schema, which are ECMA-262's, in the dialect of Rust that llguidance reads.

The dialects share most of their words but not the meaning of all: `.`, `\s`, `\d` and `\w` differ, `[a&&b]` and `[a--b]` are
sets there and characters here, `\A` is an anchor there. Where readings differ, Python's among them, what comes out matches only
what all of them match: a text let through is valid for any validator.
"""

from __future__ import annotations

import re

from lithe.errors import UsageError

# What a class escape holds, for certain and at most, as the inside of a Rust class.
_SPACE = r"\x{9}-\x{D}\x{20}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
_WORD = r"\p{L}\p{M}\p{N}\p{Pc}"
_NARROW = {"d": "0-9", "w": "0-9A-Za-z_", "s": _SPACE}
_WIDE = {"d": r"\p{Nd}", "w": _WORD, "s": _SPACE + r"\x{1C}-\x{1F}\x{85}\x{FEFF}"}
_CONTROL = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_DOT = r"[^\x{A}\x{D}\x{2028}\x{2029}]"
_QUANTITY = re.compile(r"\{[0-9]+(,[0-9]*)?\}")
_PROPERTY = re.compile(r"[pP]\{[A-Za-z_=]+\}")
_CODE = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})(?:\\u([Dd][C-Fc-f][0-9A-Fa-f]{2}))?|u\{([0-9A-Fa-f]{1,6})\}|"
                   r"c([A-Za-z])")


def rewritten(pattern: str) -> str:
    """The pattern in the other dialect. Raises UsageError for what has no counterpart there."""
    return _Reader(pattern).whole()


class _Reader:
    def __init__(self, pattern: str):
        self.text, self.at = pattern, 0

    def whole(self) -> str:
        parts = []
        while self.at < len(self.text):
            parts.append(self._one())
        return "".join(parts)

    def _one(self) -> str:
        letter = self.text[self.at]
        if letter == "[":
            return self._set()
        if letter == "\\":
            found = self._escape(negated=False)
            return found if isinstance(found, str) else _code(found)
        if letter == "(":
            return self._group()
        if quantity := _QUANTITY.match(self.text, self.at) if letter == "{" else None:
            self.at = quantity.end()
            return quantity[0]
        self.at += 1
        if letter == ".":
            return _DOT
        return letter if letter in "|)*+?^$" else _code(ord(letter))

    def _group(self) -> str:
        if not self.text.startswith("(?", self.at):
            self.at += 1
            return "("
        if opening := re.compile(r"\(\?(:|<[A-Za-z_]\w*>)").match(self.text, self.at):
            self.at = opening.end()
            return "(?:"
        raise self._cannot(self.text[self.at : self.at + 4], "look-around and flags")

    def _set(self) -> str:
        """A class, every member by its code, so that nothing in it can be taken for an operator."""
        negated = self.text.startswith("[^", self.at)
        self.at += 2 if negated else 1
        parts: list[str] = []
        while True:
            if self.at >= len(self.text):
                raise UsageError(f"pattern {self.text!r} has a bracket that is not closed")
            if self.text[self.at] == "]":
                self.at += 1
                break
            low = self._member(negated)
            if isinstance(low, int) and self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                mark, self.at = self.at, self.at + 1
                high = self._member(negated) if self.at < len(self.text) else low
                if isinstance(high, int):
                    if high < low:
                        raise UsageError(f"pattern {self.text!r} has a range that ends before it begins")
                    parts.append(f"{_code(low)}-{_code(high)}")
                    continue
                self.at = mark
            parts.append(low[1:-1] if isinstance(low, str) and low.startswith("[") and low[1] != "^"
                         else low if isinstance(low, str) else _code(low))
        if not parts:
            if negated:
                return r"[\x{0}-\x{10FFFF}]"
            raise self._cannot("[]", "a class of nothing")
        return f"[{'^' if negated else ''}{''.join(parts)}]"

    def _member(self, negated: bool) -> int | str:
        if self.text[self.at] == "\\":
            return self._escape(negated=negated, inside=True)
        self.at += 1
        return ord(self.text[self.at - 1])

    def _escape(self, *, negated: bool, inside: bool = False) -> int | str:
        """One escape: a character's code, or a class. What a negated class holds is read as wide as anyone does."""
        rest = self.text[self.at + 1 : self.at + 2]
        table, other = (_WIDE, _NARROW) if negated else (_NARROW, _WIDE)
        if rest in ("d", "w", "s"):
            self.at += 2
            return f"[{table[rest]}]"
        if rest in ("D", "W", "S"):
            self.at += 2
            return f"[^{other[rest.lower()]}]"
        if found := _PROPERTY.match(self.text, self.at + 1):
            self.at = found.end()
            return f"\\{found[0]}"
        if code := _CODE.match(self.text, self.at + 1):
            self.at = code.end()
            return self._coded(code)
        if rest in _CONTROL and not (rest == "0" and self.text[self.at + 2 : self.at + 3].isdigit()):
            self.at += 2
            return _CONTROL[rest]
        if rest == "b" and inside:
            self.at += 2
            return 8
        if not rest or rest.isalnum():
            raise self._cannot(f"\\{rest}", "back-references and word boundaries")
        self.at += 2
        return ord(rest)

    def _coded(self, code: re.Match[str]) -> int:
        byte, unit, low, braced, control = code.groups()
        if control:
            return ord(control) % 32
        value = int(byte or unit or braced, 16)
        if low and 0xD800 <= value < 0xDC00:
            return 0x10000 + (value - 0xD800) * 0x400 + int(low, 16) - 0xDC00
        if low:
            self.at -= 6
        if 0xD800 <= value < 0xE000 or value > 0x10FFFF:
            raise self._cannot(code[0], "half a surrogate pair")
        return value

    def _cannot(self, what: str, kind: str) -> UsageError:
        return UsageError(f"pattern {self.text!r}: {what!r} cannot be enforced ({kind} are not known); write it without")


def _code(value: int) -> str:
    letter = chr(value)
    return letter if letter.isascii() and letter.isalnum() else f"\\x{{{value:X}}}"
