"""Promises of the policies: complete, strict about units and keys, and never loosened by anyone."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.decision import Capabilities, Decision, Request, decide
from policies.merge import box_ceilings, stricter
from policies.model import Ceiling, Limits, PartialLimits, PolicyError, built_in_policies, load_policy
from policies.text import cell, for_drawing, harmless, one_line
from policies.units import format_bytes, format_limit, format_seconds, format_size, parse_bytes, parse_seconds
from tests.test_cli import labsandbox

EVERYTHING = Capabilities(backend="test", runtime="test", enforces=frozenset({*Limits.model_fields, "network"}))


def test_the_default_policy_is_what_the_documentation_says() -> None:
    limits = load_policy("default").limits
    assert (limits.wall, limits.cpus, limits.pids) == (120.0, 2.0, 256)
    assert (limits.memory, limits.workspace) == (4 << 30, 1 << 30)
    assert (limits.output, limits.artifacts) == (10 << 20, 100 << 20)
    assert load_policy("default").network.mode == "none"
    assert load_policy("default").gpu.unasked == 0
    assert load_policy("gpu").gpu.unasked == 1


def test_every_built_in_policy_loads_and_strict_is_stricter_than_default() -> None:
    assert {"default", "gpu", "strict"} <= set(built_in_policies())
    strict, default = load_policy("strict").limits, load_policy("default").limits
    assert all(getattr(strict, name) <= getattr(default, name) for name in Limits.model_fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"wall": 120}, "limits.wall: a duration needs a unit"),
        ({"memory": "4 parsecs"}, "limits.memory: not a size"),
        ({"memory": 4096}, "limits.memory: a size needs a unit"),
        ({"pids": "many"}, "limits.pids"),
        ({"memroy": "4GiB"}, "limits.memroy: Extra inputs"),
        ({"cpus": 0}, "limits.cpus"),
        ({"cpus": float("nan")}, "limits.cpus"),
        ({"wall": "-3s"}, "limits.wall"),
        ({"memory": "1MiB"}, "limits.memory: Input should be greater"),
        ({"pids": 2}, "limits.pids"),
    ],
)
def test_a_policy_file_with_a_wrong_unit_or_key_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    policy = load_policy("default").model_dump(mode="json")
    policy["limits"] |= change
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(policy))
    with pytest.raises(PolicyError) as refused:
        load_policy(str(path))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "&a [*a]", "name: X", "!!python/object:os.system {}"])
def test_a_file_that_is_no_policy_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as refused:
        load_policy(str(path))
    assert "\n" not in str(refused.value)


def test_what_a_policys_file_leaves_out_is_as_in_default(tmp_path: Path) -> None:
    path = tmp_path / "Mine 2.yaml"
    path.write_text("enforcement: best-effort\nlimits: {wall: 10s}\nwarm: {count: 0}\n")
    mine, default = load_policy(str(path)), load_policy("default")
    changed = {"name": "mine-2", "description": "", "enforcement": "best-effort"}
    changed |= {"limits": default.limits.model_copy(update={"wall": 10.0})}
    changed |= {"warm": default.warm.model_copy(update={"count": 0})}
    assert mine == default.model_copy(update=changed)


def test_no_file_passes_for_a_policy_that_labsandbox_brings_along(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("name: default\nlimits: {wall: 10m}\n")
    with pytest.raises(PolicyError, match="another policy's"):
        load_policy(str(path))
    path.write_text("name: default\ndescription: " + load_policy("default").description)
    assert load_policy(str(path)).sha256 == load_policy("default").sha256


@pytest.mark.parametrize("name", built_in_policies())
def test_what_policy_show_prints_can_be_used_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(labsandbox("policy", "show", name).stdout)
    assert load_policy(str(path)) == load_policy(name)


def test_one_run_gets_no_more_than_all_runs_may_have_together() -> None:
    ceiling = Ceiling.model_validate({"runs": {"cores": 1, "memory": "1GiB"}})
    limits = decide(Request(), load_policy("default"), EVERYTHING, [ceiling]).limits
    assert (limits.cpus, limits.memory) == (1.0, 1 << 30)
    assert not decide(Request(limits=PartialLimits(cpus=2)), load_policy("default"), EVERYTHING, [ceiling]).allow


def test_an_unknown_policy_is_answered_with_the_known_names() -> None:
    with pytest.raises(PolicyError, match="default, gpu, gvisor, strict"):
        load_policy("laxest")


@given(st.integers(min_value=1, max_value=1 << 50))
def test_sizes_survive_being_written_and_read(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == size


@given(st.integers(min_value=1, max_value=10**6))
def test_durations_survive_being_written_and_read(milliseconds: int) -> None:
    assert parse_seconds(f"{milliseconds}ms") == pytest.approx(milliseconds / 1000)
    assert parse_seconds(format_seconds(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


PARTIAL = st.fixed_dictionaries(
    {},
    optional={
        "wall": st.integers(1, 500).map(lambda n: f"{n}s"),
        "cpus": st.floats(0.1, 16),
        "memory": st.integers(64, 16384).map(lambda n: f"{n}MiB"),
        "pids": st.integers(16, 4096),
        "workspace": st.integers(1, 4096).map(lambda n: f"{n}MiB"),
        "gpus": st.integers(0, 8),
    },
).map(PartialLimits.model_validate)


def _decide(asked: PartialLimits, *ceilings: PartialLimits, policy: str = "default") -> Decision:
    request = Request(limits=asked)
    return decide(request, load_policy(policy), EVERYTHING, [Ceiling(limits=limits) for limits in ceilings])


@given(PARTIAL, st.lists(PARTIAL, max_size=3), st.sampled_from(built_in_policies()))
def test_nothing_ever_loosens_policy_ceiling_or_request(
    asked: PartialLimits, ceilings: list[PartialLimits], policy: str
) -> None:
    decision = _decide(asked, *ceilings, policy=policy)
    bounds = [load_policy(policy).limits, *ceilings]
    for name in Limits.model_fields:
        effective = getattr(decision.limits, name)
        for bound in bounds:
            value = getattr(bound, name)
            assert value is None or effective <= value
        if decision.allow and name in asked.given():
            assert effective == asked.given()[name]


@given(PARTIAL, PARTIAL)
def test_merging_twice_is_merging_once_in_either_order(first: PartialLimits, second: PartialLimits) -> None:
    limits = load_policy("default").limits
    one = stricter(stricter(limits, first), second)
    assert one == stricter(stricter(limits, second), first) == stricter(one, first)


def test_a_request_that_is_looser_than_the_policy_is_denied_by_its_rule_not_clamped() -> None:
    decision = _decide(PartialLimits(wall="300s"))
    assert not decision.allow
    assert [rule.id for rule in decision.rules if rule.effect == "deny"] == ["request.wall"]
    assert "300s" in decision.reason and "120s" in decision.reason


def test_a_ceiling_lowers_a_looser_policy_and_says_so() -> None:
    decision = _decide(PartialLimits(), PartialLimits(memory="1GiB"))
    assert decision.allow
    assert decision.limits.memory == 1 << 30
    assert [rule.id for rule in decision.rules] == ["ceiling.memory"]


def test_a_request_above_the_ceiling_is_denied_even_where_the_policy_would_allow_it() -> None:
    assert not _decide(PartialLimits(memory="2GiB"), PartialLimits(memory="1GiB")).allow


def test_a_limit_that_the_backend_cannot_enforce_denies_the_run() -> None:
    weak = EVERYTHING.model_copy(
        update={"enforces": EVERYTHING.enforces - {"pids"}, "missing": {"pids": "no pids controller"}}
    )
    decision = decide(Request(), load_policy("default"), weak)
    assert not decision.allow
    assert "no pids controller" in decision.reason


def test_no_gpu_unless_asked_and_strict_never_gives_one() -> None:
    assert _decide(PartialLimits()).limits.gpus == 0
    assert _decide(PartialLimits(gpus=1)).limits.gpus == 1
    assert _decide(PartialLimits(), policy="gpu").limits.gpus == 1
    assert _decide(PartialLimits(gpus=0), policy="gpu").limits.gpus == 0
    assert not _decide(PartialLimits(gpus=1), policy="strict").allow


def test_the_environment_can_add_a_ceiling_but_not_take_one_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, mine = tmp_path / "box.yaml", tmp_path / "mine.yaml"
    box.write_text("limits: {memory: 1GiB}")
    mine.write_text("limits: {memory: 8GiB, pids: 20}")
    monkeypatch.setattr("policies.merge.BOX_CEILING", box)
    monkeypatch.setenv("LABSANDBOX_CEILING", str(mine))
    limits = load_policy("default").limits
    for ceiling in box_ceilings():
        limits = stricter(limits, ceiling.limits)
    assert (limits.memory, limits.pids) == (1 << 30, 20)


def test_the_policys_digest_changes_with_its_content_only() -> None:
    policy = load_policy("default")
    other = policy.model_copy(update={"limits": policy.limits.model_copy(update={"pids": 255})})
    assert policy.sha256 == load_policy("default").sha256 != other.sha256


@pytest.mark.parametrize("name", Limits.model_fields)
def test_a_limit_is_told_as_a_policys_file_has_it(name: str) -> None:
    value = getattr(load_policy("gpu").limits, name)
    told = format_limit(name, value)
    assert PartialLimits.model_validate({name: yaml.safe_load(told)}).given() == {name: value}
    assert format_limit(name, None) == "–"


def test_counts_and_sizes_are_told_in_full_and_measured_sizes_in_round_figures() -> None:
    assert [format_limit("files", count) for count in (64, 64.0, 1 << 20)] == ["64", "64", "1048576"]
    assert format_limit("cpus", 1.5) == "1.5" and format_limit("memory", (1 << 30) + 1) == "1073741825B"
    assert [format_size(size) for size in (0, 1023, 1024, 12.3 * 2**20, 2**50)] == [
        "0 B", "1023 B", "1 KiB", "12.3 MiB", "1024 TiB"
    ]  # fmt: skip


# ---- texts of unknown origin ----


@given(st.text())
def test_no_cell_of_a_table_begins_as_a_formula(text: str) -> None:
    assert not cell(text).lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    cell(text).encode()


def test_cells_keep_what_is_harmless_and_show_what_no_file_holds() -> None:
    assert [cell(value) for value in (None, 3, True, "a-b", " =1", "\n@x", "\0\ud800")] == [
        "", "3", "True", "a-b", "' =1", "'\n@x", "\\x00\\ud800"
    ]  # fmt: skip


@given(st.text())
def test_one_line_and_a_pictures_label_show_only_what_is_printed(text: str) -> None:
    for shown in (one_line(text, 40), for_drawing(text, 40)):
        assert len(shown) <= 41 and not any(mark in shown for mark in "\n\r\t\x1b\u202e")
        assert shown == harmless(shown)
    assert not for_drawing(text).startswith("_")


def test_a_text_that_was_cut_says_so() -> None:
    assert one_line("a\tb\n c\x1b[0m") == "a b c\\x1b[0m"
    assert one_line("x" * 10, 4) == "xxx…" and one_line("x" * 4, 4) == "xxxx"
    assert for_drawing("_hidden $x$") == " _hidden $x$"
