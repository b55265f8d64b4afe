"""Promises of the series: numbers as they were recorded, files of any age read, and pictures that hide nothing."""

import json
import math
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from executor.experiment import (
    LEAST_WHOLE,
    MAX_NAME,
    MAX_VALUES,
    MOST_WHOLE,
    RECORD,
    MetricRecord,
    PlanRecord,
    RunRecord,
)
from results import curves
from results import series as series_module
from results.curves import draw_run
from results.series import Reading, Series, oddities, read_folder, read_series, series_of, thin
from results.store import Store


def made(values: Any, steps: Any = None, **of: Any) -> Series:
    values = np.array(values, dtype=np.float64)
    steps = np.arange(len(values), dtype=np.float64) if steps is None else np.array(steps, dtype=np.float64)
    about = {"name": "loss", "arm": None, "seed": None, "phase": None, "origin": "lab.log"} | of
    return Series(**about, steps=steps, values=values, seconds=np.full(len(values), np.nan))


def written(folder: Path, text: bytes) -> Path:
    (folder / "metrics.jsonl").write_bytes(text)
    return folder


def line(step: object, value: object, **more: object) -> bytes:
    return json.dumps({"type": "metric", "t": 1.5, "step": step, "values": {"loss": value}, **more}).encode() + b"\n"


def test_what_a_run_recorded_is_read_back_by_training_and_name_with_every_number_as_it_was(tmp_path: Path) -> None:
    with Store(tmp_path).new("exec") as folder:
        for index, value in enumerate([0.5, math.nan, math.inf, -math.inf, 1e308, 5e-324]):
            folder.record(MetricRecord(t=index / 2, step=10 - index, values={"loss": value, "acc": index}))
        folder.record(MetricRecord(t=9, values={"late": 1}))
        folder.record(MetricRecord(t=9, values={"late": 2}))
        folder.record(MetricRecord(t=1, step=3, arm="Lion", seed=-4, phase="confirm", values={"loss": 7}))
    loss, acc, late, lion = read_series(folder.path)
    assert [one.name for one in (loss, acc, late, lion)] == ["loss", "acc", "late", "loss"]
    np.testing.assert_array_equal(loss.values, [0.5, math.nan, math.inf, -math.inf, 1e308, 5e-324])
    np.testing.assert_array_equal(loss.steps, [10, 9, 8, 7, 6, 5])
    np.testing.assert_array_equal(loss.seconds, [0, 0.5, 1, 1.5, 2, 2.5])
    np.testing.assert_array_equal(late.steps, [0, 1])
    assert (lion.arm, lion.seed, lion.phase, lion.origin) == ("Lion", -4, "confirm", "lab.log")


def test_records_in_memory_give_the_same_series_as_their_file(tmp_path: Path) -> None:
    records = [
        MetricRecord(t=i, step=i if i % 3 else None, arm="ab"[i % 2], values={"x": i, **({"y": -i} if i % 5 else {})})
        for i in range(60)
    ]
    with Store(tmp_path).new("exec") as folder:
        for record in records:
            folder.record(record)
    for one, other in zip(read_series(folder.path), series_of(records), strict=True):
        assert (one.name, one.arm) == (other.name, other.arm)
        np.testing.assert_array_equal(np.array([one.steps, one.values]), np.array([other.steps, other.values]))


def test_an_empty_folder_has_no_series(tmp_path: Path) -> None:
    assert read_series(tmp_path) == [] and not draw_run(tmp_path)


WHOLE = b"".join(line(i, i / 3) for i in range(20))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(WHOLE)))
def test_a_file_that_was_cut_anywhere_gives_what_was_whole(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = read_folder(written(Path(folder), WHOLE[:cut]))
    values = found.series[0].values.tolist() if found.series else []
    assert values == [i / 3 for i in range(WHOLE[:cut].count(b"\n"))] and found.skipped == 0


def test_a_torn_last_line_is_left_out_and_not_counted(tmp_path: Path) -> None:
    found = read_folder(written(tmp_path, line(1, 1) + line(2, 2) + b'{"type":"metric","t":1,"va'))
    assert list(found.series[0].values) == [1, 2] and found.skipped == 0


BAD = [
    b"nonsense", b"[]", b"null", b"\xff\xfe", b"{", b"[" * 100_000, b'{"type":"metric","x":' + b"[" * 50_000,
    b'{"type":"metric","values":{"a":1e999}}', b'{"type":"metric","values":{"a":"1.5"}}',
    b'{"type":"metric","values":{"a":true}}', b'{"type":"metric","values":{"":1}}',
    b'{"type":"metric","values":{"' + b"n" * 129 + b'":1}}', b'{"type":"metric","step":"one","values":{"a":1}}',
    b'{"type":"metric","seed":99999999999999999999,"values":{"a":1}}', b'{"type":"metric","t":"Infinity","values":{}}',
    b'{"values":{"loss":1}}', b'{"type":"plan"}', b'{"type":"run","t":0}', b'{"type":"other","t":0}',
    b'{"type":"metric","values":{"\\ud800":1}}',
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_line_that_is_no_record_is_counted_and_costs_nothing_else(tmp_path: Path, bad: bytes) -> None:
    found = read_folder(written(tmp_path, line(1, 1) + bad + b"\n" + line(2, 2)))
    assert list(found.series[0].values) == [1, 2] and found.skipped == 1


@pytest.mark.parametrize(
    "record",
    [{"values": {"n" * size: 1.0 for size in (MAX_NAME, MAX_NAME + 1)[:count]}} for count in (1, 2)]
    + [{"values": {str(name): 1.0 for name in range(count)}} for count in (MAX_VALUES, MAX_VALUES + 1)]
    + [{"seed": seed} for seed in (LEAST_WHOLE, LEAST_WHOLE - 1, MOST_WHOLE, MOST_WHOLE + 1)],
)
def test_both_readers_of_a_record_have_the_same_bounds(tmp_path: Path, record: dict[str, object]) -> None:
    text = json.dumps({"type": "metric", "t": 1.0, "values": {"loss": 1.0}, **record})
    try:
        RECORD.validate_json(text)
        good = True
    except ValidationError:
        good = False
    assert read_folder(written(tmp_path, text.encode() + b"\n")).skipped == (not good)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60).filter(lambda data: b"\n" not in data and data), max_size=8))
def test_bytes_of_any_kind_between_records_are_counted(noise: list[bytes]) -> None:
    collector = series_module._Collector()
    lines = [part for bad in noise for part in (bad, line(1, 1)[:-1])]
    collector.add_lines(lines, "lab.log")
    found = collector.reading()
    assert sum(len(one.values) for one in found.series) == len(noise) == found.skipped


def test_a_line_of_megabytes_is_passed_over_in_little_memory(tmp_path: Path) -> None:
    written(tmp_path, line(1, 1) + b"x" * (20 << 20) + b"\n" + line(2, 2))
    tracemalloc.start()
    found = read_folder(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(found.series[0].values) == [1, 2] and found.skipped == 1
    assert peak < 8 << 20


def test_lines_that_span_chunks_are_whole(tmp_path: Path) -> None:
    count = 40_000
    (one,) = read_series(written(tmp_path, b"".join(line(i, -i) for i in range(count))))
    np.testing.assert_array_equal(one.steps, np.arange(count))
    np.testing.assert_array_equal(one.values, -np.arange(count))


def test_what_is_beyond_the_bounds_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_module, "_MAX_POINTS", 25)
    monkeypatch.setattr(series_module, "_MAX_SERIES", 3)
    text = b"".join(line(i, i, arm=f"arm{i % 5}") for i in range(100))
    found = read_folder(written(tmp_path, text))
    assert len(found.series) == 3
    assert sum(len(one.values) for one in found.series) == 25 and found.left_out == 75


def test_plans_and_runs_come_along(tmp_path: Path) -> None:
    plan = PlanRecord(t=0, factor="arm", arms=["a"], seeds=[1], primary="loss", lower_is_better=True)
    run = RunRecord(t=1, arm="a", seed=1, phase="confirm", status="ok", values={"loss": math.inf})
    with Store(tmp_path).new("exec") as folder:
        for record in (plan, MetricRecord(t=1, values={"loss": 1}), run):
            folder.record(record)
    assert read_folder(folder.path).records == [plan, run]


def test_extracted_metrics_have_the_origin_that_their_line_says(tmp_path: Path) -> None:
    text = '{"type":"metric","origin":"stdout","step":3,"values":{"loss":"NaN"}}\n'
    (tmp_path / "extracted.jsonl").write_text(text)
    (one,) = read_series(tmp_path)
    assert one.origin == "stdout" and math.isnan(one.values[0]) and math.isnan(one.seconds[0])


# ---- thinning ----

VALUES = st.sampled_from([math.nan, math.inf, -math.inf]) | st.floats(-1e300, 1e300, allow_nan=False)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), VALUES), min_size=1, max_size=400),
    st.integers(16, 120),
)
def test_a_thinned_series_is_a_part_of_the_whole_with_its_ends_and_extremes(
    drawn: list[tuple[int, float]], points: int
) -> None:
    whole = made([value for _, value in drawn], [step for step, _ in drawn])
    thinned = thin(whole, points)
    assert len(thinned.values) <= max(points, 16)
    rest = iter([repr(pair) for pair in zip(whole.steps, whole.values, strict=True)])
    assert all(repr(pair) in rest for pair in zip(thinned.steps, thinned.values, strict=True))  # in the same order
    for end in (0, -1):
        np.testing.assert_array_equal([thinned.steps[end], thinned.values[end]], [whole.steps[end], whole.values[end]])
    for found in (np.nanmax, np.nanmin):
        finite, kept = (one.values[np.isfinite(one.values)] for one in (whole, thinned))
        assert not len(finite) or found(finite) == found(kept)
    assert np.isfinite(whole.values).all() == np.isfinite(thinned.values).all()


def test_thinning_keeps_gaps_spikes_and_both_sides_of_a_reset() -> None:
    values = np.sin(np.arange(100_000) / 5000)
    values[30_000:30_005] = math.nan
    values[60_000] = 50
    steps = np.concatenate([np.arange(70_000), np.arange(30_000)])
    thinned = thin(made(values, steps), 500)
    assert {30_000.0, 30_004.0} == set(thinned.steps[np.isnan(thinned.values)])
    assert 50 in thinned.values
    (reset,) = np.flatnonzero(np.diff(thinned.steps) < 0)
    assert (thinned.steps[reset], thinned.steps[reset + 1]) == (69_999, 0)
    back = np.interp(np.arange(29_999), thinned.steps[: reset + 1], thinned.values[: reset + 1])
    assert np.abs(back - values[:29_999]).max() < 0.01


def test_thinning_keeps_the_largest_and_the_smallest_even_where_they_are_neighbours() -> None:
    values = np.zeros(10_000)
    values[5000:5002] = 10, -10
    assert {10, -10} <= set(thin(made(values), 50).values)


def test_a_series_is_thinned_the_same_at_any_scale() -> None:
    values = np.sin(np.arange(5000) / 300) * np.arange(5000)
    for scale in (1e-300, 3e304):
        np.testing.assert_array_equal(thin(made(values * scale), 100).steps, thin(made(values), 100).steps)


def test_a_series_that_is_nothing_but_gaps_is_thinned() -> None:
    assert len(thin(made(np.tile([1.0, math.nan], 50_000)), 2000).values) <= 2000


def test_what_is_odd_about_a_series_is_said_in_words() -> None:
    values = [1, math.nan, math.inf, -math.inf, math.nan, 1, 2]
    assert oddities(made(values, [0, 1, 1, 2, 0, 1, 1])) == [
        "2 NaN", "1 inf", "1 -inf", "the step goes back once", "2 duplicate steps"
    ]  # fmt: skip
    assert oddities(made([1, 2, 3])) == []


# ---- pictures ----


def test_a_million_points_are_loaded_thinned_and_drawn_before_json_alone_has_read_them(tmp_path: Path) -> None:
    count = 1_000_000
    values = np.exp(-np.arange(count) / 2e5) + np.random.default_rng(0).normal(0, 0.05, count)
    text = b'{"type":"metric","t":%.3f,"step":%d,"values":{"loss":%.17g}}\n'
    written(tmp_path, b"".join(text % (i / 100, i, value) for i, value in enumerate(values.tolist())))
    took = []
    for _ in range(2):
        began = time.process_time()  # not that of others on the machine
        assert draw_run(tmp_path)
        took.append(time.process_time() - began)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    began = time.process_time()
    for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines():
        json.loads(line)
    assert min(took) < time.process_time() - began


@pytest.mark.parametrize("seeds", [7, 100_000])
def test_trainings_that_take_turns_line_by_line_are_read_as_fast(tmp_path: Path, seeds: int) -> None:
    text = b'{"type":"metric","t":%d,"step":%d,"seed":%d,"values":{"loss":1.5,"acc":0.5}}\n'

    def read(seeds: int) -> tuple[Reading, float]:
        written(tmp_path, b"".join(text % (i, i, i % seeds) for i in range(100_000)))
        took = []
        for _ in range(3):
            began = time.process_time()
            found = read_folder(tmp_path)
            took.append(time.process_time() - began)
        return found, min(took)

    _, alone = read(1)
    found, took = read(seeds)
    assert took < 8 * alone, "it was forty times, when every change of training cost a series"
    assert sum(len(one.values) for one in found.series) + found.left_out == 200_000
    if seeds == 7:
        assert [one.seed for one in found.series[::2]] == list(range(7))
        np.testing.assert_array_equal(found.series[2].steps, np.arange(1, 100_000, 7))


def test_a_line_breaks_where_a_value_is_missing_and_where_the_step_goes_back() -> None:
    steps, values = curves._line(made([1, math.nan, 3, 4, 5], [0, 1, 2, 0, 1]))
    np.testing.assert_array_equal(values, [1, math.nan, 3, math.nan, 4, 5, math.nan])
    np.testing.assert_array_equal(steps, [0, 1, 2, math.nan, 0, 1, math.nan])


def test_a_picture_says_where_its_numbers_are_from_and_what_is_odd_about_them() -> None:
    figure = curves._panels(
        [made([1, math.nan, 3], origin="stdout"), made([1, 2], name="acc", origin="artifacts/a.csv")]
    )
    loss, acc = figure.axes
    assert loss.get_title("left") == "loss (from stdout)" and acc.get_title("left") == "acc (from artifacts/a.csv)"
    assert loss.get_xlabel() == "step\n1 NaN" and acc.get_xlabel() == "step"
    assert len(loss.collections) == 1 and not acc.collections  # the cross where the NaN is
    assert "nothing was recorded" in figure.get_suptitle()
    recorded = curves._panels([made([1, 2])])
    assert recorded.axes[0].get_title("left") == "loss" and not recorded.get_suptitle()


def test_trainings_and_origins_of_one_metric_share_a_panel() -> None:
    lines = [made([1, 2], arm="a", seed=0), made([2, 3], arm="a", seed=1), made([1, 2], origin="stderr")]
    (axes,) = curves._panels(lines).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a seed 0", "a seed 1", "stderr"]
