"""Promises of the channel: any cut of the stream gives the same frames, and nothing hostile gets further."""

import json
import struct
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.artifacts import safe_name
from executor.backends.oci import PipeConnection
from executor.channel import MAX_FRAME, Channel, FrameReader, frame
from executor.conversation import Conversation, Excerpt, parse_record
from executor.errors import ChannelError
from executor.experiment import MetricRecord
from policies.model import load_policy
from tests.conftest import Recorded

KINDS = st.sampled_from([bytes([kind]) for kind in b"HSOEMNFDZAXTUV"])


@given(st.lists(st.tuples(KINDS, st.binary(max_size=300))), st.lists(st.integers(1, 50)))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    frames: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(frame(kind, payload) for kind, payload in frames)
    reader, found = FrameReader(), []
    for cut in [*cuts, len(stream)]:
        found += list(reader.feed(stream[:cut]))
        stream = stream[cut:]
    assert found == frames
    assert not reader.torn


@given(st.binary(max_size=2000))
def test_any_bytes_give_frames_or_a_channel_error_and_nothing_else(data: bytes) -> None:
    try:
        for kind, payload in FrameReader().feed(data):
            assert len(payload) <= MAX_FRAME
            assert kind in b"HSOEMNFDZAXTUV"
    except ChannelError:
        pass


def test_a_frame_that_claims_to_be_huge_is_refused_before_it_is_read() -> None:
    with pytest.raises(ChannelError):
        list(FrameReader().feed(struct.pack(">cI", b"O", MAX_FRAME + 1)))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip  # noqa: E501
def test_any_json_on_the_metric_channel_is_a_record_or_rejected(value: object) -> None:
    payload = struct.pack(">d", 1.5) + json.dumps(value).encode()
    assert parse_record(payload) is None or isinstance(parse_record(payload), MetricRecord)


@given(st.binary(max_size=500))
def test_any_bytes_on_the_metric_channel_are_a_record_or_rejected(payload: bytes) -> None:
    parse_record(payload)


@pytest.mark.parametrize(
    "line",
    [
        '{"type": "metric", "values": {"x": 1' + "0" * 400 + "}}",
        '{"type": "metric", "step": NaN, "values": {}}',
        '{"type": "metric", "step": 1e999, "values": {}}',
        '{"type": "run", "arm": "a", "seed": 0, "phase": "confirm", "status": "ok", "seconds": NaN}',
        '{"type": "run", "arm": "a", "seed": 0, "phase": "confirm", "status": "ok", "config": {"lr": Infinity}}',
        '{"type": "run", "arm": "a", "seed": 1' + "0" * 400 + ', "phase": "confirm", "status": "ok"}',
    ],
)
def test_a_number_that_the_record_could_not_be_written_with_is_rejected(line: str) -> None:
    assert parse_record(struct.pack(">d", 0.0) + line.encode()) is None


def test_nan_and_infinity_survive_the_channel() -> None:
    line = b'{"type": "metric", "step": 1, "values": {"a": "NaN", "b": "-Infinity", "c": 2}}'
    record = parse_record(struct.pack(">d", 0.5) + line)
    assert isinstance(record, MetricRecord)
    assert record.t == 0.5
    assert str(record.values) == "{'a': nan, 'b': -inf, 'c': 2.0}"
    assert json.loads(record.model_dump_json())["values"] == {"a": "NaN", "b": "-Infinity", "c": 2.0}


@given(st.text(max_size=300))
def test_an_artifacts_name_never_leaves_its_folder_and_never_reaches_a_terminal_raw(name: str) -> None:
    safe = safe_name(name)
    if safe is None:
        return
    assert not safe.startswith("/")
    assert all(part not in {"", ".", ".."} and len(part.encode()) <= 120 for part in safe.split("/"))
    assert safe.isprintable()
    assert safe_name(safe.replace("%", "")) is not None or "%" in safe


@given(st.text(alphabet=st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"]), max_size=90))
def test_a_name_of_halves_of_characters_is_some_name(name: str) -> None:
    safe = safe_name(f"a{name}")
    assert safe is not None and safe.isprintable() and safe.encode()


class Nothing:
    """A sink that is never used."""


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (b"N", {"ended": [1]}),
        (b"N", {"ended": {}}),
        (b"A", {"first": [["a"]], "skipped": 1}),
        (b"A", {"first": [1], "skipped": 1}),
        (b"A", {"first": 5, "skipped": 1}),
        (b"A", {"first": {"a": "b"}, "skipped": 1}),
    ],
)
def test_what_a_lying_pid_1_says_is_a_channel_error(kind: bytes, payload: object) -> None:
    talk = Conversation(None, load_policy("default").limits, Nothing())  # type: ignore[arg-type]
    with pytest.raises(ChannelError, match="malformed"):
        talk._take(kind, json.dumps(payload).encode())


def connection_of(process: "subprocess.Popen[bytes]") -> PipeConnection:
    assert process.stdin and process.stdout and process.stderr
    return PipeConnection(process.stdin, process.stdout, process.stderr)


def test_closing_ends_in_time_when_the_container_does_not_read() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(["sleep", "60"], bufsize=0, **pipes) as process:  # type: ignore[call-overload]
        channel = Channel(connection_of(process))
        channel.send(b"x" * (1 << 20))
        time.sleep(0.3)  # the writer hangs in the pipe
        began = time.monotonic()
        channel.close()
        assert time.monotonic() - began < 5
        process.kill()


DRIPPING = """
import sys, time
def read(count): return sys.stdin.buffer.read(count)
def send(kind, payload):
    sys.stdout.buffer.write(kind + len(payload).to_bytes(4, "big") + payload)
    sys.stdout.buffer.flush()
while True:
    head = read(5)
    read(int.from_bytes(head[1:], "big"))
    if head[:1] == b"G":
        break
send(b"S", b"{{}}")
for _ in range(100):
    send({drop!r}, {payload!r})
    time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("drop", "payload"), [(b"M", b"12345678"), (b"O", b""), (b"N", b'{"ended": "timeout", "run_s": 0.1}')]
)
def test_a_pid_1_that_drips_does_not_outlast_the_clock(
    drop: bytes, payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executor.conversation.STOP_GRACE", 0.5)
    monkeypatch.setattr("executor.conversation.COLLECT_GRACE", 1.0)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    program = DRIPPING.format(drop=drop, payload=payload)
    with subprocess.Popen([sys.executable, "-c", program], bufsize=0, **pipes) as process:  # type: ignore[call-overload]
        channel = Channel(connection_of(process))
        talk = Conversation(channel, load_policy("default").limits.model_copy(update={"wall": 0.5}), Recorded())
        talk.go([])
        began = time.monotonic()
        talk.listen(lambda seconds: None)
        assert time.monotonic() - began < 4.0 and talk.report.ended == "timeout"
        process.kill()
        channel.close()


def test_a_record_too_short_for_its_time_counts_as_any_other() -> None:
    talk = Conversation(None, load_policy("default").limits.model_copy(update={"metrics": 5}), Recorded())  # type: ignore[arg-type]
    for payload in (b"", b"1234567", b"12345678", b"12345678{", b"\0"):
        talk._take(b"M", payload)
    with pytest.raises(ChannelError, match="more metrics"):
        talk._take(b"M", b"")


def test_nothing_is_held_that_comes_after_the_channel_was_closed() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    flood = "import sys\nwhile True: sys.stdout.buffer.write((b'O' + (65531).to_bytes(4, 'big') + b'x' * 65531))"
    with subprocess.Popen([sys.executable, "-c", flood], bufsize=0, **pipes) as process:  # type: ignore[call-overload]
        channel = Channel(connection_of(process))
        time.sleep(0.3)
        channel.close()
        time.sleep(1.0)
        held = len(channel._frames)
        process.kill()
    assert held <= 64


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a/../../b", "a//b", ".", "a/./b", "x/" * 20 + "y"])
def test_names_that_point_elsewhere_are_refused(name: str) -> None:
    assert safe_name(name) is None


@given(st.lists(st.binary(max_size=70_000), max_size=12))
def test_an_excerpt_keeps_head_and_tail_and_counts_the_middle(parts: list[bytes]) -> None:
    excerpt = Excerpt()
    for part in parts:
        excerpt.add(part)
    whole = b"".join(parts)
    text = excerpt.text()
    assert excerpt.total == len(whole)
    if len(whole) <= 128 * 1024:
        assert text == whole.decode("utf-8", "replace")
    else:
        assert len(text) <= 2 * 128 * 1024 + 100
