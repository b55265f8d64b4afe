"""One device's machine, as the tests that need one use it.

The packages inside are the locked set for GPUs, or the environment that LABSANDBOX_GPU_IMAGE names (a folder with torch).
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from executor.backends.docker import DockerBackend
from executor.backends.oci import OciBackend
from executor.executor import Executor
from executor.experiment import Execution, Experiment
from executor.gpus.devices import Device
from executor.gpus.lending import Gpus
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import PartialLimits, Policy, load_policy
from policies.state import cache_dir
from sandbox_images.images import image_reference
from tests.conftest import Recorded as Sink

IMAGE = os.environ.get("LABSANDBOX_GPU_IMAGE")
FIRST_KERNEL = """
import torch
x = torch.ones(1024, device="cuda")
print(float((x + 1).sum()), flush=True)
"""


class Timed(Sink):
    """Knows when the first output came."""

    first: float | None = None

    def log(self, stream: str, data: bytes) -> None:
        self.first = self.first or time.monotonic()
        super().log(stream, data)


@dataclass
class Bench:
    """One device's machine, and what was measured on it."""

    state: Path
    figures: Callable[[str, str], None]
    gpus: Gpus
    backend: str = "oci"
    policy: Policy = field(default_factory=lambda: load_policy("gpu"))

    @property
    def device(self) -> Device:
        return self.gpus.machine.usable[0]

    def executor(self) -> Executor:
        oci = OciBackend(self.state, cache_dir(), "runc", "gpu", Path(IMAGE) if IMAGE else None)
        backend = oci if self.backend == "oci" else DockerBackend(image_reference("gpu"))
        return Executor(backend, AuditLog(self.state / "audit.jsonl"), gpus=self.gpus)

    def run(self, code: str, sink: Sink | None = None, policy: Policy | None = None, **limits: object) -> Execution:
        request = Request(limits=PartialLimits.model_validate({"gpus": 1, **limits}), gpu_wait=60)
        return self.executor().run(Experiment(code=code), policy or self.policy, request, sink or Sink())

    def started(self, code: str, policy: Policy | None = None, **limits: object) -> "Running":
        return Running(lambda: self.run(code, policy=policy, **limits))


class Running:
    """A run in the background."""

    def __init__(self, work: Callable[[], Execution]) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._work = self._pool.submit(work)

    def end(self) -> Execution:
        """The run's end, or what it raised."""
        self._pool.shutdown()
        return self._work.result()

    def holds(self, gpus: Gpus) -> None:
        """Waits until it has a device."""
        while not gpus.queue().holders:
            assert not self._work.done(), self.end()
            time.sleep(0.05)
