"""Promises of the store and the curves: whole files, distinct folders, nothing lost, and pictures of anything."""

import errno
import json
import math
import os
import resource
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from executor.experiment import AnyRecord, MetricRecord, PlanRecord, RunRecord
from results.curves import draw_run
from results.store import Store, StoreError, unfinished


def test_two_runs_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    store, now = Store(tmp_path / "results"), datetime(2026, 1, 2, 3, 4, 5)
    ids = [store.new("sprint", now).id for _ in range(11)]
    assert ids[:3] == ["sprint_20260102_030405", "sprint_20260102_030405_2", "sprint_20260102_030405_3"]
    assert store.runs() == ids


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = Store(tmp_path).new("exec")
    folder.write_json("a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        folder.write_json("a.json", {"x": math.nan})
    assert json.loads((folder.path / "a.json").read_text()) == {"x": 1}
    assert (folder.path / "a.json").stat().st_mode & 0o777 == 0o644
    artifact = folder.artifact("deep/model.pt")
    artifact.write(b"half")
    assert not (folder.path / "artifacts/deep/model.pt").exists()
    artifact.abort()
    whole = folder.artifact("deep/model.pt")
    whole.write(b"whole")
    whole.commit()
    assert [path.name for path in (folder.path / "artifacts/deep").iterdir()] == ["model.pt"]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ""])
def test_an_artifact_cannot_be_written_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        Store(tmp_path).new("exec").artifact(name)


def test_a_results_folder_that_is_a_link_is_refused_and_what_it_points_to_is_untouched(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StoreError, match="symbolic link"):
        Store(tmp_path / "link").new("sprint")
    assert list((tmp_path / "real").iterdir()) == []


def test_a_results_folder_that_is_a_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("mine")
    with pytest.raises(StoreError, match="not a folder"):
        Store(tmp_path / "results").new("sprint")
    assert (tmp_path / "results").read_text() == "mine"


def test_a_full_disk_is_found_before_the_run_and_leaves_nothing_behind(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)], check=True)
    try:
        (full / "theirs").write_bytes(b"x" * 20_000)
        with pytest.raises(StoreError, match="No space left") as told:
            Store(full).new("sprint")
        assert told.value.errno == errno.ENOSPC
        assert [path.name for path in full.iterdir()] == ["theirs"]
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_a_read_only_results_folder_is_said_in_one_line(tmp_path: Path) -> None:
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(fixed)], check=True)
    try:
        with pytest.raises(StoreError, match="Read-only") as refused:
            Store(fixed).new("sprint")
        assert "\n" not in str(refused.value)
    finally:
        subprocess.run(["umount", str(fixed)], check=True)


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"goal": "g", "phases": {"implementation": {"error": "no code"}}},
        {"goal": "g", "phases": {"discussion": {"individual_responses": {}}, "implementation": {"code": "x"}}},
        {"phases": {"implementation": {"execution": {"returncode": 1}}, "validation": {"analysis": "a"}}},
        {"phases": []},
    ],
)
def test_older_summaries_with_missing_parts_are_read(tmp_path: Path, summary: dict[str, object]) -> None:
    store = Store(tmp_path)
    folder = store.new("sprint", datetime(2025, 12, 3, 12, 0, 0))
    folder.write_json("sprint_summary.json", summary)
    assert store.summary("sprint_20251203_120000") == summary == store.summary("20251203_120000")


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", "[" * 100_000])
def test_a_summary_that_is_none_is_said_in_one_line(tmp_path: Path, text: str) -> None:
    folder = Store(tmp_path).new("sprint")
    (folder.path / "sprint_summary.json").write_text(text)
    with pytest.raises(StoreError) as refused:
        Store(tmp_path).summary(folder.id)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["nope", "../../etc", "sprint_20250101_000000", ""])
def test_a_sprint_that_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="there is no sprint"):
        Store(tmp_path).summary(name)


def test_what_nobody_finished_is_found_wherever_it_is_in_a_run_and_no_link_is_followed(tmp_path: Path) -> None:
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    old = [
        "sweep_20260101_000000/.sweep.json.dead5678",
        "sweep_20260101_000000/trials/3/.execution.json.dead5678",
        "sweep_20260101_000000/trials/3/artifacts/a\udcff\nb/.part-dead5678",
        "sweep_20260101_000000/confirm/best-1/.run.json.dead5678",
        "sprint_20260101_000000/attempts/1/artifacts/.part-dead5678",
        "sprint_20260101_000000/figures/.effect.png.dead5678",
    ]
    kept = ["sprint_20260101_000000/attempts/1/artifacts/part-dead5678", "sprint_20260101_000000/figures/effect.png"]
    young = ["sprint_20260101_000000/figures/.effect.png.young678"]
    for path in [*(results / name for name in (*old, *kept, *young)), elsewhere / ".part-dead5678"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        if path.name not in young[0]:
            os.utime(path, (1, 1))
    (results / "sprint_20260101_000000/artifacts").symlink_to(elsewhere)
    (results / "sprint_20260101_000000/attempts/2").symlink_to(elsewhere)
    (results / "sprint_20260101_000000/attempts/1/.log.dead5678").symlink_to(elsewhere / ".part-dead5678")
    assert [str(path.relative_to(results)) for path in unfinished(results, 60)] == sorted(old)


# ---- curves ----

HOSTILE = ["$\\frac{", "a\x1b[31mb\nc", "x" * 120, "𝕏 ☃ \u202e", "_^{}%#&"]


def comparison(arms: list[str], key: str) -> list[AnyRecord]:
    records: list[AnyRecord] = [
        PlanRecord(t=0, factor=key, arms=arms, seeds=[0, 1, 2], primary=key, lower_is_better=True)
    ]
    for seed in range(3):
        for index, arm in enumerate(arms):
            for step in range(10):
                values = {key: 1 / (step + 1 + index) + 0.01 * seed}
                records.append(MetricRecord(t=1, step=step, arm=arm, seed=seed, phase="confirm", values=values))
            status = "ok" if seed else "diverged"
            value = 0.1 * index + 0.01 * seed if seed else math.nan
            run = RunRecord(t=2, seconds=2, arm=arm, seed=seed, phase="confirm", status=status, values={key: value})  # type: ignore[arg-type]
            records.append(run)
    return records


def left(folder: Path, records: Sequence[AnyRecord]) -> Path:
    """A run's folder with these records."""
    lines = [record.model_dump_json(exclude_none=True).encode() + b"\n" for record in records]
    (folder / "metrics.jsonl").write_bytes(b"".join(lines))
    return folder


@pytest.mark.parametrize("name", ["val_loss", *HOSTILE])
def test_a_comparison_is_drawn_whatever_its_names_are(tmp_path: Path, name: str) -> None:
    assert draw_run(left(tmp_path, comparison([f"{name}{index}"[-128:] for index in range(3)], name)))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_metrics_without_a_comparison_are_drawn_with_nan_infinity_and_huge_values(tmp_path: Path) -> None:
    values = [1.0, math.nan, math.inf, -math.inf, 1e308, 0.5]
    records: list[AnyRecord] = [
        MetricRecord(t=1, step=step if step % 2 else None, values={"loss": value, "$": 1.0})
        for step, value in enumerate(values)
    ]
    assert draw_run(left(tmp_path, records))
    assert (tmp_path / "curves.png").stat().st_size > 5000


@pytest.mark.filterwarnings("error")
def test_a_study_with_steps_and_values_at_the_end_of_the_scale_is_drawn(tmp_path: Path) -> None:
    records = comparison(["a", "b"], "loss")
    records += [
        MetricRecord(t=1, step=step, arm="a", seed=0, phase="confirm", values={"loss": 1.7e308})
        for step in (1.7e308, -1.7e308)
    ]
    records += [
        MetricRecord(t=1, step=step, arm="a", seed=seed, phase="confirm", values={"loss": 0.5})
        for step in (1.7e308, -1.7e308)
        for seed in range(3)
    ]
    records += [RunRecord(t=1, arm="b", seed=2, phase="confirm", status="ok", values={"loss": -1.7e308})]
    assert draw_run(left(tmp_path, records))


def test_a_disk_that_is_full_keeps_the_old_picture_and_nothing_half(tmp_path: Path) -> None:
    folder = left(tmp_path, comparison(["a", "b"], "loss"))
    (folder / "curves.png").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            draw_run(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (folder / "curves.png").read_bytes() == b"old"
    assert sorted(found.name for found in folder.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_the_curves_are_those_of_the_metric_that_the_report_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What tuning selects by, where the primary was not logged, however often others were."""
    records = comparison(["a", "b"], "val_loss")
    plan = records[0].model_copy(update={"primary": "test_loss", "select": "val_loss"})
    more: list[AnyRecord] = [
        MetricRecord(t=1, step=step, arm="a", seed=0, phase="confirm", values={"train_loss": 1}) for step in range(99)
    ]
    runs = [
        one.model_copy(update={"values": {"test_loss": 1.0 + one.seed}}) if isinstance(one, RunRecord) else one
        for one in records[1:]
    ]
    folder, labels = left(tmp_path, [plan, *more, *runs]), []
    monkeypatch.setattr(Axes, "set_ylabel", lambda axes, label, **more: labels.append(label))
    assert draw_run(folder)
    assert "val_loss" in labels and "train_loss" not in labels


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    assert not draw_run(left(tmp_path, []))
    assert [found.name for found in tmp_path.iterdir()] == ["metrics.jsonl"]
