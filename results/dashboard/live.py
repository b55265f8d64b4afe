"""A sprint or a sweep as it goes on, for everybody who looks at it: one look at its files each half second, shared.

Server-sent events: of a sprint `state` (phases and steps), `log`, `curves`, `usage`, `end`; of a sweep those of
`sweep_live.py`. Whoever comes, or comes back, first gets
all that there is; from then on what is new.
"""

import asyncio
import codecs
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool

from results.dashboard.controls import Controls
from results.dashboard.growing import Growing, Key, Point
from results.dashboard.listing import has_ended
from results.dashboard.places import Place
from results.dashboard.steps import Steps
from results.dashboard.sweep_live import SweepWatch
from results.dashboard.tails import Lines, Tail
from results.readable import line, plain
from results.store import EVENTS, METRICS

_TICK = 0.5
_SAMPLE_EVERY = 2.0
_BEAT = 15.0
MOST_VIEWERS = 64
LOG_SHOWN = 64 << 10
"""Bytes of each stream that a page gets of what was there before it."""
_MOST_SAMPLES = 1000
_BEHIND = 200
"""Events; a viewer that is farther behind is let go, and comes back by itself."""

Event = tuple[str, Any]
_log = logging.getLogger(__name__)


class TooMany(Exception):
    """No more viewers can be served."""


class _Log:
    """One stream of output, as text."""

    def __init__(self, path: Path, name: str) -> None:
        self._tail, self._name = Tail(path, first=LOG_SHOWN), name
        self._text = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._before = 0

    def look(self) -> list[Event]:
        grown = self._tail.look(LOG_SHOWN)
        if not grown.data and not grown.anew:
            return []
        if grown.anew or grown.skipped:
            self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        if grown.anew:
            self._text, self._before = "", 0
        text = plain(self._decode(grown.data))
        self._before += grown.skipped
        self._text = (self._text + text)[-LOG_SHOWN:]
        said = {"stream": self._name, "text": text, "anew": grown.anew, "skipped": grown.skipped}
        return [("log", said)]

    def close(self) -> None:
        self._tail.close()

    def whole(self) -> Event:
        return "log", {"stream": self._name, "text": self._text, "anew": True, "skipped": self._before}


class Watch:
    """One sprint's files. `look` and `whole` are called by one thread at a time."""

    def __init__(self, folder: Path, lab: Controls) -> None:
        self._folder, self._lab = folder, lab
        self._logs = [_Log(folder / f"{name}.log", name) for name in ("stdout", "stderr")]
        self._journal = Lines(folder / EVENTS)
        self._steps = Steps()
        self._curves = Growing(folder / METRICS)
        self._samples: list[dict[str, float]] = []
        self._sampled = float("-inf")
        self._state: dict[str, Any] = {}
        self.ended = False

    def look(self) -> list[Event]:
        """What is new."""
        process = self._lab.running().get(self._folder.name)  # first: what is read afterwards is at least as new
        events: list[Event] = []
        for data in self._journal.all(4 << 20):
            self._steps.take(data)
        for log in self._logs:
            events += log.look()
        anew, fresh = self._curves.look()
        if anew or fresh:
            events.append(("curves", self._fresh(anew, fresh)))
        if process is not None:
            events += self._usage()
        was, self._state = self._state, self._steps.as_json(process.since if process else None)
        self._state["running"] = process is not None
        if _lasting(was) != _lasting(self._state):
            events.append(("state", self._state))
        if process is None and not self.ended:
            self.ended = True
            events.append(("end", self._end()))
        elif process is not None:
            self.ended = False
        return events

    def _end(self) -> dict[str, Any]:
        said = self._lab.last_words(self._folder.name)
        return {"ended": bool(has_ended(self._folder / EVENTS)), "said": line(said, 600)}

    def close(self) -> None:
        """Lets go of the files."""
        for log in self._logs:
            log.close()
        self._journal.close()
        self._curves.close()

    def whole(self) -> list[Event]:
        """All that there is, for somebody who knows nothing."""
        curves = {"anew": True, "left_out": len(self._curves.left_out)}
        drawn = [curve.as_json() for curve in self._curves.curves.values()]
        events: list[Event] = [
            ("state", self._state),
            *(log.whole() for log in self._logs),
            ("curves", {**curves, "curves": drawn}),
            ("usage", {"anew": True, "samples": self._samples}),
        ]
        return [*events, ("end", self._end())] if self.ended else events

    def _fresh(self, anew: bool, fresh: dict[Key, list[Point]]) -> dict[str, Any]:
        curves = self._curves.curves
        if anew:
            drawn = [curve.as_json() for curve in curves.values()]
        else:
            drawn = [curves[key].as_json(points[-len(curves[key].points) :]) for key, points in fresh.items()]
        return {"anew": anew, "left_out": len(self._curves.left_out), "curves": drawn}

    def _usage(self) -> list[Event]:
        if time.monotonic() - self._sampled < _SAMPLE_EVERY:
            return []
        self._sampled = time.monotonic()
        found = self._lab.sample(self._folder.name)
        if not found:
            return []
        sample = {"at": round(time.time(), 2), **found}
        self._samples = [*self._samples[-_MOST_SAMPLES + 1 :], sample]
        return [("usage", {"anew": False, "samples": [sample]})]


class Watching(Protocol):
    """Somebody who looks at the files of one run that goes on."""

    def look(self) -> list[Event]:
        """What is new."""

    def whole(self) -> list[Event]:
        """All that there is."""

    def close(self) -> None:
        """Lets go of the files."""


def _watch(place: Place, lab: Controls) -> Watching:
    return SweepWatch(place, lab) if place.kind == "sweep" else Watch(place.path, lab)


Queue = asyncio.Queue[bytes | None]


@dataclass
class _Watched:
    """A run that somebody looks at."""

    watch: Watching
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    viewers: set[Queue] = field(default_factory=set)
    """Of those who know all that there was."""
    task: "asyncio.Task[None] | None" = None


class Hub:
    """Everybody who is looking at runs. Lives in the server's event loop."""

    def __init__(self, lab: Controls) -> None:
        self._lab = lab
        self._watched: dict[Path, _Watched] = {}
        """By the whole path: trials of two sweeps have the same names."""

    def admit(self) -> None:
        """Raises TooMany when there is no room for one more."""
        if sum(watched.users for watched in self._watched.values()) >= MOST_VIEWERS:
            raise TooMany

    async def stream(self, place: Place) -> AsyncIterator[bytes]:
        """The events of one run, as they are sent, until the viewer goes."""
        watched = self._watched.get(place.path)
        if watched is None:
            watched = self._watched[place.path] = _Watched(_watch(place, self._lab))
        watched.users += 1
        queue: Queue = asyncio.Queue()
        try:
            async with watched.lock:
                await self._publish(watched)
                known = [_encoded(event) for event in watched.watch.whole()]
                watched.viewers.add(queue)
                watched.task = watched.task or asyncio.create_task(self._go_on(watched))
            for data in known:
                yield data
            while (news := await _next(queue)) is not None:
                yield news
        finally:
            watched.users -= 1
            watched.viewers.discard(queue)
            if not watched.users:
                self._watched.pop(place.path, None)
                if watched.task is not None:
                    watched.task.cancel()
                watched.watch.close()

    async def _go_on(self, watched: _Watched) -> None:
        try:
            while True:
                await asyncio.sleep(_TICK)
                async with watched.lock:
                    await self._publish(watched)
        except Exception:
            _log.exception("looking at a run failed")
        finally:
            watched.task = None
            for queue in watched.viewers:
                queue.put_nowait(None)

    async def _publish(self, watched: _Watched) -> None:
        for event in await run_in_threadpool(watched.watch.look):
            data = _encoded(event)
            for queue in list(watched.viewers):
                if queue.qsize() > _BEHIND:
                    watched.viewers.discard(queue)
                    queue.put_nowait(None)
                else:
                    queue.put_nowait(data)


async def _next(queue: Queue) -> bytes | None:
    """What comes next, or a sign of life that says nothing; None when there is no more."""
    try:
        return await asyncio.wait_for(queue.get(), _BEAT)
    except TimeoutError:
        return b": still here\n\n"


def _lasting(state: dict[str, Any]) -> Any:
    """A state without what changes by the second."""
    phases = [(phase["name"], phase["state"]) for phase in state.get("phases", [])]
    return phases, state.get("steps"), state.get("running")


def _encoded(event: Event) -> bytes:
    """As text/event-stream has it. JSON in ASCII holds no line feed that would end a field."""
    name, data = event
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=True, allow_nan=False)}\n\n".encode()
