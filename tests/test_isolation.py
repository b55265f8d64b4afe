"""Promises of isolation and enforcement as terms of a policy: gVisor where it is required, best effort where it is allowed."""

from pathlib import Path
from typing import Any

import pytest

from executor.backends.docker import DockerBackend
from executor.backends.oci import OciBackend
from executor.executor import Executor
from executor.experiment import Outcome
from orchestrator.lab_setup import LabOptions, open_lab
from policies.audit import AuditLog
from policies.decision import Capabilities
from policies.model import Ceiling, Dependencies, Limits, Network, load_policy
from policies.state import cache_dir
from tests.conftest import Bench

VERSION = "print(open('/proc/version').read())"


def bench_on(backend: Any, state: Path, policy: str) -> Bench:
    audit = AuditLog(state / "audit.jsonl")
    return Bench(backend, Executor(backend, audit), audit, load_policy(policy))


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_gvisor_runs_on_its_own_kernel_and_the_record_says_what_it_does_not_hold(
    kind: str, own_state: Path, cpu_image: str
) -> None:
    backend = OciBackend(own_state, cache_dir(), "runsc") if kind == "oci" else DockerBackend(cpu_image, "runsc")
    bench = bench_on(backend, own_state, "gvisor")
    execution = bench.run(VERSION, wall="20s")
    assert execution.outcome is Outcome.COMPLETED
    assert execution.stdout != Path("/proc/version").read_text() + "\n"
    assert (execution.isolation, set(execution.watched)) == ("gvisor", {"files"})
    assert execution.limits["files"].enforced_by == "nobody (best effort)"
    for name in ("memory", "cpus", "workspace", "tmp", "shm", "open_files", "network"):
        assert execution.limits[name].observed == execution.limits[name].effective, name
    decision, start = list(bench.audit.records())[:2]
    assert "enforcement.files" in [rule["id"] for rule in decision["rules"]]
    assert start["posture"]["isolation"] == "gvisor" and start["deviations"] == []


def test_torch_trains_under_gvisor(own_state: Path) -> None:
    bench = bench_on(OciBackend(own_state, cache_dir(), "runsc"), own_state, "gvisor")
    execution = bench.run(
        "import torch\nx = torch.ones(3, requires_grad=True)\n(x * 2).sum().backward()\nprint(x.grad)"
    )
    assert execution.stdout == "tensor([2., 2., 2.])\n", execution.stderr


def test_a_strict_policy_refuses_gvisor_which_does_not_count_inodes(own_state: Path) -> None:
    bench = bench_on(OciBackend(own_state, cache_dir(), "runsc"), own_state, "default")
    execution = bench.run("print('ran')")
    assert execution.outcome is Outcome.DENIED and "cannot enforce files" in execution.message


def test_a_policy_that_requires_gvisor_is_denied_without_it_and_gets_it_where_nobody_chose(own_state: Path) -> None:
    denied = bench_on(OciBackend(own_state, cache_dir(), "runc"), own_state, "gvisor").run("print('ran')")
    assert denied.outcome is Outcome.DENIED and "requires gVisor" in denied.message
    lab = open_lab(LabOptions(policy="gvisor", backend="oci"), print)
    assert lab.executor.backend.runtime == "runsc"


def test_a_runtime_that_only_claims_to_be_gvisor_is_found_out(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OciBackend(own_state, cache_dir(), "runc")
    real = backend.capabilities()
    lie = real.model_copy(update={"isolation": "gvisor"})
    monkeypatch.setattr(backend, "capabilities", lambda: lie)
    execution = bench_on(backend, own_state, "gvisor").run("print('ran')")
    assert execution.outcome is Outcome.INFRASTRUCTURE and "not gVisor's sandbox" in execution.message


# ---- best effort ----


def lacking(backend: Any, names: set[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A backend that says of some limits that it cannot hold them, and is not asked to: as an engine without cgroups."""
    real: Capabilities = backend.capabilities()
    lacks = real.model_copy(
        update={"enforces": real.enforces - names, "missing": dict.fromkeys(names, "the engine reports no such thing")}
    )
    monkeypatch.setattr(backend, "capabilities", lambda: lacks)
    return backend


EATS = "import time\nb = []\nwhile True: b.append(bytearray(b'x') * (8 << 20)); time.sleep(0.05)"
FORKS = "import os, time\nfor _ in range(60):\n    if os.fork() == 0: time.sleep(60)\ntime.sleep(60)"
FILLS = (
    "import time\nf = open('/workspace/big', 'wb')\nwhile True: f.write(b'x' * (8 << 20)); f.flush(); time.sleep(0.05)"
)
WATCHED = [
    ({"memory"}, EATS, {"memory": "256MiB"}, Outcome.OOM),
    ({"memory"}, FILLS, {"memory": "256MiB"}, Outcome.OOM),
    ({"pids"}, FORKS, {"pids": 32}, Outcome.FAILED),
]


@pytest.mark.parametrize("kind", ["oci", "docker"])
@pytest.mark.parametrize(("names", "code", "limits", "outcome"), WATCHED)
def test_what_the_kernel_does_not_hold_the_host_watches_where_the_policy_allows_that(
    kind: str,
    names: set[str],
    code: str,
    limits: dict[str, object],
    outcome: Outcome,
    own_state: Path,
    cpu_image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = OciBackend(own_state, cache_dir()) if kind == "oci" else DockerBackend(cpu_image)
    bench = bench_on(lacking(plain, names, monkeypatch), own_state, "default")
    assert bench.run(code, wall="20s", **limits).outcome is Outcome.DENIED
    bench.policy = bench.policy.model_copy(update={"enforcement": "best-effort"})
    execution = bench.run(code, wall="20s", **limits)
    assert execution.outcome is outcome, execution.message
    assert "the host's watch" in execution.message
    (name,) = names
    assert set(execution.watched) == names
    assert execution.limits[name].enforced_by == "the host's watch (best effort)"
    records = [record for record in bench.audit.records() if record.get("execution") == execution.execution_id]
    assert name in records[0]["watched"]
    assert [record["limit"] for record in records if record["event"] == "limit"] == [name]


def test_cores_are_held_by_affinity_at_best(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_on(lacking(OciBackend(own_state, cache_dir()), {"cpus"}, monkeypatch), own_state, "default")
    bench.policy = bench.policy.model_copy(update={"enforcement": "best-effort"})
    execution = bench.run("import os, time\ntime.sleep(1)\nprint(len(os.sched_getaffinity(0)))", cpus=1.0)
    assert execution.stdout == "1\n"


def test_a_network_is_never_a_matter_of_best_effort(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_on(lacking(OciBackend(own_state, cache_dir()), {"network"}, monkeypatch), own_state, "default")
    bench.policy = bench.policy.model_copy(update={"enforcement": "best-effort"})
    assert bench.run("print('ran')").outcome is Outcome.DENIED


# ---- the box has the last word ----


def test_a_ceiling_tightens_isolation_enforcement_network_and_dependencies(own_state: Path) -> None:
    policy = load_policy("default").model_copy(
        update={
            "enforcement": "best-effort",
            "network": Network(mode="allowlist", hosts=("a.test:443", "b.test:443")),
        }
    )
    ceiling = Ceiling.model_validate(
        {
            "isolation": "gvisor",
            "enforcement": "strict",
            "network": {"mode": "allowlist", "hosts": ["b.test:443", "c.test:443"]},
            "dependencies": {
                "mode": "allowlist",
                "names": ["einops"],
                "total": "1MiB",
                "index": "https://pypi.test/simple",
            },
        }
    )
    from policies.decision import Request, decide

    everything = Capabilities(
        backend="t", runtime="t", enforces=frozenset({*Limits.model_fields, "network"}), isolation="gvisor"
    )
    decision = decide(Request(unmet_requirements=("einops", "left-pad")), policy, everything, [ceiling])
    assert not decision.allow
    assert decision.isolation == "gvisor"
    assert decision.network.hosts == ("b.test:443",)
    assert decision.dependencies == Dependencies.model_validate(
        {"mode": "allowlist", "names": ["einops"], "total": "1MiB", "index": "https://pypi.test/simple"}
    )
    rules = {rule.id: rule.effect for rule in decision.rules}
    assert rules["ceiling.isolation"] == rules["ceiling.enforcement"] == rules["ceiling.network"] == "tighten"
    assert (rules["dependencies.allowlist"], rules["ceiling.dependencies"]) == ("deny", "tighten")
    shut = Ceiling.model_validate({"network": "none", "dependencies": "deny"})
    closed = decide(Request(), policy, everything, [ceiling, shut])
    assert (closed.network.mode, closed.dependencies.mode) == ("none", "deny")


@pytest.mark.parametrize(
    "terms",
    [
        {"network": {"mode": "allowlist", "hosts": []}},
        {"network": {"mode": "none", "hosts": ["a.test:443"]}},
        {"network": {"mode": "allowlist", "hosts": ["*.test:443"]}},
        {"network": {"mode": "allowlist", "hosts": ["a.test"]}},
        {"network": {"mode": "allowlist", "hosts": ["https://a.test:443"]}},
        {"network": "open"},
        {"dependencies": {"mode": "any"}},
        {"dependencies": {"mode": "allowlist", "total": "1MiB"}},
        {"dependencies": {"mode": "any", "names": ["x"], "total": "1MiB"}},
        {"dependencies": {"mode": "any", "total": "1MiB", "index": "ftp://x"}},
        {"isolation": "firecracker"},
        {"enforcement": "lenient"},
    ],
)
def test_terms_that_make_no_sense_are_refused(terms: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Ceiling.model_validate(terms)
