"""An agent's comment beside the computed verdict: whether its words claim something else.

The verdict is computed and stands; the comment is only shown. This is a plain look at its words, a sentence at a time: it
finds an open contradiction and no more, and a sentence that denies, doubts or asks claims nothing.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from results.contrasts import decided
from results.findings import Contrast, Verdict
from results.summary import Summary, object_of, part, verdict_of, word_of

DISAGREES = "does not agree with what was computed"
_MAX_TEXT = 20_000
_MAX_ARMS = 32
_SENTENCE = re.compile(r"(?<=[.!?;])\s|\n")
_CLAUSE = re.compile(r",\s+(?:and|but|while|whereas|though)\s+(?=.*\b(?:is|are|was|were|wins?|won|beats?|outperform))")
_AHEAD = re.compile(
    r"\b(?:better|best|superior|outperform(?:s|ed)?|beats?|wins?|won|winner|ahead of|preferable)\b",
    re.IGNORECASE,
)
_SIGNIFICANT = re.compile(r"\bsignificant(?:ly)?\b", re.IGNORECASE)
_BEHIND = re.compile(r"\b(?:worse|inferior|underperform(?:s|ed)?|loses?|lost to|behind)\b", re.IGNORECASE)
_NUMBER = re.compile(r"[\d.eE+-]+")
_COUNTED = r"(?!\s*(?:%|pairs?\b|runs?\b|seeds?\b|steps?\b|trials?\b|s\b|seconds?\b))"
_JOINED = re.compile(r"^[\s,]*(?:and|or|&)\s[\w\s]{0,40}$", re.IGNORECASE)
_NO_CLAIM = re.compile(
    r"\b(?:no|not|none|nor|neither|never|cannot|without|nothing|nobody|whether|if|unless|may|might|could|would|should|"
    r"inconclusive|undecided|underpowered|unclear|open)\b|n[’']t\b|\?\s*$|^\W*(?:next goal|why)\b",
    re.IGNORECASE,
)


def disagreement(
    comment: str,
    verdict: Verdict,
    arms: Sequence[str],
    contrasts: Iterable[Contrast] = (),
    lower_is_better: bool = True,
) -> str:
    """`DISAGREES` where the comment claims what the verdict does not, else "".

    verdict: the computed one, whose own text claims nothing more than it; arms: every arm's name. Undecided, no sentence may
    call anything better or significant. Decided for an arm, none may call another arm better than all or than that one, or
    that one worse. What it says of two others must not go against the comparison of these two, where there was one.
    """
    said = _spaced(verdict.text)
    own = _spaced(comment[:_MAX_TEXT]).replace(said, "\n") if said and said in _spaced(comment) else comment[:_MAX_TEXT]
    claims = [one for one in _SENTENCE.split(own) if not _NO_CLAIM.search(one)]
    if verdict.word != "better":
        wrong = any(_AHEAD.search(one) or _SIGNIFICANT.search(one) for one in claims)
    else:
        compared = {
            frozenset((one.arm, one.baseline)): _ahead_in(one, lower_is_better) if decided(one) else None
            for one in contrasts
        }
        wrong = any(
            _is_wrong(claim, verdict.arm, compared)
            for one in claims
            for clause in _CLAUSE.split(one)
            for claim in _claims(clause, arms[:_MAX_ARMS])
        )
    return DISAGREES if wrong else ""


@dataclass(frozen=True)
class _Claim:
    """That arms are ahead of, or behind, the others that the sentence names; of all where it names none."""

    arms: frozenset[str]
    ahead: bool
    others: frozenset[str]


def _claims(sentence: str, arms: Sequence[str]) -> Iterator[_Claim]:
    """Whoever is named last before the word is meant, with those that "and" joins to it; the others are named behind the
    word, or else before it."""
    named = _named(sentence, arms)
    for words, ahead in ((_AHEAD, True), (_BEHIND, False)):
        for one in words.finditer(sentence):
            before = [place for place in named if place[0] < one.start()]
            if not before:
                continue
            meant, place = {before[-1][1]}, len(before) - 1
            while place and _JOINED.search(
                sentence[before[place - 1][0] + len(before[place - 1][1]) : before[place][0]]
            ):
                place -= 1
                meant.add(before[place][1])
            behind = {name for start, name in named if start > one.start()}
            yield _Claim(frozenset(meant), ahead, frozenset((behind or {name for _, name in before}) - meant))


def _is_wrong(claim: _Claim, best: str | None, compared: Mapping[frozenset[str], str | None]) -> bool:
    """Whether it goes against what was computed; of what was not compared nothing is said."""
    if best in claim.arms:
        return not claim.ahead
    if claim.ahead and best is not None and (not claim.others or best in claim.others):
        return True
    pairs = [(arm, other) for arm in claim.arms for other in claim.others if other != best]
    asked = {frozenset(pair): pair[0] if claim.ahead else pair[1] for pair in pairs}
    return any(compared[pair] != ahead for pair, ahead in asked.items() if pair in compared)


def _named(text: str, names: Sequence[str]) -> list[tuple[int, str]]:
    """Where names begin, in order, as whole words in any case; of two that begin there, the longer one. A number that
    stands within another, or counts something, names no arm."""
    found: dict[int, str] = {}
    for name in sorted(names, key=len):
        number = _COUNTED if _NUMBER.fullmatch(name) else ""
        for place in re.finditer(rf"(?<![\w.+−-]){re.escape(name)}(?!\w|\.\d){number}", text, re.IGNORECASE):
            found[place.start()] = name
    return sorted(found.items())


def _ahead_in(contrast: Contrast, lower_is_better: bool) -> str:
    return contrast.arm if (contrast.mean < 0) == lower_is_better else contrast.baseline


def _spaced(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def comment_of(summary: Summary) -> tuple[str, str]:
    """The validator's comment, and `DISAGREES` where its words claim something other than the verdict."""
    validation = part(summary, "validation")
    comment, numbers = validation.get("analysis"), object_of(validation.get("numbers"))
    if not isinstance(comment, str) or not comment.strip():
        return "", ""
    arms = [_text(one, "name") for one in _list(numbers.get("arms"))]
    recorded, word = object_of(numbers.get("verdict")), word_of(summary)
    # What is recorded of a run that was ended may say more than its verdict does now.
    said = verdict_of(summary) or "" if word == recorded.get("word") else ""
    verdict = Verdict.model_construct(word=word, arm=_text(recorded, "arm") or None, text=said)  # type: ignore[arg-type]
    lower = numbers.get("lower_is_better") is not False
    return comment, disagreement(comment, verdict, arms, _contrasts(numbers), lower)


def _contrasts(numbers: Mapping[str, Any]) -> Iterator[Contrast]:
    for one in (*_list(numbers.get("contrasts")), *_list(numbers.get("rivals"))):
        with contextlib.suppress(ValidationError):  # an older record, which says less
            yield Contrast.model_validate(one)


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _text(found: Any, name: str) -> str:
    value = object_of(found).get(name)
    return value if isinstance(value, str) else ""
