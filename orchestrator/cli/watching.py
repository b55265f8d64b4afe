"""An experiment's log on the terminal, while it runs."""

import codecs
import contextlib
import os
from typing import Literal, TextIO

from executor.experiment import Sink
from executor.sinks import PassingSink
from orchestrator.cli.terminal import harmless


class LogPrinter(PassingSink):
    """Shows the log while it comes."""

    def __init__(self, then: Sink, out: TextIO, err: TextIO) -> None:
        super().__init__(then)
        self._files: dict[str, TextIO] = {"stdout": out, "stderr": err}
        # Bytes of one character may come in two parts, so each stream has a decoder of its own.
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._files}

    def log(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        super().log(stream, data)
        if (file := self._files.get(stream)) is None:
            return
        try:
            file.write(harmless(self._decoders[stream].decode(data)))
            file.flush()
        except BrokenPipeError:
            del self._files[stream]  # whoever watched has left; the run goes on
            with contextlib.suppress(OSError):  # what is buffered would fail once more at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
