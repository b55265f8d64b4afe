"""An agent's comment cannot pass for the verdict: what openly contradicts the numbers is marked, ordinary words are not."""

import pytest

from results.comment import DISAGREES, comment_of, disagreement

ARMS = ["AdamW", "Lion"]


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
def test_a_comment_that_claims_something_else_is_marked(comment: str, word: str, arm: str | None) -> None:
    assert disagreement(comment, word, arm, ARMS) == DISAGREES


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
def test_ordinary_words_beside_a_verdict_are_not(comment: str, word: str, arm: str | None) -> None:
    assert disagreement(comment, word, arm, [*ARMS, *([arm] if arm and arm not in ARMS else [])]) == ""


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
