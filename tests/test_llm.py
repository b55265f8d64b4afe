"""Promises of the engine `llm`: whatever shape a model answers in is read, and no sprint spends more than its budget."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from orchestrator.agents.answers import json_object
from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.errors import AgentRefused, AgentsUnavailable
from orchestrator.errors import UsageProblem
from orchestrator.local_agents.engine import EngineUnavailable, Usage
from orchestrator.local_agents.llm.budget import Budget, BudgetSpent
from orchestrator.local_agents.llm.chat import without_thoughts
from orchestrator.local_agents.llm.engine import LlmEngine, estimate
from orchestrator.local_agents.serving import serve_locally
from orchestrator.local_agents.store import AgentStore
from orchestrator.settings import ModelSettings, Settings
from tests.faulty_server import HTML, always, answer, faulty, hang_up, huge
from tests.model_endpoint import ModelEndpoint, Script, model_endpoint

CODE = "import lab\nprint({'a': 1})\n"


def says(text: str) -> Script:
    return lambda system, user, before: text


def spent(folder: Path, account: str) -> tuple[int, float]:
    """Tokens and cost of an account, as its file has them."""
    with contextlib.closing(sqlite3.connect(folder / "spending.sqlite")) as database:
        row = database.execute("SELECT tokens, cost FROM spending WHERE account = ?", (account,)).fetchone()
    return row or (0, 0.0)


def engine_of(endpoint: ModelEndpoint, tmp_path: Path, **settings: Any) -> LlmEngine:
    chosen = ModelSettings(endpoint.url, "a-model", SecretStr("sk-hush"), **settings)
    return LlmEngine(chosen, tmp_path / "spending.sqlite")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"code": CODE, "explanation": "e", "dependencies": ["torch"]}),
        "```json\n" + json.dumps({"code": CODE}) + "\n```",
        "Here is the program {as asked}:\n" + json.dumps({"code": CODE}) + "\nGood luck!",
        f"```python\n{CODE}```",
        f"Sure!\n```\n{CODE}```\nIt prints.",
        CODE,
        "<think>\nMaybe {this}?\n</think>\n" + CODE,
        json.dumps({"code": CODE, "dependencies": "none", "explanation": ["odd"]}),
        "Sure:\n```python\n" + CODE + 'other = {"code": "x"}\n```',
    ],
)
def test_code_is_read_out_of_every_shape_that_models_answer_in(text: str, tmp_path: Path) -> None:
    with model_endpoint(says(text)) as endpoint:
        said = engine_of(endpoint, tmp_path).code("write", "sprint")
    assert said.value.code.strip().removesuffix('\nother = {"code": "x"}') == CODE.strip()
    assert (said.model, said.usage) == ("scripted-1", Usage(100, 50))


def test_a_shape_is_asked_for_where_it_is_offered_and_left_out_where_it_is_refused(tmp_path: Path) -> None:
    with model_endpoint(says(json.dumps({"code": CODE}))) as endpoint:
        engine_of(endpoint, tmp_path).code("write", "a")
        assert endpoint.asked[0]["response_format"]["json_schema"]["schema"]["required"]
        endpoint.refuse = lambda body: "response_format is not supported" if "response_format" in body else None
        engine = engine_of(endpoint, tmp_path)
        before = len(endpoint.headers)
        assert engine.code("write", "a").value.code.strip() == CODE.strip()
        assert engine.code("write", "a").value.code.strip() == CODE.strip()
        assert len(endpoint.headers) - before == 3  # refused once, never asked for again


@pytest.mark.parametrize(
    "more",
    [
        {"usage": {}},
        {"usage": {"prompt_tokens": 5, "completion_tokens": None}},
        {"usage": {"prompt_tokens": 10**25, "completion_tokens": 1}},
        {"choices": [{"message": {"content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}}]},
    ],
)
def test_an_answer_with_odd_parts_beside_the_words_is_one(more: dict[str, Any], tmp_path: Path) -> None:
    said = {"choices": [{"message": {"content": "hello"}}], **more}
    with faulty(always(answer(said))) as server:
        engine = LlmEngine(ModelSettings(server.url, "m"), tmp_path / "spending.sqlite")
        assert engine.respond("A", "", "hi", "a").value == "hello"


def test_the_newer_word_for_the_length_of_an_answer_is_used_where_the_older_is_refused(tmp_path: Path) -> None:
    with model_endpoint(says("hello")) as endpoint:
        endpoint.refuse = lambda body: "use max_completion_tokens instead" if "max_tokens" in body else None
        assert engine_of(endpoint, tmp_path).respond("A", "be A", "hi", "a").value == "hello"
        assert endpoint.asked[0]["max_completion_tokens"] > 0


def test_the_agents_prompt_is_the_systems_words_and_the_key_goes_only_into_the_header(tmp_path: Path) -> None:
    with model_endpoint(says("hello")) as endpoint:
        engine_of(endpoint, tmp_path).respond("A", "be A", "hi", "a")
        assert [message["content"] for message in endpoint.asked[0]["messages"]] == ["be A", "hi"]
        assert endpoint.headers[0]["authorization"] == "Bearer sk-hush"
        assert "sk-hush" not in json.dumps(endpoint.asked)


@pytest.mark.parametrize(
    ("text", "agent"),
    [
        ('{"selectedAgent": "search", "reasoning": "facts", "confidence": 0.7}', "search"),
        ('{"selectedAgent": "root", "confidence": "very"}', "code"),
        ("I would ask the code agent", "code"),
    ],
)
def test_the_router_takes_only_agents_that_there_are(text: str, agent: str, tmp_path: Path) -> None:
    with model_endpoint(says(text)) as endpoint:
        assert engine_of(endpoint, tmp_path).route("what", "a").value.agent == agent


def test_an_answer_that_was_cut_off_or_is_empty_is_none(tmp_path: Path) -> None:
    with model_endpoint(says(CODE)) as endpoint:
        endpoint.finish = "length"
        with pytest.raises(EngineUnavailable, match="cut off"):
            engine_of(endpoint, tmp_path).code("write", "a")
    with model_endpoint(says("<think>hm</think>")) as endpoint, pytest.raises(EngineUnavailable, match="nothing"):
        engine_of(endpoint, tmp_path).respond("A", "", "hi", "a")


@pytest.mark.parametrize("fault", [always(HTML), huge, hang_up, always(answer({"choices": []})), always(answer([]))])
def test_an_endpoint_that_misbehaves_is_one_line_to_who_asked_the_agent(
    fault: Callable[..., None], tmp_path: Path
) -> None:
    with faulty(fault) as server:
        engine = LlmEngine(ModelSettings(server.url, "m", SecretStr("sk-hush")), tmp_path / "spending.sqlite")
        store = AgentStore(":memory:")
        with serve_locally(engine, store) as url, pytest.raises(AgentsUnavailable) as told:
            LumenbridgeClient(url, "u", backoff=0.01).code("write")
        store.close()
    assert "the model's endpoint" in str(told.value)
    assert "\n" not in str(told.value) and "sk-hush" not in str(told.value)


def test_a_key_that_no_header_takes_is_one_line_that_does_not_repeat_it(tmp_path: Path) -> None:
    with model_endpoint(says("x")) as endpoint:
        for key in ("sk-\u20ac-hush", "sk-hush\nx: y"):
            engine = LlmEngine(ModelSettings(endpoint.url, "m", SecretStr(key)), tmp_path / "spending.sqlite")
            with pytest.raises(EngineUnavailable) as told:
                engine.respond("A", "", "hi", "a")
            assert "hush" not in str(told.value)


# ---- the budget ----


def test_a_sprint_that_has_spent_its_budget_is_refused_and_others_are_not(tmp_path: Path) -> None:
    with model_endpoint(says("x")) as endpoint:
        engine = engine_of(endpoint, tmp_path, max_tokens=3000)
        answers = 0
        with pytest.raises(BudgetSpent, match="budget"):
            for _ in range(100):
                engine.respond("A", "", "hi", "one")
                answers += 1
        # 150 tokens each, and room for a prompt and 256 tokens of answer must be left.
        assert answers == len(endpoint.asked) == 19
        assert engine.respond("A", "", "hi", "two").value == "x"
        store = AgentStore(":memory:")
        with serve_locally(engine, store) as url, pytest.raises(AgentRefused, match="budget"):
            client = LumenbridgeClient(url, "u").for_sprint("one", lambda call: None)
            client.register("A", "be A")
            client.invoke("A", "hi")
        store.close()


def test_the_answer_may_be_no_longer_than_the_budget_allows(tmp_path: Path) -> None:
    with model_endpoint(says("x")) as endpoint:
        engine_of(endpoint, tmp_path, max_tokens=1000).respond("A", "", "hi" * 300, "one")
        assert endpoint.asked[0]["max_tokens"] == 1000 - estimate("") - estimate("hi" * 300)


def test_what_was_used_is_counted_by_estimate_where_the_endpoint_does_not_say(tmp_path: Path) -> None:
    with model_endpoint(says("y" * 300)) as endpoint:
        endpoint.usage = False
        engine_of(endpoint, tmp_path).respond("A", "", "hi", "one")
    assert spent(tmp_path, "one")[0] == estimate("") + estimate("hi") + estimate("y" * 300)


def test_thoughts_are_counted_where_the_endpoint_does_not_say(tmp_path: Path) -> None:
    with model_endpoint(says("<think>" + "hm " * 1000 + "</think>hi")) as endpoint:
        endpoint.usage = False
        engine_of(endpoint, tmp_path).respond("A", "", "hi", "one")
    assert spent(tmp_path, "one")[0] > 1000


@pytest.mark.parametrize("status", ["429 Slow", "503 Busy"])
def test_a_call_that_came_to_nobody_costs_nothing(status: str, tmp_path: Path) -> None:
    with faulty(always(answer({}, status))) as server, pytest.raises(EngineUnavailable):
        LlmEngine(ModelSettings(server.url, "m"), tmp_path / "spending.sqlite").respond("A", "", "hi", "one")
    with pytest.raises(EngineUnavailable):
        LlmEngine(ModelSettings("http://127.0.0.1:1", "m"), tmp_path / "spending.sqlite").respond("A", "", "hi", "one")
    assert spent(tmp_path, "one")[0] == 0


def test_a_refused_call_costs_nothing_and_one_that_broke_off_keeps_its_reservation(tmp_path: Path) -> None:
    with model_endpoint(says("x")) as endpoint:
        endpoint.refuse = lambda body: "no"
        with pytest.raises(ValueError, match="refused: no"):
            engine_of(endpoint, tmp_path).respond("A", "", "hi", "refused")
    with faulty(hang_up) as server, pytest.raises(EngineUnavailable):
        LlmEngine(ModelSettings(server.url, "m"), tmp_path / "spending.sqlite").respond("A", "", "hi", "broken")
    assert spent(tmp_path, "refused")[0] == 0
    assert spent(tmp_path, "broken")[0] > 2000


def test_money_is_a_budget_too(tmp_path: Path) -> None:
    prices = ModelSettings("http://x", "m", max_cost=0.01, prompt_price=1.0, completion_price=10.0)
    budget = Budget(tmp_path / "spending.sqlite", prices)
    first = budget.reserve("one", 1000, 5000)
    assert first.usage == Usage(1000, 900)  # 0.001 for the prompt, 0.009 for 900 tokens
    assert spent(tmp_path, "one")[1] == pytest.approx(0.01)
    with pytest.raises(BudgetSpent, match=r"of 0\.01"):
        budget.reserve("one", 10, 500)
    budget.settle(first, Usage(1000, 100))
    assert spent(tmp_path, "one") == (1100, pytest.approx(0.002))
    assert budget.reserve("one", 10, 500).usage.completion == 500


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 600), st.floats(0, 1)), max_size=12))
def test_no_order_of_calls_spends_more_than_the_budget(calls: list[tuple[int, int, float]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        settings = ModelSettings("http://x", "m", max_tokens=1500)
        budget = Budget(Path(folder) / "spending.sqlite", settings)
        for prompt, completion, share in calls:
            try:
                reservation = budget.reserve("one", prompt, completion)
            except BudgetSpent:
                continue
            assert 0 < reservation.usage.completion <= completion
            budget.settle(reservation, Usage(prompt, int(reservation.usage.completion * share)))
            assert 0 <= spent(Path(folder), "one")[0] <= settings.max_tokens


def test_many_callers_at_once_do_not_spend_the_same_tokens_twice(tmp_path: Path) -> None:
    settings = ModelSettings("http://x", "m", max_tokens=5000)
    got: list[int] = []

    def call() -> None:
        budget = Budget(tmp_path / "spending.sqlite", settings)
        try:
            reservation = budget.reserve("one", 100, 900)
        except BudgetSpent:
            return
        got.append(reservation.usage.prompt + reservation.usage.completion)

    threads = [threading.Thread(target=call) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 5000


# ---- small parts ----


@pytest.mark.parametrize(
    ("text", "said"),
    [("<think>a</think>b", "b"), ("b", "b"), ("x </think> y", "x </think> y"), ("<think>a", "<think>a")],
)
def test_only_thoughts_at_the_beginning_are_left_out(text: str, said: str) -> None:
    assert without_thoughts(text) == said


@given(st.text(max_size=200))
def test_any_text_has_a_json_object_or_none(text: str) -> None:
    assert json_object(text) is None or isinstance(json_object(text), dict)


def test_a_hostile_answer_cannot_hold_the_host_while_json_is_looked_for() -> None:
    for text in ("{" * 200_000, '{"a":' * 50_000, "{" + "[" * 100_000):
        assert json_object(text) is None


def test_a_model_without_a_name_and_numbers_that_are_none_are_wrong_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LABSANDBOX_LLM_BASE_URL", "http://127.0.0.1:1/v1")
    with pytest.raises(UsageProblem, match="LABSANDBOX_LLM_MODEL"):
        Settings.read(folder=tmp_path)
    monkeypatch.setenv("LABSANDBOX_LLM_MODEL", "m")
    assert Settings.read(folder=tmp_path).llm == ModelSettings("http://127.0.0.1:1/v1", "m")
    for bad in ("many", "-1", "inf", "nan"):
        monkeypatch.setenv("LABSANDBOX_LLM_MAX_TOKENS", bad)
        with pytest.raises(UsageProblem, match="LABSANDBOX_LLM_MAX_TOKENS"):
            Settings.read(folder=tmp_path)


def test_settings_do_not_show_their_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABSANDBOX_LLM_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("LABSANDBOX_LLM_MODEL", "m")
    for name in ("LABSANDBOX_LLM_API_KEY", "LUMENBRIDGE_PRIVATE_KEY", "LUMENBRIDGE_MNEMONIC"):
        monkeypatch.setenv(name, "hush-hush")
    assert "hush" not in repr(Settings.read(folder=tmp_path))
