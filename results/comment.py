"""An agent's comment beside the computed verdict: whether its words claim something else.

The verdict is computed and stands; the comment is only shown. This is a plain look at its words, a sentence at a time: it
finds an open contradiction and no more, and a sentence that denies, doubts or asks claims nothing.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from results.summary import Summary, part, word_of

DISAGREES = "does not agree with what was computed"
_MAX_TEXT = 20_000
_MAX_ARMS = 32
_SENTENCE = re.compile(r"(?<=[.!?;])\s|\n")
_AHEAD = re.compile(
    r"\b(?:better|best|superior|outperform(?:s|ed)?|beats?|wins?|won|winner|ahead of|preferable)\b",
    re.IGNORECASE,
)
_SIGNIFICANT = re.compile(r"\bsignificant(?:ly)?\b", re.IGNORECASE)
_BEHIND = re.compile(r"\b(?:worse|inferior|underperform(?:s|ed)?|loses?|lost to|behind)\b", re.IGNORECASE)
_NO_CLAIM = re.compile(
    r"\b(?:no|not|none|nor|neither|never|cannot|without|nothing|nobody|whether|if|unless|may|might|could|would|should|"
    r"inconclusive|undecided|underpowered|unclear|open)\b|n[’']t\b|\?\s*$|^\W*(?:next goal|why)\b",
    re.IGNORECASE,
)


def disagreement(comment: str, word: str, arm: str | None, arms: Sequence[str]) -> str:
    """`DISAGREES` where the comment claims what the verdict does not, else "".

    word and arm: the computed verdict's; arms: every arm's name. Undecided, no sentence may call anything better or
    significant. Decided for an arm, none may call another arm better, or that one worse.
    """
    claims = [one for one in _SENTENCE.split(comment[:_MAX_TEXT]) if not _NO_CLAIM.search(one)]
    if word == "better":
        others = [name for name in arms[:_MAX_ARMS] if name != arm]
        wrong = arm is not None and any(_names_another(one, arm, others) for one in claims)
    else:
        wrong = any(_AHEAD.search(one) or _SIGNIFICANT.search(one) for one in claims)
    return DISAGREES if wrong else ""


def _names_another(sentence: str, arm: str, others: Sequence[str]) -> bool:
    """Whether it calls one of the others ahead, or the arm behind: whoever is named last before the word is meant."""
    ahead = any(_last_named(sentence[: one.start()], [arm, *others]) in others for one in _AHEAD.finditer(sentence))
    return ahead or any(
        _last_named(sentence[: one.start()], [arm, *others]) == arm for one in _BEHIND.finditer(sentence)
    )


def _last_named(text: str, names: Sequence[str]) -> str | None:
    """The name that begins last, as whole words in any case; of two that begin there, the longer one."""
    found = [
        (place.start(), len(name), name)
        for name in names
        for place in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE)
    ]
    return max(found)[2] if found else None


def comment_of(summary: Summary) -> tuple[str, str]:
    """The validator's comment, and `DISAGREES` where its words claim something other than the verdict."""
    validation = part(summary, "validation")
    comment, numbers = validation.get("analysis"), validation.get("numbers")
    if not isinstance(comment, str) or not comment.strip():
        return "", ""
    numbers = numbers if isinstance(numbers, dict) else {}
    listed = numbers.get("arms")
    arms = [_text(one, "name") for one in (listed if isinstance(listed, list) else ())]
    return comment, disagreement(comment, word_of(summary), _text(numbers.get("verdict"), "arm") or None, arms)


def _text(found: Any, name: str) -> str:
    value = found.get(name) if isinstance(found, Mapping) else None
    return value if isinstance(value, str) else ""
