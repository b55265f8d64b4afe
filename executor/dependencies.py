"""An experiment's own packages: resolved and fetched by the host as wheels, unpacked only inside the container.

No build step ever runs here: uv resolves with `--no-build`, pip downloads with `--only-binary` and checks the hashes.
What the sandbox's environment holds already is pinned and not fetched again.
"""

import ast
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from executor.errors import PackagesUnavailable, SandboxUnavailable
from policies.model import Dependencies
from policies.units import format_bytes
from sandbox_images.lock import Flavour, locked
from sandbox_images.wheels import exclusive, scratch

_RESOLVE_SECONDS, _FETCH_SECONDS = 60.0, 600.0
_FRESH_SECONDS = 24 * 3600.0
"""For so long the same requirements are taken to resolve to the same versions, without asking the index again."""
_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+!-]*\.whl")
_PIN = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+(?: ;[^@]*)?|--hash=sha256:[0-9a-f]{64})(?: \\)?|")
_MAX_ENTRIES = 1 << 16
_SECTIONS = (":env:", "download", "install", "global")
"""Of pip's settings, the weightiest first: a command's own weigh more than those of all, and the environment most (pip's user
guide, "Precedence / Override order"). What somebody has set for installing is meant for what is fetched here, too."""
_PAGE = 4096

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Wheels:
    """What will be sent in."""

    files: tuple[Path, ...] = ()
    lock: tuple[str, ...] = ()
    """`name==version --hash=sha256:…` of each, sorted."""
    unpacked_bytes: int = 0
    """What the files in them take on a tmpfs."""

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def fetch(
    requirements: Iterable[str], terms: Dependencies, cache: Path, progress: Progress, flavour: Flavour
) -> Wheels:
    """The wheels that `requirements` need beyond what a sandbox of that flavour holds.

    Raises PackagesUnavailable when there are none that fit (unknown, only as source, conflicting, too large), and
    SandboxUnavailable when the index cannot be reached.
    """
    wanted = sorted(set(requirements))
    if not wanted:
        return Wheels()
    source = _Source.of(terms.index)
    pins = _resolve(wanted, locked(flavour), source, cache, progress)
    if not pins.strip():
        return Wheels()
    _check_pins(pins)
    assert terms.total is not None
    return _listed(_download(pins, source, terms.total, cache, progress))


@dataclass(frozen=True)
class _Source:
    """Where packages come from, for two programs that are told in different ways."""

    index: str | None
    extra: tuple[str, ...]
    links: tuple[str, ...]

    @classmethod
    def of(cls, index: str) -> "_Source":
        """A policy's index alone, or what pip is set to on this host (its configuration files and environment)."""
        if index != "configured":
            return cls(index, (), ())
        said = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=_RESOLVE_SECONDS
        )
        return cls.configured(said.stdout)

    @classmethod
    def configured(cls, listed: str) -> "_Source":
        """What `pip config list` tells: sorted lines of `section.name=value`, the value as Python writes it."""
        said = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)

        def words(name: str) -> tuple[str, ...]:
            each = (said.get(f"{section}.{name}", "''") for section in _SECTIONS)
            # An empty value says nothing, as for pip.
            return next((found for value in each if (found := tuple(ast.literal_eval(value).split()))), ())

        return cls(next(iter(words("index-url")), None), words("extra-index-url"), words("find-links"))

    def options(self) -> list[str]:
        """Options that uv and pip share."""
        index = ["--index-url", self.index] if self.index else []
        extra = [word for url in self.extra if _there(url) for word in ("--extra-index-url", url)]
        links = [word for url in self.links if _there(url) for word in ("--find-links", url)]
        return index + extra + links


def _there(location: str) -> bool:
    """pip passes over folders that are not there, uv does not."""
    path = location.removeprefix("file://")
    return not path.startswith("/") or Path(path).exists()


def _resolve(wanted: list[str], held: Mapping[str, str], source: _Source, cache: Path, progress: Progress) -> str:
    """Pinned requirements with hashes, less what the sandbox holds (name → version); kept for a day."""
    key = json.dumps([wanted, held, source.options(), sys.version_info[:2]])
    kept = cache / "resolved" / hashlib.sha256(key.encode()).hexdigest()[:32]
    with contextlib.suppress(OSError):
        if 0 <= time.time() - kept.stat().st_mtime < _FRESH_SECONDS:
            return kept.read_text()
    progress(f"resolving {', '.join(wanted)}")
    with exclusive(kept), scratch(kept) as folder:
        (folder / "wanted.in").write_text("".join(f"{line}\n" for line in wanted))
        (folder / "held.txt").write_text("".join(f"{name}=={version}\n" for name, version in held.items()))
        (folder / "uv.toml").write_text("".join(map(_without_dependencies, held.items())))
        command = ["pip", "compile", "wanted.in", "--config-file", "uv.toml", "--constraints", "held.txt"]
        command += ["--no-build", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
        command += ["--python-version", "{}.{}".format(*sys.version_info), "--output-file", "pins.txt"]
        command += [word for name in held for word in ("--no-emit-package", name)]
        _run([_uv(), *command, *source.options()], folder, _RESOLVE_SECONDS, wanted)
        (folder / "pins.txt").rename(kept)
    return kept.read_text()


def _check_pins(pins: str) -> None:
    """Versions of an index and their hashes, and nothing else: pip builds what stands at an address, whatever it is told.

    Raises PackagesUnavailable.
    """
    for line in pins.splitlines():
        if not _PIN.fullmatch(line.strip()):
            raise PackagesUnavailable(
                f"the resolver answered with something other than a pinned version: {ascii(line)[:100]}"
            )


def _uv() -> str:
    from uv import find_uv_bin

    return str(find_uv_bin())


def _without_dependencies(pin: tuple[str, str]) -> str:
    """What the sandbox holds it holds whole: its own dependencies (of torch, gigabytes) are not asked for."""
    name, version = pin
    return f'[[dependency-metadata]]\nname = "{name}"\nversion = "{version}"\nrequires-dist = []\n'


def _download(pins: str, source: _Source, total: int, cache: Path, progress: Progress) -> Path:
    """A folder with the wheels of `pins`, named by their content. Raises PackagesUnavailable."""
    digest = hashlib.sha256(f"{sys.version_info[:2]}{pins}".encode()).hexdigest()[:32]
    target = cache / "packages" / digest
    with exclusive(target):
        if not target.is_dir():
            progress("fetching packages")
            with scratch(target) as folder:
                (folder / "pins.txt").write_text(pins)
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
                command += ["--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
                command += ["--requirement", "pins.txt", "--dest", "."]
                _run([*command, *source.options()], folder, _FETCH_SECONDS, [], total)
                (folder / "pins.txt").unlink()
                (folder / "tmp").rmdir()
                folder.rename(target)
    os.utime(target)  # used now: `labsandbox gc` removes what nobody has used for long
    size = written(target)
    if size > total:
        raise PackagesUnavailable(
            f"the packages are {format_bytes(size)}, more than the policy's {format_bytes(total)}"
        )
    return target


def _listed(folder: Path) -> Wheels:
    """Reads only the wheels' names and tables of contents."""
    import zipfile

    files = tuple(sorted(folder.iterdir()))
    lock, unpacked = [], 0
    for path in files:
        if not _WHEEL.fullmatch(path.name):
            raise PackagesUnavailable(f"{ascii(path.name)[:100]} is not a wheel's name")
        try:
            with zipfile.ZipFile(path) as wheel:
                entries = wheel.infolist()
        except (zipfile.BadZipFile, OSError) as error:
            raise PackagesUnavailable(f"{path.name} is not a wheel: {error}") from None
        if len(entries) > _MAX_ENTRIES:
            raise PackagesUnavailable(f"{path.name} holds {len(entries)} files")
        unpacked += sum(-(-entry.file_size // _PAGE) * _PAGE + _PAGE for entry in entries)
        name, version, *_ = path.name.split("-")
        with path.open("rb") as file:
            lock.append(f"{name}=={version} --hash=sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
    return Wheels(files, tuple(lock), unpacked)


def _run(command: list[str], folder: Path, seconds: float, wanted: list[str], total: int | None = None) -> None:
    """Runs a program in `folder` until it ends, takes too long, or leaves more than `total` bytes there."""
    (folder / "tmp").mkdir(exist_ok=True)
    with (folder / "said").open("w+", errors="replace") as said:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=_environment(folder)
        )
        deadline = time.monotonic() + seconds
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise SandboxUnavailable(f"the package index took more than {seconds:g} s")
                if total is not None and written(folder) > total + (1 << 20):
                    raise PackagesUnavailable(f"the packages are more than the policy's {format_bytes(total)}")
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        text = " ".join(said.read().split())
    (folder / "said").unlink()
    if process.returncode != 0:
        raise _failure(text, wanted)


def _failure(said: str, wanted: list[str]) -> PackagesUnavailable | SandboxUnavailable:
    """Whether the index could not be reached, or has nothing that fits."""
    network = (
        "error sending request",
        "Failed to fetch",
        "Connection",
        "dns error",
        "timed out",
        "error trying to connect",
    )
    if any(word in said for word in network):
        return SandboxUnavailable(f"the package index cannot be reached: {said[-300:]}")
    what = f" {', '.join(wanted)}" if wanted else ""
    clear = said.replace("× No solution found when resolving dependencies: ╰─▶ ", "")
    return PackagesUnavailable(f"cannot resolve{what} as wheels: {clear[:500]}")


def _environment(folder: Path) -> Mapping[str, str]:
    """Of the host's variables, those about the way to the index; nothing is kept outside the cache."""
    kept = {"PATH", "HOME", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PIP_CERT"}
    named = {name: value for name, value in os.environ.items() if name in kept or name.lower().endswith("_proxy")}
    certificates = {"SSL_CERT_FILE": named.get("SSL_CERT_FILE") or named.get("PIP_CERT") or ca_bundle()}
    return {**named, **certificates, "TMPDIR": str(folder / "tmp"), "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


def ca_bundle() -> str:
    """A file of the certificate authorities that this host trusts."""
    import ssl

    import certifi

    return ssl.get_default_verify_paths().cafile or certifi.where()


def written(folder: Path) -> int:
    """Bytes of the files in a folder in which a program is at work: they come and go as one looks."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).lstat().st_size
    return total
