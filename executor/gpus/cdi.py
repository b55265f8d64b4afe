"""The Container Device Interface: reading its spec files and applying them to an OCI configuration.

Format and order of the edits: CDI specification 1.1.0, SPEC.md ("OCI Edits"): first what a file says of all its devices,
once, then what it says of each that is asked for.
"""

import copy
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from executor.errors import SandboxUnavailable

SPEC_FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
"""Where spec files are; what a later folder says replaces what an earlier one does."""
_VERSIONS = frozenset({*(f"0.{minor}.0" for minor in range(1, 9)), "1.0.0", "1.1.0"})
_MAX_FILE = 4 << 20
_TYPES = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}


class _Part(BaseModel):
    """Fields that this version does not name are kept as they are, and `apply` takes nothing from them."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)


class DeviceNode(_Part):
    """A device node in the container."""

    path: str
    hostPath: str | None = None
    type: str | None = None
    major: int | None = None
    minor: int | None = None
    fileMode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class Mount(_Part):
    """A mount in the container."""

    hostPath: str
    containerPath: str
    type: str | None = None
    options: list[str] | None = None


class Hook(_Part):
    """A program that the runtime runs."""

    hookName: Literal["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    path: str
    args: list[str] | None = None
    env: list[str] | None = None
    timeout: int | None = None


class Edits(_Part):
    """Edits of one container's configuration."""

    env: list[Annotated[str, Field(pattern="^[^=]+=")]] = []
    deviceNodes: list[DeviceNode] = []
    mounts: list[Mount] = []
    hooks: list[Hook] = []
    additionalGids: list[int] = []
    intelRdt: dict[str, Any] | None = None
    netDevices: list[dict[str, str]] = []


class _Device(_Part):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?$")]
    containerEdits: Edits = Edits()


class Spec(_Part):
    """A spec file."""

    cdiVersion: str
    kind: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+/[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")]
    devices: Annotated[list[_Device], Field(min_length=1)]
    containerEdits: Edits = Edits()


@dataclass(frozen=True)
class CdiDevice:
    """A device that a spec file describes."""

    name: str
    """Qualified, as `nvidia.com/gpu=0`."""
    edits: Edits
    spec: Spec
    source: str
    """The file, or who made the spec."""


def devices_of(spec: Spec, source: str) -> list[CdiDevice]:
    """The devices of one spec."""
    return [CdiDevice(f"{spec.kind}={device.name}", device.containerEdits, spec, source) for device in spec.devices]


def read_devices(folders: Iterable[Path] = SPEC_FOLDERS) -> dict[str, CdiDevice]:
    """Every device that the spec files describe, by its qualified name.

    A name that two files of one folder claim belongs to neither. A file that is no spec of a known version is left out,
    as if it were not there.
    """
    found: dict[str, CdiDevice] = {}
    for folder in folders:
        here: dict[str, list[CdiDevice]] = {}
        for path in sorted([*folder.glob("*.json"), *folder.glob("*.yaml"), *folder.glob("*.yml")]):
            spec = _read(path)
            for device in devices_of(spec, str(path)) if spec else ():
                here.setdefault(device.name, []).append(device)
        found |= {name: claimed[0] for name, claimed in here.items() if len(claimed) == 1}
        for name in [name for name, claimed in here.items() if len(claimed) > 1]:
            found.pop(name, None)
    return found


def _read(path: Path) -> Spec | None:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE)
        data = json.loads(raw) if path.suffix == ".json" else yaml.load(raw, yaml.CSafeLoader)
        spec = Spec.model_validate(data)
    except (OSError, ValueError, yaml.YAMLError, ValidationError, RecursionError):
        return None
    return spec if spec.cdiVersion.removeprefix("v") in _VERSIONS else None


def all_edits(devices: Iterable[CdiDevice]) -> list[Edits]:
    """The edits for these devices in the order in which they are applied."""
    edits, seen = [], set()
    for device in devices:
        if id(device.spec) not in seen:
            seen.add(id(device.spec))
            edits.append(device.spec.containerEdits)
        edits.append(device.edits)
    return edits


def apply(config: Mapping[str, Any], edits: Iterable[Edits]) -> dict[str, Any]:
    """The OCI configuration with the edits made.

    Raises SandboxUnavailable where a device node is not there, or an edit is of a kind that is not supported.
    """
    new = copy.deepcopy(dict(config))
    process, linux = new.setdefault("process", {}), new.setdefault("linux", {})
    for edit in edits:
        if edit.netDevices:
            raise SandboxUnavailable("a CDI spec wants network devices in the container, which is not supported")
        for pair in edit.env:
            _set(process.setdefault("env", []), pair)
        for node in edit.deviceNodes:
            _add_node(linux, resolved(node), process.get("user") or {})
        if edit.mounts:
            mounts = new.setdefault("mounts", [])
            for mount in edit.mounts:
                mounts[:] = [other for other in mounts if other["destination"] != mount.containerPath]
                mounts.append(_mount(mount))
            mounts.sort(
                key=lambda one: os.path.normpath(one["destination"]).count("/")
            )  # stable: order stays within a depth
        for hook in edit.hooks:
            new.setdefault("hooks", {}).setdefault(hook.hookName, []).append(_hook(hook))
        if edit.intelRdt is not None:
            linux["intelRdt"] = edit.intelRdt
        for gid in edit.additionalGids:
            groups = process.setdefault("user", {}).setdefault("additionalGids", [])
            if gid != 0 and gid not in groups:
                groups.append(gid)
    return new


def _set(environment: list[str], pair: str) -> None:
    """Appends NAME=value, or puts it in the place of one with that name, as the reference implementation does."""
    name = pair.partition("=")[0] + "="
    for index, other in enumerate(environment):
        if other.startswith(name):
            environment[index] = pair
            return
    environment.append(pair)


def resolved(node: DeviceNode) -> DeviceNode:
    """The node with its type, numbers and mode, from the host's where the spec leaves them out.

    Raises SandboxUnavailable when the host's is needed and not there, or no device.
    """
    complete = node.type is not None and (bool(node.major) or node.type == "p")
    try:
        info = os.lstat(node.hostPath or node.path)
        kind = _TYPES[stat.S_IFMT(info.st_mode)]
    except (OSError, KeyError) as error:
        if complete:
            return node
        why = getattr(error, "strerror", None) or "not a device node"
        raise SandboxUnavailable(f"the device {node.hostPath or node.path}: {why}") from None
    found: dict[str, Any] = {}
    if node.fileMode is None:
        found["fileMode"] = stat.S_IMODE(info.st_mode)
    if not complete:
        if node.type not in (None, kind):
            raise SandboxUnavailable(f"the device {node.hostPath or node.path} is of type {kind}, not {node.type}")
        found["type"] = kind
        if not node.major and kind != "p":
            found |= {"major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev)}
    return node.model_copy(update=found)


def _add_node(linux: dict[str, Any], node: DeviceNode, user: Mapping[str, Any]) -> None:
    numbers = {"major": node.major or 0, "minor": node.minor or 0} if node.type in ("b", "c", "u") else {}
    entry: dict[str, Any] = {"path": node.path, "type": node.type, **numbers}
    owner = {
        "uid": node.uid if node.uid is not None else user.get("uid") or None,
        "gid": node.gid if node.gid is not None else user.get("gid") or None,
    }
    entry |= {"fileMode": node.fileMode} if node.fileMode is not None else {}
    entry |= {name: value for name, value in owner.items() if value is not None}
    nodes = linux.setdefault("devices", [])
    nodes[:] = [other for other in nodes if other["path"] != node.path]
    nodes.append(entry)
    if node.type in ("b", "c"):
        access = {"": "rwm", "none": ""}.get(node.permissions, node.permissions)
        rules = linux.setdefault("resources", {}).setdefault("devices", [])
        rules.append({"allow": True, "type": node.type, **numbers, "access": access})


def _mount(mount: Mount) -> dict[str, Any]:
    entry: dict[str, Any] = {"destination": mount.containerPath, "source": mount.hostPath}
    entry |= {"type": mount.type} if mount.type is not None else {}
    return entry | ({"options": list(mount.options)} if mount.options is not None else {})


def _hook(hook: Hook) -> dict[str, Any]:
    return {name: value for name in ("path", "args", "env", "timeout") if (value := getattr(hook, name)) is not None}
