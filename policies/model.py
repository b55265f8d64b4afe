"""A policy: what one experiment may use. Frozen, complete, and strict about what it does not know."""

import hashlib
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import rfc8785
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from policies.units import Bytes, Seconds
from sandbox_images.lock import canonical

_BUILT_IN = Path(__file__).parent
_MAX_POLICY_FILE = 64 * 1024
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, several times as fast

_Model = TypeVar("_Model", bound=BaseModel)
Count = Annotated[int, Field(strict=True, ge=1)]
# Below these the container's own PID 1 and runtime could not work, and every run would be infrastructure's failure.
Pids = Annotated[int, Field(strict=True, ge=16)]
OpenFiles = Annotated[int, Field(strict=True, ge=128)]
Memory = Annotated[Bytes, Field(ge=64 << 20)]
GpuCount = Annotated[int, Field(strict=True, ge=0, le=64)]
Cpus = Annotated[float, Field(gt=0, le=4096)]


class PolicyError(ValueError):
    """A policy that is unknown, unreadable, or says something that policies do not know."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Limits(_Strict):
    """The most that one experiment may use. Every field is enforced, or the run is refused."""

    wall: Seconds
    """Wall clock, from the start of the experiment's process."""
    cpus: Cpus
    """CPU bandwidth in cores."""
    memory: Memory
    """Memory of the whole container, the files in it included; swap is always 0."""
    pids: Pids
    """Processes and threads at once."""
    workspace: Bytes
    """Size of /workspace."""
    tmp: Bytes
    """Size of /tmp."""
    shm: Bytes
    """Size of /dev/shm."""
    files: Count
    """Files and directories (inodes) in each of the three."""
    open_files: OpenFiles
    """Descriptors of one process."""
    output: Bytes
    """Standard output and standard error together."""
    metrics: Bytes
    """Metric records as JSON lines."""
    artifacts: Bytes
    """Artifacts brought back, in all."""
    artifact_files: Count
    """Number of artifacts brought back."""
    gpus: GpuCount
    """NVIDIA GPUs that may be asked for."""
    gpu_memory: Memory
    """Memory of each of them; the whole device where it has less."""


class PartialLimits(_Strict):
    """Some of the limits: what a request asks for, or what a box allows at most."""

    wall: Seconds | None = None
    cpus: Cpus | None = None
    memory: Memory | None = None
    pids: Pids | None = None
    workspace: Bytes | None = None
    tmp: Bytes | None = None
    shm: Bytes | None = None
    files: Count | None = None
    open_files: OpenFiles | None = None
    output: Bytes | None = None
    metrics: Bytes | None = None
    artifacts: Bytes | None = None
    artifact_files: Count | None = None
    gpus: GpuCount | None = None
    gpu_memory: Memory | None = None

    def given(self) -> dict[str, float]:
        """The limits that are set, by name, as numbers (seconds, bytes, counts)."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


def _destination(text: str) -> str:
    host, _, port = text.rpartition(":")
    host = host.lower().rstrip(".")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f'a destination is written as "example.org:443", not {text!r}')
    bare = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        if not re.fullmatch(r"(?!-)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*", host) or len(host) > 253:
            raise ValueError(f"{host!r} is not a host name (wildcards are not taken: list narrow hosts)") from None
        return f"{host}:{int(port)}"
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"


Destination = Annotated[str, AfterValidator(_destination)]
"""`host:port`, lower case, without a trailing dot; an address of version 6 stands in brackets."""
PackageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$"), AfterValidator(canonical)]


class _Choice(_Strict):
    """A mode with its terms; a bare word in a file is the mode alone."""

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value


class Network(_Choice):
    """What the experiment may reach. There is no interface but loopback either way: see executor/egress.py."""

    mode: Literal["none", "allowlist"]
    hosts: Annotated[tuple[Destination, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.mode == "allowlist") != bool(self.hosts):
            raise ValueError("hosts are listed with mode allowlist, and only there")
        return self


class Dependencies(_Choice):
    """Which packages the host may fetch for an experiment, as wheels, and from where."""

    mode: Literal["deny", "allowlist", "any"]
    names: Annotated[tuple[PackageName, ...], Field(max_length=1000)] = ()
    """With mode allowlist: what may be asked for. What these depend on comes with them."""
    index: Annotated[str, Field(pattern=r"^(configured|(https?|file)://[!-~]+)$")] = "configured"
    """URL of a package index; `configured`: the one that pip is set to on this host."""
    total: Bytes | None = None
    """The most bytes of wheels for one experiment."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.mode == "allowlist") != bool(self.names):
            raise ValueError("names are listed with mode allowlist, and only there")
        if (self.mode == "deny") != (self.total is None):
            raise ValueError("total is given unless mode is deny")
        return self


Sharing = Literal["exclusive", "shared"]


class Gpu(_Strict):
    """On what terms GPUs are given."""

    unasked: GpuCount
    """GPUs given when the request names no number."""
    sharing: Sharing
    """`exclusive`: a device is one experiment's. `shared`: others of this policy's kind may be on it, each within its
    `gpu_memory`."""
    busy: Bytes
    """A device on which processes that are not labsandbox's hold more memory than this is passed over."""


class GpuCeiling(_Strict):
    """What a box allows of its GPUs, to each user."""

    sharing: Literal["exclusive"] | None = None
    """`exclusive`: no policy may share a device."""
    per_user: Annotated[int, Field(strict=True, ge=0)] | None = None
    """Devices that one user's experiments may hold at once."""
    time_per_day: Seconds | None = None
    """Device time that one user may use within 24 hours: two devices for an hour are two hours."""


class RunsCeiling(_Strict):
    """How much of a box runs hold together; without it, all of its memory and two cores for every one there is."""

    cores: Cpus | None = None
    memory: Memory | None = None
    per_user: Count | None = None
    """Runs of one user at once."""
    warm: Annotated[int, Field(strict=True, ge=0, le=64)] | None = None
    """Containers that wait for one user's runs, of all kinds together."""


class Warm(_Strict):
    """Containers made ahead of their runs, under the same terms, while a sweep, several goals or a service run."""

    count: Annotated[int, Field(strict=True, ge=0, le=64)] = 2
    """How many wait at most, of each kind that is in use; 0: none."""
    preload: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], ...] = ("numpy", "torch", "lab")
    """Modules that are loaded while they wait, for code that imports them."""
    idle: Seconds = 300.0
    """After so long without a run of their kind they are destroyed."""


Isolation = Literal["kernel", "gvisor"]
Enforcement = Literal["strict", "best-effort"]


class Policy(_Strict):
    """A named set of rules for experiments."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    description: str
    limits: Limits
    gpu: Gpu
    isolation: Isolation
    """`kernel`: namespaces, control groups and seccomp. `gvisor`: a kernel of its own between code and host as well."""
    enforcement: Enforcement
    """`strict`: a limit that the backend cannot hold denies the run. `best-effort`: the host watches it instead."""
    network: Network
    dependencies: Dependencies
    environment: tuple[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*=[ -~]*$")], ...]
    """NAME=value pairs added to the experiment's environment. No host variable ever is."""
    warm: Warm = Warm()

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON (RFC 8785) of this policy."""
        return hashlib.sha256(rfc8785.dumps(self.model_dump(mode="json"))).hexdigest()


class Ceiling(_Strict):
    """What a box allows at most, whichever policy is named."""

    limits: PartialLimits = PartialLimits()
    isolation: Isolation | None = None
    enforcement: Enforcement | None = None
    gpu: GpuCeiling | None = None
    runs: RunsCeiling | None = None
    network: Network | None = None
    dependencies: Dependencies | None = None


def built_in_policies() -> list[str]:
    """Names of the policies that come with labsandbox."""
    return sorted(path.stem for path in _BUILT_IN.glob("*.yaml"))


def load_policy(name_or_file: str) -> Policy:
    """The built-in policy of that name, or the one in that YAML file, in which whatever is not said is as in `default`.

    Raises PolicyError.
    """
    if name_or_file in built_in_policies():
        return _checked(Policy, _read(_BUILT_IN / f"{name_or_file}.yaml"), _BUILT_IN / f"{name_or_file}.yaml")
    path = Path(name_or_file)
    if path.suffix not in {".yaml", ".yml"} and not path.exists():
        known = ", ".join(built_in_policies())
        raise PolicyError(f"unknown policy {name_or_file!r}: give a YAML file or one of {known}")
    policy = _checked(Policy, _completed(_read(path), path), path)
    if policy.name in built_in_policies() and policy.sha256 != load_policy(policy.name).sha256:
        raise PolicyError(f"policy {path}: name: {policy.name!r} is another policy's, which labsandbox brings along")
    return policy


def load_ceiling(path: Path) -> Ceiling:
    """The box's ceiling from a YAML file. Raises PolicyError."""
    return _checked(Ceiling, _read(path), path)


def _completed(given: dict[str, Any], path: Path) -> dict[str, Any]:
    """A policy's file with what it leaves out, as `default` has it."""
    default = _read(_BUILT_IN / "default.yaml")
    whole = {**default, "name": re.sub("[^a-z0-9_-]", "-", path.stem.lower()), "description": "", **given}
    for part in ("limits", "gpu", "warm"):
        if isinstance(given.get(part), dict):
            whole[part] = {**default[part], **given[part]}
    return whole


def _read(path: Path) -> dict[str, Any]:
    """What the YAML file holds. Raises PolicyError."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_POLICY_FILE + 1)
    except OSError as error:
        raise PolicyError(f"cannot read policy {path}: {error.strerror}") from None
    if len(raw) > _MAX_POLICY_FILE:
        raise PolicyError(f"policy {path} is larger than {_MAX_POLICY_FILE} bytes")
    try:
        found = yaml.load(raw, _LOADER)
    except (yaml.YAMLError, RecursionError) as error:
        raise PolicyError(f"policy {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise PolicyError(f"policy {path}: not one `name: value` a line")
    return found


def _checked(model: type[_Model], given: dict[str, Any], path: Path) -> _Model:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(_problem(item["loc"], item["msg"]) for item in error.errors()[:5])
        raise PolicyError(f"policy {path}: {problems}") from None


def _problem(location: tuple[int | str, ...], message: str) -> str:
    where = ".".join(str(part) for part in location) or "top level"
    return f"{where}: {message.removeprefix('Value error, ')}"
