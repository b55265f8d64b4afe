"""TensorBoard event files: a folder for the run, and one below it for each training.

Written with TensorBoard's own record writer, without TensorFlow. Values are 32-bit floats there: NaN and infinities
stay, what is beyond 3.4e38 becomes infinite. A training whose steps are not whole numbers is numbered 0, 1, 2….
"""

import contextlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from results.export.names import file_name, metric_name, plain
from results.export.steps import Steps
from results.export.tracker import Point, RunInfo, Scalar, State, Training

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary as Proto

_FILE = "events.out.tfevents.{seconds:010d}.labsandbox"


class TensorBoardFolder:
    """`tensorboard --logdir` this."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.where = str(out)
        self._made: Path | None = None
        self._files: list[_Events] = []

    def taken(self, run: str) -> bool:
        """Is its folder there?"""
        return (self._out / file_name(run)).exists()

    def open(self, run: RunInfo, training: Training | None) -> "_Events":
        """A new event file."""
        folder = self._out / file_name(run.id)
        if training is None:
            self._made = folder
        else:
            folder = folder / file_name(training.label.replace(", ", "-").replace(" ", "_"))
            number = 2
            while folder.exists():  # two arms may differ in nothing but what a file's name cannot show
                folder = folder.with_name(f"{folder.name[:110]}-{number}")
                number += 1
        folder.mkdir(parents=True)
        self._files.append(made := _Events(folder, run.began, training))
        return made

    def close(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> None:
        """Removes the run's folder."""
        for one in self._files:
            one.close()
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)


class _Events:
    def __init__(self, folder: Path, began: float, training: Training | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = Event
        self._began, self._training, self._steps = began, training, Steps()
        self._file: BinaryIO = (folder / _FILE.format(seconds=max(0, int(began)))).open("wb")
        self._writer = RecordWriter(self._file)
        self._write(Event(wall_time=began, file_version="brain.Event:2"))

    def point(self, point: Point) -> None:
        """One event for each call."""
        self._add(point.t, self._steps.whole(point), self._scalars(point.values))

    def finish(
        self,
        state: State,
        t: float | None,
        values: Mapping[str, float],
        config: Mapping[str, Scalar],
        facts: Mapping[str, str],
        files: Mapping[str, Path],
    ) -> None:
        """What it returned as scalars `result:…`, its settings and what is known of it as text. Takes no files."""
        t, step = t or 0.0, self._steps.last
        if values:
            self._add(t, step, self._scalars(values, "result:"))
        about = {**({"arm": self._training.arm, "seed": self._training.seed} if self._training else {})}
        told = json.dumps({**about, **config, **facts, "state": state}, indent=2, ensure_ascii=False)
        self._add(t, step, self._text(told))
        self._file.close()

    def close(self) -> None:
        """Without an end."""
        with contextlib.suppress(OSError):  # what the disk did not take
            self._file.close()

    def _scalars(self, values: Mapping[str, float], prefix: str = "") -> "Proto":
        from tensorboard.compat.proto.summary_pb2 import Summary as Proto

        with np.errstate(over="ignore"):
            single = {prefix + metric_name(name): float(np.float32(value)) for name, value in values.items()}
        return Proto(value=[Proto.Value(tag=name, simple_value=value) for name, value in single.items()])

    def _text(self, text: str) -> "Proto":
        from tensorboard.compat.proto.summary_pb2 import Summary as Proto
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        # Indented by four, Markdown shows it as it is.
        shown = "\n".join(f"    {line}" for line in plain(text, 20_000).splitlines())
        tensor = make_tensor_proto([shown.encode()])
        metadata = create_summary_metadata("about:labsandbox", "")
        return Proto(value=[Proto.Value(tag="about:labsandbox", tensor=tensor, metadata=metadata)])

    def _add(self, t: float, step: int, summary: "Proto") -> None:
        self._write(self._event(wall_time=self._began + (t if math.isfinite(t) else 0.0), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()
