"""Promises of the Lumenbridge client: whatever a server does, one clear line, in time, and no more asked than allowed."""

import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agents.answers import Code, Reply, Routed, parse, strip_fences
from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.errors import AgentError, AgentRefused, AgentsUnavailable
from tests.faulty_server import (
    GOOD,
    HTML,
    Fault,
    always,
    answer,
    drip,
    drip_headers,
    faulty,
    first,
    hang_up,
    huge,
    stall,
)


def ask(url: str, seconds: float = 10.0) -> Code:
    return LumenbridgeClient(url, "user", backoff=0.01).code("a prompt", time.monotonic() + seconds)


@pytest.mark.parametrize(
    ("fault", "said", "requests"),
    [
        pytest.param(always(HTML), "not JSON (text/html", 1, id="html"),
        pytest.param(always(answer(b'{"success": true, "resu')), "not JSON", 1, id="half a json"),
        pytest.param(always(answer(b"[" * 100_000)), "not JSON", 1, id="nested without end"),
        pytest.param(always(answer([1, 2])), "no JSON object", 1, id="a list"),
        pytest.param(always(answer({"result": {"code": 7}})), "cannot be used", 1, id="code that is a number"),
        pytest.param(always(answer({"result": {"code": ""}})), "cannot be used", 1, id="empty code"),
        pytest.param(always(answer({"success": True})), "cannot be used", 1, id="no result"),
        pytest.param(always(answer({"error": "x"}, "500 Oops")), "answered 500: x", 3, id="500"),
        pytest.param(always(answer({}, "429 Slow", Retry_After="0")), "answered 429", 3, id="429 storm"),
        pytest.param(always(answer(b"", "302 Found", Location="http://192.0.2.1/")), "redirect", 1, id="redirect"),
        pytest.param(huge, "larger than 8 MiB", 1, id="40 MB"),
        pytest.param(hang_up, "cannot reach", 3, id="hangs up"),
    ],
)
def test_a_misbehaving_server_is_one_clear_line(fault: Fault, said: str, requests: int) -> None:
    with faulty(fault) as server:
        with pytest.raises(AgentsUnavailable) as told:
            ask(server.url)
        assert said in str(told.value)
        assert "\n" not in str(told.value)
        assert server.requests == requests


@pytest.mark.parametrize("fault", [stall, drip, drip_headers], ids=["stalls", "drips", "drips headers"])
def test_a_server_that_never_ends_its_answer_is_left_at_the_deadline(fault: Fault) -> None:
    with faulty(fault) as server:
        began = time.monotonic()
        with pytest.raises(AgentsUnavailable, match="in time"):
            ask(server.url, seconds=1.0)
        assert 0.9 < time.monotonic() - began < 3.0


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (answer({"error": "unknown agent", "agent": "x"}, "400 Bad Request"), "unknown agent"),
        (answer({"success": False, "error": "quota used up"}), "quota used up"),
        (answer({"error": "model failure"}), "model failure"),
        (answer(b"nope", "404 Not Found"), "404"),
        (answer({"error": "a\x1b[31m\nb" + "c" * 1000}, "403 Forbidden"), "a\\x1b[31m b"),
    ],
)
def test_a_refusal_is_not_repeated_and_keeps_its_reason_printable(response: bytes, said: str) -> None:
    with faulty(always(response)) as server:
        with pytest.raises(AgentRefused) as told:
            ask(server.url)
        assert said in str(told.value)
        assert str(told.value).isprintable() and len(str(told.value)) < 400
        assert server.requests == 1


def test_a_passing_fault_is_tried_again() -> None:
    with faulty(first(2, answer({}, "503 Busy"), answer(GOOD))) as server:
        assert ask(server.url).code == "print(1)\n"
        assert server.requests == 3


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_is_honoured(dated: bool) -> None:
    after = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True) if dated else "1"
    with faulty(first(1, answer({}, "429 Slow", Retry_After=after), answer(GOOD))) as server:
        began = time.monotonic()
        ask(server.url)
        assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize("after", ["soon", "-1", "1e9", "\xb2", "Fri, 99 Nov 9999 99:99:99 GMT", "9" * 5000])
def test_a_retry_after_that_makes_no_sense_does_not_matter(after: str) -> None:
    with faulty(first(1, answer({}, "503 Busy", Retry_After=after), answer(GOOD))) as server:
        try:
            assert ask(server.url, 3.0).code == "print(1)\n"
        except AgentsUnavailable as error:  # asked to wait beyond the deadline
            assert after.startswith("9") and "503" in str(error)


def test_nothing_is_asked_again_when_the_deadline_would_pass() -> None:
    with faulty(always(answer({}, "429 Slow", Retry_After="30"))) as server:
        began = time.monotonic()
        with pytest.raises(AgentsUnavailable, match="429"):
            ask(server.url, seconds=2.0)
        assert time.monotonic() - began < 1.5
        assert server.requests == 1


def test_a_server_that_is_not_there_is_said_with_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(AgentsUnavailable, match=url):
        ask(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_agents_on_this_machine_are_reached_without_proxy_and_password(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with faulty(always(answer(GOOD))) as server, faulty(always(HTML)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert ask(server.url.replace("127.0.0.1", host)).code == "print(1)\n"
        assert proxy.requests == 0
        assert b"authorization" not in server.heard[0].lower()


def test_agents_elsewhere_are_reached_through_the_proxy_and_without_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with faulty(always(answer(GOOD))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert ask("http://agents.invalid").code == "print(1)\n"
        assert proxy.heard[0].startswith(b"POST http://agents.invalid/")
        assert b"authorization" not in proxy.heard[0].lower()


@pytest.mark.parametrize("url", ["", "ftp://x", "not a url", "http://", "http://[::1", "http://h:99999"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(AgentRefused, match="LUMENBRIDGE_BASE_URL"):
        LumenbridgeClient(url, "user")


@pytest.mark.parametrize(
    "url", ["https://me:hush@host/", "https://hush@host", "http://:hush@127.0.0.1:9", "http://a/?key=hush"]
)
def test_an_address_with_a_password_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(AgentRefused) as refused:
        LumenbridgeClient(url, "user")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "payload",
    [
        {"success": True, "result": {"code": "x = 1", "_signature": {}, "_llm": {"usage": None}}},
        {"success": True, "result": {"data": {"code": "x = 1", "dependencies": None}}},
        {"result": {"code": "x = 1", "dependencies": "torch\nnumpy", "bestPractices": [1, None]}},
        {"result": "x = 1"},
        {"code": "x = 1", "explanation": {"text": "because"}},
    ],
)
def test_the_shapes_that_servers_were_seen_to_answer_in_are_read(payload: object) -> None:
    assert parse(payload, Code, "code").code == "x = 1"


@pytest.mark.parametrize("response", ["hello", {"text": "hello"}, {"response": "hello"}, ["hello"]])
def test_an_agents_words_are_read_from_text_or_object(response: object) -> None:
    assert parse({"result": {"response": response}}, Reply, "agent").response == "hello"


KEYS = (
    st.sampled_from(["result", "data", "success", "error", "code", "response", "routing", "selectedAgent"]) | st.text()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


@given(JSON, st.sampled_from([Code, Reply, Routed]))
def test_any_json_is_an_answer_or_an_agent_error(payload: object, model: type[Code]) -> None:
    try:
        assert isinstance(parse(json.loads(json.dumps(payload)), model, "it"), model)
    except AgentError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1\n", "x = 1\n"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Sure!\n```py\nx = 1\n```\nThis sets x.", "x = 1\n"),
        ('```python title="a"\nx = 1\n```', "x = 1\n"),
        ("Sure:\n```python\nx = 1\n", "x = 1\n"),
        ("```\nshort\n```\nand\n```python\nlonger = 1\n```", "longer = 1\n"),
        ("s = 'no ``` fence'", "s = 'no ``` fence'\n"),
    ],
)
def test_code_is_taken_out_of_markdown(text: str, code: str) -> None:
    assert strip_fences(text) == code


def test_a_hostile_answer_cannot_hold_the_host_while_its_fences_are_looked_for() -> None:
    began = time.monotonic()
    for text in ("```" + " " * (1 << 20), "```\n" * 50_000 + "x", "```python" * 100_000):
        strip_fences(text)
    assert time.monotonic() - began < 5
