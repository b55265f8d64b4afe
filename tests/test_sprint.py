"""Promises of a sprint: budgets are deadlines, an agent that fails costs its own part, and the record is whole."""

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from executor.executor import Executor
from executor.experiment import Execution, Experiment, RunRecord, Sink
from orchestrator import AIResearchTeam
from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.errors import AgentRefused, AgentsUnavailable
from orchestrator.agents.team import setup_team
from orchestrator.cli.main import load
from orchestrator.cli.options import Asked
from orchestrator.command import repeating
from orchestrator.context import Context, Progress, RunExperiment, Silent, Terms
from orchestrator.errors import UsageProblem
from orchestrator.goal import check_goal
from orchestrator.journal import EVENTS, Journal
from orchestrator.lab_setup import LabOptions, open_lab
from orchestrator.local_agents.engine import Answered, Choice, CodeAnswer
from orchestrator.local_agents.serving import serve_locally
from orchestrator.local_agents.store import AgentStore
from orchestrator.settings import Settings
from orchestrator.sprint import Budgets, Sprint
from policies.decision import Request
from policies.model import PartialLimits, load_policy
from results.series import read_folder
from results.store import RunFolder, Store
from sandbox_images.lock import Flavour, locked
from tests.conftest import Bench

COMPARISON = """
import lab
lab.compare(lambda arm, seed: {"a": 1.0, "b": 2.0}[arm] + seed / 100 + (arm == "b") * seed / 1000, ["a", "b"], range(7))
print("done")
"""


class Scripted:
    """Answers as it is told to; by default well."""

    name = "scripted"

    def __init__(self, **answers: Callable[[], str]) -> None:
        self.answers = answers
        self.prompts: list[tuple[str, str]] = []
        self.times: list[float] = []

    def respond(self, agent_name: str, agent_prompt: str, user_prompt: str, account: str) -> Answered[str]:
        self.prompts.append((agent_name, user_prompt))
        self.times.append(time.monotonic())
        found = re.search(r"^Task: (\w+)$", user_prompt, re.MULTILINE)
        task = found[1] if found else agent_name
        return Answered(self.answers.get(task, lambda: f"{task} says so")())

    def code(self, prompt: str, account: str) -> Answered[CodeAnswer]:
        self.prompts.append(("code", prompt))
        return Answered(CodeAnswer(code=self.answers.get("code", lambda: COMPARISON)(), explanation="because"))

    def route(self, prompt: str, account: str) -> Answered[Choice]:
        return Answered(Choice("code", "", 1.0))


@pytest.fixture
def run_experiment(bench: Bench) -> RunExperiment:
    """Real containers, short."""
    request = Request(limits=PartialLimits.model_validate({"wall": "10s"}))
    return lambda experiment, sink, seconds: bench.executor.run(
        experiment, bench.policy, request.at_most(seconds), sink
    )


@contextmanager
def sprint(
    engine: Scripted,
    run: RunExperiment,
    results: Path,
    budgets: Budgets | None = None,
    progress: Progress | None = None,
    flavour: Flavour = "cpu",
) -> Iterator[tuple[Sprint, RunFolder]]:
    store = AgentStore(":memory:")
    with serve_locally(engine, store) as url, Store(results).new("sprint") as folder:
        client = LumenbridgeClient(url, "lab", backoff=0.01)
        setup_team(client)
        with Journal(folder.path / EVENTS) as journal:
            terms = Terms("Facts.", 10.0, flavour)
            context = Context(client, run, folder, journal, terms, progress or Silent(), "account")
            yield Sprint(context, 3, budgets), folder
    store.close()


def test_a_run_with_gpus_has_the_gpu_images_packages_and_no_second_torchvision(
    run_experiment: RunExperiment, tmp_path: Path
) -> None:
    asked: list[Experiment] = []

    def run(experiment: Experiment, sink: Sink, seconds: float) -> Execution:
        asked.append(experiment)
        return run_experiment(experiment.model_copy(update={"requirements": ()}), sink, seconds)

    code = "import subprocess\nsubprocess.run(['pip', 'install', 'torchvision==0.1'])\n"
    code += f"try:\n    import torchvision\nexcept ImportError:\n    pass\n{COMPARISON}"
    with sprint(Scripted(code=lambda: code), run, tmp_path, flavour="gpu") as (one, folder):
        implementation = one.run("goal")["phases"]["implementation"]
    assert asked[0].requirements == ()
    pin = f"torchvision=={locked('gpu')['torchvision']}"
    assert pin in (folder.path / "requirements.txt").read_text().splitlines() and pin in implementation["dependencies"]
    with sprint(Scripted(code=lambda: code), run, tmp_path) as (one, _):
        one.run("goal")
    assert asked[1].requirements == ("torchvision==0.1",), "which the other image does not hold"


def never(experiment: Experiment, sink: Sink, seconds: float) -> Execution:
    raise AssertionError("nothing may run")


def test_a_goal_becomes_a_plan_code_an_execution_a_verdict_and_a_folder(
    run_experiment: RunExperiment, tmp_path: Path
) -> None:
    class Heard(Silent):
        def said(self, agent: str, text: str) -> None:
            heard.append((agent, text))

    heard: list[tuple[str, str]] = []
    engine = Scripted(code=lambda: f"Here you are:\n```python\n{COMPARISON}```\n")
    with sprint(engine, run_experiment, tmp_path, progress=Heard()) as (one, folder):
        summary = one.run("Is a better than b?")
    assert [agent for agent, _ in heard] == [
        "ResearcherAgent", "ArchitectAgent", "CoderAgent", "ValidatorAgent", "Plan", "ValidatorAgent"
    ]  # fmt: skip
    assert heard[-1] == ("ValidatorAgent", "validate says so")
    assert json.loads((folder.path / "sprint_summary.json").read_text()) == summary
    assert summary["goal"] == "Is a better than b?" and summary["start_time"] <= summary["end_time"]
    discussion, implementation, validation = (
        summary["phases"][name] for name in ("discussion", "implementation", "validation")
    )
    assert set(discussion["individual_responses"]) == {
        "ResearcherAgent", "ArchitectAgent", "CoderAgent", "ValidatorAgent"
    }  # fmt: skip
    assert discussion["action_plan"] == "plan says so"
    assert implementation["code"] == COMPARISON.strip("\n") + "\n"
    assert implementation["explanation"] == "because"
    execution = implementation["execution"]
    assert (execution["returncode"], execution["success"], execution["outcome"]) == (0, True, "completed")
    assert "done" in execution["stdout"] and execution["stderr"] == ""
    assert Execution.from_json(execution).outcome == "completed"
    assert validation["execution_success"] is True
    assert validation["analysis"] == "validate says so"
    assert validation["verdict"] == summary["verdict"]
    assert "7 pairs" in summary["verdict"]
    names = {path.name for path in folder.path.iterdir()}
    assert names == {
        "sprint_summary.json", "experiment.py", "requirements.txt", "metrics.jsonl", "stdout.log", "stderr.log",
        "artifacts", "curves.png", "events.jsonl", "agents.jsonl", "report.html", "report.md", "figures",
    }  # fmt: skip


def test_the_four_perspectives_are_asked_at_once_and_the_validator_gets_the_computed_verdict(
    run_experiment: RunExperiment, tmp_path: Path
) -> None:
    def slow() -> str:
        time.sleep(0.5)
        return "slow"

    roles = ("ResearcherAgent", "ArchitectAgent", "CoderAgent", "ValidatorAgent")
    engine = Scripted(**dict.fromkeys(roles, slow))
    with sprint(engine, run_experiment, tmp_path) as (one, _):
        summary = one.run("goal")
    assert max(engine.times[:4]) - min(engine.times[:4]) < 0.4
    (prompt,) = (text for name, text in engine.prompts if "Task: validate" in text)
    assert f"\nVerdict: {summary['verdict']}\n" in prompt
    assert json.loads(prompt.split("\nNumbers: ")[1])["primary"] == "val_loss"


def _refuse() -> str:
    raise ValueError("I will not")


def test_an_agent_that_fails_costs_its_own_contribution_only(run_experiment: RunExperiment, tmp_path: Path) -> None:
    engine = Scripted(ResearcherAgent=_refuse, plan=_refuse, validate=_refuse)
    with sprint(engine, run_experiment, tmp_path) as (one, _):
        phases = one.run("goal")["phases"]
    assert set(phases["discussion"]["errors"]) == {"ResearcherAgent", "plan"}
    assert len(phases["discussion"]["individual_responses"]) == 3
    assert phases["implementation"]["execution"]["success"] is True
    assert phases["validation"]["verdict"] and "I will not" in phases["validation"]["errors"]["ValidatorAgent"]


def test_without_code_the_sprint_ends_with_the_reason_in_its_record(tmp_path: Path) -> None:
    with sprint(Scripted(code=_refuse), never, tmp_path) as (one, folder):
        with pytest.raises(AgentRefused, match="I will not"):
            one.run("goal")
        summary = json.loads((folder.path / "sprint_summary.json").read_text())
    assert "I will not" in summary["phases"]["implementation"]["error"]
    assert summary["phases"]["discussion"]["action_plan"]
    assert summary["end_time"]


def test_a_discussion_that_runs_out_of_time_ends_with_what_it_has(
    run_experiment: RunExperiment, tmp_path: Path
) -> None:
    def late() -> str:
        time.sleep(8)
        return "late"

    engine, budgets = Scripted(CoderAgent=late, plan=late), Budgets(discussion=1.5)
    with sprint(engine, run_experiment, tmp_path, budgets) as (one, _):
        began = time.monotonic()
        phases = one.run("goal")["phases"]
    assert phases["discussion"]["timed_out"] is True
    assert len(phases["discussion"]["individual_responses"]) == 3
    assert "in time" in phases["discussion"]["errors"]["CoderAgent"]
    assert "in time" in phases["discussion"]["errors"]["plan"]
    assert phases["implementation"]["execution"]["success"] is True
    assert time.monotonic() - began < 20


def test_a_perspective_that_stalls_leaves_the_plan_its_time_and_the_sprint_says_so(tmp_path: Path) -> None:
    def late() -> str:
        time.sleep(4)
        return "late"

    class Told(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    notes: list[str] = []
    engine = Scripted(CoderAgent=late, code=lambda: "def f(:\n")
    with sprint(engine, never, tmp_path, Budgets(discussion=2.0), Told()) as (one, _):
        discussion = one.run("goal")["phases"]["discussion"]
    assert discussion["action_plan"] == "plan says so"
    assert discussion["timed_out"] is False
    assert set(discussion["individual_responses"]) == {"ResearcherAgent", "ArchitectAgent", "ValidatorAgent"}
    assert notes[:2] == ["CoderAgent: no answer in time", "the discussion goes on without CoderAgent"]


def test_code_that_does_not_parse_never_reaches_a_container(tmp_path: Path) -> None:
    with sprint(Scripted(code=lambda: "def f(:\n  pass\n"), never, tmp_path) as (one, _):
        summary = one.run("goal")
    execution = summary["phases"]["implementation"]["execution"]
    assert (execution["success"], execution["returncode"]) == (False, None)
    assert "line 1" in execution["error"]
    assert summary["verdict"] == "No verdict: the code was not run."


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "raise SystemExit(1)"])
def test_a_run_that_did_not_complete_is_never_a_verdict(
    run_experiment: RunExperiment, tmp_path: Path, code: str
) -> None:
    with sprint(Scripted(code=lambda: code), run_experiment, tmp_path) as (one, _):
        summary = one.run("goal")
    assert summary["verdict"].startswith("The experiment did not complete")
    assert summary["phases"]["validation"]["execution_success"] is False


# ---- the team as a Python object ----


LONG = """
import random, time
import lab

LENGTH = lab.fit_steps(0.01, 1)

def train(arm, seed, lr):
    time.sleep(0.7)
    noise = random.Random(seed).random()
    for step in range(LENGTH):  # a whole number, in further containers, too
        lab.log(step=step, loss=noise)
    return {"val_loss": noise - (0.1 if arm == "b" else 0.0) * (1 + noise) + abs(lr - 2), "length": LENGTH}

lab.compare(train, ["a", "b"], seeds=range(8), tune={"lr": [1, 2, 3]})
print("all made")
"""


def test_a_study_that_is_too_long_for_one_container_goes_on_in_further_ones(
    run_experiment: RunExperiment, tmp_path: Path
) -> None:
    notes: list[str] = []

    class Told(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    budgets = Budgets(implementation=60)
    with sprint(Scripted(code=lambda: LONG), run_experiment, tmp_path, budgets, Told()) as (one, folder):
        summary = one.run("Is a better than b?")
    implementation = summary["phases"]["implementation"]
    assert implementation["execution"]["success"] and len(implementation["further_containers"]) >= 1
    assert any("goes on in container 2" in note for note in notes)
    numbers = summary["phases"]["validation"]["numbers"]
    assert [(arm["ok"], arm["skipped"], arm["trials"]) for arm in numbers["arms"]] == [(8, 0, 3)] * 2
    assert summary["verdict"].startswith("B is better") or numbers["verdict"]["arm"] == "b"
    made = [record for record in read_folder(folder.path).records if isinstance(record, RunRecord)]
    ok = [(run.arm, run.seed) for run in made if run.phase == "confirm" and run.status == "ok"]
    assert len(ok) == len(set(ok)) == 16, "no training was made twice"
    assert len({run.values["length"] for run in made if run.status == "ok"}) == 1, "all are equally long"
    assert (folder.path / "stdout.log").read_text().count("all made") == 1 + len(implementation["further_containers"])
    assert "8 pairs" in (folder.path / "report.md").read_text() or "| 8 |" in (folder.path / "report.md").read_text()


def test_several_sprints_in_a_row_from_python(tmp_path: Path) -> None:
    options = LabOptions(backend="oci", limits=PartialLimits.model_validate({"wall": "25s"}))
    team = AIResearchTeam(results_dir=tmp_path, options=options)
    assert set(team.setup_team().values()) == {"registered"}
    first = team.run_sprint("Evaluate weight decay impact on generalization")
    second = team.run_sprint("Compare batch sizes 16 and 64")
    assert [one["goal"] for one in team.sprint_log] == [first["goal"], second["goal"]]
    assert len(Store(tmp_path).runs()) == 2
    for summary in team.sprint_log:
        assert summary["phases"]["implementation"]["execution"]["outcome"] == "completed"


def test_a_server_that_is_not_there_ends_a_sprint_in_one_line(tmp_path: Path) -> None:
    options = LabOptions(backend="oci")
    team = AIResearchTeam(base_url="http://127.0.0.1:9", results_dir=tmp_path, options=options)
    with pytest.raises(AgentsUnavailable, match="cannot reach"):
        team.run_sprint("goal")


@pytest.mark.parametrize("goal", ["", "  \n\t ", "x" * 100_000, "a\x1b[2Jb", "a\x00b"])
def test_what_is_no_goal_is_refused_in_one_line(goal: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        check_goal(goal)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


def test_a_goal_on_several_lines_becomes_one() -> None:
    assert check_goal(" Compare\n  AdamW\tvs Lion ") == "Compare AdamW vs Lion"


@pytest.mark.parametrize("goal", ["AdamW vs Lion; it's 'quoted'", "--help", "-1 vs 1"])
def test_the_recorded_command_says_every_option_that_was_given(goal: str) -> None:
    limits = {
        "wall": "1.5m",
        "cpus": 0.5,
        "memory": "1.5GiB",
        "pids": 64,
        "workspace": "10MB",
        "gpus": 2,
        "gpu_memory": "8GiB",
    }
    options = LabOptions(
        "my policy.yaml", "docker", "runsc", "a/b:c", PartialLimits.model_validate(limits), gpu_wait=90
    )
    words = shlex.split(repeating(goal, "local", options, Path("/tmp/my results"), 7))
    assert words[:2] == ["labsandbox", "run"]
    # What the command line itself makes of it.
    run = load("run").make_context("run", words[2:]).params
    again = Asked(
        **{name: run[name] for name in ("policy", "backend", "runtime", "image", "gpu_wait", *limits)}
    ).of_lab()
    assert (run["goal"], run["agents"], str(run["results"]), run["seed"]) == ([goal], "local", "/tmp/my results", 7)
    assert again == options


def test_the_recorded_command_leaves_out_what_was_left_open() -> None:
    assert repeating("a b", "auto", LabOptions(), Path("results"), 0) == "labsandbox run 'a b' --seed 0"


# ---- settings ----


def test_the_environment_wins_over_the_file_and_neither_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("LUMENBRIDGE_BASE_URL=http://file\nAI_RESEARCH_USER_ID=file\n")
    assert Settings.read(folder=tmp_path) == Settings("http://file", "file")
    monkeypatch.setenv("LUMENBRIDGE_BASE_URL", "http://environment")
    assert Settings.read(folder=tmp_path) == Settings("http://environment", "file")
    assert Settings.read(folder=tmp_path / "none") == Settings("http://environment", "ai-research-lab")


def test_a_sudo_password_is_ignored_with_a_warning_that_does_not_repeat_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SUDO_PASSWORD=hunter2\n")
    warnings: list[str] = []
    settings = Settings.read(warnings.append, tmp_path)
    assert len(warnings) == 1 and "SUDO_PASSWORD" in warnings[0]
    assert "hunter2" not in warnings[0] + repr(settings)


def test_the_lab_opens_with_the_policy_and_the_backend_that_were_named(own_state: Path) -> None:
    lab = open_lab(LabOptions(policy="strict", backend="oci"), print)
    assert isinstance(lab.executor, Executor)
    assert (lab.policy, lab.executor.backend.name) == (load_policy("strict"), "oci")
