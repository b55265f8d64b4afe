"""How numbers, times and hostile texts are written in a report."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from policies.units import format_bytes, format_seconds

MAX_TEXT = 20_000
"""Characters of an agent's words, or of a program, that a report repeats."""
_BYTES = ("memory", "workspace", "tmp", "shm", "output", "metrics", "artifacts", "gpu_memory")


def _limit(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in _BYTES:
        return format_bytes(int(value))
    return format_seconds(value) if name == "wall" else f"{value:g}"


def _size(value: int | None) -> str:
    """Bytes that were measured: in round figures, as a limit is not."""
    return "–" if value is None else f"{value / 2**20:,.1f} MiB"


def _moment(text: object) -> str:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).strftime("%Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return "–"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:40]


def _line(text: object) -> str:
    """On one line of Markdown, where nothing is markup."""
    plain = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#!$~" else c for c in plain if c.isprintable())


def _cut(text: object, whole: str = "sprint_summary.json") -> str:
    """The beginning of a text; where that is not all, it says so, and which file has the whole."""
    shown = str(text)
    if len(shown) <= MAX_TEXT:
        return shown
    return f"{shown[:MAX_TEXT]}\n… cut here: {MAX_TEXT:,} of {len(shown):,} characters; the whole is in {whole}"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "g": lambda value: "–" if value is None else f"{value:.4g}",
    "signed": lambda value: "–" if value is None else f"{value:+.4g}",
    "size": _size,
    "seconds": lambda value: "–" if value is None else f"{value:.1f} s",
    "limit": _limit,
    "moment": _moment,
    "oneline": lambda text: " ".join(str(text).split()),
    "line": lambda text: _line(text).replace("|", "\\|"),
    "setting": lambda config: ", ".join(f"{name} {_short(value)}" for name, value in config.items()) or "–",
    "cut": _cut,
}
