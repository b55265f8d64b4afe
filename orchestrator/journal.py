"""`events.jsonl`: one line for every step of a sprint that ended, durable before the next begins.

A sprint is written as if nothing could interrupt it; every question and every run goes through `step`. When it is
resumed, the steps that are on record return what they returned, and the first that is not is done.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from orchestrator.agents.errors import AgentError, AgentRefused, AgentsUnavailable
from orchestrator.errors import UsageProblem
from results.store import append_whole

EVENTS = "events.jsonl"
_KINDS: dict[str, type[AgentError]] = {kind.__name__: kind for kind in (AgentRefused, AgentsUnavailable)}
_T = TypeVar("_T")


class Journal:
    """The record of one sprint's steps. One process at a time has it; its threads may share it."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file. Raises UsageProblem when another process is at it, or it is not a journal."""
        self._lock = threading.Lock()
        self._file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._done = self._read(path)
        except BlockingIOError:
            self._file.close()
            raise UsageProblem(f"{path.parent.name} is still running") from None
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        """The steps by name. A last line that was torn by a crash is cut off: its step did not end."""
        self._file.seek(0)
        raw = self._file.read()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            self._file.truncate(len(whole))
        try:
            return {line["step"]: line for line in map(json.loads, whole.splitlines())}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UsageProblem(f"{path} is damaged: the sprint cannot be resumed") from None

    def done(self, name: str) -> bool:
        """Whether a step is on record."""
        return name in self._done

    def step(self, name: str, work: Callable[[], _T], *, final: bool = False) -> _T:
        """What `work` returns (plain JSON data), or what it returned when it was done before.

        An AgentError is an end too: it is raised again, then as now. `final`: without this step there is no going on,
        so its error is not put on record, and whoever resumes the sprint tries it again.
        """
        known = self._done.get(name)
        if known is None:
            known = self._do(name, work, final)
        if (error := known.get("error")) is not None:
            raise _KINDS.get(error["kind"], AgentsUnavailable)(error["text"])
        return known["result"]  # type: ignore[no-any-return]

    def _do(self, name: str, work: Callable[[], _T], final: bool) -> dict[str, Any]:
        began = time.monotonic()
        line: dict[str, Any] = {"step": name}
        try:
            line["result"] = work()
        except AgentError as error:
            if final:
                raise
            line["error"] = {"kind": type(error).__name__, "text": str(error)}
        line["time"] = now()
        line["seconds"] = round(time.monotonic() - began, 3)
        # ASCII, so that text which no encoding takes (lone surrogates) comes back as it was.
        raw = json.dumps(line, ensure_ascii=True).encode() + b"\n"
        with self._lock:
            append_whole(self._file, raw)
            os.fsync(self._file.fileno())
            self._done[name] = line
        return line

    def close(self) -> None:
        """Closes the file: another process may open it now."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def peek(path: Path) -> list[dict[str, Any]]:
    """The steps that are on record, for somebody who only looks; empty where there is nothing to read."""
    try:
        steps = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except (OSError, ValueError, RecursionError):
        return []
    return steps if all(isinstance(step, dict) for step in steps) else []


def now() -> str:
    """The time, in UTC, as records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
