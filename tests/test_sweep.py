"""What a sweep promises: every trial in its own container, nothing lost or done twice, and an honest best."""

import fcntl
import itertools
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import RequestDenied
from executor.experiment import RECORD, Dimension, ParamsRecord
from orchestrator.cli.main import app
from orchestrator.errors import UsageProblem
from orchestrator.local_agents.playbook.study import UnknownGoal
from orchestrator.local_agents.playbook.writing import write_tuning
from orchestrator.search.spec import SweepSpec
from orchestrator.search.study import Search, grid
from orchestrator.search.sweep import fitting
from policies.model import load_policy
from results.search_plots import draw_search
from results.store import StoreError
from sandbox_images.lock import HERE

VALLEYS = """
import random, time
import lab
p = lab.params(x=("uniform", -1.0, 1.0), width=("int", 1, 9), kind=["plain", "other"])
random.seed(lab.seed())
for step in range(4):
    # The defaults, in the middle, are the worst.
    lab.log(step=step, val_loss=2 - abs(p.x) - abs(p.width - 5) / 9 + random.random() / 50 + 1 / (step + 1))
    time.sleep(PAUSE)
"""
COMMAND = [sys.executable, "-c", "from orchestrator.cli.main import main; main()"]


def labsandbox(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == status, done.stderr
    return done


def written(folder: Path, code: str) -> str:
    path = folder / "experiment to sweep.py"
    path.write_text(code)
    return str(path)


def sweep(results: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    more = () if "--resume" in words else ("--backend", "oci", "--cpus", "1")
    return labsandbox("sweep", *words, *more, "--results", str(results), status=status)


def only(results: Path) -> Path:
    (found,) = results.glob("sweep_*")
    return found


def summary(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((only(results) / "sweep_summary.json").read_text())
    return found


def states(results: Path) -> list[str]:
    return [trial["state"] for trial in summary(results)["trials"]]


# ---- one that came to its end ----


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.CompletedProcess[str]]]:
    """The results folder of a sweep of eight trials, and what the command said."""
    folder = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABSANDBOX_STATE_DIR", str(folder / "state"))
        code = written(folder, VALLEYS.replace("PAUSE", "0.01"))
        yield folder / "r", sweep(folder / "r", "--file", code, "--trials", "8", "--parallel", "2")


Ended = tuple[Path, subprocess.CompletedProcess[str]]


def test_a_search_finds_better_settings_and_confirms_them_on_fresh_seeds(ended: Ended) -> None:
    results, done = ended
    found, folder = summary(results), only(results)
    assert [trial["number"] for trial in found["trials"]] == list(range(8))
    assert found["metric"] == "val_loss" and found["best"]["value"] < found["trials"][0]["value"]
    numbers = found["confirmation"]["numbers"]
    assert numbers["contrasts"][0]["pairs"] == 6 and numbers["verdict"]["word"] == "better"
    assert {"outcome", "metric", "seeds"} <= {gate["name"] for gate in numbers["gates"]}, "judged as every other study"
    assert (
        found["verdict"].startswith(f"Trial {found['best']['number']} is better: ") and found["verdict"] in done.stdout
    )
    assert 0 not in found["confirmation"]["plan"]["seeds"], "on seeds that decided nothing"
    assert set(found["importances"]) == {"x", "width", "kind"}
    for name in ("history.png", "importance.png", "study.db", "sweep.json", "experiment.py"):
        assert (folder / name).stat().st_size > 0
    executions = {json.loads(path.read_text())["execution_id"] for path in folder.glob("*/*/execution.json")}
    assert len(executions) == 8 + 12, "every one in a container of its own"
    assert json.loads((folder / "trials/3/params.json").read_text()) == found["trials"][3]["params"]
    assert "--trials 8" in found["command"] and "'" in found["command"], "as a shell takes it"
    assert found["host"]["cores"] == os.cpu_count()


def test_trials_and_confirmation_run_side_by_side(ended: Ended) -> None:
    for part in ("trials", "confirm"):
        records = [json.loads(path.read_text()) for path in only(ended[0]).glob(f"{part}/*/execution.json")]
        spans = [tuple(datetime.fromisoformat(one[end]) for end in ("started_at", "ended_at")) for one in records]
        together = [max(a[0], b[0]) < min(a[1], b[1]) for a, b in itertools.combinations(spans, 2)]
        assert any(together), part


def test_a_sweep_is_listed_and_shown_among_the_sprints(ended: Ended) -> None:
    results, _ = ended
    [row] = json.loads(labsandbox("sprints", "list", "--results", str(results), "--json").stdout)
    found = summary(results)
    assert (row["id"], row["goal"], row["verdict"]) == (only(results).name, found["command"], found["verdict"])
    assert found["verdict"] in labsandbox("sprints", "show", row["id"], "--results", str(results)).stdout


def test_a_sweep_is_carried_out_once_and_by_one_process_at_a_time(ended: Ended, tmp_path: Path) -> None:
    results, done = ended
    folder = only(results)
    again = sweep(results, "--resume", folder.name)
    assert "there is nothing left to do" in again.stderr and again.stdout == done.stdout
    copy = Path(shutil.copytree(folder, tmp_path / folder.name))
    (copy / "sweep_summary.json").unlink()
    with (copy / "sweep.json").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "by another process" in sweep(tmp_path, "--resume", folder.name, status=2).stderr
    before = {path: path.stat().st_mtime_ns for path in copy.glob("*/*/*")}
    assert sweep(tmp_path, "--resume", folder.name).stderr.count("trial ") == 0, "only the summary was missing"
    assert {path: path.stat().st_mtime_ns for path in copy.glob("*/*/*")} == before


def test_a_configuration_can_be_run_by_itself(ended: Ended, tmp_path: Path) -> None:
    best = summary(ended[0])["best"]
    code = only(ended[0]) / "experiment.py"
    words = ("exec", str(code), "--backend", "oci", "--json", "--results", str(tmp_path), "--params")
    done = json.loads(labsandbox(*words, json.dumps(best["params"])).stdout)
    [params] = [one for one in done["metrics"] if one["type"] == "params"]
    [last] = [one["values"]["val_loss"] for one in done["metrics"] if one["type"] == "metric"]
    assert params["chosen"] == best["params"] and last == best["value"], "with the sweep's seed it is the same number"
    assert "--params is a JSON object" in labsandbox(*words, '{"x": [1]}', status=2).stderr


# ---- ends of other kinds ----


def test_twenty_trials_survive_kill_9_and_resume(tmp_path: Path) -> None:
    code, results = written(tmp_path, VALLEYS.replace("PAUSE", "0.1")), tmp_path / "r"
    words = ["sweep", "--file", code, "--trials", "20", "--parallel", "2", "--confirm", "0"]
    more = ["--backend", "oci", "--cpus", "1", "--results", str(results)]
    first = subprocess.Popen([*COMMAND, *words, *more], stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    for line in first.stderr:
        if line.startswith("trial 8 "):
            break
    time.sleep(0.3)  # the next ones are under way by then
    first.kill()
    first.wait()
    folder = only(results)
    before = {path: path.read_bytes() for path in folder.glob("trials/*/execution.json")}
    assert 8 <= len(before) < 20
    done = sweep(results, "--resume", folder.name)
    assert "cut off, and are tried again" in done.stderr
    found = states(results)
    assert found.count("complete") == 20 and 1 <= found.count("lost") <= 2 and len(found) <= 22
    kept = [path for path in before if path.read_bytes() == before[path]]
    assert len(kept) >= len(before) - 2, "what had ended was not done again"


def test_a_pruned_trial_is_stopped_at_once(tmp_path: Path) -> None:
    code = written(
        tmp_path,
        "import time, lab\n"
        "p = lab.params(x=[0.0, 0.1, 0.2, 0.3, 5.0, 6.0])\n"
        "for step in range(20):\n"
        "    at = {'step': step} if p.x < 6 else {}\n"  # without steps, they are counted
        "    lab.log(**at, val_loss=p.x + 1 / (step + 1))\n"
        "    time.sleep(0.25 if p.x > 1 else 0.0)\n",
    )
    sweep(tmp_path / "r", "--file", code, "--trials", "9", "--prune", "--confirm", "0", "--sampler", "grid")
    found = summary(tmp_path / "r")["trials"]
    assert [trial["state"] for trial in found] == ["complete"] * 4 + ["pruned"] * 2
    for trial in found[4:]:
        record = json.loads((only(tmp_path / "r") / trial["folder"] / "execution.json").read_text())
        assert record["outcome"] == "cancelled" and record["message"] == trial["why"].strip()
        assert trial["why"].startswith("pruned at step")
        assert record["timings"]["run_s"] < 2, "not the five seconds that it would have taken"


def test_a_grid_is_searched_once_and_failing_trials_are_counted(tmp_path: Path) -> None:
    code = written(
        tmp_path,
        "import lab\np = lab.params(a=[1, 2, 3, 4], b=[10, 20])\nassert p.a != 3\n"
        "lab.log(score=float('nan') if p.a == 4 else p.a * p.b)\n",
    )
    results = tmp_path / "r"
    words = ("--sampler", "grid", "--trials", "50", "--maximize", "--confirm", "0", "--parallel", "2")
    sweep(results, "--file", code, *words)
    found = summary(results)
    tried = {(one["params"]["a"], one["params"]["b"]): (one["state"], one["why"]) for one in found["trials"]}
    assert len(found["trials"]) == 8 and set(tried) == set(itertools.product((1, 2, 3, 4), (10, 20)))
    assert tried[3, 10][0] == tried[3, 20][0] == "failed"
    assert tried[3, 10][1] == "exited with status 1"
    assert tried[4, 10] == ("failed", "diverged: score nan")
    assert found["best"]["value"] == 40 and found["metric"] == "score"


def test_an_interrupt_ends_the_containers_and_leaves_what_can_be_resumed(tmp_path: Path) -> None:
    code = written(
        tmp_path,
        "import time, lab\np = lab.params(x=[0, 1, 2])\nlab.log(val_loss=p.x)\ntime.sleep(60 if p.x else 0)\n",
    )
    words = ["sweep", "--file", code, "--sampler", "grid", "--parallel", "2", "--backend", "oci", "--cpus", "1"]
    process = subprocess.Popen(
        [*COMMAND, *words, "--results", str(tmp_path / "r")], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 60
    while len([one for one in tmp_path.glob("r/*/trials/*/metrics.jsonl") if one.stat().st_size]) < 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 10
    assert "labsandbox sweep --resume" in said
    assert not [line for line in labsandbox("ps").stdout.splitlines() if "oci" in line]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        ("print('hi')", (), "declares no parameters"),
        ("raise SystemExit(3)", (), "fails before it declares parameters"),
        ("import lab; lab.params(x=[1, 2])", (), "logged no metric"),
        ("import lab; p = lab.params(x=[1, 2]); lab.log(val_loss=float('nan'))", (), "gives no val_loss: diverged"),
        ("import lab; p = lab.params(x=[1, 2]); lab.log(val_loss=1)", ("--metric", "accuracy"), "logged no accuracy"),
        ("def f(:", (), "invalid syntax"),
    ],
)
def test_what_cannot_be_swept_is_said_in_one_line(code: str, words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    where = ("--file", written(tmp_path, code), "--results", str(tmp_path / "r"), "--backend", "oci")
    with pytest.raises(UsageProblem, match=said):
        app(["sweep", *where, "--trials", "3", *words], standalone_mode=False)


def test_options_that_do_not_go_together_and_sweeps_that_are_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "sweep_20260101_000000"
    folder.mkdir()
    (folder / "sweep.json").write_text("{")
    for words, said in {
        (): "give a goal, or --file",
        ("--resume", "x", "--trials", "5"): "leave out --trials",
        ("--file", "x", "--agents", "playbook"): "leave them out with --file",
        ("--resume", "20260101_000001"): "there is no sweep",
        ("--resume", folder.name): "cannot be resumed",
    }.items():
        with pytest.raises((UsageProblem, StoreError), match=said):
            app(["sweep", *words, "--results", str(tmp_path)], standalone_mode=False)


def test_nobody_is_asked_for_an_experiment_that_could_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMENBRIDGE_BASE_URL", "http://127.0.0.1:9")  # an agent's error would be another one
    words = ("Tune the learning rate of AdamW", "--policy", "strict", "--wall", "90000s", "--backend", "oci")
    with pytest.raises(RequestDenied, match="wall"):
        app(["sweep", *words, "--results", str(tmp_path / "r")], standalone_mode=False)
    assert not (tmp_path / "r").exists()


# ---- killed between any two writes ----


class Dying(sqlite3.Connection):
    """A connection whose process is killed instead of its next write but `left`."""

    left = 0

    def commit(self) -> None:
        if self.in_transaction:
            if Dying.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            Dying.left -= 1
        super().commit()


def survives(folder: Path, spec: SweepSpec, writes: int, work: Callable[[Search], object]) -> bool:
    """Whether a process of its own came to the end of `work`, which it was killed in after so many writes."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            search = Search(folder, spec)
            Dying.left = writes
            work(search)
            status = 0
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL)
    return ended == 0


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_trial_is_tried_again_once_wherever_a_kill_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """While trials are asked for, and while what was cut off is taken up; `left` counts what is still to be made."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *words, **named: connect(*words, **named, factory=Dying))
    Dying.left = 10**9
    space = {"x": Dimension(kind="choice", choices=[1, 2, 3]), "y": Dimension(kind="uniform", low=0.0, high=1.0)}
    spec = SweepSpec.model_validate({"trials": 7, "sampler": sampler})
    begun = tmp_path / "begun"
    begun.mkdir()
    search = Search(begun, spec)
    search.begin(space, {"x": 1, "y": 0.5}, "loss", 1.0)
    search.lay_grid()
    points = sorted(itertools.product(*grid(space, 7).values()))
    asked, taken_up = [lambda search: (search.ask(), search.ask()), lambda search: search.take_up()]
    for kill in itertools.count():
        folder = Path(shutil.copytree(begun, tmp_path / f"ask {kill}"))
        whole = survives(folder, spec, kill, asked)
        after = itertools.count() if whole else [10**9]
        for again in after:
            copy = Path(shutil.copytree(folder, tmp_path / f"ask {kill} {again}"))
            done = survives(copy, spec, again, taken_up)
            search = Search(copy, spec)
            running = [trial for trial in search.study.get_trials() if trial.state.name == "RUNNING"]
            search.take_up()
            assert search.take_up() == 0 and not (done and running)
            assert search.left() == 6, "none of those that were cut off counts"
            lost = [trial.number for trial, state in search.ended() if state == "lost"]
            assert len(search.ended()) == 1 + len(lost)
            made = [search.ask().params for _ in range(search.left())]
            assert search.left() == (0 if sampler == "grid" else 6)
            if sampler == "grid":
                assert sorted((params["x"], params["y"]) for params in made) == points, (
                    "every point of the grid, and each once"
                )
            elif whole:
                cut = [search.study.trials[number].params for number in lost]
                assert made[: len(cut)] == cut and len(lost) == 2, "with the same values"
            if done:
                break
        if whole:
            break
    assert kill > 5 and again > 5, "there were writes to be killed between"


# ---- its parts ----


def test_no_more_containers_run_at_a_time_than_there_are_cores_and_memory_for() -> None:
    limits = load_policy("default").limits.model_copy(update={"cpus": 0.001, "memory": 1})
    assert fitting(limits, 64) == (64, "")
    cores = len(os.sched_getaffinity(0))
    found, said = fitting(limits.model_copy(update={"cpus": 1.0}), cores + 3)
    assert found == cores and said.startswith(f"--parallel {cores + 3}: {cores} at a time")
    assert fitting(limits.model_copy(update={"memory": 1 << 50}), 2)[0] == 1, "one runs, whatever it may take"


RANGES = st.builds(
    lambda kind, low, wide: Dimension(kind=kind, low=float(low), high=float(low + wide)),
    st.sampled_from(["log", "uniform", "int", "logint"]), st.integers(1, 50), st.integers(1, 50),
)  # fmt: skip
CHOICES = st.builds(
    lambda values: Dimension(kind="choice", choices=values),
    st.lists(st.integers(), min_size=1, max_size=5, unique=True),
)


@given(st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), RANGES | CHOICES, min_size=1, max_size=32),
       st.integers(1, 200))  # fmt: skip
def test_a_grid_has_no_more_points_than_trials_and_all_are_in_the_space(
    space: dict[str, Dimension], trials: int
) -> None:
    levels = grid(space, trials)
    assert math.prod(map(len, levels.values())) <= max(1, trials)
    for point in itertools.islice(itertools.product(*levels.values()), 20):
        ParamsRecord(t=0.0, space=space, chosen=dict(zip(levels, point, strict=True)))


def test_a_grid_reaches_both_ends_of_every_range() -> None:
    space = {"a": Dimension(kind="log", low=1e-4, high=1.0), "b": Dimension(kind="int", low=1, high=3)}
    assert grid(space, 16) == {"a": pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0]), "b": [1, 2, 3]}


def test_pictures_are_drawn_of_whatever_was_found(tmp_path: Path) -> None:
    draw_search([(0, "failed", None), (1, "lost", None), (2, "pruned", 1.0)], {}, "$x$" * 90, False, tmp_path)
    assert (tmp_path / "history.png").stat().st_size > 0 and not (tmp_path / "importance.png").exists()
    wide = [(number, "complete", 10.0**number) for number in range(9)]
    draw_search(wide, {f"\x1b[2J$p_{n}$": 1 / 40 for n in range(40)}, "\x00", True, tmp_path)
    assert (tmp_path / "importance.png").stat().st_size > 0


# ---- lab.params ----


def declared(space: str, given: str = "") -> tuple[int, dict[str, Any]]:
    code = f"import lab\np = lab.params({space})\nprint(dict(p))"
    environment = {"PYTHONPATH": str(HERE), **({"LAB_PARAMS": given} if given else {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    line = done.stdout.splitlines()[0].removeprefix("lab: ") if done.returncode == 0 else "{}"
    return done.returncode, json.loads(line)


def test_defaults_are_the_middle_and_what_is_sent_is_a_record() -> None:
    space = "lr=('log', 1e-4, 1.0), n=('int', 1, 9), m=('logint', 4, 64), d=('uniform', 0.0, 0.5), k=['a', 'b']"
    _, record = declared(space)
    RECORD.validate_python({**record, "t": 0.0})
    assert record["chosen"] == {"lr": pytest.approx(0.01), "n": 5, "m": 16, "d": 0.25, "k": "a"}
    _, record = declared(space, '{"lr": 0.5, "k": "b"}')
    assert record["chosen"]["lr"] == 0.5 and record["chosen"]["k"] == "b" and record["chosen"]["n"] == 5


@pytest.mark.parametrize(
    ("space", "given"),
    [
        ("x=('int', 1, 9)", '{"x": 10}'),
        ("x=['a']", '{"x": "b"}'),
        ("x=['a']", '{"y": 1}'),
        ("x=('log', 0, 1)", ""),
        ("x=('int', 3, 1)", ""),
        ("x=[]", ""),
        ("x=[1, True]", ""),
        ("x='a'", ""),
        ("", ""),
    ],
)
def test_values_outside_and_spaces_that_are_none_are_errors(space: str, given: str) -> None:
    assert declared(space, given)[0] == 1


def test_a_space_or_values_that_make_no_sense_are_no_record() -> None:
    x = {"kind": "uniform", "low": 0, "high": 1}
    for space, chosen in (
        ({}, {}),
        ({"x": {"kind": "log", "low": -1, "high": 1}}, {"x": 0.5}),
        ({"x": {"kind": "choice"}}, {"x": 0.5}),
        ({"x": {"kind": "choice", "choices": [1, True]}}, {"x": 1}),
        ({"x": {"kind": "int", "low": 1e400, "high": 2}}, {"x": 2}),
        ({"x": {"kind": "int", "low": 0, "high": 1e300}}, {"x": 2}),
        ({"x": {"kind": "int", "low": 0.5, "high": 2}}, {"x": 2}),
        ({"x": {"kind": "uniform", "low": -1.7e308, "high": 1.7e308}}, {"x": 2.0}),
        ({str(n): x for n in range(33)}, {str(n): 0.5 for n in range(33)}),
        ({"x": x}, {}),
        ({"x": x}, {"x": 2.0}),
        ({"x": x}, {"x": 0.5, "y": 1}),
    ):
        with pytest.raises(ValueError):
            RECORD.validate_python({"type": "params", "t": 0.0, "space": space, "chosen": chosen})
    RECORD.validate_python({"type": "params", "t": 0.0, "space": {"x": x}, "chosen": {"x": 0.5}})


# ---- goals ----


@pytest.mark.parametrize(
    ("goal", "names"),
    [
        ("Tune the learning rate and weight decay of AdamW on a small transformer", {"lr", "weight_decay"}),
        ("Find the best batch size and warm-up for a digits classifier with SGD", {"batch_size", "warmup"}),
        ("Optimize the hyperparameters of Lion", {"lr", "weight_decay", "batch_size", "warmup"}),
    ],
)
def test_the_playbook_writes_a_training_that_can_be_tuned(goal: str, names: set[str]) -> None:
    code = write_tuning(goal)
    compile(code, "experiment.py", "exec")
    block = code[code.index("lab.params(") : code.index("BASE = ")]
    assert {line.split("=")[0].strip() for line in block.splitlines()[1:-1]} == names


@pytest.mark.parametrize(
    "goal", ["Tune the cookies of AdamW", "Tune a transformer", "Tune the learning rate of AdamW and Lion"]
)
def test_a_goal_that_names_nothing_to_tune_is_refused(goal: str) -> None:
    with pytest.raises(UnknownGoal):
        write_tuning(goal)


def test_a_goal_is_tuned_from_end_to_end(tmp_path: Path) -> None:
    goal = "Tune the learning rate of AdamW on a digits classifier"
    sweep(tmp_path / "r", goal, "--agents", "playbook", "--trials", "1")
    found = summary(tmp_path / "r")
    assert found["goal"] == goal and goal in found["command"] and states(tmp_path / "r") == ["complete"]
    assert found["verdict"].startswith("Nothing to confirm")
    [call] = [json.loads(line) for line in (only(tmp_path / "r") / "agents.jsonl").read_text().splitlines()]
    assert goal in json.dumps(call) and "lab.params(" in json.dumps(call), "what was asked, and what was answered"


@pytest.mark.parametrize(
    ("code", "options", "why"),
    [
        ("print(1)", (), "declares no parameters"),
        (
            "import lab\np = lab.params(x=('log', 1e-5, 1e-1))\nlab.log(step=0, loss=p.x)",
            ("--metric", "nope"),
            "logged no nope",
        ),
    ],
)
def test_a_sweep_that_cannot_be_promises_no_resuming(
    tmp_path: Path, code: str, options: tuple[str, ...], why: str
) -> None:
    (tmp_path / "e.py").write_text(code)
    results = ("--results", str(tmp_path / "results"))
    done = labsandbox("sweep", "--file", str(tmp_path / "e.py"), "--backend", "oci", *options, *results, status=2)
    assert why in done.stderr and "carries on" not in done.stderr
    [row] = json.loads(labsandbox("sprints", "list", *results, "--json").stdout)
    assert why in row["verdict"] and "carries on" not in row["verdict"]
    assert "is a sweep" in labsandbox("report", row["id"], *results, status=2).stderr
    assert f"labsandbox sweep --resume {row['id']}" in labsandbox("resume", row["id"], *results, status=2).stderr
