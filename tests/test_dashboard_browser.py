"""Promises of the dashboard in a real browser: pages render, news arrive, nothing hostile runs, the keyboard suffices."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from executor.gpus.choice import Wanted
from executor.gpus.lending import Gpus
from executor.gpus.survey import survey
from policies.audit import AuditLog
from results.dashboard.controls import Process
from results.dashboard.guard import Access
from results.store import Store
from tests.dashboards import HOSTILE, PNG, Controlled, dashboard, executed, made_sprint, metric, swept
from tests.nvml_machines import Gpu, Recorded, nvml, uuid
from tests.test_dashboard import searching, tried
from tests.test_leases import line, taker

# As root Chromium has no sandbox of its own; the other flags keep it from calling anybody but the page's server.
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path="/usr/bin/chromium", args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must not complain: neither of a script that failed nor of what the content policy stopped."""
    context = browser.new_context()
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    yield opened
    context.close()
    # A page that is open a moment longer than its server may say so.
    complaints = [said for said in complaints if "ERR_CONNECTION_REFUSED" not in said]
    assert not complaints, complaints


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def study(folder: Path, arms: tuple[str, ...] = ("AdamW", "Lion"), name: str = "val_loss") -> None:
    lines = [metric(s, s / 10, arm, **{name: 2 / (s + 1) + i}) for i, arm in enumerate(arms) for s in range(20)]
    (folder / "metrics.jsonl").write_bytes(b"".join(lines))


def test_every_page_renders_in_light_and_dark_on_wide_and_narrow_screens(browser: Browser, results: Path) -> None:
    folder, other = made_sprint(results), made_sprint(results, 1)
    for one in (folder, other):
        study(one)
    (folder / "artifacts/plot.png").write_bytes(PNG)
    executed(folder / "attempts/1", "NameError", "failed")
    sweep = swept(results)
    AuditLog(results.parent / "audit.jsonl").append("decision", sprint=folder.name, allow=True)
    pages = (
        "/",
        f"/sprints/{folder.name}",
        f"/compare?ids={folder.name},{other.name}",
        f"/sprints/{folder.name}:attempts:1",
        f"/sprints/{sweep.name}",
        "/policies",
        "/audit",
        "/gpus",
        "/start",
    )
    with dashboard(results) as served:
        for scheme, width in (("light", 1280), ("dark", 390)):
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
            opened = context.new_page()
            complaints: list[str] = []
            opened.on("console", lambda said, to=complaints: to.append(said.text))  # type: ignore[misc]
            opened.on("pageerror", lambda error, to=complaints: to.append(str(error)))  # type: ignore[misc]
            for path in pages:
                opened.goto(served.url + path)
                expect(opened.locator("h1")).to_be_visible()
                assert opened.evaluate("document.documentElement.scrollWidth") <= width, (
                    f"{path} is wider than the screen"
                )
                assert not opened.evaluate(LOW_CONTRAST), path
            opened.goto(f"{served.url}/sprints/{folder.name}")
            expect(opened.locator("#curves path.curve")).to_have_count(2)
            opened.locator(".pictures img").first.scroll_into_view_if_needed()  # it is loaded when it is near
            assert opened.evaluate("document.querySelector('.pictures img').decode().then(() => true)")
            context.close()
            assert not complaints, complaints


def test_news_arrive_while_a_sprint_runs(page: Page, results: Path) -> None:
    folder = Store(results).new("sprint")
    folder.close()
    now: Callable[[], str] = lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # noqa: E731
    journal = folder.path / "events.jsonl"
    steps = (
        {"step": "sprint", "result": {"goal": "a live one"}},
        {"step": "begin", "result": {"budgets": {"discussion": 9}}},
    )
    journal.write_text("".join(json.dumps({**step, "time": now()}) + "\n" for step in steps))
    lab = Controlled(
        {folder.id: Process(os.getpid(), "me", time.time(), True)},
        uses={"memory_bytes": 5e6, "cpu_s": 1.0, "gpu_busy": 50.0},
    )

    def add(path: str, data: bytes) -> None:
        with (folder.path / path).open("ab") as file:
            file.write(data)

    with dashboard(results, lab) as served:
        page.goto(f"{served.url}/sprints/{folder.id}")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        add("events.jsonl", json.dumps({"step": "discussion.begin", "time": now()}).encode() + b"\n")
        expect(page.locator("#phases li").first).to_contain_text("running")
        expect(page.locator("#phases li").first).to_contain_text("left")
        add("stdout.log", b"epoch 1\n")
        expect(page.locator("#stdout")).to_contain_text("epoch 1")
        for step in range(3):
            add("metrics.jsonl", metric(step, step, loss=3.0 - step))
        expect(page.locator("#curves path.curve")).to_have_count(1)
        before = page.locator("#curves path.curve").get_attribute("d")
        add("metrics.jsonl", metric(3, 3, loss="NaN") + metric(4, 4, loss=0.5))
        expect(page.locator("#curves path.odd")).to_have_count(1)
        assert page.locator("#curves path.curve").get_attribute("d") != before
        expect(page.locator("#usage path.curve").first).to_be_attached()
        expect(page.locator("#usage")).to_contain_text("GPU busy")
        lab.at_work.clear()
        add("events.jsonl", b'{"step": "end", "time": "2026-01-01T00:00:00Z"}\n')
        expect(page.locator("#news")).to_contain_text("has ended")
        page.get_by_role("link", name="Load the page again").click()
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)
        expect(page.locator("#curves path.curve")).to_have_count(1)


def test_trials_of_a_sweep_appear_as_they_end(page: Page, results: Path) -> None:
    folder, lab, study = searching(results)
    tried(folder, study, 2.5)
    with dashboard(results, lab) as served:
        page.goto(f"{served.url}/sprints/{folder.name}")
        expect(page.locator("#trials tr")).to_have_count(1)
        tried(folder, study, 1.25, HOSTILE[:60])
        study.set_user_attr("metric", HOSTILE)
        expect(page.locator("#trials tr")).to_have_count(2)
        expect(page.locator("#trials tr").nth(1)).to_contain_text("1.25")
        expect(page.locator("#trials tr").nth(1)).to_contain_text("best")
        tried(folder, study, None)
        expect(page.locator("#trials tr").nth(2)).to_contain_text("pruned")
        expect(page.locator("#trials tr").nth(1)).to_contain_text(HOSTILE[:39])
        executed(folder / "confirm/best-1000")
        expect(page.locator("#confirm")).to_contain_text("best, seed 1000")
        assert page.title() != "run" and page.locator("img[src=x]").count() == 0
        (folder / "sweep_summary.json").write_text(json.dumps({"metric": "loss", "trials": []}))
        lab.at_work.clear()
        expect(page.locator("#news")).to_contain_text("The sweep has ended")
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)


def test_nothing_that_an_experiment_says_runs(page: Page, results: Path) -> None:
    folder = made_sprint(results, goal=HOSTILE, verdict=HOSTILE)
    study(folder, (HOSTILE, "</script><script>document.title='run'</script>"), HOSTILE)
    (folder / "stdout.log").write_text(HOSTILE)
    name = "<img src=x onerror=document.title='run'>.png"
    (folder / "artifacts" / name).write_bytes(PNG)
    (folder / "artifacts/page.html").write_text("<script>document.title='run'</script>")
    (folder / "report.html").write_text(
        "<title>r</title><script>document.title='run'</script><h1 onclick=1>report</h1>"
    )
    live, lab = made_sprint(results, 1), Controlled()
    lab.at_work[live.name] = Process(1, "me", time.time(), False)
    (live / "stdout.log").write_text(HOSTILE)
    study(live, (HOSTILE,), HOSTILE)
    with dashboard(results, lab) as served:
        for path in (
            "/",
            f"/sprints/{folder.name}",
            f"/sprints/{live.name}",
            f"/compare?ids={folder.name},{live.name}",
        ):
            page.goto(served.url + path)
            if path != "/":
                expect(page.locator("#curves path.curve").first).to_be_attached()
                expect(page.locator("#curves figcaption").first).to_have_text(HOSTILE[:128])
            assert page.title() != "run" and page.locator("img[src=x]").count() == 0, path
        page.goto(f"{served.url}/sprints/{folder.name}")
        assert HOSTILE in page.locator("#stdout").inner_text()
        expect(page.get_by_alt_text(name)).to_be_visible()
        with page.expect_download() as saved:
            page.get_by_role("link", name="page.html", exact=True).click()
        assert saved.value.suggested_filename == "page.html"


def test_devices_and_their_queue_are_kept_up_to_date(page: Page, results: Path) -> None:
    machine = Recorded(Gpu(uuid(0), name=HOSTILE[:60], used=3 << 20), Gpu(uuid(1)))
    gpus = Gpus(nvml(machine), results.parent / "locks")
    with dashboard(results, gpus=lambda: survey(gpus)) as served:
        page.goto(f"{served.url}/gpus")
        expect(page.locator("#devices tbody tr")).to_have_count(2)
        expect(page.locator("#devices tbody")).to_contain_text(HOSTILE[:60])
        expect(page.locator("#queue")).to_be_hidden()
        loan = gpus.lend("ab" * 8, Wanted(2), None, 0, print)
        with taker(results.parent / "locks", devices=2) as waiting:
            line(waiting)
            expect(page.locator("#devices tbody")).to_contain_text("lent to")
            expect(page.locator("#queue tbody tr")).to_have_count(1)
            expect(page.locator("#devices tbody")).to_contain_text(HOSTILE[:60])
        loan.lease.release()
        expect(page.locator("#devices tbody")).not_to_contain_text("lent to")


def test_a_report_with_scripts_in_it_is_shown_and_they_do_not_run(browser: Browser, results: Path) -> None:
    folder = made_sprint(results)
    (folder / "report.html").write_text(
        "<title>r</title><style>h1{color:rgb(1,2,3)}</style><h1>report</h1><script>document.title='run'</script>"
        "<img src=x onerror=\"document.title='run'\"><form action=/start method=post><button>go</button></form>"
    )
    opened = browser.new_page()
    with dashboard(results) as served:
        opened.goto(f"{served.url}/sprints/{folder.name}/report")
        assert opened.title() == "r"
        assert opened.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(1, 2, 3)"
        assert opened.evaluate("self.origin") == "null"
        opened.get_by_role("button").click()
        assert opened.url.endswith("/report") and not served.lab.wishes
    opened.close()


def test_all_can_be_done_with_the_keyboard(page: Page, results: Path) -> None:
    folders = [made_sprint(results, number) for number in range(3)]
    study(folders[2])
    with dashboard(results) as served:
        page.goto(served.url)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        page.keyboard.press("/")
        expect(page.get_by_role("searchbox")).to_be_focused()
        page.keyboard.type("question 2")
        page.keyboard.press("Enter")
        expect(page.locator("tbody tr")).to_have_count(1)
        page.goto(served.url)
        expect(page.get_by_role("button", name="Compare the chosen")).to_be_disabled()
        for sprint in folders[:2]:
            page.get_by_label(f"compare {sprint.name}").focus()
            page.keyboard.press("Space")
        page.get_by_role("button", name="Compare the 2 chosen").focus()
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("Compare")
        page.goto(f"{served.url}/sprints/{folders[2].name}")
        second = page.get_by_role("button", name="by second")
        second.focus()
        page.keyboard.press("Enter")
        expect(second).to_have_attribute("aria-pressed", "true")
        expect(second).to_be_focused()
        page.get_by_text("As a table").first.focus()
        page.keyboard.press("Enter")
        expect(page.locator(".chart tbody tr").first).to_be_visible()
        page.goto(f"{served.url}/start")
        page.get_by_label("What is to be found out?").focus()
        page.keyboard.type("Compare a and b")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/sprints/sprint_20260101_000000")
        assert served.lab.wishes[0].goal == "Compare a and b"


def test_the_token_is_shown_once_and_then_kept_where_no_script_reads_it(page: Page, results: Path) -> None:
    sprint = made_sprint(results).name
    with dashboard(results, access=Access(token="s3cret-token")) as served:
        page.goto(f"{served.url}/?token=s3cret-token")
        expect(page.locator("h1")).to_have_text("Runs")
        assert page.url == f"{served.url}/" and page.evaluate("document.cookie") == ""
        page.goto(f"{served.url}/sprints/{sprint}")
        expect(page.locator("#usage path.curve").first).to_be_attached()
        page.goto(f"{served.url}/start")
        page.get_by_label("What is to be found out?").fill("x")
        page.get_by_role("button", name="Start").click()
        page.wait_for_url("**/sprints/sprint_20260101_000000")
        assert len(served.lab.wishes) == 1


def test_another_sites_page_can_neither_read_nor_start_anything(browser: Browser, results: Path) -> None:
    made_sprint(results)
    with dashboard(results) as served:
        context = browser.new_context()
        opened = context.new_page()
        evil = "http://evil.localhost:1/"
        opened.route(f"{evil}**", lambda route: route.fulfill(body="<h1>evil</h1>", content_type="text/html"))
        opened.goto(evil)
        tried: Any = opened.evaluate(
            """async (url) => {
                const found = [];
                for (const mode of ["cors", "no-cors"]) {
                    try {
                        const body = new URLSearchParams({goal: "x", policy: "default"});
                        const answer = await fetch(`${url}/start`, {method: "POST", mode, body});
                        found.push(answer.type, (await answer.text()).length);
                    } catch { found.push("refused"); }
                }
                return found;
            }""",
            served.url,
        )
        assert "basic" not in tried and "cors" not in tried
        opened.evaluate(
            """(url) => {
                const form = document.createElement("form");
                form.method = "post"; form.action = `${url}/start`;
                const field = document.createElement("input"); field.name = "goal"; field.value = "x";
                form.append(field); document.body.append(form); form.submit();
            }""",
            served.url,
        )
        opened.wait_for_url(f"{served.url}/start")
        assert "not answered" in opened.inner_text("body")
        assert not served.lab.wishes
        context.close()


# Texts whose contrast with what is behind them is below WCAG's 4.5 to 1.
LOW_CONTRAST = """() => {
  const light = (c) => { const v = c / 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const behind = (at) => {
    for (; at; at = at.parentElement) {
      const c = numbers(getComputedStyle(at).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || one.closest("svg, noscript, :disabled") || !one.checkVisibility()) continue;
    const [a, b] = [luminance(numbers(getComputedStyle(one).color)), luminance(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${one.tagName}.${one.className} ${one.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return found.join("; ");
}"""
