"""What the tests stand on: a real engine, a real runtime, the real environment. Nothing here is mocked."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from executor.backends.base import Backend
from executor.backends.docker import DockerBackend, engine_client
from executor.backends.oci import OciBackend
from executor.executor import Executor
from executor.experiment import Execution, Experiment
from executor.gpus.nvml import Nvml
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import PartialLimits, Policy, load_policy
from policies.state import cache_dir
from sandbox_images.environment import environment
from sandbox_images.images import build_image, image_reference

BACKENDS = ("oci", "docker")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only what needs an NVIDIA device may skip, and only where there is none."""
    if not Nvml().machine.problem:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"tests skipped for want of an NVIDIA device: {skipped}")


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own audit log, bundles and agents; the cache of wheels and environments is shared."""
    state = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("LABSANDBOX_STATE_DIR", str(state))
    monkeypatch.setenv("LABSANDBOX_LOCK_DIR", str(state / "locks"))
    for name in os.environ:
        if name.startswith(("LUMENBRIDGE_", "LABSANDBOX_LLM_")) or name in (
            "LABSANDBOX_CEILING",
            "AI_RESEARCH_USER_ID",
        ):
            monkeypatch.delenv(name)
    return state


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users get into, as they do not into pytest's own."""
    with tempfile.TemporaryDirectory(prefix="labsandbox-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="session")
def sandbox_python() -> str:
    """The interpreter of the sandbox's environment, with torch, for tests of code that runs inside."""
    return str(environment(cache_dir(), print).path / "bin/python3")


@pytest.fixture(scope="session")
def cpu_image() -> str:
    """The CPU image in a real engine, built if it is not there."""
    client = engine_client(timeout=900)
    reference = image_reference()
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / "tests.lock").open("w") as lock:  # several processes of tests want it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if reference not in {tag for image in client.images.list() for tag in image.tags}:
            build_image(client, "cpu", "bootstrap", cache_dir(), print)
    return reference


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, own_state: Path) -> Backend:
    """Each backend in turn."""
    if request.param == "oci":
        return OciBackend(own_state, cache_dir())
    return DockerBackend(request.getfixturevalue("cpu_image"))


@dataclass
class Recorded:
    """A sink that keeps everything in memory."""

    stdout: bytes = b""
    stderr: bytes = b""
    records: list[object] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def log(self, stream: str, data: bytes) -> None:
        setattr(self, stream, getattr(self, stream) + data)

    def record(self, record: object) -> None:
        self.records.append(record)

    def artifact(self, name: str) -> "RecordedFile":
        return RecordedFile(self, name)


@dataclass
class RecordedFile:
    sink: Recorded
    name: str
    data: bytes = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def commit(self) -> None:
        self.sink.files[self.name] = self.data

    def abort(self) -> None:
        self.data = b""


@dataclass
class Bench:
    """Runs code in a container of one backend and keeps what came of it."""

    backend: Backend
    executor: Executor
    audit: AuditLog
    policy: Policy
    sink: Recorded = field(default_factory=Recorded)

    def run(self, code: str, **limits: object) -> Execution:
        self.sink = Recorded()
        request = Request(limits=PartialLimits.model_validate(limits))
        return self.executor.run(Experiment(code=code), self.policy, request, self.sink)

    def left(self) -> list[str]:
        """This process's containers that are still there: other tests' processes use the same engine."""
        return [found.execution_id for found in self.backend.found() if found.owner.pid == os.getpid()]


@pytest.fixture
def bench(backend: Backend, own_state: Path) -> Iterator[Bench]:
    """A bench on each backend; afterwards nothing of it may be left."""
    audit = AuditLog(own_state / "audit.jsonl")
    yield Bench(backend, Executor(backend, audit), audit, load_policy("default"))
    assert not list(own_state.glob("oci/bundles/*/*")), "a bundle was left behind"
