"""PID 1 of the container: starts the experiment as another user, and is the only one who speaks to the host.

Sent in through standard input by the host (see channel.py) and needs nothing but Python 3.8's standard library.
Frames in both directions are one letter, four bytes of length (big endian) and that many bytes.

    host → runner   J job (JSON)   C code   L library file (path NUL bytes)   W more of a wheel (name NUL bytes)
                    G go   K stop now
    runner → host   H hello (JSON)   S started (JSON)   O output   E error output   M record (8-byte double t, line)
                    N the experiment is over (JSON)
                    F file (JSON)    D its bytes   Z its end (JSON)   A what was not sent (JSON)   X all is sent (JSON)
    both ways       T tunnel data (4-byte id, bytes; none: nothing more comes)
                    U tunnel credit (id, 4-byte count: so many bytes were passed on)
    runner → host   V the experiment broke a tunnel off (id)

The experiment is a child with another uid, in its own session, without capabilities; all that it can reach are three
pipes and, where the policy lists hosts, a port on loopback whose bytes go to the host's proxy. When it ends, or must
end, everything else in the pid namespace is killed before anything is collected.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import sys
import time
import zipfile
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

HEADER = struct.Struct(">cI")
CHUNK = 65536
TAIL = 32768  # bytes of each stream kept from what came after the output limit was hit
MAX_LINE = 65536
EXPERIMENT_ID = 65534
OWN_CLOCK_GRACE = 0.25  # seconds that the host has to end a run before PID 1 does it by itself
CHANNEL = 3  # the experiment's descriptor for metric records
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
PR_GET_NO_NEW_PRIVS = 39
WORKSPACE, LIBRARY = "/workspace", "/run/labsandbox/lib"
WHEELS, PACKAGES = "/run/labsandbox/wheels", "/run/packages"
RELAY = ("127.0.0.1", 3128)
TUNNELS = 32  # at once
WINDOW = 1 << 18  # bytes of one tunnel under way in each direction
SCRIPT = WORKSPACE + "/experiment.py"

libc = ctypes.CDLL(None, use_errno=True)


def send(kind: bytes, payload: bytes = b"") -> None:
    """Writes one frame to the host, whole."""
    data = memoryview(HEADER.pack(kind, len(payload)) + payload)
    while data:
        data = data[os.write(1, data) :]


def send_json(kind: bytes, value: object) -> None:
    send(kind, json.dumps(value).encode())


def receive() -> tuple[bytes, bytes]:
    """Reads one frame from the host; (b"", b"") when the host is gone."""
    head = read_exactly(HEADER.size)
    if head is None:
        return b"", b""
    kind, length = HEADER.unpack(head)
    body = read_exactly(length)
    return (b"", b"") if body is None else (kind, body)


def read_exactly(count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(0, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def prctl(option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(%d)" % option)


def write_file(path: str, data: bytes, mode: int = 0o644) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def become_experiment() -> None:
    """Gives up uid 0 for good."""
    os.setgroups([])
    os.setresgid(EXPERIMENT_ID, EXPERIMENT_ID, EXPERIMENT_ID)
    os.setresuid(EXPERIMENT_ID, EXPERIMENT_ID, EXPERIMENT_ID)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


class Stream:
    """One of the experiment's pipes: passes on what comes, then keeps only the tail and counts the rest."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.tail = b""
        self.dropped = 0
        self.open = True
        os.set_blocking(descriptor, False)

    def read(self) -> bytes:
        """Bytes, b"" when there is nothing now; closes itself at the end."""
        try:
            data = os.read(self.descriptor, CHUNK)
        except BlockingIOError:
            return b""
        if not data:
            self.open = False
            os.close(self.descriptor)
        return data

    def keep_tail(self, data: bytes) -> None:
        joined = self.tail + data
        self.tail = joined[-TAIL:]
        self.dropped += len(joined) - len(self.tail)


class Records:
    """Whole lines of the metric pipe, each stamped with its time; lines that are too long are counted."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.partial = b""
        self.skipping = False
        self.too_long = 0

    def feed(self, data: bytes) -> None:
        now = struct.pack(">d", time.monotonic() - self.started)
        *lines, self.partial = (self.partial + data).split(b"\n")
        for line in lines:
            if self.skipping or len(line) > MAX_LINE:
                self.too_long += 1
                self.skipping = False
            elif line:
                send(b"M", now + line)
        if len(self.partial) > MAX_LINE:
            self.skipping, self.partial = True, b""


class Tunnel:
    """One connection of the experiment to the relay."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.number = connection.fileno()
        self.under_way = 0  # bytes sent to the host that it has not passed on yet
        self.waiting = b""  # bytes from the host that the experiment has not taken yet
        self.ended = self.ending = False  # no more comes from the experiment; from the host


class Relay:
    """Carries bytes between a port on loopback and the channel. What they mean is decided by the host's proxy."""

    def __init__(self) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(RELAY)
        self.listener.listen(TUNNELS)
        self.listener.setblocking(False)
        self.tunnels: dict[int, Tunnel] = {}
        self.last = 0

    def readers(self) -> list[int]:
        """Descriptors that something is taken from when it comes."""
        open_for_more = [self.listener.fileno()] if len(self.tunnels) < TUNNELS else []
        return open_for_more + [t.number for t in self.tunnels.values() if not t.ended and t.under_way < WINDOW]

    def writers(self) -> list[int]:
        return [t.number for t in self.tunnels.values() if t.waiting]

    def pump(self, readable: list[int], writable: list[int]) -> None:
        if self.listener.fileno() in readable:
            with suppress(OSError):
                connection, _ = self.listener.accept()
                connection.setblocking(False)
                self.last += 1
                self.tunnels[self.last] = Tunnel(connection)
        for number, tunnel in list(self.tunnels.items()):
            try:
                if tunnel.number in readable:
                    self.take(number, tunnel)
                if tunnel.number in writable:
                    self.give(number, tunnel)
            except BlockingIOError:
                pass
            except OSError:
                self.close(number)
                send(b"V", struct.pack(">I", number))

    def take(self, number: int, tunnel: Tunnel) -> None:
        data = tunnel.socket.recv(min(CHUNK, WINDOW - tunnel.under_way))
        tunnel.under_way += len(data)
        tunnel.ended = not data
        send(b"T", struct.pack(">I", number) + data)

    def give(self, number: int, tunnel: Tunnel) -> None:
        count = tunnel.socket.send(tunnel.waiting)
        tunnel.waiting = tunnel.waiting[count:]
        send(b"U", struct.pack(">II", number, count))
        if tunnel.ending and not tunnel.waiting:
            self.close(number)

    def hear(self, kind: bytes, body: bytes) -> None:
        """A frame of the host's about a tunnel; one that is gone meanwhile is nobody's business."""
        (number,) = struct.unpack_from(">I", body)
        tunnel = self.tunnels.get(number)
        if tunnel is None:
            return
        if kind == b"U":
            tunnel.under_way -= struct.unpack_from(">I", body, 4)[0]
        elif len(body) > 4:
            tunnel.waiting += body[4:]
        else:
            tunnel.ending = True
            if not tunnel.waiting:
                self.close(number)

    def close(self, number: int) -> None:
        tunnel = self.tunnels.pop(number)
        tunnel.socket.close()


class Run:
    """The experiment's process, from fork to the last byte of its pipes."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.output_left = job["output_bytes"]
        self.metrics_left = job["metrics_bytes"]
        self.ended: str | None = (
            None  # why it was ended from here: "stopped", "output_limit", "metrics_limit", "host_gone"
        )
        self.status: int | None = None
        self.relay = Relay() if job["relay"] else None
        wake_read, self.wake_write = os.pipe()
        self.wake_read = wake_read
        os.set_blocking(wake_read, False)
        os.set_blocking(self.wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write)

    def start(self) -> None:
        """Forks the experiment; raises RuntimeError if it could not be started as it must be."""
        out, err, met, setup = (os.pipe() for _ in range(4))
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.child(out[1], err[1], met[1], setup[1])
            except BaseException as error:
                os.write(setup[1], repr(error).encode())
            finally:
                os._exit(127)
        for pair in (out, err, met, setup):
            os.close(pair[1])
        problem = os.read(setup[0], 4096)  # execve closes the other end
        os.close(setup[0])
        if problem:
            raise RuntimeError("cannot start the experiment: " + problem.decode(errors="replace"))
        # A second clock: the host's may be stopped, or wait for a terminal that does not read, while this process
        # waits to write to it. The handler runs even then.
        signal.signal(signal.SIGALRM, self.out_of_time)
        signal.setitimer(signal.ITIMER_REAL, self.job["wall_s"] + OWN_CLOCK_GRACE)
        self.streams = {b"O": Stream(out[0]), b"E": Stream(err[0])}
        self.metric_pipe = Stream(met[0])
        self.records = Records(self.started)
        send_json(b"S", {"pid": self.pid})

    def child(self, out: int, err: int, met: int, setup: int) -> None:
        os.setsid()
        signal.set_wakeup_fd(-1)
        # Python ignores SIGPIPE, and an ignored signal survives execve.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDONLY)
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (null, out, err, met)]
        for target, source in enumerate(moved):
            os.dup2(source, target)
        os.closerange(CHANNEL + 1, setup)
        os.closerange(setup + 1, 4096)
        # The kernel shall pick the experiment, not this runner, when memory is out.
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.job["open_files"],) * 2)
        os.umask(0o022)
        become_experiment()
        prctl(PR_SET_DUMPABLE, 1)
        environment = dict(self.job["environment"])
        environment["PATH"] = os.path.dirname(sys.executable) + ":/usr/local/bin:/usr/bin:/bin"
        environment["PYTHONPATH"] = LIBRARY + ":" + PACKAGES
        environment["LAB_CHANNEL_FD"] = str(CHANNEL)
        environment["LAB_DEADLINE"] = repr(self.started + self.job["wall_s"])
        os.chdir(WORKSPACE)
        os.execve(sys.executable, [sys.executable, "-u", SCRIPT], environment)

    def out_of_time(self, *_: object) -> None:
        self.ended = self.ended or "timeout"
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)

    def wait(self) -> None:
        """Passes on output, records and the host's word until the experiment is over."""
        while self.status is None and self.ended is None:
            pipes = [s.descriptor for s in (*self.streams.values(), self.metric_pipe) if s.open]
            readers: list[int] = self.relay.readers() if self.relay else []
            writers: list[int] = self.relay.writers() if self.relay else []
            ready, writable, _ = select.select([0, self.wake_read, *pipes, *readers], writers, [])
            if self.wake_read in ready:
                os.read(self.wake_read, 4096)
                self.reap()
            if self.relay:
                self.relay.pump(ready, writable)
            if 0 in ready:
                self.hear(*receive())
            self.pump(ready)
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.seconds = time.monotonic() - self.started
        self.kill_everything_else()
        self.drain()

    def hear(self, kind: bytes, body: bytes) -> None:
        if kind in (b"T", b"U") and self.relay:
            self.relay.hear(kind, body)
        else:
            self.ended = "host_gone" if kind == b"" else "stopped"

    def pump(self, ready: list[int]) -> None:
        for kind, stream in self.streams.items():
            if stream.open and stream.descriptor in ready:
                self.pass_on(kind, stream, stream.read())
        if self.metric_pipe.open and self.metric_pipe.descriptor in ready:
            self.pass_records(self.metric_pipe.read())

    def pass_on(self, kind: bytes, stream: Stream, data: bytes) -> None:
        taken, rest = data[: self.output_left], data[self.output_left :]
        self.output_left -= len(taken)
        if taken:
            send(kind, taken)
        if rest:
            stream.keep_tail(rest)
            self.ended = self.ended or "output_limit"

    def pass_records(self, data: bytes) -> None:
        if len(data) > self.metrics_left:
            self.ended = self.ended or "metrics_limit"
            return
        self.metrics_left -= len(data)
        self.records.feed(data)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.status = status

    def kill_everything_else(self) -> None:
        """Nothing of the experiment lives on: not a daemon, not an orphan that holds a pipe."""
        signal.set_wakeup_fd(-1)
        while True:
            with suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            try:
                while True:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                    if pid == 0:
                        break
                    if pid == self.pid:
                        self.status = status
            except ChildProcessError:
                return
            time.sleep(0.002)

    def drain(self) -> None:
        """What was still in the pipes when the last writer died."""
        for kind, stream in self.streams.items():
            while stream.open:
                self.pass_on(kind, stream, stream.read())
        while self.metric_pipe.open:
            self.pass_records(self.metric_pipe.read())
        for kind, stream in self.streams.items():
            if stream.dropped:
                note = b"\n[... %d bytes dropped ...]\n" % stream.dropped
                send(kind, note)
            if stream.tail:
                send(kind, stream.tail)


class Skipped:
    """What was there and does not come back: how many, and the first names with the reason."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[list[str]] = []

    def add(self, name: bytes, reason: str) -> None:
        self.count += 1
        if len(self.first) < 100:
            self.first.append([os.fsdecode(name[:200]), reason])


def collect(job: dict[str, Any]) -> None:
    """Sends the regular files of /workspace, those of /workspace/out first.

    Runs in a child that has become the experiment's user: PID 1 cannot read another user's files, and what it
    cannot reach it cannot be tricked into sending.
    """
    become_experiment()
    left, files_left, skipped = job["artifact_bytes"], job["artifact_files"], Skipped()
    found = sorted(walk(os.fsencode(WORKSPACE), skipped), key=lambda f: (not f[0].startswith(b"out/"), f))
    for name, path, size in found:
        if files_left == 0 or size > left:
            skipped.add(name, "too many files" if files_left == 0 else "over the size limit")
            continue
        sent = send_artifact(name, path, left)
        if sent is None:
            skipped.add(name, "not readable")
            continue
        left -= sent
        files_left -= 1
    send_json(b"A", {"skipped": skipped.count, "first": skipped.first})


def walk(top: bytes, skipped: Skipped) -> Iterator[tuple[bytes, bytes, int]]:
    """Yields (name, path, size) of regular files below `top`; never follows a link."""
    folders = [b""]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(os.path.join(top, folder)))
        except OSError:
            skipped.add(folder, "not readable")
            continue
        for entry in entries:
            name = os.path.join(folder, entry.name)
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError:
                skipped.add(name, "not readable")
                continue
            if stat.S_ISDIR(info.st_mode):
                folders.append(name)
            elif not stat.S_ISREG(info.st_mode):
                skipped.add(name, "not a regular file")
            elif name != b"experiment.py":
                yield name, entry.path, info.st_size


def send_artifact(name: bytes, path: bytes, left: int) -> int | None:
    """Streams one file; returns its bytes, or None if it could not be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    sent = 0
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        send_json(b"F", {"name": os.fsdecode(name)})
        while sent < left:
            data = file.read(min(CHUNK, left - sent))
            if not data:
                break
            send(b"D", data)
            sent += len(data)
    send_json(b"Z", {"bytes": sent})
    return sent


def in_child(work: Callable[[Any], None], argument: object) -> bool:
    """Runs `work` in a forked child and waits; True if it ended well."""
    pid = os.fork()
    if pid == 0:
        try:
            work(argument)
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def install(names: list[str]) -> None:
    """Unpacks wheels into PACKAGES, as the binary distribution format lays them out (PyPA, "Binary distribution
    format", spreading). Runs as the experiment's user: an archive that was made to do harm can do no more than it.
    """
    become_experiment()
    for name in names:
        with zipfile.ZipFile(os.path.join(WHEELS, name)) as wheel:
            for entry in wheel.infolist():
                first, _, rest = entry.filename.partition("/")
                if first.endswith(".data"):
                    scheme, _, rest = rest.partition("/")
                    entry.filename = rest if scheme in ("purelib", "platlib") else ""
                if entry.filename and not entry.is_dir():
                    wheel.extract(entry, PACKAGES)


def facts() -> dict[str, object]:
    """What this process is held to, as the kernel tells it here; under gVisor nobody else can tell the host."""
    found: dict[str, object] = {"python": list(sys.version_info[:3]), "executable": sys.executable}
    for name in ("status", "mountinfo", "limits", "net/dev"):
        with suppress(OSError), open("/proc/self/" + name, errors="replace") as file:
            found[name] = file.read(65536)
    found["open_files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    found["no_new_privs"] = libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
    return found


def receive_job() -> dict[str, Any]:
    """Takes everything up to "go" and puts it where it belongs; the job, or {} when the host is gone."""
    job: dict[str, Any] = {}
    os.makedirs(WHEELS, 0o755)
    while True:
        kind, body = receive()
        if kind == b"J":
            job = json.loads(body.decode())
        elif kind == b"C":
            write_file(SCRIPT, body)
        elif kind == b"L":
            path, _, data = body.partition(b"\0")
            target = os.path.join(LIBRARY, path.decode())
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            write_file(target, data)
        elif kind == b"W":
            name, _, data = body.partition(b"\0")
            with open(os.path.join(WHEELS, name.decode()), "ab") as file:
                file.write(data)
        elif kind == b"G":
            return job
        else:
            return {}


def exit_of(status: int | None) -> dict[str, int | None]:
    """A wait status as the host takes it."""
    return {
        "returncode": os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None,
    }


def main() -> None:
    prctl(PR_SET_DUMPABLE, 0)
    os.umask(0o022)
    send_json(b"H", facts())
    job = receive_job()
    if not job:
        return
    wheels = sorted(os.listdir(WHEELS))
    if wheels and not in_child(install, wheels):
        raise RuntimeError("cannot unpack the packages")
    shutil.rmtree(WHEELS)
    os.mkdir(WORKSPACE + "/out")
    os.chmod(WORKSPACE + "/out", 0o777)

    run = Run(job)
    run.start()
    run.wait()
    if run.ended == "host_gone":
        return
    status = run.status if run.ended is None else None
    over = {"ended": run.ended or "exited", "run_s": run.seconds, **exit_of(status)}
    send_json(b"N", over)
    collected = in_child(collect, job)
    send_json(
        b"X",
        {
            "stdout_dropped_bytes": run.streams[b"O"].dropped,
            "stderr_dropped_bytes": run.streams[b"E"].dropped,
            "records_too_long": run.records.too_long,
            "collected": collected,
        },
    )
    while receive()[0]:  # stay until the host has read the control group
        pass


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise
