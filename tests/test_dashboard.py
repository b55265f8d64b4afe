"""Promises of the dashboard over HTTP: who is answered, that nothing hostile becomes markup or leads out, and how fast."""

import json
import os
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor.gpus.choice import Wanted
from executor.gpus.lending import Gpus
from executor.gpus.survey import survey
from executor.ownership import start_ticks
from orchestrator.service_controls import ServiceControls, on_gpus
from policies.audit import AuditLog
from results.dashboard import files
from results.dashboard.audit_view import audit_page
from results.dashboard.controls import Process, Refused, Wish
from results.dashboard.growing import MOST_POINTS, Curve, Growing
from results.dashboard.guard import PAGE_POLICY, Access
from results.dashboard.listing import Asked, Listing
from results.dashboard.peer import is_ours
from results.dashboard.tails import Lines, Tail
from results.dashboard.view import sprint_view
from results.store import Store
from tests.dashboards import (
    HOSTILE,
    PNG,
    Controlled,
    Dashboard,
    dashboard,
    executed,
    hrefs,
    made_sprint,
    metric,
    swept,
)  # fmt: skip
from tests.faulty_server import CODE, PROGRAM, answer, faulty_service
from tests.nvml_machines import Gpu, Recorded, nvml, uuid
from tests.test_cli import COMMAND, labsandbox, told

PAGES = ("/", "/policies", "/audit", "/gpus", "/start", "/compare")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


# ---- who is answered ----


def test_every_answer_has_the_strict_policy_and_no_page_has_a_script_or_a_style_of_its_own(results: Path) -> None:
    sprint = made_sprint(results).name
    made_sprint(results, 1)
    with dashboard(results) as served:
        addresses = [*PAGES, f"/sprints/{sprint}", f"/compare?ids={sprint}&ids=sprint_20260101_000100", "/nothing-here"]
        for path in addresses:
            page = served.get(path)
            assert page.headers["content-security-policy"] == PAGE_POLICY, path
            assert page.headers["x-content-type-options"] == "nosniff"
            assert page.headers["cache-control"] == "no-store"
            scripts = re.findall(r"<script\b[^>]*>(.*?)</script>", page.text, re.DOTALL)
            assert not any(scripts) and "<style" not in page.text
            assert not re.search(
                r"\s(on\w+|style)\s*=", re.sub(r"<textarea.*?</textarea>|data-\w+='[^']*'", "", page.text)
            )
    assert "'unsafe" not in PAGE_POLICY and PAGE_POLICY.startswith("default-src 'none';")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("localhost:9999", 200), ("LOCALHOST", 200), ("[::1]:1", 200),
        ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost@evil.example", 403), ("", 403),
        ("localhost/x", 403), ("localhost:x", 403),
    ],
)  # fmt: skip
def test_a_request_for_another_host_is_refused(results: Path, host: str, status: int) -> None:
    with dashboard(results) as served:
        assert served.get("/", Host=host).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec_Fetch_Site": "none"}, 200),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}, 200),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "script"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_what_a_page_of_another_site_asks_for_is_refused(results: Path, headers: dict[str, str], status: int) -> None:
    with dashboard(results) as served:
        assert served.get("/", **headers).status == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "multipart/form-data; boundary=x"},
    ],
)
def test_a_form_of_another_site_changes_nothing(results: Path, headers: dict[str, str]) -> None:
    sprint = made_sprint(results).name
    with dashboard(results) as served:
        for path in ("/start", f"/sprints/{sprint}/stop"):
            assert served.post(path, "goal=x&policy=default&seed=0", **headers).status in (403, 415)
        assert not served.lab.wishes and not served.lab.stopped


def test_a_form_without_this_processs_key_changes_nothing_and_a_get_never_does(results: Path) -> None:
    sprint = made_sprint(results).name
    with dashboard(results) as served:
        for key in ("", "x", "\xff", served.access.form_key[:-1]):
            assert served.post("/start", f"form_key={quote(key)}&goal=x&policy=default").status == 403
        for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
            assert served.get(f"/sprints/{sprint}/stop", method).status == 405
        bare = served.get(
            "/start",
            "POST",
            b"form_key=" + served.access.form_key.encode(),
            Content_Type="application/x-www-form-urlencoded",
        )
        assert bare.status == 403, "who sends neither Origin nor Sec-Fetch-Site is no page of ours"
        assert served.post("/start", "goal=" + "x" * 70_000).status == 413
        assert not served.lab.wishes and not served.lab.stopped


def test_a_form_of_our_own_starts_and_stops(results: Path) -> None:
    sprint = made_sprint(results).name
    with dashboard(results) as served:
        key = re.search(r'name="form_key" value="([^"]+)"', served.get("/start").text)
        assert key and key[1] == served.access.form_key
        begun = served.post("/start", "goal=Compare+a+and+b&policy=strict&seed=7&wall=20s&cpus=&pids=64")
        assert begun.status == 303 and begun.headers["location"] == "/sprints/sprint_20260101_000000"
        assert served.lab.wishes == [Wish("Compare a and b", "strict", "7", {"wall": "20s", "pids": "64"})]
        assert served.post(f"/sprints/{sprint}/stop", "").status == 303 and served.lab.stopped == [sprint]


def test_a_policy_is_one_of_the_boxs_and_never_a_file(results: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose.yaml"
    loose.write_text((Path(files.__file__).parents[2] / "policies/default.yaml").read_text())
    with dashboard(results) as served:
        for policy in (str(loose), "../policies/default", "", "unknown"):
            assert served.post("/start", f"goal=x&policy={quote(policy)}&seed=0").status == 400
        assert not served.lab.wishes


def test_what_is_refused_is_said_on_the_form_which_keeps_what_was_typed(results: Path) -> None:
    with dashboard(results, Controlled(refuse="denied: <b>more memory</b> than allowed")) as served:
        page = served.post("/start", f"goal={quote(HOSTILE)}&policy=default&seed=1")
        assert page.status == 400
        assert "denied: &lt;b&gt;more memory&lt;/b&gt; than allowed" in page.text
        assert "&lt;script&gt;" in page.text and "<script>document" not in page.text


def test_elsewhere_than_on_loopback_nothing_is_answered_without_the_token(results: Path) -> None:
    with dashboard(results, access=Access(token="s3cret")) as served:
        for path in (*PAGES, "/static/chart.js", "/?token=wrong", "/?token="):
            assert served.get(path).status == 401, path
        first = served.get("/audit?token=s3cret&before=5")
        assert first.status == 303 and first.headers["location"] == "/audit?before=5"
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        pair = cookie.split(";")[0]
        assert served.get("/", Cookie=pair).status == 200
        assert served.get("/", Cookie=f"{pair[:-1]}x").status == 401
        assert served.get("//evil.example/?token=s3cret").headers["location"] == "/evil.example/"
        assert served.post("/start?token=s3cret", "goal=x&policy=default").status == 401


def test_on_loopback_only_this_users_processes_are_answered(results: Path) -> None:
    """Root may be another user for a moment, so this is tried for real."""
    ask = "import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1]).read().decode()[:15])"
    with dashboard(results) as served:
        mine = subprocess.run([sys.executable, "-c", ask, served.url], capture_output=True, text=True)
        assert mine.stdout.startswith("<!doctype html>"), mine.stderr
        other = subprocess.run(
            ["/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable, "-c", ask, served.url],
            capture_output=True, text=True, user=65534, group=65534, extra_groups=[], cwd="/",
        )  # fmt: skip
        assert other.stdout == "" and "403" in other.stderr, other.stderr
        assert served.get("/", X_Forwarded_For="10.0.0.1").status == 200, "headers say nothing about who connects"


def test_a_closed_socket_is_nobodys(results: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, peer = server.accept()
        assert is_ours(peer, accepted.getsockname())
        client.close()
        assert not is_ours(peer, accepted.getsockname())
        accepted.close()
    assert not is_ours(("127.0.0.1", 1), ("127.0.0.1", 2))


# ---- nothing hostile is markup ----


def test_hostile_text_is_escaped_wherever_it_stands(results: Path) -> None:
    where = {
        "goal": HOSTILE, "verdict": HOSTILE, "agents": HOSTILE, "command": HOSTILE, "seed": HOSTILE, "follows": HOSTILE,
        "phases": {
            "discussion": {"individual_responses": {HOSTILE: HOSTILE}, "action_plan": HOSTILE, "error": HOSTILE},
            "implementation": {
                "code": HOSTILE,
                "execution": {
                    "outcome": HOSTILE, "message": HOSTILE, "limits": {HOSTILE: {"effective": HOSTILE, "enforced_by": HOSTILE}},
                    "usage": {"samples": [{HOSTILE: 1.0}], "gpus": [{"name": HOSTILE, "uuid": HOSTILE}]},
                    "policy": {"name": HOSTILE}, "image": {"reference": HOSTILE}, "packages": [HOSTILE], "timings": {HOSTILE: 1},
                },
            },
            "self_healing": {"attempts": [{"attempt": HOSTILE, "failure": HOSTILE, "decision": HOSTILE}]},
            "validation": {
                "analysis": HOSTILE, "recommendation": {"goal": HOSTILE},
                "numbers": {
                    "arms": [{"name": HOSTILE, "config": {HOSTILE: HOSTILE}}], "warnings": [HOSTILE],
                    "contrasts": [{"arm": HOSTILE, "baseline": HOSTILE}], "verdict": {"word": HOSTILE},
                },
            },
        },
    }  # fmt: skip
    folder, other = made_sprint(results, 0, **where), made_sprint(results, 1, **where)
    for name in ("stdout.log", "stderr.log", "experiment.py"):
        (folder / name).write_text(HOSTILE)
    (folder / "events.jsonl").write_text(
        json.dumps({"step": HOSTILE, "error": {"text": HOSTILE}, "time": HOSTILE}) + "\n"
    )
    artifact = folder / "artifacts" / HOSTILE.replace("/", "_")
    artifact.write_bytes(PNG)
    AuditLog(results.parent / "audit.jsonl").append("decision", sprint=HOSTILE, allow=True, policy={"name": HOSTILE})
    with dashboard(results) as served:
        paths = [
            "/",
            f"/sprints/{folder.name}",
            f"/compare?ids={folder.name},{other.name}",
            "/audit",
            f"/?q={quote(HOSTILE)}",
        ]
        paths += [f"/audit?sprint={quote(HOSTILE)}", f"/start?goal={quote(HOSTILE)}", f"/sprints/{quote(HOSTILE)}"]
        for path in paths:
            page = served.get(path)
            assert page.status in (200, 404), path
            for sign in ("<img src=x", "<script>document", 'onerror="', "49}}"):
                assert sign not in page.text, (path, sign)
            assert page.status == 404 or "document.title" in page.text
        data = served.get(f"/sprints/{folder.name}/curves.json")
        assert (
            data.headers["content-type"] == "application/json" and data.headers["x-content-type-options"] == "nosniff"
        )


def test_text_that_turns_or_hides_what_is_around_it_is_shown_as_what_it_is(results: Path) -> None:
    made_sprint(results, 0, goal="good\u202eevil\u200b\x1b[2J\x00")
    with dashboard(results) as served:
        page = served.get("/").text
        assert "good\\u202eevil\\u200b\\x1b[2J\\x00" in page


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
PARTS = ("phases.discussion", "phases.implementation.execution.limits", "phases.implementation.execution.usage",
         "phases.implementation.execution.image", "phases.validation.numbers", "phases.validation.numbers.arms",
         "phases.validation.numbers.verdict", "phases.self_healing.attempts", "phases", "goal", "start_time")  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(PARTS), JSON, max_size=4))
def test_a_summary_of_any_shape_has_a_view(parts: dict[str, Any]) -> None:
    summary: dict[str, Any] = {}
    for path, value in sorted(parts.items()):
        here: Any = summary
        *way, last = path.split(".")
        for name in way:
            here = here.setdefault(name, {}) if isinstance(here, dict) else {}
        if isinstance(here, dict):
            here[last] = value
    sprint_view(summary)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"phases": 3, "goal": [1]}', "null", "[" * 100_000, '{"goal": ' + "9" * 5000 + "}"]
)
def test_a_damaged_sprint_spoils_neither_its_page_nor_the_list(results: Path, text: str) -> None:
    folder = made_sprint(results)
    good = made_sprint(results, 1).name
    (folder / "sprint_summary.json").write_text(text)
    (folder / "events.jsonl").write_bytes(b"\xff\x00\n{}\n[1]\n" + text.encode() + b"\n")
    (folder / "metrics.jsonl").write_bytes(
        b'{"type":"metric"}\n"metric"\n{"metric" \n' + metric(1, loss=1.0) + b'{"type":"metric",'
    )
    with dashboard(results) as served:
        assert good in served.get("/").text
        assert served.get(f"/sprints/{folder.name}").status == 200
        assert len(json.loads(served.get(f"/sprints/{folder.name}/curves.json").body)["curves"]) == 1


# ---- artifacts ----


def test_only_real_pictures_are_shown_and_all_else_is_a_download(results: Path) -> None:
    folder = made_sprint(results)
    page = b"<script>document.title='run'</script>"
    kept = {"a b/plot.png": PNG, "lie.png": page, "x.svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='x()'/>",
            "page.html": page, "model.pt": b"\x80\x02", "pic.gif": b"GIF89a" + page, "x.webp": b"RIFF\0\0\0\0WEBP"}  # fmt: skip
    for name, data in kept.items():
        (folder / "artifacts" / name).parent.mkdir(exist_ok=True)
        (folder / "artifacts" / name).write_bytes(data)
    with dashboard(results) as served:
        base = f"/sprints/{folder.name}"
        shown = {path for path in hrefs(served.get(base).text) if "/picture/" in path}
        assert shown == {f"{base}/picture/{name}" for name in ("a%20b/plot.png", "pic.gif", "x.webp")}
        for name, data in kept.items():
            picture = served.get(f"{base}/picture/{quote(name)}")
            if f"{base}/picture/{quote(name)}" in shown:
                kind = {"png": "image/png", "gif": "image/gif", "ebp": "image/webp"}[name[-3:]]
                assert picture.status == 200 and picture.headers["content-type"] == kind
            else:
                assert picture.status == 404
            file = served.get(f"{base}/artifact/{quote(name)}")
            assert file.body == data
            assert file.headers["content-type"] == "application/octet-stream"
            assert file.headers["content-disposition"].startswith("attachment; ")
            for one in (picture, file):
                assert one.headers["x-content-type-options"] == "nosniff"
                assert picture.status == 404 or "sandbox" in one.headers["content-security-policy"]


def test_a_report_is_a_page_in_which_nothing_runs(results: Path) -> None:
    folder = made_sprint(results)
    with dashboard(results) as served:
        assert served.get(f"/sprints/{folder.name}/report").status == 404
        (folder / "report.html").write_text("<h1>r</h1>")
        report = served.get(f"/sprints/{folder.name}/report")
        assert report.status == 200 and report.headers["content-type"] == "text/html; charset=utf-8"
        policy = report.headers["content-security-policy"].split("; ")
        assert "sandbox" in policy and "default-src 'none'" in policy and not any("script-src" in one for one in policy)


@pytest.mark.parametrize(
    "name", [b"a\nb.txt", b"\n", b"a\r\n\r\nb", b"%0A%2e", b"?a#b&c=d;e", b"\xff\xfe.bin", b"a\\b", b" "]
)
def test_an_artifact_can_be_had_whatever_it_is_called(results: Path, name: bytes) -> None:
    folder = made_sprint(results)
    (folder / "artifacts/x").mkdir()
    (folder / "artifacts/x" / os.fsdecode(name)).write_bytes(name)
    with dashboard(results) as served:
        (address,) = (one for one in hrefs(served.get(f"/sprints/{folder.name}").text) if "/artifact/" in one)
        got = served.get(address)
        assert got.status == 200 and got.body == name and "\n" not in got.headers["content-disposition"]


@pytest.mark.parametrize("name", ['a"b\x01; filename=evil.exe', "….txt", "x" * 255, ".htaccess", "a;b=c\\.html"])
def test_a_downloads_name_cannot_leave_its_header(results: Path, name: str) -> None:
    folder = made_sprint(results)
    name = name[:80]
    (folder / "artifacts" / name).write_bytes(b"x")
    with dashboard(results) as served:
        got = served.get(f"/sprints/{folder.name}/artifact/{quote(name, safe='')}")
        assert got.status == 200
        assert re.fullmatch(
            r"attachment; filename=\"[A-Za-z0-9_-][A-Za-z0-9._-]*\"; filename\*=UTF-8''[A-Za-z0-9%._~-]+",
            got.headers["content-disposition"],
        )


WAYS_OUT = (
    "../sprint_summary.json", "..%2fsprint_summary.json", "%2e%2e/sprint_summary.json", "/etc/passwd", "%2fetc%2fpasswd",
    "link", "folder/passwd", "pipe", "", ".", "..", "a%00b", "a/../../../secret", "%252e%252e/secret", "..\\secret",
)  # fmt: skip


@pytest.mark.parametrize("name", WAYS_OUT)
def test_no_name_leads_out_of_the_artifacts(results: Path, name: str) -> None:
    folder = made_sprint(results)
    (results.parent / "secret").write_text("secret")
    (folder / "artifacts/link").symlink_to(results.parent / "secret")
    (folder / "artifacts/folder").symlink_to("/etc")
    os.mkfifo(folder / "artifacts/pipe")
    with dashboard(results) as served:
        for kind in ("artifact", "picture", "file"):
            got = served.get(f"/sprints/{folder.name}/{kind}/{name}")
            assert got.status == 404, got.body[:100]
        for path in (
            "/static/../app.py",
            "/static/..%2fapp.py",
            "/sprints/../secret",
            "/sprints/..%2f..%2fetc",
            "/sprints/exec_1",
        ):
            assert served.get(path).status == 404


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_name_is_only_a_regular_file_below_the_folder_is_opened(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir(exist_ok=True)
    (tmp_path / "secret").write_text("s")
    for asked in (name, f"../{name}", f"{name}/../secret"):
        try:
            files.open_below(inside, asked).close()
        except files.NotThere:
            continue
        raise AssertionError(asked)


# ---- the list ----


def test_a_thousand_sprints_answer_in_under_100_ms_at_the_median(results: Path) -> None:
    sprints = [made_sprint(results, number).name for number in range(1000)]
    metrics = b"".join(metric(step, step / 10, arm, loss=1 / (step + 1)) for arm in "ab" for step in range(500))
    for sprint in sprints[:2]:
        (results / sprint / "metrics.jsonl").write_bytes(metrics)
    log = AuditLog(results.parent / "audit.jsonl")
    log.append_all([("decision", {"sprint": sprint, "allow": True}) for sprint in sprints])
    with dashboard(results) as served:
        assert "1000 runs" in served.get("/").text
        for path in (
            "/", "/?page=20", "/?q=question+77", "/?sort=goal", "/?outcome=failed&sort=outcome&order=desc", "/?verdict=better",
            f"/sprints/{sprints[0]}", f"/sprints/{sprints[0]}/curves.json", f"/compare?ids={sprints[0]}&ids={sprints[1]}",
            "/policies", "/audit", f"/audit?sprint={sprints[7]}", "/gpus", "/start",
        ):  # fmt: skip
            times: list[float] = []
            for _ in range(5):
                began = time.perf_counter()
                assert served.get(path).status == 200
                times.append(time.perf_counter() - began)
            assert statistics.median(times) < 0.1, path


def test_the_list_is_searched_filtered_and_sorted(results: Path) -> None:
    for number, goal in enumerate(("b Straße", "a banana", "C cherry")):
        made_sprint(results, number, goal=goal)
    listing = Listing(Store(results))

    def goals(asked: Asked, running: tuple[str, ...] = ()) -> list[str]:
        return [row.goal for row, _ in listing.page(asked, running).rows]

    assert goals(Asked()) == ["C cherry", "a banana", "b Straße"]
    assert goals(Asked(sort="goal", descending=False)) == ["a banana", "b Straße", "C cherry"]
    assert goals(Asked(text="STRASSE")) == ["b Straße"]
    assert goals(Asked(text="inconcl")) == ["C cherry"], "verdicts are searched as well"
    assert goals(Asked(word="inconclusive")) == ["C cherry"]
    assert goals(Asked(outcome="running"), ("sprint_20260101_000100",)) == ["a banana"]
    assert listing.page(Asked(page=99), ()).page == 1


def test_a_sprint_is_read_again_when_it_has_changed_and_only_then(results: Path) -> None:
    folder = made_sprint(results, goal="before")
    listing = Listing(Store(results))
    assert listing.rows()[0].goal == "before"
    row = listing.rows()[0]
    time.sleep(0.6)
    assert listing.rows()[0] is row
    (folder / "sprint_summary.json").write_text('{"goal": "afterwards"}')
    made_sprint(results, 1)
    time.sleep(0.6)
    assert listing.rows()[0].goal == "afterwards" and len(listing.rows()) == 2


def test_a_sprint_that_broke_off_is_listed_with_the_goal_of_its_journal(results: Path) -> None:
    folder = Store(results).new("sprint")
    folder.close()
    (folder.path / "events.jsonl").write_text('{"step": "sprint", "result": {"goal": "asked"}}\n{"step": "begin"}\n')
    (row,) = Listing(Store(results)).rows()
    assert (row.goal, row.outcome) == ("asked", "not finished")


# ---- runs that are not sprints, and parts of runs ----


def test_sweeps_and_single_executions_are_listed_by_kind_and_have_pages(results: Path) -> None:
    sprint, sweep, single = made_sprint(results), swept(results), Store(results).new("exec")
    single.close()
    executed(single.path, "Trains a tiny model.", "timeout")
    with dashboard(results) as served:
        for kind, run in (("sprint", sprint.name), ("sweep", sweep.name), ("exec", single.id)):
            assert set(re.findall(r'href="/sprints/([^"]+)"', served.get(f"/?kind={kind}").text)) == {run}
        page = served.get(f"/sprints/{sweep.name}").text
        assert "trial 1: loss 1 with lr = 0.1" in page and "trial 1 is better lr" in page
        assert {f"/sprints/{sweep.name}:trials:1", f"/sprints/{sweep.name}/drawing/history.png"} <= set(hrefs(page))
        for address in {one for one in hrefs(page) if sweep.name in one}:
            assert served.get(address).status == 200, address
        for run in (single.id, f"{sweep.name}:trials:1", f"{sweep.name}:confirm:best-1000"):
            page = served.get(f"/sprints/{run}").text
            assert "3.5 s" in page and "printed " in page and f"/sprints/{run}/picture/plot.png" in page
            assert "Phases" not in page
            assert len(json.loads(served.get(f"/sprints/{run}/curves.json").body)["curves"]) == 1
            assert served.get(f"/sprints/{run}/artifact/plot.png").body == PNG
        assert "Trains a tiny model." in page or "Trains a tiny model." in served.get("/?q=tiny+model").text
        (sweep / "sweep_summary.json").unlink()
        page = served.get(f"/sprints/{sweep.name}").text
        assert f"{sweep.name}:trials:0" in page and page.count(">completed<") == 3, "one that goes on has its trials"


def test_failed_attempts_and_the_containers_of_a_study_can_be_looked_at(results: Path) -> None:
    folder = made_sprint(results)
    executed(folder / "attempts/1", "NameError", "failed")
    summary = json.loads((folder / "sprint_summary.json").read_text())
    summary["phases"]["implementation"]["further_containers"] = [{"outcome": "timeout", "timings": {"run_s": 77.0}}]
    (folder / "sprint_summary.json").write_text(json.dumps(summary))
    with dashboard(results) as served:
        page = served.get(f"/sprints/{folder.name}").text
        assert f'href="/sprints/{folder.name}:attempts:1"' in page and "1 min 17 s" in page
        attempt = served.get(f"/sprints/{folder.name}:attempts:1").text
        assert "printed NameError" in attempt and f'href="/sprints/{folder.name}"' in attempt


@pytest.mark.parametrize(
    "part", ["attempts:../..", "attempts:link", "attempts:2", "artifacts:1", "attempts:1:x", "trials:", ":"]
)
def test_a_part_of_a_run_is_no_way_out_of_it(results: Path, part: str) -> None:
    folder = made_sprint(results)
    (folder / "attempts").mkdir()
    (folder / "attempts/2").symlink_to("/etc")
    (folder / "artifacts/1").mkdir()
    with dashboard(results) as served:
        got = served.get(f"/sprints/{folder.name}:{quote(part, safe='')}")
        assert got.status == 404, got.text


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"{", b'{"trials": 3, "best": [], "confirmation": {"numbers": 1}}', b"\xff"]
)
def test_a_damaged_sweep_or_execution_still_has_its_page(results: Path, damage: bytes) -> None:
    sweep, single = swept(results), Store(results).new("exec")
    single.close()
    for path in (sweep / "sweep_summary.json", sweep / "sweep.json", single.path / "execution.json"):
        path.write_bytes(damage)
    with dashboard(results) as served:
        for run in (sweep.name, single.id):
            assert served.get(f"/sprints/{run}").status == 200 and run in served.get("/").text


def test_hostile_text_in_sweeps_and_parts_is_escaped(results: Path) -> None:
    sweep = swept(results, HOSTILE)
    with dashboard(results) as served:
        for path in ("/", f"/sprints/{sweep.name}", f"/sprints/{sweep.name}:trials:0"):
            page = served.get(path)
            assert page.status == 200 and "document.title" in page.text
            for sign in ("<img src=x", "<script>document", 'onerror="', "49}}"):
                assert sign not in page.text, (path, sign)


# ---- live ----


def events_of(served: Dashboard, sprint: str, until: str, seconds: float = 15) -> list[tuple[str, Any]]:
    """What the stream says, up to an event whose data holds `until`."""
    found: list[tuple[str, Any]] = []
    with socket.create_connection(("127.0.0.1", served.port), timeout=seconds) as connection:
        connection.sendall(f"GET /sprints/{sprint}/live HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        with connection.makefile("rb") as stream:
            while stream.readline().strip():
                pass
            name = ""
            for raw in stream:
                key, _, value = raw.decode().rstrip("\n").partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    found.append((name, json.loads(value)))
                    if until in value:
                        break
    return found


def running_sprint(results: Path) -> tuple[Path, Controlled]:
    folder = Store(results).new("sprint")
    folder.close()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    steps = (
        {"step": "sprint", "result": {"goal": "live"}},
        {"step": "begin", "result": {"budgets": {"discussion": 300.0}}},
        {"step": "discussion.begin", "time": stamp},
    )
    (folder.path / "events.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    lab = Controlled(
        {folder.id: Process(os.getpid(), "me", time.time(), True)}, uses={"memory_bytes": 5e6, "cpu_s": 1.0}
    )
    return folder.path, lab


def test_whoever_comes_gets_all_that_there_is_and_then_what_is_new(results: Path) -> None:
    folder, lab = running_sprint(results)
    (folder / "stdout.log").write_text("first\n")
    (folder / "metrics.jsonl").write_bytes(metric(0, loss=2.0))
    with dashboard(results, lab) as served:
        known = dict(events_of(served, folder.name, '"memory_bytes": 5000000.0'))
        assert known["log"]["stream"] == "stderr" and known["state"]["phases"][0]["state"] == "running"
        assert 290 < known["state"]["phases"][0]["left"] <= 300
        assert known["curves"]["curves"][0]["y"] == [2.0]

        def grow() -> None:
            with (folder / "stdout.log").open("a") as log, (folder / "metrics.jsonl").open("ab") as metrics:
                log.write("sec\rond\n")
                metrics.write(metric(1, loss="NaN")[:-5])
                metrics.flush()
                time.sleep(0.8)
                metrics.write(metric(1, loss="NaN")[-5:])
            with (folder / "events.jsonl").open("a") as journal:
                journal.write('{"step": "discussion.end", "time": "2026-01-01T00:00:00Z"}\n')
            time.sleep(0.8)
            lab.at_work.clear()

        threading.Timer(1, grow).start()
        news = events_of(served, folder.name, '"ended":')
    logs = [data for name, data in news if name == "log" and data["stream"] == "stdout"]
    assert logs[0]["text"] == "first\n" and logs[0]["anew"]
    assert "".join(one["text"] for one in logs[1:]) == "sec\nond\n" and not any(one["anew"] for one in logs[1:])
    curves = [data["curves"] for name, data in news if name == "curves"]
    assert [one[0]["y"] for one in curves] == [[2.0], ["NaN"]], "a torn line waits, and NaN arrives as what it is"
    states = [data["phases"][0]["state"] for name, data in news if name == "state"]
    assert states[0] == "running" and states[-1] == "ended"


def test_two_runs_whose_folders_have_the_same_name_are_told_apart(results: Path) -> None:
    sweeps = [swept(results, said) for said in ("one", "other")]
    with dashboard(results) as served, socket.create_connection(("127.0.0.1", served.port)) as first:
        first.sendall(f"GET /sprints/{sweeps[0].name}:trials:1/live HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        assert first.recv(100)
        news = events_of(served, f"{sweeps[1].name}:trials:1", '"ended":')
    assert [data["text"] for name, data in news if name == "log" and data["stream"] == "stdout"] == ["printed other\n"]


def searching(results: Path) -> tuple[Path, Controlled, optuna.Study]:
    """A sweep that goes on, with Optuna's own file in its folder."""
    folder = Store(results).new("sweep").path
    (folder / "sweep.json").write_text(json.dumps({"goal": "find lr", "trials": 5}))
    optuna.logging.disable_default_handler()
    study = optuna.create_study(study_name="sweep", storage=f"sqlite:///{folder}/study.db")
    return folder, Controlled({folder.name: Process(os.getpid(), "me", time.time(), True)}), study


def tried(folder: Path, study: optuna.Study, value: float | None, name: str = "lr") -> None:
    """One more trial of it, which has ended."""
    trial = study.ask({name: optuna.distributions.FloatDistribution(0, 1)})
    executed(folder / f"trials/{trial.number}")
    (folder / f"trials/{trial.number}/params.json").write_text(json.dumps(trial.params))
    study.tell(trial, value, state=None if value is not None else optuna.trial.TrialState.PRUNED)


def test_the_trials_of_a_sweep_that_goes_on_come_with_their_values(results: Path) -> None:
    folder, lab, study = searching(results)
    study.set_user_attr("metric", "val_loss")
    tried(folder, study, 2.5)
    study.ask()
    (folder / "trials/1").mkdir()
    with dashboard(results, lab) as served:
        page = served.get(f"/sprints/{folder.name}").text
        assert "val_loss" in page and ">2.5<" in page and page.count(">running<") == 2

        def go_on() -> None:
            tried(folder, study, 1.5)
            tried(folder, study, None)
            time.sleep(0.8)
            executed(folder / "confirm/best-1000")
            time.sleep(0.8)
            lab.at_work.clear()

        threading.Timer(0.5, go_on).start()
        news = events_of(served, folder.name, '"ended": false')
    rows = [{row["name"]: (row["state"], row["value"], row["best"]) for row in data["rows"]}
            for name, data in news if name == "trials"]  # fmt: skip
    assert rows[0] == {"0": ("complete", "2.5", True), "1": ("running", "–", False)}
    done = {"0": ("complete", "2.5", False), "2": ("complete", "1.5", True), "3": ("pruned", "–", False)}
    assert {**done, "1": ("running", "–", False)} in rows
    assert rows[-1] == {**done, "1": ("cut off", "–", False)}, "nobody is at it any more"
    assert [one["name"] for name, data in news if name == "confirm" for one in data] == ["best, seed 1000"]


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"SQLite format 3\0" + b"\xff" * 5000, None])
def test_a_sweep_whose_record_cannot_be_read_is_shown_from_its_folders(results: Path, damage: bytes | None) -> None:
    folder = swept(results)
    (folder / "sweep_summary.json").unlink()
    if damage is None:
        with sqlite3.connect(folder / "study.db") as database:
            database.execute("CREATE TABLE trials (other TEXT)")
    else:
        (folder / "study.db").write_bytes(damage)
    with dashboard(results) as served:
        page = served.get(f"/sprints/{folder.name}")
        assert page.status == 200 and page.text.count(">completed<") == 3


def test_viewers_share_one_look_and_leave_nothing_behind(results: Path) -> None:
    folder, lab = running_sprint(results)
    with dashboard(results, lab) as served:
        looks = 0
        running = lab.running

        def counted() -> Any:
            nonlocal looks
            looks += 1
            return running()

        lab.running = counted  # type: ignore[method-assign]
        streams = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(8)]
        for stream in streams:
            stream.sendall(f"GET /sprints/{folder.name}/live HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(0.7)
        before = looks
        time.sleep(1.5)
        assert looks - before <= 5, "eight viewers, one look each half second"
        for stream in streams:
            stream.close()
        time.sleep(0.7)
        before = looks
        time.sleep(0.8)
        assert looks == before, "nobody looks, and the files are not looked at"


def test_a_step_of_any_length_is_read_to_its_end(results: Path) -> None:
    folder = made_sprint(results)
    steps = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    long = json.dumps({"step": "implementation.run", "result": "x" * (17 << 20)}).encode() + b"\n"
    (folder / "events.jsonl").write_bytes(b"".join([*steps[:3], long, *steps[3:]]))
    with dashboard(results) as served:
        page = served.get(f"/sprints/{folder.name}").text
    assert "broken off" not in page and page.count('data-state="ended"') == 3


@pytest.mark.parametrize(("comment", "marked"), [("AdamW is better.", True), ("Lion is better.", False)])
def test_a_comment_is_shown_beside_the_verdict_and_marked_where_it_contradicts(
    results: Path, comment: str, marked: bool
) -> None:
    summary = json.loads((made_sprint(results) / "sprint_summary.json").read_text())
    summary["phases"]["validation"]["analysis"] = comment
    summary["phases"]["validation"]["numbers"]["verdict"]["arm"] = "Lion"
    view = sprint_view(summary)
    assert bool(view.disagrees) is marked and view.word == "better"
    folder = made_sprint(results, 1, phases=summary["phases"])
    with dashboard(results) as served:
        page = served.get(f"/sprints/{folder.name}").text
    assert comment in page and ("does not agree with what was computed" in page) is marked


def test_a_run_that_was_ended_is_not_called_better_on_any_page(results: Path) -> None:
    summary = json.loads((made_sprint(results) / "sprint_summary.json").read_text())
    summary["phases"]["implementation"]["execution"]["outcome"] = "timeout"
    folder = made_sprint(results, 3, phases=summary["phases"])
    with dashboard(results) as served:
        page = served.get(f"/sprints/{folder.name}").text
        assert ">better<" not in page and "nothing is concluded" in page
        assert folder.name not in served.get("/?verdict=better").text


def test_a_flood_is_passed_over_and_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = Tail(log, first=10)
    assert tail.look(10).data == b""
    log.write_bytes(b"0123456789abcdef")
    first = tail.look(10)
    assert (first.data, first.skipped) == (b"6789abcdef", 6)
    with log.open("ab") as file:
        file.write(b"x" * 25 + b"y" * 10)
    second = tail.look(10)
    assert (second.data, second.skipped, second.anew) == (b"y" * 10, 25, False)
    log.write_bytes(b"new")
    assert tail.look(10).anew
    log.unlink()
    log.write_bytes(b"another file")
    assert tail.look(10).anew
    log.unlink()
    log.symlink_to("/etc/passwd")
    assert tail.look(10).data == b""


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_come_whole_however_the_file_grows(tmp_path: Path, data: bytes, cuts: list[int]) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"")
    lines, seen, at = Lines(path), b"", 0
    with path.open("ab", buffering=0) as file:
        for cut in [*cuts, 300]:
            file.write(data[at : at + cut])
            at += cut
            while got := lines.look(7).data:
                assert got.endswith(b"\n")
                seen += got
            while lines.at < path.stat().st_size:
                seen += lines.look(7).data
    assert seen == data[: data.rfind(b"\n") + 1]


def test_a_curve_stays_small_and_keeps_its_ends_extremes_and_what_is_not_finite(tmp_path: Path) -> None:
    curve = Curve(("loss", "", "", ""))
    for step in range(50_000):
        value = (
            1000.0 if step == 777 else -5.0 if step == 30_001 else float("nan") if step == 12_345 else 1 / (step + 1)
        )
        curve.add((float(step), value, 0.0))
    assert len(curve.points) <= 2 * MOST_POINTS and curve.seen == 50_000
    values = [value for _, value, _ in curve.points]
    assert {1000.0, -5.0} <= set(values) and any(value != value for value in values)
    assert (curve.points[0][0], curve.points[-1][0]) == (0.0, 49_999.0)
    assert [step for step, *_ in curve.points] == sorted(step for step, *_ in curve.points)


def test_curves_without_end_are_counted_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(metric(0, **{f"m{number}_{k}": 1.0 for k in range(50)}) for number in range(10)))
    growing = Growing(path)
    growing.look()
    assert len(growing.curves) == 240 and len(growing.left_out) == 260


def test_what_is_odd_about_a_recorded_curve_is_said_and_its_values_arrive(results: Path) -> None:
    folder = made_sprint(results)
    odd = metric(0, loss=2.0) + metric(1, loss="NaN") + metric(2, loss="-Infinity") + metric(0, loss=1.0)
    tuned = odd.replace(b"confirm", b"tune").replace(b'"NaN"', b"3.0").replace(b'"-Infinity"', b"3.0")
    (folder / "metrics.jsonl").write_bytes(odd + tuned + b"no record\n")
    with dashboard(results) as served:
        found = json.loads(served.get(f"/sprints/{folder.name}/curves.json").body)
    assert [(one["phase"], one["y"]) for one in found["curves"]] == [
        ("confirm", [2.0, "NaN", "-Infinity", 1.0]),
        ("tune", [2.0, 3.0, 3.0, 1.0]),
    ]
    said, skipped = found["notes"]
    assert "1 NaN, 1 -inf, the step goes back once" in said and skipped == "1 lines are no records"


# ---- the audit log ----


def test_the_audit_log_is_read_from_its_end_page_by_page_and_none_is_missed(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append_all(
        [("end", {"sprint": f"s{number % 3}", "message": "m" * (number * 37 % 4000)}) for number in range(1300)]
    )
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"torn')
    for sprint, expected in (("", list(range(1299, -1, -1))), ("s1", [n for n in range(1299, -1, -1) if n % 3 == 1])):
        seen: list[int] = []
        before: int | None = None
        while True:
            page = audit_page(log.path, before, sprint)
            seen += [int(entry.seq) for entry in page.entries]
            if page.older is None:
                break
            before = page.older
        assert seen == expected
    assert audit_page(tmp_path / "none.jsonl", None).entries == []


def test_the_logs_state_is_verified_in_the_background_and_again_when_it_changes(results: Path) -> None:
    log = AuditLog(results.parent / "audit.jsonl")
    log.append_all([("end", {"message": f"number {number}"}) for number in range(20)])

    def settled() -> dict[str, Any]:
        for _ in range(100):
            state = json.loads(served.get("/audit/state.json").body)
            if state["word"] != "verifying":
                return dict(state)
            time.sleep(0.05)
        raise AssertionError

    with dashboard(results) as served:
        assert served.get("/audit").text.count("verifying") >= 1
        assert settled()["word"] == "ok" and "All 20 records" in settled()["text"]
        log.path.write_bytes(log.path.read_bytes().replace(b"number 7", b"number 8"))
        broken = settled()
        assert broken["word"] == "broken" and "record 7 was changed" in broken["lines"]
        assert "record 7 was changed" in served.get("/audit").text


# ---- the command, and the controls that it hands in ----


def test_a_port_in_use_is_one_line_and_status_4(results: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = labsandbox("ui", "--port", str(taken.getsockname()[1]), "--results", str(results))
    assert done.returncode == 4 and "Address already in use" in told(done) and done.stdout == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_prints_one_address_serves_it_and_ends_cleanly(results: Path, host: str) -> None:
    sprint = made_sprint(results).name
    process = subprocess.Popen(
        [COMMAND, "ui", "--port", "0", "--host", host, "--results", str(results)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"http://[^/:]+:(\d+)/(?:\?token=([\w-]{40,}))?\n", line)
        assert found and (found[2] is not None) == (host == "0.0.0.0")
        with socket.create_connection(("127.0.0.1", int(found[1]))) as client:
            client.sendall(f"GET /?token={found[2] or ''} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 303" if found[2] else b"HTTP/1.1 200")
        open_page = socket.create_connection(("127.0.0.1", int(found[1])))  # a live page does not hold the end up
        cookie = f"Cookie: labsandbox_{found[1]}={found[2]}\r\n" if found[2] else ""
        open_page.sendall(f"GET /sprints/{sprint}/live HTTP/1.1\r\nHost: localhost\r\n{cookie}\r\n".encode())
        assert b"text/event-stream" in open_page.recv(4096)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=15)
        assert process.returncode == 0 and out == "" and "sprints that run go on" in said and "Traceback" not in said
    finally:
        process.kill()


SLOW = f"import time\nprint('started', flush=True)\ntime.sleep(60)\n{PROGRAM}"


def test_a_sprint_is_started_seen_and_stopped_and_no_other_process_is(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_service(
        {CODE: lambda connection, before: connection.sendall(answer({"result": {"code": SLOW}}))}
    ) as service:
        monkeypatch.setenv("LUMENBRIDGE_BASE_URL", service.url)
        lab = ServiceControls(results)
        for wish in (
            Wish(""),
            Wish("x", "unknown"),
            Wish("x", seed="-1"),
            Wish("x", limits={"wall": "soon"}),
        ):
            with pytest.raises(Refused):
                lab.start(wish)
        assert not list(results.iterdir()), "what is no wish leaves no folder"
        began = time.monotonic()
        denied = lab.start(Wish("x", limits={"memory": "1PiB"}))
        assert time.monotonic() - began < 1, "whether it can run, its process finds out"
        before = made_sprint(results)
        summary = json.loads((before / "sprint_summary.json").read_text())
        summary["phases"]["validation"]["recommendation"] = {"goal": "slow goal", "why": ""}
        (before / "sprint_summary.json").write_text(json.dumps(summary))
        sprint = lab.start(Wish("slow goal", limits={"wall": "60s"}, follows=before.name))
        until(lambda: (results / sprint / "stdout.log").read_bytes() == b"started\n", 60)
        with dashboard(results, lab) as served:
            page = served.get(f"/sprints/{sprint}").text
            assert "slow goal" in page and f"/sprints/{sprint}/stop" in page
            assert re.search(r"<dt>policy</dt><dd>default</dd>", page) and re.search(r"<dt>wall</dt><dd>60", page)
            until(lambda: bool(lab.sample(sprint)), 15)
            assert ServiceControls(results).running()[sprint].stoppable, "another dashboard finds it as well"
            pid = lab.running()[sprint].pid
            assert served.post(f"/sprints/{sprint}/stop", "").status == 303
            until(lambda: sprint not in lab.running(), 30)
            assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            assert "not finished" in served.get(f"/sprints/{sprint}").text
            assert served.post(f"/sprints/{sprint}/stop", "").status == 409
            assert re.search("Its process ended: .*asked for memory", served.get(f"/sprints/{denied}").text)
    summary = json.loads((results / sprint / "sprint_summary.json").read_text())
    assert summary["phases"]["implementation"]["execution"]["outcome"] == "cancelled"
    assert summary["follows"] == before.name, "what a sprint recommends is taken up"


def test_a_program_of_somebodys_own_that_holds_a_journal_is_shown_and_not_stopped(results: Path) -> None:
    folder = made_sprint(results)
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'ab'); fcntl.flock(f, 2); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder / "events.jsonl")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        lab = ServiceControls(results)
        process = lab.running()[folder.name]
        assert process.pid == holder.pid and not process.stoppable and abs(process.since - time.time()) < 60
        with pytest.raises(Refused, match="not certainly"):
            lab.stop(folder.name)
        assert start_ticks(holder.pid) is not None and holder.poll() is None
    finally:
        holder.kill()
        holder.wait()


def test_what_a_sprint_uses_of_gpus_is_that_of_the_devices_lent_to_its_process(results: Path) -> None:
    machine = Recorded(*(Gpu(uuid(n), used=(n + 1) << 20, utilisation=20 * n, minor=n) for n in range(3)))
    gpus = Gpus(nvml(machine), results.parent / "locks")
    loan = gpus.lend("ab" * 8, Wanted(2), None, 0, print)
    seen = survey(gpus)
    first, second = (one.reading for one in seen.devices if one.leases)
    assert first.memory and second.memory and first.utilisation is not None and second.utilisation is not None
    busy = (first.utilisation + second.utilisation) / 2
    assert on_gpus(seen, os.getpid()) == {"gpu_memory_bytes": first.memory + second.memory, "gpu_busy": busy}
    assert on_gpus(survey(gpus), 1) == {}
    loan.lease.release()


def until(done: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if done():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)
