"""What a goal may ask for in words that are known, and that no template does: refused by name, never left out."""

import re
from dataclasses import dataclass

from orchestrator.local_agents.playbook.study import HOW_TO_CONNECT, UnknownGoal

_LEARNED = ("optimizer", "warm-up", "gradient clipping", "weight decay")
_WITHOUT_VALUES = ("optimizer", "precision", "gradient checkpointing")
_RATIO = r"\b(doubl\w*|halv\w*|tripl\w*|quadrupl\w*|twice|quarter\w*|\d+(\.\d+)?\s*(x|times))\b"
_FITTED = "the length of training is fitted to the time limit"
_TUNED = "the learning rate is tuned for each arm"


@dataclass(frozen=True)
class _Refusal:
    """A pattern of words, why they cannot be met, and for which factors that holds; all but `not_of` by default."""

    words: str
    why: str
    of: tuple[str, ...] = ()
    not_of: tuple[str, ...] = ()

    def found(self, text: str, factor: str) -> re.Match[str] | None:
        """Where the text asks for it, in a study of that factor."""
        if factor in self.not_of or (self.of and factor not in self.of):
            return None
        return re.search(self.words, text, re.IGNORECASE)


_REFUSALS = (
    # how long and how often
    _Refusal(r"(\b\d+[\s-]*)?\bepochs?\b", _FITTED),
    _Refusal(r"\b[\d,.]+[\s-]*(training[\s-]+)?(steps?|iterations?|updates?)\b", _FITTED, not_of=("warm-up",)),
    _Refusal(r"\b[\d,.]+[\s-]*(training[\s-]+steps?|iterations?|updates?)\b", _FITTED),
    _Refusal(r"\b\d+[\s-]*seconds?\b", "--wall sets the time"),
    _Refusal(r"\bseed\s*\d+", "--seed sets the seed"),
    _Refusal(r"\b\d+[\s-]*(trials?|samples?|classes|minutes?|hours?)\b", "it is not read as a setting"),
    _Refusal(
        r"\b(increas|decreas|grow|chang|ramp|rais|lower|reduc|switch|doubl|halv|drop|vary)\w*\b.*\b(during|over\s+time)\b",
        "every setting is the same from the first step to the last",
        not_of=("warm-up",),
    ),
    _Refusal(r"\b(dynamic(?!s)\w*|schedul\w*)", "only the learning rate has a schedule", not_of=("warm-up",)),
    # where
    _Refusal(r"\bmodel[\s-]*parallel\w*", "only data are split over devices"),
    _Refusal(
        r"\b(large|big|huge|deep|long)(r|er|ger)?[\s-]+((language|neural|decoder|sequence)[\s-]+)*"
        r"(transformers?|models?|networks?|nets?|nns?|perceptrons?|mlps?|classifiers?|llms?|lms?)\b",
        "the models are small",
    ),
    _Refusal(r"\b(batch|layer|rms)[\s-]*norm(s|ali[sz]\w*)?\b", "normalisation is not varied"),
    _Refusal(r"\b(per|each|every|by)[\s-]+(layer|block)s?\b|\blayer[\s-]*wise\b", "all layers are treated alike"),
    # the learning rate
    _Refusal(
        r"(?<!tuned )(?<!tuning )(?<!tuning the )(?<!tune the )(?<!best )(?<!own )\b(learning[\s-]*rates?|lrs?)\b"
        r"(?![\s-]*warm)(?!\s+(is\s+|are\s+)?(well[\s-]+)?tun)",
        _TUNED,
    ),
    _Refusal(r"\bconstant\b|(?<!weight )(?<!weight-)\bdecay\w*", "warm-up is linear, and a cosine follows", of=("warm-up",)),
    # amounts
    _Refusal(_RATIO, "name the values", of=(*_LEARNED, *_WITHOUT_VALUES)),
    _Refusal(r"\bquarter\w*", "name the values"),
    _Refusal(r"\bhalf\b", "name the values", of=_LEARNED),
    # each factor's own
    _Refusal(
        r"\bby[\s_-]*(the\s+)?values?\b|\bvalue[\s-]*(based[\s-]*)?clip\w*|\bclip_grad_value\w*"
        r"|\bvalues?(?=\s*(vs\.?|versus|or|and|against|with|to|than|over|/)\s+(by\s+|the\s+)?(gradient\s+)?norms?\b)"
        r"|(?<=norm )(vs\.?|versus|or|and|against|with|to|than|over)\s+(by\s+)?(the\s+)?values?\b",
        "gradients are clipped by their norm",
        of=("gradient clipping",),
    ),
    _Refusal(
        r"\b(weights?|loss|activations?|parameters?|updates?|momentum)[\s-]+clip\w*"
        r"|\bclip\w*\s+(of\s+)?(the\s+)?(weights?|loss(es)?|activations?|parameters?|updates?)\b",
        "only gradients are clipped",
    ),
    _Refusal(r"\b(without|no|zero)[\s-]+momentum\b|\bmomentum\W*(of\s+|is\s+|at\s+)?\d[\d.]*", "SGD's momentum is 0.9"),
    _Refusal(r"\bwithout\b|\bno[\s-]+(warm|weight|decay|clip|grad)\w*", "an optimizer is compared as it is", of=("optimizer",)),
    _Refusal(r"\bloss[\s-]*scal\w*", "the loss is scaled for fp16, always", of=("precision",)),
    _Refusal(
        r"\b(fp|float|bf|bfloat)?[\s-]?(16|precision)[\s-]+(weights?|gradients?|parameters?|activations?)\b"
        r"|\b(weights?|gradients?|parameters?)\s+in\s+(fp|float|bf|bfloat|half|reduced)\w*",
        "precision is varied by autocast alone",
        of=("precision",),
    ),
    _Refusal(
        r"\b(every|each)\s+(other|second|third|two|\d+)\b|\b(half|some|only|part)\s+of\b|\bonly\b",
        "all blocks are checkpointed, or none",
        of=("gradient checkpointing",),
    ),
    _Refusal(r"\bembedding\w*(?=.*\bhidden)|(?<=hidden)(?=.*\bembedding).*", "both are one width", of=("hidden dimension",)),
    # what is measured
    _Refusal(
        r"\b(memory|ram|footprint)\b",
        "memory is measured for gradient checkpointing only",
        not_of=("gradient checkpointing",),
    ),
    # any other number
    _Refusal(
        r"(?<![\w.])(?<!fp[\s-])(?<!bf[\s-])(?<!float[\s-])-?\d+(\.\d+)?(e[+-]?\d+)?\s*%?(?![\w.]*\w)(?![\s-]*(layer|block|head|seed|run|rep))",
        "this factor has no values to choose from",
        of=_WITHOUT_VALUES,
    ),
)  # fmt: skip


def refuse_unmet(text: str, factor: str) -> None:
    """Raises UnknownGoal for what the text asks of a study of `factor` beyond what the templates do."""
    for refusal in _REFUSALS:
        if found := refusal.found(text, factor):
            words = " ".join(found[0].split())[:60]
            raise UnknownGoal(f"the playbook cannot do what {words!r} asks for: {refusal.why}; {HOW_TO_CONNECT}")
