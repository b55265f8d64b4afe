"""The stricter-only merge: box ceiling ∧ policy ∧ request. Whatever comes in, nothing gets looser."""

import os
from collections.abc import Iterable
from pathlib import Path

from policies.model import Ceiling, Dependencies, Limits, Network, PartialLimits, Policy, RunsCeiling, load_ceiling

BOX_CEILING = Path("/etc/labsandbox/ceiling.yaml")


def box_ceilings() -> list[Ceiling]:
    """The ceilings of this box: /etc/labsandbox/ceiling.yaml and the file named by LABSANDBOX_CEILING.

    Both hold where both are there, so the environment can only tighten. Raises PolicyError.
    """
    named = os.environ.get("LABSANDBOX_CEILING")
    paths = ([BOX_CEILING] if BOX_CEILING.exists() else []) + ([Path(named)] if named else [])
    return [load_ceiling(path) for path in paths]


def stricter(limits: Limits, bound: PartialLimits) -> Limits:
    """`limits`, each lowered to `bound` where `bound` names a lower one."""
    return limits.model_copy(update={name: min(getattr(limits, name), value) for name, value in bound.given().items()})


def terms_here(policy: Policy, ceilings: Iterable[Ceiling]) -> Policy:
    """`policy` as it holds on a box with these ceilings."""
    for ceiling in ceilings:
        policy = lowered(policy, ceiling)
    return policy


def lowered(policy: Policy, ceiling: Ceiling) -> Policy:
    """`policy` as this ceiling lets it hold: each of its terms the stricter of the two."""
    changes: dict[str, object] = {"limits": _within(stricter(policy.limits, ceiling.limits), ceiling.runs)}
    if ceiling.isolation == "gvisor":
        changes["isolation"] = "gvisor"
    if ceiling.enforcement == "strict":
        changes["enforcement"] = "strict"
    if ceiling.gpu is not None and ceiling.gpu.sharing == "exclusive":
        changes["gpu"] = policy.gpu.model_copy(update={"sharing": "exclusive"})
    if ceiling.network is not None:
        changes["network"] = _narrower(policy.network, ceiling.network)
    if ceiling.dependencies is not None:
        changes["dependencies"] = _fewer(policy.dependencies, ceiling.dependencies)
    return policy.model_copy(update=changes)


def _within(limits: Limits, all_runs: RunsCeiling | None) -> Limits:
    """`limits` of one run, no larger than what all runs together may have."""
    if all_runs is None:
        return limits
    bounds = {"cpus": all_runs.cores, "memory": all_runs.memory}
    return limits.model_copy(
        update={name: min(getattr(limits, name), bound) for name, bound in bounds.items() if bound is not None}
    )


def _narrower(network: Network, bound: Network) -> Network:
    hosts = tuple(host for host in network.hosts if host in bound.hosts)
    return Network(mode="allowlist", hosts=hosts) if hosts else Network(mode="none")


def _fewer(asked: Dependencies, bound: Dependencies) -> Dependencies:
    """The stricter mode, the names that both list, the smaller total, and the box's index where it names one."""
    if "deny" in (asked.mode, bound.mode):
        return Dependencies(mode="deny")
    index = asked.index if bound.index == "configured" else bound.index
    total = min(asked.total or 0, bound.total or 0)
    if asked.mode == bound.mode == "any":
        return asked.model_copy(update={"index": index, "total": total})
    lists = [set(terms.names) for terms in (asked, bound) if terms.mode == "allowlist"]
    names = tuple(sorted(set.intersection(*lists)))
    if not names:
        return Dependencies(mode="deny")
    return asked.model_copy(update={"mode": "allowlist", "names": names, "index": index, "total": total})
