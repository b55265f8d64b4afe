"""Containers through a Docker Engine, or another engine that speaks its API, on whatever socket DOCKER_HOST names.

The attach stream is the log: nothing that the experiment prints is written by the engine.
"""

import contextlib
import hashlib
import json
import os
import select
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.types
import requests

from executor.backends.base import (
    AHEAD_SHARES,
    GVISOR_FILES,
    GVISOR_TASKS,
    KEPT_CAPABILITIES,
    Container,
    ContainerSpec,
    Found,
    Passed,
    Progress,
    pid1,
)
from executor.backends.seccomp import seccomp_profile
from executor.channel import Connection
from executor.errors import InfrastructureError, SandboxUnavailable
from executor.experiment import ImageRef
from executor.gpus.devices import Machine
from executor.gpus.engine import DeviceRequest, device_request, nvproxy_problem, toolkit_version
from executor.observe import Cgroup
from executor.ownership import PREFIX, Adoption, Owner, adopted
from policies.decision import Capabilities
from policies.model import Isolation, Limits
from policies.state import cache_dir
from sandbox_images.lock import Flavour

_API_TIMEOUT = 60
_ENDING = 2.0
"""Seconds that the engine may take to learn that a container has ended."""
_NAME = "labsandbox-"
_STREAMS = {1: "stdout", 2: "stderr"}
_FRAME = struct.Struct(">BxxxI")  # the engine's multiplexed attach stream: kind, length
_ENGINE_ERRORS = (docker.errors.DockerException, requests.RequestException, OSError)


def engine_client(timeout: int = _API_TIMEOUT) -> docker.DockerClient:
    """A client of the engine that DOCKER_HOST names, or the local one. Raises SandboxUnavailable if none answers."""
    try:
        client = docker.from_env(timeout=timeout)
        # On a local socket no proxy and no .netrc applies, and looking for them costs as much as a short request.
        client.api.trust_env = not client.api.base_url.startswith("http+docker://localhost")
        client.ping()
        return client
    except _ENGINE_ERRORS as error:
        raise SandboxUnavailable(f"no Docker engine answers: {one_line(error)}") from None


class DockerBackend:
    """Containers of one engine, from one image, under one of the engine's runtimes."""

    name = "docker"

    def __init__(self, image: str, runtime: str | None = None, flavour: Flavour = "cpu") -> None:
        self._image = image
        self.flavour: Flavour = flavour
        self._undestroyed: set[str] = set()
        self._client = engine_client()
        self._info: dict[str, Any] = self._client.info()
        self._podman = "podman" in str(self._client.version().get("Components")).lower()
        self.runtime = runtime or str(self._info.get("DefaultRuntime", "runc"))
        known = sorted(self._info.get("Runtimes") or {})
        if known and self.runtime not in known:
            names = ", ".join(known)
            raise SandboxUnavailable(f"the engine has no runtime {self.runtime!r} (it has {names})")
        # By the name that gVisor's own set-up gives it; the running container is checked for being what it claims.
        self._isolation: Isolation = "gvisor" if self.runtime.startswith("runsc") else "kernel"

    def capabilities(self) -> Capabilities:
        """What the engine says of its host's kernel."""
        flags = {
            "memory": ("MemoryLimit", "SwapLimit"),
            "cpus": ("CpuCfsQuota",),
            "pids": ("PidsLimit",),
        }
        missing = {
            limit: f"the engine reports no {' or '.join(names)}"
            for limit, names in flags.items()
            if not all(self._info.get(name) for name in names)
        }
        if self._isolation == "gvisor":
            missing["files"] = GVISOR_FILES
        elif self._podman:
            missing["files"] = "Podman's API takes no inode limit for a tmpfs"
        enforces = frozenset({*Limits.model_fields, "network"} - missing.keys())
        return Capabilities(
            backend=self.name,
            runtime=self.runtime,
            enforces=enforces,
            missing=missing,
            isolation=self._isolation,
        )

    def recipe(self) -> dict[str, str | None]:
        engine = f"{self._info.get('ID')} {os.environ.get('DOCKER_HOST', '')}"
        return {
            "backend": self.name,
            "runtime": self.runtime,
            "image": self._image,
            "flavour": self.flavour,
            "engine": engine,
        }

    def gpu_problems(self, machine: Machine) -> dict[str, str]:
        if (problem := self._gpu_problem(machine)) is not None:
            return dict.fromkeys((device.uuid for device in machine.usable), problem)
        version, problems = toolkit_version(), {}
        for device in machine.usable:
            try:
                device_request([device], self._info, version)
            except SandboxUnavailable as error:
                problems[device.uuid] = str(error)
        return problems

    def _gpu_problem(self, machine: Machine) -> str | None:
        """Why the engine can pass no device on. Those that the driver of this machine shows must be the engine's, so it must
        be here as well."""
        if not self._local:
            return "the engine is on another machine, whose GPUs are not seen from here"
        if self._podman and not _at_least(self._info, (5, 4)):
            return "Podman's API passes GPUs on from version 5.4 on"
        if self._isolation == "gvisor":
            runtime = (self._info.get("Runtimes") or {}).get(self.runtime) or {}
            if not any(str(word).startswith("--nvproxy") for word in runtime.get("runtimeArgs") or []):
                return f"the engine's runtime {self.runtime} is not set to pass GPUs on (--nvproxy in its runtimeArgs)"
            if (problem := nvproxy_problem(machine.driver, str(runtime.get("path") or "runsc"))) is not None:
                return problem
        return None

    def runtimes(self) -> list[str]:
        """The engine's OCI runtimes by name, those aside that it knows by the name of a containerd shim."""
        return sorted(name for name in self._info.get("Runtimes") or {} if "." not in name)

    def engine(self) -> str:
        """The engine's name and version, as it gives them."""
        return f"{self._info.get('OperatingSystem', '?')}, {self._info.get('ServerVersion', '?')}"

    def has_image(self) -> bool:
        """Whether the engine holds the image already."""
        return self._digest() is not None

    def _digest(self) -> str | None:
        try:
            return str(self._client.images.get(self._image).id)
        except docker.errors.ImageNotFound:
            return None
        except _ENGINE_ERRORS as error:
            raise SandboxUnavailable(f"the Docker engine: {one_line(error)}") from None

    def prepare(self, progress: Progress) -> ImageRef:
        """Finds the image; it is never pulled unasked."""
        digest = self._digest()
        if digest is None:
            raise SandboxUnavailable(
                f"the engine has no image {self._image} (labsandbox images build {self.flavour} makes the standard one)"
            )
        return ImageRef(reference=self._image, digest=digest)

    def create(self, spec: ContainerSpec) -> "DockerContainer":
        self._destroy_again()
        limits = spec.limits
        api = self._client.api
        asked = device_request(spec.gpus, self._info, toolkit_version()) if spec.gpus else None
        host_config = api.create_host_config(
            network_mode="none",
            **_control_group(spec),
            # Whoever takes it must be able to give it back its weight.
            cpu_shares=AHEAD_SHARES if spec.ahead and self._here() else None,
            cap_drop=["ALL"],
            cap_add=list(KEPT_CAPABILITIES),
            security_opt=["no-new-privileges", f"seccomp={self._seccomp()}"],
            read_only=True,
            tmpfs=self._tmpfs(spec),
            ipc_mode="private",
            ulimits=self._ulimits(limits),
            log_config=docker.types.LogConfig(type="none"),
            runtime=self.runtime,
            device_requests=[docker.types.DeviceRequest(**asked.request)] if asked else None,
        )
        try:
            made = api.create_container(
                image=spec.image.digest,
                entrypoint=pid1("python3", emptied=True),
                command=[],
                user="0:0",
                hostname="sandbox",
                working_dir="/",
                stdin_open=True,
                stop_timeout=1,  # an engine that is stopped shall not wait for code that does not listen
                # Where NVIDIA's runtime is the engine's own, an image's variables would get it every device.
                environment={} if asked and asked.by_variable else {"NVIDIA_VISIBLE_DEVICES": "void"},
                labels=spec.owner.labels(),
                name=f"{_NAME}{spec.execution_id}",
                host_config=host_config,
            )
        except _ENGINE_ERRORS as error:
            raise InfrastructureError(f"the engine could not create the container: {one_line(error)}") from None
        return DockerContainer(self._client, made["Id"], self._undestroyed, _passed(asked))

    def adopt(
        self, name: str, container_id: str, owner: Owner, descriptors: Sequence[int]
    ) -> tuple[Container, Connection]:
        try:
            adoption = Adoption(name)  # the engine's labels cannot be changed
        except OSError as error:
            raise InfrastructureError(f"a container that waited cannot be adopted: {error.strerror}") from None
        (attached,) = descriptors
        connection = AttachedConnection(socket.socket(fileno=attached))
        return DockerContainer(self._client, container_id, self._undestroyed, adoption=adoption), connection

    def found(self) -> list[Found]:
        try:
            listed = self._client.api.containers(all=True, filters={"label": f"{PREFIX}pid"})
        except _ENGINE_ERRORS as error:
            raise SandboxUnavailable(f"the Docker engine: {one_line(error)}") from None
        every = []
        for one in listed:
            owner = Owner.from_labels(one.get("Labels") or {})
            name = (one.get("Names") or ["/"])[0].removeprefix(f"/{_NAME}")
            if owner is not None:
                container = DockerContainer(self._client, one["Id"], self._undestroyed)
                every.append(Found(name, container, owner, running=one.get("State") == "running"))
        return every

    def sweep(self) -> list[str]:
        self._destroy_again()
        removed = []
        with contextlib.suppress(SandboxUnavailable):
            for found in self.found():
                if found.owner.abandoned() and not adopted(found.execution_id):
                    found.container.destroy()
                    removed.append(found.execution_id)
        return removed

    @property
    def _local(self) -> bool:
        return bool(self._client.api.base_url == "http+docker://localhost")

    def _here(self) -> bool:
        """Whether this process may write to the containers' control groups."""
        return self._local and os.geteuid() == 0

    def _tmpfs(self, spec: ContainerSpec) -> dict[str, str]:
        mounts = {**spec.tmpfs(), "/dev/shm": spec.sized(spec.limits.shm, "1777", "noexec")}
        if self._podman:
            # It puts writable folders on a read-only root unasked, unless something is there.
            mounts |= dict.fromkeys(("/run", "/var/tmp"), "ro,nosuid,nodev,noexec,size=64k,mode=755")
        return mounts

    def _ulimits(self, limits: Limits) -> list[docker.types.Ulimit]:
        wanted = {"nofile": limits.open_files, "core": 0}
        if self._podman:
            # Unasked, Podman raises this one, which it cannot where it runs without CAP_SYS_RESOURCE. It counts all
            # processes of a user on the machine; those of one container are limited by its control group.
            wanted["nproc"] = 4096
        return [docker.types.Ulimit(name=name, soft=value, hard=value) for name, value in wanted.items()]

    def _seccomp(self) -> str:
        """The profile as this engine takes it: Docker its text, Podman the path of a file."""
        text = json.dumps(seccomp_profile(), sort_keys=True)
        if not self._podman:
            return text
        path = cache_dir() / f"seccomp-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(path)

    def _destroy_again(self) -> None:
        """Containers of this process that could not be destroyed while the engine was away."""
        for container_id in list(self._undestroyed):
            self._undestroyed.discard(container_id)
            DockerContainer(self._client, container_id, self._undestroyed).destroy()


def _control_group(spec: ContainerSpec) -> dict[str, Any]:
    limits = spec.limits
    tasks = limits.pids + (GVISOR_TASKS if spec.isolation == "gvisor" else 0)
    groups = {
        "memory": {"mem_limit": limits.memory, "memswap_limit": limits.memory},
        "cpus": {"nano_cpus": round(limits.cpus * 1e9)},
        "pids": {"pids_limit": tasks},
    }
    return {key: value for name, group in groups.items() if name not in spec.unheld for key, value in group.items()}


def _passed(asked: DeviceRequest | None) -> Passed | None:
    return None if asked is None else Passed(asked.way, {}, asked.nodes)


def _at_least(info: Mapping[str, Any], wanted: tuple[int, int]) -> bool:
    numbers = [int(word) for word in str(info.get("ServerVersion")).split(".")[:2] if word.isdigit()]
    return tuple(numbers) >= wanted


class DockerContainer:
    """One container of the engine."""

    def __init__(
        self,
        client: docker.DockerClient,
        container_id: str,
        undestroyed: set[str],
        passed: Passed | None = None,
        adoption: Adoption | None = None,
    ) -> None:
        self._adoption = adoption
        self.id = container_id
        self.passed = passed or Passed()
        self._api = client.api
        self._undestroyed = undestroyed
        self._seen: int | None = None
        self._group: Cgroup | None = None

    def start(self) -> "AttachedConnection":
        try:
            streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            attached = self._api.attach_socket(self.id, params=streams)
            connection = AttachedConnection(attached)
            self._api.start(self.id)
        except _ENGINE_ERRORS as error:
            raise InfrastructureError(f"the engine could not start the container: {one_line(error)}") from None
        return connection

    def pid(self) -> int | None:
        pid = self._inspect().get("State", {}).get("Pid") or None
        self._seen = self._seen or pid
        return pid

    def group(self) -> Cgroup | None:
        # Asked for again and again, and always the same: a container is started once.
        pid = self._seen or self.pid()
        if self._group is None and pid is not None:
            self._group = Cgroup.of(pid, self.id)
        return self._group

    def recorded(self) -> Mapping[str, float]:
        host = self._inspect().get("HostConfig", {})
        found: dict[str, float] = {}
        for name, key, unit in (
            ("memory", "Memory", 1.0),
            ("cpus", "NanoCpus", 1e-9),
            ("pids", "PidsLimit", 1.0),
        ):
            if host.get(key):
                found[name] = host[key] * unit
        found["swap"] = (host.get("MemorySwap") or 0) - (host.get("Memory") or 0)
        return found

    def oom_killed(self) -> bool:
        state = self._inspect().get("State", {})
        deadline = time.monotonic() + _ENDING
        # The engine learns of an end later than whoever reads what it passes on.
        while state.get("Running") and self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.02)
            state = self._inspect().get("State", {})
        return bool(state.get("OOMKilled"))

    def _has_ended(self) -> bool:
        """Whether PID 1, a process of this machine's, is gone."""
        return self._group is not None and not Path(f"/proc/{self._seen}").exists()

    def kill(self) -> None:
        with contextlib.suppress(*_ENGINE_ERRORS):
            self._api.kill(self.id, "SIGKILL")

    def destroy(self) -> None:
        try:
            self._api.remove_container(self.id, force=True, v=True)
        except docker.errors.NotFound:
            pass  # gone already
        except _ENGINE_ERRORS:
            self._undestroyed.add(self.id)
        adoption, self._adoption = self._adoption, None
        if adoption is not None:
            adoption.release()

    def _inspect(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._api.inspect_container(self.id)
            return found
        except _ENGINE_ERRORS:
            return {}


class AttachedConnection:
    """The engine's attach socket: raw bytes in, multiplexed frames out."""

    def __init__(self, attached: Any) -> None:
        # docker-py hands out a file over the socket; the socket itself can be shut down from another thread.
        self._file = attached
        self._socket: socket.socket = getattr(attached, "_sock", attached)
        self._socket.settimeout(None)
        self._left = 0
        self._stream = "stdout"

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def wait(self, seconds: float) -> bool:
        poll = select.poll()  # which, unlike `select`, takes descriptors from 1024 on
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(1000 * max(0.0, seconds)))

    def receive(self) -> tuple[str, bytes]:
        while self._left == 0:
            head = self._exactly(_FRAME.size)
            if head is None:
                return "stdout", b""
            kind, self._left = _FRAME.unpack(head)
            self._stream = _STREAMS.get(kind, "stderr")
        data = self._socket.recv(min(self._left, 65536))
        self._left -= len(data)
        return (self._stream, data) if data else ("stdout", b"")

    def descriptors(self) -> list[int]:
        return [self._socket.fileno()]

    def release(self) -> None:
        os.close(self._socket.detach())

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                return None
            data += part
        return data

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._file.close()


def one_line(error: BaseException) -> str:
    """What an engine's error says, in one line of bounded length."""
    text = getattr(error, "explanation", None) or str(error)
    return " ".join(str(text).split())[:300]
