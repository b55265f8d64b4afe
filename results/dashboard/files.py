"""Files of a sprint for a browser. Their names and every byte in them come from an experiment.

Only what is a PNG, JPEG, GIF or WebP by its first bytes is shown as a picture; all else is a download, whatever it calls
itself. No link is followed on the way to a file, so nothing outside the folder can be had.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from results.dashboard.guard import SANDBOX_POLICY
from results.readable import line
from results.store import (
    CODE,
    CURVES,
    EVENTS,
    EXECUTION,
    EXTRACTED,
    METRICS,
    REQUIREMENTS,
    STUDY,
    SUMMARY,
    SWEEP,
    SWEPT,
)

OWN_FILES = (
    "report.md", SUMMARY, CODE, REQUIREMENTS, "stdout.log", "stderr.log", METRICS, EXTRACTED, EVENTS, "agents.jsonl",
    EXECUTION, "params.json", "run.json", SWEEP, SWEPT, STUDY,
)  # fmt: skip
"""What labsandbox itself wrote, and a person may want."""
DRAWINGS = (CURVES, "history.png", "importance.png")
REPORT = "report.html"
MAX_PICTURE = 20 << 20
_MAX_LISTED = 1000
_CHUNK = 256 << 10
_HEAD = 16


class NotThere(Exception):
    """There is no such file, or it is none that may be had."""


@dataclass(frozen=True)
class Listed:
    """An artifact, for a page."""

    name: str
    """For people."""
    path: str
    """For the address."""
    bytes: int
    picture: bool


def open_below(folder: Path, name: str) -> BinaryIO:
    """A regular file below `folder`, opened without following any link. Raises NotThere."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise NotThere
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    here = -1
    try:
        here = os.open(folder, flags | os.O_DIRECTORY)
        for part in parts[:-1]:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = inner
        found = os.open(parts[-1], flags, dir_fd=here)
    except (OSError, UnicodeError):
        raise NotThere from None
    finally:
        if here >= 0:
            os.close(here)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise NotThere
    return os.fdopen(found, "rb")


def picture_type(head: bytes) -> str | None:
    """The media type of a picture that browsers show, by its first bytes; None for everything else, SVG included."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return None


def artifacts(folder: Path) -> tuple[list[Listed], bool]:
    """The artifacts of a run by name, and whether there are more than are listed."""
    found: list[Listed] = []
    root = folder / "artifacts"
    for name in _names(root):
        if len(found) >= _MAX_LISTED:
            return found, True
        try:
            address = quote(os.fsencode(name))
            with open_below(root, name) as file:
                bytes_, head = os.fstat(file.fileno()).st_size, file.read(_HEAD)
        except (NotThere, OSError, UnicodeError):
            continue
        found.append(Listed(line(name, 200), address, bytes_, bytes_ <= MAX_PICTURE and picture_type(head) is not None))
    return found, False


def picture(folder: Path, name: str) -> Response:
    """A picture, shown. Raises NotThere for what is none."""
    file = open_below(folder, name)
    kind = picture_type(file.read(_HEAD))
    if kind is None or os.fstat(file.fileno()).st_size > MAX_PICTURE:
        file.close()
        raise NotThere
    return _sent(file, kind, {"Content-Disposition": "inline"})


def download(folder: Path, name: str) -> Response:
    """Any file, to be saved and not opened. Raises NotThere."""
    last = PurePosixPath(name).name
    kept = "".join(one if one.isascii() and (one.isalnum() or one in "._-") else "_" for one in last)
    plain = kept.lstrip(".")[:100] or "file"
    exact = quote(os.fsencode(last), safe="")
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"
    return _sent(open_below(folder, name), "application/octet-stream", {"Content-Disposition": disposition})


def report(folder: Path) -> Response:
    """The sprint's report: a page of its own origin in which nothing runs. Raises NotThere."""
    return _sent(open_below(folder, REPORT), "text/html; charset=utf-8", {})


def is_there(folder: Path, name: str) -> bool:
    """Whether `open_below` would open it."""
    try:
        open_below(folder, name).close()
        return True
    except NotThere:
        return False


def _sent(file: BinaryIO, kind: str, headers: dict[str, str]) -> Response:
    file.seek(0)
    size = os.fstat(file.fileno()).st_size
    told = {"Content-Length": str(size), "Content-Security-Policy": SANDBOX_POLICY, **headers}
    closing = BackgroundTask(file.close)
    return StreamingResponse(_chunks(file, size), media_type=kind, headers=told, background=closing)


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Exactly so many bytes, though the file may grow."""
    with file:
        while size > 0 and (data := file.read(min(_CHUNK, size))):
            size -= len(data)
            yield data


def _names(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            if not file.startswith(".part-"):
                yield os.path.relpath(os.path.join(folder, file), root)  # noqa: PTH118  (os.walk speaks in strings)
