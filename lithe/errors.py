"""Errors a user can act on, each with the exit code the command line returns for it."""


class LitheError(Exception):
    """Base of all errors lithe raises on purpose. The message says what was wrong, where, and what to do."""

    exit_code = 1


class UsageError(LitheError):
    """An unknown method, knob, flag or value. Exit code 2."""

    exit_code = 2


class UnsupportedError(LitheError):
    """A combination that is not legal: a method whose needs the model or the plan cannot meet. Exit code 3."""

    exit_code = 3


class FormatError(LitheError):
    """A model folder, tokenizer or data file that cannot be read. Exit code 4."""

    exit_code = 4


class TooLargeError(LitheError):
    """Work that would not fit into memory, or a prompt that does not fit into the context. Exit code 5."""

    exit_code = 5
