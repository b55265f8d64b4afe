"""What NVIDIA's driver needs inside a container: the nodes and libraries of the devices, as a CDI spec.

Where the machine has a spec, its own is used; where it has none, one is made here for the installed driver: device nodes
and the driver's libraries, and no hook, so that no program runs as root on the host to prepare a container.
Nodes: NVIDIA's driver documentation, and /proc/driver/nvidia/capabilities for MIG slices.
"""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from executor.errors import SandboxUnavailable
from executor.gpus.cdi import CdiDevice, DeviceNode, Edits, Mount, Spec, all_edits, devices_of, resolved
from executor.gpus.devices import Device

KIND = "nvidia.com/gpu"
LIBRARIES = "/run/nvidia/lib"
"""In the container: where the libraries are, and nothing else; LIBRARIES in runner.py."""
LIBRARY_VARIABLES = ("LD_LIBRARY_PATH", "TRITON_LIBCUDA_PATH")
"""What tells where they are. Triton asks the linker's cache first, which is the host's and names folders that are not inside."""
_CONTROL = "/dev/nvidiactl"
_UNIFIED_MEMORY = "/dev/nvidia-uvm"
_TOOLS = "/dev/nvidia-uvm-tools"
_DEVICES = Path("/proc/devices")
_CAPABILITIES = Path("/proc/driver/nvidia/capabilities")
_ACCESS = "/dev/nvidia-caps/nvidia-cap"
_GPU_NODE = re.compile(r"/dev/(nvidia\d+|nvidia-caps/nvidia-cap\d+)$")
# What CUDA and NVML load; what draws, encodes or traces rays stays outside.
_NEEDED = (
    "libcuda",
    "libcudadebugger",
    "libnvidia-allocator",
    "libnvidia-cfg",
    "libnvidia-compiler",
    "libnvidia-fatbinaryloader",
    "libnvidia-gpucomp",
    "libnvidia-ml",
    "libnvidia-nvvm",
    "libnvidia-nvvm70",
    "libnvidia-opencl",
    "libnvidia-pkcs11",
    "libnvidia-pkcs11-openssl3",
    "libnvidia-ptxjitcompiler",
    "libnvidia-tileiras",
)
_USUAL_FOLDERS = ("/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")


def edits_for(devices: Sequence[Device], driver: str, known: Mapping[str, CdiDevice]) -> tuple[list[Edits], str]:
    """What these devices need in a container of the daemonless backend, and by what it is known, in words.

    Of the machine's CDI specs are taken the lent devices' nodes, and from where the libraries come; what else they say
    is for other root file systems, or runs programs, or leads to services of the host's. Raises SandboxUnavailable.
    """
    found = described(devices, known)
    if found is None:
        one = made(devices, driver)
        return all_edits(one), f"CDI, a spec made for driver {driver} (the machine has none)"
    edits, wanted = all_edits(found), {_CONTROL, _UNIFIED_MEMORY, _TOOLS}
    wanted |= {path for device in devices for path in own_nodes(device)}
    nodes = {node.path: _lent(node) for edit in edits for node in edit.deviceNodes if node.path in wanted}
    # A spec that was made before a module was loaded lacks its node.
    nodes = {node.path: node for node in _control_nodes()} | nodes
    folders = [Path(mount.hostPath).parent for edit in edits for mount in edit.mounts if ".so" in mount.hostPath]
    mounts = _library_mounts([*dict.fromkeys(folders), *_folders()])
    return [Edits(deviceNodes=list(nodes.values()), mounts=mounts)], f"CDI, {found[0].source}"


def described(devices: Sequence[Device], known: Mapping[str, CdiDevice]) -> list[CdiDevice] | None:
    """The CDI devices that are these, of those that spec files describe; None where one is not described."""
    found = [_named(device, known) for device in devices]
    return [one for one in found if one is not None] if all(found) else None


def _named(device: Device, known: Mapping[str, CdiDevice]) -> CdiDevice | None:
    """By its UUID, or by the nodes that are its own: a spec's names are its maker's choice."""
    if (exact := known.get(f"{KIND}={device.uuid}")) is not None:
        return exact
    wanted = set(own_nodes(device))
    for name, one in sorted(known.items()):
        nodes = {node.path for node in one.edits.deviceNodes if _GPU_NODE.fullmatch(node.path)}
        if name.startswith(f"{KIND}=") and nodes == wanted:
            return one
    return None


def own_nodes(device: Device) -> list[str]:
    """The nodes that are this device's: its GPU's, and for a slice those that give access to its instances."""
    nodes = [f"/dev/nvidia{device.minor}"]
    if device.instance is not None:
        gpu, compute = device.instance
        folder = _CAPABILITIES / f"gpu{device.minor}" / "mig" / f"gi{gpu}"
        for access in (folder / "access", folder / f"ci{compute}" / "access"):
            nodes.append(f"{_ACCESS}{_minor(access)}")
    return nodes


def _minor(access: Path) -> int:
    try:
        found = re.search(r"DeviceFileMinor:\s*(\d+)", access.read_text())
    except OSError as error:
        raise SandboxUnavailable(f"cannot read {access}: {error.strerror}") from None
    if found is None:
        raise SandboxUnavailable(f"{access} names no device")
    return int(found[1])


def made(devices: Sequence[Device], driver: str, loaded: Sequence[Path] | None = None) -> list[CdiDevice]:
    """A spec made for the installed driver, and its devices. Raises SandboxUnavailable where it lacks nodes or libraries.

    loaded: the folders in which to look for the libraries; by default where this process has NVML from, and the usual.
    """
    nodes = _control_nodes()
    for path in (_CONTROL, _UNIFIED_MEMORY):
        if path not in {node.path for node in nodes}:
            raise SandboxUnavailable(f"there is no {path} (as root: nvidia-modprobe -u -c 0)")
    mounts = _library_mounts(loaded if loaded is not None else _folders())
    spec = Spec.model_validate(
        {
            "cdiVersion": "0.6.0",
            "kind": KIND,
            "devices": [
                {
                    "name": device.uuid,
                    "containerEdits": Edits(deviceNodes=[_node(path) for path in own_nodes(device)]).model_dump(
                        exclude_none=True
                    ),
                }
                for device in devices
            ],
            "containerEdits": Edits(deviceNodes=nodes, mounts=mounts).model_dump(exclude_none=True),
        }
    )
    return devices_of(spec, f"made for driver {driver}")


def _node(path: str) -> DeviceNode:
    return _lent(DeviceNode(path=path, permissions="rw"))


def _lent(node: DeviceNode) -> DeviceNode:
    """The lease is the permission: the experiment's user may open what was lent, whatever the host's node says. Those for
    slices are only ever read."""
    return node.model_copy(update={"fileMode": 0o444 if node.path.startswith(_ACCESS) else 0o666})


def _control_nodes() -> list[DeviceNode]:
    """Those that every container with a device needs, as far as they can be had."""
    nodes = [_node(path) for path in (_CONTROL, _TOOLS) if Path(path).exists()]
    # The host gets this one with its first program that uses CUDA, and no program in a container can make it.
    if (major := unified_memory_major()) is not None:
        nodes.append(_node(_UNIFIED_MEMORY).model_copy(update={"type": "c", "major": major, "minor": 0}))
    return nodes


def unified_memory_major() -> int | None:
    """The number of the driver's module for unified memory, which is loaded if it was not; None where that fails."""
    if (major := _unified_memory_major()) is None and shutil.which("nvidia-modprobe"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["nvidia-modprobe", "-u", "-c", "0"], capture_output=True, timeout=30, check=False)
        major = _unified_memory_major()
    return major


def _unified_memory_major() -> int | None:
    found = re.search(r"^ *(\d+) nvidia-uvm$", _DEVICES.read_text(), re.MULTILINE)
    return int(found[1]) if found else None


def _folders() -> list[Path]:
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if "/libnvidia-ml.so" in path:
            found.append(Path(path).parent)
    return list(dict.fromkeys([*found, *map(Path, _USUAL_FOLDERS)]))


def _library_mounts(folders: Iterable[Path]) -> list[Mount]:
    """Each library under each of its names, the links as well: no cache of the linker is needed to find them."""
    found: dict[str, Path] = {}
    for folder in folders:
        for stem in _NEEDED:
            for path in sorted(folder.glob(f"{stem}.so*")):
                if path.name not in found and path.is_file():
                    found[path.name] = path.resolve()
    for needed in ("libcuda.so.1", "libnvidia-ml.so.1"):
        if needed not in found:
            raise SandboxUnavailable(f"the driver's {needed} was not found")
    options = ["bind", "ro", "nosuid", "nodev"]
    return [
        Mount(hostPath=str(path), containerPath=f"{LIBRARIES}/{name}", type="none", options=options)
        for name, path in sorted(found.items())
    ]


def numbers(edits: Iterable[Edits]) -> frozenset[str]:
    """`major:minor` of every node that the edits put into the container. Raises SandboxUnavailable."""
    nodes = (resolved(node) for edit in edits for node in edit.deviceNodes)
    return frozenset(f"{node.major or 0}:{node.minor or 0}" for node in nodes if node.type in ("b", "c"))


def dmem_limit(devices: Iterable[Device], cap: int, capacity: str) -> str | None:
    """What to write to `dmem.max` (cgroup v2, "Device memory") so that no more than `cap` bytes of each are taken.

    capacity: the text of `dmem.capacity`. None where the kernel does not count a device's memory.
    """
    regions = [line.split()[0] for line in capacity.splitlines() if line.split()]
    lines = []
    for device in devices:
        own = [region for region in regions if device.pci and device.pci in region.lower()]
        if not own or device.instance is not None:
            return None
        lines += [f"{region} {cap}" for region in own]
    return "\n".join(lines) or None
