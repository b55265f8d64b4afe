"""The conformance suite: attacks.py run in real containers of one backend, and judged from the host.

Run by the tests on every backend and runtime, and by users as `labsandbox doctor --probe`. A promise is held, broken, or
could not be tried; the last counts as broken, so that no check passes by not being made.
"""

import ast
import ctypes
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor.executor import Executor
from executor.experiment import Execution, Experiment, Outcome
from policies.decision import Request
from policies.model import PartialLimits, Policy

_SOURCE = Path(__file__).with_name("attacks.py")
_LIBC = ctypes.CDLL(None)
_CANARY = "LABSANDBOX_CONFORMANCE_CANARY"
_LIMITS = {
    "wall": "60s",
    "cpus": 1.0,
    "memory": "256MiB",
    "pids": 64,
    "workspace": "32MiB",
    "tmp": "4MiB",
    "shm": "4MiB",
    "files": 2000,
    "open_files": 256,
    "output": "256KiB",
    "metrics": "256KiB",
    "artifacts": "2MiB",
    "artifact_files": 100,
}


@dataclass(frozen=True)
class Finding:
    """What came of one attack."""

    name: str
    promise: str
    held: bool
    detail: str
    """What escaped, or why it could not be tried; empty when it was held."""
    seconds: float = 0.0


@dataclass
class Kept:
    """A sink in memory."""

    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    files: dict[str, bytes] = field(default_factory=dict)
    up: threading.Event = field(default_factory=threading.Event)

    def log(self, stream: str, data: bytes) -> None:
        (self.stdout if stream == "stdout" else self.stderr).extend(data)
        self.up.set()

    def record(self, record: object) -> None:
        """Records are counted by the executor."""

    def artifact(self, name: str) -> "_KeptFile":
        return _KeptFile(self.files, name)


class _KeptFile:
    def __init__(self, files: dict[str, bytes], name: str) -> None:
        self._files, self._name, self._data = files, name, bytearray()

    def write(self, data: bytes) -> None:
        self._data += data

    def commit(self) -> None:
        self._files[self._name] = bytes(self._data)

    def abort(self) -> None:
        self._data.clear()


@dataclass(frozen=True)
class Seen:
    """What the host saw of an assault."""

    execution: Execution
    kept: Kept
    gvisor: bool

    @property
    def outcome(self) -> Outcome:
        return self.execution.outcome

    @property
    def effective(self) -> Mapping[str, float]:
        return {name: limit.effective for name, limit in self.execution.limits.items()}


Judge = Callable[[Seen], str]
"""What is wrong with what was seen; empty when the promise was held."""


def promises() -> dict[str, tuple[str, str]]:
    """Attack → (`probe` or `assault`, its promise), in the order of the file."""
    found = {}
    for node in ast.parse(_SOURCE.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            kind = ast.unparse(node.decorator_list[0])
            found[node.name] = (kind, " ".join((ast.get_docstring(node) or "").split()))
    return found


def run_suite(executor: Executor, policy: Policy, only: Iterable[str] = ()) -> Iterator[Finding]:
    """Runs the attacks (all, or those named) and yields each finding as it comes.

    `policy` must be as tight as, or looser than, the limits that the suite asks for. Raises what `Executor.run` raises.
    """
    wanted = set(only)
    chosen = {name: kind for name, (kind, _) in promises().items() if not wanted or name in wanted}
    suite = _Suite(executor, policy)
    with _canary() as canary, _Services() as services:
        here = {**services.known, "canary": canary, "marker": f"m{secrets.token_hex(8)}"}
        probes = [name for name, kind in chosen.items() if kind == "probe"]
        if probes:
            yield from suite.probe(probes, here)
        for name, kind in chosen.items():
            if kind == "assault" and name in ASSAULTS:
                yield suite.assault(name, here)


class _Suite:
    def __init__(self, executor: Executor, policy: Policy) -> None:
        self._executor = executor
        self._policy = policy
        capabilities = executor.backend.capabilities()
        self._gvisor = capabilities.isolation == "gvisor"
        self._unheld = sorted(capabilities.missing)
        self._promises = promises()

    def probe(self, names: list[str], here: Mapping[str, Any]) -> Iterator[Finding]:
        """All probes in one container, beside another run with data of its own."""
        with self._other_run(here):
            began = time.monotonic()
            execution, kept = self._run(f"run_probes({names!r})", here, {})
            seconds = (time.monotonic() - began) / len(names)
        said = {}
        for line in bytes(kept.stdout).decode("utf-8", "replace").splitlines():
            name, detail = json.loads(line)
            said[name] = detail
        for name in names:
            detail = said.get(name, f"could not be tried: {execution.outcome}, {execution.message}")
            yield Finding(name, self._promises[name][1], detail == "", detail, seconds)

    def assault(self, name: str, here: Mapping[str, Any]) -> Finding:
        limits, judge = ASSAULTS[name]
        began = time.monotonic()
        execution, kept = self._run(f"ASSAULTS[{name!r}]()", here, limits)
        detail = judge(Seen(execution, kept, self._gvisor)) or self._unharmed(execution, limits)
        return Finding(name, self._promises[name][1], detail == "", detail, time.monotonic() - began)

    @contextmanager
    def _other_run(self, here: Mapping[str, Any]) -> Iterator[None]:
        kept, before = Kept(), {found.execution_id for found in self._executor.backend.found()}
        limits = {"wall": "30s", "gpus": 0}  # the probes need the device, and it may be the only one
        attack = ("ASSAULTS['marker']()", here, limits, kept)
        thread = threading.Thread(target=self._run, args=attack, daemon=True)
        thread.start()
        if not kept.up.wait(30):
            raise RuntimeError("the other run did not start")
        try:
            yield
        finally:
            for found in self._executor.backend.found():
                if found.execution_id not in before and found.owner.pid == os.getpid():
                    found.container.kill()
            thread.join(40)

    def _run(
        self, call: str, here: Mapping[str, Any], limits: Mapping[str, Any], kept: Kept | None = None
    ) -> tuple[Execution, Kept]:
        kept = kept or Kept()
        asked = PartialLimits.model_validate({**_LIMITS, **limits})
        isolation = "gvisor" if self._gvisor else "kernel"
        told = {**here, **asked.given(), "isolation": isolation, "unheld": self._unheld}
        code = f"{_SOURCE.read_text()}\nHERE.update({told!r})\nos.chdir('/workspace')\n{call}\n"
        return self._executor.run(Experiment(code=code), self._policy, Request(limits=asked), kept), kept

    def _unharmed(self, execution: Execution, limits: Mapping[str, Any]) -> str:
        """What must hold after every assault: it ended in its time, and nothing of it is left."""
        wall = execution.limits["wall"].effective
        if execution.timings.run_s > wall + 3:
            return f"ran for {execution.timings.run_s:.1f} s of {wall:g}"
        if any(found.execution_id == execution.execution_id for found in self._executor.backend.found()):
            return "the container is still there"
        return ""


class _Services:
    """What an escape would find on the host: a listener on loopback, an abstract socket, shared memory."""

    def __enter__(self) -> "_Services":
        name = f"labsandbox-{secrets.token_hex(8)}"
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.known: dict[str, Any] = {
            "port": self._sockets[0].getsockname()[1],
            "abstract": name,
            "hostname": socket.gethostname(),
        }
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind("\0" + name)
        abstract.listen()
        self._sockets.append(abstract)
        self._segment = _LIBC.shmget(0, 4096, 0o600)  # IPC_PRIVATE
        return self

    def __exit__(self, *_: object) -> None:
        _LIBC.shmctl(self._segment, 0, None)  # IPC_RMID
        for one in self._sockets:
            one.close()


@contextmanager
def _canary() -> Iterator[str]:
    """A variable of this process's that must not reach any container."""
    value = secrets.token_hex(16)
    os.environ[_CANARY] = value
    try:
        yield value
    finally:
        del os.environ[_CANARY]


# ---- how each assault must end ----


def _ends(*outcomes: Outcome) -> Judge:
    def judge(seen: Seen) -> str:
        return "" if seen.outcome in outcomes else f"ended as {seen.outcome}: {seen.execution.message}"

    return judge


def _contained(seen: Seen) -> str:
    """A bomb: ended at the wall limit, or (gVisor) by its own weight; never over the number of processes."""
    allowed = {Outcome.TIMEOUT, Outcome.FAILED} | ({Outcome.INFRASTRUCTURE, Outcome.OOM} if seen.gvisor else set())
    peak = seen.execution.usage.peak_pids or 0
    spare = 192 if seen.gvisor else 0
    if seen.outcome not in allowed:
        return f"ended as {seen.outcome}: {seen.execution.message}"
    return f"{peak} processes at once" if peak > seen.effective["pids"] + spare else ""


def _out_of_memory(seen: Seen) -> str:
    peak = seen.execution.usage.peak_memory_bytes or 0
    if seen.outcome is not Outcome.OOM:
        return f"ended as {seen.outcome}: {seen.execution.message}"
    return f"{peak} bytes of memory" if peak > seen.effective["memory"] + (1 << 20) else ""


def _full(seen: Seen) -> str:
    if seen.outcome is not Outcome.FAILED or b"No space left" not in seen.kept.stderr:
        return f"ended as {seen.outcome}: {seen.execution.message}"
    return ""


def _flooded(seen: Seen) -> str:
    came = len(seen.kept.stdout) + len(seen.kept.stderr)
    if seen.outcome is not Outcome.OUTPUT_LIMIT:
        return f"ended as {seen.outcome}: {seen.execution.message}"
    return f"{came} bytes came" if came > seen.effective["output"] + (1 << 17) else ""


def _binary(seen: Seen) -> str:
    return "" if bytes(seen.kept.stdout) == bytes(range(256)) * 16 else "the output came back changed"


def _timed_out(seen: Seen) -> str:
    late = seen.execution.timings.run_s - seen.effective["wall"]
    if seen.outcome is not Outcome.TIMEOUT:
        return f"ended as {seen.outcome}: {seen.execution.message}"
    return f"{late:.1f} s after the limit" if late > 2 else ""


def _ended_at_once(seen: Seen) -> str:
    if seen.outcome is not Outcome.COMPLETED or seen.execution.timings.run_s > 8:
        return f"ended as {seen.outcome} after {seen.execution.timings.run_s:.1f} s"
    return "" if b"done" in seen.kept.stdout else "its output is lost"


def _exits(status: int) -> Judge:
    def judge(seen: Seen) -> str:
        if (seen.outcome, seen.execution.returncode) == (Outcome.FAILED, status):
            return ""
        return f"ended as {seen.outcome} with status {seen.execution.returncode}, not {status}"

    return judge


def _fair_share(seen: Seen) -> str:
    used, ran = seen.execution.usage.cpu_s or 0.0, seen.execution.timings.run_s
    most = seen.effective["cpus"] * (ran + seen.execution.timings.start_s + 0.5) + 0.4
    return f"{used:.2f} s of processor time in {ran:.2f} s" if used > most else ""


def _plain_files(seen: Seen) -> str:
    names = seen.kept.files.keys()
    wanted = {"out/new%0Aline", "out/%1B[31mred", "out/%FF%FE", "out/%2Drf", "out/%2E.dots", "out/%E2%80%AEright"}
    long = {name for name in names if name.startswith("out/nnn")}
    strange = names - wanted - long - {"out/d/e/f", "out/mine"}
    if strange or wanted - names or len(long) != 1:
        return f"came back: {sorted(strange)}; missing: {sorted(wanted - names)}"
    total = sum(map(len, seen.kept.files.values()))
    return f"{total} bytes" if total > seen.effective["artifacts"] else ""


def _counted(seen: Seen) -> str:
    most = seen.effective["artifact_files"]
    skipped = " ".join(seen.execution.artifacts_skipped)
    if len(seen.kept.files) != most or not re.search(r"and \d+ more", skipped):
        return f"{len(seen.kept.files)} files came back, and it was said: {skipped[:100]}"
    return ""


def _nothing_back(seen: Seen) -> str:
    return f"came back: {sorted(seen.kept.files)}" if seen.kept.files else _ends(Outcome.COMPLETED)(seen)


def _consistent(seen: Seen) -> str:
    data = seen.kept.files.get("out/changing", b"")
    whole = {data[:n] * 1000 for n in range(1, 8)} | {b""}
    # What was cut by the kill is a beginning of one version, never a mixture of two.
    return "" if any(version.startswith(data) for version in whole) else "a mixture of two versions came back"


ASSAULTS: dict[str, tuple[dict[str, Any], Judge]] = {
    "fork_bomb": ({"wall": "2s"}, _contained),
    "thread_bomb": ({"wall": "2s"}, _contained),
    "memory_bomb": ({"memory": "128MiB"}, _out_of_memory),
    "files_as_memory": ({"memory": "128MiB", "workspace": "512MiB"}, _out_of_memory),
    "workspace_fill": ({"workspace": "4MiB"}, _full),
    "output_flood": ({}, _flooded),
    "endless_line": ({}, _flooded),
    "binary_output": ({}, _binary),
    "metric_flood": ({}, _ends(Outcome.OUTPUT_LIMIT)),
    "deaf": ({"wall": "1s"}, _timed_out),
    "stopped": ({"wall": "1s"}, _timed_out),
    "own_clock": ({"wall": "1s"}, _timed_out),
    "daemon": ({"wall": "20s"}, _ended_at_once),
    "orphans": ({"wall": "20s"}, _ended_at_once),
    "forged_frames": ({}, _exits(3)),
    "closed_pipes": ({}, _exits(7)),
    "a_lie_about_memory": ({}, _exits(137)),
    "cpu_hog": ({"cpus": 0.5, "wall": "10s"}, _fair_share),
    "hostile_artifacts": ({}, _plain_files),
    "four_thousand_files": ({"files": 8000}, _counted),
    "deep_folders": ({}, _nothing_back),
    "out_is_a_link": ({}, _nothing_back),
    "changing_while_read": ({}, _consistent),
    "zombies": ({"wall": "20s"}, _ended_at_once),
}
"""Assault → the limits that it needs beyond the suite's own, and how it must end."""
