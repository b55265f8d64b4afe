"""Promises of warm containers: as safe as others, used once, for runs of exactly their kind, and no run can tell."""

import fcntl
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from executor.backends.base import AHEAD_SHARES, Backend
from executor.backends.conformance import run_suite
from executor.backends.docker import AttachedConnection
from executor.backends.oci import OciBackend
from executor.executor import Executor
from executor.experiment import Execution, Experiment, ImageRef, Outcome, Sink
from executor.handover import PoolServer, Recipe, RemotePool, _Given, _Request
from executor.warm import Pool
from executor.warm import Warm as Warmed
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import PartialLimits, Policy, Warm, load_policy
from policies.state import cache_dir
from tests.conftest import Recorded
from tests.test_conformance import backend_of, own_containers

FORK = get_context("fork")
DEFAULT = load_policy("default").model_copy(update={"warm": Warm(count=1)})


class Ready(Executor):
    """Runs everything in a container that waited."""

    def __init__(self, backend: Backend, audit: AuditLog) -> None:
        self.pool = Pool(audit)
        super().__init__(backend, audit, pool=self.pool)

    def run(
        self, experiment: Experiment, policy: Policy, request: Request, sink: Sink, *rest: Any, **more: Any
    ) -> Execution:
        decision = self._judge(request, policy, self.backend.capabilities())
        if decision.allow and not self._packages(experiment, policy):
            self.warm_up(experiment, policy, request)
            kind = self._kind(experiment, policy, decision, self.backend.capabilities())
            assert kind is not None
            self.wait(key=kind.key)
        return super().run(experiment, policy, request, sink, *rest, **more)

    def wait(self, count: int = 1, key: str | None = None) -> None:
        deadline = time.monotonic() + 120
        while self.pool.waiting(key) < count:
            assert time.monotonic() < deadline, "no container came to wait"
            time.sleep(0.005)


def events(state: Path, name: str) -> list[dict[str, Any]]:
    return [record for record in AuditLog(state / "audit.jsonl").records() if record["event"] == name]


def request(**limits: Any) -> Request:
    return Request(limits=PartialLimits.model_validate(limits))


@pytest.fixture
def ready(backend: Backend, own_state: Path) -> Iterator[Ready]:
    executor = Ready(backend, AuditLog(own_state / "audit.jsonl"))
    yield executor
    executor.pool.close()
    assert own_containers(backend) == []


def run(executor: Executor, code: str, policy: Policy = DEFAULT, seed: int = 0, **limits: Any) -> tuple[Execution, str]:
    sink = Recorded()
    imports = tuple(name for name in ("numpy", "torch") if f"import {name}" in code)
    execution = executor.run(Experiment(code=code, seed=seed, imports=imports), policy, request(**limits), sink)
    return execution, sink.stdout.decode()


@pytest.mark.parametrize("name", ["oci+runc", "docker+runc", "oci+runsc"])
def test_every_attack_is_held_in_a_warm_container(name: str, own_state: Path, cpu_image: str) -> None:
    backend = backend_of(name, own_state, cpu_image)
    policy = load_policy("gvisor" if name.endswith("runsc") else "default")
    executor = Ready(backend, AuditLog(own_state / "audit.jsonl"))
    try:
        findings = list(run_suite(executor, policy.model_copy(update={"warm": Warm(count=1)})))
    finally:
        executor.pool.close()
    assert [f"{finding.name}: {finding.detail}" for finding in findings if not finding.held] == []
    assert len(findings) >= 60
    waited = {record["execution"] for record in events(own_state, "warm")}
    started = [record["execution"] for record in events(own_state, "start")]
    assert len(set(started)) == len(started), "each ran in its own"
    # The suite ends all that is beside its probes, also what waits or is being made: a run after that makes its own.
    assert len(set(started) - waited) <= 2, "each ran in one that had waited"
    assert own_containers(backend) == []


TELL = """
import json, multiprocessing, os, pickle, signal, sys
class Thing: pass
def square(x): return x * x
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.map(square, [3])
    print(json.dumps({
        "file": __file__, "argv": sys.argv, "path": sys.path, "flags": str(sys.flags), "cwd": os.getcwd(), "uid": os.getresuid(),
        "main": sys.modules["__main__"].square is square, "globals": sorted(globals()), "hash": hash("seeded"),
        "environment": {name: value for name, value in os.environ.items() if name != "LAB_DEADLINE"}, "spawned": spawned,
        "pickled": type(pickle.loads(pickle.dumps(Thing()))).__module__, "umask": os.umask(0o22), "listed": os.listdir("."),
        "pipe": str(signal.getsignal(signal.SIGPIPE)), "stdin": os.read(0, 1).decode(),
        "files": sorted(os.listdir("/proc/self/fd")),
    }))
"""


def test_a_run_cannot_tell_that_its_container_waited(ready: Ready) -> None:
    cold = Executor(ready.backend, ready._audit)
    (first, plain), (second, warmed) = run(cold, TELL, seed=3, wall="20s"), run(ready, TELL, seed=3, wall="20s")
    assert first.success and second.success, second.stderr
    assert json.loads(warmed) == json.loads(plain)


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    return 1 / 0\ntry:\n    f()\nexcept Exception as e:\n    raise ValueError('x') from e",
        "x = = 1",
        "import sys; sys.exit(7)",
        "raise SystemExit('told')",
        "import atexit; atexit.register(print, 'bye'); print('hello')",
        "import os; os.abort()",
        "import nothing_of_the_kind",
    ],
)
def test_it_ends_as_it_would_have_ended(ready: Ready, code: str) -> None:
    if ready.backend.name != "oci":
        return
    cold = Executor(ready.backend, ready._audit)
    (first, plain), (second, warmed) = run(cold, code), run(ready, code)
    assert (second.outcome, second.returncode, second.signal) == (first.outcome, first.returncode, first.signal)
    assert (second.stderr, warmed) == (first.stderr, plain)


def test_modules_are_loaded_before_the_run_and_its_clock_and_account_begin_with_it(
    ready: Ready, own_state: Path
) -> None:
    code = "import torch, lab, time; print(time.process_time(), lab.time_left())"
    ready.warm_up(Experiment(code="", imports=("torch",)), DEFAULT, request(wall="5s"))
    ready.wait()
    time.sleep(2)
    execution, out = run(ready, code, wall="5s")
    process, left = map(float, out.split())
    assert execution.success and process > 0.5, "torch was loaded in this process"
    assert left > 4.5
    assert execution.usage.cpu_s is not None and execution.usage.cpu_s < process
    (start,) = events(own_state, "start")
    assert start["execution"] == events(own_state, "warm")[0]["execution"]
    assert execution.limits["wall"].effective == 5


def test_each_serves_one_run(ready: Ready, own_state: Path) -> None:
    for number in range(3):
        execution, out = run(ready, f"import os; print(os.listdir('/tmp')); open('/tmp/{number}', 'w').close()")
        assert execution.success and out == "[]\n"
    containers = [record["container"] for record in events(own_state, "start")]
    assert len(set(containers)) == 3
    ids = [record["execution"] for record in events(own_state, "end")]
    assert len(set(ids)) == 3 and set(ids) <= {record["execution"] for record in events(own_state, "warm")}


@pytest.mark.parametrize(
    "change",
    [
        {"cpus": 1.0}, {"memory": "1GiB"}, {"pids": 99}, {"workspace": "9MiB"}, {"tmp": "9MiB"}, {"shm": "9MiB"}, {"files": 999},
        {"open_files": 512}, {"seed": 1}, {"policy": {"environment": ("A=1",)}}, {"code": "import numpy"},
    ],
)  # fmt: skip
def test_a_run_of_another_kind_never_takes_it(own_state: Path, change: dict[str, Any]) -> None:
    executor = Ready(OciBackend(own_state, cache_dir()), AuditLog(own_state / "audit.jsonl"))
    executor.warm_up(Experiment(code=""), DEFAULT, Request())
    executor.wait()
    change = dict(change)
    policy = DEFAULT.model_copy(update={**change.pop("policy", {}), "warm": Warm(count=1)})
    seed, code = change.pop("seed", 0), change.pop("code", "print(1)")
    imports = ("numpy",) if "numpy" in code else ()
    Executor.run(executor, Experiment(code=code, seed=seed, imports=imports), policy, request(**change), Recorded())
    executor.pool.close()
    (start,) = events(own_state, "start")
    assert start["execution"] != events(own_state, "warm")[0]["execution"]


def test_limits_that_come_with_the_job_do_not_matter_to_the_kind_and_hold(ready: Ready, own_state: Path) -> None:
    ready.warm_up(Experiment(code=""), DEFAULT, Request())
    ready.wait()
    limits = request(wall="1s", output="64KiB")
    execution = Executor.run(ready, Experiment(code="while True: print('x' * 99)"), DEFAULT, limits, Recorded())
    assert execution.outcome is Outcome.OUTPUT_LIMIT
    assert events(own_state, "start")[0]["execution"] == events(own_state, "warm")[0]["execution"]


def test_one_that_died_while_it_waited_is_not_used(own_state: Path) -> None:
    backend = OciBackend(own_state, cache_dir())
    executor = Ready(backend, AuditLog(own_state / "audit.jsonl"))
    executor.warm_up(Experiment(code=""), DEFAULT, Request())
    executor.wait()
    (found,) = backend.found()
    found.container.kill()
    time.sleep(0.2)
    execution = Executor.run(executor, Experiment(code="print(1)"), DEFAULT, Request(), Recorded())
    executor.pool.close()
    assert execution.success and execution.execution_id != found.execution_id
    assert backend.found() == []


def test_one_whose_interpreter_died_while_it_waited_is_not_used(backend: Backend, own_state: Path) -> None:
    """The kernel takes that first where memory is out."""
    executor = Ready(backend, AuditLog(own_state / "audit.jsonl"))
    executor.warm_up(Experiment(code=""), DEFAULT, Request())
    executor.wait()
    (warm,) = next(iter(executor.pool._shelves.values())).waiting
    pid = warm.container.pid()
    assert pid is not None
    (interpreter,) = psutil.Process(pid).children()
    interpreter.kill()
    time.sleep(0.5)
    execution = Executor.run(executor, Experiment(code="print(1)"), DEFAULT, Request(), Recorded())
    executor.pool.close()
    assert execution.success and execution.execution_id != warm.id


def test_a_run_whose_container_dies_as_it_is_taken_has_one_of_its_own(
    backend: Backend, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Ready(backend, AuditLog(own_state / "audit.jsonl"))
    executor.warm_up(Experiment(code=""), DEFAULT, Request())
    executor.wait()
    usable = Warmed.usable

    def dying(self: Warmed, seconds: float) -> bool:
        found = usable(self, seconds)
        self.container.kill()
        return found

    monkeypatch.setattr(Warmed, "usable", dying)
    sink = Recorded()
    execution = Executor.run(executor, Experiment(code="print(1)"), DEFAULT, Request(), sink)
    executor.pool.close()
    assert execution.success and sink.stdout == b"1\n", execution.message
    assert execution.execution_id in {record["execution"] for record in events(own_state, "warm")}
    assert own_containers(backend) == []


def weight(warm: Warmed) -> int:
    """CPU shares, or the weight of version 2, of a container that waits."""
    group = warm.container.group()
    assert group is not None
    folder, name = (group.folders["cpu"], "cpu.shares") if "cpu" in group.folders else (group.folders[""], "cpu.weight")
    return int((folder / name).read_text())


def test_what_is_made_ahead_yields_to_runs_until_it_is_one(backend: Backend, own_state: Path) -> None:
    """Otherwise the next run's container would be loaded at the cost of the one that has just begun."""
    executor = Ready(backend, AuditLog(own_state / "audit.jsonl"))
    executor.warm_up(Experiment(code=""), DEFAULT, Request())
    executor.wait()
    (warm,) = next(iter(executor.pool._shelves.values())).waiting
    assert weight(warm) <= AHEAD_SHARES
    weights: list[int] = []

    def look() -> None:
        weights.append(weight(warm))

    execution = Executor.run(
        executor, Experiment(code="import time; time.sleep(1)"), DEFAULT, Request(), Recorded(), unwanted=look
    )
    executor.pool.close()
    assert execution.execution_id == warm.id and weights[-1] in (100, 1024)


def test_no_more_wait_in_all_than_may_and_those_that_do_were_asked_for_last(own_state: Path) -> None:
    executor = Ready(OciBackend(own_state, cache_dir()), AuditLog(own_state / "audit.jsonl"))
    executor.pool._most = 3
    keys = []
    for seed in range(4):
        executor.warm_up(Experiment(code="", seed=seed), DEFAULT, Request())
        keys.append(list(executor.pool._shelves)[-1])
        executor.wait(key=keys[-1])
        assert executor.pool.waiting() <= 4  # the oldest goes when the pool looks again
    deadline = time.monotonic() + 20
    while executor.pool.waiting() > 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [executor.pool.waiting(key) for key in keys] == [0, 1, 1, 1]
    executor.pool.close()


def test_every_one_is_on_record_before_it_is_there_and_when_it_served_nobody(own_state: Path) -> None:
    executor = Ready(OciBackend(own_state, cache_dir()), AuditLog(own_state / "audit.jsonl"))
    run(executor, "print(1)")
    executor.warm_up(Experiment(code=""), DEFAULT, Request())
    executor.wait()
    executor.pool.close()
    made, unused = events(own_state, "warm"), events(own_state, "warm-end")
    ran = {record["execution"] for record in events(own_state, "start")}
    assert {record["execution"] for record in unused} == {record["execution"] for record in made} - ran != set()
    assert all(record["limits"]["memory"] == "4GiB" and record["image"]["digest"] for record in made)


def test_those_that_nobody_asks_for_are_retired(own_state: Path) -> None:
    backend = OciBackend(own_state, cache_dir())
    executor = Ready(backend, AuditLog(own_state / "audit.jsonl"))
    terms = Warm.model_validate({"count": 2, "idle": "1s"})
    executor.warm_up(Experiment(code=""), DEFAULT.model_copy(update={"warm": terms}), Request())
    executor.wait(2)
    deadline = time.monotonic() + 20
    while backend.found() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert backend.found() == []
    executor.pool.close()


def test_a_killed_owner_leaves_nothing_after_the_next_sweep(backend: Backend, own_state: Path) -> None:
    def own() -> None:
        executor = Ready(backend, AuditLog(own_state / "audit.jsonl"))
        executor.warm_up(Experiment(code=""), DEFAULT.model_copy(update={"warm": Warm(count=2)}), Request())
        executor.wait(2)
        os.kill(os.getpid(), signal.SIGKILL)

    child = FORK.Process(target=own)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    waited = {record["execution"] for record in events(own_state, "warm")}
    assert len(waited) == 2
    time.sleep(0.5)
    Executor(backend, AuditLog(own_state / "audit.jsonl")).sweep()
    assert not waited & {found.execution_id for found in backend.found()}


def test_a_changed_image_is_never_hidden_by_a_container_that_waited(own_state: Path) -> None:
    backend = OciBackend(own_state, cache_dir())
    executor = Ready(backend, AuditLog(own_state / "audit.jsonl"))
    executor.warm_up(Experiment(code=""), DEFAULT, Request())
    executor.wait()
    (shelf,) = executor.pool._shelves.values()
    shelf.waiting[0] = replace(
        shelf.waiting[0], image=shelf.waiting[0].image.model_copy(update={"digest": "sha256:other"})
    )
    execution = Executor.run(executor, Experiment(code="print(1)"), DEFAULT, Request(), Recorded())
    executor.pool.close()
    assert execution.success
    assert events(own_state, "start")[0]["container"] == execution.execution_id
    assert backend.found() == []


def socket_in(state: Path) -> Path:
    """At a path that is longer than a socket's address may be."""
    folder = state / ("long" * 30)
    folder.mkdir(exist_ok=True)
    return folder / "serve.sock"


@contextmanager
def service(state: Path, made: Callable[[Recipe], Backend]) -> Iterator[Pool]:
    pool = Pool(AuditLog(state / "audit.jsonl"))
    server = PoolServer(socket_in(state), pool, made)
    try:
        yield pool
    finally:
        server.close()
        pool.close()


def test_another_process_takes_containers_that_a_service_made(backend: Backend, own_state: Path) -> None:
    backend.prepare(print)
    with service(own_state, lambda recipe: backend) as pool:
        client = Executor(backend, AuditLog(own_state / "audit.jsonl"), pool=RemotePool(socket_in(own_state)))
        client.warm_up(Experiment(code=""), DEFAULT, Request())
        deadline = time.monotonic() + 30
        while not pool.full() or not pool.waiting():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ended: list[Execution] = []

        def own() -> None:
            sink = Recorded()
            execution = client.run(Experiment(code="print('handed over')"), DEFAULT, Request(), sink)
            assert sink.stdout == b"handed over\n"
            ended.append(execution)
            os._exit(0 if execution.success else 1)

        child = FORK.Process(target=own)
        child.start()
        child.join(30)
        assert child.exitcode == 0
    start, warm = events(own_state, "start"), events(own_state, "warm")
    assert start[0]["execution"] == warm[0]["execution"]
    assert start[0]["execution"] not in {record["execution"] for record in events(own_state, "warm-end")}
    assert own_containers(backend) == []


def test_what_a_service_gave_to_a_process_that_died_ends_with_it(own_state: Path) -> None:
    backend = OciBackend(own_state, cache_dir())
    backend.prepare(print)
    with service(own_state, lambda recipe: backend) as pool:
        client = Executor(backend, AuditLog(own_state / "audit.jsonl"), pool=RemotePool(socket_in(own_state)))
        client.warm_up(Experiment(code=""), DEFAULT, Request())
        while not pool.full() or not pool.waiting():
            time.sleep(0.01)

        def own() -> None:
            client.run(Experiment(code="import time; time.sleep(60)"), DEFAULT, Request(), Recorded())

        child = FORK.Process(target=own)
        child.start()
        while not events(own_state, "start"):
            time.sleep(0.01)
        taken = events(own_state, "start")[0]["container"]
        os.kill(child.pid or 0, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while taken in {found.execution_id for found in backend.found()}:
            assert time.monotonic() < deadline, "it goes on without anybody"
            time.sleep(0.05)


@pytest.mark.parametrize("hears", [False, True])
def test_what_a_process_that_died_never_took_is_on_record_as_unused(
    backend: Backend, own_state: Path, hears: bool
) -> None:
    backend.prepare(print)
    with service(own_state, lambda recipe: backend) as pool:
        remote = RemotePool(socket_in(own_state))
        Executor(backend, AuditLog(own_state / "audit.jsonl"), pool=remote).warm_up(
            Experiment(code=""), DEFAULT, Request()
        )
        while not pool.full() or not pool.waiting():
            time.sleep(0.01)
        ((key, shelf),) = pool._shelves.items()
        (warm,) = shelf.waiting
        shelf.not_before = float("inf")  # no other is made
        connection = remote._ask(_Request(take=key, seconds=1.0))
        assert connection is not None
        if hears:
            _, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            for descriptor in descriptors:
                os.close(descriptor)
        connection.close()
        deadline = time.monotonic() + 10
        while not events(own_state, "warm-end"):
            assert time.monotonic() < deadline, "it is not on record that it served no run"
            time.sleep(0.02)
        assert [record["execution"] for record in events(own_state, "warm-end")] == [warm.id]
        with pytest.raises((OSError, ValueError)):
            warm.connection.send(b"x")
        assert own_containers(backend) == []


def test_one_is_usable_whatever_number_its_descriptor_has() -> None:
    ours, theirs = socket.socketpair()
    high = socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 1500))
    warm = Warmed("", None, AttachedConnection(high), {}, ImageRef(reference="", digest=""), time.time() + 60)  # type: ignore[arg-type]
    with ours, theirs, high:
        assert warm.usable(1.0)
        theirs.send(b"x")
        assert warm.connection.wait(0.1) and not warm.usable(1.0)


def test_a_service_that_was_out_of_descriptors_for_a_moment_serves_on(own_state: Path) -> None:
    def own() -> None:
        with service(own_state, lambda recipe: pytest.fail("nothing is kept")):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            folder = os.open(socket_in(own_state).parent, os.O_PATH)
            connection = socket.socket(socket.AF_UNIX)
            resource.setrlimit(resource.RLIMIT_NOFILE, (connection.fileno() + 1, limit[1]))
            connection.connect(f"/proc/self/fd/{folder}/serve.sock")
            time.sleep(0.5)
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            connection.sendall(b'{"take": "nothing of the kind"}\n')
            os._exit(0 if connection.recv(100) == b"{}\n" else 1)

    child = FORK.Process(target=own)
    child.start()
    child.join(30)
    assert child.exitcode == 0


def test_another_user_is_neither_served_nor_believed(own_state: Path, open_folder: Path) -> None:
    """Whatever the modes of folder and socket are."""
    path = open_folder / "serve.sock"

    def as_nobody(act: Callable[[], bool]) -> int | None:
        def own() -> None:
            os.setresuid(65534, 65534, 65534)
            os._exit(0 if act() else 1)

        child = FORK.Process(target=own)
        child.start()
        child.join(30)
        return child.exitcode

    def refused() -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            try:
                connection.sendall(b'{"take": "x"}\n')
                return connection.recv(100) == b""
            except OSError:
                return True

    server = PoolServer(path, Pool(AuditLog(own_state / "audit.jsonl")), lambda recipe: pytest.fail("nothing is kept"))
    path.chmod(0o666)
    assert as_nobody(refused) == 0
    server.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        os.chown(path, 65534, 65534)

        def disbelieved() -> bool:
            return RemotePool(path)._ask(_Request(take="x")) is None

        assert as_nobody(disbelieved) == 0, "root, who serves, is not nobody"


@pytest.mark.parametrize("name", ["../../../victim", "", "0" * 17, "/etc", "0123456789abcde\n"])
def test_a_service_cannot_name_a_container_that_leads_elsewhere(name: str) -> None:
    told = {"id": name, "container": "0" * 16, "greeting": {}, "image": {"reference": "", "digest": ""}, "until": 0}
    with pytest.raises(ValidationError):
        _Given.model_validate(told)


def test_without_a_service_runs_make_their_own(own_state: Path) -> None:
    backend = OciBackend(own_state, cache_dir())
    client = Executor(backend, AuditLog(own_state / "audit.jsonl"), pool=RemotePool(socket_in(own_state)))
    client.preflight(DEFAULT, Request())
    socket_in(own_state).write_text("of one that was killed")
    assert client.run(Experiment(code="print(1)"), DEFAULT, Request(), Recorded()).success
