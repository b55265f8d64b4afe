"""Metrics of an experiment that recorded none: read from its output and its files, into extracted.jsonl.

Each line is a metric record (`t` only where the source has times) with its origin: `stdout`, `stderr` or
`artifacts/<file>`. They are shown, with that origin, and never judged: a verdict needs what `lab` recorded. All that is
read is hostile, so each file, its points and its names are bounded, and what cannot be read is passed over.
"""

import contextlib
import itertools
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from policies.text import one_line
from results.printed import Point, read_output
from results.series import LAB, MAX_ORIGIN, Series
from results.store import EXTRACTED, METRICS, ArtifactFile
from results.tabular import read_csv, read_json, read_json_lines
from results.tfevents import read_events

# All of it takes some twenty seconds and 250 MiB at worst, whatever the bytes are.
_MAX_OUTPUT = 16 << 20  # of each stream; from its beginning
_MAX_JSON = 8 << 20  # a document takes twenty times that in memory
_MAX_FILE = 16 << 20
_MAX_FILES_BYTES = 32 << 20
_MAX_LISTED = 5000
_MAX_FILES = 50
_MAX_VALUES = 500_000
_MAX_NAMES = 500
_CHUNK = 1 << 16

_SUFFIXES: dict[str, tuple[Callable[[bytes], Iterator[Point]], int]] = {
    ".json": (read_json, _MAX_JSON),
    ".jsonl": (read_json_lines, _MAX_FILE),
    ".ndjson": (read_json_lines, _MAX_FILE),
    ".csv": (read_csv, _MAX_FILE),
    ".tsv": (read_csv, _MAX_FILE),
}


def extract(folder: Path) -> int:
    """Reads a run's output and artifacts, and writes extracted.jsonl if metrics are in them; the number of values.

    Nothing is done where metrics.jsonl has a metric or a training: the experiment spoke for itself. Raises OSError if it
    cannot write.
    """
    target = folder / EXTRACTED
    target.unlink(missing_ok=True)
    if _measured(folder / METRICS):
        return 0
    file, values = ArtifactFile(target), 0
    try:
        for line, count in _lines(folder):
            file.write(line)
            values += count
    except BaseException:
        file.abort()
        raise
    if values:
        file.commit()
    else:
        file.abort()
    return values


class _Kind(msgspec.Struct):
    """What a record is, whatever else it says."""

    type: str


_kind = msgspec.json.Decoder(_Kind).decode


def _measured(metrics: Path) -> bool:
    """Whether there is a result among the records: what was planned, declared or kept is none."""
    with contextlib.suppress(OSError), metrics.open("rb") as file:
        for line in file:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                if _kind(line).type in ("metric", "run"):
                    return True
    return False


def _lines(folder: Path) -> Iterator[tuple[bytes, int]]:
    """Lines of extracted.jsonl, and how many values are in each."""
    left, names = _MAX_VALUES, set[tuple[str, str]]()
    for origin, points in _sources(folder):
        for point in points:
            new = {(origin, name) for name in point.values} - names
            if left < len(point.values):
                return
            if len(names) + len(new) > _MAX_NAMES:
                continue
            names |= new
            left -= len(point.values)
            yield _line(origin, point), len(point.values)


def _line(origin: str, point: Point) -> bytes:
    record: dict[str, object] = {"type": "metric", "origin": origin}
    if point.seconds is not None and math.isfinite(point.seconds):
        record["t"] = point.seconds
    if point.step is not None:
        record["step"] = point.step
    record["values"] = {name: value if math.isfinite(value) else _word(value) for name, value in point.values.items()}
    return msgspec.json.encode(record) + b"\n"


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _sources(folder: Path) -> Iterator[tuple[str, Iterable[Point]]]:
    for stream in ("stdout", "stderr"):
        yield stream, read_output(_chunks(folder / f"{stream}.log"))
    left = _MAX_FILES_BYTES
    for name, path, read in itertools.islice(_tables(folder / "artifacts"), _MAX_FILES):
        size = _size(path)
        if size <= left:
            left -= size
            with contextlib.suppress(OSError):
                yield one_line(f"artifacts/{name}", MAX_ORIGIN), read(path.read_bytes())


def _chunks(path: Path) -> Iterator[bytes]:
    with contextlib.suppress(OSError), path.open("rb") as file:
        yield from itertools.islice(iter(lambda: file.read(_CHUNK), b""), _MAX_OUTPUT // _CHUNK)


def _tables(artifacts: Path) -> Iterator[tuple[str, Path, Callable[[bytes], Iterator[Point]]]]:
    """The files that may hold metrics and are not too large, by name; nothing that a link leads to."""
    listed = itertools.islice(_files(artifacts), _MAX_LISTED)
    for path in sorted(listed):
        events = (read_events, _MAX_FILE) if "tfevents" in path.name else None
        read, most = events or _SUFFIXES.get(path.suffix.lower()) or (None, 0)
        if read is not None and 0 < _size(path) <= most:
            yield str(path.relative_to(artifacts)), path, read


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            yield Path(parent) / name


def _size(path: Path) -> int:
    """Bytes of a regular file; 0 for anything else."""
    try:
        state = path.lstat()
    except OSError:
        return 0
    return state.st_size if stat.S_ISREG(state.st_mode) else 0


def told(series: Sequence[Series]) -> str | None:
    """One line on where the metrics came from; None when none was extracted."""
    names: dict[str, list[str]] = {}
    for one in series:
        if one.origin != LAB:
            names.setdefault(one.origin, []).append(one.name)
    if not names:
        return None
    parts = [
        f"its {'files' if origin.startswith('artifacts/') else 'output'} ({origin}): {_some(found)}"
        for origin, found in itertools.islice(names.items(), 3)
    ]
    left = len(names) - len(parts)
    more = f"; and {left} more file{'s' if left > 1 else ''}" if left else ""
    return f"metrics read from {'; '.join(parts)}{more}"


def last_values(series: Sequence[Series]) -> str | None:
    """The last of the extracted values, in a sentence that says what they are worth; None when there are none."""
    found = [one for one in series if one.origin != LAB]
    if not found:
        return None
    shown = ", ".join(f"{one.name} {one.values[-1]:.4g}" for one in found[:6])
    places = ", ".join(dict.fromkeys(one.origin for one in found[:6]))
    return f"Last values read from {places}, not recorded with lab and not judged: {shown}."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
