"""An interpreter that was started ahead of its code, in a warm container: loads modules, waits, and becomes the code's own.

Only PID 1 calls this (executor/runner.py); no experiment's code has come in before `wait` is told to go on.
"""

import builtins
import os
import sys

_FOLDER = "/workspace"
_SCRIPT = _FOLDER + "/experiment.py"


def wait(go, said):
    """Loads what LAB_PRELOAD names, says on `said` what it could not, and runs the experiment in the environment that
    comes on `go`. Loads nothing else that an interpreter does not load by itself: it would be the experiment's too."""
    missing = []
    for name in os.environ["LAB_PRELOAD"].split():
        try:
            __import__(name)
        except Exception:
            missing.append(name)
    with open(said, "wb") as file:
        file.write(" ".join(missing).encode() + b"\n")
    with open(go, "rb") as file:
        environment = file.read()
    if not environment:
        os._exit(0)  # PID 1 is gone
    os.environ.clear()
    for entry in environment.split(b"\0"):
        name, _, value = entry.partition(b"=")
        os.environb[name] = value
    _become_script()


def _become_script():
    """Runs the script as `python experiment.py` would, tracebacks included."""
    main = type(sys)("__main__")
    loader = type(__loader__)("__main__", _SCRIPT)  # the class that loads files, as this one
    main.__dict__.update(
        __file__=_SCRIPT, __builtins__=builtins, __cached__=None, __annotations__={}, __loader__=loader
    )
    sys.modules["__main__"] = main
    sys.argv[:] = [_SCRIPT]
    sys.path[0] = _FOLDER
    try:
        with open(_SCRIPT, "rb") as file:
            source = file.read()
        exec(compile(source, _SCRIPT, "exec", dont_inherit=True), main.__dict__)
    except Exception as error:
        # What is above the script's own frames is not the script's; a syntax error has none.
        trace = error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        sys.exit(1)
