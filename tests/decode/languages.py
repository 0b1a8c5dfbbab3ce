"""Small languages of token ids, on which constrained decoding is checked exactly."""

import torch


class Automaton:
    """A program whose matchers walk a table: state -> {token: state}. Texts may end in `last`; a way with no fork is forced."""

    def __init__(self, table, last, vocab, forcing=True):
        self.table, self.last, self.vocab, self.forcing = table, last, vocab, forcing

    def start(self):
        return Place(self)


class Place:
    def __init__(self, of):
        self.of, self.states = of, [0]

    def allowed(self):
        keep = torch.zeros(self.of.vocab, dtype=torch.bool)
        keep[list(self.of.table[self.states[-1]])] = True
        return keep

    def push(self, token):
        if token not in self.of.table[self.states[-1]]:
            return False
        self.states.append(self.of.table[self.states[-1]][token])
        return True

    def pop(self, many):
        if many:
            del self.states[-many:]

    def forced(self):
        state, found = self.states[-1], []
        while self.of.forcing and len(self.of.table[state]) == 1 and state not in self.of.last and len(found) < 5:
            ((token, state),) = self.of.table[state].items()
            found.append(token)
        return found

    def whole(self):
        return self.states[-1] in self.of.last


def varied(vocab, forcing=True):
    """Freely among some tokens, then a forced stretch, a choice of two, and back; it may end after the choice."""
    free = {token: 1 + token % 2 for token in range(2, vocab - 2)}
    table = {0: free, 1: {3: 2}, 2: {vocab - 1: 3}, 3: {5: 4}, 4: {1: 0, 7: 0, 9: 5}, 5: free}
    return Automaton(table, {5}, vocab, forcing)
