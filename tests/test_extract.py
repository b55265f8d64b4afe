"""Promises of reading metrics from output and files: what is printed in the usual ways is found at its step, what is no
metric is not taken for one, and nothing that an experiment leaves can break or stall the reading."""

import base64
import json
import math
import os
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.context import RunExperiment
from results import extract as extract_module
from results.analysis import analyse
from results.curves import draw_run
from results.extract import extract, last_values, told
from results.printed import Point, read_output
from results.series import read_series
from results.tabular import read_csv, read_json, read_json_lines
from results.tfevents import read_events
from tests.test_cli import QUICK, labsandbox
from tests.test_sprint import Scripted, run_experiment, sprint

__all__ = ["run_experiment"]  # the fixture


def seen(text: str | bytes) -> list[tuple[float | None, dict[str, float]]]:
    data = text.encode() if isinstance(text, str) else text
    return [(point.step, point.values) for point in read_output([data])]


# ---- output: one line ----


@pytest.mark.parametrize(
    ("line", "step", "values"),
    [
        ("Epoch [1/5], Step [10/63], Loss: 0.6723", 10, {"Loss": 0.6723}),
        ("Epoch [3/5], Step [10/63], Loss: 0.6723", 136, {"Loss": 0.6723}),
        ("epoch 0, step 10/63: loss=1e-3", 10, {"loss": 0.001}),
        ("epoch=4 train_loss=0.5 val_loss=.25", 4, {"train_loss": 0.5, "val_loss": 0.25}),
        ("step 250: train loss 2.41, val loss 2.52", 250, {"train loss": 2.41, "val loss": 2.52}),
        ("iter 10: loss 3.2, time 100.5ms, mfu 3.2%", 10, {"loss": 3.2}),
        ("[Iteration 7] Loss = -1.5", 7, {"Loss": -1.5}),
        ("global_step=900 epoch=3 loss=0.1", 900, {"loss": 0.1}),
        ("Train Epoch: 2 [640/60000 (1%)]\tLoss: 2.300", 60640, {"Loss": 2.3}),
        ("Epoch: [1][  10/391]\tTime  2.1 ( 2.0)\tLoss 6.9e+00 (6.9)\tAcc@1   0.39 (0.4)", 10, {"Loss": 6.9, "Acc@1": 0.39}),
        ("Epoch(train)  [2][ 50/5000]  lr: 1.0e-02  eta: 1:20:30  loss: 2.3", 5050, {"train lr": 0.01, "train loss": 2.3}),
        ("63/63 [=====] - 1s 5ms/step - loss: 0.5 - accuracy: 0.8", 63, {"loss": 0.5, "accuracy": 0.8}),
        ("Epoch 2:  45%|####  | 45/100 [00:12<00:15, 3.60it/s, loss=0.532, acc=0.8]", 145, {"loss": 0.532, "acc": 0.8}),
        ("Epoch 1/4 ━━━╸━━ 45/100 0:00:01 • 0:00:01 40.2it/s v_num: 0 train_loss: 0.53", 45, {"train_loss": 0.53}),
        ("Train: 0 [  50/1251 (  4%)]  Loss: 6.93 (6.95)  Time: 1.2s", 50, {"Train Loss": 6.93}),
        ("Epoch 2, Batch 100, Loss: 0.5", 100, {"Loss": 0.5}),
        ("Epoch 5/10 completed. Average loss: 0.43 | Val Acc = 85.20%", 5, {"Average loss": 0.43, "Val Acc %": 85.2}),
        ("Iteration 1, loss = 0.69314718", 1, {"loss": 0.69314718}),
        ("AdamW final loss: 0.31 | Lion final loss: 0.29", None, {"AdamW final loss": 0.31, "Lion final loss": 0.29}),
        ("[0]\ttrain-rmse:0.58\teval-rmse:0.61", None, {"train-rmse": 0.58, "eval-rmse": 0.61}),
        ("loss 0.512: 45%|####  | 46/100 [00:12<00:15, 3.60it/s]", 46, {"loss": 0.512}),
        ("{'loss': 0.69, 'learning_rate': 5e-05, 'epoch': 1.5}", 1.5, {"loss": 0.69, "learning_rate": 5e-05}),
        ('{"step": 3, "loss": 0.2, "eval": {"acc": 0.5}, "time": 3.5}', 3, {"loss": 0.2, "eval/acc": 0.5}),
        ('{"loss": "NaN", "iteration": 2}', 2, {"loss": math.nan}),
        ("Episode 100 Reward: 23 eps: 0.1", 100, {"Reward": 23}),
        ("Test set: Average loss: 0.0354, Accuracy: 9133/10000 (91%)", None, {"Test Average loss": 0.0354}),
        ("Accuracy: 65.6%, Avg loss: 1.07", None, {"Accuracy %": 65.6, "Avg loss": 1.07}),
        ("val: loss=0.5, acc=0.3", None, {"val loss": 0.5, "val acc": 0.3}),
        ("[test] loss 0.4", None, {"test loss": 0.4}),
        ("12:00:01,123 INFO step=12 loss=tensor(0.5, device='cuda:0') x=np.float64(2.5)", 12, {"loss": 0.5, "x": 2.5}),
        ("final test accuracy is 0.93", None, {"final test accuracy": 0.93}),
        ("best_val_loss=0.123 at epoch 3", 3, {"best_val_loss": 0.123}),
        ("epoch 4 | AdamW: 0.31 | Lion: 0.29", 4, {"AdamW": 0.31, "Lion": 0.29}),
        ("\x1b[32mstep 5\x1b[0m \x1b[1mloss\x1b[0m: 0.25", 5, {"loss": 0.25}),
        ("step 1 loss: nan acc: -inf f1: inf", 1, {"loss": math.nan, "acc": -math.inf, "f1": math.inf}),
    ],
)  # fmt: skip
def test_what_is_printed_in_the_usual_ways_is_found(line: str, step: float | None, values: dict[str, float]) -> None:
    ((found_step, found),) = seen(line)
    assert found_step == step
    assert repr(found) == repr({name: float(value) for name, value in values.items()})


@pytest.mark.parametrize(
    "line",
    [
        "", "hello", "Python: 3.11.7, torch=2.13.0, CUDA version: 12.1", "torch: 2.1",
        "Config: lr=0.001 batch_size=32 epochs=5 seed=0 dropout=0.1 loss_weight=0.5 label_smoothing=0.1",
        "Loading data from /tmp/x:80 took 12.3 s, size: 12.3 MB", "loss.py:12: UserWarning: lossy",
        "loss took: 3.2 s", "accuracy: 12:30", "score: 2026-01-02", "loss: 0.5.1", "accuracy: 3/7", "Loss: 1,234.5",
        "progress: 45%", "accuracy:  45%|####  | 45/100 [00:12<00:15, 3.60it/s]", "error: 404", "return 0",
        "CUDA error: 2", "precision=16", "elapsed: 1.5", "step 3: memory: 12.5 time: 3.0 gpu=1 port=8080",
        "step 3 took 12.5 seconds", "Epoch 3 of 5", "Downloading 12.3 MB of 40.0 MB", "model parameters: 1234567",
        "AdamW: 0.31 Lion: 0.29", "accuracy: high", "lossless: 1.5x", '{"lr": 0.1, "hidden": 64}', "[1.5, 2.5]",
        '  File "train.py", line 12, in loss', "address: 0x7f3a", "loss: 12abc", "epoch time: 3.2",
    ],
)  # fmt: skip
def test_what_is_no_metric_is_not_taken_for_one(line: str) -> None:
    assert seen(line) == []


# ---- output: what lines say together ----


def test_steps_count_on_through_the_epochs_and_an_epochs_own_values_stand_at_its_end() -> None:
    lines = [
        line
        for epoch in (1, 2)
        for line in (
            f"Epoch [{epoch}/2], Step [30/63], Loss: 0.5", f"Epoch [{epoch}/2], Step [60/63], Loss: 0.5",
            f"Epoch {epoch} done: val loss: 0.4",
        )
    ]  # fmt: skip
    assert [step for step, _ in seen("\n".join(lines))] == [30, 60, 63, 93, 123, 126]


def test_epochs_that_are_counted_from_zero_are_too() -> None:
    lines = [f"Epoch {epoch} step {step}/10 loss: 1.0" for epoch in (0, 1) for step in (5, 10)]
    assert [step for step, _ in seen("\n".join(lines))] == [5, 10, 15, 20]


def test_an_epoch_in_a_heading_holds_for_the_lines_below_it() -> None:
    text = "Epoch 2\n-------\nloss: 2.3  [   64/60000]\nTest Error:\n Accuracy: 44.5%, Avg loss: 2.15\n"
    assert seen(text) == [(60064, {"loss": 2.3}), (120000, {"Accuracy %": 44.5, "Avg loss": 2.15})]
    assert [step for step, _ in seen("Epoch 1\nloss: 0.5\nEpoch 2\nloss: 0.4\nloss: 0.3")] == [1, 2, 2]


def test_a_progress_bar_that_rewrites_its_line_gives_a_point_each_time_something_is_new() -> None:
    bar = "Epoch 1:  {0}%|###| {0}/100 [00:12<00:15, 3.60it/s, loss={1}]"
    states = [bar.format(1, 0.5), bar.format(1, 0.5), bar.format(2, "nan"), bar.format(2, "nan"), bar.format(3, 0.5)]
    states += [bar.format(4, 0.5), bar.format(5, 0.25), bar.format(5, 0.25).replace("Epoch 1", "Epoch 2")]
    assert [step for step, _ in seen("\r".join(states) + "\r\n")] == [1, 2, 3, 5, 105]


def test_steps_that_start_again_are_left_as_they_were_printed() -> None:
    assert [step for step, _ in seen("step 1 loss 0.5\nstep 2 loss 0.4\nstep 1 loss 0.6")] == [1, 2, 1]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(1, 60), max_size=8))
def test_how_the_output_was_cut_into_chunks_makes_no_difference(size: int, steps: list[int]) -> None:
    text = "".join(f"Epoch [1/2], Step [{n}/63], Loss: 0.{n}\r\n\rstep {n} acc=0.5\n" for n in steps).encode()
    parts = [text[place : place + size] for place in range(0, len(text), size)]
    assert list(read_output(parts)) == list(read_output([text]))


FRAGMENTS = st.sampled_from(
    ["loss", "acc", "Epoch ", "step ", "[", "]", "/", ":", "=", " ", ",", "1", "0.5", "nan", "%", "|", "{", "}", '"', "'",
     "e9", "-", ".", "inf", "\r", "\n", "\x1b[", "m", "val: ", "tensor(", "é", "\ud800", "9" * 30, "_"]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(FRAGMENTS, max_size=40).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass")))
def test_whatever_is_printed_gives_metrics_or_nothing(data: bytes) -> None:
    check(read_output([data]))


def check(points: Iterator[Point]) -> None:
    """Every point is one that a record can hold."""
    for point in points:
        assert 0 < len(point.values) <= 64
        assert all(0 < len(name) <= 128 and name.isprintable() for name in point.values)
        assert all(isinstance(value, float) for value in point.values.values())
        assert point.step is None or math.isfinite(point.step)


def test_output_without_an_end_of_line_takes_little_memory() -> None:
    tracemalloc.start()
    assert list(read_output(b"x" * 65536 for _ in range(300))) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20


LONG = 200_000


@pytest.mark.timeout(30)  # each takes less than a second; a pattern that backtracks would take hours
@pytest.mark.parametrize(
    "unit",
    [b"a", b"a ", b"a=", b"1", b"1.", b"loss ", b"epoch ", b"epoch [[[   ", b"[  1/", b"step 1/", b"train  ", b" ", b"=",
     b"a        =        ", b"\x1b[1;", b"{", b'{"a":', b"nan ", b"a b c ", b"| 1/", b"a=1 ", b"a=1%", b"-", b"'"],
)  # fmt: skip
def test_no_output_stalls_the_reading(unit: bytes) -> None:
    for width in (4000, LONG):
        line = (unit * width)[:width]
        check(read_output([(line + b"\n") * (LONG // width)]))
        check(read_output([(line + b"\r") * (LONG // width)]))


# ---- files ----


def points(read: Callable[[bytes], Iterator[Point]], data: object) -> list[tuple[float | None, dict[str, float]]]:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return [(point.step, point.values) for point in read(raw)]


def test_json_tables_of_every_shape_are_read() -> None:
    rows = [{"epoch": 1, "loss": 0.5, "lr": 0.1, "time": 3}, {"epoch": 2, "loss": 0.25, "lr": 0.1, "time": 6}]
    wanted = [(1, {"loss": 0.5, "lr": 0.1}), (2, {"loss": 0.25, "lr": 0.1})]
    assert points(read_json, rows) == wanted
    assert points(read_json, {"epoch": [1, 2], "loss": [0.5, 0.25], "lr": [0.1, 0.1], "time": [3, 6]}) == wanted
    assert points(read_json, b"\n".join(json.dumps(row).encode() for row in rows)) == wanted
    assert (
        points(read_json_lines, b"\n".join(json.dumps(row).encode() for row in rows) + b'\n{"epoch": 3, "lo') == wanted
    )
    assert points(read_json, [{"step": 1, "train": 2.5, "val": 2.75}]) == [(1, {"train": 2.5, "val": 2.75})]
    named = [(step, {f"runs/{name}": value for name, value in values.items()}) for step, values in wanted]
    assert points(read_json, {"seed": 3, "runs": rows}) == named


def test_json_that_has_no_steps_gives_what_says_that_it_is_a_metric() -> None:
    assert points(read_json, {"val_loss": 0.3, "lr": 0.1, "n_params": 1234, "model": "x"}) == [
        (None, {"val_loss": 0.3})
    ]
    history = {"history": {"loss": [0.5, math.nan], "lr": [1, 2]}}
    assert repr(points(read_json, history)) == repr([(None, {"history/loss": 0.5}), (None, {"history/loss": math.nan})])
    assert points(read_json, {"losses": {"adamw": [1.5, 1.25], "lion": [2.5]}}) == [
        (None, {"losses/adamw": 1.5, "losses/lion": 2.5}), (None, {"losses/adamw": 1.25})
    ]  # fmt: skip
    assert points(read_json, {"lion": {"test_accuracy": 0.5}}) == [(None, {"lion/test_accuracy": 0.5})]


def test_csv_is_read_with_commas_semicolons_and_tabs_and_with_gaps() -> None:
    text = "step,train_loss,val_loss,seconds\n1,0.5,,3\n2,nan,0.25,4\nx,1,\n"
    for mark in ",;\t":
        found = points(read_csv, text.replace(",", mark).encode("utf-8-sig" if mark == ";" else "utf-8"))
        assert repr(found) == repr(
            [(1.0, {"train_loss": 0.5}), (2.0, {"train_loss": math.nan, "val_loss": 0.25}), (None, {"train_loss": 1.0})]
        )


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (read_csv, b"sepal_length,petal_width,species\n5.1,0.2,setosa\n"),
        (read_csv, b'step,loss\n1,"' + b"x" * 200_000),
        (read_csv, b"loss\n"), (read_csv, b""), (read_csv, b"1,2\n3,4\n"), (read_csv, b'"' * 200_000),
        (read_json, {"hidden": 64, "lr": 0.1, "weights": [0.1, 0.2]}), (read_json, [1, 2, 3]), (read_json, b""),
        (read_json, b"[" * 100_000), (read_json, {"loss": True}), (read_json, b'{"loss": 1' + b"0" * 5000 + b"}"),
        (read_json, {"loss\x1b[2J": 0.5, "\ud800loss": 1.5, "loss" * 40: 1.0}), (read_json_lines, b"[1]\nloss\n{"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_record_of_metrics_gives_none(read: Callable[[bytes], Iterator[Point]], data: object) -> None:
    assert points(read, data) == []


def test_rows_and_columns_that_are_looked_at_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("results.tabular._MAX_ROWS", 3)
    assert len(points(read_json, [{"loss": index} for index in range(9)])) == 3
    wide = {f"n{index}": index for index in range(2000)} | {"loss": 1}
    assert points(read_json_lines, wide) == [] and len(points(read_json_lines, {"step": 1} | wide)[0][1]) == 64


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["loss", "step", "epoch", "acc", "x", "runs"]) | st.text(max_size=4), inner, max_size=5),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(JSONS)
def test_any_json_gives_metrics_or_nothing(document: object) -> None:
    data = json.dumps(document).encode()
    check(read_json(data))
    check(read_json_lines(data))
    check(read_output([data]))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.text(alphabet='stepl,o"\n;\t0.5na', max_size=200).map(str.encode))
def test_any_bytes_give_metrics_or_nothing(data: bytes) -> None:
    for read in (read_csv, read_json, read_json_lines, read_events):
        check(read(data))
        check(read(b"step,loss\n" + data))


# Written by TensorBoard's own writer: scalars of its second kind (a tensor), of its first, NaN and an infinity.
EVENTS = zlib.decompress(
    base64.b64decode(
        "eNrzYICAf5M85nLaVDLNFjl4y1GKN6koMTNPz7UsNa/EyihIj0unJDWvOL8oKT+xKEWvuDQ3N7GoUq+8KLMktUgvFaQqPi0zJzUeIuKyYsM7A6i5"
        "U79eiOcEsxz6HbRUuZS5OMoSc/Rz8ouLnbg4GIUYtFgYGBrsvbi5OLnYi5MTcxKLiu9OV5lhBNWvIhn2BqLfo99BgAuXCQyoJixvL6zBNCEAaIIITjfY"
        "oZigf47nsiTUhO6PHBoQE2KAJshp8XBxcTEnJieLAj1lH1e3pkkLqnBd78SvEIUJQIUaWrIIhQfqufgR1gIFGuoLOK+/BQBFYV4x"
    )
)


def test_tensorboard_events_are_read() -> None:
    found = list(read_events(EVENTS))
    assert [point.step for point in found] == [0, 10, 20, 30, 40]
    assert [point.values for point in found[:4]] == [
        {"val/loss": 1},
        {"val/loss": 0.5},
        {"val/loss": 0.25},
        {"acc": 0.75},
    ]
    assert repr(found[4].values) == repr({"acc": math.nan, "val/loss": math.inf})
    times = [point.seconds for point in found if point.seconds is not None]
    assert [round(time - times[0], 6) for time in times] == [0, 1, 2, 3.5, 4]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(EVENTS) - 1), st.integers(1, 255))
def test_events_behind_a_byte_that_does_not_check_are_not_believed(place: int, change: int) -> None:
    whole = [repr(point) for point in read_events(EVENTS)]
    broken = EVENTS[:place] + bytes([EVENTS[place] ^ change]) + EVENTS[place + 1 :]
    for data in (broken, EVENTS[:place]):
        found = [repr(point) for point in read_events(data)]
        assert found == whole[: len(found)] and len(found) < len(whole)


def framed(record: bytes) -> bytes:
    """A TFRecord whose checks are right."""

    def check(data: bytes) -> bytes:
        value = google_crc32c.value(data)
        return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(record))
    return length + check(length) + record + check(record)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_an_event_that_is_no_message_ends_the_reading(record: bytes) -> None:
    for message in (record, b"\x2a" + bytes([len(record)]) + record):
        check(read_events(framed(message) + EVENTS))
    assert repr(list(read_events(EVENTS + framed(b"\xff")))) == repr(list(read_events(EVENTS)))


def test_large_records_between_scalars_are_passed_over() -> None:
    values = [repr(point.values) for point in read_events(framed(bytes(2 << 20)) + EVENTS)]
    assert values == [repr(point.values) for point in read_events(EVENTS)]


# ---- a run's folder ----


def run_folder(folder: Path, **files: str | bytes) -> Path:
    (folder / "artifacts").mkdir(exist_ok=True)
    (folder / "metrics.jsonl").touch()
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name.replace("_at_", "artifacts/").replace("_dot_", ".")).write_bytes(data)
    return folder


def test_what_was_read_is_in_the_series_with_its_origin_and_in_a_picture(tmp_path: Path) -> None:
    folder = run_folder(
        tmp_path,
        stdout_dot_log="Epoch [2/5], Step [10/63], Loss: nan\n",
        stderr_dot_log="1%|#| 3/9 [00:01<00:02, 1.0it/s, acc=0.5]\r",
        _at_h_dot_csv="step,loss\n1,0.5\n2,0.25\n",
        _at_r_dot_json='{"f1": 0.5}',
        **{"_at_events.out.tfevents.1": EVENTS},
    )
    assert extract(folder) == 1 + 1 + 2 + 1 + 6
    series = read_series(folder)
    assert [(one.origin, one.name, one.steps.tolist()) for one in series] == [
        ("stdout", "Loss", [73]),
        ("stderr", "acc", [3]),
        ("artifacts/events.out.tfevents.1", "val/loss", [0, 10, 20, 40]),
        ("artifacts/events.out.tfevents.1", "acc", [30, 40]),
        ("artifacts/h.csv", "loss", [1, 2]),
        ("artifacts/r.json", "f1", [0]),
    ]
    assert math.isnan(series[0].values[0]) and series[4].values.tolist() == [0.5, 0.25]
    assert draw_run(folder) and (folder / "curves.png").stat().st_size > 5000
    said = told(series)
    assert said is not None and said.startswith(
        "metrics read from its output (stdout): Loss; its output (stderr): acc;"
    )
    assert "artifacts/events.out.tfevents.1): val/loss, acc; and 2 more files" in said
    values = last_values(series)
    assert values is not None and "not judged" in values and "loss 0.25" in values and "Loss nan" in values


def test_where_the_experiment_recorded_something_nothing_else_is_read(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, stdout_dot_log="step 1 loss: 0.5\n")
    assert extract(folder) == 1
    (folder / "metrics.jsonl").write_text('{"type":"metric","t":1.0,"values":{"x":1}}\n')
    assert extract(folder) == 0 and not (folder / "extracted.jsonl").exists()
    assert told(read_series(folder)) is None and last_values(read_series(folder)) is None


@pytest.mark.parametrize(
    "record",
    [
        '{"type":"params","t":0,"space":{"lr":{"kind":"log","low":0.1,"high":1}},"chosen":{"lr":0.2}}',
        '{"type":"kept","t":0,"name":"steps","value":3}',
        '{"type":"plan","t":0,"factor":"f","arms":["a"],"seeds":[0],"primary":"m","lower_is_better":true}',
    ],
)
def test_what_was_only_planned_or_declared_does_not_keep_output_from_being_read(tmp_path: Path, record: str) -> None:
    folder = run_folder(tmp_path, stdout_dot_log="step 1 loss: 0.5\n")
    (folder / "metrics.jsonl").write_text(f'{record}\nno record\n{{"type":"met')
    assert extract(folder) == 1
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('\n{"type":"run","t":1,"arm":"a","seed":0,"phase":"confirm","status":"failed"}\n')
    assert extract(folder) == 0


def test_a_folder_without_metrics_is_left_as_it_was(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, stdout_dot_log="hello\n")
    before = sorted(folder.rglob("*"))
    assert extract(folder) == 0 and sorted(folder.rglob("*")) == before
    assert extract(tmp_path / "artifacts") == 0


def test_no_link_is_followed_and_no_device_is_opened(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"loss": 0.5}')
    (tmp_path / "run").mkdir()
    folder = run_folder(tmp_path / "run")
    (folder / "artifacts/a.json").symlink_to(tmp_path / "secret.json")
    (folder / "artifacts/deep").symlink_to(tmp_path)
    os.mkfifo(folder / "artifacts/b.json")
    assert extract(folder) == 0


def test_hostile_names_of_files_and_metrics_are_harmless(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, stdout_dot_log='{"<b>loss</b>": 0.5, "step": 1}\n')
    name = "artifacts/\x1b[2J\udcff" + "x" * 100 + ".json"
    (folder / name).write_text('{"loss": 0.5}')
    assert extract(folder) == 2
    lines = (folder / "extracted.jsonl").read_text()
    assert "\\u001b" not in lines and "\x1b" not in lines
    assert draw_run(folder)


def test_values_names_and_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "\n".join(f"step 1 {'n' * (index % 60 + 1)}q{index}: 1" for index in range(700))
    folder = run_folder(tmp_path, stdout_dot_log=names, _at_big_dot_json='{"loss": 0.5}' + " " * 9_000_000)
    assert extract(folder) == 500 == len(read_series(folder))
    monkeypatch.setattr(extract_module, "_MAX_VALUES", 20)
    assert extract(folder) == 20
    monkeypatch.setattr(extract_module, "_MAX_OUTPUT", 0)
    assert extract(folder) == 0


def test_reading_again_gives_the_same(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, stdout_dot_log="step 1 loss: 0.5 acc: 0.25\n", _at_h_dot_csv="step,a,b\n1,2,3\n")
    assert extract(folder) == 4
    first = (folder / "extracted.jsonl").read_bytes()
    assert extract(folder) == 4 and (folder / "extracted.jsonl").read_bytes() == first


# ---- the whole way ----

PRINTS = """
for epoch in (1, 2):
    for step in (30, 60):
        print(f"Epoch [{epoch}/2], Step [{step}/63], Loss: {1 / (step + 63 * epoch):.4f}")
open("out/history.csv", "w").write("epoch,val_acc\\n1,0.5\\n2,0.75\\n")
"""


def test_exec_says_where_metrics_came_from_and_draws_them(tmp_path: Path) -> None:
    done = labsandbox("exec", "-", *QUICK, "--results", str(tmp_path / "r"), text=PRINTS)
    assert "metrics read from its output (stdout): Loss; its files (artifacts/out/history.csv): val_acc" in done.stderr
    (folder,) = (tmp_path / "r").iterdir()
    loss, accuracy = read_series(folder)
    assert loss.steps.tolist() == [30, 60, 93, 123] and accuracy.values.tolist() == [0.5, 0.75]
    assert (folder / "curves.png").exists()
    done = labsandbox("exec", "-", *QUICK, "--results", str(tmp_path / "s"), text="import lab; lab.log(x=1)" + PRINTS)
    assert "metrics read from" not in done.stderr
    declares = 'import lab; lab.params(lr=("log", 0.1, 1.0))'
    done = labsandbox("exec", "-", *QUICK, "--results", str(tmp_path / "p"), text=declares + PRINTS)
    assert "metrics read from its output (stdout): Loss" in done.stderr


def test_a_sprint_shows_what_was_printed_and_makes_no_verdict_of_it(
    run_experiment: RunExperiment, tmp_path: Path
) -> None:
    with sprint(Scripted(code=lambda: f"```python\n{PRINTS}```"), run_experiment, tmp_path) as (one, folder):
        summary = one.run("Is a better than b?")
    assert summary["verdict"] == analyse([]).verdict.text and summary["verdict"].startswith("Not a comparison")
    said = summary["phases"]["validation"]["extracted"]
    assert re.fullmatch(
        r"Last values read from stdout, artifacts/\S+, not recorded .* not judged: Loss 0.\d+, val_acc 0.75.", said
    )
    assert (folder.path / "curves.png").exists()
    shown = labsandbox("sprints", "show", folder.id, "--results", str(tmp_path)).stdout
    assert "Loss 0." in shown and "not judged" in shown
