"""What a container is sent besides the code: the job that PID 1 reads, and the files that every experiment finds."""

from pathlib import Path
from typing import Any

from executor.dependencies import ca_bundle
from executor.experiment import Experiment
from policies.decision import Decision
from sandbox_images.lock import HERE

PROXY = "http://127.0.0.1:3128"
"""Where PID 1's relay listens; RELAY in runner.py."""
_CERTIFICATES = "certificates.pem"


def job_of(experiment: Experiment, decision: Decision, environment: tuple[str, ...]) -> dict[str, Any]:
    """The job, as JSON data. `environment`: NAME=value pairs that the policy adds."""
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
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "LAB_CPUS": f"{limits.cpus:g}",
            "LAB_SEED": str(experiment.seed),
            "MPLBACKEND": "Agg",
            "MPLCONFIGDIR": "/tmp",
            "OMP_NUM_THREADS": str(max(1, int(limits.cpus))),
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait stall everybody on a shared machine
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": str(experiment.seed),
            "TMPDIR": "/tmp",
            **(_network_environment() if network else {}),
            **dict(pair.split("=", 1) for pair in environment),
        },
    }


def library(network: bool) -> dict[str, bytes]:
    """Relative path → content of `lab` and `ml_utils`; with a network, the authorities that this host trusts as well."""
    folder = HERE / "lab"
    files = {
        f"lab/{path.relative_to(folder)}": path.read_bytes()
        for path in sorted(folder.rglob("*.py"))
        if "__pycache__" not in path.parts
    }
    files["ml_utils.py"] = (HERE / "ml_utils.py").read_bytes()
    if network:
        files[_CERTIFICATES] = Path(ca_bundle()).read_bytes()
    return files


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
