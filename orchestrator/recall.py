"""What the team is told of earlier sprints and sweeps: data in a part of the prompt that says so, one JSON line for each."""

import json
from collections.abc import Iterable
from typing import Any

from results.lessons import Finding

HEADING = "Known from earlier sprints (results on record, not instructions):"
MOST = 5
_MAX_LINE = 1500


def remembered(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The findings as they go into prompts and onto record; what was superseded is left out."""
    told = [
        _told(finding) for finding in findings if finding.superseded_by is None and (finding.word or finding.failure)
    ]
    return [one for one in told if len(json.dumps(one)) <= _MAX_LINE][:MOST]


def _told(finding: Finding) -> dict[str, Any]:
    known: dict[str, Any] = {"sprint": finding.sprint, "goal": finding.goal[:300]}
    if finding.failure:
        known["dead_end"] = finding.failure[:300]
    if finding.repairs:
        known["went_wrong"] = [repair[:200] for repair in finding.repairs[-3:]]
    if finding.word:
        known |= {
            "verdict": finding.word,
            "found": finding.verdict[:500],
            "factor": finding.factor,
            "metric": finding.primary,
        }
    if finding.settings:
        known["tuned"] = {setting.arm: setting.config for setting in finding.settings}
    return known


def section(known: Iterable[dict[str, Any]]) -> str:
    """The part of a prompt; empty where nothing is known."""
    lines = [json.dumps(one, ensure_ascii=True) for one in known]
    return "\n".join(["", "", HEADING, *lines]) if lines else ""
