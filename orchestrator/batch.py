"""Several sprints, each a process of its own: `labsandbox resume` on a folder that was made for it.

A sprint that crashes takes no other with it, and one that is cut off can be resumed like any. What is going on is read
from the sprints' journals.
"""

import itertools
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from orchestrator.agents.answers import clean_line
from orchestrator.child import last_words, start
from orchestrator.journal import EVENTS
from results.dashboard.steps import Steps
from results.dashboard.tails import Lines

_TICK = 0.25
_HEEDED = 3
_LOOK = 16 << 20
"""Bytes of a journal that are read at most in one look."""


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

    def __post_init__(self) -> None:
        self._journal, self._steps = Lines(self.folder / EVENTS), Steps()

    @property
    def status(self) -> int | None:
        """Exit status, negative where a signal ended it; None while it has not ended."""
        return None if self.process is None or self.ended is None else self.process.returncode

    @property
    def seconds(self) -> float:
        """Seconds from its start to now, or to its end."""
        return 0.0 if self.began is None else (self.ended or time.monotonic()) - self.began

    def doing(self) -> str:
        """What it is at, in a word or two. Reads what its journal has gained since the last call."""
        if self.process is None:
            return "waiting"
        if self.ended is not None:
            return "ended" if self.status == 0 else f"ended with status {self.status}"
        grown = self._journal.look(_LOOK)
        self._steps = Steps() if grown.anew else self._steps
        self._steps.take(grown.data)
        begun = [phase.name for phase in self._steps.phases(self.began) if phase.state != "waiting"]
        at = begun[-1] if begun else "starting"
        repairs = sum(step.name.startswith("repair.") and step.name.endswith(".code") for step in self._steps.steps)
        return f"{at}, repair {repairs}" if at == "implementation" and repairs else at

    def close(self) -> None:
        """Keeps the last line that it wrote to standard error; many goals would else be many open files."""
        self._journal.close()
        if self.log is not None:
            self.log.seek(0)
            heeded = (line for line in self.log if self.heed and line.startswith(self.heed.encode()))
            self.heeded = [clean_line(line.decode("utf-8", "replace")) for line in itertools.islice(heeded, _HEEDED)]
            self.last_words = last_words(self.log)
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
                line.process, line.log = start(line.sprint, results, more)
                running.append(line)
            for line in list(running):
                if line.process is not None and line.process.poll() is not None:
                    line.ended = time.monotonic()
                    line.close()
                    running.remove(line)
            look()
            time.sleep(_TICK)


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
