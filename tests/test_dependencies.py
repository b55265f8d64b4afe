"""Promises of an experiment's own packages: wheels only, under the policy, by hash, installed inside without a network.

A real index on loopback, whose wheels are made here; real uv, pip and containers.
"""

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from executor.dependencies import _Source, fetch, written
from executor.errors import PackagesUnavailable, SandboxUnavailable
from executor.executor import Executor
from executor.experiment import Experiment, Outcome
from executor.imports import check_source, needed_imports, read_apart
from executor.places import Places, Room
from policies.decision import Request
from policies.model import Dependencies, PartialLimits, load_policy
from sandbox_images.lock import locked, stated_requirements
from tests.conftest import Bench


def wheel(name: str, version: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> tuple[str, bytes]:
    """A wheel's file name and bytes."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {one}\n" for one in requires)
    every = {
        **files,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "".join(f"{path},,\n" for path in files),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in every.items():
            archive.writestr(path, text)
    return f"{name}-{version}-py3-none-any.whl", buffer.getvalue()


@dataclass
class Index:
    url: str
    folder: Path
    cache: Path
    asked: list[str] = field(default_factory=list)

    def terms(self, mode: str = "any", names: tuple[str, ...] = (), total: str = "10MiB") -> Dependencies:
        return Dependencies.model_validate({"mode": mode, "names": names, "index": self.url, "total": total})


PACKAGES = [
    wheel("greeter", "1.0", {"greeter/__init__.py": "from helper import WORD\n__version__ = '1.0'\n"}, ("helper>=2",)),
    wheel("helper", "2.1", {"helper.py": "WORD = 'hello'\n", "helper-2.1.data/purelib/more.py": "MORE = 1\n"}),
    wheel("wantsnumpy", "1.0", {"wantsnumpy.py": "import numpy\n"}, ("numpy",)),
    wheel("wantsvision", "1.0", {"wantsvision.py": ""}, ("torchvision",)),
    wheel("conflicting", "1.0", {"conflicting.py": ""}, ("numpy<1.0",)),
    wheel("climber", "1.0", {"climber.py": "", "../../../../tmp/climbed": "out", "/tmp/absolute": "out"}),
    wheel("large", "1.0", {"large.bin": "".join(chr(33 + n * 7919 % 90) for n in range(3_000_000))}),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    folder = tmp_path_factory.mktemp("index")
    for name, data in PACKAGES:
        page = folder / "simple" / name.split("-")[0]
        page.mkdir(parents=True)
        (page / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        (page / "index.html").write_text(f'<a href="{name}#sha256={digest}">{name}</a>')
    source = folder / "simple" / "sourceonly"
    source.mkdir()
    (source / "sourceonly-1.0.tar.gz").write_bytes(b"setup.py would run")
    (source / "index.html").write_text('<a href="sourceonly-1.0.tar.gz">sourceonly-1.0.tar.gz</a>')
    for name in ("numpy", "torchvision"):  # as an index lists it: the versions, and no wheel that could be fetched
        held = folder / "simple" / name
        held.mkdir()
        version = locked("gpu")[name]
        (held / "index.html").write_text(f'<a href="{name}-{version}-py3-none-any.whl#sha256={"0" * 64}">{name}</a>')
    asked: list[str] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form: str, *arguments: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/simple"
    yield Index(url, folder, tmp_path_factory.mktemp("cache"), asked)
    server.shutdown()
    server.server_close()


def run(bench: Bench, index: Index, code: str, terms: Dependencies | None = None, **asked: object):  # type: ignore[no-untyped-def]
    policy = bench.policy.model_copy(update={"dependencies": terms or index.terms()})
    executor = Executor(bench.backend, bench.audit, cache=index.cache)
    request = Request(limits=PartialLimits.model_validate({"wall": "20s"}))
    return executor.run(Experiment(code=code, **asked), policy, request, bench.sink)  # type: ignore[arg-type]


def test_what_an_experiment_requires_is_there_with_what_that_requires_and_is_recorded_by_hash(
    bench: Bench, index: Index
) -> None:
    code = "import greeter, more; print(greeter.WORD, greeter.__file__, more.MORE)"
    execution = run(bench, index, code, requirements=("greeter>=1",))
    assert execution.outcome is Outcome.COMPLETED, (execution.message, execution.stderr)
    assert execution.stdout == "hello /run/packages/greeter/__init__.py 1\n"
    digests = {name.split("-")[0]: hashlib.sha256(data).hexdigest() for name, data in PACKAGES}
    assert execution.packages == [
        f"greeter==1.0 --hash=sha256:{digests['greeter']}",
        f"helper==2.1 --hash=sha256:{digests['helper']}",
    ]
    (record,) = [record for record in bench.audit.records() if record["event"] == "dependencies"]
    assert (record["required"], record["wheels"]) == (["greeter>=1"], execution.packages)


def test_nobodys_place_is_kept_while_packages_are_fetched(bench: Bench, index: Index, own_state: Path) -> None:
    places = Places(Room(4.0, 1 << 40, per_user=1), own_state / "locks", own_state)
    policy = bench.policy.model_copy(update={"dependencies": index.terms()})
    executor = Executor(bench.backend, bench.audit, cache=index.cache, places=places)
    experiment = Experiment(code="import helper; print(helper.WORD)", requirements=("helper",))

    def fetched() -> bool:
        return any(record["event"] == "dependencies" for record in bench.audit.records())

    another = places.take("ab" * 8, 1.0, 1)
    execution = executor.run(
        experiment, policy, Request(), bench.sink, unwanted=lambda: "fetched" if fetched() else None
    )
    another.release()
    assert (execution.outcome, execution.message) == (Outcome.CANCELLED, "fetched")


def test_of_what_an_agent_states_only_what_is_well_formed_imported_and_not_held_is_believed() -> None:
    stated = [
        "PyTorch",
        "numpy<1.20",
        "einops>=0.7",
        "tqdm",
        "pip install x",
        "-r evil.txt",
        "",
        "Left_Pad==1 ; x",
        "lp @ http://x",
    ]
    assert stated_requirements(stated, ["einops", "numpy", "torch", "json"], "cpu") == ("einops>=0.7",)
    assert stated_requirements(["evil @ http://127.0.0.1/x.whl"], ["evil"], "cpu") == ()


def test_an_import_that_the_sandbox_does_not_hold_is_fetched_as_well(bench: Bench, index: Index) -> None:
    execution = run(bench, index, "import helper; print(helper.WORD)", imports=("helper", "json", "numpy"))
    assert (execution.outcome, execution.stdout) == (Outcome.COMPLETED, "hello\n")


def test_the_same_wheels_are_not_fetched_twice(bench: Bench, index: Index) -> None:
    run(bench, index, "import helper", requirements=("helper",))
    before = len(index.asked)
    assert run(bench, index, "import helper", requirements=("helper",)).outcome is Outcome.COMPLETED
    assert len(index.asked) == before


def test_what_the_environment_holds_is_not_fetched_again(index: Index) -> None:
    wheels = fetch(["wantsnumpy"], index.terms(), index.cache, print, "cpu")
    assert [path.name.split("-")[0] for path in wheels.files] == ["wantsnumpy"]
    assert not any("numpy-" in path and path.endswith(".whl") for path in index.asked if "wantsnumpy" not in path)


def test_what_is_held_is_what_the_environment_of_the_runs_flavour_holds(index: Index) -> None:
    (path,) = fetch(["wantsvision"], index.terms(), index.cache, print, "gpu").files
    assert path.name.startswith("wantsvision")
    with pytest.raises((PackagesUnavailable, SandboxUnavailable), match="torchvision"):
        fetch(["wantsvision"], index.terms(), index.cache, print, "cpu")


def test_a_run_is_fetched_what_its_backends_environment_lacks(bench: Bench, index: Index) -> None:
    bench.backend.prepare(print)
    bench.backend.flavour = "gpu"
    execution = run(bench, index, "import wantsvision", requirements=("wantsvision",))
    assert execution.outcome is Outcome.COMPLETED, execution.message


@pytest.mark.parametrize("name", ["sourceonly", "nonesuch", "conflicting", "greeter>=99", "greeter==1.0,==2.0"])
def test_a_package_that_cannot_be_had_as_wheels_is_said_before_anything_starts(
    bench: Bench, index: Index, name: str
) -> None:
    execution = run(bench, index, "print('ran')", requirements=(name,))
    assert execution.outcome is Outcome.FAILED
    assert name.split(">")[0].split("=")[0] in execution.message and "\n" not in execution.message
    assert execution.started_at is None
    assert "start" not in [record["event"] for record in bench.audit.records()]


def test_packages_beyond_the_policys_size_are_refused(bench: Bench, index: Index) -> None:
    execution = run(bench, index, "print('ran')", index.terms(total="1MiB"), requirements=("large",))
    assert execution.outcome is Outcome.FAILED and "more than the policy's 1MiB" in execution.message


def test_only_listed_packages_are_fetched_and_what_they_need_comes_with_them(bench: Bench, index: Index) -> None:
    terms = index.terms("allowlist", ("greeter",))
    assert run(bench, index, "import greeter", terms, requirements=("greeter",)).outcome is Outcome.COMPLETED
    denied = run(bench, index, "import helper", terms, requirements=("helper",))
    assert denied.outcome is Outcome.DENIED and "does not list helper" in denied.message
    # An import is only a guess: one that is not listed denies nothing, and is simply not there.
    guessed = run(bench, index, "import helper", terms, imports=("helper",))
    assert guessed.outcome is Outcome.FAILED and "No module named 'helper'" in guessed.stderr


def test_a_wheel_that_was_made_to_climb_out_stays_inside_the_container_and_its_folder(
    bench: Bench, index: Index
) -> None:
    code = "import os\nprint([p for p in ('/tmp/climbed', '/tmp/absolute') if os.path.exists(p)], os.getuid())"
    execution = run(bench, index, code, requirements=("climber",))
    assert (execution.outcome, execution.stdout) == (Outcome.COMPLETED, "[] 65534\n")
    assert not Path("/tmp/climbed").exists() and not Path("/tmp/absolute").exists()


def test_packages_live_in_memory_and_may_be_changed_by_the_experiment_alone(bench: Bench, index: Index) -> None:
    code = (
        "import os\n"
        "open('/run/packages/helper.py', 'a').write('X = 1\\n')\n"
        "print(os.stat('/run/packages/helper.py').st_uid, os.path.exists('/run/labsandbox/wheels'))\n"
    )
    execution = run(bench, index, code, requirements=("helper",))
    assert execution.stdout == "65534 False\n", execution.stderr
    again = run(bench, index, "import helper; print(hasattr(helper, 'X'))", requirements=("helper",))
    assert again.stdout == "False\n"


def test_an_index_that_does_not_answer_is_infrastructure(bench: Bench, index: Index) -> None:
    terms = index.terms().model_copy(update={"index": "http://127.0.0.1:9/simple"})
    with pytest.raises(SandboxUnavailable, match="cannot be reached"):
        run(bench, index, "print('ran')", terms, requirements=("helper>=2.0",))
    assert [record["event"] for record in bench.audit.records()] == ["decision", "end"]


def test_an_interrupt_while_packages_are_fetched_is_recorded_as_any_other_end(
    bench: Bench, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("executor.executor.fetch", interrupted)
    assert run(bench, index, "print('ran')", requirements=("helper",)).outcome is Outcome.CANCELLED
    assert [record["event"] for record in bench.audit.records()] == ["decision", "end"]


def test_two_processes_that_want_the_same_wheels_at_once_both_get_them(index: Index, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from executor.dependencies import fetch\n"
        "from policies.model import Dependencies\n"
        "terms = Dependencies.model_validate({'mode': 'any', 'index': sys.argv[1], 'total': '10MiB'})\n"
        "print(len(fetch(['greeter'], terms, Path(sys.argv[2]), lambda text: None, 'cpu').files))\n"
    )
    command = [sys.executable, "-c", program, index.url, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.communicate(timeout=120)[0] for one in both] == ["2\n", "2\n"]
    assert not [path for path in tmp_path.glob("*/.*") if path.is_dir()]


def test_what_pip_has_written_is_counted_while_its_folders_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "wheel").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to("/usr")
    busy = "import itertools, os, sys\nfor n in itertools.count():\n    os.makedirs(f'{n}/a/b/c'); os.removedirs(f'{n}/a/b/c')\n"
    process = subprocess.Popen([sys.executable, "-c", busy], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert 1000 <= written(tmp_path) < 1100
    finally:
        process.kill()
        process.wait()


def test_a_wheel_that_is_no_archive_is_refused(index: Index, tmp_path: Path) -> None:
    broken = index.folder / "simple" / "broken"
    broken.mkdir(exist_ok=True)
    name, data = wheel("broken", "1.0", {"broken.py": ""})
    (broken / name).write_bytes(data)
    (broken / "index.html").write_text(f'<a href="{name}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>')
    terms = index.terms()
    (path,) = fetch(["broken"], terms, tmp_path, print, "cpu").files
    path.write_bytes(b"no archive")
    with pytest.raises(PackagesUnavailable, match="not a wheel"):
        fetch(["broken"], terms, tmp_path, print, "cpu")


def test_the_hosts_variables_do_not_reach_the_tools_that_fetch(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    monkeypatch.setenv("UV_INDEX_URL", "http://127.0.0.1:9/")
    assert len(fetch(["helper"], index.terms(), tmp_path, print, "cpu").files) == 1
    assert json.dumps(dict(os.environ)).count("UV_INDEX_URL") == 1


CAPTURED = r"""
:env:.config-file='/home/u/pip.conf'
:env:.find-links=''
:env:.index-url='https://env.test/simple'
download.find-links="/opt/wheels\n/opt/more's"
global.extra-index-url='\nhttps://a.test/simple\nhttps://b.test/simple'
global.index-url='https://global.test/simple'
install.index-url='https://install.test/simple'
wheel.extra-index-url='https://wheel.test/simple'
"""
"""What `pip config list` (23.2.1) says, which sorts: the environment, the weightiest, comes first."""


def without(text: str, *names: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(names))


def test_what_pip_is_set_to_weighs_as_it_does_for_pip() -> None:
    extra = ("https://a.test/simple", "https://b.test/simple")
    source = _Source.configured(CAPTURED)
    assert source == _Source("https://env.test/simple", extra, ("/opt/wheels", "/opt/more's"))
    assert _Source.configured(without(CAPTURED, ":env:")).index == "https://install.test/simple"
    assert _Source.configured(without(CAPTURED, ":env:", "install")).index == "https://global.test/simple"
    assert _Source.configured("global.index='x'\nsaid something else\n") == _Source(None, (), ())


def test_an_index_in_the_environment_is_asked_and_not_the_one_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = https://file.test\nextra-index-url =\n  https://a.test\n  https://b.test\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.test")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    options = _Source.of("configured").options()
    assert options[:6] == [
        "--index-url", "https://env.test", "--extra-index-url", "https://a.test", "--extra-index-url", "https://b.test"
    ]  # fmt: skip


def source_package(folder: Path) -> tuple[Path, Path]:
    """A source distribution with static metadata, whose set-up leaves a mark; and that mark."""
    mark, path = folder / "ran-on-the-host", folder / "zzq-1.0.tar.gz"
    metadata = "Metadata-Version: 2.2\nName: zzq\nVersion: 1.0\n"
    files = {
        "PKG-INFO": metadata,
        "setup.py": f"open({str(mark)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='zzq', version='1.0')\n",
        "pyproject.toml": "[project]\nname = 'zzq'\nversion = '1.0'\n[build-system]\nrequires = []\nbuild-backend = 'backend'\n"
        "backend-path = ['.']\n",
        "backend.py": f"open({str(mark)!r}, 'w').close()\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"zzq-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path, mark


def test_a_requirement_that_names_an_address_is_refused_and_nothing_of_it_runs_on_the_host(
    bench: Bench, index: Index, tmp_path: Path
) -> None:
    path, mark = source_package(tmp_path)
    address = f"zzq @ {path.as_uri()}"
    for text in (address, f"zzq@{path.as_uri()}", "zzq @ https://192.0.2.1/zzq-1.0-py3-none-any.whl"):
        with pytest.raises(ValueError, match="an address"):
            bench.executor.run(Experiment(code="import zzq", requirements=(text,)), bench.policy, Request(), bench.sink)
    with pytest.raises(
        PackagesUnavailable, match="other than a pinned version"
    ):  # whoever asks for it without the executor
        fetch([address], index.terms(), index.cache, print, "cpu")
    assert not mark.exists()


@pytest.mark.parametrize("code", ["import foo_\n", "import été\n", "from été.x import y\n"])
def test_a_module_that_no_distribution_can_be_named_after_is_just_missing(bench: Bench, code: str) -> None:
    report = check_source(code)
    run = Experiment(code=code, imports=needed_imports(report))
    execution = bench.executor.run(run, bench.policy, Request(), bench.sink)
    assert execution.outcome is Outcome.FAILED and "ModuleNotFoundError" in execution.stderr


def test_no_python_of_this_process_runs_between_fork_and_exec_of_the_parser() -> None:
    """A lock that another thread holds at that moment would be held for ever there."""
    program = (
        "import os; from executor.imports import check_source\n"
        "os.register_at_fork(after_in_child=lambda: print('ran', flush=True))\n"
        "print(check_source('import numpy').imports)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert said.stdout == "('numpy',)\n", said.stderr


def test_the_parser_has_its_limits_before_it_reads_anything() -> None:
    look = "import json, resource as r\nnames = 'RLIMIT_AS', 'RLIMIT_CPU', 'RLIMIT_CORE'\n"
    found = read_apart(look + "print(json.dumps({'limits': [r.getrlimit(getattr(r, name)) for name in names]}))", "")
    assert found == {"limits": [[1 << 30] * 2, [10] * 2, [0] * 2]}


def test_hundreds_of_packages_are_denied_and_the_denial_is_on_record(bench: Bench) -> None:
    names = tuple(f"{'n' * 190}{number}" for number in range(400))
    execution = bench.executor.run(Experiment(code="", imports=names), bench.policy, Request(), bench.sink)
    assert execution.outcome is Outcome.DENIED and "400 of the packages" in execution.message
    most = tuple(f"{'n' * 190}{number}" for number in range(50))
    policy = load_policy("strict").model_copy(update={"enforcement": "best-effort"})
    denied = bench.executor.run(Experiment(code="", requirements=most), policy, Request(), bench.sink)
    assert denied.outcome is Outcome.DENIED
    assert [record["event"] for record in bench.audit.records()] == ["decision", "end"] * 2
