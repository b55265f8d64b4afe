"""One process for each device: `lab.launch(fn, *args)`.

Every process is a fresh interpreter, because CUDA does not survive a fork. It loads the experiment's script up to the
first `lab.launch` or `lab.compare` (silently, and without the script's `if __name__ == "__main__"`), finds `fn` there by
its name, joins torch.distributed's default group, and calls it.
"""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path

from lab import channel, clock, devices

WORKER = "__lab_worker__"
_COMMAND = "import sys; from lab.launch import _work; _work(sys.argv[1])"
_TICK = 0.005  # seconds between two looks at the processes

_loading = False


class _Reached(BaseException):
    """The script's own run begins here: a worker has seen all of it that it needs."""


def stop_loading():
    """Ends a worker's loading of the script."""
    if _loading:
        raise _Reached


def launch(fn, *args, processes=None):
    """Runs `fn(*args)` in one process for each GPU (without GPUs: in `processes`, by default one), and returns what it
    returns in rank 0.

    In it torch.distributed's default group is there (NCCL on GPUs, gloo on the CPU), RANK, LOCAL_RANK and WORLD_SIZE are
    set, `lab.device()` is the process's own device, and torch is seeded alike in every rank, as `lab.compare` seeded it.
    Records and standard output are rank 0's. `fn` is a function of the script's top level, defined before the first
    launch; `args` and what comes back must be picklable.

    Raises RuntimeError when a rank fails, after ending the others; TypeError for a function that cannot be found by name;
    ValueError for more processes than GPUs.
    """
    stop_loading()
    count = processes if processes is not None else max(1, devices.gpus())
    if count < 1 or (devices.gpus() and count > devices.gpus()):
        raise ValueError("cannot run %d processes on %d GPU(s)" % (count, devices.gpus()))
    folder = Path(tempfile.mkdtemp(prefix="lab-launch-"))
    ranks = []
    try:
        _write(folder, "job", {"function": _name_of(fn), "script": _script(), "tags": dict(channel._context)})
        _write(folder, "args", args)
        sys.stdout.flush()
        ranks.extend(_start(folder, rank, count) for rank in range(count))
        _wait(folder, ranks)
        sys.modules.setdefault(WORKER, sys.modules["__main__"])  # where what comes back was defined
        return _read(folder, "result")
    finally:
        for rank in ranks:
            _end(rank)
        shutil.rmtree(folder, ignore_errors=True)


def _name_of(fn):
    """(module, qualified name) by which a worker finds the function."""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    if not module or not name or "<" in name:
        raise TypeError("lab.launch needs a function of the script's top level, not %s" % (name or repr(fn)))
    return module, name


def _script():
    return getattr(sys.modules["__main__"], "__file__", None)


def _start(folder, rank, count):
    environment = dict(
        os.environ,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        LAB_CPUS=str(max(1, clock.cpus() // count)),
        OMP_NUM_THREADS=str(max(1, clock.cpus() // count)),
    )
    records = os.environ.get("LAB_CHANNEL_FD")
    if rank:
        environment.pop("LAB_CHANNEL_FD", None)
    return subprocess.Popen(
        [sys.executable, "-u", "-c", _COMMAND, str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        pass_fds=(int(records),) if records and not rank else (),
        start_new_session=True,  # so that what it starts can be ended with it
    )


def _wait(folder, ranks):
    """Until all have ended well. Raises RuntimeError when one has not; the others may wait for it for ever."""
    while True:
        statuses = [rank.poll() for rank in ranks]
        failed = [rank for rank, status in enumerate(statuses) if status]
        if failed:
            raise RuntimeError(_failure(folder, failed, statuses))
        if None not in statuses:
            return
        time.sleep(_TICK)


def _failure(folder, failed, statuses):
    """Whose fault it was: of several, the first to fail; one that died without a word before one that waited for it in vain."""
    said = {rank: folder / ("error.%d" % rank) for rank in range(len(statuses))}
    told = sorted((path.stat().st_mtime_ns, rank) for rank, path in said.items() if path.exists())
    silent = [rank for rank in failed if not said[rank].exists()]
    if silent:
        status = statuses[silent[0]]
        how = "was ended by signal %d" % -status if status < 0 else "exited with status %d" % status
        return "rank %d of %d %s" % (silent[0], len(statuses), how)
    rank = told[0][1]
    return "rank %d of %d: %s" % (rank, len(statuses), said[rank].read_text(encoding="utf-8", errors="replace"))


def _end(rank):
    try:
        os.killpg(rank.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    rank.wait()


def _write(folder, name, value):
    new = folder / (name + ".new")
    new.write_bytes(pickle.dumps(value))
    new.rename(folder / name)


def _read(folder, name):
    return pickle.loads((folder / name).read_bytes())


# ---- in a worker ----


def _work(folder):
    folder, rank = Path(folder), int(os.environ["RANK"])
    try:
        result = _run(folder, rank)
        if rank == 0:
            _write(folder, "result", result)
    except BaseException as error:
        line = traceback.format_exception_only(type(error), error)[-1].strip()
        (folder / ("error.%d" % rank)).write_text(line[:500], encoding="utf-8", errors="replace")
        raise


def _run(folder, rank):
    job = _read(folder, "job")
    stdout, records = os.dup(1), os.environ.pop("LAB_CHANNEL_FD", None)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    module = _load(job["script"])
    sys.stdout.flush()
    if rank == 0:
        os.dup2(stdout, 1)
        if records is not None:
            os.environ["LAB_CHANNEL_FD"] = records
    os.close(stdout)
    fn = _find(module, *job["function"])
    args = _read(folder, "args")
    channel._context.update(job["tags"])
    return _in_group(folder, rank, fn, args, job["tags"].get("seed"))


def _load(script):
    """The experiment's script as a module, as far as its functions are needed."""
    global _loading
    module = types.ModuleType(WORKER)
    module.__file__ = script
    sys.modules[WORKER] = sys.modules["__main__"] = module  # for pickles that name either
    if script is None:
        return module
    sys.path.insert(0, str(Path(script).absolute().parent))
    code = compile(Path(script).read_bytes(), script, "exec")
    _loading = True
    try:
        exec(code, module.__dict__)
    except _Reached:
        pass
    finally:
        _loading = False
    return module


def _find(module, name, qualified):
    found = module if name in ("__main__", WORKER) else __import__(name, fromlist=["_"])
    try:
        for part in qualified.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise RuntimeError(
            "%s is not defined before the script's first lab.launch or lab.compare" % qualified
        ) from None
    return found


def _in_group(folder, rank, fn, args, seed):
    import torch
    from lab.compare import seed_everything
    from torch import distributed

    on_gpus = devices.gpus() > 0
    if on_gpus:
        torch.cuda.set_device(devices.device())
    distributed.init_process_group(
        "nccl" if on_gpus else "gloo",
        init_method="file://%s" % (folder / "group"),
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    if seed is not None:
        seed_everything(seed)
    result = fn(*args)
    distributed.destroy_process_group()
    return result
