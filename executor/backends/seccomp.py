"""The system calls that a container may make, as OCI `linux.seccomp` and as Docker takes it.

`sandbox_images/seccomp.json` lists what moby's default profile allows to a process without capabilities, already
resolved (no archMap, no capability conditions), less what an experiment has no use for: ptrace and reading other
processes, clock adjustment, file handles, and socket families other than unix, inet, inet6 and netlink. Only the
native architecture is listed, so 32-bit system calls end the process.
"""

import json
import platform
from typing import Any

from executor.errors import SandboxUnavailable
from sandbox_images.lock import HERE

_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}


def seccomp_profile() -> dict[str, Any]:
    """The profile for this machine's architecture, a new one for every container: whoever is given it may change it.

    Raises SandboxUnavailable on an architecture that it was not made for.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise SandboxUnavailable(f"there is no system call profile for the architecture {machine}")
    profile: dict[str, Any] = json.loads((HERE / "seccomp.json").read_text())
    return {**profile, "architectures": [_ARCHITECTURES[machine]]}
