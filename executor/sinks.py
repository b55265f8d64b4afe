"""Sinks that stand before another one and look at what passes."""

from typing import Literal

from executor.experiment import AnyRecord, ArtifactWriter, Sink


class PassingSink:
    """Hands everything on to the next sink. A subclass overrides what it looks at."""

    def __init__(self, then: Sink) -> None:
        self._then = then

    def log(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """As `Sink` has it, and so are the others."""
        self._then.log(stream, data)

    def record(self, record: AnyRecord) -> None:
        self._then.record(record)

    def artifact(self, name: str) -> ArtifactWriter:
        return self._then.artifact(name)
