"""How a Docker engine is asked for GPUs: by CDI where it knows it, by NVIDIA's own hook where it is older.

Either way NVIDIA's container toolkit runs programs as root for it, so its version matters.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.errors import SandboxUnavailable
from executor.gpus.cdi import SPEC_FOLDERS, DeviceNode, Edits, all_edits, read_devices
from executor.gpus.devices import Device
from executor.gpus.driver import described, numbers, own_nodes, unified_memory_major

SAFE_TOOLKIT = (1, 17, 8)
"""Before it, an image could run a program of its own as root on the host (CVE-2025-23266)."""
_COMMANDS = ("nvidia-ctk", "nvidia-container-runtime-hook", "nvidia-container-cli")
_VERSION = re.compile(r"\bversion:? v?(\d+)\.(\d+)\.(\d+)", re.IGNORECASE)
_CONTROL = frozenset({"195:255", "195:254"})
"""`nvidiactl` and `nvidia-modeset`, whose nodes NVIDIA's hook makes where they are missing, as those of `nvidia-uvm`."""

Version = tuple[int, int, int]


@dataclass(frozen=True)
class DeviceRequest:
    """How the engine is asked."""

    request: dict[str, Any]
    """A DeviceRequest, by docker-py's names."""
    way: str
    """In words."""
    nodes: frozenset[str]
    """`major:minor` of the device nodes that the container will have, at most."""
    by_variable: bool = False
    """The engine tells NVIDIA's hook through the container's environment."""


def toolkit_version() -> Version | None:
    """The version of NVIDIA's container toolkit on this machine; None where none is, or it does not say."""
    for command in _COMMANDS:
        if shutil.which(command) is None:
            continue
        try:
            said = subprocess.run(
                [command, "--version"], capture_output=True, text=True, timeout=10, check=False
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        if found := _VERSION.search(said):
            return int(found[1]), int(found[2]), int(found[3])
    return None


def toolkit_problem(version: Version | None) -> str | None:
    """Why the toolkit may not be used; None if it may."""
    if version is None:
        return "NVIDIA's container toolkit is not installed, or does not tell its version (nvidia-ctk --version)"
    if version < SAFE_TOOLKIT:
        named, safe = (".".join(map(str, one)) for one in (version, SAFE_TOOLKIT))
        return f"NVIDIA's container toolkit {named} lets an image run code as root on the host (CVE-2025-23266): {safe} or later"
    return None


def device_request(devices: Sequence[Device], info: Mapping[str, Any], version: Version | None) -> DeviceRequest:
    """How to ask this engine (its /info) for the devices. Raises SandboxUnavailable, with what is missing."""
    if (problem := toolkit_problem(version)) is not None:
        raise SandboxUnavailable(problem)
    if folders := info.get("CDISpecDirs"):
        found = described(devices, read_devices(map(Path, folders)))
        known = {str(one.get("ID")) for one in info.get("DiscoveredDevices") or [] if one.get("Source") == "cdi"}
        if found is not None and (not known or all(one.name in known for one in found)):
            names = [one.name for one in found]
            return DeviceRequest(
                {"driver": "cdi", "device_ids": names}, f"CDI {', '.join(names)}", numbers(all_edits(found))
            )
    if _has_hook(info):
        uuids = [device.uuid for device in devices]
        major = unified_memory_major()
        control = _CONTROL | (set() if major is None else {f"{major}:0", f"{major}:1"})
        own = [path for device in devices for path in own_nodes(device) if Path(path).exists()]
        nodes = control | numbers([Edits(deviceNodes=[DeviceNode(path=path) for path in own])])
        request = {"device_ids": uuids, "capabilities": [["gpu"]]}
        return DeviceRequest(request, "NVIDIA's hook of the engine", nodes, by_variable=True)
    if not info.get("CDISpecDirs") and _major(info) >= 25:
        raise SandboxUnavailable(
            'the engine does not use CDI: "features": {"cdi": true} in its daemon.json, and restart it'
        )
    folders = ", ".join(info.get("CDISpecDirs") or map(str, SPEC_FOLDERS))
    raise SandboxUnavailable(
        f"the engine cannot pass the GPUs on: no CDI spec in {folders} names them "
        "(as root: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml), and it has no NVIDIA runtime"
    )


def _major(info: Mapping[str, Any]) -> int:
    first = str(info.get("ServerVersion")).partition(".")[0]
    return int(first) if first.isdigit() else 0


def _has_hook(info: Mapping[str, Any]) -> bool:
    return "nvidia" in (info.get("Runtimes") or {}) or shutil.which("nvidia-container-runtime-hook") is not None


def nvproxy_problem(driver: str, runtime: str = "runsc") -> str | None:
    """Why gVisor cannot pass this driver's devices on; None if it can. It knows exact versions only."""
    try:
        command = [runtime, "nvproxy", "list-supported-drivers"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{runtime}: {error}"
    if done.returncode != 0:
        return f"this {runtime} has no nvproxy: it is too old for GPUs"
    if driver not in done.stdout.split():
        return f"this {runtime} does not know the NVIDIA driver {driver} (runsc nvproxy list-supported-drivers)"
    return None
