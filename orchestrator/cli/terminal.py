"""Text for the terminal. What an experiment, an agent or a file name says is made harmless before it is shown."""

import io
import json
import sys
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any

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


def harmless(text: str) -> str:
    """`text` without what a terminal obeys: control and format characters become visible escapes.

    Line feeds and tabs stay. A carriage return becomes a line feed, so that progress bars read as lines.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(character if _shown(character) else _visible(character) for character in text)


def one_line(text: str, limit: int = 300) -> str:
    """`text` harmless and on one line of at most `limit` characters."""
    line = harmless(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


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


def _shown(character: str) -> bool:
    return character in "\n\t" or character.isprintable() or unicodedata.category(character) == "Zs"


def _visible(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
