"""Promises of the command line: the right exit status, one clear line, one JSON value, and a terminal left in peace."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.experiment import MetricRecord
from executor.sinks import PassingSink
from orchestrator.cli.main import COMMANDS, load
from orchestrator.cli.terminal import harmless, one_line
from orchestrator.cli.watching import LogPrinter
from orchestrator.search.sweep import Watching
from policies.asking import LIMIT_OPTIONS
from policies.audit import AuditLog
from tests.conftest import Recorded
from tests.faulty_server import HTML, always, answer, faulty, huge, stall

COMMAND = str(Path(sys.executable).with_name("labsandbox"))
QUICK = ("--backend", "oci", "--wall", "20s")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labsandbox(*arguments: str, text: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **environment},
    )


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what was wrong."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("labsandbox: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_version_and_help_answer(here: Path) -> None:
    assert labsandbox("--version").stdout.startswith("labsandbox ")
    told = labsandbox("--help").stdout
    assert all(f" {command} " in told for command in COMMANDS)
    assert labsandbox("exec", "--help").returncode == labsandbox("audit", "--help").returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_of_each_command_what_the_command_says_of_itself(name: str) -> None:
    whole = " ".join((load(name).help or "").split("\n\n")[0].split())
    assert whole == COMMANDS[name][1]


def test_only_the_command_that_is_called_is_loaded(here: Path) -> None:
    code = "import sys; from orchestrator.cli.main import app; sys.argv = ['labsandbox', '--help']\n"
    code += "try: app()\nfinally: print({'docker', 'pydantic', 'numpy', 'orchestrator.cli.run'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("code", "status"),
    [("print('hi')", 0), ("raise SystemExit(1)", 1), ("raise SystemExit(137)", 1), ("import time; time.sleep(60)", 1)],
)
def test_the_exit_status_tells_whether_the_experiment_completed(here: Path, code: str, status: int) -> None:
    assert labsandbox("exec", "-", "--backend", "oci", "--wall", "2s", text=code).returncode == status


def test_json_is_one_value_on_standard_output_and_everything_else_is_on_standard_error(here: Path) -> None:
    done = labsandbox("exec", "-", "--json", *QUICK, text="print('from inside')")
    execution = json.loads(done.stdout)
    assert execution["schema"] == "labsandbox.execution/1"
    assert execution["stdout"] == "from inside\n"
    assert "from inside" in done.stderr
    assert labsandbox("exec", "-", *QUICK, text="print('from inside')").stdout == "from inside\n"


def test_a_runs_folder_holds_its_code_execution_logs_and_artifacts(here: Path) -> None:
    labsandbox("exec", "-", *QUICK, text="import numpy, lab; lab.log(step=1, a=2); open('out/x', 'w').write('y')")
    (folder,) = (here / "results").iterdir()
    assert folder.name.startswith("exec_")
    assert (folder / "artifacts/out/x").read_text() == "y"
    assert json.loads((folder / "execution.json").read_text())["outcome"] == "completed"
    assert (folder / "requirements.txt").read_text().startswith("numpy==")
    assert (folder / "curves.png").exists() and (folder / "metrics.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("exec", "missing.py"), 2, "cannot read missing.py: No such file"),
        (("exec", "broken.py"), 2, "broken.py, line 2"),
        (("exec", "bomb.py"), 2, "bomb.py"),
        (("exec", "binary.py"), 2, "not UTF-8"),
        (("exec", "good.py", "--policy", "nope"), 2, "unknown policy 'nope'"),
        (("exec", "good.py", "--policy", "keys.yaml"), 2, "surprise"),
        (("exec", "good.py", "--policy", "units.yaml"), 2, "limits.wall"),
        (("exec", "good.py", "--wall", "20"), 2, "--wall: a duration needs a unit"),
        (("exec", "good.py", "--memory", "much"), 2, "--memory: not a size"),
        (("exec", "good.py", "--cpus", "-1"), 2, "--cpus"),
        (("exec", "good.py", "--requirements", "options.txt"), 2, "option of pip"),
        (("exec", "good.py", "--requirements", "malformed.txt"), 2, "not a requirement: 'foo bar'"),
        (("exec", "good.py", "--results", "file"), 2, "not a folder"),
        (("exec", "good.py", "--results", "link"), 2, "symbolic link"),
        (("exec", "good.py", "--runtime", "nope"), 4, "does not know the runtime"),
        (("exec", "good.py", "--gpus", "1"), 4, "GPU"),
        (("run", "AdamW vs Lion", "--gpus", "1"), 4, "GPU"),
        (("run", "AdamW vs Lion", "--wall", "1h"), 3, "allows 120s"),
        (("run", ""), 2, "the goal is empty"),
        (("run", "x" * 100_000), 2, "100,000 characters"),
        (("run", "bake a cake"), 2, "cannot read this goal"),
        (("run", "AdamW vs Lion", "--agents", "lumenbridge"), 2, "LUMENBRIDGE_BASE_URL"),
        (("sprints", "show", "nope"), 2, "there is no sprint"),
        (("policy", "show", "nope"), 2, "unknown policy"),
        (("audit", "log", "--nope"), 2, "No such option"),
    ],
)
def test_bad_input_is_one_clear_line_and_the_right_status(
    here: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    (here / "good.py").write_text("print(1)")
    (here / "broken.py").write_text("x = 1\ndef f(:\n")
    (here / "bomb.py").write_text("(" * 100_000)
    (here / "binary.py").write_bytes(b"\xff\xfe")
    (here / "keys.yaml").write_text("surprise: 1")
    (here / "units.yaml").write_text("name: x\nlimits: {wall: 120}")
    (here / "options.txt").write_text("--index-url http://x\n")
    (here / "malformed.txt").write_text("foo bar\n")
    (here / "file").write_text("mine")
    (here / "real").mkdir()
    (here / "link").symlink_to(here / "real")
    extra = ("--backend", "oci") if arguments[0] in {"exec", "run"} else ()
    done = labsandbox(*arguments, *extra)
    assert done.returncode == status, done.stderr
    assert said in told(done)
    assert done.stdout == ""
    assert (here / "file").read_text() == "mine" and list((here / "real").iterdir()) == []


def test_a_request_beyond_the_policy_or_the_box_is_denied_with_status_3(here: Path) -> None:
    done = labsandbox("exec", "-", "--json", "--backend", "oci", "--wall", "1h", text="print('ran')")
    assert done.returncode == 3
    assert json.loads(done.stdout)["outcome"] == "denied"
    (here / "ceiling.yaml").write_text("limits: {memory: 1GiB}")
    arguments = ("exec", "-", "--backend", "oci", "--memory", "2GiB")
    done = labsandbox(*arguments, text="print('ran')", LABSANDBOX_CEILING="ceiling.yaml")
    assert done.returncode == 3
    assert "allows 1GiB" in done.stderr and "ran" not in done.stdout


def test_a_full_results_folder_is_status_4_and_loses_nothing(here: Path) -> None:
    full = here / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(full)], check=True)
    try:
        (full / "theirs").write_bytes(b"x" * 100_000)
        code = "import time\nfor _ in range(100): print('y' * 10000)\ntime.sleep(30)"
        done = labsandbox("exec", "-", "--results", "full", *QUICK, text=code)
        assert done.returncode == 4
        assert "no space left" in done.stderr and "Traceback" not in done.stderr
        assert (full / "theirs").read_bytes() == b"x" * 100_000
    finally:
        subprocess.run(["umount", str(full)], check=True)


@pytest.mark.parametrize("fault", [always(HTML), huge], ids=["html", "30 MB"])
def test_a_misbehaving_agent_server_is_status_4(here: Path, fault: object) -> None:
    with faulty(fault) as server:  # type: ignore[arg-type]
        done = labsandbox("run", "AdamW vs Lion", "--backend", "oci", LUMENBRIDGE_BASE_URL=server.url)
    assert done.returncode == 4
    assert "listing the agents" in told(done)


def test_control_sequences_of_an_experiment_never_reach_the_terminal(here: Path) -> None:
    code = (
        "import os, sys\n"
        "sys.stdout.write('\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\rover\\u202eevil\\n')\n"
        "os.write(1, bytes(range(256)))\n"
        "open('bad\\x1b[31m\\nname', 'w').write('x')\n"
        "os.symlink('/', 'link\\x1b[0m')\n"
    )
    done = subprocess.run([COMMAND, "exec", "-", *QUICK], input=code.encode(), capture_output=True)
    allowed = {0x0A, 0x09, *range(0x20, 0x7F)}
    for stream in (done.stdout, done.stderr):
        text = stream.decode()
        assert all(ord(character) in allowed or ord(character) > 0x9F for character in text)
        assert "\u202e" not in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_is_not_utf_8_shows_what_it_can(here: Path, encoding: str) -> None:
    code = "import sys\nprint('→ 🦁')\nprint('→', file=sys.stderr)"
    done = labsandbox("exec", "-", *QUICK, text=code, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\\u2192 \\U0001f981\n"
    assert "\\u2192" in done.stderr
    assert labsandbox("policy", "list", PYTHONIOENCODING=encoding).returncode == 0
    assert labsandbox("audit", "log", PYTHONIOENCODING=encoding).returncode == 0


@given(st.text())
def test_any_text_is_harmless_to_a_terminal_once_it_is_cleaned(text: str) -> None:
    cleaned = harmless(text)
    assert all(character in "\n\t" or character.isprintable() or character.isspace() for character in cleaned)
    assert "\x1b" not in cleaned and "\r" not in cleaned and "\x9b" not in cleaned
    assert harmless(cleaned) == cleaned
    assert len(one_line(text)) <= 300 and "\n" not in one_line(text)


def test_a_sink_that_looks_hands_everything_on() -> None:
    heard: list[tuple[str, float | None, float]] = []
    last, shown = Recorded(), io.StringIO()
    watching = Watching(last, lambda *what: heard.append(what))
    sink = LogPrinter(PassingSink(watching), shown, shown)
    record = MetricRecord(t=1.0, step=2, values={"loss": 3.0})
    sink.log("stdout", b"out")
    sink.log("stderr", b"err")
    sink.record(record)
    writer = sink.artifact("a")
    writer.write(b"data")
    writer.commit()
    assert (last.stdout, last.stderr, last.records, last.files) == (b"out", b"err", [record], {"a": b"data"})
    assert shown.getvalue() == "outerr" and heard == [("loss", 2, 3.0)] and watching.last == {"loss": 3.0}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_container_keeps_what_came_and_is_status_130(
    here: Path, own_state: Path, how: signal.Signals
) -> None:
    code = "import time\nopen('out/part', 'w').write('p')\nprint('up', flush=True)\ntime.sleep(100)"
    (here / "slow.py").write_text(code)
    process = subprocess.Popen(
        [COMMAND, "exec", "slow.py", "--json", "--backend", "oci"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )  # fmt: skip
    assert process.stderr is not None and process.stdout is not None
    while "up" not in process.stderr.readline():
        pass
    began = time.monotonic()
    process.send_signal(how)
    execution = json.loads(process.stdout.read())
    assert process.wait(20) == 130
    assert time.monotonic() - began < 5
    assert execution["outcome"] == "cancelled"
    assert [artifact["name"] for artifact in execution["artifacts"]] == ["out/part"]
    assert list((own_state / "oci/bundles").glob("*/*")) == []
    assert list(AuditLog(own_state / "audit.jsonl").records())[-1]["outcome"] == "cancelled"


def test_an_interrupt_does_not_wait_for_agents_that_stall(here: Path) -> None:
    good = {"success": True, "result": {"agents": [], "agent": {"name": "any"}}}
    set_up = 6  # requests: the list, and five that register

    def stalls(connection: socket.socket, before: int) -> None:
        (always(answer(good)) if before < set_up else stall)(connection, before)

    with faulty(stalls) as server:
        process = subprocess.Popen(
            [COMMAND, "run", "AdamW vs Lion", "--backend", "oci", "--results", "other"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "LUMENBRIDGE_BASE_URL": server.url},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            while server.requests < set_up + 4:
                assert process.poll() is None
                time.sleep(0.05)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130 and said.endswith("interrupted\n")
    assert "labsandbox resume sprint_" in said and "--results other carries on" in said
    assert time.monotonic() - began < 3
    (folder,) = (here / "other").iterdir()
    assert json.loads((folder / "sprint_summary.json").read_text())["end_time"]


def test_auto_takes_oci_where_no_engine_answers_and_says_why(here: Path) -> None:
    done = labsandbox("exec", "-", "--wall", "10s", text="print(1)", DOCKER_HOST="unix:///nowhere.sock")
    assert done.returncode == 0
    assert "backend oci: no Docker engine answers" in done.stderr


def test_auto_takes_docker_where_an_engine_has_the_image_and_says_why(here: Path, cpu_image: str) -> None:
    done = labsandbox("exec", "-", "--wall", "10s", text="print(1)")
    assert "backend docker: an engine answers and has the image" in done.stderr


def test_any_image_with_python_serves(here: Path, cpu_image: str) -> None:
    done = labsandbox("exec", "-", "--json", "--image", "labsandbox-base:bookworm", text="import lab; lab.log(a=1)")
    execution = json.loads(done.stdout)
    assert (execution["outcome"], execution["metrics_total"]) == ("completed", 1)
    assert execution["image"]["reference"] == "labsandbox-base:bookworm"
    assert execution["image"]["digest"].startswith("sha256:")


def test_what_was_decided_can_be_read_back(here: Path) -> None:
    labsandbox("exec", "-", *QUICK, text="print(1)")
    records = json.loads(labsandbox("audit", "log", "--json").stdout)
    assert [record["event"] for record in records] == ["decision", "start", "end"]
    assert "completed" in labsandbox("audit", "log").stdout
    assert json.loads(labsandbox("audit", "log", "--execution", "none", "--json").stdout) == []


def test_policies_and_images_and_agents_and_the_machine_are_told_as_json_too(here: Path, cpu_image: str) -> None:
    assert {"default", "gpu", "strict"} <= {
        one["name"] for one in json.loads(labsandbox("policy", "list", "--json").stdout)
    }
    shown = json.loads(labsandbox("policy", "show", "default", "--json").stdout)
    assert shown["limits"]["memory"] == "4GiB"
    images = json.loads(labsandbox("images", "list", "--json").stdout)
    assert cpu_image in {image["reference"] for image in images}
    assert json.loads(labsandbox("agents", "setup", "--json").stdout)["CoderAgent"] == "registered"
    assert json.loads(labsandbox("agents", "setup", "--json").stdout)["CoderAgent"] == "unchanged"
    assert len(json.loads(labsandbox("agents", "list", "--json").stdout)) == 5
    routed = json.loads(labsandbox("agents", "consult", "AdamW vs Lion", "--json").stdout)
    assert routed["routing"]["selected_agent"] == "code" and "lab.compare" in routed["result"]["code"]
    doctor = json.loads(labsandbox("doctor", "--json").stdout)
    assert doctor["ready"] is True
    assert {"backend oci", "backend docker", "audit log"} <= {finding["name"] for finding in doctor["findings"]}


def test_a_sprint_is_listed_and_shown_and_its_verdict_printed(here: Path) -> None:
    done = labsandbox("run", "Compare batch sizes 16 and 64", "--backend", "oci", "--wall", "20s", "--seed", "4")
    assert done.returncode == 0, done.stderr
    assert "Verdict:" in done.stdout and "Results:   results/sprint_" in done.stdout
    assert "local agents (playbook): LUMENBRIDGE_BASE_URL is not set" in done.stderr
    (listed,) = json.loads(labsandbox("sprints", "list", "--json").stdout)
    assert listed["outcome"] == "completed" and listed["goal"] == "Compare batch sizes 16 and 64"
    assert listed["id"] in labsandbox("sprints", "list").stdout, "an id that is cut cannot be shown"
    shown = labsandbox("sprints", "show", listed["id"])
    assert "Plan" in shown.stdout and listed["verdict"] in shown.stdout and "cgroup memory" in shown.stdout
    summary = json.loads(labsandbox("sprints", "show", listed["id"], "--json").stdout)
    assert summary["seed"] == 4
    repeat = "labsandbox run 'Compare batch sizes 16 and 64' --backend oci --wall 20s --seed 4"
    assert summary["command"] == repeat
    records = summary["phases"]["implementation"]["execution"]["metrics"]
    assert next(record for record in records if record["type"] == "plan")["seeds"][0] == 4


def test_a_sprint_that_came_to_no_code_is_listed_with_its_reason(here: Path) -> None:
    assert labsandbox("run", "Change the hidden dimension by 50%", "--backend", "oci").returncode == 2
    (listed,) = json.loads(labsandbox("sprints", "list", "--json").stdout)
    assert listed["outcome"] is None and "grow or to shrink by 50%" in listed["verdict"]
    assert "50%" in labsandbox("sprints", "show", listed["id"]).stdout


def test_all_commands_that_run_experiments_offer_the_same_lab() -> None:
    names = [name.replace("_", "-") for name in ("policy", "backend", "runtime", "image", "gpu_wait", *LIMIT_OPTIONS)]
    offered = []
    for command in ("run", "exec", "sweep", "replay"):
        options = {one.opts[0]: one for one in load(command).params}
        offered.append([(one.help, one.default, one.metavar) for one in (options[f"--{name}"] for name in names)])
    assert offered[1:] == offered[:1] * 3


def test_importing_the_package_is_cheap() -> None:
    program = "import sys, orchestrator; print(sorted({'docker', 'scipy', 'matplotlib', 'uvicorn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


def test_an_auditor_can_verify_show_prove_check_and_export(here: Path, own_state: Path) -> None:
    (here / "p.py").write_text("print(1)")
    assert labsandbox("audit", "verify").returncode == 0
    assert labsandbox("audit", "checkpoint").returncode == 4
    assert labsandbox("exec", "p.py", *QUICK).returncode == 0
    assert labsandbox("exec", "p.py", "--wall", "10m").returncode == 3
    verified = labsandbox("audit", "verify")
    assert verified.returncode == 0 and verified.stdout.startswith("✓ 5 records, as signed by labsandbox.audit/")
    (here / "kept.txt").write_text(labsandbox("audit", "checkpoint").stdout)
    key = labsandbox("audit", "checkpoint", "--key").stdout.strip()
    assert labsandbox("audit", "prove", "1", "--out", "one.tlog-proof").returncode == 0
    checked = labsandbox("audit", "check", "one.tlog-proof", "--key", key, LABSANDBOX_STATE_DIR=str(here / "elsewhere"))
    assert checked.returncode == 0 and "event: start" in checked.stdout
    records = json.loads(labsandbox("audit", "log", "--json").stdout)
    execution = records[0]["execution"]
    shown = json.loads(labsandbox("audit", "show", execution[:8], "--json").stdout)
    assert [record["event"] for record in shown] == ["decision", "start", "end"]
    assert "posture" in labsandbox("audit", "show", execution).stdout
    assert [r["event"] for r in json.loads(labsandbox("audit", "log", "--outcome", "denied", "--json").stdout)] == [
        "end"
    ]
    assert len(json.loads(labsandbox("audit", "log", "--rule", "request.wall", "--json").stdout)) == 2
    assert len(labsandbox("audit", "export", "--format", "ocsf", "--since", "1h").stdout.splitlines()) == 5
    assert labsandbox("audit", "export", "--format", "csv", "--out", "log.csv").returncode == 0
    assert (here / "log.csv").read_text().startswith("seq,time,event")
    assert labsandbox("audit", "verify", "--against", "kept.txt").returncode == 0

    path = own_state / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"allow":false', b'"allow":true '))
    touched = labsandbox("audit", "verify")
    assert touched.returncode == 1 and "record 3 was changed" in touched.stdout
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    cut = labsandbox("audit", "verify", "--against", "kept.txt")
    assert cut.returncode == 1 and "records 2 to 4 are missing" in cut.stdout
    refused = labsandbox("exec", "p.py", *QUICK)
    assert refused.returncode == 4 and "not what was signed" in told(refused)
    assert labsandbox("doctor").returncode == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("audit", "show", "nonesuch"), "no execution or sprint"),
        (("audit", "prove", "7"), "cannot read the log's verifier key"),
        (("audit", "check", "none.tlog-proof"), "cannot read none.tlog-proof"),
        (("audit", "verify", "--against", "none"), "cannot read none"),
        (("audit", "log", "--since", "yesterday"), "not a moment"),
        (("audit", "export", "--out", "no/such/folder/x"), "cannot write"),
        (("audit", "export", "--out", "."), "cannot write"),
        (("audit", "export", "--out", "/"), "cannot write"),
        (("audit", "export", "--out", "/etc/passwd/x"), "cannot write"),
        (("kill", "nonesuch"), "no container's execution id"),
    ],
)
def test_wrong_input_to_the_auditors_and_operators_commands_is_one_line(
    here: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = labsandbox(*arguments)
    assert done.returncode == 2 and said in told(done)


def test_doctor_attacks_the_sandbox_and_says_what_held(here: Path) -> None:
    done = labsandbox("doctor", "--probe", "--backend", "oci", "--runtime", "runc", "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == 0 and len(findings) >= 60
    assert all(finding["held"] and finding["promise"] and finding["backend"] == "oci" for finding in findings)
    nothing = labsandbox("doctor", "--probe", "--backend", "oci", "--runtime", "nonesuch")
    assert nothing.returncode == 4 and "no such runtime" in told(nothing)


@pytest.mark.parametrize("arguments", [("agents", "list"), ("agents", "keys"), ("serve",), ("exec", "-"), ("ui",)])
def test_a_state_folder_that_cannot_be_used_is_one_line_and_infrastructures_status(
    here: Path, arguments: tuple[str, ...]
) -> None:
    (here / "file").write_text("mine")
    extra = {"exec": ("--backend", "oci"), "ui": ("--port", "0")}.get(arguments[0], ())
    done = labsandbox(*arguments, *extra, text="print(1)", LABSANDBOX_STATE_DIR=str(here / "file"))
    assert done.returncode == 4, done.stderr
    assert "the state folder" in told(done) and "not a folder" in told(done)
    asked = json.loads(labsandbox("doctor", "--json", LABSANDBOX_STATE_DIR=str(here / "file")).stdout)
    found = {finding["name"]: finding for finding in asked["findings"]}
    assert not asked["ready"] and found["state folder"]["status"] == "broken"
    assert "as signed" not in found.get("audit log", {}).get("detail", "")


def test_a_results_folder_with_too_long_a_name_is_one_line(here: Path) -> None:
    done = labsandbox("exec", "-", "--backend", "oci", "--results", "a" * 300, text="print(1)")
    assert done.returncode == 2 and "File name too long" in told(done)


def test_a_closed_standard_output_is_one_line_and_a_run_goes_on(here: Path) -> None:
    def closed(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", COMMAND, *arguments],
            input="print(1)",
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )

    listed = closed("sprints", "list", "--json")
    assert listed.returncode == 2 and listed.stderr == "labsandbox: standard output is closed\n"
    ran = closed("exec", "-", *QUICK)
    assert ran.returncode == 0 and "Exception ignored" not in ran.stderr


def test_a_bare_command_shows_the_help(here: Path) -> None:
    done = labsandbox()
    assert done.returncode == 2 and all(f" {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--memory", "1MiB"), "--memory: at least 64MiB is needed"),
        (("--cpus", "nan"), "--cpus: a number between 0 and 4096 is needed, not nan"),
        (("--gpu-wait", "nan"), "--gpu-wait: a number between 0 and 31536000 is needed, not nan"),
        (("--pids", "9" * 20), "--pids: at most"),
    ],
)
def test_a_limit_that_cannot_be_is_told_in_our_words(here: Path, option: tuple[str, str], said: str) -> None:
    done = labsandbox("exec", "-", "--backend", "oci", *option, text="print(1)")
    assert done.returncode == 2 and said in told(done)


def test_ids_are_taken_as_they_are_printed_and_what_is_no_sprint_is_said(here: Path) -> None:
    labsandbox("run", "bake a cake", "--backend", "oci")
    labsandbox("exec", "-", *QUICK, text="print(1)")
    (sprint,), (run,) = (here / "results").glob("sprint_*"), (here / "results").glob("exec_*")
    for name in (sprint.name, sprint.name.removeprefix("sprint_"), f"results/{sprint.name}", f"results/{sprint.name}/"):
        assert "bake a cake" in labsandbox("sprints", "show", name).stdout, name
    assert "is a single execution" in told(labsandbox("report", run.name))
    assert "there is no sweep nope" in told(labsandbox("sweep", "--resume", "nope"))
    assert "give only one of" in told(labsandbox("sweep", "goal", "--file", "f"))
    assert "no such runtime" in told(labsandbox("doctor", "--probe", "--runtime", "nope"))
    (here / "big.py").write_bytes(b"#" * 2_000_000)
    assert "is larger than" in told(labsandbox("exec", "big.py"))


def test_a_goal_that_cannot_be_read_is_refused_once_with_the_remedy_whole_and_no_promise(here: Path) -> None:
    done = labsandbox("run", "bake a cake", "--backend", "oci", "--results", "other")
    assert done.returncode == 2 and "set LUMENBRIDGE_BASE_URL to let a model answer any goal" in told(done)
    assert "…" not in told(done) and done.stderr.count("cannot read this goal") == 1
    assert "resume" not in done.stderr + labsandbox("sprints", "list", "--results", "other", COLUMNS="300").stdout
    assert "a second arm" in told(labsandbox("run", "Compare AdamW", "--backend", "oci"))


def test_a_list_has_one_line_a_sprint_and_needs_the_folder_that_was_named(here: Path) -> None:
    labsandbox("run", "bake a cake", "--backend", "oci")
    assert len(labsandbox("sprints", "list").stdout.splitlines()) == 5
    absent = labsandbox("sprints", "list", "--results", "absent")
    assert absent.returncode == 2 and "there is no results folder absent" in told(absent)
    (here / "empty").mkdir()
    assert labsandbox("sprints", "list", "--results", "empty").returncode == 0
