"""The one place where it is decided whether an experiment may run, and under which limits."""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from policies.asking import GPU_WAIT
from policies.merge import lowered, stricter
from policies.model import Ceiling, Dependencies, Gpu, Isolation, Limits, Network, PartialLimits, Policy
from policies.units import format_limit, format_seconds
from sandbox_images.lock import canonical


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Request(_Data):
    """What an experiment asks for beyond the policy's own terms."""

    limits: PartialLimits = PartialLimits()
    unmet_requirements: tuple[str, ...] = ()
    """Requirements (PEP 508) that the sandbox's environment does not hold already."""
    gpu_wait: float = GPU_WAIT
    """Seconds to wait at most for GPUs that others use."""

    def at_most(self, wall: float) -> "Request":
        """The same, for at most so many seconds."""
        return self.model_copy(update={"limits": self.limits.model_copy(update={"wall": wall})})


class Capabilities(_Data):
    """What a backend with one runtime can enforce on this host, found by looking."""

    backend: str
    runtime: str
    enforces: frozenset[str]
    """Names of `Limits` fields, and `network`, that it holds."""
    missing: dict[str, str] = {}
    """For what it cannot enforce: why."""
    isolation: Isolation = "kernel"


class Rule(_Data):
    """One rule that had something to say."""

    id: str
    """`request.wall`, `ceiling.memory`, `capability.pids`, `dependencies.deny`, …"""
    effect: Literal["allow", "tighten", "weaken", "deny"]
    """`weaken`: the kernel does not hold it, and the policy lets the host do what it can."""
    resource: str
    requested: float | str | None
    effective: float | str | None
    reason: str


class Decision(_Data):
    """Allow or deny, with every rule that mattered."""

    allow: bool
    limits: Limits
    """The effective limits; `gpus` is the number given."""
    isolation: Isolation
    gpu: Gpu
    gpus_per_user: int | None = None
    """The most devices that one user may hold at once on this box."""
    network: Network
    dependencies: Dependencies
    watched: dict[str, str] = {}
    """Limits that the kernel does not hold here, which the host only watches, and why. Empty under strict enforcement."""
    rules: tuple[Rule, ...]
    policy: str
    policy_sha256: str

    @property
    def reason(self) -> str:
        """One line: why it was denied, or that it was allowed."""
        denials = [rule.reason for rule in self.rules if rule.effect == "deny"]
        return "; ".join(denials) if denials else f"allowed by policy {self.policy}"


def decide(
    request: Request,
    policy: Policy,
    capabilities: Capabilities,
    ceilings: Iterable[Ceiling] = (),
    gpu_seconds: float = 0.0,
) -> Decision:
    """Whether `request` may run under `policy` on this backend, and with which limits.

    gpu_seconds: device time that this user had in the last 24 hours.

    A request may only tighten: one that asks for more than the policy or the box allows is denied, not
    clamped. A policy that is looser than the box is lowered to the box. A limit that the backend cannot
    enforce denies the run.
    """
    terms, rules = policy, []
    ceilings = tuple(ceilings)
    for ceiling in ceilings:
        narrower = lowered(terms, ceiling)
        rules += _changes("the box allows", terms, narrower)
        terms = narrower

    asked = request.limits.given()
    for name, value in asked.items():
        rules.append(_judge_request(policy.name, name, value, getattr(terms.limits, name)))
    gpus = int(asked.get("gpus", min(policy.gpu.unasked, terms.limits.gpus)))
    limits = stricter(terms.limits, request.limits).model_copy(update={"gpus": min(gpus, terms.limits.gpus)})

    rules += _judge_backend(terms, capabilities)
    if "gpu_memory" in asked and limits.gpus == 0:
        reason = f"asked for gpu_memory {format_limit('gpu_memory', asked['gpu_memory'])} and for no GPU"
        rules.append(_deny("request.gpu_memory", "gpu_memory", asked["gpu_memory"], reason))
    rules += [rule for ceiling in ceilings for rule in _judge_gpus(ceiling, limits, gpu_seconds)]
    rules += _judge_packages(policy.name, terms.dependencies, request.unmet_requirements)
    if terms.network.hosts:
        rules.append(_allow("network.allowlist", "network", ", ".join(terms.network.hosts), "through the host's proxy"))

    return Decision(
        allow=not any(rule.effect == "deny" for rule in rules),
        limits=limits,
        isolation=terms.isolation,
        gpu=terms.gpu,
        gpus_per_user=min((c.gpu.per_user for c in ceilings if c.gpu and c.gpu.per_user is not None), default=None),
        network=terms.network,
        dependencies=terms.dependencies,
        watched={rule.resource: rule.reason for rule in rules if rule.effect == "weaken"},
        rules=tuple(rules) or (_default_rule(policy.name),),
        policy=policy.name,
        policy_sha256=policy.sha256,
    )


def _changes(words: str, before: Policy, after: Policy) -> list[Rule]:
    old, new = _terms(before), _terms(after)
    return [
        Rule(
            id=f"ceiling.{name}",
            effect="tighten",
            resource=name,
            requested=old[name],
            effective=new[name],
            reason=f"{words} {new[name]} of {name}, not {old[name]}",
        )
        for name in old
        if old[name] != new[name]
    ]


def _terms(policy: Policy) -> dict[str, str]:
    """Every term that a ceiling can lower, as text."""
    data = policy.model_dump(mode="json", include={"isolation", "enforcement", "network", "dependencies"})
    words = {name: value if isinstance(value, str) else _words(value) for name, value in data.items()}
    words["gpu.sharing"] = policy.gpu.sharing
    return {name: str(value) for name, value in policy.limits.model_dump(mode="json").items()} | words


def _words(terms: dict[str, object]) -> str:
    """`mode` and what goes with it, such as "allowlist (names: tqdm; index: configured; total: 10MiB)"."""
    rest = {name: value for name, value in terms.items() if name != "mode" and value}
    texts = (f"{k}: {', '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in rest.items())
    return (
        f"{terms['mode']} ({'; '.join(texts)})"
        if rest and terms["mode"] not in {"none", "deny"}
        else f"{terms['mode']}"
    )


_GPU_LIMITS = {"gpus", "gpu_memory"}
"""Whether a backend can pass a device in is found out when one is asked for."""


def _judge_gpus(ceiling: Ceiling, limits: Limits, used: float) -> list[Rule]:
    """What the box allows each user of its GPUs. A run is counted with all the time that it may take."""
    terms, rules = ceiling.gpu, []
    if terms is None or limits.gpus == 0:
        return []
    if terms.per_user is not None and limits.gpus > terms.per_user:
        reason = f"asked for gpus {limits.gpus}, but a user may hold {terms.per_user} at once on this box"
        rules.append(_deny("ceiling.gpu.per_user", "gpus", limits.gpus, reason))
    needed = limits.gpus * limits.wall
    if terms.time_per_day is not None and used + needed > terms.time_per_day:
        left = format_seconds(max(0.0, round(terms.time_per_day - used)))
        reason = (
            f"it may take {format_seconds(needed)} of GPU time, and {left} of this user's "
            f"{format_seconds(terms.time_per_day)} in 24 hours are left on this box"
        )
        rules.append(_deny("ceiling.gpu.time_per_day", "gpus", needed, reason))
    return rules


def _judge_backend(terms: Policy, capabilities: Capabilities) -> list[Rule]:
    """What the backend cannot hold denies the run, unless the policy is content with the host's best effort."""
    where = f"{capabilities.backend} with {capabilities.runtime}"
    rules = []
    if terms.isolation == "gvisor" and capabilities.isolation != "gvisor":
        reason = f"policy {terms.name} requires gVisor, and {where} is not that (--runtime runsc)"
        rules.append(_deny("isolation.gvisor", "isolation", None, reason))
    for name in (*Limits.model_fields, "network"):
        if name in _GPU_LIMITS or name in capabilities.enforces:
            continue
        why = f"{where} cannot enforce {name}: {capabilities.missing.get(name, 'not supported')}"
        if terms.enforcement == "strict" or name == "network":
            if capabilities.isolation == "gvisor" and name != "network":
                why += "; policy gvisor has the host watch it instead"
            rules.append(_deny(f"capability.{name}", name, None, why))
        else:
            limit = getattr(terms.limits, name)
            rules.append(
                Rule(
                    id=f"enforcement.{name}",
                    effect="weaken",
                    resource=name,
                    requested=limit,
                    effective=None,
                    reason=why,
                )
            )
    return rules


MAX_PACKAGES = 50
"""That one experiment may need beyond what the sandbox holds."""


def _judge_packages(policy: str, terms: Dependencies, wanted: tuple[str, ...]) -> list[Rule]:
    if len(wanted) > MAX_PACKAGES:
        reason = f"the sandbox does not hold {len(wanted)} of the packages; at most {MAX_PACKAGES} can be fetched"
        return [_deny("dependencies.many", "dependencies", float(len(wanted)), reason)]
    return [_judge_package(policy, terms, text) for text in wanted]


def _judge_package(policy: str, terms: Dependencies, text: str) -> Rule:
    from packaging.requirements import Requirement

    name = canonical(Requirement(text).name)
    if terms.mode == "deny":
        reason = f"the sandbox does not hold {text!r} and policy {policy} fetches nothing"
        return _deny("dependencies.deny", "dependencies", text, reason)
    if terms.mode == "allowlist" and name not in terms.names:
        reason = f"the sandbox does not hold {text!r} and policy {policy} does not list {name}"
        return _deny("dependencies.allowlist", "dependencies", text, reason)
    return _allow(f"dependencies.{terms.mode}", "dependencies", text, f"{text!r} may be fetched")


def _allow(rule: str, resource: str, value: str, reason: str) -> Rule:
    return Rule(id=rule, effect="allow", resource=resource, requested=value, effective=value, reason=reason)


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
    asked, most = format_limit(name, value), format_limit(name, allowed)
    reason = f"asked for {name} {asked}, but policy {policy} on this box allows {most}"
    return _deny(f"request.{name}", name, value, reason)


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
