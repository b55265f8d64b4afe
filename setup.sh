#!/bin/sh
# Brings a Debian machine to where labsandbox can run ("run") or be tested ("test", or "test-gpu", which leaves a machine with
# GPUs and its engine as they are): system packages, a Docker engine and gVisor for the tests, a virtual environment. What is there already is left alone; without the rights or the package manager
# to install what is missing, says exactly what that is and changes nothing.
set -eu
cd "$(dirname "$0")"
purpose=${1:?usage: setup.sh run|test|test-gpu}

say() { printf 'labsandbox: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

engine_answers() {
    [ -n "${DOCKER_HOST:-}" ] && return 0
    python3 - <<'PYTHON' 2>/dev/null
import socket
engine = socket.socket(socket.AF_UNIX)
engine.settimeout(10)
engine.connect("/var/run/docker.sock")
engine.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
assert b"200" in engine.recv(64)
PYTHON
}

missing_packages() {
    have runc || echo runc
    if ! have python3; then
        echo python3 python3-venv
    elif ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        echo python3-venv
    fi
    if [ "$purpose" = test ]; then
        have mmdebstrap || echo mmdebstrap
        have runsc || echo runsc
        have chromium || echo chromium
        have dockerd || engine_answers || echo docker.io
        have cc || have tcc || echo tcc
    fi
}

install_packages() {
    packages=$(missing_packages | tr '\n' ' ')
    packages=${packages% }
    if [ "$(id -u)" -ne 0 ]; then
        say "this needs root: containers are made without a daemon, and their limits are control groups"
        [ -z "$packages" ] || say "as root, install:  apt-get update && apt-get install -y $packages"
        say "then, as root:  make $purpose"
        exit 1
    fi
    [ -n "$packages" ] || return 0
    if ! have apt-get; then
        say "please install, with this system's package manager: $packages"
        exit 1
    fi
    say "installing system packages: $packages"
    log=$(mktemp)
    # shellcheck disable=SC2086  # one word for each package
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages; } \
        >"$log" 2>&1 </dev/null; then
        tail -n 5 "$log" >&2
        say "apt-get could not install $packages (log: $log)"
        exit 1
    fi
    rm -f "$log"
}

check_python() {
    have python3 || return 0  # it is about to be installed, and checked again
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' && return 0
    say "Python 3.11 or later is needed; python3 is $(python3 --version 2>&1)"
    exit 1
}

start_engine() {
    engine_answers && return 0
    log=/var/log/labsandbox-dockerd.log
    if [ -d /run/systemd/system ]; then
        say "starting the Docker engine"
        systemctl start docker
    else
        say "starting a Docker engine (log: $log)"
        setsid dockerd >"$log" 2>&1 </dev/null &
    fi
    for _ in $(seq 60); do
        engine_answers && return 0
        sleep 1
    done
    say "the Docker engine did not start within a minute; see $log"
    exit 1
}

# Makes gVisor known to a local engine as the runtime "runsc", where both are there and the engine does not know it.
register_gvisor() {
    [ -z "${DOCKER_HOST:-}" ] && have runsc && engine_answers || return 0
    case "$(python3 - <<'PYTHON'
import json, pathlib, shutil
path = pathlib.Path("/etc/docker/daemon.json")
try:
    settings = json.loads(path.read_text()) if path.exists() else {}
    runtimes = settings.setdefault("runtimes", {})
    if "runsc" in runtimes:
        print("known")
    else:
        runtimes["runsc"] = {"path": shutil.which("runsc"), "runtimeArgs": ["--network=none"]}
        path.parent.mkdir(exist_ok=True)
        new = path.with_name("daemon.json.labsandbox")
        new.write_text(json.dumps(settings, indent=2) + "\n")
        new.replace(path)
        print("added")
except (OSError, ValueError) as error:
    print(error)
PYTHON
)" in
        known) ;;
        added)
            say "registered gVisor with the Docker engine as the runtime runsc (/etc/docker/daemon.json)"
            engine=$(cat /var/run/docker.pid 2>/dev/null || true)
            [ -n "$engine" ] && kill -HUP "$engine" && sleep 1
            ;;
        *) say "could not register gVisor with the engine; see https://gvisor.dev/docs/user_guide/quick_start/docker/" ;;
    esac
}

install_python_packages() {
    extras=""
    [ "$purpose" = test ] && extras="[dev,wandb,mlflow,tensorboard]"
    [ "$purpose" = test-gpu ] && extras="[dev]"
    digest=$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
    stamp=.venv/.ready-$purpose-$digest
    [ -e "$stamp" ] && .venv/bin/python -c '' 2>/dev/null && return 0
    say "installing labsandbox's own Python packages into .venv"
    .venv/bin/python -m pip --version >/dev/null 2>&1 || python3 -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --editable ".$extras"
    : >"$stamp"
}

check_python
install_packages
check_python
[ "$purpose" != test ] || start_engine
[ "$purpose" = test-gpu ] || register_gvisor
install_python_packages
