"""Text for the terminal. What an experiment, an agent or a file name says is made harmless before it is shown."""

import io
import json
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from policies.text import harmless as harmless
from policies.text import one_line as one_line

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console() -> "Console":
    """Standard output. Loading rich takes 20 ms, so that it waits until a command wants it."""
    return _console(stderr=False)


@cache
def notes() -> "Console":
    """Standard error."""
    return _console(stderr=True)


def _console(stderr: bool) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def tolerate_any_encoding() -> None:
    """Lets standard output and error write what their encoding lacks as visible escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def note(text: str) -> None:
    """A line about what is going on, on standard error."""
    print(one_line(text), file=sys.stderr)


def print_json(data: Any) -> None:
    """One JSON value on standard output. ASCII only, so that no hostile string reaches a terminal raw."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False) + "\n")
