"""Hostile text and numbers of any shape, made fit for a page. Escaping is the templates' work; this is about the rest."""

import math
import unicodedata
from datetime import UTC, datetime
from typing import Any

_MAX_TEXT = 200_000
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def plain(value: Any, limit: int = _MAX_TEXT) -> str:
    """Text of at most `limit` characters in which control and format characters are visible escapes.

    Line feeds and tabs stay; a carriage return becomes a line feed. So no text can change the direction of what is
    written around it, or hide a part of itself.
    """
    text = value if isinstance(value, str) else "" if value is None else _said(value)
    cut = len(text) > limit
    text = text[:limit].replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii() or not text.isprintable():
        text = "".join(one if _shown(one) else _visible(one) for one in text)
    return f"{text}…" if cut else text


def line(value: Any, limit: int = 300) -> str:
    """The same on one line."""
    return plain(" ".join(plain(value, 4 * limit).split()), limit)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def digits(value: Any) -> str:
    """A number as people read it, in at most five significant digits; – for none."""
    found = number(value)
    return "–" if found is None else f"{found:.5g}"


def size(value: Any) -> str:
    """Bytes, in the unit that fits."""
    found = number(value)
    if found is None:
        return "–"
    unit = 0
    while abs(found) >= 1024 and unit < len(_UNITS) - 1:
        found, unit = found / 1024, unit + 1
    return f"{found:.0f} {_UNITS[unit]}" if unit == 0 else f"{found:.4g} {_UNITS[unit]}"


def seconds(value: Any) -> str:
    """A duration."""
    found = number(value)
    if found is None:
        return "–"
    if abs(found) < 60:
        return f"{found:.3g} s"
    minutes, rest = divmod(round(found), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def moment(value: Any) -> datetime | None:
    """A time as records have it, in UTC; None where it is none."""
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def day(value: Any) -> str:
    """A time for people; as it stands where it is no time."""
    found = moment(value)
    return f"{found:%Y-%m-%d %H:%M:%S} UTC" if found else line(value, 40) or "–"


def _said(value: Any) -> str:
    try:
        return str(value)
    except (RecursionError, ValueError):
        return "?"


def _shown(character: str) -> bool:
    return character in "\n\t" or character.isprintable() or unicodedata.category(character) == "Zs"


def _visible(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
