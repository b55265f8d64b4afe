"""Promises of rerun, replay and old records: what was run can be run again, and whatever a record lacks, it is read."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor.backends.oci import OciBackend
from executor.errors import SandboxUnavailable
from executor.executor import Executor
from executor.experiment import Execution, Outcome
from executor.imports import check_source
from orchestrator import AIResearchTeam
from orchestrator.cli.sprints import _paragraphs, _row
from orchestrator.errors import UsageProblem
from orchestrator.lab_setup import Lab, LabOptions, open_lab
from orchestrator.replay import fault_of, read_recorded, replay
from orchestrator.rerun import recorded, rerun
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import PartialLimits, load_policy
from policies.state import cache_dir
from results.store import Store
from results.summary import ended_of, execution_of, final_implementation, outcome_of, verdict_of
from sandbox_images.environment import environment
from sandbox_images.lock import locked
from tests.conftest import Bench
from tests.faulty_server import CODE, FaultyService, answer, faulty_service
from tests.test_cli import labsandbox, told

RANDOM = """
import lab, random
lab.compare(lambda arm, seed: random.random(), ["a", "b"], [lab.seed() + n for n in range(7)])
"""


def service_with(code: str) -> Any:
    return faulty_service({CODE: lambda connection, before: connection.sendall(answer({"result": {"code": code}}))})


def run_sprint(service: FaultyService, results: Path, backend: str = "oci", **limits: str) -> str:
    options = LabOptions(backend=backend, limits=PartialLimits.model_validate({"wall": "20s", **limits}))  # type: ignore[arg-type]
    team = AIResearchTeam(service.url, results_dir=results, options=options, seed=3)
    return "sprint_" + str(team.run_sprint("Is a better than b?")["sprint_id"])


# ---- rerun ----


@pytest.mark.parametrize("backend", ["oci", "docker"])
def test_a_rerun_repeats_the_code_on_the_same_image_and_says_what_differs(
    backend: str, tmp_path: Path, cpu_image: str
) -> None:
    with service_with(RANDOM) as service:
        sprint = run_sprint(service, tmp_path, backend, memory="512MiB")
    before = recorded(Store(tmp_path), sprint)
    same = rerun(before, before.seed, tmp_path, print, lambda sink: sink)
    assert same.differences == [] and same.equal == same.trainings == 15
    assert same.execution.image is not None and before.execution.image is not None
    assert same.execution.image.digest == before.execution.image.digest
    assert same.execution.backend == backend and same.execution.limits["memory"].effective == 512 << 20
    assert (same.folder / "experiment.py").read_text() == before.code
    other = rerun(before, 4, tmp_path, print, lambda sink: sink)
    what = {difference.what for difference in other.differences}
    assert what == {"seed", "trainings"} and (other.equal, other.trainings) == (12, 12)


LONG = """
import lab, os, time
length = lab.keep("length", os.urandom(1)[0])  # as if it were measured
def train(arm, seed):
    time.sleep(0.5)
    return {"val_loss": seed / 9 + len(range(length)), "ms_per_step": os.urandom(1)[0]}
lab.compare(train, ["a", "b"], range(8))
"""


def test_a_rerun_goes_on_in_further_containers_with_the_sizes_of_the_recorded_study(tmp_path: Path) -> None:
    with service_with(LONG) as service:
        sprint = run_sprint(service, tmp_path, wall="8s")
    before = recorded(Store(tmp_path), sprint)
    assert before.further == 1
    done = rerun(before, before.seed, tmp_path, print, lambda sink: sink)
    assert (done.equal, done.trainings) == (17, 17), done.differences
    assert not {one.what for one in done.differences} & {"trainings", "containers", "verdict"}


def test_a_rerun_shows_code_that_does_not_repeat_itself(tmp_path: Path) -> None:
    with service_with(
        "import lab, os\nlab.compare(lambda a, s: int.from_bytes(os.urandom(4), 'big') + s / 9, ['a', 'b'], range(7))\n"
    ) as service:
        sprint = run_sprint(service, tmp_path)
    done = labsandbox("rerun", sprint, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "confirm a seed 3" in done.stdout and "of 15 trainings have the very same result" in done.stdout
    (report,) = tmp_path.glob("exec_*/rerun.json")
    assert json.loads(report.read_text())["of"] == sprint


def test_a_rerun_is_refused_where_the_image_is_gone_or_nothing_was_run(tmp_path: Path) -> None:
    with service_with(RANDOM) as service:
        sprint = run_sprint(service, tmp_path)
    path = tmp_path / sprint / "sprint_summary.json"
    summary = json.loads(path.read_text())
    image = summary["phases"]["implementation"]["execution"]["image"]
    image["digest"] = "sha256:" + "0" * 64
    path.write_text(json.dumps(summary))
    with pytest.raises(SandboxUnavailable, match="no longer here"):
        rerun(recorded(Store(tmp_path), sprint), 3, tmp_path, print, lambda sink: sink)
    del summary["phases"]["implementation"]["execution"]["limits"]
    path.write_text(json.dumps(summary))
    refused = labsandbox("rerun", sprint, "--results", str(tmp_path))
    assert refused.returncode == 2 and "labsandbox replay" in told(refused)
    assert list(tmp_path.glob("exec_*")) == []


# ---- replay ----

ORIGINAL = {
    "sprint_id": "20251203_120000",
    "goal": "Test pruning",
    "start_time": "2025-12-03T12:00:00",
    "phases": {
        "discussion": {"individual_responses": {"ResearcherAgent": "hm"}, "action_plan": "1. Try"},
        "implementation": {
            "code": "import torch\nfrom ml_utils import SimpleMLP, get_model_size\nprint(get_model_size(SimpleMLP()))\n",
            "execution": {
                "stdout": "", "returncode": 1, "success": False,
                "stderr": "Traceback (most recent call last):\nModuleNotFoundError: No module named 'torch'\n",
            },
        },
        "validation": {"analysis": "It failed.", "execution_success": False},
    },
}  # fmt: skip


def original(tmp_path: Path, **implementation: Any) -> Path:
    data = json.loads(json.dumps(ORIGINAL))
    data["phases"]["implementation"] |= implementation
    folder = tmp_path / "sprint_20251203_120000"
    folder.mkdir()
    (folder / "sprint_summary.json").write_text(json.dumps(data))
    return folder


def test_a_recorded_sprint_whose_environment_failed_it_completes_here(tmp_path: Path, cpu_image: str) -> None:
    folder = original(tmp_path)
    done = labsandbox("replay", str(folder), "--backend", "oci", "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    assert "failed: ModuleNotFoundError: No module named 'torch'" in done.stdout
    assert "the recorded failure was its environment's" in done.stdout


@pytest.mark.parametrize(
    ("code", "fault", "why", "status"),
    [
        ("import numpy\nnumpy.zeros(3) + numpy.zeros(4)\n", "code", "ValueError: operands could not", 1),
        ("def f(:\n", "code", "does not parse (line 1)", 1),
        ("open('weights.pt')\n", "environment", "FileNotFoundError", 1),
        (
            "import urllib.request\nurllib.request.urlopen('http://192.0.2.1/', timeout=3)\n",
            "environment",
            "URLError",
            1,
        ),
        ("from ml_utils import no_such_helper\n", "code", "ImportError", 1),
        ("import torch\ntorch.zeros(1).cuda()\n", "environment", "CUDA", 1),
        ("import time\ntime.sleep(60)\n", "environment", "wall-clock limit", 1),
        ("!pip install torch\nimport torch\nprint('ok')\n", "none", "completes", 0),
        ("raise SystemExit(3)\n", "code", "status 3", 1),
    ],
)
def test_a_replay_says_whose_fault_a_failure_is(code: str, fault: str, why: str, status: int, tmp_path: Path) -> None:
    folder = original(tmp_path, code=code)
    results = str(tmp_path / "results")
    done = labsandbox("replay", str(folder), "--backend", "oci", "--wall", "8s", "--results", results, "--json")
    said = json.loads(done.stdout)
    assert (said["fault"], done.returncode) == (fault, status), said["why"]
    assert why in said["why"]


def test_a_replay_takes_every_limit_that_a_run_takes(tmp_path: Path) -> None:
    words = ("--backend", "oci", "--wall", "9s", "--memory", "200MiB", "--cpus", "0.5", "--pids", "64")
    folder, results = original(tmp_path, code="print(1)"), str(tmp_path / "results")
    done = labsandbox("replay", str(folder), *words, "--workspace", "8MiB", "--results", results, "--json")
    limits = json.loads(done.stdout)["execution"]["limits"]
    asked = {"wall": 9.0, "memory": 200 << 20, "cpus": 0.5, "pids": 64, "workspace": 8 << 20}
    assert {name: limits[name]["requested"] for name in asked} == asked
    refused = labsandbox("replay", str(folder), "--gpus", "64", "--gpu-memory", "8GiB", "--results", results)
    assert refused.returncode in (3, 4), "by the policy, or for want of a driver"


def test_what_was_repaired_is_what_is_replayed(tmp_path: Path) -> None:
    data = json.loads(json.dumps(ORIGINAL))
    data["phases"]["self_healing"] = {
        "attempts": [],
        "fix_applied": True,
        "new_implementation": {"code": "print('new')"},
    }
    results = tmp_path / "results"
    done = replay(data, lambda: open_lab(LabOptions(backend="oci"), print), results, lambda sink: sink)
    assert done.execution is not None and done.execution.stdout == "new\n"


def test_a_replay_on_the_gpu_environment_asks_for_none_of_its_packages(tmp_path: Path, own_state: Path) -> None:
    inside = environment(cache_dir(), print, "cpu").path  # the other is gigabytes, and only what is asked for counts
    executor = Executor(OciBackend(own_state, cache_dir(), "runc", "gpu", inside), AuditLog(own_state / "audit.jsonl"))
    lab = Lab(executor, load_policy("default"), Request(), "as told")
    code = "try:\n    import torchvision\nexcept ImportError:\n    print('ran')\n"
    part = {"code": code, "dependencies": ["torchvision==0.1"]}
    done = replay({"phases": {"implementation": part}}, lambda: lab, tmp_path, lambda sink: sink)
    assert done.execution is not None and done.execution.stdout == "ran\n", done.why
    assert done.folder is not None
    pin = f"torchvision=={locked('gpu')['torchvision']}\n"
    assert (done.folder / "requirements.txt").read_text() == pin


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ("[]", "is not a sprint's summary"),
        ("{}", "no code on record"),
        ('{"phases": {"implementation": {"error": "the service was away"}}}', "no code on record"),
        ('{"phases": {"implementation": {"code": 7}}}', "no code on record"),
    ],
)
def test_a_record_that_cannot_be_replayed_is_one_line(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "sprint_summary.json").write_text(text)
    done = labsandbox("replay", str(tmp_path))
    assert done.returncode == 2 and said in told(done)
    with pytest.raises(UsageProblem):
        replay(read_recorded(tmp_path), lambda: open_lab(LabOptions(), print), tmp_path, lambda sink: sink)


def test_the_recorded_end_does_not_sway_the_judgement_of_the_new_one(bench: Bench) -> None:
    failed = bench.run("raise ValueError('[Errno 2] is only said here')")
    assert fault_of(failed)[0] == "code"
    oom = failed.model_copy(update={"outcome": Outcome.OOM, "message": "ran out"})
    assert fault_of(oom) == ("environment", "ran out")


# ---- records with missing or odd parts ----

PARTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just({"error": "x"}),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["phases", "discussion", "implementation", "self_healing", "validation", "execution", "code", "limits",
             "new_implementation", "attempts", "votes", "recommendation", "goal", "error", "verdict", "success", "wall"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=25,
)  # fmt: skip


@given(PARTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_summary_is_listed_shown_and_judged(tmp_path: Path, data: Any) -> None:
    summary = data if isinstance(data, dict) else {"phases": data}
    folder = tmp_path / "sprint_20250101_000000"
    folder.mkdir(exist_ok=True)
    (folder / "sprint_summary.json").write_text(json.dumps(summary))
    store = Store(tmp_path)
    assert _row(store, folder.name)["id"] == folder.name
    for _, text in _paragraphs(store.summary(folder.name)):
        assert isinstance(text, str)
    for read in (final_implementation, execution_of, outcome_of, ended_of, verdict_of):
        read(summary)
    from orchestrator.advice import advice

    assert isinstance(advice(store), list)
    code = final_implementation(summary).get("code")
    assert check_source(code) if isinstance(code, str) and code.strip() else True


@pytest.mark.parametrize(
    "missing", ["discussion", "implementation", "validation", "execution", "explanation", "phases"]
)
def test_a_record_that_lacks_a_part_is_listed_and_shown(missing: str, tmp_path: Path) -> None:
    data = json.loads(json.dumps(ORIGINAL))
    data["phases"].pop(missing, None)
    data["phases"].get("implementation", {}).pop(missing, None)
    data.pop(missing, None)
    folder = tmp_path / "results/sprint_20251203_120000"
    folder.mkdir(parents=True)
    (folder / "sprint_summary.json").write_text(json.dumps(data))
    results = ("--results", str(tmp_path / "results"))
    assert "Test pruning" in labsandbox("sprints", "list", *results).stdout.replace("\n", " ")
    shown = labsandbox("sprints", "show", "20251203_120000", *results)
    assert shown.returncode == 0 and "Goal: Test pruning" in shown.stdout and "Traceback" not in shown.stderr


def test_an_executions_record_survives_its_json(bench: Bench) -> None:
    execution = bench.run("import lab; lab.log(step=1, loss=float('nan')); print('x')")
    assert Execution.from_json(json.loads(json.dumps(execution.as_json()))).as_json() == execution.as_json()
