"""The attacks of the conformance suite: what hostile code would try, run inside the container as the experiment.

One file of standard library for Python 3.8 and later, sent in as an experiment's source with a last line that says
what to do. A *probe* tries something and knows by itself whether it was held; all probes share a container, each in a
process of its own. An *assault* breaks something, or leaves something behind; it has a container to itself, and the host
judges what came of it (conformance.py). Every docstring is the promise that the attack tests.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

libc = ctypes.CDLL(None, use_errno=True)
HERE: dict[str, Any] = {}
"""What the host tells: isolation, limits, the port of a service on the host's loopback."""
PROBES: dict[str, Callable[[], None]] = {}
ASSAULTS: dict[str, Callable[[], None]] = {}
_X86 = platform.machine() == "x86_64"
# System calls by number: (x86-64, generic as on aarch64). Python has no names for these.
_CALLS = {
    "ptrace": (101, 117),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "unshare": (272, 97),
    "setns": (308, 268),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "process_vm_readv": (310, 270),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "capset": (126, 91),
    "move_pages": (279, 239),
    "vhangup": (153, 58),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "ioprio_set": (251, 30),
}
_NEW = {"user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000}


class Escaped(Exception):
    """Something worked that must not; the text says what."""


def probe(function: Callable[[], None]) -> Callable[[], None]:
    PROBES[function.__name__] = function
    return function


def assault(function: Callable[[], None]) -> Callable[[], None]:
    ASSAULTS[function.__name__] = function
    return function


def call(name: str, *arguments: object) -> int:
    """A raw system call; raises OSError as Python's own functions do."""
    ctypes.set_errno(0)
    result = int(libc.syscall(_CALLS[name][0 if _X86 else 1], *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def lent_gpus() -> int:
    return int(os.environ.get("LAB_GPUS") or 0)


def refused(what: str, attempt: Callable[..., object], *arguments: Any) -> None:
    """`attempt` must fail with an OSError (Python makes a ValueError of some)."""
    try:
        result = attempt(*arguments)
    except (OSError, ValueError):
        return
    raise Escaped(f"{what} worked ({str(result)[:80]})")


def read(path: str) -> object:
    """The names in a folder, or a byte of a file."""
    if os.path.isdir(path):
        return os.listdir(path)
    with open(path, "rb") as file:
        return file.read(1)


def write(path: str) -> None:
    with open(path, "w") as file:
        file.write("1")


def everywhere(top: str, depth: int) -> Iterator[str]:
    """Folders from `top` down, without following links and without the kernel's own."""
    yield top
    if depth == 0:
        return
    with suppress(OSError):
        for entry in sorted(os.scandir(top), key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False) and entry.path not in ("/proc", "/sys"):
                yield from everywhere(entry.path, depth - 1)


# ---- probes: PID 1 ----


@probe
def kill_pid_1() -> None:
    """The experiment cannot signal PID 1."""
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, 0):
        refused("kill", os.kill, 1, number)


@probe
def trace_pid_1() -> None:
    """PID 1 cannot be traced."""
    refused("PTRACE_ATTACH", call, "ptrace", 16, 1, 0, 0)
    refused("PTRACE_SEIZE", call, "ptrace", 16902, 1, 0, 0)


@probe
def read_pid_1() -> None:
    """PID 1's memory cannot be read, and its environment holds nothing."""
    refused("/proc/1/mem", read, "/proc/1/mem")
    local, remote = ctypes.create_string_buffer(8), struct.pack("QQ", 0x400000, 8)
    here = struct.pack("QQ", ctypes.addressof(local), 8)
    refused("process_vm_readv", call, "process_vm_readv", 1, here, 1, remote, 1, 0)
    refused("kcmp", call, "kcmp", 1, os.getpid(), 0, 0, 1)
    with suppress(OSError), open("/proc/1/environ", "rb") as file:
        if file.read():
            raise Escaped("/proc/1/environ holds something")


@probe
def descriptors_of_pid_1() -> None:
    """PID 1's descriptors can neither be read, written nor duplicated."""
    for number in range(16):
        for mode in (os.O_RDONLY, os.O_WRONLY):
            refused(f"/proc/1/fd/{number}", os.open, f"/proc/1/fd/{number}", mode | os.O_NONBLOCK)
    with suppress(OSError):
        other = call("pidfd_open", 1, 0)
        refused("pidfd_getfd", call, "pidfd_getfd", other, 1, 0)


@probe
def other_processes() -> None:
    """No process is to be seen but PID 1 and the experiment's own."""
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            with open(f"/proc/{name}/status") as file:
                fields = dict(line.rstrip().split(":", 1) for line in file if ":" in line)
            if fields["Uid"].split() != ["65534"] * 4:
                raise Escaped(f"process {name} {fields['Name']} of uid {fields['Uid']}")


# ---- probes: privileges ----


@probe
def become_root() -> None:
    """No uid, gid, group or capability can be had back."""
    refused("setuid", os.setuid, 0)
    refused("setresuid", os.setresuid, 0, 0, 0)
    refused("setgid", os.setgid, 0)
    refused("setgroups", os.setgroups, [0])
    header, wanted = struct.pack("Ii", 0x20080522, 0), struct.pack("IIIIII", 1 << 21, 1 << 21, 0, 0, 0, 0)
    refused("capset", call, "capset", header, wanted)
    with open("/proc/self/status") as file:
        held = {line.split()[0]: line.split()[1] for line in file if line.startswith("Cap") and ":" in line}
    if any(int(held[name], 16) for name in ("CapEff:", "CapPrm:", "CapInh:")):
        raise Escaped(f"capabilities {held}")


@probe
def setuid_files() -> None:
    """A set-uid file gives nobody another uid, whoever owns it."""
    if libc.prctl(39, 0, 0, 0, 0) != 1:
        raise Escaped("no_new_privs is not set")
    for folder in ("/bin", "/usr/bin", "/usr/sbin", "/sbin"):
        with suppress(OSError):
            for entry in os.scandir(folder):
                if entry.is_file() and entry.stat().st_mode & stat.S_ISUID and entry.stat().st_uid == 0:
                    child = subprocess.Popen([entry.path], stdin=-1, stdout=-3, stderr=-3)
                    with suppress(OSError), open(f"/proc/{child.pid}/status") as file:
                        ids = next(line for line in file if line.startswith("Uid")).split()[1:]
                        if "0" in ids:
                            raise Escaped(f"{entry.path} ran as {ids}")
                    child.kill()
                    child.wait()


@probe
def user_namespace() -> None:
    """A user namespace of its own is refused, or gives no power over PID 1 and the root file system."""
    try:
        call("unshare", _NEW["user"] | _NEW["mount"])
    except OSError:
        return
    if HERE["isolation"] == "kernel":
        raise Escaped("unshare worked")
    refused("kill of PID 1", os.kill, 1, 9)
    refused("a write to /usr", open, "/usr/escaped", "w")
    refused("remounting", call, "mount", b"none", b"/", b"none", 32, 0)


@probe
def namespaces() -> None:
    """No namespace can be made, and PID 1's cannot be entered. (gVisor says yes to some, and gives no power with them.)"""
    for name in ("pid", "net", "mount", "uts", "ipc"):
        if HERE["isolation"] == "kernel":
            refused(f"unshare of {name}", call, "unshare", _NEW[name])
        else:
            with suppress(OSError):
                call("unshare", _NEW[name])
        with suppress(OSError):
            kind = "mnt" if name == "mount" else name
            descriptor = os.open(f"/proc/1/ns/{kind}", os.O_RDONLY)
            refused(f"setns to {kind}", call, "setns", descriptor, 0)
    refused("mounting after that", call, "mount", b"none", b"/tmp", b"tmpfs", 0, 0)


@probe
def mounting() -> None:
    """Nothing can be mounted, unmounted, moved or made the root."""
    refused("mount", call, "mount", b"none", b"/tmp", b"tmpfs", 0, 0)
    refused("bind", call, "mount", b"/usr", b"/tmp", b"none", 4096, 0)
    refused("remount", call, "mount", b"none", b"/", b"none", 32, 0)
    refused("umount", call, "umount2", b"/proc", 2)
    refused("pivot_root", call, "pivot_root", b"/tmp", b"/tmp")
    refused("chroot", os.chroot, "/tmp")
    refused("fsopen", call, "fsopen", b"tmpfs", 0)
    refused("open_tree", call, "open_tree", -100, b"/", 1)


@probe
def kernel_entries() -> None:
    """System calls that experiments have no use for are refused. (io_uring under gVisor is its own, not the host's.)"""
    zero = ctypes.create_string_buffer(256)
    if HERE["isolation"] == "kernel":
        refused("io_uring_setup", call, "io_uring_setup", 4, zero)
    for name, arguments in (
        ("add_key", (b"user", b"x", b"y", 1, -3)),
        ("keyctl", (0, -3, 1)),
        ("bpf", (0, zero, 72)),
        ("perf_event_open", (zero, 0, -1, -1, 0)),
        ("userfaultfd", (0,)),
        ("fanotify_init", (0, 0)),
        ("quotactl", (0x800002, 0, 0, 0)),
        ("move_pages", (1, 1, zero, zero, zero, 0)),
    ):
        refused(name, call, name, *arguments)


@probe
def machine_control() -> None:
    """The machine cannot be restarted, its kernel changed, its swap or accounting touched, its log read."""
    zero = ctypes.create_string_buffer(256)
    for name, arguments in (
        ("init_module", (zero, 0, b"")),
        ("finit_module", (0, b"", 0)),
        ("delete_module", (b"x", 0)),
        ("kexec_load", (0, 0, 0, 0)),
        ("reboot", (0xFEE1DEAD, 672274793, 0, 0)),  # the harmless one: Ctrl-Alt-Del off
        ("swapon", (b"/tmp", 0)),
        ("acct", (0,)),
        ("vhangup", ()),
    ):
        refused(name, call, name, *arguments)
    if HERE["isolation"] == "kernel":  # gVisor answers with a log of its own making
        refused("syslog", call, "syslog", 3, zero, 255)
    refused("/dev/kmsg", open, "/dev/kmsg", "rb")


@probe
def file_handles() -> None:
    """Files cannot be opened by handle, past the mounts (as shocker.c did)."""
    handle = struct.pack("Ii8s", 8, 1, b"\x02")
    refused("open_by_handle_at", call, "open_by_handle_at", -100, handle, 0)


@probe
def clock_changes() -> None:
    """The machine's clock cannot be set or slewed."""
    now = struct.pack("qq", int(time.time()), 0)
    refused("settimeofday", call, "settimeofday", now, 0)
    refused("clock_settime", call, "clock_settime", 0, now)
    refused("adjtimex", call, "adjtimex", struct.pack("I", 16384) + bytes(300))


@probe
def host_name() -> None:
    """The host's name is neither shown nor to be changed."""
    if socket.gethostname() == HERE["hostname"]:
        raise Escaped("the host's name is shown")
    refused("sethostname", call, "sethostname", b"mine", 4)
    refused("setdomainname", call, "setdomainname", b"mine", 4)


@probe
def other_architectures() -> None:
    """System calls of another architecture (int 0x80, x32) do not get around the filter."""
    if not _X86:
        return
    for attempt in (x32, int_0x80):
        child = os.fork()
        if child == 0:
            os._exit(42 if attempt() == os.getpid() else 0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 42:
            raise Escaped(f"{attempt.__name__} worked")


def x32() -> int:
    return int(libc.syscall(0x40000000 | 39))  # getpid


def int_0x80() -> int:
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    return int(function())


# ---- probes: files ----


@probe
def writing_elsewhere() -> None:
    """Nothing can be written outside /workspace, /tmp, /dev/shm, the packages' folder, and its own message queues."""
    mine = ("/workspace", "/tmp", "/dev/shm", "/run/packages", "/dev/mqueue")
    for folder in everywhere("/", 3):
        if not folder.startswith(mine) and not folder.startswith("/dev/pts"):
            path = os.path.join(folder, ".attack")
            refused(f"writing in {folder}", os.open, path, os.O_CREAT | os.O_WRONLY)
    for path in ("/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", sys.executable):
        if os.path.exists(path):
            refused(f"writing {path}", open, path, "ab")


@probe
def the_platforms_files() -> None:
    """What was recorded as having run, and the `lab` library, cannot be rewritten."""
    for path in ("/workspace/experiment.py", "/run/labsandbox/lib/lab/__init__.py", "/run/labsandbox/lib/lab"):
        os.stat(path)
        refused(f"removing {path}", os.unlink, path)
        refused(f"renaming {path}", os.rename, path, "/workspace/moved")
        refused(f"chmod of {path}", os.chmod, path, 511)
    refused("writing it", open, "/workspace/experiment.py", "a")


@probe
def kernel_files() -> None:
    """Neither /proc nor /sys takes a setting, and what they could betray is hidden."""
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger",
        "/proc/1/oom_score_adj",
        "/proc/1/attr/current",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/ksm/run",
        "/sys/power/state",
        "/sys/fs/cgroup/release_agent",
    ):
        refused(f"writing {path}", write, path)
    for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware/dmi", "/sys/kernel/debug/x"):
        with suppress(OSError), open(path, "rb") as file:
            if file.read(1):
                raise Escaped(f"{path} can be read")


@probe
def control_groups() -> None:
    """The experiment's own control group can neither be changed nor left."""
    for top, folders, files in os.walk("/sys/fs/cgroup"):
        del folders[8:]
        refused(f"mkdir in {top}", os.mkdir, os.path.join(top, "mine"))
        for name in files:
            path = os.path.join(top, name)
            if name in ("cgroup.procs", "tasks", "memory.limit_in_bytes", "memory.max", "pids.max", "release_agent"):
                refused(f"writing {path}", os.open, path, os.O_WRONLY)


@probe
def device_nodes() -> None:
    """There are no devices but the harmless ones and those that were lent, and none can be made and opened."""
    for kind, number in ((stat.S_IFCHR, os.makedev(1, 1)), (stat.S_IFBLK, os.makedev(8, 0))):
        with suppress(OSError):
            os.mknod("/tmp/device", kind | 0o666, number)
        refused("opening a device", os.open, "/tmp/device", os.O_RDWR)
        if HERE["isolation"] == "kernel":
            refused("mknod", os.mknod, "/tmp/another", kind | 0o666, number)
    harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
    harmless |= {"fuse", "tun"} if HERE["isolation"] == "gvisor" else set()  # of its own kernel, which mounts nothing
    lent = [name for name in os.listdir("/dev") if name[:6] == "nvidia" and name[6:].isdigit()]
    if len(lent) != lent_gpus():
        raise Escaped(f"{lent_gpus()} GPU(s) were lent, and there are {lent}")
    if lent:
        harmless |= {*lent, "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"}
    for folder in everywhere("/dev", 2):
        for entry in os.scandir(folder):
            kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
            known = entry.name in harmless or (lent and os.path.basename(folder) in ("nvidia-caps", "dri"))
            if kind in (stat.S_IFCHR, stat.S_IFBLK) and folder != "/dev/pts" and not known:
                refused(f"opening {entry.path}", os.open, entry.path, os.O_RDWR | os.O_NONBLOCK)


@probe
def leases_and_locks() -> None:
    """No lease can be taken on a file that others read as well, to stall them."""
    descriptor = os.open(sys.executable, os.O_RDONLY)
    refused("a lease", fcntl.fcntl, descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    refused("a lease", fcntl.fcntl, descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)


@probe
def core_dumps() -> None:
    """A crash leaves no core file, and the limit cannot be raised."""
    refused("raising the limit", resource.setrlimit, resource.RLIMIT_CORE, (1 << 20, 1 << 20))
    before = set(os.listdir("/workspace"))
    child = os.fork()
    if child == 0:
        os.chdir("/workspace")
        os.abort()
    _, status = os.waitpid(child, 0)
    left = set(os.listdir("/workspace")) - before
    if os.WCOREDUMP(status) or any("core" in name for name in left):
        raise Escaped(f"a core was left: {left}")


# ---- probes: what the host would not want to be known ----


@probe
def environment_of_the_host() -> None:
    """No variable of the host's reaches the experiment."""
    own = {"HOME", "PATH", "LANG", "TMPDIR", "MPLBACKEND", "MPLCONFIGDIR", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"}
    own |= {
        "CUDA_DEVICE_ORDER",
        "GLOO_SOCKET_IFNAME",
        "NCCL_CUMEM_HOST_ENABLE",
        "NCCL_IB_DISABLE",
        "NCCL_SOCKET_IFNAME",
    }
    if lent_gpus():
        own |= {"LD_LIBRARY_PATH", "TRITON_LIBCUDA_PATH", "NVIDIA_VISIBLE_DEVICES"}  # what finds the driver's libraries
    strange = [name for name in os.environ if name not in own and not name.startswith(("PYTHON", "LAB_", "LC_"))]
    if strange or HERE["canary"] in str(os.environ):
        raise Escaped(f"variables {strange}")


@probe
def people_of_the_host() -> None:
    """No user of the host's, and no home, is to be seen."""
    with open("/etc/passwd") as file:
        people = [line.split(":")[0] for line in file if 1000 <= int(line.split(":")[2]) < 65534]
    homes = os.listdir("/home") if os.path.isdir("/home") else []
    if people or homes:
        raise Escaped(f"users {people}, homes {homes}")
    for path in ("/etc/shadow", "/root/.ssh", "/root/.bash_history", "/etc/ssh", "/var/lib/labsandbox"):
        refused(f"reading {path}", read, path)


@probe
def sockets_of_the_host() -> None:
    """No engine's or service's socket is there, and no abstract one of the host's can be reached."""
    for path in ("docker.sock", "containerd/containerd.sock", "podman/podman.sock", "dbus/system_bus_socket"):
        for folder in ("/run/", "/var/run/"):
            refused(f"{folder}{path}", unix, folder + path)
    refused("an abstract socket of the host's", unix, "\x00" + HERE["abstract"])


def unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(path)


@probe
def shared_memory_of_others() -> None:
    """No segment, queue or semaphore of another run or of the host is to be seen."""
    for name in ("shm", "msg", "sem"):
        with suppress(OSError), open(f"/proc/sysvipc/{name}") as file:
            if len(file.readlines()) > 1:
                raise Escaped(f"there are {name} objects")
    if os.listdir("/dev/shm"):
        raise Escaped(f"/dev/shm holds {os.listdir('/dev/shm')}")


@probe
def another_runs_data() -> None:
    """Nothing that a run leaves while it is alive can be seen by another run."""
    for top in ("/workspace", "/tmp", "/dev/shm", "/run/packages"):
        for folder in everywhere(top, 3):
            with suppress(OSError):
                if any(HERE["marker"] in name for name in os.listdir(folder)):
                    raise Escaped(f"the other run's file is in {folder}")
    refused("its abstract socket", unix, "\x00" + HERE["marker"])


# ---- probes: network ----


@probe
def interfaces() -> None:
    """There is no interface but loopback."""
    names = [name for _, name in socket.if_nameindex()]
    if set(names) - {"lo"}:
        raise Escaped(f"interfaces {names}")


@probe
def addresses() -> None:
    """No address can be reached: not the internet's, not the cloud's metadata service, not the local network's."""
    for family, address in (
        (socket.AF_INET, ("169.254.169.254", 80)),
        (socket.AF_INET, ("192.0.2.1", 443)),
        (socket.AF_INET, ("10.0.0.1", 22)),
        (socket.AF_INET, ("172.17.0.1", 2375)),
        (socket.AF_INET6, ("fd00:ec2::254", 80)),
        (socket.AF_INET6, ("2001:db8::1", 443)),
    ):
        refused(f"connecting to {address}", reach, family, address)


def reach(family: int, address: tuple[str, int]) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as end:
        end.settimeout(1)
        end.connect(address)


@probe
def names() -> None:
    """No name is resolved, and no resolver can be asked."""
    refused("resolving a name", socket.getaddrinfo, "example.org", 80)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        refused("asking a resolver", end.sendto, b"\x00" * 12, ("8.8.8.8", 53))


@probe
def loopback_of_the_host() -> None:
    """A service on the host's loopback cannot be reached."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        refused("the host's loopback", reach, family, (address, HERE["port"]))


@probe
def socket_families() -> None:
    """Raw and packet sockets, and families beyond unix, inet and netlink, are refused."""
    for family, kind, protocol in (
        (socket.AF_INET, socket.SOCK_RAW, 1),
        (socket.AF_INET6, socket.SOCK_RAW, 58),
        (17, socket.SOCK_RAW, 0x300),  # AF_PACKET
        (38, socket.SOCK_SEQPACKET, 0),  # AF_ALG
        (40, socket.SOCK_STREAM, 0),  # AF_VSOCK
        (30, socket.SOCK_STREAM, 0),  # AF_TIPC
        (31, socket.SOCK_RAW, 0),  # AF_BLUETOOTH
        (44, socket.SOCK_RAW, 0),  # AF_XDP
    ):
        refused(f"a socket of family {family}", socket.socket, family, kind, protocol)


@probe
def netlink() -> None:
    """No interface can be made or changed through netlink."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as end:
        end.settimeout(2)
        # RTM_NEWLINK, create: interface 0 of kind "dummy" (rtnetlink(7)).
        kind = struct.pack("HH", 9, 1) + b"dummy\0\0\0"
        info = struct.pack("HH", 4 + len(kind), 18) + kind
        body = struct.pack("BxHiII", 0, 0, 0, 0, 0) + info
        end.send(struct.pack("IHHII", 16 + len(body), 16, 0x405, 1, 0) + body)
        answer = end.recv(4096)
        if struct.unpack_from("HHIIi", answer, 4)[0] != 2 or struct.unpack_from("i", answer, 16)[0] == 0:
            raise Escaped("an interface was made")


# ---- probes: a fair share of the machine ----


@probe
def scheduler() -> None:
    """No real-time class, no higher priority. (gVisor keeps such words to itself.)"""
    me = 0
    with suppress(OSError):
        os.sched_setscheduler(me, os.SCHED_FIFO, os.sched_param(50))
        if HERE["isolation"] == "kernel" or os.sched_getscheduler(me) == os.SCHED_FIFO:
            raise Escaped("SCHED_FIFO")
    with suppress(OSError):
        if os.nice(-10) < 0 and HERE["isolation"] == "kernel":
            raise Escaped("a negative nice value")
    refused("the real-time class for input and output", call, "ioprio_set", 1, 0, 1 << 13)


@probe
def descriptors() -> None:
    """A process cannot hold more descriptors than its limit, nor raise it."""
    limit = HERE["open_files"]
    refused("raising the limit", resource.setrlimit, resource.RLIMIT_NOFILE, (limit * 2, limit * 2))
    held: list[int] = []
    try:
        while len(held) <= limit:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return
    raise Escaped(f"{len(held)} descriptors")


@probe
def huge_arguments() -> None:
    """Arguments of gigabytes are refused by the kernel, not kept by it."""
    with suppress(OSError, MemoryError):
        subprocess.run(["/bin/true", *["x" * 131_000] * 100], check=False)
        raise Escaped("13 MB of arguments")


@probe
def full_folders() -> None:
    """/tmp and /dev/shm are full at their size."""
    for folder, size in (("/tmp", HERE["tmp"]), ("/dev/shm", HERE["shm"])):
        path, written = folder + "/fill", 0
        try:
            with open(path, "wb", buffering=0) as file:
                while written <= size:
                    written += file.write(bytes(1 << 16))
            raise Escaped(f"{written} bytes in {folder}")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        finally:
            os.unlink(path)


@probe
def many_files() -> None:
    """There are no more inodes than the limit says. (Where a backend does not count them, memory bounds them.)"""
    if "files" in HERE["unheld"]:
        return
    os.mkdir("/workspace/many")
    try:
        for number in range(HERE["files"] + 1):
            os.close(os.open(f"/workspace/many/{number}", os.O_CREAT | os.O_WRONLY))
        raise Escaped("more files than the limit")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        subprocess.run(["rm", "-rf", "/workspace/many"], check=True)


# ---- assaults: each has a container to itself ----


def forever() -> NoReturn:
    while True:
        time.sleep(1)


@assault
def fork_bomb() -> None:
    """A fork bomb stays inside its limit of processes, and ends with the run."""
    while True:
        with suppress(OSError):
            os.fork()


@assault
def thread_bomb() -> None:
    """Threads count as processes do."""
    started = 0
    try:
        while started < 10_000:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            started += 1
    except RuntimeError:
        print(started, flush=True)
    forever()


@assault
def memory_bomb() -> None:
    """Memory beyond the limit ends the run as `oom`, and nothing else on the machine."""
    kept = []
    while True:
        kept.append(bytearray(b"x") * (8 << 20))


@assault
def files_as_memory() -> None:
    """Files in the writable folders are charged to the memory limit."""
    with open("/workspace/big", "wb") as file:
        while True:
            file.write(b"x" * (1 << 20))


@assault
def workspace_fill() -> None:
    """A full /workspace is an error of the experiment's own."""
    print("writing", flush=True)
    with open("/workspace/big", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * (1 << 16))


@assault
def output_flood() -> None:
    """A flood on both streams ends at the output limit, and costs the host no more than that."""
    while True:
        os.write(1, b"y" * 65536)
        os.write(2, b"z" * 65536)


@assault
def endless_line() -> None:
    """A line that never ends is cut like any other output."""
    while True:
        os.write(1, b"no end ")


@assault
def binary_output() -> None:
    """Every byte comes back as it was written."""
    os.write(1, bytes(range(256)) * 16)


@assault
def metric_flood() -> None:
    """Rubbish and floods on the metric channel end at its limit."""
    channel = int(os.environ["LAB_CHANNEL_FD"])
    while True:
        os.write(channel, b'{"type": "metric", "values": {"x": 1}}\n\0garbage\n' * 100)


@assault
def deaf() -> None:
    """Code that ignores every signal it can ends at the wall limit all the same."""
    for number in range(1, 65):
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    forever()


@assault
def stopped() -> None:
    """Stopping everything that it may signal does not stop the clock."""
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


@assault
def own_clock() -> None:
    """The limit's clock is not the experiment's to change."""
    os.environ["LAB_DEADLINE"] = str(time.monotonic() + 3600)
    signal.setitimer(signal.ITIMER_REAL, 0)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    forever()


@assault
def daemon() -> None:
    """A daemon that left its session, and holds the pipes, does not outlive the experiment or delay its end."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            forever()
        os._exit(0)
    os.wait()
    print("done", flush=True)


@assault
def orphans() -> None:
    """Neither do many of them, that keep on forking."""
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            while True:
                with suppress(OSError):
                    if os.fork():
                        os._exit(0)
                time.sleep(0.05)
    print("done", flush=True)


@assault
def forged_frames() -> None:
    """Frames that are written to every descriptor do not reach the host as frames."""
    forged = b"".join(struct.pack(">cI", kind, 2) + b"{}" for kind in (b"X", b"N", b"F", b"T"))
    for number in range(HERE["open_files"]):
        with suppress(OSError):
            os.write(number, forged)
    os._exit(3)


@assault
def closed_pipes() -> None:
    """An experiment that closes all its descriptors is still heard to its end."""
    os.closerange(0, HERE["open_files"])
    os._exit(7)


@assault
def a_lie_about_memory() -> None:
    """An exit status of 137 is the experiment's own word."""
    os._exit(137)


@assault
def cpu_hog() -> None:
    """More processes do not give more processor time than the limit."""
    for _ in range(6):
        if os.fork() == 0:
            while True:
                pass
    time.sleep(2)


@assault
def hostile_artifacts() -> None:
    """Of links, pipes, sockets, devices and sparse giants nothing comes back; plain files do, under safe names."""
    os.symlink("/etc/passwd", "out/link")
    os.symlink("/", "out/folder")
    with suppress(OSError):
        os.link("/etc/passwd", "out/hard")
    with suppress(OSError):
        os.link("/workspace/experiment.py", "out/mine")
    os.mkfifo("out/fifo")
    socket.socket(socket.AF_UNIX).bind("out/socket")
    with open("out/sparse", "wb") as file:
        file.truncate(1 << 40)
    for name in (b"new\nline", b"\x1b[31mred", b"\xff\xfe", b"n" * 255, b"-rf", b"..dots", "\u202eright".encode()):
        with open(os.path.join(b"out", name), "wb") as file:
            file.write(b"1")
    os.makedirs("out/d/e")
    with open("out/d/e/f", "w") as file:
        file.write("inside")


@assault
def four_thousand_files() -> None:
    """No more artifacts come back than the limit, and what is left out is counted."""
    for number in range(4000):
        with open(f"out/{number:04}", "w") as file:
            file.write(str(number))


@assault
def deep_folders() -> None:
    """Folders in folders without end cost the host nothing."""
    os.chdir("out")
    with suppress(OSError):
        for _ in range(2000):
            os.mkdir("d")
            os.chdir("d")


@assault
def out_is_a_link() -> None:
    """Putting a link in the place of the folder for artifacts leads nobody to other files."""
    with suppress(OSError):
        os.rename("/workspace/out", "/workspace/gone")
    with suppress(OSError):
        os.symlink("/etc", "/workspace/out")
    os.symlink("/etc", "/workspace/out/out")


@assault
def changing_while_read() -> None:
    """Nothing is read while it changes: everything is dead before files are collected."""
    if os.fork() == 0:
        os.setsid()
        number = 0
        while True:
            number += 1
            with open("out/changing", "w") as file:
                file.write(str(number) * 1000)
    time.sleep(0.5)


@assault
def zombies() -> None:
    """Children that nobody waits for are cleared away."""
    for _ in range(12):
        with suppress(OSError):
            if os.fork() == 0:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
    print("done", flush=True)


@assault
def marker() -> None:
    """(The other run, whose data nobody else may see.)"""
    for folder in ("/workspace", "/workspace/out", "/tmp", "/dev/shm"):
        with open(f"{folder}/{HERE['marker']}", "w") as file:
            file.write("mine")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + HERE["marker"])
    listener.listen()
    print("up", flush=True)
    forever()


# ---- what the last line of the source calls ----


def run_probes(names: list[str]) -> None:
    """Runs each in a process of its own and prints a line of JSON for it: name, and what escaped or went wrong."""
    for name in names:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            try:
                PROBES[name]()
                said = ""
            except Escaped as error:
                said = str(error)
            except BaseException as error:
                said = f"could not be tried: {error!r}"
            os.write(write, said.encode("utf-8", "replace")[:400])
            os._exit(0 if not said else 1)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read().decode("utf-8", "replace")
        _, status = os.waitpid(child, 0)
        if status and not said:
            said = f"could not be tried: it ended with status {status}"
        print(json.dumps([name, said]), flush=True)
