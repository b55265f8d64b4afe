"""How numbers, times and hostile texts are written in a report."""

from collections.abc import Callable, Mapping
from typing import Any

from policies.units import format_limit
from results.readable import day, digits_of_p, line, moment, size
from results.store import SUMMARY

MAX_TEXT = 20_000
"""Characters of an agent's words, or of a program, that a report repeats."""


def _moment(text: str) -> str:
    return day(text) if moment(text) else "–"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:40]


def _line(text: object) -> str:
    """On one line of Markdown, where nothing is markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#!$~" else c for c in line(text, MAX_TEXT))


def _cut(text: object, whole: str = SUMMARY) -> str:
    """The beginning of a text; where that is not all, it says so, and which file has the whole."""
    shown = str(text)
    if len(shown) <= MAX_TEXT:
        return shown
    return f"{shown[:MAX_TEXT]}\n… cut here: {MAX_TEXT:,} of {len(shown):,} characters; the whole is in {whole}"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "g": lambda value: "–" if value is None else f"{value:.4g}",
    "p": digits_of_p,
    "signed": lambda value: "–" if value is None else f"{value:+.4g}",
    "size": size,
    "seconds": lambda value: "–" if value is None else f"{value:.1f} s",
    "limit": format_limit,
    "moment": _moment,
    "oneline": lambda text: line(text, MAX_TEXT),
    "line": lambda text: _line(text).replace("|", "\\|"),
    "setting": lambda config: ", ".join(f"{name} {_short(value)}" for name, value in config.items()) or "–",
    "cut": _cut,
}
