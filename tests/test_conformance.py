"""The conformance suite on every backend and runtime of this machine; and that each of its checks can fail.

The table of sabotage breaks one protection at a time, with the inspection of the live container switched off, and
expects the attacks to notice. The other table leaves the inspection on, and expects that nothing is started at all.
"""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker.api
import pytest

from executor import channel, conversation, posture
from executor import session as session_module
from executor.backends import bundle
from executor.backends.attacks import ASSAULTS as INSIDE
from executor.backends.attacks import PROBES
from executor.backends.base import Backend
from executor.backends.conformance import ASSAULTS, promises, run_suite
from executor.backends.docker import DockerBackend, engine_client
from executor.backends.oci import RUNTIMES, OciBackend
from executor.errors import SandboxUnavailable
from executor.executor import Executor
from executor.experiment import Outcome
from executor.posture import Facts, Posture
from policies.audit import AuditLog
from policies.model import load_policy
from policies.state import cache_dir
from sandbox_images.images import BOOTSTRAP_BASE
from tests.conftest import Bench

COMBINATIONS = [
    *(f"oci+{runtime}" for runtime in RUNTIMES),
    "docker+runc",
    "docker+runsc",
]
PODMAN = Path("/run/podman/podman.sock")
MUST = {"oci+runc", "oci+runsc", "docker+runc", "docker+runsc"}


def backend_of(name: str, state: Path, image: str) -> Backend:
    kind, runtime = name.split("+")
    return OciBackend(state, cache_dir(), runtime) if kind == "oci" else DockerBackend(image, runtime)


def own_containers(backend: Backend) -> list[str]:
    """An engine may have others' containers too."""
    return [found.execution_id for found in backend.found() if found.owner.pid == os.getpid()]


def answers(path: Path) -> bool:
    """Whether a service listens; one that was stopped leaves its socket file behind."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def executor_of(backend: Backend, state: Path) -> tuple[Executor, Any]:
    policy = load_policy("gvisor" if backend.capabilities().isolation == "gvisor" else "default")
    return Executor(backend, AuditLog(state / "audit.jsonl")), policy


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_attack_is_held(name: str, own_state: Path, cpu_image: str) -> None:
    backend = backend_of(name, own_state, cpu_image)
    if name not in MUST:
        try:
            backend.capabilities()
        except SandboxUnavailable as error:
            assert "crun" in str(error)  # not installed, or refuses this host's control groups
            return
    executor, policy = executor_of(backend, own_state)
    findings = list(run_suite(executor, policy))
    assert [f"{finding.name}: {finding.detail}" for finding in findings if not finding.held] == []
    assert len(findings) >= 60
    assert own_containers(backend) == []


def test_every_attack_is_held_by_podman_where_one_answers(
    own_state: Path, cpu_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not answers(PODMAN):
        return
    image = b"".join(engine_client().api.get_image(BOOTSTRAP_BASE))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{PODMAN}")
    engine_client(timeout=300).api.load_image(image)
    backend = DockerBackend(f"localhost/{BOOTSTRAP_BASE}", "runc")
    # It takes no inode limit, which a strict policy refuses.
    policy = load_policy("default").model_copy(update={"enforcement": "best-effort"})
    findings = list(run_suite(Executor(backend, AuditLog(own_state / "audit.jsonl")), policy))
    assert [f"{finding.name}: {finding.detail}" for finding in findings if not finding.held] == []
    assert len(findings) >= 60 and own_containers(backend) == []


def test_every_attack_has_a_promise_and_a_way_to_be_judged() -> None:
    kinds = {name: kind for name, (kind, _) in promises().items()}
    assert {name for name, kind in kinds.items() if kind == "probe"} == PROBES.keys()
    assert {name for name, kind in kinds.items() if kind == "assault"} == INSIDE.keys() == ASSAULTS.keys() | {"marker"}
    assert all(promise.strip() for _, promise in promises().values())


def test_the_security_document_lists_every_promise_as_it_is_tested() -> None:
    text = (Path(__file__).parents[1] / "docs/security.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{name}` | {kind} | {promise} |" for name, (kind, promise) in promises().items()]


# ---- sabotage ----

Config = dict[str, Any]
Breaker = Callable[[pytest.MonkeyPatch, Path], None]


def in_bundle(change: Callable[[Config], object]) -> Breaker:
    """Breaks the daemonless backend's config.json."""

    def breaker(patch: pytest.MonkeyPatch, folder: Path) -> None:
        real = bundle._config

        def broken(*arguments: Any) -> Config:
            config = real(*arguments)
            change(config)
            return config

        patch.setattr(bundle, "_config", broken)

    return breaker


def in_engine(change: Callable[[Config], object]) -> Breaker:
    """Breaks the HostConfig that the engine is sent."""

    def breaker(patch: pytest.MonkeyPatch, folder: Path) -> None:
        real = docker.api.APIClient.create_host_config

        def broken(self: object, *arguments: Any, **options: Any) -> Config:
            config: Config = real(self, *arguments, **options)
            change(config)
            return config

        patch.setattr(docker.api.APIClient, "create_host_config", broken)

    return breaker


def in_runner(*changes: tuple[str, str]) -> Breaker:
    """Breaks PID 1."""

    def breaker(patch: pytest.MonkeyPatch, folder: Path) -> None:
        source = channel._RUNNER.read_text()
        for old, new in changes:
            assert old in source, old
            source = source.replace(old, new)
        (folder / "runner.py").write_text(source)
        patch.setattr(channel, "_RUNNER", folder / "runner.py")

    return breaker


def both(*breakers: Breaker) -> Breaker:
    def breaker(patch: pytest.MonkeyPatch, folder: Path) -> None:
        for one in breakers:
            one(patch, folder)

    return breaker


def in_job(change: Callable[[Config], object]) -> Breaker:
    """Breaks what PID 1 is told."""

    def breaker(patch: pytest.MonkeyPatch, folder: Path) -> None:
        real = session_module.job_of

        def broken(*arguments: Any) -> Config:
            job = real(*arguments)
            change(job)
            return job

        patch.setattr(session_module, "job_of", broken)

    return breaker


def setting(target: object, name: str, value: object) -> Breaker:
    return lambda patch, folder: patch.setattr(target, name, value)


def without_namespace(kind: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != kind]
        if kind == "uts":
            del config["hostname"]

    return change


def mount_options(point: str, old: str, new: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        mount = next(mount for mount in config["mounts"] if mount["destination"] == point)
        mount["options"] = [new if option.startswith(old) else option for option in mount["options"]]

    return change


def resources(kind: str, **values: object) -> Callable[[Config], None]:
    return lambda config: config["linux"]["resources"][kind].update(values)


def leaky_environment(job: Config) -> None:
    job["environment"].update(os.environ)


def late(self: conversation.Conversation, heard: float) -> float:
    return heard + 6 if self._over is not None else self._started + self._limits.wall + 4


SABOTAGE: dict[str, tuple[str, Breaker, list[str]]] = {
    "the seccomp profile": (
        "oci+runc",
        in_bundle(lambda config: config["linux"].pop("seccomp")),
        ["user_namespace", "kernel_entries", "socket_families"],
    ),
    "the engine's seccomp profile": (
        "docker+runc",
        in_engine(lambda config: config.update(SecurityOpt=["no-new-privileges", "seccomp=unconfined"])),
        ["user_namespace", "kernel_entries", "socket_families"],
    ),
    "the one architecture of the profile": (
        "oci+runc",
        in_bundle(lambda config: config["linux"]["seccomp"]["architectures"].append("SCMP_ARCH_X86")),
        ["other_architectures"],
    ),
    "the network namespace": (
        "oci+runc",
        in_bundle(without_namespace("network")),
        ["interfaces", "loopback_of_the_host", "sockets_of_the_host"],
    ),
    "the engine's network mode": (
        "docker+runc",
        in_engine(lambda config: config.update(NetworkMode="host")),
        ["interfaces", "loopback_of_the_host", "sockets_of_the_host"],
    ),
    "the ipc namespace": ("oci+runc", in_bundle(without_namespace("ipc")), ["shared_memory_of_others"]),
    "the engine's ipc mode": (
        "docker+runc",
        in_engine(lambda config: config.update(IpcMode="host")),
        ["shared_memory_of_others"],
    ),
    "the uts namespace": ("oci+runc", in_bundle(without_namespace("uts")), ["host_name"]),
    "the limit of processes": ("oci+runc", in_bundle(resources("pids", limit=300)), ["fork_bomb", "thread_bomb"]),
    "the engine's limit of processes": (
        "docker+runc",
        in_engine(lambda config: config.update(PidsLimit=300)),
        ["fork_bomb"],
    ),
    "the memory limit": (
        "oci+runc",
        in_bundle(resources("memory", limit=400 << 20, swap=400 << 20)),
        ["memory_bomb", "files_as_memory"],
    ),
    "the engine's memory limit": (
        "docker+runc",
        in_engine(lambda config: config.update(Memory=400 << 20, MemorySwap=400 << 20)),
        ["memory_bomb"],
    ),
    "gVisor's memory limit": (
        "oci+runsc",
        in_bundle(resources("memory", limit=600 << 20, swap=600 << 20)),
        ["memory_bomb"],
    ),
    "the processor quota": ("oci+runc", in_bundle(resources("cpu", quota=200_000)), ["cpu_hog"]),
    "the size of /workspace": (
        "oci+runc",
        in_bundle(mount_options("/workspace", "size=", "size=4g")),
        ["workspace_fill"],
    ),
    "the size of /tmp": ("oci+runc", in_bundle(mount_options("/tmp", "size=", "size=64m")), ["full_folders"]),
    "the size of gVisor's /tmp": ("oci+runsc", in_bundle(mount_options("/tmp", "size=", "size=64m")), ["full_folders"]),
    "the inodes of /workspace": (
        "oci+runc",
        in_bundle(mount_options("/workspace", "nr_inodes=", "nr_inodes=1m")),
        ["many_files"],
    ),
    "the read-only root": (
        "docker+runc",
        in_engine(lambda config: config.update(ReadonlyRootfs=False)),
        ["writing_elsewhere"],
    ),
    "the experiment's own user": (
        "oci+runc",
        in_runner(("EXPERIMENT_ID = 65534", "EXPERIMENT_ID = 0")),
        ["descriptors_of_pid_1", "the_platforms_files", "other_processes"],
    ),
    "gVisor's experiment's own user": (
        "oci+runsc",
        in_runner(("EXPERIMENT_ID = 65534", "EXPERIMENT_ID = 0")),
        ["descriptors_of_pid_1", "the_platforms_files"],
    ),
    "the limit of descriptors": (
        "oci+runc",
        both(
            in_bundle(lambda config: config["process"].update(rlimits=[])),
            in_runner(("resource.setrlimit(resource.RLIMIT_NOFILE", "(lambda *_: None)(resource.RLIMIT_NOFILE")),
        ),
        ["descriptors"],
    ),
    "the end of daemons": (
        "oci+runc",
        in_runner(("        self.kill_everything_else()\n", "")),
        ["daemon", "orphans"],
    ),
    "both clocks": (
        "oci+runc",
        both(setting(conversation.Conversation, "_deadline", late), in_runner(("CE = 0.25", "CE = 4.0"))),
        ["deaf", "own_clock"],
    ),
    "the output limit": (
        "oci+runc",
        both(in_job(lambda job: job.update(output_bytes=2 << 20)), setting(conversation, "_SLACK", 8 << 20)),
        ["output_flood"],
    ),
    "regular files only": (
        "oci+runc",
        in_runner(("elif not stat.S_ISREG(info.st_mode):", "elif False:"), ("os.O_NOFOLLOW | ", "")),
        ["hostile_artifacts"],
    ),
    "safe names": ("oci+runc", setting(conversation, "safe_name", lambda name: name), ["hostile_artifacts"]),
    "the number of artifacts": (
        "oci+runc",
        in_job(lambda job: job.update(artifact_files=10_000)),
        ["four_thousand_files"],
    ),
    "the clean environment": ("oci+runc", in_job(leaky_environment), ["environment_of_the_host"]),
    "PID 1's empty environment": (
        "docker+runsc",
        setting(session_module, "posture_of", None),  # replaced below, with the bootstrap
        ["read_pid_1"],
    ),
}


@pytest.mark.parametrize("protection", SABOTAGE)
def test_breaking_a_protection_lets_an_attack_through(
    protection: str, own_state: Path, cpu_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, breaker, attacks = SABOTAGE[protection]
    backend = backend_of(name, own_state, cpu_image)
    executor, policy = executor_of(backend, own_state)
    breaker(monkeypatch, tmp_path)
    monkeypatch.setattr(session_module, "posture_of", lambda *_: Posture({}, {}, []))
    monkeypatch.setattr(session_module, "check", lambda *_: None)
    if protection == "PID 1's empty environment":
        monkeypatch.setattr("executor.backends.base.EMPTIED", channel.LOAD)
    for _ in range(3):  # on a busy machine a hog may not get what nobody keeps from it
        findings = list(run_suite(executor, policy, attacks))
        assert {finding.name for finding in findings} == set(attacks)
        escaped = {one.name for one in findings if not one.held and "could not be tried" not in one.detail}
        if escaped:
            break
    assert escaped, [f"{finding.name}: {finding.held} {finding.detail}" for finding in findings]


# ---- the inspection ----

REFUSED: dict[str, tuple[str, Breaker, str]] = {
    "no seccomp": ("oci", in_bundle(lambda config: config["linux"].pop("seccomp")), "seccomp"),
    "no seccomp in the engine": (
        "docker",
        in_engine(lambda config: config.update(SecurityOpt=["no-new-privileges", "seccomp=unconfined"])),
        "seccomp",
    ),
    "new privileges": (
        "oci",
        in_bundle(lambda config: config["process"].update(noNewPrivileges=False)),
        "no_new_privs",
    ),
    "a capability too many": (
        "oci",
        in_bundle(lambda config: [one.append("CAP_NET_RAW") for one in config["process"]["capabilities"].values()]),
        "CapEff",
    ),
    "a capability too many in the engine": (
        "docker",
        in_engine(lambda config: config["CapAdd"].append("SYS_PTRACE")),
        "CapEff",
    ),
    "a writable root": ("oci", in_bundle(lambda config: config["root"].update(readonly=False)), "/ .* is writable"),
    "a writable root in the engine": (
        "docker",
        in_engine(lambda config: config.update(ReadonlyRootfs=False)),
        "/ .* is writable",
    ),
    "a folder of the host's": (
        "oci",
        in_bundle(
            lambda config: config["mounts"].append(
                {"destination": "/mnt", "type": "bind", "source": "/var/tmp", "options": ["bind", "rw"]}
            )
        ),
        "/mnt .* is writable",
    ),
    "a folder of the host's in the engine": (
        "docker",
        in_engine(lambda config: config.update(Binds=["/var/tmp:/mnt:rw"])),
        "/mnt .* is writable",
    ),
    "the host's network": ("oci", in_bundle(without_namespace("network")), "net namespace is the host's"),
    "the host's network in the engine": (
        "docker",
        in_engine(lambda config: config.update(NetworkMode="host")),
        "net namespace is the host's",
    ),
    "the host's ipc": ("oci", in_bundle(without_namespace("ipc")), "ipc namespace is the host's"),
    "the host's uts": ("oci", in_bundle(without_namespace("uts")), "uts namespace is the host's"),
    "every device": (
        "oci",
        in_bundle(lambda config: config["linux"]["resources"]["devices"].append({"allow": True, "access": "rwm"})),
        "device rule",
    ),
    "writable settings of the kernel": (
        "oci",
        in_bundle(lambda config: config["linux"].update(readonlyPaths=[])),
        "/proc/sys is not read-only",
    ),
    "more memory": ("oci", in_bundle(resources("memory", limit=8 << 30, swap=8 << 30)), "memory"),
    "more memory in the engine": (
        "docker",
        in_engine(lambda config: config.update(Memory=8 << 30, MemorySwap=8 << 30)),
        "memory",
    ),
    "more processors": ("oci", in_bundle(resources("cpu", quota=100_000_000)), "cpus"),
    "more processes": ("oci", in_bundle(resources("pids", limit=4000)), "pids"),
    "more space": ("oci", in_bundle(mount_options("/workspace", "size=", "size=8g")), "workspace"),
    "more inodes": ("oci", in_bundle(mount_options("/tmp", "nr_inodes=", "nr_inodes=1m")), "files"),
    "more descriptors": (
        "oci",
        in_bundle(lambda config: config["process"]["rlimits"][0].update(hard=8192, soft=8192)),
        "open_files",
    ),
}


@pytest.mark.parametrize("looseness", REFUSED)
def test_a_container_that_is_not_as_decided_is_refused_before_anything_runs_in_it(
    looseness: str, own_state: Path, cpu_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, breaker, said = REFUSED[looseness]
    backend = backend_of(f"{kind}+runc", own_state, cpu_image)
    executor, policy = executor_of(backend, own_state)
    bench = Bench(backend, executor, AuditLog(own_state / "audit.jsonl"), policy)
    breaker(monkeypatch, tmp_path)
    execution = bench.run("print('ran')", wall="20s")
    assert execution.outcome is Outcome.INFRASTRUCTURE
    assert re.search(said, execution.message), execution.message
    assert execution.started_at is None and execution.stdout == ""
    assert own_containers(backend) == []


def test_a_process_that_shares_the_hosts_namespaces_or_is_no_gvisor_is_told_from_one_that_does_not() -> None:
    kernel = posture._foreign(os.getpid(), "kernel")
    assert {word for line in kernel for word in line.split() if word in posture._NAMESPACES} == set(posture._NAMESPACES)
    assert any("not gVisor" in line for line in posture._foreign(os.getpid(), "gvisor"))


def test_facts_that_are_missing_deviate() -> None:
    wrong = posture._deviations(Facts.told({"status": "CapEff:\tnonsense"}), "", "kernel")
    assert any("uid unknown" in line for line in wrong)
    assert any("CapEff" in line for line in wrong)
    assert any("mounts could not be read" in line for line in wrong)
    assert posture.process_limits(Facts.told({})) == {}
