"""`lithe` as a process of its own, with real pipes, terminals and signals, but without waiting for imports each time.

A parent that has imported everything is started once; each run is a fork of it, given its files over a socket.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds until a process is given up


class Parent:
    """The process that is forked. Close it when done."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT,
                                        env=environment)
        theirs.close()

    def start(self, *words: str, terminal: bool = False, before: str = "", **environment: str) -> "Child":
        """Run `lithe WORDS`, on a terminal or on pipes. before: Python to run first, in the process itself."""
        return Child(self.socket, list(words), terminal, before, environment)

    def close(self) -> None:
        self.socket.close()
        self.process.wait(PATIENCE)


class Child:
    """A running `lithe`. On a terminal, what it writes to standard error is part of `out`."""

    def __init__(self, parent: socket.socket, words: list[str], terminal: bool, before: str, environment: dict[str, str]):
        if terminal:
            self.stdout, end = os.openpty()
            self.stdin, ends = self.stdout, [end, end, end]
        else:
            (read, self.stdin), (self.stdout, write) = os.pipe(), os.pipe()
            ends = [read, write]
        self.stderr, error = os.pipe()
        self.status, status = os.pipe()
        ends += [status] if terminal else [error, status]
        message = {"words": words, "terminal": terminal, "before": before, "environment": environment}
        socket.send_fds(parent, [json.dumps(message).encode()], ends)
        for end in {*ends, error}:
            os.close(end)
        self.out, self.err, self.known = b"", b"", 0  # known: how much of `out` was returned by a read
        self.pid = int(self._line())

    def _line(self) -> str:
        """What the child says of itself: its number, how it ended and with how many threads, and nothing once it is gone."""
        assert select.select([self.status], [], [], PATIENCE)[0], f"nothing happens; it said {self.out!r} {self.err!r}"
        return os.read(self.status, 99).decode()

    def type(self, text: str | bytes) -> None:
        os.write(self.stdin, text.encode() if isinstance(text, str) else text)

    def read(self, until: bytes = b"", timeout: float = PATIENCE) -> bytes:
        """What it writes next, up to and with `until`, or to its end where that is empty."""
        deadline, start = time.monotonic() + timeout, self.known
        while not until or until not in self.out[start:]:
            ready = select.select([self.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"it does not say {until!r}, but {self.out!r} {self.err!r}"
            try:
                piece = os.read(self.stdout, 65536)
            except OSError:  # a terminal that was left
                piece = b""
            self.out += piece
            if not piece:
                assert not until, f"it ended without saying {until!r}: {self.out!r} {self.read_errors()!r}"
                break
        self.known = self.out.index(until, start) + len(until) if until else len(self.out)
        return self.out[start : self.known]

    def read_errors(self) -> bytes:
        while piece := os.read(self.stderr, 65536):
            self.err += piece
        return self.err

    def interrupt(self) -> None:
        os.kill(self.pid, signal.SIGINT)

    def end(self) -> int:
        """Close what it reads, and wait for its exit code and its end. Then `out` and `err` are whole."""
        if self.stdin != self.stdout:
            os.close(self.stdin)
        try:
            self.read()
            self.read_errors()
            code, threads = map(int, self._line().split())
            assert threads == 1, f"it ended with {threads} threads"
            assert self._line() == "", "it has ended, but its process has not"
            return code
        finally:
            for fd in (self.stdout, self.stderr, self.status):
                os.close(fd)


def serve(parent: socket.socket) -> None:
    """Fork a child for each message until the socket closes."""
    from lithe.cli import chat, demo, generate  # noqa: F401

    while True:  # the dead are left until this ends, so that a late signal meets no other process
        message, files, _, _ = socket.recv_fds(parent, 1 << 20, 8)
        if not message:
            return
        if os.fork() == 0:
            parent.close()
            live(json.loads(message), files)
        for file in files:
            os.close(file)


def live(told: dict, files: list[int]) -> None:
    """Be `lithe`: the exit code is told on the status pipe once everything is written."""
    import traceback

    from lithe import cli

    dispatch = cli._dispatch

    def ready(words: list[str]) -> int:  # from here on Ctrl-C is lithe's own business
        os.write(status, str(os.getpid()).encode())
        return dispatch(words)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    *ends, status = files
    if told["terminal"]:
        os.login_tty(os.dup(ends[0]))
    else:
        for number, end in enumerate(ends):
            os.dup2(end, number)
    for end in set(ends) - {0, 1, 2}:
        os.close(end)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering=1 if number == 2 else -1, closefd=False, encoding="utf-8")  # noqa: SIM115
        for number, mode in enumerate("rww"))
    os.environ.update(told["environment"])
    exec(told["before"], {})
    sys.argv = ["lithe", *told["words"]]
    code: object = 1
    try:
        cli._dispatch = ready
        cli.main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # as the interpreter itself ends then, past what lithe can catch
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os.write(status, f"{code or 0} {threading.active_count()}".encode())
    os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
