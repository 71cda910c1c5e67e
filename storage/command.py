"""What every command shares: what it prints cannot end it, what ends it is one line and a status.

Imports nothing slow, so that a script can call `begin` before its own imports, which take seconds.
"""
import argparse
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What is no mistake of this code; torch says that memory is full in a RuntimeError, by words alone.
ERRORS = (ValueError, OSError, FloatingPointError, MemoryError, ModuleNotFoundError)
NO_MEMORY = ("out of memory", "can't allocate memory")
asked: list[int] = []      # the signal that asked the command to end
patient: list[bool] = []   # not empty: whoever listens ends it, at the next good moment
torn: list[bool] = []      # not empty: it came in the middle of something, and errors since are its doing
advice: list[str] = []     # how to go on, until it is said
GRACE = 10.0               # seconds that what came in the middle of something has to end the command


class Output(io.TextIOWrapper):
    """A standard stream whose reader may go away (`| head`) or whose disk may be full: what cannot be written
    is lost. Letters that its code page lacks are written as escapes."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


def begin(again: str, status: int = 1) -> None:
    """From here on this process is a command. `again` says how to go on after Ctrl-C or SIGTERM, which end it
    with 130 or 143; errors of data, files and options end it with `status`."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)   # None where the shell closed it
        setattr(sys, name, open(os.devnull, "w") if old is None else
                Output(old.buffer, old.encoding, "backslashreplace", line_buffering=True))

    def last_words(kind: type, error: BaseException, trace) -> None:
        known = issubclass(kind, ERRORS) or any(words in str(error) for words in NO_MEMORY)
        # numpy's import makes an ImportError of a KeyboardInterrupt, safetensors an error of its own.
        stopped = issubclass(kind, KeyboardInterrupt) or asked and not known or torn
        if stopped or known:
            traceback.clear_frames(trace)   # ends progress bars, before the line and not after it
        if stopped:
            say_stopped()
            raise SystemExit(128 + (asked or [signal.SIGINT])[0])
        if known:
            print("error:", " ".join(str(error).split("\n")) or kind.__name__, file=sys.stderr)
            raise SystemExit(status)
        sys.__excepthook__(kind, error, trace)

    def swallowed(lost) -> None:
        """An exception within a __del__ ends nothing: a signal that came there comes again."""
        if lost.exc_type is KeyboardInterrupt and asked:
            torn.clear()
            threading.Timer(0.05, os.kill, (os.getpid(), asked.pop())).start()
        else:
            sys.__unraisablehook__(lost)

    advice[:] = [again]
    sys.excepthook, sys.unraisablehook = last_words, swallowed
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)


def parser(text: str) -> argparse.ArgumentParser:
    """A parser whose --help begins with this text, in its own lines."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def arguments(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """parser.parse_args(argv). Refused: nothing as a value, which would be the folder that one is in; bytes
    that are no letters, in which neither a report nor the path of a weight file can be written; "--flag=--",
    of which some versions of argparse make a list."""
    for word in sys.argv[1:] if argv is None else argv:
        empty = not word or word.startswith("--") and word.endswith(("=", "=--"))
        if empty or any("\ud800" <= letter <= "\udfff" for letter in word):
            raise ValueError(f"argument {word!r}: expected a value, in valid UTF-8")
    return parser.parse_args(argv)


def on_signal(number: int, _) -> None:
    if not asked:   # once is enough: what is being saved is saved
        asked.append(number)
        if not patient:
            torn.append(True)
            last = threading.Timer(GRACE, insist, (number,))
            last.daemon = True   # what ends before is not held up
            last.start()
            raise KeyboardInterrupt


def insist(number: int) -> None:
    """Some library took the exception for an error of its own and went on. Files get their names when they
    are whole, so the end may come anywhere."""
    if torn:
        say_stopped()
        os._exit(128 + number)


def say_stopped() -> None:
    if advice and os.environ.get("RANK", "0") == "0":   # once, and of many processes one speaks
        print(f"stopped: {advice.pop()}", file=sys.stderr)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """A loop inside is not interrupted anywhere: it calls what is yielded and ends itself where that is True.
    The command then ends with the block."""
    patient.append(True)
    try:
        yield lambda: bool(asked)
    finally:
        patient.pop()
    if asked:
        raise KeyboardInterrupt
