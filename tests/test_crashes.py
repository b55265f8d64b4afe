"""Promises about crashes: whatever dies at whatever moment, nothing outlives it for longer than the next sweep.

Real kills, a real engine stopped and started, a real full disk, two real users.
"""

import fcntl
import getpass
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import docker
import docker.errors
import psutil
import pytest

from executor.backends.base import ContainerSpec
from executor.backends.docker import DockerBackend, engine_client
from executor.backends.oci import OciBackend
from executor.executor import Executor
from executor.experiment import Experiment, ImageRef, Outcome
from executor.ownership import Owner, pid_namespace, start_ticks
from policies.audit import AuditLog
from policies.audit_check import verify
from policies.decision import Request
from policies.model import load_policy
from policies.state import cache_dir
from sandbox_images.images import BOOTSTRAP_BASE
from tests.conftest import Recorded
from tests.test_cli import COMMAND

# Forks a run, kills it after a while, and again: imports are paid once, so that the moments fall inside the runs.
KILLER = """
import json, os, random, sys, time
from pathlib import Path
from executor.backends.docker import DockerBackend
from executor.backends.oci import OciBackend
from executor.executor import Executor
from executor.experiment import Experiment
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import load_policy
from policies.state import cache_dir
from results.store import Store

kind, image, results, count, longest, seed = sys.argv[1], sys.argv[2], Path(sys.argv[3]), *map(float, sys.argv[4:])
state = Path(os.environ["LABSANDBOX_STATE_DIR"])
code = "import lab, os\\nfor n in range(40): lab.log(step=n, loss=1.0); print('x' * 1000)\\nopen('out/a', 'w').write('a' * 99999)"
chance = random.Random(seed)

def run():
    backend = OciBackend(state, cache_dir()) if kind == "oci" else DockerBackend(image)
    executor = Executor(backend, AuditLog(state / "audit.jsonl"))
    executor.sweep()
    with Store(results).new("exec") as folder:
        execution = executor.run(Experiment(code=code), load_policy("default"), Request(), folder)
        folder.close()
        folder.write_json("execution.json", execution.as_json())

ended = 0
for _ in range(int(count)):
    child = os.fork()
    if child == 0:
        run()
        os._exit(0)
    time.sleep(chance.random() * longest)
    os.kill(child, 9)
    ended += os.waitpid(child, 0)[1] == 0
print(json.dumps(ended))
"""


def left_behind(state: Path) -> list[str]:
    """Everything on this machine that could only be a run's of this state folder."""
    found = [str(path) for path in state.glob("oci/bundles/*/*")]
    found += [str(path) for path in state.glob("oci/runc/*")]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state) in line]
    for process in psutil.process_iter(["cmdline"]):
        if any(str(state) in word for word in process.info["cmdline"] or []):
            found.append(" ".join(process.info["cmdline"]))
    return found


def control_groups() -> set[str]:
    return {path.name for path in Path("/sys/fs/cgroup").glob("*/labsandbox/*") if path.is_dir()}


@pytest.mark.parametrize(("kind", "count", "longest"), [("oci", 120, 0.35), ("docker", 80, 0.7)])
def test_kills_at_two_hundred_random_moments_leave_nothing_that_the_next_sweep_does_not_clear(
    kind: str, count: int, longest: float, own_state: Path, cpu_image: str, tmp_path: Path
) -> None:
    arguments = [kind, cpu_image, str(tmp_path / "results"), str(count), str(longest), "11"]
    done = subprocess.run([sys.executable, "-c", KILLER, *arguments], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) < count, "no run was killed"
    backend = OciBackend(own_state, cache_dir()) if kind == "oci" else DockerBackend(cpu_image)
    audit = AuditLog(own_state / "audit.jsonl")
    time.sleep(1.5)  # what the engine or the runtime was doing when its caller died
    Executor(backend, audit).sweep()
    assert [found for found in backend.found() if found.owner.abandoned()] == []
    assert left_behind(own_state) == []
    assert control_groups().isdisjoint(record.get("execution") for record in audit.records())
    found = verify(audit.path)
    assert found.ok, found.problems
    assert len(list(audit.records())) > count
    for folder in (tmp_path / "results").iterdir():  # readable, however early the run was killed
        for path in folder.rglob("*.json"):
            json.loads(path.read_text())
        for path in folder.glob("metrics.jsonl"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                json.loads(line)


# ---- an engine of our own ----


@contextmanager
def engine() -> Iterator["Engine"]:
    """In a folder with a short name: a Unix socket's path has 107 characters at most, and containerd makes its own."""
    with tempfile.TemporaryDirectory(prefix="engine-", dir="/tmp") as folder:
        made = Engine(Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.stop()
            made.clear()


class Engine:
    """A Docker engine in a folder, without a network."""

    def __init__(self, folder: Path) -> None:
        self.url = f"unix://{folder}/engine.sock"
        self._command = [
            "dockerd",
            "--host",
            self.url,
            "--data-root",
            f"{folder}/data",
            "--exec-root",
            f"{folder}/exec",
        ]
        self._command += ["--pidfile", f"{folder}/pid", "--bridge", "none", "--iptables=false", "--ip6tables=false"]
        self._folder = folder
        self._log = folder / "log"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 60
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                docker.DockerClient(self.url).ping()
                return
            except docker.errors.DockerException:
                time.sleep(0.1)
        raise RuntimeError(self._log.read_text()[-2000:])

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def clear(self) -> None:
        """What an engine leaves mounted, and its data."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((point for point in points if point.startswith(str(self._folder))), reverse=True):
            subprocess.run(["umount", "--lazy", point], check=False)
        for name in ("data", "exec"):
            shutil.rmtree(self._folder / name, ignore_errors=True)


def test_an_engine_that_is_stopped_in_the_middle_of_a_run_makes_it_infrastructure_and_leaves_nothing(
    own_state: Path, cpu_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base.tar"
    with base.open("wb") as file:
        made = engine_client().api.create_container(BOOTSTRAP_BASE, "true")
        file.writelines(engine_client().api.export(made["Id"]))
        engine_client().api.remove_container(made["Id"])
    with engine() as own:
        docker.DockerClient(own.url, timeout=300).api.import_image_from_file(str(base), repository="own", tag="1")
        base.unlink()
        monkeypatch.setenv("DOCKER_HOST", own.url)
        backend, audit = DockerBackend("own:1"), AuditLog(own_state / "audit.jsonl")

        class Stopper(Recorded):
            def log(self, stream: str, data: bytes) -> None:
                if not self.stdout:
                    own.stop()
                super().log(stream, data)

        code = "import time\nprint('up', flush=True)\ntime.sleep(60)"
        executor = Executor(backend, audit)
        execution = executor.run(Experiment(code=code), load_policy("default"), Request(), Stopper())
        assert execution.outcome is Outcome.INFRASTRUCTURE, execution.message
        own.start()
        assert not any(found.running for found in backend.found())
        execution = executor.run(Experiment(code="print('works')"), load_policy("default"), Request(), Recorded())
        assert (execution.outcome, execution.stdout) == (Outcome.COMPLETED, "works\n")
        assert backend.found() == []
        assert verify(audit.path).ok


# ---- a full disk ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_in_the_middle_of_a_run_is_one_line_and_leaves_nothing(
    small_disk: Path, own_state: Path, tmp_path: Path
) -> None:
    (tmp_path / "big.py").write_text("print('x' * 8_000_000)\n")
    command = [COMMAND, "exec", str(tmp_path / "big.py"), "--backend", "oci", "--results", str(small_disk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert "No space left" in done.stderr or "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert OciBackend(own_state, cache_dir()).found() == [] and left_behind(own_state) == []
    assert verify(own_state / "audit.jsonl").ok
    assert list(AuditLog(own_state / "audit.jsonl").records())[-1]["outcome"] == "infrastructure"


def test_nothing_runs_when_the_audit_log_cannot_be_written(small_disk: Path, tmp_path: Path) -> None:
    state = small_disk / "state"
    state.mkdir()
    environment = {**os.environ, "LABSANDBOX_STATE_DIR": str(state)}
    log = AuditLog(state / "audit.jsonl")
    log.append("before", pad="")
    length = log.path.stat().st_size
    log.append("before", pad="x" * (8192 - 2 * length - 1))  # so that not even the last page has room
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk}/filler", "bs=4k"], capture_output=True)
    (tmp_path / "p.py").write_text("print('ran')\n")
    command = [COMMAND, "exec", str(tmp_path / "p.py"), "--backend", "docker", "--results", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 4 and "ran" not in done.stdout
    assert "audit log" in done.stderr and "Traceback" not in done.stderr
    (small_disk / "filler").unlink()
    assert AuditLog(state / "audit.jsonl").append("after") >= 1
    assert verify(state / "audit.jsonl").ok


# ---- two users ----


def spec_of(name: str, uid: int, pid: int, image: str) -> ContainerSpec:
    mine = Owner.this_process(lifetime=600)
    owner = replace(mine, uid=uid, pid=pid, started=start_ticks(pid) or 1)
    return ContainerSpec(name, load_policy("default").limits, owner, ImageRef(reference=image, digest=image))


def sweep_as(uid: int, image: str) -> int:
    """Forks a process of that user, with the engine's group, that sweeps ten times."""
    group = Path("/var/run/docker.sock").stat().st_gid
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([group])
            os.setresgid(group, group, group)
            os.setresuid(uid, uid, uid)
            backend = DockerBackend(image)
            for _ in range(10):
                backend.sweep()
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return child


def test_two_users_who_sweep_at_once_clear_their_own_and_nothing_else(cpu_image: str) -> None:
    assert stat.S_ISSOCK(Path("/var/run/docker.sock").stat().st_mode)
    root, other, dead, alive = os.getuid(), 23456, 4194300, os.getpid()
    backend = DockerBackend(cpu_image)
    names = {
        f"{'a' * 12}{kind}": (uid, pid)
        for kind, uid, pid in (("r1", root, dead), ("r2", root, alive), ("o1", other, dead), ("o2", other, alive))
    }
    containers = {name: backend.create(spec_of(name, uid, pid, cpu_image)) for name, (uid, pid) in names.items()}
    try:
        children = [sweep_as(root, cpu_image), sweep_as(other, cpu_image)]
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        left = {found.execution_id for found in backend.found()} & names.keys()
        assert left == {"a" * 12 + "r2", "a" * 12 + "o2"}
    finally:
        for container in containers.values():
            container.destroy()


def test_the_owner_in_another_pid_namespace_is_not_taken_for_dead(own_state: Path) -> None:
    # As a labsandbox in a container that was given the engine's socket.
    script = "import json; from executor.ownership import Owner; print(json.dumps(Owner.this_process(600).labels()))"
    inside = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script]
    labels = json.loads(subprocess.run(inside, capture_output=True, text=True, check=True).stdout)
    elsewhere = Owner.from_labels(labels)
    assert elsewhere is not None and elsewhere.namespace != pid_namespace()
    assert not elsewhere.abandoned()
    assert replace(elsewhere, deadline=time.time() - 1).abandoned()
    here = replace(elsewhere, namespace=pid_namespace(), pid=4194300)
    assert here.abandoned() and not replace(here, uid=os.getuid() + 1).abandoned()


def test_a_change_of_the_clock_kills_no_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner.this_process(lifetime=3600)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 600)
    assert not owner.abandoned()
    assert Owner.from_labels(owner.labels()) == owner


# ---- ps, kill, gc ----


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_ps_shows_what_runs_and_kill_ends_it(kind: str, own_state: Path, cpu_image: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)")
    slow = [COMMAND, "exec", str(tmp_path / "slow.py"), "--json", "--backend", kind, "--results", str(tmp_path / "r")]
    process = subprocess.Popen(slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stdout is not None
    while "up" not in process.stderr.readline():
        pass
    (row,) = [row for row in json.loads(command("ps", "--json").stdout) if row["pid"] == process.pid]
    assert (row["backend"], row["running"], row["abandoned"], row["uid"]) == (kind, True, False, os.getuid())
    assert (row["user"], row["sprint"]) == (getpass.getuser(), None) and row["since"] is not None
    assert row["execution"] in command("ps").stdout
    killed = command("kill", row["execution"][:10])
    assert (killed.returncode, killed.stdout) == (0, f"ended {row['execution']}\n")
    execution = json.loads(process.stdout.read())
    assert process.wait(20) == 130
    assert (execution["outcome"], execution["message"]) == ("cancelled", "ended from outside, by labsandbox kill")
    assert execution["timings"]["run_s"] > 0
    events = [record["event"] for record in AuditLog(own_state / "audit.jsonl").records()]
    assert events == ["decision", "start", "kill", "end"]
    assert row["execution"] not in command("ps").stdout
    unknown = command("kill", row["execution"])
    assert unknown.returncode == 2 and "no container" in unknown.stderr


def test_gc_removes_abandoned_containers_and_unfinished_downloads_and_leaves_the_rest(
    own_state: Path, cpu_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("LABSANDBOX_CACHE_DIR", str(cache))
    for name in ("packages/.abc.12345678", "packages/.held.12345678", "packages/kept", "packages/old"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / "packages/old", (1, 1))
    results = tmp_path / "results"
    run = results / "exec_20260101_000000"
    (run / "artifacts").mkdir(parents=True)
    (results / "home").mkdir()
    (results / "exec_20260102_000000").symlink_to(results / "home")
    for name in (".backup.20250101", ".part-dead5678"):  # somebody else's
        (results / "home" / name).write_text("")
        os.utime(results / "home" / name, (1, 1))
    for number, name in enumerate(
        ("artifacts/.part-dead5678", ".execution.json.dead5678", "artifacts/.part-young678", "kept.json")
    ):
        (run / name).write_text("")
        if number != 2:
            os.utime(run / name, (1, 1))
    backend = DockerBackend(cpu_image)
    name = "b" * 16
    backend.create(spec_of(name, os.getuid(), 4194300, cpu_image))
    with (cache / "packages/.held.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cleared = json.loads(command("gc", "--json", "--results", str(results)).stdout)
    assert name in cleared["containers"]
    assert {Path(path).name for path in cleared["paths"]} == {
        ".abc.12345678",
        "old",
        ".part-dead5678",
        ".execution.json.dead5678",
    }
    assert sorted(path.name for path in run.rglob("*.*")) == [".part-young678", "kept.json"]
    assert len(list((results / "home").iterdir())) == 2
    assert (cache / "packages/kept").is_dir() and (cache / "packages/.held.12345678").is_dir()
    assert command("gc").stdout.endswith("12345678\n") or "nothing to remove" in command("gc").stdout
