"""Texts, numbers and times of any shape, as people read them. Escaping is a template's work; this is about the rest."""

import math
from datetime import UTC, datetime
from typing import Any

from policies.text import harmless, one_line
from policies.units import format_size

_MAX_TEXT = 200_000


def plain(value: Any, limit: int = _MAX_TEXT) -> str:
    """Harmless text of a value's first `limit` characters, with a sign where it has more; "" for None."""
    text = _said(value)
    return f"{harmless(text[:limit])}{'…' if len(text) > limit else ''}"


def line(value: Any, limit: int = 300) -> str:
    """The same on one line of at most `limit` characters."""
    return one_line(_said(value)[: 4 * limit], limit)


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


def digits_of_p(value: Any) -> str:
    """A p value, in three; – for none."""
    found = number(value)
    return "–" if found is None else f"{found:.3g}"


def size(value: Any) -> str:
    """Bytes, in the unit that fits; – for none."""
    found = number(value)
    return "–" if found is None else format_size(found)


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
    if isinstance(value, str) or value is None:
        return value or ""
    try:
        return str(value)
    except (RecursionError, ValueError):
        return "?"
