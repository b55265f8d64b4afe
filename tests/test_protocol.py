"""Promises of `labsandbox agents serve`: a server of its own that any program written from the documentation can use."""

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from orchestrator.agents.keys import SigningKey, verifies
from tests.model_endpoint import model_endpoint
from tests.test_cli import COMMAND, labsandbox, told
from tests.test_keys import WORDS
from tests.test_resume import script

SECRETS = (
    WORDS,
    SigningKey.from_mnemonic(WORDS)._key.private_numbers().private_value.to_bytes(32, "big").hex(),
    "sk-hush",
)


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[str]:
    """The address of a server that is a process of its own."""
    process = subprocess.Popen(
        [COMMAND, "agents", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://[\w.\[\]:]+:\d+", address), process.communicate()
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert "Traceback" not in said


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Documented:
    """A client that was written from the documentation of the protocol alone, with `requests`."""

    def __init__(self, base: str, key: SigningKey | None = None) -> None:
        self.base, self.key = base, key

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, **headers: str) -> requests.Response:
        return requests.request(method, self.base + path, json=body, headers={**self.signed(), **headers}, timeout=30)

    def signed(self) -> dict[str, str]:
        if self.key is None:
            return {}
        said = requests.get(f"{self.base}/api/auth/challenge", timeout=5).json()["result"]
        assert said["expiresIn"] == 300 and re.fullmatch("[0-9a-f]+", said["challenge"])
        return {
            "x-signature": self.key.sign(said["challenge"].encode()).hex(),
            "x-public-key": self.key.public.hex(),
            "x-challenge": said["challenge"],
        }


def check_signature(result: dict[str, Any]) -> None:
    """As the documentation says: by the public key against the hash, which is of the result without its underscores."""
    said = result["_signature"]
    assert {"signature", "responseHash", "address", "publicKey", "timestamp", "algorithm", "encoding"} <= said.keys()
    content = {key: value for key, value in result.items() if not key.startswith("_")}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.sha256(text).hexdigest() == said["responseHash"]
    assert verifies(bytes.fromhex(said["publicKey"]), bytes.fromhex(said["signature"]), said["responseHash"].encode())


@pytest.mark.parametrize("key", [None, SigningKey.from_mnemonic(WORDS)], ids=["unsigned", "signed"])
def test_a_client_written_from_the_documentation_can_do_every_call(key: SigningKey | None, own_state: Path) -> None:
    with served() as url:
        client = Documented(url, key)
        body: dict[str, Any] = {"userId": "u", "name": "Helper", "prompt": "help", "metadata": {"a": 1}, "schema": {}}
        said = client.call("POST", "/api/agents/register", body).json()
        assert (
            said["success"] is True and said["result"]["agent"]["type"] == "user-created" and said["result"]["message"]
        )
        again = client.call("POST", "/api/agents/register", body)
        assert again.status_code == 400 and "exists" in again.json()["error"]
        updates = {"userId": "u", "agentName": "Helper", "updates": {"prompt": "help more"}}
        assert client.call("PUT", "/api/agents/update", updates).json()["result"]["agent"]["prompt"] == "help more"
        listed = client.call("GET", "/api/agents/my-agents/u").json()["result"]
        assert (listed["count"], listed["userId"], listed["agents"][0]["name"]) == (1, "u", "Helper")
        one = client.call("GET", "/api/agents/my-agents/u/Helper").json()["result"]["agent"]
        assert one["prompt"] == "help more"
        goal = "Goal: Compare AdamW vs. Lion on a small transformer"
        invoked = {"userId": "u", "agentName": "Helper", "context": {"userPrompt": goal, "anything": [1]}}
        result = client.call("POST", "/api/agents/invoke-user-agent", invoked).json()["result"]
        assert result["agentName"] == "Helper" and "Lion" in result["response"]
        check_signature(result)
        code = client.call("POST", "/api/agents/code", {"prompt": goal, "context": {"language": "python"}}).json()
        compile(code["result"]["code"], "code", "exec")
        check_signature(code["result"])
        routed = client.call("POST", "/api/router", {"userPrompt": goal}).json()["result"]["data"]
        assert routed["routing"]["selectedAgent"] == "code" and 0 <= routed["routing"]["confidence"] <= 1
        check_signature(routed)
        assert client.call("DELETE", "/api/agents/delete", {"userId": "u", "agentName": "Helper"}).json()["success"]
        assert client.call("DELETE", "/api/agents/delete", {"userId": "u", "agentName": "Helper"}).status_code == 404
        assert client.call("POST", "/api/agents/invoke-user-agent", invoked).status_code == 400
        stats = requests.get(f"{url}/api/users/stats/{SigningKey.from_mnemonic(WORDS).public.hex()}", timeout=5)
        if key is None:
            assert stats.status_code == 404
        else:
            assert stats.json()["result"]["stats"]["requestCount"] == 11


def test_a_signature_that_does_not_fit_or_a_challenge_used_twice_is_refused(own_state: Path) -> None:
    with served() as url:
        client = Documented(url, SigningKey.from_mnemonic(WORDS))
        headers = client.signed()
        other = SigningKey((7).to_bytes(32, "big"))
        path = f"{url}/api/agents/my-agents/u"
        assert requests.get(path, headers=headers, timeout=5).status_code == 200
        for bad in (
            headers,  # used
            {**client.signed(), "x-public-key": other.public.hex()},
            {**client.signed(), "x-signature": "3006020101020101"},
            {**client.signed(), "x-signature": "zz"},
            {**client.signed(), "x-challenge": "00" * 32},
            {"x-signature": "00"},
        ):
            refused = requests.get(path, headers=bad, timeout=5)
            assert refused.status_code == 401 and refused.json()["error"]


def test_users_do_not_see_each_others_agents_and_foreign_hosts_are_refused(own_state: Path) -> None:
    with served() as url:
        client = Documented(url)
        for user in ("alice", "bob"):
            client.call("POST", "/api/agents/register", {"userId": user, "name": "Mine", "prompt": f"of {user}"})
        client.call("DELETE", "/api/agents/delete", {"userId": "alice", "agentName": "Mine"})
        assert client.call("GET", "/api/agents/my-agents/alice").json()["result"]["count"] == 0
        assert client.call("GET", "/api/agents/my-agents/bob/Mine").json()["result"]["agent"]["prompt"] == "of bob"
        assert client.call("GET", "/api/agents/my-agents/bob", Host="evil.example").status_code == 400
        assert client.call("GET", "/api/agents/my-agents/bob", Origin="https://evil.example").status_code == 403
        for bad in ({"prompt": None}, {"description": None}, {"prompt": ""}):
            refused = client.call("PUT", "/api/agents/update", {"userId": "bob", "agentName": "Mine", "updates": bad})
            assert refused.status_code == 400 and refused.json()["error"]
        slash = client.call("POST", "/api/agents/register", {"userId": "bob/x", "name": "Mine", "prompt": "p"})
        assert slash.status_code == 400
    with served("--host", "::1") as url:
        assert url.startswith("http://[::1]:")
        assert Documented(url).call("GET", "/api/agents/my-agents/bob").status_code == 200
    with served("--allow-host", "lab.example") as url:
        assert Documented(url).call("GET", "/api/agents/my-agents/bob", Host="lab.example").status_code == 200


def test_agents_outlive_the_server_that_was_told_of_them(own_state: Path) -> None:
    body = {"userId": "u", "name": "Helper", "prompt": "help"}
    with served() as url:
        Documented(url).call("POST", "/api/agents/register", body)
    with served() as url:
        assert Documented(url).call("GET", "/api/agents/my-agents/u").json()["result"]["count"] == 1


def test_an_address_that_cannot_be_had_is_one_line(own_state: Path) -> None:
    with served() as url:
        taken = labsandbox("agents", "serve", "--port", url.rsplit(":", 1)[1])
        assert taken.returncode == 2 and "cannot listen" in told(taken)
    assert "cannot listen" in told(labsandbox("agents", "serve", "--host", "192.0.2.1", "--port", "0"))
    assert "LABSANDBOX_LLM_BASE_URL" in told(labsandbox("agents", "serve", "--engine", "llm"))
    for name in ("foo*", "lab:8765", ""):
        assert "--allow-host" in told(labsandbox("agents", "serve", "--allow-host", name))


def everything_below(folder: Path) -> str:
    return "\n".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())


def test_a_sprint_over_a_server_elsewhere_is_signed_graded_repaired_and_on_record(here: Path, own_state: Path) -> None:
    with model_endpoint(script) as endpoint:
        llm = {
            "LABSANDBOX_LLM_BASE_URL": endpoint.url,
            "LABSANDBOX_LLM_MODEL": "scripted",
            "LABSANDBOX_LLM_API_KEY": "sk-hush",
        }
        theirs = str(here / "theirs")
        with served("--engine", "llm", LABSANDBOX_STATE_DIR=theirs, **llm) as url:
            environment = {"LUMENBRIDGE_BASE_URL": url, "LUMENBRIDGE_MNEMONIC": WORDS}
            done = labsandbox(
                "run", "Is a better than b?", "--backend", "oci", "--wall", "20s", "--require-signed", "--json",
                **environment,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            stats = json.loads(labsandbox("agents", "stats", "--json", **environment).stdout)
            shown = labsandbox("agents", "show", "DebuggerAgent", **environment).stdout
            asked = json.loads(labsandbox("agents", "consult", "What?", "--json", **environment).stdout)
            keys = json.loads(labsandbox("agents", "keys", "--json").stdout)
            assert labsandbox("agents", "remove", "DebuggerAgent", **environment).returncode == 0
            assert "DebuggerAgent: registered" in labsandbox("agents", "setup", **environment).stdout
    summary = json.loads(done.stdout)
    assert summary["agents"] == url and summary["phases"]["self_healing"]["fix_applied"] is True
    assert "requests signed by 1" in done.stderr
    assert stats["request_count"] > 15 and "debugger" in shown and asked["routing"]["selected_agent"] == "code"
    assert {pin["agent"] for pin in keys} >= {"ValidatorAgent", "code agent"} and len(
        {pin["public_key"] for pin in keys}
    ) == 1
    (folder,) = (here / "results").iterdir()
    calls = [json.loads(line) for line in (folder / "agents.jsonl").read_text().splitlines()]
    assert {call["signature"]["grade"] for call in calls} == {"content-bound"}
    assert {call["model"] for call in calls} == {"scripted-1"}
    assert all(call["tokens"] == {"prompt": 100, "completion": 50, "total": 150} for call in calls)
    assert all(call["latency_s"] > 0 and call["prompt"] and call["answer"] for call in calls)
    everything = everything_below(here) + everything_below(own_state) + done.stderr + done.stdout
    assert not [secret for secret in SECRETS if secret in everything]
    assert stat.S_IMODE((Path(theirs) / "local_agents.key").stat().st_mode) == 0o600


def test_a_key_that_changes_is_told_and_refused_where_signatures_are_required(here: Path, own_state: Path) -> None:
    with model_endpoint(script) as endpoint:
        llm = {"LABSANDBOX_LLM_BASE_URL": endpoint.url, "LABSANDBOX_LLM_MODEL": "scripted"}
        with served("--engine", "llm", LABSANDBOX_STATE_DIR=str(here / "one"), **llm) as url:
            assert labsandbox("agents", "consult", "What?", LUMENBRIDGE_BASE_URL=url).returncode == 0
        port = url.rsplit(":", 1)[1]
        with served("--engine", "llm", "--port", port, LABSANDBOX_STATE_DIR=str(here / "two"), **llm) as again:
            assert again == url
            quick = ("run", "x", "--backend", "oci", "--wall", "20s")
            # The router's key is pinned from before; the other agents' are seen for the first time.
            told_of = labsandbox("agents", "consult", "What?", LUMENBRIDGE_BASE_URL=url)
            assert told_of.returncode == 0
            pinned = json.loads(labsandbox("agents", "keys", "--json").stdout)
            assert [pin["agent"] for pin in pinned] == ["router"]
            assert labsandbox("agents", "keys", "--forget", "router").returncode == 0
            assert labsandbox("agents", "keys", "--forget", "router").returncode == 2
            assert labsandbox(*quick, LUMENBRIDGE_BASE_URL=url).returncode == 0
        with served("--engine", "llm", "--port", port, LABSANDBOX_STATE_DIR=str(here / "three"), **llm):
            done = labsandbox(*quick, LUMENBRIDGE_BASE_URL=url)
            assert done.returncode == 0 and "the key that signs for CoderAgent has changed" in done.stderr
            refused = labsandbox(*quick, "--require-signed", LUMENBRIDGE_BASE_URL=url)
            assert refused.returncode == 4 and "signed with another key" in told(refused)


def test_keys_are_made_shown_once_and_kept_where_they_are_asked_to_be(here: Path) -> None:
    shown = labsandbox("agents", "keygen")
    words = re.search(r"^words: ((?:[a-z]+ ){23}[a-z]+)$", shown.stdout, re.MULTILINE)
    assert words and SigningKey.from_mnemonic(words[1]).address in shown.stdout
    kept = labsandbox("agents", "keygen", "--out", "key.txt")
    text = (here / "key.txt").read_text()
    assert stat.S_IMODE((here / "key.txt").stat().st_mode) == 0o600
    assert SigningKey.from_mnemonic(text).address in kept.stdout and text.strip() not in kept.stdout + kept.stderr
    again = labsandbox("agents", "keygen", "--out", "key.txt")
    assert again.returncode == 2 and "left as it is" in told(again) and (here / "key.txt").read_text() == text


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LUMENBRIDGE_MNEMONIC": "correct horse battery"}, "LUMENBRIDGE_MNEMONIC is not a mnemonic"),
        ({"LUMENBRIDGE_PRIVATE_KEY": "c0ffee"}, "LUMENBRIDGE_PRIVATE_KEY is not a private key"),
        ({"LUMENBRIDGE_PRIVATE_KEY": "11" * 32, "LUMENBRIDGE_MNEMONIC": WORDS}, "both set"),
        ({"LABSANDBOX_LLM_BASE_URL": "http://127.0.0.1:1/v1"}, "LABSANDBOX_LLM_MODEL is not"),
        (
            {"LABSANDBOX_LLM_BASE_URL": "gopher://x", "LABSANDBOX_LLM_MODEL": "m"},
            "LABSANDBOX_LLM_BASE_URL is not an http",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_one_line_without_the_secret(
    here: Path, environment: dict[str, str], said: str
) -> None:
    done = labsandbox("agents", "list", **environment)
    assert done.returncode == 2 and said in told(done)
    (here / ".env").write_bytes(b"X=\xff\n")
    assert "not UTF-8" in told(labsandbox("agents", "list"))
    assert "horse" not in done.stderr and "c0ffee" not in done.stderr and "abandon" not in done.stderr
