"""Promises of the allow-list: what is listed can be reached through the proxy, nothing else, and all of it is recorded.

Servers on loopback, real containers, real TLS. Names are resolved by a resolver of the tests, which counts.
"""

import http.server
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from executor import channel
from executor.allowlist import AllowList, Refused, split_authority
from executor.backends.docker import DockerBackend
from executor.backends.oci import OciBackend
from executor.egress import MAX_TUNNELS, WINDOW, Egress
from executor.errors import ChannelError
from executor.executor import Executor
from executor.experiment import Execution, Experiment, Outcome
from executor.tls import HelloError, HelloReader
from policies.audit import AuditError, AuditLog
from policies.decision import Request
from policies.model import Network, PartialLimits, load_policy
from policies.state import cache_dir
from tests.conftest import Recorded

# ---- the judgement itself ----


def refusal(allowed: AllowList, authority: str) -> str:
    try:
        allowed.name(authority, 80)
    except Refused as error:
        return error.rule
    return ""


@pytest.mark.parametrize("text", ["example.org:443", "EXAMPLE.org:443", "example.org.:443", "eXample.Org.:0443"])
def test_a_listed_host_is_found_however_it_is_written(text: str) -> None:
    assert AllowList(["example.org:443"]).name(text) == ("example.org", 443)


@pytest.mark.parametrize(
    "text",
    [
        "example.org:80",
        "example.org",
        "sub.example.org:443",
        "example.org.evil.test:443",
        "evil.test#example.org:443",
        "example.org:443@evil.test:443",
        "user@example.org:443",
        "example.org\0.evil.test:443",
        "example.org:443\r\nHost: evil.test",
        "example.org%2eevil.test:443",
        "ex\u0430mple.org:443",
        "example.org:４４３",
        "example.org..:443",
        ":443",
        "example.org:",
        "example.org:0",
        "example.org:65979",
        "example.org:" + "0" * 5000 + "443",
        "[::1]:443",
        "127.0.0.1:443",
        "0x7f.1:443",
    ],
)
def test_what_is_not_exactly_listed_is_refused(text: str) -> None:
    assert refusal(AllowList(["example.org:443"]), text) in {"network.host", "network.request"}


@given(st.text(max_size=80))
def test_any_text_is_listed_or_refused_and_nothing_else(text: str) -> None:
    assert refusal(AllowList(["example.org:443"]), text) in {"", "network.host", "network.request"}


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a00:1",
        "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "fec0::2",
        "::10.0.0.1",
        "::ffff:0:10.0.0.1",
        "64:ff9b:1::1",
        "4000::1",
    ],
)
def test_a_name_that_leads_to_an_address_that_is_not_public_is_refused_unless_the_address_is_listed(
    address: str,
) -> None:
    with pytest.raises(Refused, match="not a public address"):
        AllowList(["example.org:443"]).address(address, 443)
    AllowList(["example.org:443"]).address("93.184.216.34", 443)


def test_a_listed_address_is_listed_for_its_port_alone() -> None:
    allowed = AllowList(["127.0.0.1:443"])
    assert allowed.address("::ffff:127.0.0.1", 443) == "127.0.0.1"
    with pytest.raises(Refused):
        allowed.address("127.0.0.1", 80)


def hello_for(name: str | None) -> bytes:
    """A real ClientHello."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    context.verify_mode = ssl.CERT_NONE if name is None else context.verify_mode
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def server_name(data: bytes) -> tuple[bool, str | None]:
    reader = HelloReader()
    return reader.feed(data), reader.name


@given(st.integers(40, 600), st.integers(0, 3))
def test_the_name_in_a_client_hello_is_found_however_it_is_cut_into_records(size: int, extra: int) -> None:
    record = hello_for("example.org")
    body = record[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    cut = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)
    assert server_name(cut + b"\x17" * extra) == (True, "example.org")
    assert server_name(cut[:-1]) == (False, None)
    assert server_name(hello_for(None)) == (True, None)


@given(st.lists(st.integers(1, 200)))
def test_the_name_is_found_however_the_bytes_come(cuts: list[int]) -> None:
    data, reader = hello_for("example.org"), HelloReader()
    for cut in cuts:
        assert not reader.feed(data[:cut]) or cut >= len(data)
        data = data[cut:]
    assert reader.name == "example.org" or (reader.feed(data) and reader.name == "example.org")


def test_a_hello_in_many_small_records_costs_the_host_little() -> None:
    reader, began = HelloReader(), time.process_time()
    with pytest.raises(HelloError, match="too many records"):
        reader.feed(b"\x16\x03\x01\x00\x04\x01\x00\xf0\x00")
        for _ in range(60_000):
            reader.feed(b"\x16\x03\x01\x00\x01\x01")
    slow = HelloReader()
    slow.feed(b"\x16\x03\x01\x40\x00\x01\x00\xf0\x00")
    for _ in range(16_000):
        slow.feed(b"x")
    assert time.process_time() - began < 1.0


@given(st.binary(max_size=400))
def test_no_bytes_crash_the_reading_of_a_hello(data: bytes) -> None:
    for prefix in (b"", b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc"):
        try:
            server_name(prefix + data)
        except HelloError:
            pass


@given(st.data())
def test_a_hello_with_any_byte_changed_gives_a_name_or_an_error(data: st.DataObject) -> None:
    hello = bytearray(hello_for("example.org"))
    hello[data.draw(st.integers(0, len(hello) - 1))] = data.draw(st.integers(0, 255))
    try:
        server_name(bytes(hello))
    except HelloError:
        pass


# ---- through real containers ----


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.path, self.headers.get("Host")))  # type: ignore[attr-defined]
        body = b"d" * 3_000_000 if self.path == "/big" else f"hello {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        body = str(len(data)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_TRACE = do_GET

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Servers:
    plain: int
    tls: int
    seen: list[tuple[str, str, str]]
    asked: list[str] = field(default_factory=list)

    def resolve(self, host: str, port: int) -> list[str]:
        """Names under .test: what they lead to, and every question is counted."""
        self.asked.append(host)
        if host == "rebind.test" and self.asked.count(host) > 1:
            return ["169.254.169.254"]
        known = {"inner.test": ["10.0.0.5"], "mapped.test": ["::ffff:10.0.0.5"], "allowed.test": ["127.0.0.1"]}
        if host not in known and host not in {"rebind.test", "127.0.0.1"}:
            raise OSError("no such name")
        return known.get(host, ["127.0.0.1"])

    def listed(self) -> tuple[str, ...]:
        names = [f"{name}.test:{self.plain}" for name in ("allowed", "inner", "mapped", "rebind", "nowhere")]
        return (*names, f"allowed.test:{self.tls}", f"127.0.0.1:{self.plain}", f"127.0.0.1:{self.tls}")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "allowed.test")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def servers(certificate: Path) -> Iterator[Servers]:
    plain = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    tls = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    tls.socket = context.wrap_socket(tls.socket, server_side=True, do_handshake_on_connect=False)
    seen: list[tuple[str, str, str]] = []
    for server in (plain, tls):
        server.seen = seen  # type: ignore[attr-defined]
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Servers(plain.server_port, tls.server_port, seen)
    for server in (plain, tls):
        server.shutdown()
        server.server_close()


TOOLS = """
import json, socket, ssl, sys, threading, time, urllib.error, urllib.request
PLAIN, TLS = {plain}, {tls}
results = {{}}
def fetch(url, data=None):
    try:
        return urllib.request.urlopen(url, data, timeout=10).read()
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return type(error).__name__
def raw(data, wait=0.0, more=b""):
    end = socket.create_connection(("127.0.0.1", 3128), 10)
    end.sendall(data)
    time.sleep(wait)
    if more:
        end.sendall(more)
    got = b""
    try:
        while part := end.recv(65536):
            got += part
            if more == b"" and got.endswith(b"established\\r\\n\\r\\n"):
                break
    except OSError:
        pass
    return end, got
def tunnel(target, name):
    end, got = raw(b"CONNECT " + target + b" HTTP/1.0\\r\\n\\r\\n")
    if b" 200 " not in got.split(b"\\r\\n")[0]:
        return got.split(b"\\r\\n")[0].decode()
    context = ssl._create_unverified_context()
    try:
        with context.wrap_socket(end, server_hostname=name) as inside:
            inside.sendall(b"GET /inside HTTP/1.0\\r\\n\\r\\n")
            got = b""
            while part := inside.recv(65536):
                got += part
            return got.split(b"\\r\\n\\r\\n")[1].decode()
    except OSError as error:
        return type(error).__name__
def line(data, **options):
    return raw(data, **options)[1].split(b"\\r\\n")[0].decode()
"""


@dataclass
class Trial:
    execution: Execution
    said: dict[str, Any]
    records: list[dict[str, Any]]

    def verdicts(self) -> list[tuple[str, bool, str]]:
        network = [record for record in self.records if record["event"] == "network"]
        return [(record["host"], record["allow"], record["rule"]) for record in network]


def attempt(state: Path, servers: Servers, image: str, kind: str, code: str) -> Trial:
    name, runtime = kind.split("+")
    backend = OciBackend(state, cache_dir(), runtime) if name == "oci" else DockerBackend(image, runtime)
    policy = load_policy("gvisor" if runtime == "runsc" else "default")
    policy = policy.model_copy(update={"network": Network(mode="allowlist", hosts=servers.listed())})
    audit, sink = AuditLog(state / "audit.jsonl"), Recorded()
    source = TOOLS.format(plain=servers.plain, tls=servers.tls) + code + "\nprint(json.dumps(results))\n"
    request = Request(limits=PartialLimits.model_validate({"wall": "60s"}))
    executor = Executor(backend, audit, resolve=servers.resolve)
    execution = executor.run(Experiment(code=source), policy, request, sink)
    assert execution.outcome is Outcome.COMPLETED, (execution.message, execution.stderr)
    return Trial(execution, json.loads(sink.stdout), list(audit.records()))


@pytest.mark.parametrize("kind", ["oci+runc", "docker+runc", "oci+runsc", "docker+runsc"])
def test_what_is_listed_is_reached_and_recorded_and_what_is_not_is_refused_and_recorded(
    kind: str, own_state: Path, servers: Servers, cpu_image: str
) -> None:
    trial = attempt(
        own_state,
        servers,
        cpu_image,
        kind,
        "import os\n"
        "results['plain'] = fetch(f'http://allowed.test:{PLAIN}/a').decode()\n"
        "results['tunnel'] = tunnel(f'allowed.test:{TLS}'.encode(), 'allowed.test')\n"
        "results['other'] = fetch(f'http://other.test:{PLAIN}/')\n"
        "results['post'] = fetch(f'http://allowed.test:{PLAIN}/p', b'u' * 2_000_000).decode()\n"
        "results['big'] = len(fetch(f'http://allowed.test:{PLAIN}/big'))\n"
        "direct = socket.socket(); direct.settimeout(3)\n"
        "results['direct'] = direct.connect_ex(('127.0.0.1', PLAIN)) != 0\n"
        "results['interfaces'] = [name for _, name in socket.if_nameindex()]\n",
    )
    assert trial.said == {
        "plain": "hello /a",
        "tunnel": "hello /inside",
        "other": 403,
        "post": "2000000",
        "big": 3_000_000,
        "direct": True,
        "interfaces": ["lo"],
    }
    assert trial.verdicts() == [
        ("allowed.test", True, "network.allowlist"),
        ("allowed.test", True, "network.allowlist"),
        ("other.test", False, "network.host"),
        ("allowed.test", True, "network.allowlist"),
        ("allowed.test", True, "network.allowlist"),
    ]
    ends = [record for record in trial.records if record["event"] == "network-end"]
    assert len(ends) == 5
    assert ends[3]["bytes_up"] > 2_000_000 and ends[4]["bytes_down"] > 3_000_000
    assert {record["execution"] for record in trial.records} == {trial.execution.execution_id}


BYPASSES: dict[str, tuple[str, str, str]] = {
    # name: (what is sent, the first line of the answer begins with, the rule in the log)
    "another port": ("line(b'CONNECT allowed.test:22 HTTP/1.0\\r\\n\\r\\n')", "HTTP/1.1 403", "network.host"),
    "a NUL in the name": (
        "line(b'CONNECT allowed.test\\0.evil.test:%d HTTP/1.0\\r\\n\\r\\n' % TLS)",
        "HTTP/1.1 502",
        "network.failed",
    ),
    "a user in front": (
        "line(b'CONNECT allowed.test:%d@evil.test:443 HTTP/1.0\\r\\n\\r\\n' % TLS)",
        "HTTP/1.1 403",
        "network.request",
    ),
    "an address in place of the name": (
        "line(b'CONNECT [::ffff:127.0.0.1]:%d HTTP/1.0\\r\\n\\r\\n' % TLS)",
        "HTTP/1.1 403",
        "network.host",
    ),
    "a short address": ("line(b'CONNECT 127.1:%d HTTP/1.0\\r\\n\\r\\n' % TLS)", "HTTP/1.1 403", "network.host"),
    "a decimal address": ("line(b'CONNECT 2130706433:%d HTTP/1.0\\r\\n\\r\\n' % TLS)", "HTTP/1.1 403", "network.host"),
    "a name for an inner address": (
        "line(b'CONNECT inner.test:%d HTTP/1.0\\r\\n\\r\\n' % PLAIN)",
        "HTTP/1.1 403",
        "network.address",
    ),
    "a name for a mapped address": (
        "line(b'CONNECT mapped.test:%d HTTP/1.0\\r\\n\\r\\n' % PLAIN)",
        "HTTP/1.1 403",
        "network.address",
    ),
    "a name that is none": (
        "line(b'CONNECT nowhere.test:%d HTTP/1.0\\r\\n\\r\\n' % PLAIN)",
        "HTTP/1.1 502",
        "network.failed",
    ),
    "another name in TLS": (
        "tunnel(b'allowed.test:%d' % TLS, 'evil.test')",
        "SSL",
        "network.sni",
    ),
    "no name in TLS": ("tunnel(b'allowed.test:%d' % TLS, None)", "SSL", "network.sni"),
    "no TLS in a tunnel": (
        "line(b'CONNECT allowed.test:%d HTTP/1.0\\r\\n\\r\\n' % PLAIN, wait=0.3,"
        " more=b'GET / HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n')",
        "HTTP/1.1 200 Connection established",
        "network.tls",
    ),
    "another Host header": (
        "line(b'GET http://allowed.test:%d/ HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n' % PLAIN)",
        "HTTP/1.1 403",
        "network.host",
    ),
    "two lengths": (
        "line(b'POST http://allowed.test:%d/ HTTP/1.1\\r\\nHost: allowed.test:%d\\r\\nContent-Length: 4\\r\\n"
        "Content-Length: 40\\r\\n\\r\\nabcd' % (PLAIN, PLAIN))",
        "HTTP/1.1 502",
        "network.failed",
    ),
    "a length and a transfer coding": (
        "line(b'POST http://allowed.test:%d/ HTTP/1.1\\r\\nHost: allowed.test:%d\\r\\nContent-Length: 4\\r\\n"
        "Transfer-Encoding: chunked\\r\\n\\r\\n2\\r\\nab\\r\\n0\\r\\n\\r\\n' % (PLAIN, PLAIN))",
        "HTTP/1.1 403",
        "network.request",
    ),
    "a port without end": (
        "line(b'CONNECT allowed.test:' + b'0' * 5000 + b'443 HTTP/1.0\\r\\n\\r\\n')",
        "HTTP/1.1 403",
        "network.request",
    ),
    "the method TRACE": (
        "line(b'TRACE http://allowed.test:%d/ HTTP/1.1\\r\\nHost: allowed.test:%d\\r\\n\\r\\n' % (PLAIN, PLAIN))",
        "HTTP/1.1 403",
        "network.request",
    ),
    "another scheme": (
        "line(b'GET ftp://allowed.test:%d/ HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n' % PLAIN)",
        "HTTP/1.1 403",
        "network.request",
    ),
    "the proxy as a server": (
        "line(b'GET / HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n')",
        "HTTP/1.1 403",
        "network.request",
    ),
    "a head without end": ("line(b'GET / HTTP/1.1\\r\\nX: ' + b'x' * 40000)", "HTTP/1.1 502", "network.failed"),
    "no HTTP at all": ("line(b'\\x16\\x03\\x01garbage\\r\\n\\r\\n')", "HTTP/1.1 502", "network.failed"),
    "silence": ("line(b'CONNECT allowed', wait=6)", "HTTP/1.1 403", "network.timeout"),
}


@pytest.mark.parametrize("kind", ["oci+runc", "oci+runsc"])
def test_ways_around_the_list_are_refused_and_recorded(
    kind: str, own_state: Path, servers: Servers, cpu_image: str
) -> None:
    code = "".join(f"results[{name!r}] = {expression}\n" for name, (expression, _, _) in BYPASSES.items())
    trial = attempt(own_state, servers, cpu_image, kind, code)
    rules = [rule for _, allow, rule in trial.verdicts() if not allow]
    for (name, (_, answer, rule)), recorded in zip(BYPASSES.items(), rules, strict=True):
        assert trial.said[name].startswith(answer), (name, trial.said[name])
        assert recorded == rule, name
    assert servers.seen == []


def test_a_name_is_resolved_once_for_each_request_and_that_address_is_dialled(
    own_state: Path, servers: Servers, cpu_image: str
) -> None:
    trial = attempt(
        own_state,
        servers,
        cpu_image,
        "oci+runc",
        "results['first'] = fetch(f'http://rebind.test:{PLAIN}/x').decode()\n"
        "results['second'] = fetch(f'http://rebind.test:{PLAIN}/x')\n",
    )
    assert trial.said == {"first": "hello /x", "second": 403}
    assert servers.asked == ["rebind.test", "rebind.test"]
    assert [record["address"] for record in trial.records if record["event"] == "network"] == ["127.0.0.1", None]


def test_a_second_request_on_a_connection_goes_nowhere(own_state: Path, servers: Servers, cpu_image: str) -> None:
    trial = attempt(
        own_state,
        servers,
        cpu_image,
        "oci+runc",
        "one = b'GET http://allowed.test:%d/one HTTP/1.1\\r\\nHost: allowed.test:%d\\r\\n\\r\\n' % (PLAIN, PLAIN)\n"
        "two = b'GET http://evil.test/two HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n'\n"
        "results['got'] = raw(one + two, wait=0.2, more=two)[1].decode()\n",
    )
    assert "hello /one" in trial.said["got"] and "two" not in trial.said["got"]
    assert [path for _, path, _ in servers.seen] == ["/one"]


def test_many_connections_at_once_and_a_slow_reader_hold_nobody_up(
    own_state: Path, servers: Servers, cpu_image: str
) -> None:
    trial = attempt(
        own_state,
        servers,
        cpu_image,
        "oci+runc",
        "slow = socket.create_connection(('127.0.0.1', 3128), 10)\n"
        "slow.sendall(b'GET http://allowed.test:%d/big HTTP/1.1\\r\\nHost: allowed.test:%d\\r\\n\\r\\n' % (PLAIN, PLAIN))\n"
        "got = []\n"
        "def work(n): got.append(len(fetch(f'http://allowed.test:{PLAIN}/{n}')) > 0)\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(60)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "results['got'] = sum(got)\n"
        "count = 0\n"
        "while part := slow.recv(65536): count += len(part)\n"
        "results['slow'] = count > 3_000_000\n",
    )
    assert trial.said == {"got": 60, "slow": True}


def test_a_run_that_asks_without_end_does_not_fill_the_audit_log(
    own_state: Path, servers: Servers, cpu_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executor.egress.MAX_REQUESTS", 20)
    trial = attempt(
        own_state,
        servers,
        cpu_image,
        "oci+runc",
        "results['codes'] = [fetch(f'http://other.test:{PLAIN}/') for _ in range(50)]\n",
    )
    assert trial.said["codes"] == [403] * 20 + [429] * 30
    assert len(trial.verdicts()) == 20
    (flood,) = [record for record in trial.records if record["event"] == "network-flood"]
    assert flood["refused"] == 30


def test_nothing_is_let_through_that_cannot_be_recorded_and_the_run_ends(
    own_state: Path, servers: Servers, cpu_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = AuditLog.append

    def append(self: AuditLog, event: str, **fields: Any) -> int:
        if event == "network":
            raise AuditError("cannot write the audit log: No space left on device")
        return real(self, event, **fields)

    monkeypatch.setattr(AuditLog, "append", append)
    policy = load_policy("default").model_copy(update={"network": Network(mode="allowlist", hosts=servers.listed())})
    code = TOOLS.format(plain=servers.plain, tls=servers.tls)
    code += "print(fetch(f'http://allowed.test:{PLAIN}/x'), flush=True)\ntime.sleep(60)\n"
    executor = Executor(OciBackend(own_state, cache_dir()), AuditLog(own_state / "a"), resolve=servers.resolve)
    execution = executor.run(Experiment(code=code), policy, Request(), Recorded())
    assert execution.outcome is Outcome.INFRASTRUCTURE and "audit log" in execution.message
    assert servers.seen == [] and execution.stdout in ("", "403\n")


def test_without_a_list_there_is_no_proxy(own_state: Path, cpu_image: str) -> None:
    audit, sink = AuditLog(own_state / "audit.jsonl"), Recorded()
    code = (
        "import os, socket\nprint([name for name in os.environ if 'proxy' in name.lower()],"
        " socket.socket().connect_ex(('127.0.0.1', 3128)) != 0)\n"
    )
    Executor(OciBackend(own_state, cache_dir()), audit).run(
        Experiment(code=code), load_policy("default"), Request(), sink
    )
    assert sink.stdout == b"[] True\n"


class Deaf:
    """A channel whose container does not read."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def send(self, data: bytes) -> None:
        time.sleep(self.seconds)


def test_a_request_that_is_broken_off_before_its_verdict_is_on_record_too() -> None:
    records: list[tuple[str, dict[str, Any]]] = []
    egress = Egress(Deaf(), ["a.test:80"], lambda event, **about: records.append((event, about)), lambda *_: [])  # type: ignore[arg-type]
    egress.feed(b"T", struct.pack(">I", 1) + b"CONNECT a.te")
    egress.feed(b"V", struct.pack(">I", 1))
    egress.feed(b"T", struct.pack(">I", 2) + b"GET http://a.te")
    egress.close()
    assert [(event, about.get("rule")) for event, about in records] == [
        ("network", "network.aborted"), ("network-end", None)
    ] * 2  # fmt: skip


def test_what_the_host_does_not_pass_on_is_not_held_beyond_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    hung = threading.Event()
    egress = Egress(Deaf(), ["a.test:80"], lambda *_, **__: None, lambda *_: [str(hung.wait(30))])  # type: ignore[arg-type]
    head = b"CONNECT a.test:80 HTTP/1.0\r\n\r\n"
    egress.feed(b"T", struct.pack(">I", 1) + head)
    time.sleep(0.2)
    for _ in range(4):
        egress.feed(b"T", struct.pack(">I", 1) + b"x" * (WINDOW // 4))
    time.sleep(0.2)
    assert egress.failed is None, "a window full is what may be under way"
    held = egress._tunnels[1]._incoming
    for _ in range(100):
        egress.feed(b"T", struct.pack(">I", 1) + b"x" * (WINDOW // 4))
    time.sleep(0.2)
    assert egress.failed is not None and "window" in egress.failed
    assert len(held._buffer) <= WINDOW  # type: ignore[attr-defined]
    hung.set()
    egress.close()


def test_a_container_opens_no_more_tunnels_at_once_than_are_held() -> None:
    egress = Egress(Deaf(), ["a.test:80"], lambda *_, **__: None, lambda *_: [])  # type: ignore[arg-type]
    for number in range(1, MAX_TUNNELS + 1):
        egress.feed(b"T", struct.pack(">I", number) + b"CONNECT a.te")
    time.sleep(0.2)
    assert egress.failed is None and len(egress._tunnels) == MAX_TUNNELS
    egress.feed(b"T", struct.pack(">I", MAX_TUNNELS + 1) + b"CONNECT a.te")
    time.sleep(0.2)
    assert egress.failed is not None and len(egress._tunnels) == MAX_TUNNELS
    egress.close()


def test_frames_do_not_pile_up_before_a_proxy_that_hangs() -> None:
    hung = threading.Event()
    egress = Egress(Deaf(), ["a.test:80"], lambda *_, **__: None, lambda *_: [])  # type: ignore[arg-type]
    egress._loop.call_soon_threadsafe(hung.wait, 30)
    with pytest.raises(ChannelError, match="more into its tunnels"):
        for _ in range(MAX_TUNNELS + 1):
            egress.feed(b"T", struct.pack(">I", 1) + b"x" * WINDOW)
    hung.set()
    egress.close()


def test_a_pid_1_that_keeps_to_no_window_ends_the_run(
    own_state: Path, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = channel._RUNNER.read_text()
    for kept, left in (("min(CHUNK, WINDOW - tunnel.under_way)", "CHUNK"), (" and t.under_way < WINDOW", "")):
        assert kept in source
        source = source.replace(kept, left)
    (tmp_path / "runner.py").write_text(source)
    monkeypatch.setattr(channel, "_RUNNER", tmp_path / "runner.py")
    code = (
        "import socket, time\n"
        "end = socket.create_connection(('127.0.0.1', 3128))\n"
        f"end.sendall(b'CONNECT allowed.test:{servers.tls} HTTP/1.0\\r\\n\\r\\n' + bytes(8 << 20))\n"
        "time.sleep(60)\n"
    )

    def slow(host: str, port: int) -> list[str]:
        time.sleep(2)
        return ["127.0.0.1"]

    policy = load_policy("default").model_copy(update={"network": Network(mode="allowlist", hosts=servers.listed())})
    executor = Executor(OciBackend(own_state, cache_dir()), AuditLog(own_state / "a"), resolve=slow)
    execution = executor.run(Experiment(code=code), policy, Request(), Recorded())
    assert execution.outcome is Outcome.INFRASTRUCTURE and "more into a tunnel than its window" in execution.message


def test_closing_does_not_crash_while_the_container_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    egress = Egress(Deaf(20.0), ["a.test:80"], lambda *_, **__: None, lambda *_: [])  # type: ignore[arg-type]
    egress.feed(b"T", struct.pack(">I", 1) + b"GET http://b.test/ HTTP/1.0\r\n\r\n")
    time.sleep(0.2)
    egress.close()


def test_split_authority_reads_what_join_authority_writes() -> None:
    assert split_authority("[::1]:443") == ("::1", 443)
    assert split_authority("example.org", 80) == ("example.org", 80)
    assert socket.has_ipv6 in (True, False)
