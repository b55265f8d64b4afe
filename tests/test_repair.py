"""Promises of repair: what needs no model costs no container, three decide about the rest, and every attempt is kept."""

import ast
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.experiment import Execution, Outcome
from executor.imports import check_source
from orchestrator.implementation import MAX_REPAIRS
from orchestrator.mending import experiment_of, mend
from orchestrator.repair import failure_of, lines_at_fault, vote_of
from orchestrator.sprint import Budgets
from results.store import SUMMARY
from results.summary import execution_of, final_implementation
from tests.conftest import Bench
from tests.test_sprint import COMPARISON, RunExperiment, Scripted, never, run_experiment, sprint

__all__ = ["run_experiment"]  # a fixture

BROKEN = "import numpy\nnumpy.zeros(3) + numpy.zeros(4)\n"
SHAPES = "operands could not be broadcast"


class Writes(Scripted):
    """Writes one program after the other; the last again and again."""

    def __init__(self, *codes: str, vote: str = "Vote: yes\nworth it", **answers: Any) -> None:
        self.codes = list(codes)
        following = lambda: self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]  # noqa: E731
        super().__init__(**{"vote": lambda: vote, "code": following, **answers})

    def asked(self, task: str) -> list[tuple[str, str]]:
        return [(agent, text) for agent, text in self.prompts if f"\nTask: {task}\n" in text]


def test_a_failure_is_diagnosed_voted_on_and_repaired(run_experiment: RunExperiment, tmp_path: Path) -> None:
    engine = Writes(BROKEN, COMPARISON, diagnose=lambda: "The shapes differ.")
    with sprint(engine, run_experiment, tmp_path) as (one, folder):
        summary = one.run("goal")
    (record,) = summary["phases"]["self_healing"]["attempts"]
    assert record["analysis"] == "The shapes differ."
    assert {name: vote["vote"] for name, vote in record["votes"].items()} == {
        "ResearcherAgent": "yes", "ArchitectAgent": "yes", "CoderAgent": "yes"
    }  # fmt: skip
    ((debugger, told),) = engine.asked("diagnose")
    assert debugger == "DebuggerAgent"
    assert SHAPES in told and "2: numpy.zeros(3) + numpy.zeros(4)" in told and "exited with status 1" in told
    ((_, repair),) = engine.asked("repair")
    assert "The shapes differ." in repair and BROKEN in repair
    # The first attempt stays where it was, as it was; what was judged is the last.
    assert summary["phases"]["implementation"]["execution"]["success"] is False
    assert summary["phases"]["self_healing"]["fix_applied"] is True
    assert (
        execution_of(summary)["success"] is True and final_implementation(summary)["code"].strip() == COMPARISON.strip()
    )
    assert "7 pairs" in summary["verdict"] and summary["phases"]["validation"]["execution_success"] is True
    first = folder.path / "attempts/1"
    assert (first / "experiment.py").read_text() == BROKEN
    assert SHAPES in (first / "stderr.log").read_text()
    assert json.loads((first / "execution.json").read_text())["outcome"] == "failed"
    assert "done" in (folder.path / "stdout.log").read_text()
    assert (folder.path / "experiment.py").read_text().strip() == COMPARISON.strip()


@pytest.mark.parametrize(
    ("votes", "repaired"),
    [
        (["Vote: yes", "Vote: yes", "Vote: no"], True),
        (["Vote: no", "Vote: yes", "Vote: no"], False),
        (["Vote: yes", "I cannot say", "Vote: no"], False),
        (['{"vote": "yes"}', "**Vote:** Yes!", ""], True),
    ],
)
def test_only_a_majority_of_the_three_repairs(
    votes: list[str], repaired: bool, run_experiment: RunExperiment, tmp_path: Path
) -> None:
    left = list(votes)
    engine = Writes(BROKEN, COMPARISON)
    engine.answers["vote"] = lambda: left.pop() or "…"
    with sprint(engine, run_experiment, tmp_path) as (one, _):
        healing = one.run("goal")["phases"]["self_healing"]
    assert healing["fix_applied"] is repaired
    assert bool(engine.asked("repair")) is repaired
    assert repaired or "majority" in healing["attempts"][0]["decision"]


def test_code_is_written_again_at_most_three_times(run_experiment: RunExperiment, tmp_path: Path) -> None:
    engine = Writes(*(f"{BROKEN}# {number}\n" for number in range(10)))
    with sprint(engine, run_experiment, tmp_path) as (one, folder):
        summary = one.run("goal")
    assert len(engine.asked("repair")) == MAX_REPAIRS == 3
    assert sorted(path.name for path in (folder.path / "attempts").iterdir()) == ["1", "2", "3"]
    healing = summary["phases"]["self_healing"]
    assert len(healing["attempts"]) == 4 and healing["fix_applied"] is False
    assert summary["verdict"].startswith("The experiment did not complete")


def test_a_program_that_does_not_parse_is_sent_back_at_once_without_a_container_or_a_vote(tmp_path: Path) -> None:
    engine = Writes("def f(:\n", "x = (\n", "import\n", "]\n")
    with sprint(engine, never, tmp_path) as (one, _):
        summary = one.run("goal")
    assert [len(engine.asked(task)) for task in ("repair", "vote", "diagnose")] == [3, 0, 0]
    assert "line 1" in engine.asked("repair")[0][1]
    assert summary["verdict"] == "No verdict: the code was not run."


def test_the_same_code_again_is_not_run_again(run_experiment: RunExperiment, tmp_path: Path) -> None:
    with sprint(Writes(BROKEN, f"```python\n{BROKEN}```"), run_experiment, tmp_path) as (one, folder):
        healing = one.run("goal")["phases"]["self_healing"]
    assert "same code" in healing["attempts"][0]["decision"]
    assert not (folder.path / "attempts").exists()


def test_a_timeout_is_sent_back_with_the_measured_time(bench: Bench, tmp_path: Path) -> None:
    from policies.decision import Request
    from policies.model import PartialLimits

    request = Request(limits=PartialLimits.model_validate({"wall": "2s"}))
    slow = "import lab, time\nfor n in range(99): lab.log(step=n, loss=1.0); time.sleep(0.1)\n"
    engine = Writes(slow, COMPARISON)
    run = lambda experiment, sink, seconds: bench.executor.run(experiment, bench.policy, request, sink)  # noqa: E731
    with sprint(engine, run, tmp_path) as (one, _):
        summary = one.run("goal")
    ((_, told),) = engine.asked("repair")
    assert "at the limit of 2 s" in told and re.search(r"stopped after [12]\.\d s", told)
    assert re.search(r"last step on record was 1?\d\.", told)
    assert engine.asked("vote") == []
    assert summary["phases"]["self_healing"]["fix_applied"] is True


def test_a_run_that_begins_late_has_only_the_rest_of_the_phase(run_experiment: RunExperiment, tmp_path: Path) -> None:
    def late() -> str:
        time.sleep(1.5)
        return "import time\ntime.sleep(60)\n"

    began = time.monotonic()
    with sprint(Writes("", code=late), run_experiment, tmp_path, Budgets(implementation=4)) as (one, _):
        execution = one.run("goal")["phases"]["implementation"]["execution"]  # the wall limit is 10 s
    assert execution["outcome"] == "timeout" and execution["limits"]["wall"]["effective"] < 2.6
    assert time.monotonic() - began < 8


def test_no_repair_begins_that_could_not_be_run_in_the_phases_time(
    run_experiment: RunExperiment, tmp_path: Path
) -> None:
    began = time.monotonic()
    with sprint(Writes(BROKEN, COMPARISON), run_experiment, tmp_path, Budgets(implementation=9)) as (one, _):
        healing = one.run("goal")["phases"]["self_healing"]  # the wall limit is 10 s
    assert "no time is left" in healing["attempts"][0]["decision"]
    assert time.monotonic() - began < 15


def test_agents_that_fail_leave_the_sprint_with_what_it_has(run_experiment: RunExperiment, tmp_path: Path) -> None:
    def refuse() -> str:
        raise ValueError("I will not")

    answers = iter([BROKEN])
    engine = Writes(BROKEN, diagnose=refuse)
    engine.answers["code"] = lambda: next(answers, None) or refuse()
    with sprint(engine, run_experiment, tmp_path) as (one, folder):
        summary = one.run("goal")
    (record,) = summary["phases"]["self_healing"]["attempts"]
    assert record["analysis"] == "" and "I will not" in record["analysis_error"]
    assert "I will not" in record["decision"]
    assert summary["verdict"].startswith("The experiment did not complete")
    assert json.loads((folder.path / SUMMARY).read_text()) == summary


@pytest.mark.parametrize("outcome", [Outcome.DENIED, Outcome.INFRASTRUCTURE, Outcome.CANCELLED, Outcome.COMPLETED])
def test_what_code_cannot_mend_is_not_repaired(outcome: Outcome, bench: Bench) -> None:
    execution = bench.run("raise SystemExit(3)").model_copy(update={"outcome": outcome})
    assert failure_of("", None, execution) is None


def test_a_package_that_cannot_be_had_is_sent_back_at_once(bench: Bench) -> None:
    failed = bench.run("raise SystemExit(3)")
    assert failure_of("", None, failed).way == "discuss"  # type: ignore[union-attr]
    unresolved = failed.model_copy(update={"started_at": None, "message": "cannot resolve nope as wheels"})
    told = failure_of("", None, unresolved)
    assert told is not None and told.way == "send back" and "cannot resolve nope" in told.what


def test_the_memory_limit_is_told(bench: Bench) -> None:
    execution = bench.run("x = bytearray(900 << 20)", memory="256MiB")
    told = failure_of("", None, execution)
    assert execution.outcome is Outcome.OOM and told is not None
    assert "Limit reached: memory, 256MiB" in told.what


def test_every_attempts_record_loads(bench: Bench) -> None:
    execution = bench.run("print(1)")
    assert Execution.from_json(json.loads(json.dumps(execution.as_json()))) == execution


# ---- votes and lines ----


@pytest.mark.parametrize(
    ("answer", "vote"),
    [
        ("Vote: yes", True),
        ("vote - NO, it is hopeless", False),
        ("Yes. The fix is small.", True),
        ("no", False),
        ('```json\n{"vote": true, "why": "x"}\n```', True),
        ("Nobody knows", None),
        ("I would say yes", None),
        ("", None),
    ],
)
def test_a_vote_is_read_or_does_not_count(answer: str, vote: bool | None) -> None:
    assert vote_of(answer) is vote


@given(st.text(max_size=300))
def test_any_answer_is_a_vote_or_none(answer: str) -> None:
    assert vote_of(answer) in (True, False, None)


def test_the_lines_that_a_traceback_names_are_shown_with_their_surroundings() -> None:
    code = "\n".join(f"line_{number}" for number in range(1, 30))
    stderr = (
        'File "/workspace/experiment.py", line 10, in f\nFile "/usr/lib/x.py", line 20\nFile "experiment.py", line 29'
    )
    shown = lines_at_fault(code, stderr).splitlines()
    assert shown == [f"{number}: line_{number}" for number in (8, 9, 10, 11, 12, 27, 28, 29)]
    assert lines_at_fault(code, 'File "experiment.py", line 999999') == ""


# ---- mending ----


@pytest.mark.parametrize(
    ("line", "left", "named"),
    [
        ("!pip install torch 'numpy>=1.26' -q", "pass", ("torch", "numpy>=1.26")),
        ("    %pip install einops", "pass", ("einops",)),
        ("os.system('pip install tqdm')", "0", ("tqdm",)),
        ("os.system(f'{sys.executable} -m pip install tqdm')", "0", ("tqdm",)),
        ("subprocess.check_call([sys.executable, '-m', 'pip', 'install', '-q', 'timm==1.0'])", "0", ("timm==1.0",)),
        ("subprocess.run('pip3 install a b', shell=True)", "SimpleNamespace", ("a", "b")),
        ("os.system('pip install a && echo done > log')", "0", ("a",)),
        ("subprocess.run(['pip', 'install'] + ['c'])", "SimpleNamespace", ("c",)),
        ("pip.main(['install', 'd'])", "0", ("d",)),
        ("subprocess.run(['/usr/bin/pip', 'install', '-r', 'requirements.txt', 'e'])", "SimpleNamespace", ("e",)),
        ("[subprocess.run(['pip', 'install', name]) for name in names]", "SimpleNamespace", ()),
        ("subprocess.run(['pip', 'install', 'git+https://x/y', './local', 'https://h/a.whl'])", "SimpleNamespace", ()),
    ],
)
def test_calls_of_pip_become_requirements_and_are_gone(line: str, left: str, named: tuple[str, ...]) -> None:
    code = f"import os, pip, subprocess, sys\nnames = []\nif True:\n    ü = 1\n    {line.strip()}\nprint('über', ü)\n"
    mended = mend(code)
    assert mended.requirements == named
    assert left in mended.code and "install'" not in mended.code and "pip install" not in mended.code.replace("!", "")
    assert "print('über', ü)" in mended.code
    ast.parse(mended.code)
    assert len(mended.notes) == 1


@pytest.mark.parametrize(
    "code",
    [
        "pipeline = 'pip install nothing'\n",
        'doc = """\n```python\nexample\n```\n"""\nprint(doc)\n',
        "print('pip', 'install')\n",
        "# pip install x\nx = 1\n",
        "subprocess.run(['pip', 'list'])\n",
        "def f(:\n  pip\n",
    ],
)
def test_code_that_does_not_install_is_left_as_it_is(code: str) -> None:
    assert mend(code).code == code and mend(code).requirements == ()


def test_what_is_installed_under_another_name_is_required_and_its_module_not_looked_up() -> None:
    code = "import os\nos.system('pip install scikit-fuzzy torch==1.0 einops>=0.7')\nimport einops, skfuzzy, torch\n"
    mended = mend(code)
    experiment = experiment_of(mended, check_source(mended.code), ["einops"], "cpu", 0)
    assert experiment.requirements == ("einops>=0.7", "scikit-fuzzy")
    assert experiment.imports == ()
    plain = mend("import einops, torch\n")
    assert experiment_of(plain, check_source(plain.code), ["einops<1"], "cpu", 0).requirements == ("einops<1",)
    assert experiment_of(plain, check_source(plain.code), [], "cpu", 0).imports == ("einops", "torch")


def test_mended_code_runs_where_the_call_stood(bench: Bench) -> None:
    code = mend(
        "import subprocess, sys\ndone = subprocess.run([sys.executable, '-m', 'pip', 'install', 'torch'])\n"
        "print('status', done.returncode)\nsubprocess.check_call(['pip', 'install', 'numpy'])\nimport numpy; print('ok')\n"
    )
    assert bench.run(code.code).stdout == "status 0\nok\n"


@given(st.text(max_size=300))
def test_any_text_is_mended_to_something(text: str) -> None:
    assert isinstance(mend(text).code, str)
