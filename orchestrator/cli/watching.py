"""An experiment's log on the terminal, while it runs."""

import codecs
from typing import Literal, TextIO

from executor.experiment import AnyRecord, Sink
from orchestrator.cli.terminal import harmless


class LogPrinter:
    """A sink that shows the log while it comes, and hands everything on to another sink."""

    def __init__(self, then: Sink, out: TextIO, err: TextIO) -> None:
        self._then = then
        self._files: dict[str, TextIO] = {"stdout": out, "stderr": err}
        # Bytes of one character may come in two parts, so each stream has a decoder of its own.
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._files}
        self.artifact = then.artifact

    def log(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Shows and passes on."""
        self._then.log(stream, data)
        if (file := self._files.get(stream)) is None:
            return
        try:
            file.write(harmless(self._decoders[stream].decode(data)))
            file.flush()
        except BrokenPipeError:
            del self._files[stream]  # whoever watched has left; the run goes on

    def record(self, record: AnyRecord) -> None:
        """Passes on."""
        self._then.record(record)
