"""Text for the terminal. What an experiment, an agent or a file name says is made harmless before it is shown."""

import codecs
import io
import json
import sys
import unicodedata
from typing import Any, Literal, TextIO

from rich.console import Console

from executor.experiment import MetricRecord, PlanRecord, RunRecord, Sink

console = Console(highlight=False, markup=False, emoji=False)
notes = Console(stderr=True, highlight=False, markup=False, emoji=False)


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
    notes.print(one_line(text), soft_wrap=True)


def print_json(data: Any) -> None:
    """One JSON value on standard output. ASCII only, so that no hostile string reaches a terminal raw."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def _shown(character: str) -> bool:
    return character in "\n\t" or character.isprintable() or unicodedata.category(character) == "Zs"


def _visible(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class LogPrinter:
    """A sink that shows the log while it comes, and hands everything on to another sink."""

    def __init__(self, then: Sink, out: TextIO, err: TextIO) -> None:
        self._then = then
        self._files: dict[str, TextIO] = {"stdout": out, "stderr": err}
        # Bytes of one character may come in two parts, so each stream has a decoder of its own.
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._files}
        self.artifact = then.artifact

    def log(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Shows and passes on."""
        self._then.log(stream, data)
        if (file := self._files.get(stream)) is None:
            return
        try:
            file.write(harmless(self._decoders[stream].decode(data)))
            file.flush()
        except BrokenPipeError:
            del self._files[stream]  # whoever watched has left; the run goes on

    def record(self, record: MetricRecord | PlanRecord | RunRecord) -> None:
        """Passes on."""
        self._then.record(record)
