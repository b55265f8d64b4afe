"""Files that grow, read as they do, with a look at their size only."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self


@dataclass(frozen=True)
class Grown:
    """What a file gained since the last look."""

    data: bytes
    anew: bool
    """Another file is there now, or it was cut: what was read before is of no use any more."""
    skipped: int = 0
    """Bytes that were passed over, because too many came at once."""


class Tail:
    """One file by its path. Links are not followed. It is held open between looks, so that its inode stays its own."""

    def __init__(self, path: Path, *, first: int | None = None) -> None:
        """first: so many of a file's last bytes at most are wanted of what is there already; None: all."""
        self._path, self._first = path, first
        self._file: BinaryIO | None = None
        self.at = 0

    def look(self, most: int) -> Grown:
        """At most `most` bytes: the next ones where all are wanted, else the last ones."""
        anew = self._renewed()
        if self._file is None:
            return Grown(b"", anew)
        end = os.fstat(self._file.fileno()).st_size
        if end < self.at:
            anew, self.at = True, 0
        grown, skipped = end - self.at, 0
        if self._first is not None:
            skipped = max(0, grown - min(most, self._first if self.at == 0 else most))
        self._file.seek(self.at + skipped)
        data = self._file.read(min(most, grown - skipped))
        self.at += skipped + len(data)
        return Grown(data, anew, skipped)

    def close(self) -> None:
        """Lets go of the file. May be called twice."""
        if self._file is not None:
            self._file.close()
        self._file, self.at = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _renewed(self) -> bool:
        """Opens what is at the path where that is not what is held; whether something else was held before."""
        try:
            state = self._path.lstat()
            if self._file is not None and os.path.samestat(state, os.fstat(self._file.fileno())):
                return False
            was = self._file is not None
            self.close()
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            if stat.S_ISREG(state.st_mode):
                self._file = os.fdopen(os.open(self._path, flags), "rb", buffering=0)
            return was
        except OSError:
            was = self._file is not None
            self.close()
            return was


class Lines(Tail):
    """Whole lines of a file that grows; none is passed over."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rest = b""

    def look(self, most: int) -> Grown:
        """The lines that have become whole with at most so many further bytes."""
        grown = super().look(most)
        raw = (b"" if grown.anew else self._rest) + grown.data
        whole = raw[: raw.rfind(b"\n") + 1]
        self._rest = raw[len(whole) :]
        return Grown(whole, grown.anew)

    def all(self, most: int) -> Iterator[bytes]:
        """The lines that have become whole by now, however long they are, read by so many bytes at a time."""
        while True:
            at = self.at
            yield self.look(most).data
            if self.at == at:
                return
