"""Promises of a service of warm containers: a command's run takes one, one process serves, and nothing of it stays."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from executor.backends.oci import OciBackend
from orchestrator.serving import serving
from policies.audit import AuditLog
from policies.state import cache_dir, runtime_dir
from tests.test_cli import labsandbox

QUICK = ("--backend", "oci", "--json")


@contextmanager
def serve() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "orchestrator", "serve"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "serving" in process.stderr.readline()
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def execute(code: str, results: Path) -> dict[str, Any]:
    done = labsandbox("exec", "-", *QUICK, "--results", str(results), text=code)
    assert done.returncode == 0, done.stderr
    execution: dict[str, Any] = json.loads(done.stdout)
    return execution


def wait_for(count: int, state: Path) -> None:
    """Until nothing is there of this state's but so many containers that wait. The engine has others' as well."""
    deadline = time.monotonic() + 120
    while [row["waiting"] for row in listed(state)] != [True] * count:
        assert time.monotonic() < deadline, "no container came to wait"
        time.sleep(0.1)


def listed(state: Path) -> list[dict[str, Any]]:
    mine = {record["execution"] for record in AuditLog(state / "audit.jsonl").records() if "execution" in record}
    return [row for row in json.loads(labsandbox("ps", "--json").stdout) if row["execution"] in mine]


def records(state: Path, event: str) -> list[dict[str, Any]]:
    return [record for record in AuditLog(state / "audit.jsonl").records() if record["event"] == event]


def test_a_commands_run_takes_a_container_that_waits_and_leaves_the_service_as_it_was(
    own_state: Path, tmp_path: Path
) -> None:
    with serve() as process:
        first = execute("print(1)", tmp_path)
        wait_for(2, own_state)
        second = execute("print(2)", tmp_path)
        wait_for(2, own_state)
        made = {record["execution"] for record in records(own_state, "warm")}
        assert first["execution_id"] not in made and second["execution_id"] in made
        assert second["stdout"] == "2\n" and second["timings"]["start_s"] < first["timings"]["start_s"]
        assert "one process of a user is enough" in labsandbox("serve").stderr
        process.terminate()
        assert process.wait(20) == 130
    assert OciBackend(own_state, cache_dir()).found() == []
    assert execute("print(3)", tmp_path)["stdout"] == "3\n", "without a service, a run makes its own"


def test_a_killed_service_leaves_nothing_after_the_next_command(own_state: Path, tmp_path: Path) -> None:
    with serve() as process:
        execute("print(1)", tmp_path)
        wait_for(2, own_state)
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.3)
    assert execute("print(1)", tmp_path)["stdout"] == "1\n"
    assert OciBackend(own_state, cache_dir()).found() == []
    with serve():
        pass  # what the killed one left is in nobody's way


def test_a_run_that_took_a_container_outlasts_the_service_that_made_it(
    own_state: Path, tmp_path: Path, cpu_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("exec", "-", "--backend", "docker", "--json", "--results", str(tmp_path))
    with serve() as process:
        assert labsandbox(*arguments, text="print(1)").returncode == 0
        wait_for(2, own_state)
        command = [sys.executable, "-m", "orchestrator", *arguments]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdin is not None and running.stdout is not None
            running.stdin.write("import time; time.sleep(6); print('to the end')")
            running.stdin.close()
            while len(records(own_state, "start")) < 2:
                time.sleep(0.05)
            process.kill()
            process.wait()
            for state in (own_state, tmp_path / "another"):  # both sweep the same engine
                monkeypatch.setenv("LABSANDBOX_STATE_DIR", str(state))
                assert labsandbox(*arguments, text="print(3)").returncode == 0
            execution = json.loads(running.stdout.read())
    assert execution["stdout"] == "to the end\n"
    assert execution["execution_id"] in {record["execution"] for record in records(own_state, "warm")}
    assert not (runtime_dir() / "adopted" / execution["execution_id"]).exists()


def test_a_command_of_many_runs_serves_itself(own_state: Path, tmp_path: Path) -> None:
    (tmp_path / "e.py").write_text('import lab\nlab.log(loss=lab.params(x=("log", 0.1, 1.0)).x)\n')
    arguments = ("--trials", "4", "--confirm", "0", "--backend", "oci", "--results", str(tmp_path / "results"))
    done = labsandbox("sweep", "--file", str(tmp_path / "e.py"), *arguments)
    assert done.returncode == 0, done.stderr
    started = [record["execution"] for record in records(own_state, "start")]
    waited = {record["execution"] for record in records(own_state, "warm")}
    assert len(set(started)) == len(started) >= 4 and len(waited & set(started)) >= 2
    assert OciBackend(own_state, cache_dir()).found() == []


def test_no_other_user_reaches_it(own_state: Path) -> None:
    with serving() as pool:
        assert pool is not None
        assert (own_state / "serve.sock").stat().st_mode & 0o777 == 0o600
        with serving() as second:
            assert second is None


@pytest.mark.parametrize(
    "said", [b"", b"{}\n", b"nonsense\n", b'{"take": "x"}\n', b'{"keep": {}}\n', b"\xff" * 2_000_000]
)
def test_nonsense_on_the_socket_harms_nobody(own_state: Path, said: bytes, tmp_path: Path) -> None:
    import socket

    with serving():
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(own_state / "serve.sock"))
            try:
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                pass
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(own_state / "serve.sock"))
            connection.sendall(b'{"take": "nothing of the kind"}\n')
            assert connection.recv(100) == b"{}\n"
