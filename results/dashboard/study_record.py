"""What Optuna's own file says of a sweep that goes on: its trials so far, their states and values.

The tables are Optuna's (storages/_rdb/models.py of its version 4 and 5). Only a few columns are read, and never written;
where they are not as expected, or the file is being written to, nothing is known.
"""

import contextlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results.dashboard.files import is_there
from results.store import STUDY

_BUSY = 1.0
"""Seconds to wait for its writer."""
_MOST = 20_000
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class Recorded:
    """The trials that have begun."""

    metric: Any = None
    """By which they are compared; None before the first has ended."""
    states: Mapping[str, str] = field(default_factory=dict)
    """By the trial's number. `lost`: a crash cut it off, and its values are tried again."""
    values: Mapping[str, float] = field(default_factory=dict)


def recorded(folder: Path) -> Recorded:
    """What is on record of a sweep's trials; nothing where it cannot be read."""
    if not is_there(folder, STUDY):
        return Recorded()
    try:
        address = f"{(folder / STUDY).absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_BUSY)) as database:
            return _read(database)
    except (sqlite3.Error, ValueError, TypeError, RecursionError):
        return Recorded()


def _read(database: sqlite3.Connection) -> Recorded:
    attributes = {
        key: json.loads(text)
        for key, text in database.execute(
            "SELECT key, value_json FROM study_user_attributes WHERE key IN ('metric', 'lost')"
        )
    }
    listed = attributes.get("lost")
    lost = {str(number) for number in listed} if isinstance(listed, list) else set()
    states, values = {}, {}
    rows = database.execute(
        "SELECT number, state, value FROM trials LEFT JOIN trial_values USING (trial_id) ORDER BY number LIMIT ?",
        (_MOST,),
    )
    for number, state, value in rows:
        name = str(number)
        if state in _STATES:
            states[name] = "lost" if name in lost else _STATES[state]
        if state == "COMPLETE" and isinstance(value, float):
            values[name] = value
    return Recorded(attributes.get("metric"), states, values)
