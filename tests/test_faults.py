"""Promises of a sprint against a service that misbehaves: it does not crash, leaks nothing, and keeps its phases' time."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AIResearchTeam
from orchestrator.agents.client import LumenbridgeClient
from orchestrator.agents.errors import AgentError
from orchestrator.agents.keys import SigningKey
from orchestrator.agents.signatures import PinnedKeys, sign
from orchestrator.lab_setup import LabOptions
from orchestrator.sprint import Budgets
from policies.model import PartialLimits
from results.summary import execution_of
from tests.faulty_server import (
    CHALLENGE,
    CODE,
    HTML,
    INVOKE,
    PROGRAM,
    REGISTER,
    Fault,
    always,
    answer,
    drip,
    drip_headers,
    faulty,
    faulty_service,
    hang_up,
    huge,
    stall,
)

SECRET = "5e" * 32
BUDGETS = Budgets(discussion=2.0, implementation=8.0, validation=2.0)
OPTIONS = LabOptions(backend="oci", limits=PartialLimits.model_validate({"wall": "5s"}))
STRANGER = SigningKey((99).to_bytes(32, "big"))


def result(**fields: Any) -> Fault:
    return always(answer({"success": True, "result": fields}))


def signed_by(key: SigningKey, **changes: str) -> Fault:
    content = {"code": PROGRAM}
    return result(**content, _signature={**sign(key, content, "code"), **changes})


def first_signed_by_one_then_by_another(connection: Any, before: int) -> None:
    signed_by(SigningKey((1 + min(before, 1)).to_bytes(32, "big")))(connection, before)


FAULTS: dict[str, tuple[dict[str, Fault], bool]] = {
    # what goes wrong → (where, whether the experiment runs all the same)
    "slow bytes from the agents": ({INVOKE: drip}, True),
    "slow bytes from the code agent": ({CODE: drip}, False),
    "slow headers": ({INVOKE: drip_headers}, True),
    "no answer": ({INVOKE: stall}, True),
    "hangs up": ({INVOKE: hang_up}, True),
    "half a JSON": ({INVOKE: always(answer(b'{"success": true, "result": {"resp'))}, True),
    "wrong content type": ({INVOKE: always(HTML)}, True),
    "good JSON under a wrong content type": (
        {CODE: always(answer({"success": True, "result": {"code": PROGRAM}}, kind="text/html"))},
        True,
    ),
    "success: false in a 200": ({CODE: always(answer({"success": False, "error": "quota"}))}, False),
    "result nested in data": ({CODE: result(data={"code": PROGRAM}), INVOKE: result(data={"response": "ok"})}, True),
    "missing fields": ({INVOKE: result(agentName="x"), CODE: result(code=PROGRAM)}, True),
    "no code at all": ({CODE: result(explanation="x")}, False),
    "fields of the wrong type": (
        {
            INVOKE: result(response=[{"a": 1}], timestamp=7, _llm="x", _signature=3),
            CODE: result(code=PROGRAM, dependencies=7),
        },
        False,
    ),
    "odd types that can be read": (
        {INVOKE: result(response={"text": "ok"}, _llm={"usage": []}), CODE: result(code=PROGRAM, dependencies="a\nb")},
        True,
    ),
    "code in fences": ({CODE: result(code=f"```python\n{PROGRAM}```")}, True),
    "prose around code": ({CODE: result(code=f"Certainly! Here it is:\n```\n{PROGRAM}```\nEnjoy!")}, True),
    "a fence that is never closed": ({CODE: result(code=f"```python\n{PROGRAM}")}, True),
    "prose instead of code": ({CODE: result(code="I am sorry, but I can't.")}, False),
    "empty code": ({CODE: result(code="")}, False),
    "nothing but a fence": ({CODE: result(code="```python\n\n```")}, False),
    "40 MB": ({CODE: huge}, False),
    "nested without end": ({CODE: always(answer(b'{"result":' + b"[" * 200_000))}, False),
    "a number that is none": ({CODE: always(answer(b'{"result": {"code": "x = 1", "score": 1e999}}'))}, False),
    "NaN": ({CODE: always(answer(b'{"result": {"code": NaN}}'))}, False),
    "terminal escapes": ({INVOKE: result(response="\x1b[2J\x1b]0;owned\x07 ok\x00")}, True),
    "lone surrogates": ({INVOKE: always(answer(b'{"result": {"response": "a \\ud800 b"}}'))}, True),
    "a challenge that is none": ({CHALLENGE: result(challenge=["x"])}, False),
    "a challenge that would break a header": ({CHALLENGE: result(challenge="a\r\nx-evil: 1")}, False),
    "an expired challenge": ({CODE: always(answer({"error": "challenge expired"}, "401 Unauthorized"))}, False),
    "no challenge": ({CHALLENGE: stall}, False),
    "a registration that stalls": ({REGISTER: stall}, False),
    "a wrong signature": ({CODE: signed_by(STRANGER, signature="3006020101020101")}, True),
    "a changed key": ({CODE: first_signed_by_one_then_by_another}, True),
    "a duplicate registration": (
        {REGISTER: always(answer({"error": "agent name already exists for this user"}, "400 Bad Request"))},
        True,
    ),
    "a 429 storm": ({INVOKE: always(answer({}, "429 Slow down", Retry_After="1"))}, True),
    "a 429 storm without end": ({CODE: always(answer({}, "429 Slow down", Retry_After="99999999999"))}, False),
    "500s": ({INVOKE: always(answer({"error": "model failure"}, "500 Oops"))}, True),
}


class Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def phase(self, name: str, seconds: float) -> None: ...

    def said(self, agent: str, text: str) -> None: ...

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("name", FAULTS)
def test_no_answer_crashes_a_sprint_leaks_a_secret_or_overruns_a_phase(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, runs = FAULTS[name]
    monkeypatch.setenv("LUMENBRIDGE_PRIVATE_KEY", SECRET)
    notes = Notes()
    set_up_breaks = CHALLENGE in faults or faults.get(REGISTER) is stall
    if set_up_breaks:
        # The team is set up before the sprint begins; what breaks there is one line and no sprint.
        monkeypatch.setattr("orchestrator.agents.team.SETUP_SECONDS", 2.0)
    with faulty_service(faults) as service:
        team = AIResearchTeam(service.url, results_dir=tmp_path, options=OPTIONS, budgets=BUDGETS, progress=notes)
        began, said, summary = time.monotonic(), "", None
        try:
            summary = team.run_sprint("Is a better than b?")
        except AgentError as error:
            said = str(error)
            assert "\n" not in said and len(said) < 500
        if set_up_breaks:
            assert said and time.monotonic() - began < 6
            return
        (folder,) = tmp_path.iterdir()
        written = json.loads((folder / "sprint_summary.json").read_text())
        assert summary is None or written == summary
        assert (execution_of(written).get("success") is True) is runs, notes.lines
        for phase, budget in vars(BUDGETS).items():
            assert _seconds(written["phases"].get(phase)) < budget + 2, phase
        assert b"Bearer" not in b"".join(service.heard) and SECRET.encode() not in b"".join(service.heard)
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file()).decode("latin-1")
    assert SECRET not in everything + "".join(notes.lines) + said


def _seconds(phase: dict[str, Any] | None) -> float:
    if phase is None:
        return 0.0
    return (datetime.fromisoformat(phase["ended_at"]) - datetime.fromisoformat(phase["started_at"])).total_seconds()


def test_words_beside_a_signed_object_are_not_read(tmp_path: Path) -> None:
    content = {"x": "ok"}
    signed = {**content, "_signature": sign(STRANGER, content, "A")}
    with faulty_service({INVOKE: always(answer({"result": signed, "response": "INJECTED"}))}) as service:
        client = LumenbridgeClient(service.url, "u", require_signed=True)
        with pytest.raises(AgentError, match="cannot be used"):
            client.invoke("A", "hi")


def test_another_key_is_refused_whatever_it_calls_itself(tmp_path: Path) -> None:
    pins = PinnedKeys(tmp_path / "pins.sqlite")

    def answers(connection: Any, before: int) -> None:
        content, identity = {"response": "ok"}, ["A", "a", "", "B"][before]
        key = SigningKey((1 + min(before, 1)).to_bytes(32, "big"))
        result(**content, _signature=sign(key, content, identity))(connection, before)

    with faulty_service({INVOKE: answers}) as service:
        client = LumenbridgeClient(service.url, "u", pins=pins, require_signed=True)
        assert client.invoke("A", "hi") == "ok"
        for _ in range(3):
            with pytest.raises(AgentError, match="another key"):
                client.invoke("A", "hi")


def test_a_storm_with_signing_on_is_no_larger_than_without(tmp_path: Path) -> None:
    storm = always(answer({}, "429 Slow down"))
    with faulty_service({CHALLENGE: storm}) as service, pytest.raises(AgentError, match="429"):
        LumenbridgeClient(service.url, "u", backoff=0.01, key=STRANGER).code("x")
    assert service.asked(CHALLENGE) == 3


def test_a_redirect_to_another_host_is_never_followed(tmp_path: Path) -> None:
    with faulty(always(answer({"result": {"code": PROGRAM}}))) as elsewhere:
        away = always(answer(b"", "307 Temporary Redirect", Location=f"{elsewhere.url}/api/agents/code"))
        with faulty_service({CODE: away}) as service, pytest.raises(AgentError, match="redirect"):
            AIResearchTeam(service.url, results_dir=tmp_path, options=OPTIONS, budgets=BUDGETS).run_sprint("goal")
        assert elsewhere.requests == 0


def test_a_changed_key_and_an_invalid_signature_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    with faulty_service({CODE: first_signed_by_one_then_by_another}) as service:
        for number in range(2):
            team = AIResearchTeam(
                service.url, results_dir=tmp_path / str(number), options=OPTIONS, budgets=BUDGETS, progress=notes
            )
            team.run_sprint("goal")
    changed = [line for line in notes.lines if "has changed" in line]
    assert len(changed) == 1 and SigningKey((2).to_bytes(32, "big")).public.hex() in changed[0]
    with faulty_service({CODE: signed_by(STRANGER, signature="3006020101020101")}) as service:
        strict = AIResearchTeam(service.url, require_signed=True, results_dir=tmp_path / "strict", options=OPTIONS)
        with pytest.raises(AgentError, match="a signed answer is required, and this one is invalid"):
            strict.run_sprint("goal")


def test_every_request_is_signed_with_a_challenge_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMENBRIDGE_PRIVATE_KEY", SECRET)
    with faulty_service({}) as service:
        AIResearchTeam(service.url, results_dir=tmp_path, options=OPTIONS, budgets=BUDGETS).run_sprint("goal")
        calls = [request for request in service.heard if CHALLENGE.encode() not in request]
        assert all(b"x-signature: 30" in request.lower() for request in calls)
        assert service.asked(CHALLENGE) == len(calls)
