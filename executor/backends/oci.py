"""Containers without a daemon: an OCI bundle and runc, crun, or gVisor's runsc.

The container is started detached, so that its control group outlives PID 1 until `destroy` has read it.
"""

import contextlib
import json
import os
import select
import selectors
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from executor.backends.base import GVISOR_FILES, Container, ContainerSpec, Found, Passed, Progress
from executor.backends.bundle import write_bundle
from executor.channel import Connection
from executor.errors import InfrastructureError, SandboxUnavailable
from executor.experiment import ImageRef
from executor.gpus.cdi import SPEC_FOLDERS, Edits, read_devices
from executor.gpus.devices import Machine
from executor.gpus.driver import LIBRARIES, LIBRARY_VARIABLES, edits_for, numbers
from executor.gpus.engine import nvproxy_problem
from executor.observe import Cgroup, controllers, unified
from executor.ownership import Owner, alive, pid_namespace, start_ticks
from policies.decision import Capabilities
from policies.model import Limits
from sandbox_images.environment import Environment, environment, users_environment
from sandbox_images.lock import Flavour
from sandbox_images.wheels import BuildError

# Global options of each runtime that this backend knows. runsc is left to its best platform: systrap, or ptrace.
RUNTIMES: dict[str, list[str]] = {"runc": [], "crun": [], "runsc": ["--network=none"]}
_COMMAND_TIMEOUT = 30.0
_LONG_AGO = 24 * 3600.0
_CONTROLLER_OF = {"memory": "memory", "cpus": "cpu", "pids": "pids"}


class OciBackend:
    """Containers of this user under `state`, made by the runtime's own command."""

    name = "oci"

    def __init__(
        self,
        state: Path,
        cache: Path,
        runtime: str = "runc",
        flavour: Flavour = "cpu",
        image: Path | None = None,
        cdi: Sequence[Path] = SPEC_FOLDERS,
    ) -> None:
        """image: an environment to use instead of the flavour's own. cdi: the folders of the CDI spec files that
        describe this machine's devices."""
        if runtime not in RUNTIMES:
            known = ", ".join(RUNTIMES)
            raise SandboxUnavailable(f"the oci backend does not know the runtime {runtime!r} (it knows {known})")
        self.runtime = runtime
        self._cache = cache
        self._cdi = cdi
        self._image = image
        self.flavour: Flavour = flavour
        self._bundles = state / "oci" / "bundles" / runtime
        self._root = state / "oci" / runtime
        self._roots = state / "oci" / "roots"
        self._command = [runtime, "--root", str(self._root), *RUNTIMES[runtime]]
        self._environment: Environment | None = None

    def capabilities(self) -> Capabilities:
        """Root and the runtime are needed; a controller that the kernel lacks is a limit that cannot be held."""
        if shutil.which(self.runtime) is None:
            raise SandboxUnavailable(f"{self.runtime} is not installed: apt-get install {self.runtime}")
        if os.geteuid() != 0:
            raise SandboxUnavailable("the oci backend needs root (or use --backend docker)")
        there = controllers()
        if self.runtime == "crun" and not unified():
            raise SandboxUnavailable("crun needs a host with cgroup v2 alone (or use --runtime runc)")
        missing = {
            limit: f"this kernel has no {controller} controller"
            for limit, controller in _CONTROLLER_OF.items()
            if controller not in there
        }
        if self.runtime == "runsc":
            missing["files"] = GVISOR_FILES
        enforces = frozenset({*Limits.model_fields, "network"} - missing.keys())
        return Capabilities(
            backend=self.name,
            runtime=self.runtime,
            enforces=enforces,
            missing=missing,
            isolation="gvisor" if self.runtime == "runsc" else "kernel",
        )

    def recipe(self) -> dict[str, str | None]:
        return {
            "backend": self.name,
            "runtime": self.runtime,
            "image": str(self._image) if self._image else None,
            "flavour": self.flavour,
        }

    def gpu_problems(self, machine: Machine) -> dict[str, str]:
        if self.runtime == "runsc" and (problem := nvproxy_problem(machine.driver)) is not None:
            return dict.fromkeys((device.uuid for device in machine.usable), problem)
        known, problems = read_devices(self._cdi), {}
        for device in machine.usable:
            try:
                numbers(edits_for([device], machine.driver, known)[0])
            except SandboxUnavailable as error:
                problems[device.uuid] = str(error)
        return problems

    def prepare(self, progress: Progress) -> ImageRef:
        """Builds the environment if it is not in the cache."""
        try:
            if self._image is not None:
                self._environment = users_environment(self._image)
            else:
                self._environment = environment(self._cache, progress, self.flavour)
        except (BuildError, OSError) as error:
            raise SandboxUnavailable(f"the sandbox's environment: {error}") from None
        reference = f"environment:{self._image or self.flavour}"
        return ImageRef(reference=reference, digest=self._environment.digest)

    def create(self, spec: ContainerSpec) -> "OciContainer":
        if self._environment is None:
            raise RuntimeError("prepare comes before create")
        edits, passed = _gpu_edits(spec, self._cdi)
        # Made under a name that says who makes it: whoever dies in the middle is told from one who is still at it.
        unfinished = _private(self._bundles, spec.execution_id)
        try:
            self._bundles.mkdir(parents=True, exist_ok=True, mode=0o700)
            unfinished.mkdir(mode=0o700)
            write_bundle(unfinished, spec, self._environment, self._roots, edits)
            unfinished.rename(self._bundles / spec.execution_id)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise InfrastructureError(f"cannot write the container's bundle: {error}") from None
        return self._container(spec.execution_id, passed)

    def adopt(
        self, name: str, container_id: str, owner: Owner, descriptors: Sequence[int]
    ) -> tuple[Container, Connection]:
        config = self._bundles / name / "config.json"
        try:
            written = json.loads(config.read_text())
            written["annotations"] = owner.labels()
            part = config.with_name("config.json.new")
            part.write_text(json.dumps(written))
            part.rename(config)  # the runtime has read it long ago; whoever sweeps reads whose it is
        except (OSError, ValueError) as error:
            raise InfrastructureError(f"a container that waited is gone: {error}") from None
        sent, stdout, stderr = (
            os.fdopen(one, mode, 0) for one, mode in zip(descriptors, ("wb", "rb", "rb"), strict=True)
        )
        return self._container(name), PipeConnection(sent, stdout, stderr)

    def found(self) -> list[Found]:
        every = []
        for folder in sorted(self._bundles.glob("[!.]*")):
            owner = _owner(folder)
            if owner is not None:
                container = self._container(folder.name)
                every.append(Found(folder.name, container, owner, running=container.pid() is not None))
        return every

    def sweep(self) -> list[str]:
        removed = []
        for folder in self._bundles.glob(".*"):
            if _unfinished(folder):
                shutil.rmtree(folder, ignore_errors=True)
        for folder in sorted(self._bundles.glob("[!.]*")):
            if _abandoned(folder) and not _runtime_at_work(folder):
                self._container(folder.name).destroy()
                removed.append(folder.name)
        return removed

    def _container(self, name: str, passed: Passed = Passed()) -> "OciContainer":  # noqa: B008  (frozen)
        command = [*self._command, "--nvproxy"] if passed.way and self.runtime == "runsc" else self._command
        return OciContainer(name, self._bundles / name, command, self._root, passed)


def _gpu_edits(spec: ContainerSpec, folders: Sequence[Path]) -> tuple[list[Edits], Passed]:
    """What the lent devices need in the container."""
    if not spec.gpus:
        return [], Passed()
    edits, way = edits_for(spec.gpus, spec.driver, read_devices(folders))
    return edits, Passed(way, dict.fromkeys(LIBRARY_VARIABLES, LIBRARIES), numbers(edits))


class OciContainer:
    """One bundle and the container made from it."""

    def __init__(self, name: str, folder: Path, command: list[str], root: Path, passed: Passed) -> None:
        self.id = name
        self.passed = passed
        self._folder = folder
        self._command = command
        self._root = root

    def start(self) -> "PipeConnection":
        log = self._folder / "runtime.log"
        arguments = ["--log", str(log), "run", "--detach", "--bundle", str(self._folder)]
        pidfile = ["--pid-file", str(self._folder / "pid"), self.id]
        process = subprocess.Popen(
            [*self._command, *arguments, *pidfile],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # a buffer's lock is held by whoever waits for the container to read, and closing waits for it
            env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
            umask=0o022,  # the runtime makes mount points, which the experiment's user must be able to pass
            start_new_session=True,  # Ctrl-C is for labsandbox, which stops the container itself
        )
        assert process.stdin and process.stdout and process.stderr
        connection = PipeConnection(process.stdin, process.stdout, process.stderr)
        if not _ended(process):
            process.kill()
        status = process.wait()
        if status != 0:
            connection.close()
            raise InfrastructureError(f"the runtime could not start the container: {_last_line(log)}")
        return connection

    def pid(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            pid = int((self._folder / "pid").read_text())
            # The number may be another process's by now: it is ours while it is in our control group.
            return pid if Cgroup.of(pid, self.id) is not None else None
        return None

    def group(self) -> Cgroup | None:
        return Cgroup.named(f"labsandbox/{self.id}")

    def recorded(self) -> Mapping[str, float]:
        return {}

    def oom_killed(self) -> bool:
        group = self.group()
        return group is not None and group.oom_kills() > 0

    def kill(self) -> None:
        process = subprocess.Popen(
            [*self._command, "kill", self.id, "KILL"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if not _ended(process):
            process.kill()
        process.wait()

    def destroy(self) -> None:
        if (self._folder / "config.json").exists():
            # What the runtime's own delete would do, without its start-up; and it also serves for a runtime that was
            # killed in the middle and would not find its own half-made container.
            if (group := self.group()) is not None:
                group.remove()
            if self.group() is not None:
                return  # the kernel still holds something of it: the next sweep tries again
            for left in self._root.glob(f"{self.id}*"):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        # First out of the way, whole: a bundle that lost only its config would say nothing of its owner.
        leaving = _private(self._folder.parent, self.id)
        with contextlib.suppress(FileNotFoundError):
            self._folder.rename(leaving)
        shutil.rmtree(leaving, ignore_errors=True)


class PipeConnection:
    """PID 1's standard streams as pipes."""

    def __init__(self, sent: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self._input = sent
        self._outputs = {"stdout": stdout, "stderr": stderr}
        self._selector = selectors.DefaultSelector()
        for name, pipe in self._outputs.items():
            self._selector.register(pipe, selectors.EVENT_READ, name)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._input.write(view) or 0 :]

    def wait(self, seconds: float) -> bool:
        return bool(self._selector.select(max(0.0, seconds)))

    def receive(self) -> tuple[str, bytes]:
        while True:
            for key, _ in self._selector.select():
                data = os.read(key.fd, 65536)
                if not data and key.data == "stdout":
                    self._finished()
                if data or key.data == "stdout":
                    return key.data, data
                self._selector.unregister(key.fileobj)

    def _finished(self) -> None:
        """PID 1 is gone, and nobody reads any more."""
        self._selector.close()
        for pipe in self._outputs.values():
            pipe.close()

    def descriptors(self) -> list[int]:
        return [pipe.fileno() for pipe in (self._input, *self._outputs.values())]

    def release(self) -> None:
        self._selector.close()
        for pipe in (self._input, *self._outputs.values()):
            pipe.close()

    def close(self) -> None:
        """Closing our end of its input is what tells PID 1 to end; its output is closed by its death."""
        with contextlib.suppress(OSError):
            self._input.close()


def _ended(process: "subprocess.Popen[bytes]") -> bool:
    """Waits for the process, not longer than a command may take; `Popen.wait` with a timeout looks now and then only."""
    file = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        return bool(poll.poll(1000 * _COMMAND_TIMEOUT))
    finally:
        os.close(file)


def _owner(folder: Path) -> Owner | None:
    try:
        return Owner.from_labels(json.loads((folder / "config.json").read_text())["annotations"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _runtime_at_work(folder: Path) -> bool:
    """Whether a runtime that outlived its caller is still making this container: then it is left to the next sweep."""
    import psutil

    return any(str(folder) in (process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))


def _abandoned(folder: Path) -> bool:
    owner = _owner(folder)
    return owner is not None and owner.abandoned()


def _private(bundles: Path, name: str) -> Path:
    """A folder that only this process is at work on; `_unfinished` reads its name."""
    return bundles / f".{name}.{os.getpid()}.{start_ticks(os.getpid())}.{pid_namespace()}"


def _unfinished(folder: Path) -> bool:
    """Whether whoever was making this bundle is dead: its process, or its whole namespace, a day ago."""
    try:
        _, pid, started, namespace = folder.name[1:].split(".")
        if namespace != pid_namespace():
            return time.time() - folder.stat().st_mtime > _LONG_AGO
        return not alive(int(pid), int(started))
    except (ValueError, OSError):
        return False


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1][-300:]
    return "it said nothing"
