"""A sprint in a process of its own: `labsandbox resume` on a folder that was made for it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from orchestrator.agents.answers import clean_line

_TAIL = 4096
"""Bytes of a log in which its last line is looked for."""


def start(sprint: str, results: Path, more: Sequence[str] = ()) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Starts it, with `more` options. Returns the process, and a file that gets its standard error. Raises OSError."""
    command = [sys.executable, "-m", "orchestrator", "resume", sprint, "--results", str(results), "--json", *more]
    log = tempfile.TemporaryFile()  # noqa: SIM115  (whoever waits for the process closes it)
    # A session of its own: a terminal's Ctrl-C reaches whoever started it, and it only through them.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
    )
    return process, log


def last_words(log: IO[bytes]) -> str:
    """The last line of such a file, fit to be shown; empty where there is none."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - _TAIL))
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return clean_line(lines[-1]) if lines else ""
