"""Folders that have a page: those of runs, and inside them those of attempts, trials and confirmations.

A page's address names one as `sprint_…`, `exec_…`, `sweep_…`, or `sprint_…:attempts:1`.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.dashboard.files import NotThere, open_below
from results.host import HOST
from results.store import CODE, EXECUTION, Store, StoreError

_PART = re.compile(r"attempts:\d{1,6}|trials:\d{1,6}|confirm:(?:defaults|best)-\d{1,12}")
_MOST_PARTS = 1000
_MAX_JSON = 64 << 20


@dataclass(frozen=True)
class Place:
    """One of them."""

    id: str
    path: Path
    run: str
    """The run that it is of; `id`, unless it is a part."""

    @property
    def kind(self) -> str:
        """`sprint`, `exec`, `sweep`, or `part`."""
        return "part" if self.id != self.run else self.run.partition("_")[0]

    @property
    def part(self) -> str:
        """`attempts/1` and the like; "" for a whole run."""
        return self.id.removeprefix(self.run).lstrip(":").replace(":", "/")


def find(store: Store, asked: str) -> Place:
    """The folder at an address. Raises StoreError; no link is followed below a run's folder."""
    run, _, part = asked.partition(":")
    folder = store.existing(run)
    if not part:
        return Place(folder.id, folder.path, folder.id)
    if not _PART.fullmatch(part):
        raise StoreError(f"{folder.id} has no such part")
    kind, name = part.split(":")
    path = folder.path / kind / name
    if any(one.is_symlink() or not one.is_dir() for one in (path.parent, path)):
        raise StoreError(f"{folder.id} has no {kind} {name}")
    return Place(f"{folder.id}:{part}", path, folder.id)


def parts(place: Place, kind: str) -> list[Place]:
    """The `attempts`, `trials` or `confirm` of a run, in their order; the first of too many."""
    try:
        names = [one.name for one in (place.path / kind).iterdir() if _PART.fullmatch(f"{kind}:{one.name}")]
    except OSError:
        return []
    names.sort(key=lambda name: (len(name), name) if name.isdigit() else (0, name))
    return [Place(f"{place.run}:{kind}:{one}", place.path / kind / one, place.run) for one in names[:_MOST_PARTS]]


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """An object that labsandbox wrote there; {} where there is none that can be read."""
    try:
        with open_below(folder, name) as file:
            found = json.loads(file.read(_MAX_JSON))
    except (NotThere, OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_text(folder: Path, name: str, most: int) -> str:
    """The start of a text that is there, or ""."""
    try:
        with open_below(folder, name) as file:
            return file.read(most).decode("utf-8", "replace")
    except (NotThere, OSError):
        return ""


def mark(path: str | Path) -> tuple[int, int]:
    """What changes when a file does; the same wherever there is none."""
    try:
        state = os.stat(path)  # noqa: PTH116  (a list of a thousand runs has no time to make paths)
        return state.st_mtime_ns, state.st_size
    except OSError:
        return 0, 0


def single(folder: Path) -> dict[str, Any]:
    """One execution in the shape of a sprint's summary, so that it has the same view."""
    execution, code = read_json(folder, EXECUTION), read_text(folder, CODE, 1 << 20)
    summary = {
        "start_time": execution.get("started_at"),
        "end_time": execution.get("ended_at"),
        "host": read_json(folder, HOST),
    }
    return {**summary, "goal": about(code), "phases": {"implementation": {"code": code, "execution": execution}}}


def about(code: str) -> str:
    """What a program says of itself in its first line that is a comment or a docstring; "" where it does not."""
    for one in code.splitlines()[:20]:
        text = one.strip()
        if text.startswith(('"""', "'''")):
            return text.strip("\"' ")
        if text.startswith("#") and not text.startswith(("#!", "# -*-")):
            return text.strip("# ")
        if text and not text.startswith("#"):
            return ""
    return ""
