"""An agent's comment cannot pass for the verdict: what openly contradicts the numbers is marked, ordinary words are not."""

import pytest

from results.analysis import analyse
from results.comment import DISAGREES, comment_of, disagreement
from results.findings import Verdict, Word
from tests.comparisons import study

ARMS = ["AdamW", "Lion"]


def verdict(word: Word, arm: str | None) -> Verdict:
    return Verdict(word=word, arm=arm, text="")


@pytest.mark.parametrize(
    ("comment", "word", "arm"),
    [
        ("Lion is better.", "inconclusive", None),
        ("The difference is significant, so use Lion.", "no detectable difference", None),
        ("A fine run. Lion clearly outperforms AdamW!", "not a comparison", None),
        ("AdamW is better than Lion.", "better", "Lion"),
        ("Compared with Lion, adamw wins on every seed.", "better", "Lion"),
        ("Lion is worse by 0.1.", "better", "Lion"),
        ("No doubt remains\nAdamW beats Lion", "better", "Lion"),
    ],
)
def test_a_comment_that_claims_something_else_is_marked(comment: str, word: Word, arm: str | None) -> None:
    assert disagreement(comment, verdict(word, arm), ARMS) == DISAGREES


@pytest.mark.parametrize(
    ("comment", "word", "arm"),
    [
        ("", "inconclusive", None),
        ("Neither is significantly better.", "inconclusive", None),
        ("It isn't significant. Is Lion better? Whether Lion is better is open.", "inconclusive", None),
        ("No difference between Lion and AdamW was detected.", "no detectable difference", None),
        ("Next goal: find the better of Lion and AdamW on a larger model", "inconclusive", None),
        ("Lion is better than AdamW, significantly so.", "better", "Lion"),
        ("Against AdamW, Lion wins; AdamW is worse.", "better", "Lion"),
        ("AdamW is not better.", "better", "Lion"),
        ("AdamW-8bit is a better name.", "better", "AdamW-8bit"),
    ],
)
def test_ordinary_words_beside_a_verdict_are_not(comment: str, word: Word, arm: str | None) -> None:
    assert disagreement(comment, verdict(word, arm), [*ARMS, *([arm] if arm and arm not in ARMS else [])]) == ""


def test_a_comment_on_a_run_that_timed_out_is_held_against_no_verdict() -> None:
    """The record is from when a run that was ended could still be called better."""
    numbers = {"arms": [{"name": one} for one in ARMS], "verdict": {"word": "better", "arm": "Lion"}}
    for outcome, said in (("completed", ""), ("timeout", DISAGREES)):
        phases = {
            "implementation": {"execution": {"outcome": outcome}},
            "validation": {"analysis": "Lion is better.", "numbers": numbers},
        }
        assert comment_of({"phases": phases}) == ("Lion is better.", said)
    assert comment_of({"phases": {"validation": {"analysis": 7, "numbers": "no"}}}) == ("", "")


BASE = [float(seed) for seed in range(8)]
ORDERS = {
    "the first": {"32": BASE, "64": [v + 1 + v / 100 for v in BASE], "128": [v + 2 + v / 90 for v in BASE]},
    "the middle one": {"32": BASE, "64": [v - 2 - v / 100 for v in BASE], "128": [v - 1 - v / 90 for v in BASE]},
    "one that others are behind": {"32": BASE, "64": [v + 1 + v / 100 for v in BASE], "128": [v - 1 - v / 90 for v in BASE]},
    "not known": {"32": BASE, "64": [v - 2 - v / 100 for v in BASE], "128": [v - 2.01 + (v % 2) / 9 for v in BASE]},
    "none": {"32": BASE, "64": [v + (-1) ** v for v in BASE], "128": [v - (-1) ** v for v in BASE]},
}  # fmt: skip


@pytest.mark.parametrize("factor", ["hidden dimension", "arm"])
@pytest.mark.parametrize("values", ORDERS.values(), ids=ORDERS)
def test_what_was_computed_does_not_disagree_with_itself(values: dict[str, list[float]], factor: str) -> None:
    """As a whole, and where an agent has copied a part of it, or has put words around it."""
    found = analyse(study(values, factor=factor))
    contrasts = [*found.contrasts, *found.rivals]
    for said in (found.verdict.text, f"{found.verdict.text}\nNote: 8 pairs.\nWhy: 128 may be better."):
        assert disagreement(said, found.verdict, list(values), contrasts) == ""
    if found.verdict.word == "better":
        other = found.verdict.model_copy(update={"text": "something else"})
        assert disagreement(found.verdict.text, other, list(values), contrasts) == ""


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        ("64 is better than 32, and 128 is better than 32.", ""),
        ("64 and 128 are better than 32.", ""),
        ("128 beats 32; 64 is the best.", ""),
        ("32 is worse than 128.", ""),
        ("64 wins on 8 pairs of 32 runs.", ""),
        ("128 is better.", DISAGREES),
        ("128 beats 64.", DISAGREES),
        ("32 is better than 128.", DISAGREES),
        ("128 is worse than 32.", DISAGREES),
        ("64 is worse than 32.", DISAGREES),
    ],
)
def test_of_several_arms_each_two_are_held_against_their_own_comparison(comment: str, said: str) -> None:
    values = ORDERS["the middle one"]
    found = analyse(study(values))
    assert found.verdict.arm == "64"
    assert disagreement(comment, found.verdict, list(values), [*found.contrasts, *found.rivals]) == said
    phases = {
        "implementation": {"execution": {"outcome": "completed"}},
        "validation": {"analysis": comment, "numbers": found.model_dump(mode="json")},
    }
    assert comment_of({"phases": phases})[1] == said


def test_a_copy_of_an_old_verdict_on_a_run_that_timed_out_is_still_marked() -> None:
    numbers = {"arms": [{"name": one} for one in ARMS], "verdict": {"word": "better", "arm": "Lion"}}
    validation = {"analysis": "Lion is better.", "verdict": "Lion is better.", "numbers": numbers}
    phases = {"implementation": {"execution": {"outcome": "timeout"}}, "validation": validation}
    assert comment_of({"phases": phases})[1] == DISAGREES
