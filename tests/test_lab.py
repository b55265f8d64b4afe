"""Promises of `lab`, the library inside: pairing, equal tuning, every run recorded, and never past the time."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executor.experiment import RECORD
from sandbox_images.lock import HERE

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def lab(tmp_path: Path) -> Run:
    """Runs code with `lab` on its path, as PID 1 would start it, and gives the records it sent."""

    def run(code: str, seconds: float = 30.0, expect: int = 0) -> list[dict[str, Any]]:
        read, write = os.pipe()
        script = tmp_path / "experiment.py"
        script.write_text("import time\nSTART = time.monotonic()\nimport lab\n" + code)
        deadline = f"import time; print(time.monotonic() + {seconds})"
        environment = {
            "PYTHONPATH": str(HERE),
            "LAB_CHANNEL_FD": str(write),
            "LAB_SEED": "5",
            "LAB_CPUS": "1.5",
            "LAB_DEADLINE": subprocess.run([sys.executable, "-c", deadline], capture_output=True, text=True).stdout,
        }
        done = subprocess.run([sys.executable, str(script)], env=environment, pass_fds=[write], timeout=60)
        os.close(write)
        assert done.returncode == expect
        with os.fdopen(read) as file:
            return [json.loads(line) for line in file]

    return run


def test_every_line_that_lab_sends_is_a_record_that_the_host_accepts(lab: Run) -> None:
    records = lab(
        "def train(arm, seed, lr):\n"
        "    lab.log(step=1, loss=float('inf'), n=10**30)\n"
        "    if arm == 'bad': raise RuntimeError('x' * 10000)\n"
        "    return {'val_loss': float('nan') if arm == 'odd' else lr, 'extra': 1}\n"
        "lab.compare(train, ['a', 'bad', 'odd'], [1, 2], tune={'lr': [1, 2, 3]}, note='n' * 500)\n"
    )
    for record in records:
        RECORD.validate_python({**record, "t": 0.0})
    assert [record["type"] for record in records].index("plan") == 0
    statuses = {(r["arm"], r["status"]) for r in records if r["type"] == "run"}
    assert statuses == {("a", "ok"), ("bad", "failed"), ("odd", "diverged")}


def test_nan_and_infinity_are_written_as_json_can_hold_them(lab: Run) -> None:
    (record,) = lab("lab.log(step=3, a=float('nan'), b=float('-inf'), c=True)")
    assert record == {"type": "metric", "step": 3, "values": {"a": "NaN", "b": "-Infinity", "c": 1}}


def test_every_arm_starts_from_the_same_random_state_under_the_same_seed(lab: Run) -> None:
    records = lab(
        "import random\n"
        "def train(arm, seed):\n"
        "    first = random.random()\n"
        "    for _ in range(len(arm)): random.random()\n"
        "    return first\n"
        "lab.compare(train, ['a', 'long'], range(4))\n"
    )
    runs = {(r["seed"], r["arm"]): r["values"]["val_loss"] for r in records if r["type"] == "run"}
    for seed in range(4):
        assert runs[seed, "a"] == runs[seed, "long"]
    assert len(set(runs.values())) == 4


def test_pairs_are_run_one_after_the_other_so_that_a_timeout_leaves_whole_ones(lab: Run) -> None:
    records = lab("lab.compare(lambda arm, seed: 1.0, ['a', 'b'], [3, 1, 2])")
    order = [(r["seed"], r["arm"]) for r in records if r["type"] == "run"]
    assert order == [(3, "a"), (3, "b"), (1, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_tuning_gives_every_arm_equally_many_trials_on_a_seed_of_its_own_and_takes_its_best(lab: Run) -> None:
    records = lab(
        "def train(arm, seed, lr): return (lr - {'a': 2, 'b': 30}[arm]) ** 2\n"
        "lab.compare(train, ['a', 'b'], [0, 1], tune={'lr': {'a': [1, 2, 3], 'b': [10, 20, 30]}})\n"
    )
    tuned = [r for r in records if r["type"] == "run" and r["phase"] == "tune"]
    confirmed = [r for r in records if r["type"] == "run" and r["phase"] == "confirm"]
    assert sorted(r["arm"] for r in tuned) == ["a"] * 3 + ["b"] * 3
    assert not {r["seed"] for r in tuned} & {r["seed"] for r in confirmed}
    assert {(r["arm"], r["config"]["lr"]) for r in confirmed} == {("a", 2), ("b", 30)}
    assert records[0]["tune"] == {"lr[a]": [1, 2, 3], "lr[b]": [10, 20, 30]}


def test_higher_is_better_turns_the_choice_round(lab: Run) -> None:
    records = lab(
        "lab.compare(lambda arm, seed, lr: {'acc': lr}, ['a'], [0], tune={'lr': [1, 5, 2]}, primary='acc',"
        " lower_is_better=False)\n"
    )
    assert [r["config"]["lr"] for r in records if r.get("phase") == "confirm"] == [5]


@pytest.mark.parametrize("tune", ["{'lr': {'a': [1], 'b': [1, 2]}}", "{'lr': {'a': [1]}}", "{'lr': []}"])
def test_a_grid_that_favours_an_arm_is_refused(lab: Run, tune: str) -> None:
    assert lab(f"lab.compare(lambda arm, seed, lr: 1, ['a', 'b'], [0], tune={tune})", expect=1) == []


def test_what_does_not_fit_into_the_time_is_recorded_as_skipped_and_the_deadline_is_kept(lab: Run) -> None:
    records = lab(
        "import time\n"
        "def train(arm, seed): time.sleep(0.5); return 1.0\n"
        "lab.compare(train, ['a', 'b'], range(20))\n"
        "lab.log(left=lab.time_left())\n",
        seconds=6.0,
    )
    runs = [r for r in records if r["type"] == "run"]
    done = [r for r in runs if r["status"] == "ok"]
    assert len(runs) == 40
    assert {r["status"] for r in runs[len(done) :]} == {"skipped"}
    assert 2 <= len(done) <= 10
    assert len(done) % 2 == 0, "half a pair was run"
    assert records[-1]["values"]["left"] > 0


def test_tuning_leaves_time_for_the_pairs(lab: Run) -> None:
    records = lab(
        "import time\n"
        "def train(arm, seed, lr): time.sleep(0.2); return lr\n"
        "lab.compare(train, ['a', 'b'], range(6), tune={'lr': list(range(1, 12))})\n",
        seconds=8.0,
    )
    runs = [r for r in records if r["type"] == "run"]
    tuned = [r["arm"] for r in runs if r["phase"] == "tune" and r["status"] == "ok"]
    assert tuned.count("a") == tuned.count("b") < 11
    assert sum(r["phase"] == "confirm" and r["status"] == "ok" for r in runs) == 12


def test_metrics_inside_a_run_say_which_run_and_afterwards_do_not(lab: Run) -> None:
    records = lab("def train(arm, seed): lab.log(loss=1); return 0\nlab.compare(train, ['a'], [7])\nlab.log(loss=2)\n")
    inside, outside = (r for r in records if r["type"] == "metric")
    assert (inside["arm"], inside["seed"], inside["phase"]) == ("a", 7, "confirm")
    assert "arm" not in outside


def test_the_length_of_trainings_is_fitted_to_the_time_that_is_left(lab: Run) -> None:
    (record,) = lab(
        "lab.log(fit=lab.fit_steps(0.01, trainings=10, share=0.5), few=lab.fit_steps(10, 10), many=lab.fit_steps(1e-9, 1),"
        " cpus=lab.cpus(), seed=lab.seed())\n",
        seconds=20.0,
    )
    values = record["values"]
    assert 80 <= values["fit"] <= 100
    assert (values["few"], values["many"], values["cpus"], values["seed"]) == (20, 2000, 1, 5)


def test_the_text_is_real_long_and_the_same_every_time(lab: Run) -> None:
    (record,) = lab(
        "import hashlib\n"
        "a, b = lab.text(), lab.text()\n"
        "lab.log(length=len(a), same=a == b, letters=len(set(a)), words=a.count(' the '))\n"
    )
    values = record["values"]
    assert values["length"] > 300_000 and values["words"] > 3000 and 60 < values["letters"] < 110 and values["same"]


def test_the_digits_are_there_without_a_network(sandbox_python: str) -> None:
    code = "import lab; x, y = lab.digits(); print(x.shape, x.dtype, float(x.max()), y.shape, len(set(y.tolist())))"
    done = subprocess.run([sandbox_python, "-c", code], env={"PYTHONPATH": str(HERE)}, capture_output=True, text=True)
    assert done.stdout.strip() == "(1797, 64) float32 1.0 (1797,) 10"


def test_outside_the_sandbox_records_are_printed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import lab; lab.log(step=1, loss=0.5)"],
        env={"PYTHONPATH": str(HERE)}, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout.removeprefix("lab: "))["values"] == {"loss": 0.5}
