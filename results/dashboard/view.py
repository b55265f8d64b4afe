"""One sprint for its page: from a summary of any age and shape to plain text and numbers. Nothing here can fail on data."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.units import format_limit
from results.comment import comment_of
from results.dashboard.steps import PHASES
from results.host import host_told
from results.readable import day, digits, digits_of_p, line, number, plain, seconds, size
from results.summary import (
    Summary,
    ended_of,
    execution_of,
    final_implementation,
    object_of,
    outcome_of,
    part,
    verdict_of,
    word_of,
)

Cells = tuple[str, ...]
_MOST_ROWS = 200
_MOST_SAMPLES = 2000


@dataclass(frozen=True)
class Table:
    """Rows under a heading."""

    head: Cells
    rows: tuple[Cells, ...]


@dataclass(frozen=True)
class SprintView:
    """What a sprint's page shows of its summary; empty texts and tables are left out there."""

    goal: str
    outcome: str
    ended: str
    """How its execution ended, in words."""
    verdict: str
    word: str
    facts: tuple[tuple[str, str], ...]
    command: str
    follows: str
    responses: tuple[tuple[str, str], ...]
    plan: str
    code: str
    arms: Table
    contrasts: Table
    warnings: tuple[str, ...]
    analysis: str
    """The validator's comment."""
    disagrees: str
    """What is said of it where it claims something other than the verdict."""
    advised: str
    repairs: Table
    containers: Table
    limits: Table
    use: tuple[tuple[str, str], ...]
    gpus: Table
    policy: tuple[tuple[str, str], ...]
    samples: tuple[Mapping[str, float], ...] = field(repr=False, default=())
    errors: tuple[tuple[str, str], ...] = ()


def sprint_view(summary: Summary) -> SprintView:
    """The view of a summary."""
    execution, implementation = execution_of(summary), final_implementation(summary)
    validation, discussion = part(summary, "validation"), part(summary, "discussion")
    numbers, recommended = object_of(validation.get("numbers")), object_of(validation.get("recommendation"))
    return SprintView(
        goal=line(summary.get("goal"), 2000),
        outcome=line(outcome_of(summary), 40),
        ended=line(ended_of(summary), 600),
        verdict=plain(verdict_of(summary), 4000),
        word=line(word_of(summary), 60),
        facts=_facts(summary),
        command=line(summary.get("command"), 2000),
        follows=line(summary.get("follows"), 80),
        responses=tuple((line(k, 80), plain(v, 20_000)) for k, v in _items(discussion.get("individual_responses"))),
        plan=plain(discussion.get("action_plan"), 40_000),
        code=plain(implementation.get("code")),
        arms=arms_of(numbers),
        contrasts=contrasts_of(numbers),
        warnings=tuple(_warnings(numbers, word_of(summary))),
        analysis=plain(validation.get("analysis"), 20_000),
        disagrees=comment_of(summary)[1],
        advised=line(recommended.get("goal"), 600),
        repairs=_repairs(part(summary, "self_healing").get("attempts")),
        containers=_containers(implementation),
        limits=_limits(execution),
        use=_use(execution),
        gpus=_gpus(execution),
        policy=_policy(execution),
        samples=tuple(_samples(execution)),
        errors=tuple((name, line(error, 600)) for name in PHASES if (error := part(summary, name).get("error"))),
    )


def difference(one: str, other: str, names: tuple[str, str]) -> list[tuple[str, str]]:
    """Two programs, line by line: (kind, text), kind being "same", "gone", "new" or "place"."""
    kinds = {" ": "same", "-": "gone", "+": "new", "@": "place", "?": "same"}
    lines = difflib.unified_diff(one.splitlines()[:4000], other.splitlines()[:4000], *names, lineterm="", n=3)
    return [(kinds.get(text[:1], "same"), text) for text in lines][:4000]


# ---- parts ----


def _warnings(numbers: Mapping[str, Any], word: str) -> Iterator[str]:
    """The analysis's; before them, that a record of before there was a gate for it concludes from a run that was ended."""
    if line(object_of(numbers.get("verdict")).get("word"), 60) != line(word, 60):
        yield "Not every run came to its own end, so nothing is concluded, whatever its record says."
    yield from (line(one, 600) for one in _list(numbers.get("warnings")))


def _facts(summary: Summary) -> tuple[tuple[str, str], ...]:
    execution = execution_of(summary)
    image = object_of(execution.get("image"))
    found = [
        ("begun", day(summary.get("start_time")) if summary.get("start_time") else ""),
        ("ended", day(summary.get("end_time")) if summary.get("end_time") else ""),
        ("seed", line(summary.get("seed"), 40)),
        ("agents", line(summary.get("agents"), 200)),
        ("host", line(host_told(summary.get("host")), 400)),
        ("backend", " ".join(line(execution.get(name), 40) for name in ("backend", "runtime", "isolation")).strip()),
        ("image", line(image.get("reference"), 200)),
        ("image digest", line(image.get("digest"), 100)),
        ("packages", line(", ".join(str(one).split(" ")[0] for one in _list(execution.get("packages"))), 600)),
        ("execution", line(execution.get("execution_id"), 80)),
    ]
    return tuple((name, value) for name, value in found if value)


def arms_of(numbers: Mapping[str, Any]) -> Table:
    """An analysis's arms."""
    rows = []
    for arm in map(object_of, _list(numbers.get("arms"))):
        runs = ", ".join(
            f"{line(arm.get(name), 12)} {name}"
            for name in ("ok", "failed", "diverged", "skipped", "missing")
            if arm.get(name) not in (None, 0)
        )
        config = ", ".join(
            f"{line(k, 40)} = {digits(v) if isinstance(v, float) else line(v, 40)}"
            for k, v in _items(arm.get("config"))
        )
        rows.append(
            (line(arm.get("name"), 128), runs, digits(arm.get("mean")), digits(arm.get("sd")),
             config, line(arm.get("trials"), 12), seconds(arm.get("seconds")))
        )  # fmt: skip
    return Table(("arm", "runs", "mean", "sd", "chosen", "trials", "time of a run"), tuple(rows))


def contrasts_of(numbers: Mapping[str, Any]) -> Table:
    """Its differences."""
    rows = []
    for one in map(object_of, _list(numbers.get("contrasts"))):
        interval = f"{digits(one.get('low'))} to {digits(one.get('high'))}"
        against = f"{line(one.get('arm'), 128)} − {line(one.get('baseline'), 128)}"
        rows.append(
            (against, line(one.get("pairs"), 12), digits(one.get("mean")), interval,
             f"{digits_of_p(one.get('p'))}{'' if one.get('exact', True) else ' (Monte Carlo)'}",
             digits_of_p(one.get("p_adjusted")), digits(one.get("d_z")))
        )  # fmt: skip
    return Table(("difference", "pairs", "mean", "95 % interval", "exact p", "p (Holm)", "d_z"), tuple(rows))


def _repairs(attempts: Any) -> Table:
    rows = [
        (line(one.get("attempt"), 12), line(one.get("failure"), 300), line(one.get("decision"), 300))
        for one in map(object_of, _list(attempts))
    ]
    return Table(("attempt", "what failed", "decision"), tuple(rows))


def _containers(implementation: Mapping[str, Any]) -> Table:
    """Those of a study that went on because one container's time was too short; none where one was enough."""
    further = list(map(object_of, _list(implementation.get("further_containers"))))
    executions = [object_of(implementation.get("execution")), *further] if further else []
    rows = []
    for place, one in enumerate(executions, 1):
        usage, timings = object_of(one.get("usage")), object_of(one.get("timings"))
        rows.append(
            (str(place), line(one.get("outcome"), 40), day(one.get("started_at")) if one.get("started_at") else "–",
             seconds(timings.get("run_s")), seconds(usage.get("cpu_s")), size(usage.get("peak_memory_bytes")),
             line(one.get("message"), 300))
        )  # fmt: skip
    head = ("container", "outcome", "started", "ran", "CPU time", "memory at most", "said")
    return Table(head, tuple(rows))


def _limits(execution: Mapping[str, Any]) -> Table:
    rows = []
    for name, found in _items(execution.get("limits")):
        limit = object_of(found)
        amounts = [format_limit(name, number(limit.get(key))) for key in ("requested", "effective", "observed")]
        rows.append((line(name, 40), *amounts, line(limit.get("enforced_by"), 200)))
    return Table(("limit", "requested", "effective", "read back", "enforced by"), tuple(rows))


def _use(execution: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    usage, timings = object_of(execution.get("usage")), object_of(execution.get("timings"))
    found = [
        ("CPU time", seconds(usage.get("cpu_s"))),
        ("memory at most", size(usage.get("peak_memory_bytes"))),
        ("processes at most", digits(usage.get("peak_pids"))),
        *((f"time to {name.removesuffix('_s')}", seconds(value)) for name, value in _items(timings)),
        ("metric records", digits(execution.get("metrics_total"))),
        ("records refused", digits(execution.get("metrics_rejected"))),
    ]
    return tuple((line(name, 60), value) for name, value in found if value != "–")


def _gpus(execution: Mapping[str, Any]) -> Table:
    rows = []
    for one in map(object_of, _list(object_of(execution.get("usage")).get("gpus"))):
        joules = number(one.get("energy_j"))
        rows.append(
            (line(one.get("name"), 80), line(one.get("uuid"), 60), size(one.get("peak_memory_bytes")),
             digits(one.get("mean_utilisation")), "–" if joules is None else f"{joules:.0f} J")
        )  # fmt: skip
    return Table(("GPU", "UUID", "memory at most", "busy (%)", "energy"), tuple(rows))


def _policy(execution: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    policy, audit = object_of(execution.get("policy")), object_of(execution.get("audit"))
    found = [("policy", line(policy.get("name"), 80)), ("sha256", line(policy.get("sha256"), 80))]
    if number(audit.get("first")) is not None:
        found.append(("audit records", f"{line(audit.get('first'), 20)} to {line(audit.get('last'), 20)}"))
    return tuple((name, value) for name, value in found if value)


def _samples(execution: Mapping[str, Any]) -> Iterator[Mapping[str, float]]:
    samples = _list(object_of(execution.get("usage")).get("samples"), _MOST_SAMPLES)
    for sample in samples:
        yield {line(k, 40): found for k, v in _items(sample) if (found := number(v)) is not None}
    yield from _gpu_samples(_list(object_of(execution.get("usage")).get("gpus")))


def _gpu_samples(gpus: list[Any]) -> Iterator[Mapping[str, float]]:
    """Of all devices together, as the page of a sprint that runs has them; their samples are taken at the same moments."""
    each = [list(map(object_of, _list(object_of(one).get("samples"), _MOST_SAMPLES))) for one in gpus]
    for together in zip(*each, strict=False):
        at = number(together[0].get("t"))
        memory = [found for one in together if (found := number(one.get("memory_bytes"))) is not None]
        busy = [found for one in together if (found := number(one.get("utilisation"))) is not None]
        if at is not None:
            sample = {"t": at} | ({"gpu_memory_bytes": sum(memory)} if memory else {})
            yield sample | ({"gpu_busy": sum(busy) / len(busy)} if busy else {})


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(object_of(value).items())[:_MOST_ROWS]


def _list(value: Any, most: int = _MOST_ROWS) -> list[Any]:
    return value[:most] if isinstance(value, list) else []
