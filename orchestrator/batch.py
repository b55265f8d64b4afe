"""Several sprints, each a process of its own: `labsandbox resume` on a folder that was made for it.

A sprint that crashes takes no other with it, and one that is cut off can be resumed like any. What is going on is read
from the sprints' journals.
"""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from orchestrator.agents.answers import clean_line
from orchestrator.journal import EVENTS, peek

_TICK = 0.25
_HEEDED = 3
_PHASES = ("discussion", "implementation", "validation")


@dataclass
class Line:
    """One sprint of the batch."""

    goal: str
    sprint: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None
    """Its standard error, from its start on."""
    began: float | None = None
    ended: float | None = None
    last_words: str = ""
    heed: str = ""
    """How lines of its standard error begin that are kept; nothing: none are."""
    heeded: list[str] = field(default_factory=list)

    @property
    def status(self) -> int | None:
        """Exit status, negative where a signal ended it; None while it has not ended."""
        return None if self.process is None or self.ended is None else self.process.returncode

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return 0.0 if self.began is None else (self.ended or time.monotonic()) - self.began

    def doing(self) -> str:
        """What it is at, in a word or two."""
        if self.process is None:
            return "waiting"
        if self.ended is not None:
            return "ended" if self.status == 0 else f"ended with status {self.status}"
        steps = [str(step.get("step")) for step in peek(self.folder / EVENTS)]
        at = next((name for name in reversed(_PHASES) if f"{name}.begin" in steps), "starting")
        repairs = sum(step.startswith("repair.") and step.endswith(".code") for step in steps)
        return f"{at}, repair {repairs}" if at == "implementation" and repairs else at

    def close(self) -> None:
        """Keeps the last line that it wrote to standard error; many goals would else be many open files."""
        if self.log is not None:
            self.log.seek(0)
            heeded = (line for line in self.log if self.heed and line.startswith(self.heed.encode()))
            self.heeded = [clean_line(line.decode("utf-8", "replace")) for line in itertools.islice(heeded, _HEEDED)]
            self.log.seek(0, os.SEEK_END)
            self.log.seek(max(0, self.log.tell() - 4096))
            lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
            self.last_words = clean_line(lines[-1]) if lines else ""
            self.log.close()
            self.log = None


def run_batch(
    lines: list[Line], parallel: int, results: Path, look: Callable[[], None], more: Sequence[str] = ()
) -> None:
    """Runs all, `parallel` at a time, in their order; `look` is called again and again. An interrupt ends them all."""
    waiting, running = list(lines), list[Line]()
    with _ending(running):
        while waiting or running:
            while waiting and len(running) < parallel:
                line = waiting.pop(0)
                line.began = time.monotonic()
                line.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed when the process has ended)
                line.process = _start(line, results, more)
                running.append(line)
            for line in list(running):
                if line.process is not None and line.process.poll() is not None:
                    line.ended = time.monotonic()
                    line.close()
                    running.remove(line)
            look()
            time.sleep(_TICK)


def _start(line: Line, results: Path, more: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "orchestrator", "resume", line.sprint, "--results", str(results), "--json", *more]
    # A session of its own: Ctrl-C reaches it once, from us, and not from the terminal as well.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=line.log, start_new_session=True
    )


@contextmanager
def _ending(running: list[Line]) -> Iterator[None]:
    """Whatever happens, no process is left: each is interrupted, so that it clears up and records its end."""
    try:
        yield
    finally:
        for line in running:
            if line.process is not None:
                line.process.send_signal(signal.SIGINT)
        for line in running:
            if line.process is not None:
                line.process.wait()
                line.ended = time.monotonic()
                line.close()
