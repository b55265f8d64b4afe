"""Promises of the local agent server: the documented protocol, users apart, and no reach from a browser's page."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from orchestrator.agents.answers import Agent
from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.connect import connect
from orchestrator.agents.errors import AgentRefused
from orchestrator.agents.team import EVERYBODY, Role, setup_team
from orchestrator.local_agents.engine import Answered, Choice, CodeAnswer, EngineUnavailable, Usage
from orchestrator.local_agents.serving import serve_locally
from orchestrator.local_agents.store import AgentStore
from orchestrator.settings import Settings


class Scripted:
    """An engine that answers what its prompt says."""

    name = "scripted"

    def respond(self, agent_name: str, agent_prompt: str, user_prompt: str, account: str) -> Answered[str]:
        if user_prompt == "refuse":
            raise ValueError("not this")
        if user_prompt == "fail":
            raise RuntimeError("secret detail")
        if user_prompt == "later":
            raise EngineUnavailable("the model sleeps", 0.0)
        return Answered(f"{agent_name}|{agent_prompt}|{user_prompt}", "a-model", Usage(3, 4))

    def code(self, prompt: str, account: str) -> Answered[CodeAnswer]:
        return Answered(CodeAnswer(code=f"# {prompt}\n"))

    def route(self, prompt: str, account: str) -> Answered[Choice]:
        return Answered(Choice("code", "it is code", 0.5))


@pytest.fixture
def url() -> Iterator[str]:
    store = AgentStore(":memory:")
    with serve_locally(Scripted(), store) as address:
        yield address
    store.close()


def test_the_client_can_do_every_call(url: str) -> None:
    client = LumenbridgeClient(url, "alice")
    assert client.register("A", "be A", "first").name == "A"
    assert client.my_agent("A").prompt == "be A"
    assert client.update("A", "be B", "second").description == "second"
    assert [(agent.name, agent.prompt) for agent in client.my_agents()] == [("A", None)]
    assert client.invoke("A", "hello") == "A|be B|hello"
    assert client.code("write").code == "# write\n"
    routed = client.route("what")
    assert (routed.routing.selected_agent, routed.routing.confidence) == ("code", 0.5)
    assert routed.result["code"] == "# what\n"


def test_the_envelope_is_the_documented_one(url: str) -> None:
    body = {"userId": "u", "name": "Helper", "prompt": "p", "metadata": {"a": [1]}}
    said = requests.post(f"{url}/api/agents/register", json=body, timeout=5).json()
    assert said["success"] is True and said["agent"] == "Helper" and said["timestamp"].endswith("Z")
    agent = said["result"]["agent"]
    assert set(agent) == {
        "userId", "name", "normalizedName", "description", "prompt", "metadata", "type", "createdAt", "updatedAt"
    }  # fmt: skip
    assert (agent["normalizedName"], agent["type"], agent["metadata"]) == ("helper", "user-created", {"a": [1]})
    listed = requests.get(f"{url}/api/agents/my-agents/u", timeout=5).json()["result"]
    assert (listed["count"], "prompt" in listed["agents"][0]) == (1, False)
    invoked = {"userId": "u", "agentName": "Helper", "context": {"userPrompt": "x", "more": 1}}
    result = requests.post(f"{url}/api/agents/invoke-user-agent", json=invoked, timeout=5).json()["result"]
    assert {"agentName", "userId", "response", "timestamp", "_llm"} <= set(result)
    gone = requests.delete(f"{url}/api/agents/delete", json={"userId": "u", "agentName": "helper"}, timeout=5)
    assert gone.status_code == 200
    assert requests.get(f"{url}/api/agents/my-agents/u/Helper", timeout=5).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "register", {"userId": "u", "name": "Taken", "prompt": "p"}, 400),
        ("POST", "register", {"userId": "u", "name": "TAKEN ", "prompt": "p"}, 400),
        ("POST", "register", {"userId": "u", "name": "terminal", "prompt": "p"}, 400),
        ("POST", "register", {"userId": "u", "name": "x"}, 400),
        ("POST", "register", [], 400),
        ("POST", "register", b"{", 400),
        ("POST", "register", {"userId": "u", "name": "x", "prompt": "p" * 2_000_000}, 413),
        ("PUT", "update", {"userId": "u", "agentName": "None", "updates": {}}, 404),
        ("DELETE", "delete", {"userId": "u", "agentName": "None"}, 404),
        ("DELETE", "delete", {"userId": "other", "agentName": "Taken"}, 404),
        ("POST", "invoke-user-agent", {"userId": "other", "agentName": "Taken", "context": {"userPrompt": "x"}}, 400),
        ("POST", "invoke-user-agent", {"userId": "u", "agentName": "Taken", "context": {}}, 400),
        ("POST", "invoke-user-agent", {"userId": "u", "agentName": "Taken", "context": {"userPrompt": "refuse"}}, 400),
        ("POST", "invoke-user-agent", {"userId": "u", "agentName": "Taken", "context": {"userPrompt": "fail"}}, 500),
        ("POST", "code", {}, 400),
    ],
)
def test_errors_have_the_documented_status_and_shape(
    url: str, method: str, path: str, body: object, status: int
) -> None:
    LumenbridgeClient(url, "u").register("Taken", "p")
    send = {"data": body} if isinstance(body, bytes) else {"json": body}
    said = requests.request(method, f"{url}/api/agents/{path}", timeout=5, **send)  # type: ignore[arg-type]
    assert said.status_code == status
    assert set(said.json()) == {"error", "agent", "timestamp"}
    assert "secret detail" not in said.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.1"])
def test_a_page_that_reaches_the_server_under_another_name_is_refused(url: str, host: str) -> None:
    assert requests.get(f"{url}/api/agents/my-agents/u", headers={"Host": host}, timeout=5).status_code == 400


def test_agents_survive_a_restart_and_users_do_not_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "agents.sqlite"
    for user in ("a", "b"):
        store = AgentStore(path)
        store.add(user, "Mine", f"of {user}", "", None)
        store.close()
    store = AgentStore(path)
    assert [agent.prompt for agent in store.of_user("a")] == ["of a"]
    store.close()


def test_setting_up_the_team_twice_changes_nothing_and_a_changed_prompt_is_updated(url: str) -> None:
    client = LumenbridgeClient(url, "lab")
    assert set(setup_team(client).values()) == {"registered"}
    assert set(setup_team(client).values()) == {"unchanged"}
    client.update("CoderAgent", "something else")
    client.register("Mine", "keep me")
    assert setup_team(client) == {role.name: "unchanged" for role in EVERYBODY} | {"CoderAgent": "updated"}
    assert client.my_agent("Mine").prompt == "keep me"


def test_two_first_runs_at_once_share_one_team(url: str) -> None:
    both_have_listed = threading.Barrier(2)

    class AtOnce(LumenbridgeClient):
        listed = False

        def my_agents(self, deadline: float | None = None) -> list[Agent]:
            found = super().my_agents(deadline)
            if not self.listed:
                self.listed = True
                both_have_listed.wait(10)
            return found

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(setup_team, AtOnce(url, "lab")) for _ in range(2)]
        done = [run.result(30) for run in runs]
    for role in EVERYBODY:
        assert sorted(one[role.name] for one in done) == ["registered", "unchanged"]
    assert len(LumenbridgeClient(url, "lab").my_agents()) == len(EVERYBODY)


def test_a_name_that_the_service_keeps_for_others_is_reported_and_the_rest_is_set_up(url: str) -> None:
    roles = [Role("terminal", "", "be a terminal"), Role("Mine", "", "be mine")]
    assert setup_team(LumenbridgeClient(url, "lab"), roles) == {"terminal": "taken", "Mine": "registered"}


def test_a_registration_that_is_refused_for_another_reason_stays_refused(url: str) -> None:
    with pytest.raises(AgentRefused, match="prompt"):
        setup_team(LumenbridgeClient(url, "lab"), [Role("Empty", "", "")])


def test_the_choice_of_agents_says_which_and_why(own_state: Path) -> None:
    state = own_state
    with connect(Settings(None, "u"), "auto", state) as connected:
        assert "local" in connected.why and "not set" in connected.why
        assert connected.client.base_url.startswith("http://127.0.0.1:")
    with connect(Settings("http://127.0.0.1:9", "u"), "auto", state) as connected:
        assert connected.client.base_url == "http://127.0.0.1:9"
    with connect(Settings("http://127.0.0.1:9", "u"), "local", state) as connected:
        assert "as asked" in connected.why
    with pytest.raises(AgentRefused, match="LUMENBRIDGE_BASE_URL"), connect(Settings(None, "u"), "lumenbridge", state):
        pass
