"""What a report promises: everything that was found, nothing that runs, and a page for every sprint there ever was."""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes

from executor.experiment import AnyRecord, MetricRecord, PlanRecord, RunRecord
from orchestrator.context import RunExperiment
from policies.audit import AuditLog
from results.analysis import analyse
from results.host import HOST, host_facts
from results.report.figures import figures
from results.report.report import write_report
from results.series import series_of
from results.store import Store
from tests.test_cli import QUICK, labsandbox
from tests.test_sprint import Scripted, run_experiment
from tests.test_sprint import sprint as running

__all__ = ["run_experiment"]  # the fixture
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'](javascript:alert(3)) | `$x^2$` & \u202e"


def records(arms: Sequence[str] = ("AdamW", "Lion"), metric: str = "test_loss", seeds: int = 7) -> list[AnyRecord]:
    rng = np.random.default_rng(1)
    found: list[AnyRecord] = [
        PlanRecord(
            t=0, factor="optimizer", arms=list(arms), seeds=list(range(seeds)), primary=metric, lower_is_better=True,
            tune={"lr": [0.1, 0.2, 0.3]}, unit="nats", repeats=1,
            settings={arms[-1]: {"weight_decay": 0.05}},
        )
    ]  # fmt: skip
    for place, arm in enumerate(arms):
        for lr in (0.1, 0.2, 0.3):
            status = "diverged" if (place, lr) == (1, 0.3) else "ok"
            values = {metric: math.nan if status == "diverged" else abs(lr - 0.2) + 1}
            found.append(
                RunRecord(
                    t=1, arm=arm, seed=99, phase="tune", status=status, values=values, config={"lr": lr}, seconds=1
                )
            )
    for seed in range(seeds):
        noise = rng.normal()
        for place, arm in enumerate(arms):
            end, value = 100.0 + 10 * seed + place, 2.0 + noise * 0.1 - 0.05 * place - 0.001 * seed
            for step in range(5):
                values = {metric: value + 1 / (step + 1)}
                found.append(
                    MetricRecord(t=end - 4 + step, step=step, arm=arm, seed=seed, phase="confirm", values=values)
                )
            found.append(
                RunRecord(
                    t=end, arm=arm, seed=seed, phase="confirm", status="ok", values={metric: value, "parameters": 1e5},
                    config={"lr": 0.2}, seconds=4,
                )
            )  # fmt: skip
    return found


def sprint(tmp_path: Path, found: Sequence[AnyRecord], summary: dict[str, Any]) -> Path:
    """The folder of a sprint that left these, with its report."""
    with Store(tmp_path / "results").new("sprint") as folder:
        for record in found:
            folder.record(record)
        folder.close()
        folder.write_text("requirements.txt", "torch==2\n")
        folder.write_json("sprint_summary.json", summary)
        write_report(folder, summary, tmp_path / "audit.jsonl")
    return folder.path


class Page(HTMLParser):
    """What of a page matters here."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def executed(**changes: Any) -> dict[str, Any]:
    """The record of one execution."""
    limit = {"requested": None, "effective": 4 << 30, "enforced_by": "cgroup", "observed": 4 << 30}
    return {
        "schema": "labsandbox.execution/1", "execution_id": "e1", "outcome": "completed", "success": True, "returncode": 0,
        "signal": None, "message": "completed", "stdout": "", "stderr": "", "stdout_dropped_bytes": 0,
        "stderr_dropped_bytes": 0, "started_at": None, "ended_at": "2026-01-01T00:00:00Z", "timings": {}, "usage": {},
        "limits": {"memory": limit}, "metrics": [], "metrics_total": 0, "metrics_rejected": 0, "artifacts": [],
        "artifacts_skipped": [], "policy": {"name": "default", "sha256": "ab" * 32},
        "image": {"reference": "cpu", "digest": "sha256:12"}, "backend": "oci", "runtime": "runc",
        "audit": {"first": 0, "last": 1}, **changes,
    }  # fmt: skip


def implemented(*executions: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A summary's phases, of one container or several."""
    first, *further = executions
    return {"implementation": {"code": "print()", "execution": first, "further_containers": further}, **more}


GOAL = {
    "goal": "Compare AdamW vs. Lion",
    "command": "labsandbox run 'Compare AdamW vs. Lion'",
    "seed": 0,
    "phases": implemented(executed()),
}


def test_a_report_answers_what_a_researcher_asks(tmp_path: Path) -> None:
    folder = sprint(tmp_path, records(), GOAL)
    page = Page((folder / "report.html").read_text())
    for wanted in (
        "better: Lion", "t interval", "BCa interval", "sign-flip", "Cohen", "Ratio of perplexities", "Steps to target",
        "After equally long training", "Every pair", "Fixed", "weight_decay 0.05", "Diverged", "Noise floor",
        "the exact sign-flip test",
        "labsandbox run", "At another scale", "parameters", "Every trial of the tuning", "the baseline was not run twice",
        "torch==2", hashlib.sha256((folder / "metrics.jsonl").read_bytes()).hexdigest(),
    ):  # fmt: skip
        assert wanted in page.text, wanted
    assert page.tags.count("figure") == 5 and page.tags.count("svg") == 5
    assert all(label for name, label in page.attributes if name == "aria-label")
    text = (folder / "report.md").read_text()
    assert text.startswith("# Compare AdamW vs. Lion") and "**better: Lion.**" in text
    for name in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_a_corrected_p_is_called_so_and_stands_beside_the_exact_one(tmp_path: Path) -> None:
    for arms, corrected in ((("AdamW", "Lion"), False), (("AdamW", "Lion", "SGD"), True)):
        folder = sprint(tmp_path, records(arms), GOAL)
        page, text = Page((folder / "report.html").read_text()).text, (folder / "report.md").read_text()
        assert "exact p" in page and "| exact p |" in text
        assert ("p (Holm)" in page) is ("| p (Holm) |" in text) is ("p = 0.0312 (Holm)" in page) is corrected
        head, line = (
            next(one for one in text.splitlines() if one.startswith(begin)) for begin in ("| contrast", "| Lion")
        )
        assert head.count("|") == line.count("|") and "| 0.0156 |" in line and ("| 0.0312 |" in line) is corrected
        if corrected:
            assert "**better: SGD.** Best: SGD; better than AdamW and Lion. Lion is better: for" in text


def test_curves_of_one_point_are_not_drawn() -> None:
    found = records()
    single = [one for one in found if not isinstance(one, MetricRecord) or one.step == 4]
    names = [[one.name for one in figures(few, series_of(m for m in few if isinstance(m, MetricRecord)), analyse(few))]
             for few in (found, single)]  # fmt: skip
    assert set(names[0]) - set(names[1]) == {"curves_by_step", "curves_by_second"} and set(names[1]) < set(names[0])
    once = [
        one.model_copy(update={"step": None, "t": 100.0 + 10 * (one.seed or 0)})
        if isinstance(one, MetricRecord)
        else one
        for one in found
    ]
    kept = [one.name for one in figures(once, series_of(m for m in once if isinstance(m, MetricRecord)), analyse(once))]
    assert "curves_by_step" in kept and "curves_by_second" not in kept, "all at one time"


def test_a_report_opens_without_a_network_and_lets_nothing_run(tmp_path: Path) -> None:
    page = Page((sprint(tmp_path, records(), GOAL) / "report.html").read_text())
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(page.tags)
    policy = next(value for _, value in page.attributes if value.startswith("default-src"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action"):
            assert value.startswith(("#", "data:image/png;base64,")), (name, value)
    names = [value for name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names)), "an id is there twice"


def test_nothing_from_an_experiment_or_an_agent_is_markup(tmp_path: Path) -> None:
    evil = EVIL[:100]
    phases = {
        "discussion": {"action_plan": evil, "individual_responses": {evil: evil}},
        "implementation": {"code": evil, "execution": executed(message=evil, limits={}, backend=evil, packages=[evil])},
        "validation": {"analysis": evil, "verdict": evil},
        "self_healing": {"attempts": [{"failure": evil, "decision": evil}]},
    }
    summary = {
        **GOAL,
        "goal": evil,
        "command": evil,
        "agents": evil,
        "verdict": evil,
        "host": {"cpu": evil},
        "phases": phases,
    }
    folder = sprint(tmp_path, records(arms=(evil + "a", evil + "b"), metric=evil), summary)
    page = Page((folder / "report.html").read_text())
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "alert(1)" in page.text
    for line in (folder / "report.md").read_text().splitlines():
        if not line.startswith("    "):  # a code block's
            assert "<script" not in line.replace("\\<", "") and "](javascript" not in line.replace("\\]", "")


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"goal": 7, "phases": []},
        {"phases": {"implementation": {"execution": {"success": True, "stdout": "hi"}}}},
        {
            "phases": {
                "implementation": {"execution": "none", "further_containers": "no"},
                "self_healing": {"attempts": 3},
            }
        },
    ],
)
def test_a_summary_that_lacks_parts_or_has_others_still_gives_a_page(summary: dict[str, Any], tmp_path: Path) -> None:
    page = Page((sprint(tmp_path, [], summary) / "report.html").read_text())
    assert "not a comparison" in page.text and "Nothing was logged." in page.text


numbers = st.floats(width=64) | st.sampled_from([0.0, 1e308, -1e308, 5e-324, math.inf, math.nan])


@settings(
    max_examples=12,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(values=st.lists(st.tuples(numbers, numbers), min_size=2, max_size=9), rate=numbers)
def test_any_recorded_numbers_give_a_page(values: list[tuple[float, float]], rate: float, tmp_path: Path) -> None:
    found: list[AnyRecord] = [
        PlanRecord(t=0, factor="f", arms=["a", "b"], seeds=list(range(len(values))), primary="m", lower_is_better=True)
    ]
    for seed, pair in enumerate(values):
        for arm, value in zip("ab", pair, strict=True):
            config = {"lr": rate} if math.isfinite(rate) else {}
            for phase in ("tune", "confirm"):
                found.append(
                    MetricRecord(t=seed + 0.5, step=seed, arm=arm, seed=seed, phase=phase, values={"m": value})
                )
                found.append(
                    RunRecord(
                        t=seed + 1, arm=arm, seed=seed, phase=phase, status="ok", values={"m": value},
                        config={**config, "n": seed}, seconds=1,
                    )
                )  # fmt: skip
    assert Page((sprint(tmp_path, found, GOAL) / "report.html").read_text()).tags.count("h1") == 1


def test_numbers_in_the_page_are_those_of_the_analysis(tmp_path: Path) -> None:
    folder = sprint(tmp_path, records(), GOAL)
    (contrast,) = analyse(records()).contrasts
    text = Page((folder / "report.html").read_text()).text
    for value in (contrast.mean, contrast.low, contrast.high):
        assert f"{value:+.4g}" in text
    assert json.dumps(contrast.pairs) in text


# ---- what a run that did not end by itself, or a comment, cannot do ----


@pytest.mark.parametrize(
    "phases",
    [
        implemented(executed(outcome="timeout", success=False)),
        implemented(executed(), executed(execution_id="e2", outcome="failed", success=False)),
        {"implementation": {"execution": {"success": False, "error": "an old record"}}},
        {},
    ],
)
def test_nothing_is_called_better_of_a_run_that_did_not_complete(phases: dict[str, Any], tmp_path: Path) -> None:
    numbers = {"numbers": {"verdict": {"word": "better", "arm": "Lion", "text": "Lion is better."}}}
    summary = {**GOAL, "verdict": "Lion is better.", "phases": {**phases, "validation": numbers}}
    folder = sprint(tmp_path, records(), summary)
    text = Page((folder / "report.html").read_text()).text
    assert "better: Lion" not in text and "inconclusive" in text
    assert "**inconclusive.**" in (folder / "report.md").read_text()


@pytest.mark.parametrize(("comment", "marked"), [("AdamW is better than Lion.", True), ("Lion is better.", False)])
def test_the_comment_stands_beside_the_verdict_and_is_marked_where_it_contradicts(
    comment: str, marked: bool, tmp_path: Path
) -> None:
    phases = implemented(executed(), validation={"analysis": comment})
    folder = sprint(tmp_path, records(), {**GOAL, "phases": phases})
    for text in (Page((folder / "report.html").read_text()).text, (folder / "report.md").read_text()):
        assert comment in text and "an agent’s words" in text.lower()
        assert ("does not agree with what was computed" in text) is marked


def test_what_is_cut_says_so_and_where_the_whole_is(tmp_path: Path) -> None:
    phases = implemented(executed(), discussion={"action_plan": "p" * 30_000})
    phases["implementation"]["code"] = "c" * 20_001
    text = Page((sprint(tmp_path, [], {**GOAL, "phases": phases}) / "report.html").read_text()).text
    assert "20,000 of 20,001 characters; the whole is in experiment.py" in text
    assert "20,000 of 30,000 characters; the whole is in sprint_summary.json" in text


def test_containers_that_differ_are_each_told_and_first_and_last_records_are_proved(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for name in ("e1", "e2"):
        log.append("decision", execution=name, allow=True)
        log.append("end", execution=name, outcome="completed")
    less = {"memory": {"requested": None, "effective": 1 << 30, "enforced_by": "cgroup", "observed": 1 << 30}}
    less["files"] = {**less["memory"], "effective": 1 << 20, "observed": 1 << 20}
    phases = implemented(
        executed(), executed(execution_id="e2", limits=less, image={"reference": "x", "digest": "sha256:34"})
    )
    text = Page((sprint(tmp_path, records(), {**GOAL, "phases": phases}) / "report.html").read_text()).text
    for wanted in (
        "Container e1: Asked for",
        "Container e2: Policy",
        "4GiB",
        "1GiB",
        "1048576",
        "sha256:12",
        "sha256:34",
        "Record 0",
        "Record 3",
    ):
        assert wanted in text, wanted
    assert "Record 1 " not in text
    assert "CPU energy: not measured" in text
    assert "nominally 95 %, it covers about 86 to 91 %" in text


def test_times_are_in_utc_wherever_they_were_written(tmp_path: Path) -> None:
    times = {"start_time": "2026-01-01T14:25:01+02:00", "end_time": "2026-01-01T12:26:00Z"}
    text = Page((sprint(tmp_path, [], {**GOAL, **times}) / "report.html").read_text()).text
    assert "2026-01-01 12:25:01 UTC, 2026-01-01 12:26:00 UTC" in text
    odd = Page((sprint(tmp_path, [], {**GOAL, "start_time": "soon"}) / "report.html").read_text()).text
    assert "–, –" in odd and "soon" not in odd


@pytest.mark.filterwarnings("error")
def test_a_picture_says_how_many_of_the_planned_runs_it_shows_and_takes_steps_that_no_axis_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = records()
    place = max(index for index, one in enumerate(found) if isinstance(one, RunRecord) and one.arm == "AdamW")
    found[place] = found[place].model_copy(update={"status": "diverged"})
    found += [
        MetricRecord(t=99.0 + 10 * seed, step=step, arm="Lion", seed=seed, phase="confirm", values={"test_loss": 2.0})
        for seed in range(7)
        for step in (1.7e308, -1.7e308)
    ]
    labels: list[str] = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda axes, *at, **how: (labels.append(how.get("label", "")), plot(axes, *at, **how))[1]
    )
    folder = sprint(tmp_path, found, GOAL)
    assert (folder / "figures/curves_by_step.png").exists()
    assert {"AdamW (6 of 7 runs)", "Lion (7 runs)"} <= set(labels)


def test_the_host_is_the_one_on_record_and_not_the_one_that_writes_the_page(tmp_path: Path) -> None:
    facts = {"cpu": "Recorded 9000", "cores": 48, "memory": 64 << 30, "platform": "Linux-1.2", "python": "3.11.1"}
    for host, told in ((facts, "Recorded 9000, 48 cores, 64.0 GiB of memory, Linux-1.2"), (None, "not recorded")):
        folder = sprint(tmp_path, records(), {**GOAL, "host": host})
        for text in (Page((folder / "report.html").read_text()).text, (folder / "report.md").read_text()):
            assert told in text.replace("\\_", "_")


def test_a_sprint_and_an_execution_record_the_host_on_which_they_run(
    run_experiment: RunExperiment, tmp_path: Path
) -> None:
    with running(Scripted(code=lambda: "```python\nprint(1)\n```"), run_experiment, tmp_path) as (one, folder):
        summary = one.run("Is a better than b?")
    assert summary["host"] == host_facts() and summary["host"]["cores"] == os.cpu_count()
    assert f"{os.cpu_count()} cores" in Page((folder.path / "report.html").read_text()).text
    labsandbox("exec", "-", *QUICK, "--results", str(tmp_path / "x"), text="print(1)")
    (single,) = (tmp_path / "x").iterdir()
    assert json.loads((single / HOST).read_text()) == host_facts()


def test_a_sensitivity_line_goes_through_the_best_at_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PlanRecord(
        t=0, factor="f", arms=["a", "b"], seeds=list(range(6)), primary="m", lower_is_better=True, select="accuracy",
        select_lower_is_better=False, tune={"lr": [0.1, 0.2], "decay": [0, 1, 2]},
    )  # fmt: skip
    tried = [
        RunRecord(
            t=1, arm=arm, seed=9, phase="tune", status="ok", values={"accuracy": lr + decay / 10},
            config={"lr": lr, "decay": decay},
        )
        for arm in "ab" for lr in (0.1, 0.2) for decay in (0, 1, 2)
    ]  # fmt: skip
    runs = [
        RunRecord(t=2, arm=arm, seed=seed, phase="confirm", status="ok", values={"m": seed + (arm == "b")})
        for seed in range(6) for arm in "ab"
    ]  # fmt: skip
    lines: list[list[float]] = []
    plot = Axes.plot

    def watched(self: Axes, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("linewidth") == 1.5:
            lines.append(list(args[1]))
        return plot(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", watched)
    found = [plan, *tried, *runs]
    made = figures(found, [], analyse(found))
    assert [one.name for one in made if one.name.startswith("sensitivity")] == ["sensitivity_lr", "sensitivity_decay"]
    assert lines[0] == pytest.approx([0.3, 0.4]), "one point for each learning rate: the highest accuracy"
