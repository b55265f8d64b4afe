"""Promises of several goals and of advice: each sprint stands alone, one table at the end, and good questions are kept."""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import AIResearchTeam
from orchestrator.advice import advice, advised_goal, recommendation_of
from orchestrator.batch import Line
from orchestrator.cli.main import app
from orchestrator.errors import UsageProblem
from orchestrator.goal import check_goal
from orchestrator.journal import now
from orchestrator.lab_setup import LabOptions
from orchestrator.local_agents.playbook.engine import PlaybookEngine
from orchestrator.local_agents.playbook.following import _OTHER_FACTOR, next_goal
from orchestrator.local_agents.playbook.goals import read_goal
from policies.model import PartialLimits
from results.store import Store
from tests.faulty_server import CODE, INVOKE, PROGRAM, answer, faulty_service
from tests.test_cli import COMMAND, QUICK, labsandbox, told

SLOW = f"import time\ntime.sleep(3)\n{PROGRAM}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def coded(by_goal: dict[str, str]) -> Any:
    """A service whose code agent writes for each goal what is said here."""

    def fault(connection: Any, before: int) -> None:
        request = next(one for one in reversed(service.heard) if b"/api/agents/code" in one and one not in seen)
        seen.append(request)
        code = next((code for goal, code in by_goal.items() if goal.encode() in request), PROGRAM)
        connection.sendall(answer({"result": {"code": code}}))

    seen: list[bytes] = []
    manager = faulty_service({CODE: fault})
    service: Any = None

    class Managed:
        def __enter__(self) -> Any:
            nonlocal service
            service = manager.__enter__()
            return service

        def __exit__(self, *arguments: Any) -> None:
            manager.__exit__(*arguments)

    return Managed()


# ---- several goals ----


def test_goals_run_in_order_each_in_its_own_folder_with_one_summary_at_the_end(here: Path) -> None:
    (here / "goals.txt").write_text("# two more\nthe second\n\n  the third  \n")
    with coded({"the second": "raise SystemExit(3)"}) as service:
        done = labsandbox(
            "run", "the first", "--goals", "goals.txt", *QUICK, "--json", LUMENBRIDGE_BASE_URL=service.url
        )
    ends = json.loads(done.stdout)
    assert [end["goal"] for end in ends] == ["the first", "the second", "the third"]
    assert [end["outcome"] for end in ends] == ["completed", "failed", "completed"]
    assert [end["status"] for end in ends] == [0, 1, 0] and done.returncode == 1
    starts = [json.loads((here / "results" / end["sprint"] / "sprint_summary.json").read_text()) for end in ends]
    assert all(earlier["end_time"] < later["start_time"] for earlier, later in pairwise(starts))


def test_goals_in_parallel_run_at_the_same_time_and_no_more_of_them_than_asked(here: Path) -> None:
    with coded(dict.fromkeys(("one", "two", "three"), SLOW)) as service:
        done = labsandbox(
            "run", "one", "two", "three", "--parallel", "2", *QUICK, "--json", LUMENBRIDGE_BASE_URL=service.url
        )
    assert done.returncode == 0, done.stderr
    spans = []
    for end in json.loads(done.stdout):
        execution = json.loads((here / "results" / end["sprint"] / "sprint_summary.json").read_text())["phases"][
            "implementation"
        ]["execution"]
        spans.append((execution["started_at"], execution["ended_at"]))
    overlapping = [sum(start < other < end for other, _ in spans) for start, end in spans]
    assert sorted(spans)[1][0] < sorted(spans)[0][1], "the first two did not overlap"
    assert max(overlapping) <= 1


def test_a_sprint_that_breaks_costs_no_other(here: Path) -> None:
    def fault(connection: Any, before: int) -> None:
        if before == 0:
            connection.sendall(answer({"error": "not this one"}, "400 Bad Request"))
        else:
            connection.sendall(answer({"result": {"code": PROGRAM}}))

    with faulty_service({CODE: fault}) as service:
        done = labsandbox("run", "one", "two", *QUICK, LUMENBRIDGE_BASE_URL=service.url, COLUMNS="200")
    assert done.returncode == 2
    assert "not this one" in done.stdout and "completed" in done.stdout
    for sprint in (folder.name for folder in (here / "results").iterdir()):  # where nothing can be drawn anew
        assert f"{sprint} begins: " in done.stderr and f"{sprint} ended" in done.stderr


def test_an_interrupt_ends_all_and_leaves_what_can_be_resumed(here: Path) -> None:
    with coded({"goal": SLOW}) as service:
        process = subprocess.Popen(
            [COMMAND, "run", "goal 1", "goal 2", "goal 3", "--parallel", "2", *QUICK],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "LUMENBRIDGE_BASE_URL": service.url},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len(list((here / "results").glob("*/experiment.py"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=30)
        assert process.returncode == 130 and said.endswith("interrupted\n"), said
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert len(re.findall(r"│ cancelled +│", out)) == 2 and "not begun" in out
        assert len(re.findall(r"labsandbox resume sprint_\w+ carries on", said)) == 3
        for folder in sorted((here / "results").iterdir()):
            done = labsandbox("resume", folder.name, LUMENBRIDGE_BASE_URL=service.url)
            assert done.returncode == 0, done.stderr
            assert "completed" in done.stdout


def test_a_sprint_that_is_killed_makes_the_status_infrastructures(here: Path) -> None:
    with coded({"slow": SLOW}) as service:
        process = subprocess.Popen(
            [COMMAND, "run", "slow", "quick", "--parallel", "2", *QUICK],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "LUMENBRIDGE_BASE_URL": service.url},
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not list((here / "results").glob("*/experiment.py")) and time.monotonic() < deadline:
            time.sleep(0.05)
        for child in psutil.Process(process.pid).children():
            if any((here / "results").glob(f"{child.cmdline()[4]}/experiment.py")) or "slow" in str(child.cmdline()):
                child.kill()
                break
        process.communicate(timeout=60)
    assert process.returncode == 4


def test_many_goals_need_few_open_files(here: Path) -> None:
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))  # noqa: E731
    goals = [f"goal {number}" for number in range(100)]
    process = subprocess.Popen(
        [COMMAND, "run", *goals, *QUICK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit
    )
    deadline = time.monotonic() + 60
    while len(list((here / "results").glob("*"))) < 100 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in said


def test_a_journal_is_read_as_it_grows_and_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    line, journal = Line("goal", "sprint_1", tmp_path), tmp_path / "events.jsonl"
    assert line.doing() == "waiting"
    line.process = subprocess.Popen(["true"])
    assert line.doing() == "starting"
    began = f'"time": "{now()}"}}\n'.encode()
    begun = b'{"step": "discussion.begin", ' + began + b'{"step": "implementation.begin", ' + began
    begun += b'{"step": "repair.1.code"}\n'
    journal.write_bytes(begun)
    assert line.doing() == "implementation, repair 1"
    with journal.open("r+b") as file:
        file.write(b"?" * len(begun))  # whoever reads from the beginning finds this
        file.write(b'{"step": "repair.2.code"}\n{"step": "val')
        file.flush()
        assert line.doing() == "implementation, repair 2"
        file.write(b'idation.begin", ' + began)
    assert line.doing() == "validation"
    line.close()
    line.process.wait()


def test_nobody_reads_the_journals_where_no_terminal_shows_them(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doing, running = Line.doing, []

    def heard(line: Line) -> str:
        running.append(line.process is not None and line.ended is None)
        return doing(line)

    monkeypatch.setattr(Line, "doing", heard)
    with faulty_service({}) as service:
        monkeypatch.setenv("LUMENBRIDGE_BASE_URL", service.url)
        app(["run", "one", "two", *QUICK], standalone_mode=False)
    assert not any(running) and len(running) < 5


def test_a_terminal_shows_a_live_table(here: Path) -> None:
    with coded({"one": SLOW}) as service:  # so that somebody can see it being run
        leader, follower = pty.openpty()
        process = subprocess.Popen(
            [COMMAND, "run", "one", "two", *QUICK], stdout=follower, stderr=follower,
            env={**os.environ, "LUMENBRIDGE_BASE_URL": service.url, "TERM": "xterm", "COLUMNS": "100"},
        )  # fmt: skip
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
        assert process.wait(30) == 0
    text = shown.decode()
    for word in ("waiting", "implementation", "ended", "seconds", "verdict"):
        assert word in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "state a goal"),
        (("a", ""), "empty"),
        (("a", "b", "--parallel", "0"), "--parallel"),
        (("--goals", "missing.txt"), "cannot read missing.txt"),
        (("--goals", "empty.txt"), "holds no goal"),
        (("--goals", "binary.txt"), "not UTF-8"),
        (("--next", "sprint_20990101_000000"), "there is no sprint"),
        (("a", "b", "--policy", "nope"), "unknown policy"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_no_folder(here: Path, arguments: tuple[str, ...], said: str) -> None:
    (here / "empty.txt").write_text("# nothing\n\n")
    (here / "binary.txt").write_bytes(b"\xff\xfe\x00")
    done = labsandbox("run", *arguments)
    assert done.returncode == 2 and said in told(done)
    assert not (here / "results").exists()


def test_several_goals_that_the_policy_denies_make_no_folder(here: Path) -> None:
    done = labsandbox("run", "a", "b", "--wall", "3600s", "--backend", "oci")
    assert done.returncode == 3 and "denied" in told(done)
    assert not (here / "results").exists()


# ---- advice ----


@pytest.mark.parametrize(
    ("analysis", "goal", "why"),
    [
        ("It holds.\nNext goal: Try Lion at 2x\nWhy: scale", "Try Lion at 2x", "scale"),
        ('**Next goal:** "Try more seeds"\n**Why:** they were few.', "Try more seeds", "they were few."),
        ('{"analysis": "x", "next_goal": "Try it", "why": "because"}', "Try it", "because"),
        ("- Next goal – Try it\n", "Try it", ""),
        ("Next goal: first\nNext goal: second\nWhy: later", "second", "later"),
        ("Next goal: a\x1b[2Jb", "a [2Jb", ""),
    ],
)
def test_the_validators_advice_is_read(analysis: str, goal: str, why: str) -> None:
    assert recommendation_of(analysis) == {"goal": goal, "why": why}
    assert recommendation_of(analysis, "Another") == {"goal": goal, "why": why}
    assert recommendation_of(analysis, f" {goal.upper()}?\n") is None, "what has just been asked is no advice"


@pytest.mark.parametrize(
    "analysis", ["", "Nothing more.", "Next goal:", "Next goal: \x00", '{"next_goal": 7}', "why: x"]
)
def test_no_advice_is_none(analysis: str) -> None:
    assert recommendation_of(analysis) is None


@given(st.text(max_size=300))
def test_any_analysis_gives_a_goal_that_can_be_run_or_none(analysis: str) -> None:
    found = recommendation_of(f"Next goal: {analysis}")
    assert found is None or check_goal(found["goal"]) == found["goal"]


def test_advice_is_listed_until_a_sprint_takes_it_up(here: Path) -> None:
    said = answer({"result": {"response": "Vote: yes\nNext goal: Is c better still?\nWhy: it is next."}})
    with faulty_service({INVOKE: lambda connection, before: connection.sendall(said)}) as service:
        options = LabOptions(backend="oci", limits=PartialLimits.model_validate({"wall": "20s"}))
        team = AIResearchTeam(service.url, options=options)
        first = "sprint_" + team.run_sprint("Is a better than b?")["sprint_id"]
        listed = json.loads(labsandbox("next", "--json").stdout)
        assert [(one["sprint"], one["goal"], one["why"]) for one in listed] == [
            (first, "Is c better still?", "it is next.")
        ]
        assert "Is c better still?" in labsandbox("next").stdout
        done = labsandbox("run", "--next", first, *QUICK, LUMENBRIDGE_BASE_URL=service.url, COLUMNS="200")
        assert done.returncode == 0, done.stderr
    store = Store(Path("results"))
    second = next(run for run in store.runs() if run != first)
    summary = store.summary(second)
    assert (summary["goal"], summary["follows"]) == ("Is c better still?", first)
    assert [(one.sprint, one.taken) for one in advice(store)] == [(first, second)], "the second was told its own goal"
    assert first not in labsandbox("next").stdout and first in labsandbox("next", "--all", COLUMNS="200").stdout


def test_a_sprint_without_advice_recommends_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "sprint_20250101_000000"
    folder.mkdir()
    (folder / "sprint_summary.json").write_text('{"phases": {"validation": {"recommendation": "none"}}}')
    with pytest.raises(UsageProblem, match="recommends no next goal"):
        advised_goal(Store(tmp_path), folder.name)
    assert advice(Store(tmp_path)) == []


@pytest.mark.parametrize("verdict", ["better", "no detectable difference", "inconclusive"])
@pytest.mark.parametrize("goal", [*_OTHER_FACTOR.values(), "Compare AdamW vs. Lion vs. SGD on a small transformer"])
def test_the_playbooks_own_advice_is_a_goal_that_it_can_read(goal: str, verdict: str) -> None:
    study = read_goal(goal)
    following = read_goal(next_goal(study, verdict)[0])
    again = verdict == "inconclusive" and len(study.arms) == 2
    assert again or study.factor != "optimizer" or following.goal != study.goal


def test_the_playbook_does_not_advise_the_goal_that_has_just_run() -> None:
    goal = "Does learning-rate warm-up improve training of a small classifier?"
    for word, advised in (("inconclusive", False), ("better", True)):
        numbers = json.dumps({"verdict": {"word": word}})
        prompt = f"Goal: {goal}\nTask: validate\nOutcome: completed: done\nVerdict: So.\nNumbers: {numbers}\n"
        said = PlaybookEngine().respond("ValidatorAgent", "", prompt, "").value
        assert ("Next goal:" in said) is ("Why:" in said) is advised


def test_the_playbooks_advice_goes_through_every_factor() -> None:
    goal, seen = "Compare AdamW vs. Lion on a small transformer", set()
    for _ in range(2 * len(_OTHER_FACTOR)):
        study = read_goal(goal)
        seen.add(study.factor)
        goal, why = next_goal(study, "better")
        assert re.search(r"\w", why)
    assert seen == _OTHER_FACTOR.keys() - {"data parallel"}, "which needs devices that not every lab has"
