"""The talk with one container's PID 1, from hello to exit: who waits for whom, how long, and how much is taken.

PID 1 is ours and keeps the limits; the host does not rely on it and counts for itself.
"""

import json
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from executor.artifacts import safe_name
from executor.channel import Channel, frame
from executor.errors import ChannelError
from executor.experiment import (
    RECORD,
    AnyRecord,
    Artifact,
    ArtifactWriter,
    MetricRecord,
    Sink,
)
from policies.model import Limits

START_GRACE = 60.0
"""Seconds from the container's start until PID 1 speaks, and from "go" until the experiment runs."""
STOP_GRACE = 2.0
"""Seconds of silence after which a container that was told to stop is killed."""
GPU_STOP_GRACE = 10.0
"""The same with GPUs: PID 1 is silent until the driver has let go of what the experiment held on a device."""
COLLECT_GRACE = 30.0
"""Seconds in all for sending artifacts back; and before that, for what is still in the pipes when it was told to stop."""
TICK = 1.0
_EXCERPT = 128 * 1024
_SLACK = 256 * 1024  # notes and tails that PID 1 adds beyond the output limit
_MAX_KEPT_RECORDS = 20_000
_MAX_SKIPPED = 100  # that PID 1 names
_TIME = struct.Struct(">d")

_ENDS = {"exited", "stopped", "timeout", "output_limit", "metrics_limit"}

Stream = Literal["stdout", "stderr"]


class Excerpt:
    """Head and tail of a stream, for the record; the whole of it goes to the sink."""

    def __init__(self) -> None:
        self.total = 0
        self._head, self._tail = bytearray(), bytearray()

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = _EXCERPT - len(self._head)
        self._head += data[:room]
        self._tail += data[max(0, room) :]
        if len(self._tail) > 2 * _EXCERPT:
            del self._tail[:-_EXCERPT]

    def text(self) -> str:
        tail = bytes(self._tail[-_EXCERPT:])
        missing = self.total - len(self._head) - len(tail)
        note = f"\n[... {missing} bytes more in the log file ...]\n".encode() if missing else b""
        return (bytes(self._head) + note + tail).decode("utf-8", "replace")


@dataclass
class Report:
    """What the talk brought."""

    started_at: datetime | None = None
    ended: str = "container_gone"
    """`exited`, `output_limit`, `metrics_limit`, `timeout`, `cancelled`, `watched_memory`, `watched_pids`,
    `gpu_memory`, `host_memory`, or `container_gone`."""
    returncode: int | None = None
    signal: int | None = None
    run_s: float = 0.0
    collect_s: float = 0.0
    out: Excerpt = field(default_factory=Excerpt)
    err: Excerpt = field(default_factory=Excerpt)
    dropped: dict[str, int] = field(default_factory=lambda: {"stdout": 0, "stderr": 0})
    plans_and_runs: list[AnyRecord] = field(default_factory=list)
    last_metrics: dict[tuple[object, ...], AnyRecord] = field(default_factory=dict)
    metrics_total: int = 0
    metrics_rejected: int = 0
    artifacts: list[Artifact] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    problem: str = ""
    """Why the container is gone, when it is."""


class Tunnels(Protocol):
    """Who takes the frames of the experiment's connections to the relay; see executor/egress.py."""

    def feed(self, kind: bytes, payload: bytes) -> None: ...


StopReason = Literal["timeout", "cancelled", "watched_memory", "watched_pids", "gpu_memory", "host_memory"]


class Conversation:
    """One talk, after the greeting. `go`, then `listen`; `stop` at any time after `go`."""

    def __init__(self, channel: Channel, limits: Limits, sink: Sink, tunnels: Tunnels | None = None) -> None:
        self._channel = channel
        self._tunnels = tunnels
        self._limits = limits
        self._sink = sink
        self.report = Report()
        self._output_bytes = self._metric_bytes = self._artifact_bytes = 0
        self._writer: ArtifactWriter | None = None
        self._name = ""
        self._digest = sha256()
        self._file_bytes = 0
        self._stopping: str | None = None
        self._started = self._stopped = 0.0
        self._over: float | None = None

    def go(self, assignment: Iterable[bytes]) -> None:
        """Sends the experiment, and starts it and its clock. Raises ChannelError."""
        for part in assignment:
            self._channel.send(part)
        self._channel.send(frame(b"G"))
        _expect(self._channel, b"S")
        self._started = time.monotonic()
        self.report.started_at = datetime.now(UTC)

    def listen(self, tick: Callable[[float], None], every: float = TICK) -> None:
        """Takes what comes until the exit frame or a deadline. Raises ChannelError, or what the sink raises.

        `tick` is called about every `every` seconds with the seconds since the start. What breaks after the
        experiment is over costs artifacts, not the outcome.
        """
        try:
            self._listen(tick, every)
        except ChannelError as error:
            if self._over is None:
                self.report.run_s = self.report.run_s or time.monotonic() - self._started
                raise
            self.abandon_artifact()
            self.report.skipped.append(f"collecting the artifacts broke off: {error}")

    def _listen(self, tick: Callable[[float], None], every: float) -> None:
        next_tick = self._started
        heard = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= next_tick:
                tick(now - self._started)
                next_tick = now + every
            if self._deadline(heard) <= now:
                if self._stopping is None and self._over is None:
                    self.stop("timeout")
                    heard = now
                    continue
                self.report.ended = self._stopping or self.report.ended
                self.report.problem = "PID 1 did not answer in time"
                return
            item = self._channel.next(min(next_tick, self._deadline(heard)) - now)
            if item is not None:
                heard = time.monotonic()
                if self._take(*item):
                    return

    def stop(self, reason: StopReason) -> None:
        """Asks PID 1 to end the experiment and to send what is there."""
        if self._stopping is None:
            self._stopping = reason
            self.report.ended = reason
            self._stopped = time.monotonic()
            self.report.run_s = self._stopped - self._started
            try:
                self._channel.send(frame(b"K"))
            except ChannelError:
                pass  # listening will find the same, with what was said before

    def _deadline(self, heard: float) -> float:
        if self._over is not None:
            return self._over + COLLECT_GRACE
        if self._stopping is not None:
            # Were every frame to put it off, the clock would be PID 1's and not ours.
            grace = GPU_STOP_GRACE if self._limits.gpus else STOP_GRACE
            return min(heard + grace, self._stopped + COLLECT_GRACE)
        return self._started + self._limits.wall

    def _take(self, kind: bytes, payload: bytes) -> bool:
        """Handles one frame; True when it was the last."""
        if kind in b"OE":
            self._log("stdout" if kind == b"O" else "stderr", payload)
        elif kind == b"M":
            self._record(payload)
        elif kind == b"N":
            self._end(_json(payload))
        elif kind in b"FDZ":
            self._artifact(kind, payload)
        elif kind == b"A":
            self._note_skipped(_json(payload))
        elif kind in b"TUV" and self._tunnels is not None:
            self._tunnels.feed(kind, payload)
        elif kind == b"X":
            self._exit(_json(payload))
            return True
        else:
            raise ChannelError(f"the container sent {kind!r} while the experiment ran")
        return False

    def _log(self, stream: Stream, data: bytes) -> None:
        self._output_bytes += len(data)
        if self._output_bytes > self._limits.output + _SLACK:
            raise ChannelError("the container sent more output than its limit")
        (self.report.out if stream == "stdout" else self.report.err).add(data)
        self._sink.log(stream, data)

    def _record(self, payload: bytes) -> None:
        self._metric_bytes += max(1, len(payload) - 8)  # the time stamp is no cost of the experiment's
        if self._metric_bytes > self._limits.metrics:
            raise ChannelError("the container sent more metrics than its limit")
        record = parse_record(payload)
        if record is None:
            self.report.metrics_rejected += 1
            return
        self.report.metrics_total += 1
        self._sink.record(record)
        if isinstance(record, MetricRecord):
            if len(self.report.last_metrics) < _MAX_KEPT_RECORDS:
                self.report.last_metrics[(record.arm, record.seed, record.phase)] = record
        elif len(self.report.plans_and_runs) < _MAX_KEPT_RECORDS:
            self.report.plans_and_runs.append(record)

    def _artifact(self, kind: bytes, payload: bytes) -> None:
        if kind == b"F":
            self._open_artifact(str(_json(payload).get("name", "")))
        elif self._writer is None:
            if kind == b"D" and not self._name:
                raise ChannelError("the container sent file data outside a file")
        elif kind == b"D":
            self._artifact_bytes += len(payload)
            self._file_bytes += len(payload)
            if self._artifact_bytes > self._limits.artifacts:
                raise ChannelError("the container sent more artifacts than its limit")
            self._writer.write(payload)
            self._digest.update(payload)
        else:
            self._commit_artifact(self._writer)

    def _commit_artifact(self, writer: ArtifactWriter) -> None:
        try:
            writer.commit()
        except (IsADirectoryError, NotADirectoryError):
            self.abandon_artifact()
            self._skip(f"{self._name}: another artifact has that name")
            return
        self._writer = None
        digest = self._digest.hexdigest()
        self.report.artifacts.append(Artifact(name=self._name, bytes=self._file_bytes, sha256=digest))

    def _open_artifact(self, raw_name: str) -> None:
        self.abandon_artifact()
        name = safe_name(raw_name)
        self._name = name or "(refused)"
        if len(self.report.artifacts) >= self._limits.artifact_files:
            raise ChannelError("the container sent more artifacts than its limit")
        if name is None or any(artifact.name == name for artifact in self.report.artifacts):
            self._skip(f"{raw_name[:200]!a}: a name that no artifact may have")
            return
        try:
            self._writer = self._sink.artifact(name)
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            # Two hostile names can come to mean one file, or a file and a folder.
            self._skip(f"{name}: another artifact has that name")
            return
        self._digest, self._file_bytes = sha256(), 0

    def abandon_artifact(self) -> None:
        """Drops a file that was not sent whole."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None

    def _note_skipped(self, said: dict[str, Any]) -> None:
        first = said.get("first") or []
        if not isinstance(first, list):
            raise ChannelError("the container's list of what it skipped is malformed")
        for entry in first[:_MAX_SKIPPED]:
            if not isinstance(entry, list) or len(entry) != 2:
                raise ChannelError("the container's list of what it skipped is malformed")
            name, reason = (str(part) for part in entry)
            self._skip(f"{safe_name(name) or ascii(name[:200])}: {ascii(reason[:100])[1:-1]}")
        more = int(_number(said.get("skipped"))) - len(first)
        if more > 0:
            self._skip(f"and {more} more")

    def _skip(self, text: str) -> None:
        if len(self.report.skipped) > self._limits.artifact_files + _MAX_SKIPPED:
            raise ChannelError("the container sent more artifacts than its limit")
        self.report.skipped.append(text)

    def _end(self, said: dict[str, Any]) -> None:
        """The experiment's process is over."""
        report = self.report
        ended = said.get("ended")
        # It ends once: a second end would start the clock of collecting anew.
        if self._over is not None or not isinstance(ended, str) or ended not in _ENDS:
            raise ChannelError("the container's report of the experiment's end is malformed")
        now = time.monotonic()
        if self._stopping is None:
            report.run_s = min(_number(said.get("run_s")), now - self._started)
        report.ended = self._stopping if ended == "stopped" and self._stopping else str(ended)
        if report.ended == "exited":
            report.returncode, report.signal = _status(said.get("returncode")), _status(said.get("signal"))
        self._over = now

    def _exit(self, said: dict[str, Any]) -> None:
        report = self.report
        self.abandon_artifact()
        report.collect_s = time.monotonic() - (self._over or time.monotonic())
        for stream in ("stdout", "stderr"):
            report.dropped[stream] = int(_number(said.get(f"{stream}_dropped_bytes")))
        report.metrics_rejected += int(_number(said.get("records_too_long")))
        if said.get("collected") is not True:
            report.skipped.append("collecting the artifacts broke off")


def greet(channel: Channel, opening: Iterable[bytes]) -> dict[str, Any]:
    """Sends what PID 1 needs and waits for its greeting: what it sees of itself. Raises ChannelError."""
    for part in opening:
        channel.send(part)
    return _json(_expect(channel, b"H"))


def _expect(channel: Channel, kind: bytes) -> bytes:
    item = channel.next(START_GRACE)
    if item is None:
        raise ChannelError(f"the container did not answer within {START_GRACE:g} s")
    if item[0] != kind:
        raise ChannelError(f"the container sent {item[0]!r} where {kind!r} was due")
    return item[1]


def parse_record(payload: bytes) -> AnyRecord | None:
    """A record from PID 1's time stamp (8 bytes) and the experiment's line; None if it is not valid."""
    try:
        data = json.loads(payload[8:])
        if not isinstance(data, dict):
            return None
        return RECORD.validate_python({**data, "t": float(_TIME.unpack(payload[:8])[0])})
    except (ValueError, OverflowError, ValidationError, RecursionError, struct.error):
        return None


def _json(payload: bytes) -> dict[str, Any]:
    try:
        data = json.loads(payload)
    except (ValueError, RecursionError):
        raise ChannelError("the container sent a frame that is not JSON") from None
    if not isinstance(data, dict):
        raise ChannelError("the container sent a frame that is not a JSON object")
    return data


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 62:
        return float(value)
    raise ChannelError("the container sent a number that is malformed")


def _status(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 256 else None
