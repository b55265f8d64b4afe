"""PID 1 of the container: starts the experiment as another user, and is the only one who speaks to the host.

Sent in through standard input by the host (see channel.py) and needs nothing but Python 3.8's standard library.
Frames in both directions are one letter, four bytes of length (big endian) and that many bytes.

    host → runner   J job (JSON)   C code   L library file (path NUL bytes)   W more of a wheel (name NUL bytes)
                    P start an interpreter ahead of its code (JSON)   G go   K stop now
    runner → host   H hello (JSON)   R it waits (JSON)
                    S started (JSON)   O output   E error output   M record (8-byte double t, line)
                    N the experiment is over (JSON)
                    F file (JSON)    D its bytes   Z its end (JSON)   A what was not sent (JSON)   X all is sent (JSON)
    both ways       T tunnel data (4-byte id, bytes; none: nothing more comes)
                    U tunnel credit (id, 4-byte count: so many bytes were passed on)
    runner → host   V the experiment broke a tunnel off (id)

The experiment is a child with another uid, in its own session, without capabilities; all that it can reach are three
pipes and, where the policy lists hosts, a port on loopback whose bytes go to the host's proxy. When it ends, or must
end, everything else in the pid namespace is killed before anything is collected. In a warm container the child is there
before its code, with modules loaded, and waits; nothing of an experiment has come in then.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
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
NVIDIA, LIBRARIES = "/dev/nvidiactl", "/run/nvidia/lib"
HOOKS = "nvidia-ctk-hook"
WINDOW = 1 << 18  # bytes of one tunnel under way in each direction
SCRIPT = WORKSPACE + "/experiment.py"
AHEAD = "from lab_ahead import wait; wait(%d, %d)"  # what runs in an interpreter that was started ahead of its code

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
        import socket  # with its constants, it takes longer to load than most of what is here

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


class Interpreter:
    """The experiment's process and our ends of its pipes. Raises RuntimeError if it could not be started as it must be."""

    def __init__(self, job: dict[str, Any], ahead: bool = False) -> None:
        """`job`: the `environment` and `open_files` that it starts with. `ahead`: without code, which comes by `begin`."""
        out, err, met, setup = (os.pipe() for _ in range(4))
        go, said = (os.pipe(), os.pipe()) if ahead else (None, None)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                child(job, [out[1], err[1], met[1]], [go[0], said[1]] if go and said else [], setup[1])
            except BaseException as error:
                os.write(setup[1], repr(error).encode())
            finally:
                os._exit(127)
        for pair in (out, err, met, setup):
            os.close(pair[1])
        self.go = self.said = -1
        if go and said:
            self.go, self.said = go[1], said[0]
            os.close(go[0])
            os.close(said[1])
        problem = os.read(setup[0], 4096)  # execve closes the other end
        os.close(setup[0])
        if problem:
            raise RuntimeError("cannot start the experiment: " + problem.decode(errors="replace"))
        self.out, self.err, self.met = (Stream(pair[0]) for pair in (out, err, met))

    def wait_until_ready(self) -> list[str]:
        """Waits until the modules are loaded; the names of those that could not be."""
        said = b""
        while not said.endswith(b"\n"):
            more = os.read(self.said, CHUNK)
            if not more:
                raise RuntimeError(
                    "the interpreter ended before its code came: " + self.err.read().decode(errors="replace")
                )
            said += more
        os.close(self.said)
        return said.decode().split()

    def begin(self, environment: dict[str, str]) -> None:
        """Lets it run the code. What loading said is nobody's output."""
        for stream in (self.out, self.err):
            while stream.open and stream.read():
                pass
        with os.fdopen(self.go, "wb") as go:
            go.write(b"\0".join(os.fsencode(name + "=" + value) for name, value in environment.items()))


def child(job: dict[str, Any], outputs: list[int], waiting: list[int], setup: int) -> None:
    """Becomes the experiment: nothing of this process stays but its pipes.

    waiting: where one that is ahead of its code reads that it comes, and where it says that it waits.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    # Python ignores SIGPIPE, and an ignored signal survives execve.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    ends = [os.open("/dev/null", os.O_RDONLY), *outputs, *waiting]
    for target, source in enumerate([fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 64) for end in ends]):
        os.dup2(source, target)
    os.closerange(len(ends), setup)
    os.closerange(setup + 1, 4096)
    # The kernel shall pick the experiment, not this runner, when memory is out.
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (job["open_files"],) * 2)
    os.umask(0o022)
    become_experiment()
    prctl(PR_SET_DUMPABLE, 1)
    os.chdir(WORKSPACE)
    program = ["-c", AHEAD % (len(ends) - 2, len(ends) - 1)] if waiting else [SCRIPT]
    os.execve(sys.executable, [sys.executable, "-u", *program], job["environment"])


def environment_of(job: dict[str, Any], deadline: float) -> dict[str, str]:
    """All of the experiment's environment."""
    return {
        **job["environment"],
        "PATH": os.path.dirname(sys.executable) + ":/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": LIBRARY + ":" + PACKAGES,
        "LAB_CHANNEL_FD": str(CHANNEL),
        "LAB_DEADLINE": repr(deadline),
    }


class Run:
    """The experiment's process, from its beginning to the last byte of its pipes."""

    def __init__(self, job: dict[str, Any], ahead: Interpreter | None = None) -> None:
        self.job = job
        self.ahead = ahead
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
        """Starts the experiment's clock and its code; raises RuntimeError if that could not be done as it must be."""
        self.started = time.monotonic()
        environment = environment_of(self.job, self.started + self.job["wall_s"])
        if self.ahead is not None:
            process = self.ahead
            process.begin(environment)
        else:
            process = Interpreter({**self.job, "environment": environment})
        self.pid = process.pid
        # A second clock: the host's may be stopped, or wait for a terminal that does not read, while this process
        # waits to write to it. The handler runs even then.
        signal.signal(signal.SIGALRM, self.out_of_time)
        signal.setitimer(signal.ITIMER_REAL, self.job["wall_s"] + OWN_CLOCK_GRACE)
        self.streams = {b"O": process.out, b"E": process.err}
        self.metric_pipe = process.met
        self.records = Records(self.started)
        send_json(b"S", {"pid": self.pid})

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
        # Nothing is taken after a gap: the two ends of a record would be one that nobody wrote.
        taken = data[: self.metrics_left]
        self.metrics_left -= len(taken)
        self.records.feed(taken)
        if len(taken) < len(data):
            self.ended = self.ended or "metrics_limit"

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
    import zipfile  # with what it needs, it takes as long to load as everything else here

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


def visible_gpus(write: int) -> None:
    """Writes what the experiment's user finds of NVIDIA devices, as JSON: the UUIDs that NVML and that CUDA list."""
    become_experiment()
    found: dict[str, object] = {}
    for name, look in (("nvml", nvml_devices), ("cuda", cuda_devices)):
        try:
            found[name] = look()
        except (OSError, AttributeError, RuntimeError) as error:
            found[name + "_problem"] = str(error)
    os.write(write, json.dumps(found).encode())


def nvidia_library(name: str) -> ctypes.CDLL:
    path = os.path.join(LIBRARIES, name)
    return ctypes.CDLL(path if os.path.exists(path) else name)


def checked(what: str, status: int) -> None:
    if status != 0:
        raise RuntimeError("%s answers %d" % (what, status))


def nvml_devices() -> list[str]:
    """UUIDs of the devices that may be opened here, of one in MIG mode its slices'. NVML API reference."""
    nvml = nvidia_library("libnvidia-ml.so.1")
    checked("nvmlInit", nvml.nvmlInit_v2())
    count, handle, part, text = ctypes.c_uint(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.create_string_buffer(96)
    checked("nvmlDeviceGetCount", nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
    found = []
    for index in range(count.value):
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
            continue  # counted, and not to be opened
        checked("nvmlDeviceGetUUID", nvml.nvmlDeviceGetUUID(handle, text, 96))
        whole, parts, slices = text.value.decode(), [], ctypes.c_uint()
        if nvml.nvmlDeviceGetMaxMigDeviceCount(handle, ctypes.byref(slices)) == 0:
            for number in range(slices.value):
                if nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number, ctypes.byref(part)) == 0:
                    checked("nvmlDeviceGetUUID", nvml.nvmlDeviceGetUUID(part, text, 96))
                    parts.append(text.value.decode())
        found += parts or [whole]
    return found


def cuda_devices() -> list[str]:
    """UUIDs of the devices that CUDA can use here, bare hexadecimal. CUDA driver API."""
    cuda = nvidia_library("libcuda.so.1")
    checked("cuInit", cuda.cuInit(0))
    count, device, raw = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(16)
    checked("cuDeviceGetCount", cuda.cuDeviceGetCount(ctypes.byref(count)))
    uuid_of = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid  # only the newer knows slices
    found = []
    for index in range(count.value):
        checked("cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), index))
        checked("cuDeviceGetUuid", uuid_of(raw, device))
        found.append(raw.raw.hex())
    return found


def cuda_of_torch() -> str | None:
    """The CUDA version that the torch in here was built for, as its own file says; "" for none, None where there is no torch."""
    python = "lib/python%d.%d/" % sys.version_info[:2]
    for prefix in (os.path.dirname(os.path.dirname(sys.executable)), sys.prefix):
        for packages in (python + "site-packages", python + "dist-packages", "lib/python3/dist-packages"):
            with suppress(OSError), open(os.path.join(prefix, packages, "torch/version.py")) as file:
                said = [line.partition("=")[2].strip() for line in file if line.startswith("cuda")]
                return said[-1].strip("'\"") if said and said[-1] != "None" else ""
    return None


def look_for_gpus() -> dict[str, object]:
    """What `visible_gpus` finds, in a child of the experiment's user; the driver's libraries stay out of this process."""
    read, write = os.pipe()
    try:
        if not in_child(visible_gpus, write):
            return {"nvml_problem": "looking for the devices failed"}
        found: dict[str, object] = json.loads(os.read(read, CHUNK).decode())
        return found
    finally:
        os.close(read)
        os.close(write)


def device_nodes() -> dict[str, str]:
    """Path → `major:minor` of every device node below /dev."""
    found = {}
    for folder, _, names in os.walk("/dev"):
        for name in names:
            path = os.path.join(folder, name)
            with suppress(OSError):
                info = os.lstat(path)
                if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
                    found[path] = "%d:%d" % (os.major(info.st_rdev), os.minor(info.st_rdev))
    return found


def facts() -> dict[str, object]:
    """What this process is held to, as the kernel tells it here; under gVisor nobody else can tell the host."""
    found: dict[str, object] = {"python": list(sys.version_info[:3]), "executable": sys.executable}
    for name in ("status", "mountinfo", "limits", "net/dev"):
        with suppress(OSError), open("/proc/self/" + name, errors="replace") as file:
            found[name] = file.read(65536)
    found["open_files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    found["no_new_privs"] = libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
    found["nodes"] = device_nodes()
    if os.path.exists(NVIDIA):
        found["gpus"] = {**look_for_gpus(), "torch": cuda_of_torch()}
    return found


def receive_job() -> tuple[dict[str, Any], Interpreter | None]:
    """Takes everything up to "go" and puts it where it belongs; the job, or {} when the host is gone, and the
    interpreter that waits for it where one was started ahead."""
    job: dict[str, Any] = {}
    ahead: Interpreter | None = None
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
        elif kind == b"P":
            began, first = time.monotonic(), json.loads(body.decode())
            ahead = Interpreter({**first, "environment": environment_of(first, 0.0)}, ahead=True)
            end_with(ahead.pid)
            missing = ahead.wait_until_ready()
            send_json(b"R", {"missing": missing, "seconds": time.monotonic() - began})
        elif kind == b"G":
            return job, ahead
        else:
            return {}, ahead


def end_with(pid: int) -> None:
    """From now on this process ends when that child does: a container whose interpreter is gone is of no use to a run."""

    def look(*_: object) -> None:
        if os.waitpid(pid, os.WNOHANG)[0]:
            os._exit(1)

    signal.signal(signal.SIGCHLD, look)
    look()  # it may be gone already


def exit_of(status: int | None) -> dict[str, int | None]:
    """A wait status as the host takes it."""
    return {
        "returncode": os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None,
    }


def close_hooks_folders() -> None:
    """NVIDIA's hooks of an engine mount folders for themselves, in which everybody may write."""
    for name in os.listdir("/run"):
        if name.startswith(HOOKS):
            os.chmod("/run/" + name, 0o555)


def main() -> None:
    prctl(PR_SET_DUMPABLE, 0)
    os.umask(0o022)
    close_hooks_folders()
    send_json(b"H", facts())
    job, ahead = receive_job()
    if not job:
        return
    wheels = sorted(os.listdir(WHEELS))
    if wheels and not in_child(install, wheels):
        raise RuntimeError("cannot unpack the packages")
    for name in wheels:
        os.unlink(os.path.join(WHEELS, name))
    os.rmdir(WHEELS)
    os.mkdir(WORKSPACE + "/out")
    os.chmod(WORKSPACE + "/out", 0o777)

    run = Run(job, ahead)
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
