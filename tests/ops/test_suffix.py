"""The automaton knows every substring, how often it occurs and what follows it: against counting by hand, at every moment."""

from random import Random

import numpy as np
import pytest

from lithe.ops.suffix import SuffixAutomaton, suffix_array


def walk(automaton, string):
    state = 0
    for token in string:
        if token not in automaton.next[state]:
            return None
        state = automaton.next[state][token]
    return state


def occurrences(text, string):
    return sum(text[i : i + len(string)] == string for i in range(len(text) - len(string) + 1))


@pytest.mark.parametrize("letters", [1, 2, 4])
def test_counts_are_exact_after_every_token(letters):
    dice = Random(letters)
    text, automaton = [], SuffixAutomaton()
    for _ in range(24):
        text.append(dice.randrange(letters))
        automaton.push(text[-1])
        for start in range(len(text)):
            for end in range(start + 1, len(text) + 1):
                assert automaton.counts[walk(automaton, text[start:end])] == occurrences(text, text[start:end])
    assert len(automaton.next) <= 2 * len(text)
    assert walk(automaton, [*text, 0]) is None


def test_match_finds_the_longest_suffix_that_occurs():
    dice = Random(0)
    text = [dice.randrange(3) for _ in range(30)]
    automaton = SuffixAutomaton(text)
    for _ in range(50):
        asked = [dice.randrange(4) for _ in range(12)]
        state, length = automaton.match(asked)
        known = [n for n in range(13) if n == 0 or occurrences(text, asked[-n:])]
        assert length == max(known) and state == walk(automaton, asked[len(asked) - length :])


def test_suffixes_get_shorter_down_to_the_last_token():
    automaton = SuffixAutomaton([1, 2, 3, 1, 2, 4, 2])
    state, _ = automaton.match([1, 2])
    assert [automaton.lengths[s] for s in automaton.suffixes(state)] == [2, 1]
    assert not list(automaton.suffixes(0))


@pytest.mark.parametrize(("letters", "length"), [(1, 9), (2, 40), (5, 200), (3, 1)])
def test_suffixes_are_sorted_by_their_first_tokens(letters, length):
    ids = np.random.default_rng(letters).integers(0, letters, length)
    order = suffix_array(ids, 8)
    assert sorted(order) == list(range(length))
    heads = [ids[at : at + 8].tolist() for at in order]
    assert heads == sorted(heads)
