"""The folders that runs leave behind, one for each sprint or single execution.

A file appears whole or not at all (temporary file, then rename), except the logs and metrics, which grow while the
run goes on and are readable at every moment. Nothing that is already there is ever overwritten by another run.
"""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
import time
from datetime import datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from executor.experiment import AnyRecord, MetricRecord

# Names of files in them.
SUMMARY, EXECUTION, EVENTS = "sprint_summary.json", "execution.json", "events.jsonl"
CODE, REQUIREMENTS = "experiment.py", "requirements.txt"
METRICS, EXTRACTED, CURVES = "metrics.jsonl", "extracted.jsonl", "curves.png"
SWEEP, SWEPT, STUDY = "sweep.json", "sweep_summary.json", "study.db"
"""What a sweep is asked to be, what came of it, and Optuna's own file."""
_ID = re.compile(r"(sprint|exec|sweep)_\d{8}_\d{6}(_\d+)?")
_OF_AN_ATTEMPT = (
    CODE, REQUIREMENTS, "stdout.log", "stderr.log", METRICS, EXTRACTED, "artifacts", CURVES, EXECUTION,
)  # fmt: skip
_TEMPORARY = re.compile(r"\.(?:part-|[A-Za-z0-9_.-]+\.)[a-z0-9_]{8}")
"""As tempfile names what `write_bytes` and `ArtifactFile` are at."""
_MAX_JSON = 256 << 20
_PROBE = 64 * 1024
_READABLE = 0.25
"""Seconds after which a metric can be read by others, once the next has come."""

Kind = Literal["sprint", "exec", "sweep"]


class StoreError(OSError):
    """The results folder cannot be used; the text is one line for people, `errno` the system's reason if there is one."""

    def __init__(self, text: str, cause: OSError | None = None) -> None:
        super().__init__(text)
        self.errno = cause.errno if cause is not None else None


class Store:
    """All runs below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def new(self, kind: Kind, now: datetime | None = None) -> "RunFolder":
        """A new folder `<kind>_YYYYMMDD_HHMMSS`, with `_2`, `_3`… for further ones in the same second.

        Raises StoreError when the results folder is no folder of ours to write into, or full.
        """
        self._check_root()
        stamp = (now or datetime.now()).strftime("%Y%m%d_%H%M%S")
        for number in range(1, 10_000):
            path = self.root / f"{kind}_{stamp}{f'_{number}' if number > 1 else ''}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                raise StoreError(f"cannot write into the results folder {self.root}: {error.strerror}", error) from None
            return self._probed(path, records=kind != "sweep")
        raise StoreError(f"{self.root} holds too many runs of this second")

    def runs(self, kind: Kind | tuple[Kind, ...] = "sprint") -> list[str]:
        """Ids of the runs that are there, oldest first."""
        try:
            with os.scandir(self.root) as entries:
                found = [entry.name for entry in entries if _ID.fullmatch(entry.name) and entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot read the results folder {self.root}: {error.strerror}") from None
        return sorted((name for name in found if name.startswith(kind)), key=run_order)

    def existing(self, run: str, kind: Kind = "sprint") -> "RunFolder":
        """The folder of a run that is there, by its id, its folder's path, or a `kind`'s bare time. Raises StoreError."""
        named = run.rstrip("/")
        if "/" in named and Path(named).parent.absolute() == self.root.absolute():
            named = Path(named).name
        name = named if _ID.fullmatch(named) else f"{kind}_{named.removeprefix(f'{kind}_')}"
        path = self.root / name
        if not _ID.fullmatch(name) or not path.is_dir() or path.is_symlink():
            raise StoreError(f"there is no {name.partition('_')[0]} {ascii(run)[1:-1][:100]} in {self.root}")
        return RunFolder(path)

    def summary(self, run: str) -> dict[str, Any]:
        """The summary of a sprint as it was written; older ones may lack any part. Raises StoreError."""
        folder = self.existing(run)
        run, path = folder.id, folder.path / SUMMARY
        if run.startswith("sweep_"):
            raise StoreError(f"{run} is a sweep, not a sprint: labsandbox sprints show {run} shows it")
        if run.startswith("exec_"):
            raise StoreError(
                f"{run} is a single execution, not a sprint: {folder.path / EXECUTION} has what came of it"
            )
        try:
            return read_object(path)
        except FileNotFoundError:
            raise StoreError(f"sprint {run} has no summary: it ended before one was written") from None
        except (OSError, ValueError, RecursionError):
            raise StoreError(f"the summary of sprint {run} cannot be read") from None

    def _check_root(self) -> None:
        try:
            real = self.root.resolve() if self.root.is_symlink() else None
            if real is not None:
                raise StoreError(f"the results folder {self.root} is a symbolic link; name the real folder: {real}")
            self.root.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise StoreError(f"the results folder {self.root} is not a folder") from None
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"cannot make the results folder: {error.strerror} ({self.root})", error) from None

    def _probed(self, path: Path, records: bool) -> "RunFolder":
        """Finds out now, not after the run, that nothing can be written. records: the run has some of its own."""
        folder = RunFolder(path)
        try:
            probe = path / ".probe"
            probe.write_bytes(b"\0" * _PROBE)
            probe.unlink()
            if records:
                folder.open()
        except OSError as error:
            folder.close()
            for left in path.iterdir():
                left.unlink()
            path.rmdir()
            reason = error.strerror or str(error)
            raise StoreError(f"cannot write into the results folder {self.root}: {reason}", error) from None
        return folder


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises OSError, ValueError where there is none, RecursionError."""
    with path.open("rb") as file:
        data = json.loads(file.read(_MAX_JSON))
    if not isinstance(data, dict):
        raise ValueError("not an object")
    return data


def run_order(name: str) -> tuple[str, int]:
    """By time, then by number, so that _10 comes after _9."""
    _, date, time, *number = name.split("_")
    return f"{date}_{time}", int(number[0]) if number else 1


class RunFolder:
    """One run's folder, and the sink of its execution."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self._logs: dict[str, IO[bytes]] = {}
        self._metrics: IO[bytes] | None = None
        self._flushed = 0.0

    def open(self, *, go_on: bool = False) -> None:
        """Opens the logs and the metrics for what is to come; to `go_on` is to add to what is there."""
        mode: Literal["ab", "wb"] = "ab" if go_on else "wb"
        self._logs = {name: (self.path / f"{name}.log").open(mode, buffering=0) for name in ("stdout", "stderr")}
        self._metrics = (self.path / METRICS).open(mode, buffering=1 << 16)
        (self.path / "artifacts").mkdir(exist_ok=go_on)

    def clear_attempt(self) -> None:
        """Forgets what a run that was cut off left of its output, metrics and artifacts, and opens them anew."""
        self.close()
        for name in ("stdout.log", "stderr.log", METRICS, EXTRACTED):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "artifacts", ignore_errors=True)
        self.open()

    def set_aside(self, number: int) -> str:
        """Moves all that is of one attempt into attempts/<number>, whose name is returned. May be repeated."""
        target = self.path / "attempts" / str(number)
        target.mkdir(parents=True, exist_ok=True)
        self.close()
        for name in _OF_AN_ATTEMPT:
            if (self.path / name).exists():
                (self.path / name).rename(target / name)
        return f"attempts/{number}"

    def close(self) -> None:
        """Writes what is buffered. May be called twice."""
        for file in (*self._logs.values(), self._metrics):
            if file is not None:
                file.close()
        self._logs, self._metrics = {}, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the sink ----

    def log(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Appends to stdout.log or stderr.log, byte for byte."""
        self._logs[stream].write(data)

    def record(self, record: AnyRecord) -> None:
        """Appends one line to metrics.jsonl."""
        if self._metrics is None:
            raise ValueError("the folder is closed")
        self._metrics.write(record.model_dump_json(exclude_none=True).encode() + b"\n")
        if not isinstance(record, MetricRecord) or time.monotonic() - self._flushed > _READABLE:
            self._metrics.flush()
            self._flushed = time.monotonic()

    def artifact(self, name: str) -> "ArtifactFile":
        """A file below artifacts/. `name` has been made safe; this checks again that it stays inside."""
        target = self.path / "artifacts" / name
        inside = self.path / "artifacts"
        if ".." in Path(name).parts or not target.is_relative_to(inside) or target == inside:
            raise ValueError(f"not a name for an artifact: {name!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        return ArtifactFile(target)

    # ---- whole files ----

    def write_text(self, name: str, text: str) -> None:
        """Writes a file of this folder, whole."""
        self.write_bytes(name, text.encode("utf-8", "replace"))

    def write_json(self, name: str, data: object) -> None:
        """Writes indented JSON, whole. NaN is a ValueError: JSON has none."""
        self.write_text(name, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def append_json(self, name: str, data: object) -> None:
        """Adds one line to a file of JSON lines; several threads may."""
        with (self.path / name).open("ab", buffering=0) as file:
            append_whole(file, json.dumps(data, ensure_ascii=True).encode() + b"\n")

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a file of this folder, whole and durable, mode 0644."""
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self.path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(self.path / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def append_whole(file: FileIO, line: bytes) -> None:
    """Appends all of a line in one write, or nothing: what a full disk took of it is cut off. Raises OSError."""
    size = os.fstat(file.fileno()).st_size
    if file.write(line) != len(line):
        os.ftruncate(file.fileno(), size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.name))


def unfinished(results: Path, older_than: float) -> list[Path]:
    """Files of the runs below `results`, however deep, that somebody was writing `older_than` seconds ago or earlier, and
    never finished. No link is followed; no artifact has such a name (executor/artifacts.py)."""
    found = []
    for folder, _, names in itertools.chain.from_iterable(map(os.walk, _run_folders(results))):
        for path in (Path(folder, name) for name in names if _TEMPORARY.fullmatch(name)):
            with contextlib.suppress(OSError):
                state = path.lstat()
                if stat.S_ISREG(state.st_mode) and time.time() - state.st_mtime > older_than:
                    found.append(path)
    return sorted(found)


def _run_folders(results: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [
            path for path in results.iterdir() if _ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        ]
    return []


class ArtifactFile:
    """An artifact on its way: under a temporary name until it is whole."""

    def __init__(self, target: Path) -> None:
        self._target = target
        descriptor, name = tempfile.mkstemp(prefix=".part-", dir=target.parent)
        self._temporary = Path(name)
        self._file = os.fdopen(descriptor, "wb")

    def write(self, data: bytes) -> None:
        """Adds bytes."""
        self._file.write(data)

    def commit(self) -> None:
        """Makes it appear under its name, mode 0644."""
        self._file.close()
        self._temporary.chmod(0o644)
        self._temporary.replace(self._target)

    def abort(self) -> None:
        """Forgets it."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
