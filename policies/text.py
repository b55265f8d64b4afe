"""Texts of unknown origin (an experiment's, an agent's, a file's name), made fit to be shown, drawn, or put into a table."""

import unicodedata

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet would calculate, or look behind."""


def harmless(text: str) -> str:
    """`text` without what a terminal or a page obeys: control and format characters become visible escapes.

    Line feeds and tabs stay. A carriage return becomes a line feed, so that progress bars read as lines. So no text can
    change the direction of what is written around it, or hide a part of itself.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(character if _shown(character) else _visible(character) for character in text)


def one_line(text: str, limit: int = 300) -> str:
    """`text` harmless and on one line of at most `limit` characters."""
    return shortened(harmless(" ".join(text.split())), limit)


def shortened(text: str, limit: int) -> str:
    """`text`, or what of it fits into `limit` characters with a sign that there is more."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def for_drawing(text: str, limit: int = 32) -> str:
    """A label in a picture: one line that no legend leaves out, as matplotlib does with names that begin with "_"."""
    line = one_line(text, limit)
    return f" {line}" if line.startswith("_") else line


def cell(value: object) -> str:
    """A value as CSV has it, "" for None: text that no spreadsheet runs, and that every file can hold."""
    text = "" if value is None else str(value)
    clean = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return f"'{clean}" if clean.lstrip(" ").startswith(_FORMULA) else clean


def _shown(character: str) -> bool:
    return character in "\n\t" or character.isprintable() or unicodedata.category(character) == "Zs"


def _visible(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
