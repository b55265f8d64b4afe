"""Promises of `lab`, the library inside: pairing, equal tuning, every run recorded, and never past the time."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executor.experiment import RECORD
from results.contrasts import RULE
from results.further import left_of
from sandbox_images.lock import HERE

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def lab(tmp_path: Path) -> Run:
    """Runs code with `lab` on its path, as PID 1 would start it, and gives the records it sent."""

    def run(
        code: str, seconds: float = 30.0, expect: int = 0, more: float = 0, study: str = ""
    ) -> list[dict[str, Any]]:
        read, write = os.pipe()
        library = tmp_path / "lib"
        shutil.copytree(HERE / "lab", library / "lab", dirs_exist_ok=True)
        if study:
            (library / "study.json").write_text(study)
        script = tmp_path / "experiment.py"
        script.write_text("import time\nSTART = time.monotonic()\nimport lab\n" + code)
        deadline = f"import time; print(time.monotonic() + {seconds})"
        environment = {
            "PYTHONPATH": str(library),
            "LAB_MORE": str(more),
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


def test_the_plan_says_what_sets_arms_apart_whatever_it_is(lab: Run) -> None:
    plan, *_ = lab(
        "odd = {'lr': float('nan'), '': len, 'n': 10**30, 'decay': 0.1, 'betas': (0.9, 0.99), 'name': 'x' * 999, 'on': True}\n"
        "lab.compare(lambda settings, seed: 0.5, {'plain': {'decay': 0.2}, 'odd': odd, 'number': 3}, [1])\n"
    )
    settings = RECORD.validate_python({**plan, "t": 0.0}).settings
    assert settings["plain"] == {"decay": 0.2} and "number" not in settings
    assert settings["odd"] == {
        "lr": "nan", "?": "<built-in function len>", "n": "1" + "0" * 30, "decay": 0.1, "betas": "(0.9, 0.99)",
        "name": "x" * 100, "on": True,
    }  # fmt: skip


def test_the_plan_says_by_what_it_is_decided_and_how_much_each_arm_is_tuned(lab: Run) -> None:
    plan = lab("lab.compare(lambda arm, seed, lr, wd: 1, 'ab', [0], tune={'lr': [1, 2, 3], 'wd': [0, 1]})")[0]
    assert plan["rule"] == RULE and plan["trials"] == 6
    assert plan["deterministic"] is False and plan["select_lower_is_better"] is True


ODD = """
def train(arm, seed, betas, lr):
    assert betas in [(0.9, 0.99), (0.9, 0.999)] and arm['size'] in (1, 2)
    return {'val_loss': arm['size'] + lr + betas[1] + seed, **{'n%d' % i: i for i in range(90)}}
results = lab.compare(train, {64: {'size': 1}, (1, 2): {'size': 2}}, range(SEEDS), note='n' * 9999,
    tune={'betas': [(0.9, 0.999), (0.9, 0.99)], **{'lr': [0.1, 0.2, 0.3]}})
lab.log(kept=len(results[64]))
"""


def test_odd_arms_and_values_are_recorded_and_reach_the_training_as_they_were(lab: Run) -> None:
    records = lab(ODD.replace("SEEDS", "2"))
    parsed = [RECORD.validate_python({"t": 0.0, **record}) for record in records]
    plan, runs = records[0], [record for record in records if record["type"] == "run"]
    assert plan["arms"] == ["64", "(1, 2)"] and len(plan["note"]) == 2000
    assert plan["tune"]["betas"] == ["(0.9, 0.999)", "(0.9, 0.99)"]
    assert {run["status"] for run in runs} == {"ok"} and all(len(run["values"]) == 64 for run in runs)
    assert runs[-1]["config"]["betas"] == "(0.9, 0.99)" and records[-1]["values"] == {"kept": 2}
    # What a further container is told of as text is a tuple for the training there.
    cut = [one for one in parsed if not (getattr(one, "phase", "") == "confirm" and getattr(one, "seed", 0) == 1)]
    left = left_of(cut)
    assert left is not None
    after = lab(ODD.replace("SEEDS", "2"), study=left.model_dump_json())
    assert [(r["seed"], r["status"]) for r in after if r.get("phase") == "confirm"] == [(1, "ok"), (1, "ok")]


def test_twenty_arms_with_grids_of_their_own_fit_into_a_plan(lab: Run) -> None:
    arms = "{'arm %d' % i: [i + 1, i + 2] for i in range(20)}"
    plan = lab(f"lab.compare(lambda arm, seed, lr: lr, list({arms}), [0], tune={{'lr': {arms}}})")[0]
    assert len(RECORD.validate_python({"t": 0.0, **plan}).tune) == 20  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "arguments",
    [
        "['a', 'b'], range(257)",
        "['a', 'b'], []",
        "['a' * 129, 'b'], [0]",
        "['a', ''], [0]",
        "{1: {}, '1': {}}, [0]",
        "['a%d' % i for i in range(33)], [0]",
        "['a', 'b'], [1 << 62]",
        "['a', 'b'], [0, 1, 0]",
        "['a', 'b'], [0], unit='bits'",
        "['a', 'b'], [0], repeats=-1",
        "['a', 'b'], [0], primary=''",
        "['a', 'b'], [0], tune={'x%d' % i: [1, 2] for i in range(17)}",
        "['a', 'b'], [0], tune={'x' * 129: [1, 2]}",
        "['a', 'b'], [0], tune={'x': ['y' * 100 + '1', 'y' * 100 + '2']}",
    ],
)
def test_what_cannot_be_recorded_is_refused_before_anything_runs(lab: Run, arguments: str) -> None:
    code = f"try: lab.compare(lambda *args, **more: lab.log(ran=1) or 1, {arguments})\nexcept ValueError: lab.log(refused=1)\n"
    assert [record["values"] for record in lab(code)] == [{"refused": 1}]


def test_an_experiment_has_one_comparison(lab: Run) -> None:
    records = lab(
        "lab.compare(lambda arm, seed: 1, ['a', 'b'], [0])\n"
        "try: lab.compare(lambda arm, seed: 1, ['a', 'c'], [0])\n"
        "except RuntimeError as error: lab.log(one='one comparison' in str(error))\n"
    )
    assert [r["type"] for r in records].count("plan") == 1 and records[-1]["values"] == {"one": 1}


def test_a_training_that_quits_has_failed_and_the_study_goes_on(lab: Run) -> None:
    records = lab(
        "import sys\n"
        "def train(arm, seed):\n"
        "    if seed == 1: sys.exit(0)\n"
        "    return 1.0\n"
        "lab.compare(train, ['a', 'b'], range(3), repeats=0)\n"
    )
    assert [r["status"] for r in records if r["type"] == "run"] == ["ok", "ok", "failed", "failed", "ok", "ok"]
    assert [r.get("error") for r in records if r.get("status") == "failed"] == ["SystemExit: 0"] * 2


def test_generators_tell_where_a_training_replaced_its_seed(lab: Run, sandbox_python: str) -> None:
    def ends(body: str) -> list[set[str]]:
        records = lab(f"import random\ndef train(arm, seed):\n    {body}\n    return random.random()\n"
                      "lab.compare(train, ['a', 'b'], range(4), repeats=0)\n")  # fmt: skip
        runs = [record for record in records if record["type"] == "run"]
        return [{r["generators"]["random"] for r in runs if r["arm"] == arm} for arm in "ab"]

    assert [len(found) for found in ends("random.random()")] == [4, 4]
    assert [len(found) for found in ends("random.seed(42)")] == [1, 1]
    numpy = "import numpy, sys; sys.path.insert(0, '.'); from lab.seeding import *; "
    code = numpy + (
        "a = [(seed_everything(s), numpy.random.rand(), generators()['numpy'])[2] for s in range(3)]; "
        "b = [(seed_everything(s), numpy.random.seed(42), generators()['numpy'])[2] for s in range(3)]; "
        "print(len(set(a)), len(set(b)))"
    )
    done = subprocess.run([sandbox_python, "-c", code], env={"PYTHONPATH": str(HERE)}, capture_output=True, text=True)
    assert done.stdout.split() == ["3", "1"], done.stderr


def test_one_parameter_after_the_other_is_tuned_with_equally_many_trials(lab: Run) -> None:
    records = lab(
        "def train(arm, seed, lr, wd): return abs(lr - {'a': 0.1, 'b': 1.0}[arm]) + abs(wd - 0.1)\n"
        "lab.compare(train, ['a', 'b'], [0], tune={'lr': [0.01, 0.1, 1.0], 'wd': [0, 0.1, 1.0]}, one_by_one=True)\n"
    )
    tried = {arm: [r["config"] for r in records if r.get("phase") == "tune" and r["arm"] == arm] for arm in "ab"}
    assert records[0]["trials"] == 5 and len(tried["a"]) == len(tried["b"]) == 6, "and one beyond the edge for both"
    assert [config["wd"] for config in tried["b"]] == [0.1] * 4 + [1.0, 0]
    assert {config["lr"] for config in tried["b"][4:]} == {1.0} and {config["lr"] for config in tried["a"][4:]} == {0.1}
    chosen = {r["arm"]: r["config"] for r in records if r.get("phase") == "confirm"}
    assert chosen == {"a": {"lr": 0.1, "wd": 0.1}, "b": {"lr": 1.0, "wd": 0.1}}


def test_two_numbers_have_an_edge_and_nothing_lies_below_none(lab: Run) -> None:
    def tried(values: str, best: float) -> list[float]:
        records = lab(f"lab.compare(lambda arm, seed, x: abs(x - {best}), ['a', 'b'], [0], tune={{'x': {values}}})")
        return [r["config"]["x"] for r in records if r.get("phase") == "tune" and r["arm"] == "a"]

    assert tried("[0.1, 1.0]", 10.0) == pytest.approx([1.0, 0.1, 10.0, 100.0])
    assert tried("[0, 0.1, 1.0]", 0.0) == [0.1, 0, 1.0]
    assert tried("[1, 2]", 1) == [2, 1], "of layers there is nothing below one"


def test_tuning_goes_the_way_of_what_it_selects_by(lab: Run) -> None:
    records = lab(
        "def train(arm, seed, lr): return {'accuracy': lr, 'val_loss': abs(lr - 2)}\n"
        "lab.compare(train, ['a'], [0], tune={'lr': [1, 2, 3]}, primary='accuracy', lower_is_better=False,"
        " select='val_loss', select_lower_is_better=True)\n"
    )
    assert [r["config"]["lr"] for r in records if r.get("phase") == "confirm"] == [2]


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
    order = [(r["seed"], r["arm"]) for r in records if r.get("phase") == "confirm"]
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
        "lab.compare(lambda arm, seed, lr: {'acc': -(lr - 3) ** 2}, ['a'], [0], tune={'lr': [1, 3, 9]}, primary='acc',"
        " lower_is_better=False)\n"
    )
    assert [r["config"]["lr"] for r in records if r.get("phase") == "confirm"] == [3]


def test_a_best_value_at_the_edge_widens_the_search_for_all_arms_alike(lab: Run) -> None:
    records = lab(
        "def train(arm, seed, lr): return abs(lr - {'a': 0.1, 'b': 8.0}[arm])\n"
        "lab.compare(train, ['a', 'b'], [0], tune={'lr': [0.01, 0.1, 1.0]})\n"
    )
    tried = {arm: [r["config"]["lr"] for r in records if r.get("phase") == "tune" and r["arm"] == arm] for arm in "ab"}
    assert tried["b"] == pytest.approx([0.1, 0.01, 1.0, 10.0, 100.0]), "beyond the edge, until the best is inside"
    assert len(tried["a"]) == 5 and all(0.1 < lr < 1 for lr in tried["a"][3:])
    chosen = {r["arm"]: r["config"]["lr"] for r in records if r.get("phase") == "confirm"}
    assert chosen == {"a": 0.1, "b": pytest.approx(10.0)}


def test_tuning_chooses_by_one_metric_and_the_comparison_is_on_another(lab: Run) -> None:
    records = lab(
        "def train(arm, seed, lr): return {'val_loss': abs(lr - 2), 'test_loss': lr}\n"
        "lab.compare(train, ['a'], [0], tune={'lr': [1, 2, 3]}, primary='test_loss', select='val_loss', unit='nats')\n"
    )
    assert (records[0]["primary"], records[0]["select"], records[0]["unit"]) == ("test_loss", "val_loss", "nats")
    assert [r["config"]["lr"] for r in records if r.get("phase") == "confirm"] == [2]


def test_the_baseline_is_run_again_for_the_noise_floor(lab: Run) -> None:
    records = lab(
        "import itertools\nn = itertools.count()\nlab.compare(lambda arm, seed: next(n), ['a', 'b'], [4, 5], repeats=2)\n"
    )
    noise = [(r["arm"], r["seed"], r["values"]["val_loss"]) for r in records if r.get("phase") == "noise"]
    assert noise == [("a", 4, 4), ("a", 5, 5)] and records[0]["repeats"] == 2


GOES_ON = """
STEPS = lab.fit_steps(0.01, 1)
def train(arm, seed, lr):
    time.sleep(0.3)
    return {'val_loss': lr + seed, 'steps': STEPS}
lab.compare(train, ['a', 'b'], range(6), tune={'lr': [1, 2]})
"""


def test_a_study_that_goes_on_makes_no_training_twice_and_keeps_its_sizes(lab: Run, tmp_path: Path) -> None:
    before = lab(GOES_ON, seconds=6.0, more=60)
    again = left_of([RECORD.validate_python({"t": 0.0, **record}) for record in before])
    assert again is not None and 0 < len(again.runs) < 12 and again.chosen == {"a": {"lr": 1}, "b": {"lr": 1}}
    after = lab(GOES_ON, seconds=30, study=again.model_dump_json())
    done = [(r["arm"], r["seed"]) for r in [*before, *after] if r.get("phase") == "confirm" and r["status"] == "ok"]
    assert sorted(done) == [(arm, seed) for arm in "ab" for seed in range(6)]
    assert not [r for r in after if r.get("phase") == "tune" or r["type"] == "kept"]
    sizes = {r["values"]["steps"] for r in [*before, *after] if r.get("status") == "ok"}
    assert len(sizes) == 1
    assert left_of([RECORD.validate_python({"t": 0.0, **record}) for record in [*before, *after]]) is None


def test_tuning_is_not_cut_short_for_pairs_that_a_further_container_can_make(lab: Run) -> None:
    code = (
        "def train(arm, seed, lr): time.sleep(0.2); return lr\n"
        "lab.compare(train, ['a', 'b'], range(6), tune={'lr': [1, 2, 3, 4]})\n"
    )
    tuned = [r["status"] for r in lab(code, seconds=6.0, more=60) if r.get("phase") == "tune"]
    assert tuned.count("ok") >= 8


@pytest.mark.parametrize("tune", ["{'lr': {'a': [1], 'b': [1, 2]}}", "{'lr': {'a': [1]}}", "{'lr': []}"])
def test_a_grid_that_favours_an_arm_is_refused(lab: Run, tune: str) -> None:
    assert lab(f"lab.compare(lambda arm, seed, lr: 1, ['a', 'b'], [0], tune={tune})", expect=1) == []


def test_what_does_not_fit_into_the_time_is_recorded_as_skipped_and_the_deadline_is_kept(lab: Run) -> None:
    records = lab(
        "import time\n"
        "def train(arm, seed): time.sleep(0.5); return 1.0\n"
        "lab.compare(train, ['a', 'b'], range(20), repeats=0)\n"
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


def test_a_training_that_takes_longer_than_expected_is_broken_off_before_the_limit(lab: Run) -> None:
    records = lab(
        "import signal, time\n"
        "def train(arm, seed):\n"
        "    for step in range(10 if seed < 2 else 10**9):\n"
        "        try: time.sleep(0.01)\n"
        "        except Exception: pass\n"
        "    return 1.0\n"
        "lab.compare(train, ['a', 'b'], range(4), repeats=0)\n"
        "lab.log(left=lab.time_left(), handler=signal.getsignal(signal.SIGALRM) == signal.SIG_DFL)\n",
        seconds=5.0,
    )
    runs = [r for r in records if r["type"] == "run"]
    assert [r["status"] for r in runs] == ["ok"] * 4 + ["skipped"] * 4
    assert [r["seconds"] > 1 for r in runs] == [False] * 4 + [True] + [False] * 3
    assert 0 < records[-1]["values"]["left"] < 2 and records[-1]["values"]["handler"]


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
    inside, _, outside = (r for r in records if r["type"] == "metric")
    assert (inside["arm"], inside["seed"], inside["phase"]) == ("a", 7, "confirm")
    assert "arm" not in outside


def test_the_length_of_trainings_is_fitted_to_the_time_that_is_left(lab: Run) -> None:
    *_, record = lab(
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
