"""Promises of the sandbox, on every backend: real containers, real limits, an honest outcome, and nothing left over."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from executor.backends.docker import DockerBackend, engine_client
from executor.backends.oci import OciBackend
from executor.errors import InfrastructureError, SandboxUnavailable
from executor.executor import Executor
from executor.experiment import Experiment, Outcome, PlanRecord, RunRecord
from executor.limits import check, table
from executor.ownership import PREFIX, Owner
from policies.audit import AuditLog
from policies.decision import Capabilities, Request, decide
from policies.model import Limits, PartialLimits, load_policy
from policies.state import cache_dir
from sandbox_images.environment import users_environment
from sandbox_images.wheels import BuildError
from tests.conftest import Bench, Recorded

QUICK = {"wall": "20s"}


def test_what_the_experiment_prints_logs_and_leaves_comes_back(bench: Bench) -> None:
    execution = bench.run(
        "import sys, lab\n"
        "print('to out'); print('to err', file=sys.stderr)\n"
        "lab.log(step=1, loss=float('nan'), other=2)\n"
        "open('results.json', 'w').write('{}'); open('out/model.bin', 'wb').write(bytes(200_000))\n",
        **QUICK,
    )
    assert execution.outcome is Outcome.COMPLETED, execution.message
    assert (execution.returncode, execution.signal, execution.success) == (0, None, True)
    assert (execution.stdout, execution.stderr) == ("to out\n", "to err\n")
    assert (bench.sink.stdout, bench.sink.stderr) == (b"to out\n", b"to err\n")
    assert {name: len(data) for name, data in bench.sink.files.items()} == {"results.json": 2, "out/model.bin": 200_000}
    (record,) = execution.as_json()["metrics"]
    assert (record["step"], record["values"]) == (1, {"loss": "NaN", "other": 2.0})
    assert execution.usage.cpu_s is not None and execution.usage.cpu_s > 0
    assert execution.usage.peak_memory_bytes is not None and execution.usage.peak_memory_bytes > 1 << 20


def test_every_limit_is_read_back_from_the_live_container(bench: Bench) -> None:
    execution = bench.run("pass", wall="20s", memory="512MiB", cpus=0.5, pids=40, workspace="64MiB")
    observed = {name: limit.observed for name, limit in execution.limits.items()}
    assert observed["memory"] == 512 << 20
    assert observed["cpus"] == pytest.approx(0.5, abs=0.01)
    assert observed["pids"] == 40
    assert observed["workspace"] == 64 << 20
    assert observed["network"] == 0
    assert execution.limits["memory"].requested == 512 << 20
    assert execution.limits["shm"].requested is None
    kept_by_the_host = {"wall", "output", "metrics", "artifacts", "artifact_files", "gpus", "gpu_memory"}
    assert {name for name, value in observed.items() if value is None} == kept_by_the_host


def test_a_sleep_past_the_limit_is_a_timeout_and_keeps_what_was_there(bench: Bench) -> None:
    began = time.monotonic()
    execution = bench.run(
        "import time\nprint('before', flush=True); open('out/part', 'w').write('p')\ntime.sleep(60)", wall="2s"
    )
    assert execution.outcome is Outcome.TIMEOUT
    assert execution.returncode is None
    assert execution.stdout == "before\n"
    assert bench.sink.files == {"out/part": b"p"}
    assert 2.0 <= execution.timings.run_s < 4.0
    assert time.monotonic() - began < 2 + 2 + execution.timings.start_s + execution.timings.destroy_s


def test_the_wall_limit_holds_while_the_host_is_kept_from_reading(bench: Bench) -> None:
    class Stuck(Recorded):
        """A terminal that does not read."""

        def log(self, stream: str, data: bytes) -> None:
            if not self.stdout:
                time.sleep(6)
            super().log(stream, data)

    sink = Stuck()
    experiment = Experiment(
        code="import time\nbegan = time.monotonic()\nprint('up', flush=True)\n"
        "while True:\n"
        "    open('/workspace/beat', 'w').write(f'{time.monotonic() - began:.2f}')\n"
        "    time.sleep(0.01)\n"
    )
    request = Request(limits=PartialLimits.model_validate({"wall": "2s"}))
    execution = bench.executor.run(experiment, bench.policy, request, sink)
    assert execution.outcome is Outcome.TIMEOUT
    assert float(sink.files["beat"]) < 3.0


def test_code_that_ignores_every_signal_it_can_is_ended_all_the_same(bench: Bench) -> None:
    execution = bench.run(
        "import signal, time\n"
        "for s in range(1, 32):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except OSError: pass\n"
        "while True: time.sleep(1)\n",
        wall="2s",
    )
    assert execution.outcome is Outcome.TIMEOUT
    assert execution.timings.run_s < 4.0


def test_memory_beyond_the_limit_is_oom_and_the_runner_lives_to_tell(bench: Bench) -> None:
    execution = bench.run(
        "print('before', flush=True)\nb = []\nwhile True: b.append(bytearray(b'x') * (16 << 20))",
        wall="60s",
        memory="256MiB",
    )
    assert execution.outcome is Outcome.OOM
    assert execution.signal == 9
    assert execution.stdout == "before\n"


def test_files_in_the_workspace_count_as_memory(bench: Bench) -> None:
    execution = bench.run(
        "f = open('/workspace/big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))", wall="60s", memory="128MiB"
    )
    assert execution.outcome is Outcome.OOM


def test_forking_without_end_stays_inside_its_limit_and_ends_in_time(bench: Bench) -> None:
    execution = bench.run(
        "import os, time\n"
        "for _ in range(200):\n"
        "    try:\n"
        "        if os.fork() == 0: time.sleep(60)\n"
        "    except BlockingIOError: print('refused', flush=True); break\n"
        "while True:\n"
        "    try: os.fork()\n"
        "    except OSError: pass\n",
        wall="3s",
        pids=32,
    )
    assert execution.outcome is Outcome.TIMEOUT
    assert "refused" in execution.stdout
    assert execution.usage.peak_pids is not None and execution.usage.peak_pids <= 32


def test_a_full_workspace_is_the_experiments_own_failure(bench: Bench) -> None:
    execution = bench.run(
        "f = open('/workspace/big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))", workspace="32MiB", **QUICK
    )
    assert execution.outcome is Outcome.FAILED
    assert "No space left" in execution.stderr


def test_printing_a_gigabyte_ends_at_the_output_limit_with_the_middle_counted(bench: Bench) -> None:
    execution = bench.run("import sys\nfor _ in range(1024): sys.stdout.write('y' * (1 << 20))", **QUICK)
    assert execution.outcome is Outcome.OUTPUT_LIMIT
    limit = load_policy("default").limits.output
    assert limit <= len(bench.sink.stdout) <= limit + 200_000
    assert execution.stdout_dropped_bytes > 0
    assert len(execution.stdout) < 300_000


def test_a_flood_of_metrics_ends_the_run(bench: Bench) -> None:
    bench.policy = bench.policy.model_copy(
        update={"limits": bench.policy.limits.model_copy(update={"metrics": 100_000})}
    )
    execution = bench.run("import lab\nwhile True: lab.log(x=1)", **QUICK)
    assert execution.outcome is Outcome.OUTPUT_LIMIT
    assert 0 < execution.metrics_total < 10_000


def test_no_record_is_made_of_the_two_ends_of_one_that_went_over_the_limit(bench: Bench) -> None:
    bench.policy = bench.policy.model_copy(update={"limits": bench.policy.limits.model_copy(update={"metrics": 4096})})
    execution = bench.run(
        "import fcntl, os, time\n"
        "fd = int(os.environ['LAB_CHANNEL_FD'])\n"
        "fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)\n"
        'os.write(fd, b\'{"type": "metric", "values": {"ok": 1}}\\n\')\n'
        'os.write(fd, b\'{"type": "metric", "values": {"loss": 0.\')\n'
        "time.sleep(0.5)\n"
        "os.write(fd, b'1' * 65536 + b'9}}\\n')\n"
        "time.sleep(60)\n",
        **QUICK,
    )
    assert execution.outcome is Outcome.OUTPUT_LIMIT
    assert [record.values for record in bench.sink.records] == [{"ok": 1.0}]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "outcome", "returncode", "signal"),
    [
        ("raise SystemExit(0)", Outcome.COMPLETED, 0, None),
        ("raise SystemExit(1)", Outcome.FAILED, 1, None),
        ("raise SystemExit(137)", Outcome.FAILED, 137, None),
        ("import os; os.kill(os.getpid(), 9)", Outcome.FAILED, None, 9),
        ("import os; os.abort()", Outcome.FAILED, None, 6),
    ],
)
def test_an_exit_is_told_as_it_was(
    bench: Bench, code: str, outcome: Outcome, returncode: int | None, signal: int | None
) -> None:
    execution = bench.run(code, **QUICK)
    assert (execution.outcome, execution.returncode, execution.signal) == (outcome, returncode, signal)


def test_there_is_no_network_and_no_way_to_the_hosts_loopback(bench: Bench) -> None:
    execution = bench.run(
        "import socket\n"
        "def reach(address):\n"
        "    s = socket.socket(); s.settimeout(2)\n"
        "    try: s.connect(address); return 'reached'\n"
        "    except OSError as e: return type(e).__name__\n"
        "print(reach(('192.0.2.1', 80)), reach(('169.254.169.254', 80)), socket.if_nameindex())\n"
        "try: print(socket.getaddrinfo('example.org', 80))\n"
        "except OSError as e: print('no name')\n",
        **QUICK,
    )
    assert execution.outcome is Outcome.COMPLETED
    assert execution.stdout == "OSError OSError [(1, 'lo')]\nno name\n"


def test_it_is_nobody_without_capabilities_and_cannot_read_or_kill_pid_1(bench: Bench) -> None:
    execution = bench.run(
        "import os\n"
        "status = dict(l.split(':', 1) for l in open('/proc/self/status'))\n"
        "print(os.getuid(), os.getgid(), os.getgroups(), status['CapEff'].strip(), status['NoNewPrivs'].strip(),"
        " status['Seccomp'].strip())\n"
        "for path in ('/proc/1/environ', '/proc/1/mem', '/proc/1/fd/0', '/proc/1/fd/1'):\n"
        "    try: print(open(path, 'rb').read(10))\n"
        "    except OSError as e: print(type(e).__name__)\n"
        "try: os.kill(1, 9)\n"
        "except OSError as e: print(type(e).__name__)\n",
        **QUICK,
    )
    assert execution.stdout == "65534 65534 [] 0000000000000000 1 2\n" + "PermissionError\n" * 5


def test_nothing_of_the_host_is_there(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABSANDBOX_TEST_SECRET", "hunter2")
    (tmp_path / "secret").write_text("hunter2")
    execution = bench.run(
        "import os\n"
        f"for path in ({str(tmp_path)!r}, {str(Path.cwd())!r}, '/etc/shadow', '/var/lib/labsandbox',"
        " '/run/docker.sock', '/var/run/docker.sock', '/home', '/root/.ssh'):\n"
        "    try: print(path, os.listdir(path) if os.path.isdir(path) else open(path).read())\n"
        "    except OSError: pass\n"
        "print(sorted(os.environ))\n",
        **QUICK,
    )
    lines = [line for line in execution.stdout.splitlines() if not line.endswith(" []")]
    assert "hunter2" not in execution.stdout
    assert lines == [
        "['CUDA_DEVICE_ORDER', 'GLOO_SOCKET_IFNAME', 'HOME', 'LAB_CHANNEL_FD', 'LAB_CPUS', 'LAB_DEADLINE', 'LAB_GPUS', "
        "'LAB_MORE', 'LAB_SEED', 'LANG', 'MPLBACKEND', 'MPLCONFIGDIR', "
        "'NCCL_CUMEM_HOST_ENABLE', 'NCCL_IB_DISABLE', 'NCCL_SOCKET_IFNAME', "
        "'OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'PATH', 'PYTHONDONTWRITEBYTECODE', 'PYTHONHASHSEED', 'PYTHONPATH', 'TMPDIR']"
    ]


def test_only_the_three_writable_folders_are_writable_and_lab_cannot_be_changed(bench: Bench) -> None:
    execution = bench.run(
        "import os, lab\n"
        "for folder in ('/', '/etc', '/usr', '/run', '/opt', '/var', '/dev', '/sys', '/proc', '/home',"
        " os.path.dirname(lab.__file__), '/workspace', '/workspace/out', '/tmp', '/dev/shm'):\n"
        "    try: open(folder + '/x', 'w').close(); print(folder)\n"
        "    except OSError: pass\n"
        "for victim in ('/workspace/experiment.py', lab.__file__):\n"
        "    for attack in (os.unlink, lambda p: open(p, 'a'), lambda p: os.rename(p, '/workspace/y')):\n"
        "        try: attack(victim); print('changed', victim)\n"
        "        except OSError: pass\n",
        **QUICK,
    )
    assert execution.stdout.split() == ["/workspace", "/workspace/out", "/tmp", "/dev/shm"]


def test_the_root_file_system_itself_is_read_only_and_the_kernel_picks_the_experiment_first(bench: Bench) -> None:
    execution = bench.run(
        "mounts = [line.split() for line in open('/proc/self/mountinfo')]\n"
        "print([m[5].split(',')[0] for m in mounts if m[4] == '/'], open('/proc/self/oom_score_adj').read().strip())\n",
        **QUICK,
    )
    assert execution.stdout == "['ro'] 1000\n"


def test_the_callers_umask_does_not_keep_the_experiment_out(bench: Bench) -> None:
    before = os.umask(0o077)
    try:
        assert bench.run("print('in')", **QUICK).stdout == "in\n"
    finally:
        os.umask(before)


def test_a_daemon_that_left_its_session_does_not_outlive_the_experiment(bench: Bench) -> None:
    began = time.monotonic()
    execution = bench.run(
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        while True: time.sleep(1)\n"
        "    os._exit(0)\n"
        "os.wait(); print('done')\n",
        wall="30s",
    )
    assert (execution.outcome, execution.stdout) == (Outcome.COMPLETED, "done\n")
    assert time.monotonic() - began < 20


def test_only_plain_files_come_back_under_safe_names(bench: Bench) -> None:
    execution = bench.run(
        "import os\n"
        "os.symlink('/etc/passwd', 'link'); os.mkfifo('fifo'); os.mkdir('d'); open('d/in', 'w').write('1')\n"
        "open('a\\nb\\x1b[31m', 'w').write('2'); open(b'\\xff\\xfe', 'w').write('3'); open('n' * 255, 'w').write('4')\n"
        "open('private', 'w').write('5'); os.chmod('private', 0o600)\n"
        "with open('sparse', 'wb') as f: f.truncate(1 << 40)\n",
        **QUICK,
    )
    assert execution.outcome is Outcome.COMPLETED
    long_name = next(name for name in bench.sink.files if name.startswith("nnn"))
    assert len(long_name) == 120
    assert bench.sink.files.keys() == {"d/in", "a%0Ab%1B[31m", "%FF%FE", "private", long_name}
    skipped = "\n".join(execution.artifacts_skipped)
    for reason in ("link: not a regular file", "fifo: not a regular file", "sparse: over the size limit"):
        assert reason in skipped


def test_forged_frames_on_every_descriptor_do_not_reach_the_host(bench: Bench) -> None:
    execution = bench.run(
        "import os, struct\n"
        'forged = struct.pack(">cI", b"X", 2) + b"{}"\n'
        "for fd in range(64):\n"
        "    try: os.write(fd, forged)\n"
        "    except OSError: pass\n"
        "raise SystemExit(3)\n",
        **QUICK,
    )
    assert (execution.outcome, execution.returncode) == (Outcome.FAILED, 3)


def test_a_denied_request_starts_nothing_and_names_its_rule(bench: Bench) -> None:
    execution = bench.run("print('ran')", wall="10m")
    assert execution.outcome is Outcome.DENIED
    assert execution.started_at is None and execution.stdout == ""
    assert [record["event"] for record in bench.audit.records()] == ["decision", "end"]
    assert "request.wall" in json.dumps(list(bench.audit.records()))


def test_a_requirement_that_the_sandbox_does_not_hold_is_denied_and_one_that_it_holds_is_not(bench: Bench) -> None:
    bench.policy = load_policy("strict")

    def outcome(requirement: str) -> Outcome:
        experiment = Experiment(code="print(1)", requirements=(requirement,))
        request = Request(limits=PartialLimits.model_validate(QUICK))
        return bench.executor.run(experiment, bench.policy, request, bench.sink).outcome

    assert outcome("left-pad>=1") is Outcome.DENIED
    assert outcome("numpy>=1.0") is Outcome.COMPLETED
    assert outcome("numpy>=99") is Outcome.DENIED


def test_the_audit_log_tells_decision_start_limit_and_end_of_each_run(bench: Bench) -> None:
    execution = bench.run("import time; time.sleep(30)", wall="1s")
    records = list(bench.audit.records())
    assert [record["event"] for record in records] == ["decision", "start", "limit", "end"]
    assert {record["execution"] for record in records} == {execution.execution_id}
    assert (execution.audit.first, execution.audit.last) == (0, 3)
    assert records[0]["requested"] == {"wall": "1s"}
    assert records[0]["effective"]["memory"] == "4GiB"
    assert records[1]["observed"]["memory"] == 4 << 30
    assert records[3]["outcome"] == "timeout"


def test_the_same_seed_reaches_the_experiment_and_its_hashes(bench: Bench) -> None:
    code = "import os; print(os.environ['LAB_SEED'], hash('x'))"

    def run(seed: int) -> str:
        request = Request(limits=PartialLimits.model_validate(QUICK))
        return bench.executor.run(Experiment(code=code, seed=seed), bench.policy, request, bench.sink).stdout

    assert run(7) == run(7) != run(8)


def test_records_that_make_no_sense_are_counted_and_kept_out(bench: Bench) -> None:
    execution = bench.run(
        "import os\n"
        "fd = int(os.environ['LAB_CHANNEL_FD'])\n"
        "os.write(fd, b'not json\\n[]\\n{\"type\": \"metric\"}\\n' + b'x' * 70000 + b'\\n')\n"
        'os.write(fd, b\'{"type": "metric", "values": {"ok": 1}}\\n\')\n',
        **QUICK,
    )
    assert (execution.metrics_total, execution.metrics_rejected) == (1, 4)


def test_lab_compare_runs_in_the_container_and_its_records_come_back(bench: Bench) -> None:
    execution = bench.run(
        "import lab\n"
        "def train(arm, seed): return {'val_loss': seed + (arm == 'b')}\n"
        "lab.compare(train, ['a', 'b'], seeds=[0, 1, 2])\n",
        **QUICK,
    )
    assert execution.outcome is Outcome.COMPLETED, execution.stderr
    assert [type(record) for record in execution.metrics].count(PlanRecord) == 1
    runs = [record for record in execution.metrics if isinstance(record, RunRecord)]
    assert {(run.arm, run.seed) for run in runs} == {(arm, seed) for arm in "ab" for seed in range(3)}


def test_torch_trains_inside(bench: Bench) -> None:
    execution = bench.run(
        "import torch, numpy, sklearn, ml_utils\n"
        "loader = ml_utils.create_synthetic_mnist(200)\n"
        "model = ml_utils.SimpleMLP()\n"
        "print(sorted(ml_utils.train_simple_classifier(model, loader, num_epochs=1)))\n",
        wall="60s",
    )
    assert execution.outcome is Outcome.COMPLETED, execution.stderr
    assert execution.stdout.splitlines()[-1] == "['epoch_losses', 'final_loss', 'training_time']"


# ---- what happens around a run ----

OWNER_THAT_DIES = """
import os, sys
from pathlib import Path
from executor.backends.docker import DockerBackend
from executor.backends.oci import OciBackend
from executor.executor import Executor
from executor.experiment import Experiment
from policies.audit import AuditLog
from policies.decision import Request
from policies.model import load_policy
from policies.state import cache_dir

class Sink:
    def log(self, stream, data):
        os.kill(os.getpid(), 9)

state = Path(os.environ["LABSANDBOX_STATE_DIR"])
backend = OciBackend(state, cache_dir()) if sys.argv[1] == "oci" else DockerBackend(sys.argv[2])
Executor(backend, AuditLog(state / "audit.jsonl")).run(
    Experiment(code="import time; print('up', flush=True); time.sleep(100)"), load_policy("default"), Request(), Sink())
"""


def test_a_killed_owners_container_is_swept_at_the_next_start(bench: Bench, cpu_image: str) -> None:
    owner = subprocess.run([sys.executable, "-c", OWNER_THAT_DIES, bench.backend.name, cpu_image], timeout=60)
    assert owner.returncode == -9
    removed = bench.executor.sweep()
    assert len(removed) == 1
    assert bench.executor.sweep() == []
    assert [record["event"] for record in bench.audit.records()][-1] == "sweep"


def test_the_sweep_leaves_a_living_owners_and_another_users_containers_alone() -> None:
    mine = Owner.this_process(lifetime=100)
    assert not mine.abandoned()
    read = Owner.from_labels(mine.labels())
    assert read == mine
    dead = {**mine.labels(), f"{PREFIX}pid": "4194300"}
    assert Owner.from_labels(dead).abandoned()  # type: ignore[union-attr]
    reused = {**mine.labels(), f"{PREFIX}started": str(mine.started - 1000)}
    assert Owner.from_labels(reused).abandoned()  # type: ignore[union-attr]
    late = {**mine.labels(), f"{PREFIX}deadline": str(time.time() - 1)}
    assert Owner.from_labels(late).abandoned()  # type: ignore[union-attr]
    theirs = {**dead, f"{PREFIX}uid": str(os.getuid() + 1)}
    assert not Owner.from_labels(theirs).abandoned()  # type: ignore[union-attr]
    elsewhere = {**dead, f"{PREFIX}boot": "another machine"}
    assert not Owner.from_labels(elsewhere).abandoned()  # type: ignore[union-attr]
    assert Owner.from_labels({"other": "labels"}) is None


def test_a_container_that_dies_under_the_run_is_infrastructure_never_the_experiments_fault(
    own_state: Path, cpu_image: str
) -> None:
    backend = DockerBackend(cpu_image)
    audit = AuditLog(own_state / "audit.jsonl")

    class Killer:
        killed = False

        def log(self, stream: str, data: bytes) -> None:
            if self.killed:
                return
            self.killed = True
            container = next(record for record in audit.records() if record["event"] == "start")["container"]
            engine_client().api.kill(container, "SIGKILL")

    experiment = Experiment(code="import time; print('up', flush=True); time.sleep(60)")
    execution = Executor(backend, audit).run(experiment, load_policy("default"), Request(), Killer())  # type: ignore[arg-type]
    assert execution.outcome is Outcome.INFRASTRUCTURE
    assert "container ended before" in execution.message
    assert execution.returncode is None


def test_a_full_disk_on_the_host_ends_the_run_as_infrastructure(bench: Bench) -> None:
    class Full:
        def log(self, stream: str, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    experiment = Experiment(code="import time; print('x', flush=True); time.sleep(60)")
    execution = bench.executor.run(experiment, bench.policy, Request(), Full())  # type: ignore[arg-type]
    assert execution.outcome is Outcome.INFRASTRUCTURE
    assert "No space left" in execution.message


def test_an_image_that_is_not_there_is_said_before_anything_starts(own_state: Path, cpu_image: str) -> None:
    executor = Executor(DockerBackend("labsandbox-none:1"), AuditLog(own_state / "audit.jsonl"))
    with pytest.raises(SandboxUnavailable, match="no image labsandbox-none:1"):
        executor.run(Experiment(code=""), load_policy("default"), Request(), None)  # type: ignore[arg-type]


def test_a_runtime_that_is_not_there_is_said_with_those_that_are(own_state: Path, cpu_image: str) -> None:
    with pytest.raises(SandboxUnavailable, match="runc"):
        DockerBackend(cpu_image, runtime="nonesuch")
    with pytest.raises(SandboxUnavailable, match="runc"):
        OciBackend(own_state, cache_dir(), runtime="nonesuch")


def test_of_an_environment_of_the_users_no_root_of_the_host_gets_into_a_container(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").symlink_to("/usr/bin/python3")
    settings = tmp_path / "pyvenv.cfg"
    if Path("/bin").is_symlink():  # a merged /usr
        settings.write_text("home = /bin\nversion = 3.11.2\n")
        assert users_environment(tmp_path).base == Path("/usr")
    settings.write_text("home = /nowhere\n")
    with pytest.raises(BuildError, match="whole file system"):
        users_environment(tmp_path)
    with pytest.raises(BuildError, match="whole file system"):
        users_environment(Path("/"))


def test_an_engine_that_is_not_there_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(SandboxUnavailable, match="no Docker engine answers") as told:
        DockerBackend("x")
    assert "\n" not in str(told.value)


def test_a_gpu_that_was_asked_for_and_cannot_be_given_is_never_a_cpu_run(bench: Bench) -> None:
    with pytest.raises(SandboxUnavailable, match="GPU"):
        bench.run("print('ran')", gpus=1)
    assert [record["event"] for record in bench.audit.records()] == ["decision", "end"]


@pytest.mark.parametrize("name", ["memory", "cpus", "pids", "workspace", "open_files", "network"])
def test_a_container_that_was_given_more_than_was_decided_is_refused(name: str) -> None:
    everything = Capabilities(backend="t", runtime="t", enforces=frozenset({*Limits.model_fields, "network"}))
    decision = decide(Request(), load_policy("default"), everything)
    observed = {key: limit.effective for key, limit in table(decision, {}, {}).items()}
    check(table(decision, {}, observed), {**observed, "swap": 0.0}, {})
    observed["swap"] = 0.0
    looser = {**observed, name: observed[name] * 1.5 + 1}
    with pytest.raises(InfrastructureError, match=name):
        check(table(decision, {}, looser), looser, {})
    missing = {key: value for key, value in observed.items() if key != name}
    with pytest.raises(InfrastructureError, match="could not be read back"):
        check(table(decision, {}, missing), missing, {})
    with pytest.raises(InfrastructureError, match="swap"):
        check(table(decision, {}, observed), {**observed, "swap": 1.0}, {})
    with pytest.raises(InfrastructureError, match="swap"):
        check(table(decision, {}, observed), {key: value for key, value in observed.items() if key != "swap"}, {})
