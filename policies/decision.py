"""The one place where it is decided whether an experiment may run, and under which limits."""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from policies.merge import stricter
from policies.model import Ceiling, Limits, PartialLimits, Policy


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(_Data):
    """What an experiment asks for beyond the policy's own terms."""

    limits: PartialLimits = PartialLimits()
    unmet_requirements: tuple[str, ...] = ()
    """Requirements that the sandbox's environment does not hold already."""


class Capabilities(_Data):
    """What a backend with one runtime can enforce on this host, found by looking."""

    backend: str
    runtime: str
    enforces: frozenset[str]
    """Names of `Limits` fields, and `network`, that it holds."""
    missing: dict[str, str] = {}
    """For what it cannot enforce: why."""
    gpus: int = 0
    """NVIDIA GPUs that it can hand to a container."""
    gpus_why: str = ""
    """Why that is so, in a few words."""


class Rule(_Data):
    """One rule that had something to say."""

    id: str
    """`request.wall`, `ceiling.memory`, `capability.pids`, `dependencies.deny`, …"""
    effect: Literal["allow", "tighten", "deny"]
    resource: str
    requested: float | str | None
    effective: float | str | None
    reason: str


class Decision(_Data):
    """Allow or deny, with every rule that mattered."""

    allow: bool
    limits: Limits
    """The effective limits; `gpus` is the number given."""
    rules: tuple[Rule, ...]
    policy: str
    policy_sha256: str

    @property
    def reason(self) -> str:
        """One line: why it was denied, or that it was allowed."""
        denials = [rule.reason for rule in self.rules if rule.effect == "deny"]
        return "; ".join(denials) if denials else f"allowed by policy {self.policy}"


def decide(request: Request, policy: Policy, capabilities: Capabilities, ceilings: Iterable[Ceiling] = ()) -> Decision:
    """Whether `request` may run under `policy` on this backend, and with which limits.

    A request may only tighten: one that asks for more than the policy or the box allows is denied, not
    clamped. A policy that is looser than the box is lowered to the box. A limit that the backend cannot
    enforce denies the run.
    """
    allowed, rules = policy.limits, []
    for ceiling in ceilings:
        lowered = stricter(allowed, ceiling.limits)
        rules += _changes("ceiling", "the box allows", allowed, lowered)
        allowed = lowered

    asked = request.limits.given()
    effective = stricter(allowed, request.limits)
    for name, value in asked.items():
        rules.append(_judge_request(policy.name, name, value, getattr(allowed, name)))

    gpus = int(asked.get("gpus", min(policy.gpus_unasked, allowed.gpus)))
    effective = effective.model_copy(update={"gpus": min(gpus, allowed.gpus)})

    for name in (*Limits.model_fields, "network"):
        if name != "gpus" and name not in capabilities.enforces:
            why = capabilities.missing.get(name, "not supported")
            where = f"{capabilities.backend} with {capabilities.runtime}"
            rules.append(_deny(f"capability.{name}", name, None, f"{where} cannot enforce {name}: {why}"))

    for requirement in request.unmet_requirements:
        reason = f"the sandbox does not hold {requirement!r} and policy {policy.name} fetches nothing"
        rules.append(_deny("dependencies.deny", "dependencies", requirement, reason))

    return Decision(
        allow=not any(rule.effect == "deny" for rule in rules),
        limits=effective,
        rules=tuple(rules) or (_default_rule(policy.name),),
        policy=policy.name,
        policy_sha256=policy.sha256,
    )


def _changes(rule: str, words: str, before: Limits, after: Limits) -> list[Rule]:
    text_before, text_after = before.model_dump(mode="json"), after.model_dump(mode="json")
    return [
        Rule(
            id=f"{rule}.{name}",
            effect="tighten",
            resource=name,
            requested=getattr(before, name),
            effective=getattr(after, name),
            reason=f"{words} {text_after[name]} of {name}, not {text_before[name]}",
        )
        for name in text_before
        if text_before[name] != text_after[name]
    ]


def _judge_request(policy: str, name: str, value: float, allowed: float) -> Rule:
    if value <= allowed:
        return Rule(
            id=f"request.{name}",
            effect="allow" if value == allowed else "tighten",
            resource=name,
            requested=value,
            effective=value,
            reason=f"{name} as asked, within policy {policy}",
        )
    asked_text, allowed_text = _in_units(name, value), _in_units(name, allowed)
    reason = f"asked for {name} {asked_text}, but policy {policy} on this box allows {allowed_text}"
    return _deny(f"request.{name}", name, value, reason)


def _in_units(name: str, value: float) -> str:
    return str(PartialLimits().model_copy(update={name: value}).model_dump(mode="json")[name])


def _deny(rule: str, resource: str, requested: float | str | None, reason: str) -> Rule:
    return Rule(id=rule, effect="deny", resource=resource, requested=requested, effective=None, reason=reason)


def _default_rule(policy: str) -> Rule:
    return Rule(
        id="policy.default",
        effect="allow",
        resource="experiment",
        requested=None,
        effective=None,
        reason=f"within policy {policy}",
    )
