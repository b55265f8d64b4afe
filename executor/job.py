"""What a container is sent besides the code: the job that PID 1 reads, and the files that every experiment finds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from executor.backends.base import Passed
from executor.dependencies import ca_bundle
from executor.experiment import Experiment, Left
from executor.gpus.devices import Device
from policies.decision import Decision
from sandbox_images.lock import HERE

PROXY = "http://127.0.0.1:3128"
"""Where PID 1's relay listens; RELAY in runner.py."""
_CERTIFICATES = "certificates.pem"


def job_of(
    experiment: Experiment, decision: Decision, environment: tuple[str, ...], gpus: Mapping[str, str]
) -> dict[str, Any]:
    """The job, as JSON data. `environment`: NAME=value pairs that the policy adds; `gpus`: what `gpu_environment` gives."""
    limits = decision.limits
    network = bool(decision.network.hosts)
    return {
        "wall_s": limits.wall,
        "output_bytes": limits.output,
        "metrics_bytes": limits.metrics,
        "artifact_bytes": limits.artifacts,
        "artifact_files": limits.artifact_files,
        "open_files": limits.open_files,
        "relay": network,
        "environment": {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order in which NVML has them
            "GLOO_SOCKET_IFNAME": "lo",  # there is no other interface, and these look for one
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "LAB_CPUS": f"{limits.cpus:g}",
            "LAB_MORE": f"{experiment.more:g}",
            **({"LAB_PARAMS": json.dumps(experiment.params)} if experiment.params else {}),
            "LAB_SEED": str(experiment.seed),
            "MPLBACKEND": "Agg",
            "MPLCONFIGDIR": "/tmp",
            "NCCL_CUMEM_HOST_ENABLE": "0",  # it asks for memory policies, which are refused inside
            "NCCL_IB_DISABLE": "1",
            "NCCL_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": str(max(1, int(limits.cpus))),
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait stall everybody on a shared machine
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": str(experiment.seed),
            "TMPDIR": "/tmp",
            **(_network_environment() if network else {}),
            **gpus,
            **dict(pair.split("=", 1) for pair in environment),
        },
    }


def ahead_of(job: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """What an interpreter needs that is started ahead of its code, to load these modules."""
    return {
        "open_files": job["open_files"],
        "environment": {**job["environment"], "LAB_PRELOAD": " ".join(modules)},
    }


def gpu_environment(devices: Sequence[Device], cap: int, passed: Passed) -> dict[str, str]:
    """What the experiment is told of its devices: how many, how much of each (bytes, where less than all), and where
    their libraries are."""
    told = {"LAB_GPUS": str(len(devices)), **passed.environment}
    if devices and cap < min(device.memory for device in devices):
        told["LAB_GPU_MEMORY"] = str(cap)
    return told


def library(network: bool) -> dict[str, bytes]:
    """Relative path → content of `lab`, `ml_utils` and `lab_ahead`; with a network, the authorities that this host trusts too."""
    folder = HERE / "lab"
    files = {
        f"lab/{path.relative_to(folder)}": path.read_bytes()
        for path in sorted(folder.rglob("*.py"))
        if "__pycache__" not in path.parts
    }
    files |= {name: (HERE / name).read_bytes() for name in ("ml_utils.py", "lab_ahead.py")}
    if network:
        files[_CERTIFICATES] = Path(ca_bundle()).read_bytes()
    return files


def study_file(left: Left | None) -> dict[str, bytes]:
    """Of a study that goes on, what its containers left."""
    return {} if left is None else {"study.json": left.model_dump_json(exclude_none=True).encode()}


def _network_environment() -> dict[str, str]:
    proxies = {f"{name}_proxy": PROXY for name in ("http", "https")}
    bundle = f"/run/labsandbox/lib/{_CERTIFICATES}"
    return {
        **proxies,
        **{name.upper(): value for name, value in proxies.items()},
        "NO_PROXY": "localhost,127.0.0.1",
        "no_proxy": "localhost,127.0.0.1",
        "SSL_CERT_FILE": bundle,
        "REQUESTS_CA_BUNDLE": bundle,
    }
