"""A dashboard on loopback for the tests: a real server, and controls written by hand for a folder of made-up sprints."""

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn

from executor.gpus.survey import Survey
from results.dashboard.app import create_app
from results.dashboard.controls import Process, Refused, Wish
from results.dashboard.guard import Access
from results.store import Store

NO_GPUS = Survey("", "", "there is no NVIDIA driver on this machine", (), ())
HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>'\"&{{7*7}}"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000000301010"
    "0c9fe92ef0000000049454e44ae426082"
)


@dataclass
class Controlled:
    """Controls that do what the test says."""

    at_work: dict[str, Process] = field(default_factory=dict)
    wishes: list[Wish] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    refuse: str = ""
    uses: dict[str, float] = field(default_factory=dict)

    def running(self) -> Mapping[str, Process]:
        return dict(self.at_work)

    def start(self, wish: Wish) -> str:
        if self.refuse:
            raise Refused(self.refuse)
        self.wishes.append(wish)
        return "sprint_20260101_000000"

    def stop(self, sprint: str) -> None:
        if self.refuse:
            raise Refused(self.refuse)
        self.stopped.append(sprint)

    def sample(self, sprint: str) -> Mapping[str, float] | None:
        return self.uses or None

    def last_words(self, sprint: str) -> str:
        return ""


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Dashboard:
    """One that is being served."""

    url: str
    port: int
    store: Store
    lab: Controlled
    audit: Path
    access: Access

    def get(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own; the path is sent as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, path: str, fields: str, **headers: str) -> Answer:
        """A form that a page of ours sends, with its key, unless `headers` say otherwise."""
        sent = {
            "Content_Type": "application/x-www-form-urlencoded",
            "Origin": self.url,
            "Sec_Fetch_Site": "same-origin",
            **headers,
        }
        key = f"form_key={self.access.form_key}&" if "form_key=" not in fields else ""
        return self.get(path, "POST", f"{key}{fields}".encode(), **sent)


@contextmanager
def dashboard(
    root: Path, lab: Any = None, access: Access | None = None, gpus: Callable[[], Survey] = lambda: NO_GPUS
) -> Iterator[Dashboard]:
    """Serves the results folder `root`."""
    lab, access = lab or Controlled(), access or Access()
    audit = root.parent / "audit.jsonl"
    app = create_app(Store(root), lab, audit=audit, gpus=gpus, access=access)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1, proxy_headers=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = listener.getsockname()[1]
    try:
        yield Dashboard(f"http://127.0.0.1:{port}", port, Store(root), lab, audit, access)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


def made_sprint(root: Path, number: int = 0, **changes: Any) -> Path:
    """A sprint that has ended, as labsandbox leaves one; `changes` replace parts of its summary."""
    when = datetime(2026, 1, 1) + timedelta(minutes=number)
    folder = Store(root).new("sprint", when)
    folder.close()
    word = ("better", "no detectable difference", "inconclusive")[number % 3]
    arms = [
        {"name": name, "ok": 8, "failed": 0, "diverged": 0, "skipped": 0, "missing": 0, "mean": 2.5 - i / 10, "sd": 0.02,
         "config": {"lr": 0.01}, "at_edge": [], "trials": 5, "trials_skipped": 0, "seconds": 0.9}
        for i, name in enumerate(("AdamW", "Lion"))
    ]  # fmt: skip
    limit = {"requested": None, "effective": 4 << 30, "enforced_by": "cgroup", "observed": 4 << 30}
    samples = [{"t": float(t), "memory_bytes": 1e8 + t, "cpu_s": 0.9 * t} for t in range(30)]
    numbers = {"arms": arms, "contrasts": [], "warnings": [], "verdict": {"word": word}}
    execution = {
        "execution_id": f"{number:016x}", "outcome": ("completed", "failed")[number % 5 == 4], "message": "completed",
        "stdout": "step 1\n" * 500, "stderr": "", "success": True, "returncode": 0,
        "timings": {"run_s": 29.0}, "limits": {"memory": limit},
        "usage": {"cpu_s": 27.9, "peak_memory_bytes": 293000000, "samples": samples},
        "policy": {"name": "default", "sha256": "ab" * 32}, "image": {"reference": "environment:cpu", "digest": "sha256:12"},
        "backend": "oci", "runtime": "runc", "audit": {"first": 3 * number, "last": 3 * number + 2},
    }  # fmt: skip
    summary = {
        "schema": "labsandbox.sprint/1", "sprint_id": folder.id.removeprefix("sprint_"),
        "goal": f"Compare AdamW and Lion, question {number}", "seed": number, "agents": "local", "command": "labsandbox run …",
        "follows": None, "start_time": f"{when.isoformat()}Z", "end_time": f"{when.isoformat()}Z",
        "phases": {
            "discussion": {"individual_responses": {"ResearcherAgent": "A view."}, "action_plan": "A plan."},
            "implementation": {"code": f"print({number})\n", "execution": execution},
            "validation": {"verdict": f"Lion is better by {number}", "numbers": numbers, "analysis": "Fine."},
        },
        "verdict": f"Lion is better by {number}", **changes,
    }  # fmt: skip
    folder.write_json("sprint_summary.json", summary)
    steps = [{"step": "sprint", "result": {"goal": summary["goal"]}, "time": f"{when.isoformat()}Z", "seconds": 0.0}]
    steps += [
        {"step": f"{name}.{what}", "result": "", "time": f"{when.isoformat()}Z", "seconds": 0.0}
        for name in ("discussion", "implementation", "validation")
        for what in ("begin", "end")
    ]
    steps += [{"step": "end", "result": "", "time": f"{when.isoformat()}Z", "seconds": 0.0}]
    (folder.path / "events.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (folder.path / "experiment.py").write_text(f"print({number})\n")
    return folder.path


def metric(step: int, t: float = 0.0, arm: str = "Lion", **values: float | str) -> bytes:
    """A line of metrics.jsonl."""
    record = {"type": "metric", "t": t, "step": step, "arm": arm, "seed": 0, "phase": "confirm", "values": values}
    return json.dumps(record).encode() + b"\n"


def hrefs(page: str) -> list[str]:
    """Every address that a page leads to."""
    return re.findall(r'(?:href|src)="([^"]*)"', page)


def swept(results: Path, said: str = "lr") -> Path:
    """A sweep that has ended, as labsandbox leaves one."""
    folder = Store(results).new("sweep").path
    (folder / "sweep.json").write_text(json.dumps({"goal": f"find {said}", "trials": 2, "sampler": "tpe"}))
    trials = [{"number": i, "state": "complete", "params": {said: 0.1 * i}, "value": 2.0 - i} for i in range(2)]
    verdict = {"word": "better", "text": f"trial 1 is better {said}"}
    arms = [{"name": said, "ok": 6, "mean": 1.0, "sd": 0.1}]
    summary = {
        "metric": "loss", "trials": trials, "best": trials[1], "importances": {said: 1.0}, "note": said,
        "space": {said: {"kind": said}}, "confirmation": {"numbers": {"verdict": verdict, "arms": arms}},
    }  # fmt: skip
    (folder / "sweep_summary.json").write_text(json.dumps(summary))
    for part in ("trials/0", "trials/1", "confirm/best-1000"):
        executed(folder / part, said)
        (folder / part / "params.json").write_text(json.dumps({said: said}))
    (folder / "history.png").write_bytes(PNG)
    return folder


def executed(folder: Path, said: str = "fine", outcome: str = "completed") -> None:
    """What one execution leaves in a folder."""
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    (folder / "artifacts/plot.png").write_bytes(PNG)
    (folder / "experiment.py").write_text(f"# {said}\nprint(1)\n")
    (folder / "stdout.log").write_text(f"printed {said}\n")
    (folder / "metrics.jsonl").write_bytes(metric(0, loss=2.0) + metric(1, loss=1.0))
    (folder / "execution.json").write_text(json.dumps({"outcome": outcome, "message": said, "usage": {"cpu_s": 3.5}}))
