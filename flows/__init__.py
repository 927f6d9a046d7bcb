"""What every command of the project starts with: its Python, its paths, its environment. Change here to set those.

Importing it adds `src` to the path and changes nothing else; `python -m flows.<name>` starts the rest. It parses on
Python 3.6, so that an old Python hears what is wrong.
"""

import atexit
import gc
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib costs 10 ms a stage
OLDEST = (3, 11)
NEEDED = ("pandas", "pandera", "prefect", "pydantic", "sklearn", "yaml")
THREADS = "1"  # one and the same everywhere, and the fastest: a histogram is too little work to share out

if sys.path[0] != os.path.join(ROOT, "src"):  # noqa: PTH118 - as above
    sys.path.insert(0, os.path.join(ROOT, "src"))  # noqa: PTH118 - as above


def anchor() -> str:
    """The folder of the databases, caches and server: the clone, also for a copy that `dvc exp run` made of it."""
    return os.environ.get("DVC_ROOT") or ROOT


def environment() -> "dict[str, str]":
    """What keeps every tool inside the repository, silent towards its makers, and repeatable."""
    home = anchor()
    local = os.environ.get("NO_PROXY", "") + ",127.0.0.1"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), THREADS)
    defaults = {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": home + "/.cache/dvc",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MPLCONFIGDIR": home + "/.cache/matplotlib",
        "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime reports on each model and process, since 1.29
        "PREFECT_HOME": home + "/.prefect",
        "PREFECT_API_REQUEST_TIMEOUT": "10",  # a server that died costs seconds, not minutes
        "PREFECT_CLIENT_MAX_RETRIES": "2",
        "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # its lines go to its server: ours are on the screen
    }
    kept = {name: os.environ.get(name, value) for name, value in defaults.items()}
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"}  # on a busy machine, threads that spin while they wait cost tenfold
    return {**kept, **threads, **waiting, "NO_PROXY": local, "no_proxy": local}


def begin_work() -> None:
    """Switch the collector on again, past what the imports left: it was off since the program started."""
    gc.freeze()
    gc.enable()
    sys.setswitchinterval(0.0005)  # seconds; threads that compute beside each other wait less for each other


def _own_python() -> None:
    """Go on with the repository's own Python: the same process, arguments and folder."""
    if os.environ.get("FLOWS_STARTED") == str(os.getpid()):
        return
    for folder in (anchor(), ROOT):
        venv = os.path.join(folder, ".venv")  # noqa: PTH118 - as above
        if os.path.realpath(venv) == os.path.realpath(sys.prefix):
            return
        if os.path.exists(venv + "/bin/python"):  # noqa: PTH110 - as above
            os.environ["FLOWS_STARTED"] = str(os.getpid())
            sys.stdout.flush()
            os.execv(venv + "/bin/python", [venv + "/bin/python"] + _arguments())  # noqa: RUF005, S606 - our own Python, by what 3.6 parses
    if sys.version_info[:2] < OLDEST:
        found = sys.version.split()[0]
        sys.exit("expected Python 3.11 or newer, this is %s (%s); run `make repro` first" % (found, sys.executable))  # noqa: UP031 - as 3.6 parses it
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(
            f"expected the project's packages, but {sys.executable} has no {', '.join(missing)}; run `make repro` first"
        )


def _arguments() -> "list[str]":
    """This process's arguments after the program, as they were given."""
    if hasattr(sys, "orig_argv"):
        return sys.orig_argv[1:]
    import ctypes  # Python 3.9 and older

    count, values = ctypes.c_int(), ctypes.POINTER(ctypes.c_wchar_p)()
    ctypes.pythonapi.Py_GetArgcArgv(ctypes.byref(count), ctypes.byref(values))
    return [str(values[i]) for i in range(1, count.value)]


if sys.argv[0] == "-m":
    _own_python()
    os.environ.update(environment())
    gc.disable()  # imports make objects that stay: collecting among them costs a stage up to two seconds
    atexit.register(gc.freeze)
