"""Does what is inside the image for GPUs see them? Found out as an experiment would: in a container, with one lent."""

from executor.errors import SandboxUnavailable
from executor.experiment import AnyRecord, Experiment, Outcome, Sink
from executor.gpus.nvml import Nvml
from orchestrator.lab_setup import LabOptions, open_lab
from policies.model import PartialLimits

_LOOK = """
import torch
x = torch.ones(1024, 1024, device="cuda")
assert float((x @ x)[0, 0]) == 1024
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name(0)}")
"""


class _Nowhere:
    """A sink for what nobody needs to keep."""

    def log(self, stream: str, data: bytes) -> None: ...

    def record(self, record: AnyRecord) -> None: ...

    def artifact(self, name: str) -> "_Nowhere":
        return self

    def write(self, data: bytes) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...


def verify_gpu_image() -> str:
    """Computes something on a GPU in a container of the image; what came of it, in a line.

    Raises SandboxUnavailable when torch inside cannot use the device. Without a device, says so: the image is then as
    good as its lock.
    """
    machine = Nvml().machine
    if machine.problem:
        return f"not tried on a device: {machine.problem}"
    options = LabOptions(
        policy="gpu", backend="docker", limits=PartialLimits.model_validate({"gpus": 1, "wall": "60s"})
    )
    lab = open_lab(options, lambda text: None)
    sink: Sink = _Nowhere()
    done = lab.executor.run(Experiment(code=_LOOK), lab.policy, lab.request, sink)
    if done.outcome is not Outcome.COMPLETED:
        said = done.stderr.strip().splitlines()
        raise SandboxUnavailable(f"torch in the image cannot use the GPU: {done.message} ({said[-1] if said else ''})")
    return done.stdout.strip()
