"""Promises of export and live tracking: what the tools' own readers find is what was recorded, whatever it is called."""

import csv
import importlib
import json
import math
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from executor.experiment import AnyRecord, MetricRecord, PlanRecord, RunRecord
from orchestrator.cli.main import app
from orchestrator.errors import UsageProblem
from results.export import destinations
from results.export.csvfiles import CsvFolder
from results.export.destinations import DestinationName, destination
from results.export.live import Following, Tracking
from results.export.names import file_name, metric_name
from results.export.replay import Exported, export
from results.export.tracker import (
    MAX_ENTRIES,
    Destination,
    Entry,
    ExportError,
    RunInfo,
    Summary,
    Tracked,
    Training,
)
from results.extract import extract
from results.store import RunFolder, Store, StoreError
from tests.faulty_server import CODE, always, answer, faulty_service
from tests.test_cli import COMMAND, QUICK, labsandbox, told

FORK = multiprocessing.get_context("fork")
RUN = "sprint_20260101_120000"
SHORT = "import lab\nfor step in range(3):\n    lab.log(step=step, loss=1 / (step + 1))\n"
EVIL = "=cmd|'/c calc'!A1/../\x1b[2J"
ARMS = ["Adam/W", "../../Lion\x00"]


def records() -> list[AnyRecord]:
    """Two arms, two seeds, one tuning with two trials, one training that diverged and one that never ended."""
    found: list[AnyRecord] = [
        PlanRecord(t=0.0, factor="optimiser", arms=ARMS, seeds=[0, 1], primary="loss", lower_is_better=True)
    ]
    t = 1.0
    for arm, seed, phase, lr in [(a, s, "confirm", 0.1) for a in ARMS for s in (0, 1)] + [
        (ARMS[0], 7, "tune", lr) for lr in (0.1, 0.2)
    ]:
        who: dict[str, Any] = {"arm": arm, "seed": seed, "phase": phase}
        for step in range(3):
            t += 0.5
            values = {"loss": 1.0 / (step + 1) + seed, EVIL: math.nan if step == 1 else math.inf}
            found.append(MetricRecord(t=t, step=step, values=values, **who))
        bad = arm == ARMS[1] and seed == 1
        final = {"loss": math.nan if bad else 0.25}
        found.append(RunRecord(t=t, status="diverged" if bad else "ok", values=final, config={"lr": lr}, **who))
    found.append(MetricRecord(t=t + 1, step=0.5, values={"loss": 3.0}, arm=ARMS[0], seed=9, phase="confirm"))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    path = tmp_path / "results" / RUN
    (path / "artifacts").mkdir(parents=True)
    (path / "artifacts" / "weights[1].bin").write_bytes(b"theirs")
    (path / "curves.png").write_bytes(b"\x89PNG")
    (path / "experiment.py").write_text("print()")
    lines = [record.model_dump_json(exclude_none=True) for record in records()]
    (path / "metrics.jsonl").write_text("\n".join([*lines, '{"type":"later"}', '{"type":"met']))
    (path / "sprint_summary.json").write_text(json.dumps(SUMMARY))
    return RunFolder(path)


SUMMARY = {
    "goal": "Which\x1b is better?",
    "seed": 3,
    "verdict": "Adam/W is better.",
    "phases": {
        "implementation": {
            "execution": {
                "outcome": "completed",
                "started_at": "2026-01-01T12:00:00+00:00",
                "policy": {"name": "default", "sha256": "p" * 64},
                "image": {"reference": "x", "digest": "sha256:abc"},
            }
        }
    },
}


def exported(folder: RunFolder, to: DestinationName, out: Path, artifacts: bool = False) -> Exported:
    return export(folder, SUMMARY, destination(to, out), artifacts)


@pytest.fixture
def sweep(tmp_path: Path) -> RunFolder:
    """A sweep of three trials, one of them pruned, whose best was confirmed on one seed."""
    folder = RunFolder(tmp_path / "results" / "sweep_20260101_120000")
    states = ("complete", "pruned", "complete")
    for number in range(len(states)):
        trial = folder.path / f"trials/{number}"
        trial.mkdir(parents=True)
        lines = [MetricRecord(t=1 + step, step=step, values={"loss": 3 - number - step / 9}) for step in range(2)]
        (trial / "metrics.jsonl").write_text(
            "".join(one.model_dump_json(exclude_none=True) + "\n" for one in lines) + "{"
        )
        started = f"2026-01-01T12:00:{10 * number:02d}+00:00"
        (trial / "execution.json").write_text(
            json.dumps({"outcome": "completed", "started_at": started, "backend": "oci"})
        )
    confirmed = folder.path / "confirm/best-1000"
    confirmed.mkdir(parents=True)
    ended = RunRecord(
        t=0, arm="Trial 2", seed=1000, phase="confirm", status="ok", values={"loss": 0.5}, config={"lr": 0.2}
    )
    (confirmed / "run.json").write_text(ended.model_dump_json())
    trials = [
        {"number": n, "state": state, "params": {EVIL: "x", "lr": n / 10}, "why": EVIL, "value": None if n == 1 else 2.0 - n}
        for n, state in enumerate(states)
    ]  # fmt: skip
    summary = {"metric": "loss", "trials": [*trials, 7], "best": trials[2], "verdict": "Trial 2 is better."}
    folder.write_json("sweep_summary.json", summary)
    folder.write_json("sweep.json", {"schema": "labsandbox.sweep/1", "goal": "find lr", "trials": 3, "seed": 5})
    return folder


def test_a_sweep_is_one_group_with_an_entry_for_each_trial(sweep: RunFolder, tmp_path: Path) -> None:
    root = ("--results", str(sweep.path.parent))
    for to in ("csv", "mlflow"):
        app(["export", sweep.id, "--to", to, "--out", str(tmp_path / to), *root], standalone_mode=False)
    with (tmp_path / "csv" / sweep.id / "runs.csv").open(newline="") as file:
        runs = {(run["arm"], run["phase"]): run for run in csv.DictReader(file)}
    assert len(runs) == 5 and {run["run"] for run in runs.values()} == {sweep.id}
    best = runs["Trial 2", "tune"]
    assert json.loads(best["config"]) == {EVIL: "x", "lr": 0.2} and json.loads(best["values"]) == {"loss": 0.0}
    assert (best["seed"], best["state"]) == ("5", "finished") and float(best["t"]) == 22.0, "from the sweep's beginning"
    assert runs["Trial 1", "tune"]["state"] == "killed" and runs["Trial 2", "confirm"]["seed"] == "1000"
    assert json.loads(runs["", ""]["facts"])["verdict"] == "Trial 2 is better."
    with (tmp_path / "csv" / sweep.id / "metrics.csv").open(newline="") as file:
        assert [row["arm"] for row in csv.DictReader(file)] == [f"Trial {n}" for n in range(3) for _ in range(2)]
    client = importlib.import_module("mlflow").MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("labsandbox").experiment_id])
    [parent] = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert len(found) == 5 and parent.data.tags["labsandbox.goal"] == "find lr"
    [trial] = [run for run in found if run.data.params.get("arm") == "Trial 2" and run.data.params["phase"] == "tune"]
    assert trial.data.params["lr"] == "0.2" and trial.data.metrics["result:loss"] == 0.0
    with pytest.raises(ExportError, match="already"):
        app(["export", sweep.id, "--to", "csv", "--out", str(tmp_path / "csv"), *root], standalone_mode=False)


# ---- each tool's own reader ----


def events(out: Path) -> dict[str, Any]:
    """TensorBoard's own readers, by folder."""
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for path in sorted(out.rglob("events.out.*")):
        found[str(path.parent.relative_to(out))] = reader = accumulator.EventAccumulator(str(path.parent))
        reader.Reload()
    return found


def about(reader: Any) -> dict[str, Any]:
    [event] = reader.Tensors("about:labsandbox")
    return dict(json.loads(event.tensor_proto.string_val[0]))


def test_tensorboard_reads_every_training_with_its_steps_times_and_odd_values(
    folder: RunFolder, tmp_path: Path
) -> None:
    done = exported(folder, "tensorboard", tmp_path / "tb")
    assert (done.entries, done.unreadable) == (8, 1)
    found = events(tmp_path / "tb")
    assert len(found) == 8
    assert all(name == RUN or name.count("/") == 1 for name in found), "one folder below the run's, whatever the arm"
    reader = next(one for name, one in found.items() if name.endswith("/Adam-0x2f-W-seed_1-confirm"))
    loss = reader.Scalars("loss")
    assert [(one.step, round(one.value, 5)) for one in loss] == [(0, 2.0), (1, 1.5), (2, 1.33333)]
    assert loss[0].wall_time == 1767268800 + 3.0
    odd = [one.value for one in reader.Scalars(metric_name(EVIL))]
    assert odd[0] == odd[2] == math.inf and math.isnan(odd[1])
    assert (about(reader)["arm"], about(reader)["lr"], about(reader)["state"]) == ("Adam/W", 0.1, "finished")
    main = about(found[RUN])
    assert (main["verdict"], main["image_digest"]) == ("Adam/W is better.", "sha256:abc")


def test_mlflow_finds_nested_runs_with_parameters_metrics_tags_and_states(folder: RunFolder, tmp_path: Path) -> None:
    client_of = importlib.import_module("mlflow").MlflowClient
    importlib.import_module("sqlalchemy")
    done = exported(folder, "mlflow", tmp_path / "ml", artifacts=True)
    client = client_of(tracking_uri=done.where)
    experiment = client.get_experiment_by_name("labsandbox")
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(runs) == 8 and all(
        run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in runs if run is not parent
    )
    assert parent.data.tags["labsandbox.verdict"] == "Adam/W is better."
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"artifacts", "curves.png"}
    assert sorted(run.info.status for run in runs) == ["FAILED", *["FINISHED"] * 7]
    one = next(run for run in runs if run.data.params.get("arm") == "Adam/W" and run.data.params["seed"] == "0")
    assert one.data.params["lr"] == "0.1" and one.data.metrics["result:loss"] == 0.25
    history = client.get_metric_history(one.info.run_id, metric_name(EVIL))
    odd = [point.value for point in sorted(history, key=lambda point: point.step)]
    assert math.isnan(odd[1]) and odd[0] == odd[2] == sys.float_info.max
    with pytest.raises(ExportError, match="already"):
        exported(folder, "mlflow", tmp_path / "ml")


def inspected(path: Path) -> dict[str, Any]:
    """What W&B's own reader says of an offline run."""
    tool = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [tool, "leet", "inspect", "--summary", "--json", path], capture_output=True, text=True, timeout=60, check=True
    )
    return dict(json.loads(done.stdout))


def test_wandb_reads_offline_runs_in_one_group_without_looking_around(folder: RunFolder, tmp_path: Path) -> None:
    importlib.import_module("wandb")
    exported(folder, "wandb", tmp_path / "wb", artifacts=True)
    paths = sorted((tmp_path / "wb").rglob("*.wandb"))
    assert len(paths) == 8 and all(path.parent.name.startswith("offline-run-") for path in paths)
    wanted = [path for path in paths if path.stem in (f"run-{RUN}", f"run-{RUN}-4", f"run-{RUN}-6")]
    found = {run["name"]: run for run in map(inspected, wanted)}
    main = found[RUN]
    assert main["summary"]["lab:verdict"] == "Adam/W is better." and main["state"] == "finished"
    one = found["Adam/W, seed 7, tune, trial 2"]
    assert one["config"]["lr"] == 0.2 and one["summary"]["result:loss"] == 0.25 and one["step"] == 2
    assert one["summary"]["lab:step"] == 2 and one["summary"][metric_name(EVIL)] == "Infinity"
    assert found[r"../../Lion\x00, seed 1, confirm"]["exit_code"] == 1
    raw = b"".join(path.read_bytes() for path in paths)
    assert RUN.encode() in raw
    for secret in (b"git@", str(Path(__file__).parent).encode(), b"requirements.txt"):
        assert secret not in raw
    kept = {path.name for path in (tmp_path / "wb").rglob("files/**/*") if path.is_file()}
    assert {"curves.png", "weights[1].bin"} <= kept


def test_csv_reads_back_exactly_and_holds_no_formula(folder: RunFolder, tmp_path: Path) -> None:
    done = exported(folder, "csv", tmp_path / "csv")
    with (Path(done.where) / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sent = [(name, value) for one in records() if isinstance(one, MetricRecord) for name, value in one.values.items()]
    assert len(rows) == len(sent)
    for row, (name, value) in zip(rows, sent, strict=True):
        assert row["metric"].removeprefix("'") == name
        assert not row["metric"].startswith("=") and not row["arm"].startswith("=")
        assert float(row["value"]) == value or (math.isnan(value) and row["value"] == "nan")
    with (Path(done.where) / "runs.csv").open(newline="", encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    assert [run["state"] for run in runs].count("failed") == 1 and len(runs) == 8
    assert json.loads(runs[-1]["facts"])["verdict"] == "Adam/W is better."


def test_an_export_that_fails_half_way_leaves_nothing_that_counts_and_can_be_done_again(
    folder: RunFolder, tmp_path: Path
) -> None:
    (folder.path / "extracted.jsonl").mkdir()  # found only when all of metrics.jsonl has been told
    tools: tuple[DestinationName, ...] = ("csv", "tensorboard", "mlflow", "wandb")
    for to in tools:
        with pytest.raises(StoreError, match="cannot read"):
            exported(folder, to, tmp_path / to)
    assert not list((tmp_path / "csv").iterdir())
    assert not list((tmp_path / "tensorboard").rglob("events.out.*"))
    assert not list((tmp_path / "wandb").rglob("*.wandb"))
    entities = importlib.import_module("mlflow.entities")
    client = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    experiment = [client.get_experiment_by_name("labsandbox").experiment_id]
    assert client.search_runs(experiment) == []
    partial = client.search_runs(experiment, run_view_type=entities.ViewType.DELETED_ONLY)
    assert {run.info.status for run in partial} == {"FAILED"}
    (folder.path / "extracted.jsonl").rmdir()
    for to in tools[:-1]:
        assert exported(folder, to, tmp_path / to).entries == 8, "and nothing says that it is there already"


def test_what_was_read_from_output_is_told_with_its_origin(folder: RunFolder, tmp_path: Path) -> None:
    (folder.path / "metrics.jsonl").unlink()
    (folder.path / "stdout.log").write_text("".join(f"step {n} loss {1 / (n + 1)}\n" for n in range(10)))
    (folder.path / "artifacts" / "log.csv").write_text("step,loss,acc\n0,3.0,nan\n1,2.0,0.5\n2,1.5,0.75\n")
    assert extract(folder.path) > 0
    with (folder.path / "extracted.jsonl").open("a") as file:
        file.write('{"type":"metric","t":2.5,"values":{"timed":1}}\n{"type":"met"}\n')
    done = exported(folder, "csv", tmp_path / "csv")
    assert (done.entries, done.unreadable) == (1, 1) and done.records >= 14, "the line that is no record is told of"
    with (tmp_path / "csv" / RUN / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    printed = [row for row in rows if row["origin"] == "stdout"]
    assert [(row["metric"], float(row["value"]), row["t"]) for row in printed] == [
        ("loss", 1 / (n + 1), "") for n in range(10)
    ]
    written = [(row["metric"], row["step"], row["value"]) for row in rows if row["origin"] == "artifacts/log.csv"]
    assert ("artifacts/log.csv/loss", "2.0", "1.5") in written, "another loss than that of the output"
    assert ("acc", "1.0", "0.5") in written
    assert [(row["t"], row["origin"]) for row in rows if row["metric"] == "timed"] == [("2.5", "unknown")]
    exported(folder, "mlflow", tmp_path / "mlflow")
    client = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("labsandbox").experiment_id])
    assert run.data.metrics["loss"] == 0.1 and run.data.metrics["artifacts/log.csv/loss"] == 1.5
    assert run.data.tags["labsandbox.extracted_from"] == "stdout, artifacts/log.csv, unknown"


def test_processes_that_begin_at_once_share_one_mlflow_store(tmp_path: Path) -> None:
    client_of = importlib.import_module("mlflow").MlflowClient
    started = [FORK.Process(target=destination, args=("mlflow", tmp_path)) for _ in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0, 0]
    assert client_of(f"sqlite:///{tmp_path / 'mlflow.db'}").get_experiment_by_name("labsandbox") is not None


# ---- names ----

HOSTILE = st.text(st.sampled_from("aB0x-_./ \\:\x00\u202eé") | st.characters(), min_size=1, max_size=128)


@given(HOSTILE, HOSTILE)
@example("a*b", "a-0x2a-b")
@example("../a", "-0x2e--0x2e--0x2f-a")
@example("x" * 300, "x" * 301)
def test_two_names_stay_two_and_are_allowed_everywhere(one: str, other: str) -> None:
    for safe in (metric_name, file_name):
        assert (safe(one) == safe(other)) == (one == other)
    name = metric_name(one)
    assert name and len(name) <= 240 and not name.startswith(("/", "_", " "))
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./ ")
    assert not {"", ".", ".."} & set(name.split("/"))
    path = file_name(one)
    assert path and len(path) <= 100 and "/" not in path and not path.startswith(".")


def test_plain_names_stay_as_they_are() -> None:
    assert [metric_name(name) for name in ("loss", "val/loss", "top 5-acc.")] == ["loss", "val/loss", "top 5-acc."]


# ---- bounds ----


class Counted:
    """A destination that only counts, and may be slow or broken."""

    where = "nowhere"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.opened, self.open_now, self.most = seconds, 0, 0, 0
        self.states: list[str] = []
        self.files: dict[str, Path] = {}
        self.runs: list[str] = []

    def taken(self, run: str) -> bool:
        return False

    def open(self, run: RunInfo, training: Training | None) -> Entry:
        self.opened += 1
        self.runs += [run.id] if training is None else []
        self.open_now += 1
        self.most = max(self.most, self.open_now)
        return self

    def point(self, point: object) -> None:
        time.sleep(self.seconds)

    def finish(self, state: str, *rest: Any) -> None:
        self.open_now -= 1
        self.states.append(state)
        self.facts, self.files = rest[-2:]  # the last is the run's own

    def close(self) -> None: ...

    def abandon(self) -> None: ...


def test_trainings_are_bounded_and_what_is_left_out_is_counted() -> None:
    to = Counted()
    tracked = Tracked(to)
    tracked.begin(RunInfo(RUN, 0.0))
    for seed in range(MAX_ENTRIES + 500):
        tracked.record(MetricRecord(t=1.0, arm="a", seed=seed, values={"x": 1.0}))
    tracked.end(Summary("finished"))
    assert (to.opened, tracked.left_out, to.open_now) == (MAX_ENTRIES + 1, 500, 0)
    assert to.most <= 65


# ---- live ----


class Kept:
    """A sink that keeps the records."""

    def __init__(self) -> None:
        self.records: list[AnyRecord] = []

    def log(self, stream: object, data: bytes) -> None: ...

    def record(self, record: AnyRecord) -> None:
        self.records.append(record)

    def artifact(self, name: str) -> Any: ...


class Into(Tracking):
    """Tracking into a destination of the test's own."""

    to_be: Destination

    def open(self) -> Destination:
        return self.to_be


def into(to: Destination) -> Into:
    tracking = Into("tensorboard", Path("unused"))
    object.__setattr__(tracking, "to_be", to)
    return tracking


def live(tracking: Tracking, folder: Path, patience: float = 30.0, error: BaseException | None = None) -> list[str]:
    """Tells `records()`; the notes."""
    notes: list[str] = []
    kept = Kept()
    with pytest.MonkeyPatch.context(), Following(tracking, folder, {}, notes.append, patience) as following:
        sink = following.attempt(kept, "print()")
        for record in records():
            sink.record(record)
        if error is not None:
            with pytest.raises(type(error)), following:
                raise error
    assert kept.records == records()
    return notes


def test_live_and_export_write_the_same(folder: RunFolder, tmp_path: Path) -> None:
    assert live(into(CsvFolder(tmp_path / "live")), folder.path) == []
    exported(folder, "csv", tmp_path / "later")
    one, other = ((tmp_path / name / RUN / "metrics.csv").read_text() for name in ("live", "later"))
    assert one == other


def test_an_interrupted_run_is_killed_in_the_tool(folder: RunFolder, tmp_path: Path) -> None:
    importlib.import_module("tensorboard")
    tracking = Tracking("tensorboard", tmp_path / "tb")
    assert live(tracking, folder.path, error=KeyboardInterrupt()) == []
    assert about(events(tmp_path / "tb")[RUN])["state"] == "killed"


def test_the_report_goes_along_and_a_further_container_goes_on_in_its_run(folder: RunFolder) -> None:
    to = Counted()
    notes: list[str] = []
    with Following(into(to), folder.path, {}, notes.append) as following:
        for step in range(2):
            sink = following.attempt(Kept(), "the same code")
            sink.record(MetricRecord(t=1.0, step=step, values={"x": 1.0}))
        RunFolder(folder.path).write_text("report.html", "<p>")
        following.conclude(SUMMARY)
    assert (to.runs, notes) == ([RUN], [])
    assert set(to.files) == {"curves.png", "report.html"} and to.facts["verdict"] == "Adam/W is better."


def test_the_rest_of_a_sprint_tells_what_was_run_before_it(folder: RunFolder, tmp_path: Path) -> None:
    notes: list[str] = []
    for _ in range(2):
        with Following(into(CsvFolder(tmp_path / "out")), folder.path, {}, notes.append) as following:
            following.conclude(SUMMARY)
    assert notes == [] and sorted(path.name for path in (tmp_path / "out").iterdir()) == [RUN, f"{RUN}.2"]
    assert "Adam/W is better." in (tmp_path / "out" / RUN / "runs.csv").read_text()


def test_a_tracker_that_breaks_midway_leaves_nothing_half(folder: RunFolder, tmp_path: Path) -> None:
    class Full(CsvFolder):
        def close(self) -> None:
            raise OSError(28, "No space left on device")

    [note] = live(into(Full(tmp_path / "out")), folder.path)
    assert "No space left" in note and "labsandbox export" in note and not list((tmp_path / "out").iterdir())


def test_a_tracker_that_fails_is_noted_once_and_the_records_pass(folder: RunFolder, tmp_path: Path) -> None:
    importlib.import_module("tensorboard")
    (tmp_path / "file").write_text("no folder")
    [note] = live(Tracking("tensorboard", tmp_path / "file"), folder.path)
    assert note.startswith("tensorboard failed, and the run goes on without it")


def test_a_tracker_that_hangs_slows_nothing(folder: RunFolder) -> None:
    notes: list[str] = []
    began = time.monotonic()
    with Following(into(Counted(seconds=60)), folder.path, {}, notes.append, patience=0.3) as following:
        sink = following.attempt(Kept(), "")
        for step in range(30_000):  # three times what may wait
            sink.record(MetricRecord(t=1.0, step=step, values={"x": 1.0}))
    assert time.monotonic() - began < 20
    assert len(notes) == 1 and "did not finish" in notes[0]


def test_a_second_attempt_and_a_resumed_run_have_entries_of_their_own(folder: RunFolder, tmp_path: Path) -> None:
    for _ in range(2):
        assert live(into(CsvFolder(tmp_path / "out")), folder.path) == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RUN, f"{RUN}.2"]


# ---- the command ----


def test_exec_tells_tensorboard_as_it_goes(tmp_path: Path) -> None:
    importlib.import_module("tensorboard")
    code = tmp_path / "e.py"
    code.write_text("import lab\nfor i in range(3):\n    lab.log(step=i, loss=i)\nraise SystemExit(3)\n")
    done = labsandbox("exec", str(code), *QUICK, "--results", str(tmp_path / "r"), "--tracker", "tensorboard")
    assert done.returncode == 1, done.stderr
    [(name, reader)] = events(tmp_path / "r" / "tracking" / "tensorboard").items()
    assert name.startswith("exec_") and [one.value for one in reader.Scalars("loss")] == [0.0, 1.0, 2.0]
    assert about(reader)["state"] == "failed" and about(reader)["policy"] == "default"


def test_a_sprint_and_its_rest_are_told_with_their_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as the journal knows, the first process was killed after the run."""
    monkeypatch.chdir(tmp_path)
    with faulty_service({CODE: always(answer({"result": {"code": SHORT}}))}) as service:
        monkeypatch.setenv("LUMENBRIDGE_BASE_URL", service.url)
        assert app(["run", "Is it short?", *QUICK, "--tracker", "csv"], standalone_mode=False) == 0
        [sprint] = Store(tmp_path / "results").runs()
        events = tmp_path / "results" / sprint / "events.jsonl"
        lines = events.read_text().splitlines(keepends=True)
        ran = next(index for index, line in enumerate(lines) if '"attempt.1"' in line)
        events.write_text("".join(lines[: ran + 1]))
        (tmp_path / "results" / sprint / "report.html").unlink()
        for _ in range(2):
            assert app(["resume", sprint, "--tracker", "wandb"], standalone_mode=False) == 0
    assert f"nothing left to do (labsandbox export {sprint} --to wandb)" in capsys.readouterr().err
    tracking = tmp_path / "results" / "tracking"
    assert (tracking / "csv" / sprint / "runs.csv").exists()
    assert len(list(tracking.rglob("files/report.html"))) == 1


def test_what_a_tracker_says_of_one_of_several_goals_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no folder")
    with faulty_service({CODE: always(answer({"result": {"code": SHORT}}))}) as service:
        monkeypatch.setenv("LUMENBRIDGE_BASE_URL", service.url)
        words = ("--parallel", "2", *QUICK, "--tracker", "csv", "--out", "file")
        assert app(["run", "Is it short?", "Is it long?", *words], standalone_mode=False) == 0
    assert capsys.readouterr().err.count(": csv failed, and the run goes on without it") == 2


def test_export_says_in_one_line_what_cannot_be_done(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder.path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    begun = folder.path.with_name("sweep_20260101_120000")
    begun.mkdir()
    (begun / "sweep.json").write_text("{}")
    root = ("--results", str(folder.path.parent))
    assert labsandbox("export", RUN, "--to", "csv", *root).returncode == 0
    again = labsandbox("export", RUN, "--to", "csv", *root)
    assert again.returncode == 2 and "already" in told(again)
    for words, why in {
        (RUN, "--to", "csv", "--online"): "--online is for wandb and mlflow",
        (RUN, "--to", "wandb", "--online"): "W&B knows no account here",
        ("sweep_20260101_120000", "--to", "csv"): "has not ended",
    }.items():
        with pytest.raises((ExportError, StoreError, UsageProblem), match=why):
            app(["export", *words, *root], standalone_mode=False)
    assert Store(folder.path.parent).runs() == [RUN], "what is exported is no run"


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    needed: Mapping[str, tuple[str, ...]] = {"wandb": ("surely_not_installed",)}
    monkeypatch.setattr(destinations, "_NEEDED", needed)
    with pytest.raises(ExportError, match=r"pip install 'labsandbox\[wandb\]'"):
        destinations.check_installed("wandb")


def test_help_loads_no_tool() -> None:
    look = "import sys, orchestrator.cli.main; print([m for m in ('wandb','mlflow','tensorboard') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a user's environment may say does not count without --online."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert Path(COMMAND).exists()
    yield
