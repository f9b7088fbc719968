"""Commands as processes of their own that need not import torch anew: each is forked from one that
has, and then runs as `python -m module ...` or `python file ...` does, to the end of its
interpreter. `Command` takes the place of subprocess.Popen where the subject is what a process does,
is asked or suffers, and not how Python starts."""

import atexit
import gc
import importlib
import json
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    "torch.utils.tensorboard", "torch.distributed.launcher.api", "timm.models", "timm.optim",
    "hydra.main", "sat.job",
    "sat.training.train", "sat.evaluation.results", "sat.loggers.tensorboard",
)  # fmt: skip


class Child:
    """A process by its number, whose exit code `_code()` tells once it has ended."""

    pid: int
    returncode: int | None = None

    def _code(self) -> int | None:
        raise NotImplementedError

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._code()
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Command(Child):
    """`words` as command line of a process of its own session; what it says goes to files, `out`
    and `err` of the folder `said`."""

    def __init__(self, words: list[str], cwd: Path, env: dict, said: Path | None = None):
        assert words[0] == sys.executable, words
        server, folder = the_server()
        place = Path(tempfile.mkdtemp(dir=folder))
        self.args, said = words, said or place
        self.out, self.err = said / "out", said / "err"
        asked = {"words": words[1:], "cwd": str(cwd), "env": dict(env)}
        asked |= {"out": str(self.out), "err": str(self.err), "code": str(place / "code")}
        print(json.dumps(asked), file=server.stdin, flush=True)
        self.pid, self._end = int(server.stdout.readline()), place / "code"

    def _code(self) -> int | None:
        return int(self._end.read_text()) if self._end.exists() else None

    def communicate(self, timeout: float = float("inf")) -> tuple[str, str]:
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()


@cache
def the_server() -> tuple[subprocess.Popen, str]:
    """The process that all commands of this one are forked from, and the folder of what they say;
    both end with this one."""
    folder = tempfile.mkdtemp(prefix="warm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    server = subprocess.Popen(
        [sys.executable, __file__], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    atexit.register(server.communicate)
    return server, folder


# in the server, and in what it forks -------------------------------------------------------------


def serve() -> list[str]:
    """Forks for every line; returns in the child, with what that is to run."""
    running: dict[int, str] = {}
    ended: dict[int, int] = {}

    def reap(*_: object) -> None:
        """Tells the code of each that has ended, and whose number is known by now."""
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                ended[found[0]] = os.waitstatus_to_exitcode(found[1])
        except ChildProcessError:
            pass
        for number in ended.keys() & running.keys():
            place = Path(running.pop(number))
            place.with_suffix(".tmp").write_text(str(ended.pop(number)))
            place.with_suffix(".tmp").rename(place)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; it is the tests' affair
    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        asked = json.loads(line)
        if (number := os.fork()) == 0:
            begin(asked)
            return asked["words"]
        running[number] = asked["code"]
        print(number, flush=True)
        reap()
    os._exit(0)


def begin(asked: dict) -> None:
    """Makes a forked process look like one that was started so."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    for number, path in enumerate((os.devnull, asked["out"], asked["err"])):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])


def python(words: list[str]) -> None:
    """What the interpreter does with its command line."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*(path for path in known if path and path not in sys.path), *sys.path]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        sys.path[0:0] = [os.getcwd()]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0:0] = [str(Path(words[0]).parent)]
        runpy.run_path(words[0], run_name="__main__")


class Fork(Child):
    """A process of torchrun, or a worker of joblib, forked from the command that starts it."""

    def __init__(self, words: list[str], env: dict, prepare: Callable[[], None]):
        self.args = words
        if (number := os.fork()) == 0:
            self._run(words, env, prepare)
        self.pid = number

    def _code(self) -> int | None:
        number, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if number else None

    def _run(self, words: list[str], env: dict, prepare: Callable[[], None]) -> None:
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            prepare()
            os.environ.clear()
            os.environ.update(env)
            python(words)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def forked(handler: object, args: tuple, env: dict) -> Fork:
    """Torchrun's way to start one of its processes: `[python, -u, ...]`."""
    return Fork([word for word in args[1:] if word != "-u"], env, os.setsid)


def forget() -> None:
    """Leaves nothing that the command has made of the package, which is imported anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "sat"]:
        del sys.modules[name]
    logging.getLogger("sat").handlers.clear()


def launched(cmd: list[str], keep_fds: list, env: dict | None = None) -> int:
    """Joblib's way to start a worker, `[python, -m, ...]`, or what keeps account of them."""
    if cmd[1] != "-m":
        return FORK_EXEC(cmd, keep_fds, env=env)
    return Fork(cmd[1:], {**os.environ, **(env or {})}, forget).pid


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    gc.disable()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # as many looks less in each that is forked
    gc.enable()
    from joblib.externals.loky.backend import fork_exec
    from torch.distributed.elastic.multiprocessing import subprocess_handler

    subprocess_handler.SubprocessHandler._popen = forked
    FORK_EXEC, fork_exec.fork_exec = fork_exec.fork_exec, launched
    python(serve())
