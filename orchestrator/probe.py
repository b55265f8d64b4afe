"""`doctor --probe`: the conformance suite on this machine's own backends."""

from collections.abc import Iterator
from dataclasses import dataclass

from executor.backends.base import Backend, Progress
from executor.backends.conformance import Finding, run_suite
from executor.errors import SandboxUnavailable
from executor.executor import Executor
from orchestrator.choices import BackendChoice
from orchestrator.lab_setup import every_backend
from policies.audit import AuditLog
from policies.model import load_policy
from policies.state import audit_path, cache_dir, state_dir


@dataclass(frozen=True)
class Probed:
    """One attack on one backend."""

    backend: str
    runtime: str
    finding: Finding


def attack(name: BackendChoice, runtime: str | None, progress: Progress) -> Iterator[Probed]:
    """Attacks every backend and runtime here that fits `name` and `runtime`. Raises SandboxUnavailable for none."""
    chosen = [
        backend
        for backend in every_backend(state_dir(), cache_dir())
        if name in ("auto", backend.name) and runtime in (None, backend.runtime) and _ready(backend)
    ]
    if not chosen:
        what = "runtime" if runtime is not None else "backend"
        raise SandboxUnavailable(f"there is no such {what} to attack (labsandbox doctor says what is missing)")
    for backend in chosen:
        progress(f"attacking {backend.name} with {backend.runtime}")
        isolation = backend.capabilities().isolation
        policy = load_policy("gvisor" if isolation == "gvisor" else "default")
        for finding in run_suite(Executor(backend, AuditLog(audit_path()), progress=progress), policy):
            yield Probed(backend.name, backend.runtime, finding)


def _ready(backend: Backend) -> bool:
    try:
        backend.prepare(lambda text: None)
        return True
    except SandboxUnavailable:
        return False
