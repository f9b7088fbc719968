"""What the operating system does to a run: pipes in place of files, disks without locks, streams
that are closed, folders that are gone. Each test names its kind."""

import errno
import fcntl
import importlib
import io
import json
import logging
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, ended
from inputs import DIGITS
from PIL import Image

from sat.config import CONF
from sat.data import Batch, ImageFolder
from sat.data.images import ResizedCrop
from sat.data.stream import Reading, StreamSplit
from sat.errors import Busy, Fault, Refused
from sat.evaluation import store
from sat.loggers.base import _Sent
from sat.models.files import read_file
from sat.rundir import checkpoint, files, lock, record, result, untrusted
from sat.rundir.checkpoint import Unwritable
from sat.rundir.reading import experiments_of, metrics, status

# files that are none: what is read or written is a regular file, asked without blocking ----------


@pytest.fixture
def soon():
    """Whatever waits is ended."""

    def stop(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def special(path: Path, kind: str) -> Path:
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


def weights_digest(path: Path) -> object:
    from sat.config.spec import _file_digest

    return _file_digest(str(path))


READ = {
    "result.json": lambda run: result.read_result(run),
    "config.yaml": lambda run: untrusted.read_yaml(run / "config.yaml"),
    "checkpoints/last.pt": lambda run: checkpoint.read(run / "checkpoints/last.pt"),
    "flags/last-pgd20.npz": lambda run: store.read_file(run / "flags/last-pgd20.npz"),
    "experiments.txt": lambda run: experiments_of(run),
    "wandb.sent.jsonl": lambda run: _Sent(run / "wandb.sent.jsonl"),
    "w.pt": lambda run: read_file(run / "w.pt"),
    "w.safetensors": lambda run: read_file(run / "w.safetensors"),
    "v.pt": lambda run: weights_digest(run / "v.pt"),
}


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_a_file(name, kind, tmp_path, soon):
    special(tmp_path / name, kind)
    with pytest.raises((OSError, ValueError), match="regular file|No such file"):
        READ[name](tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_what_a_report_reads_is_a_file_or_left_out(kind, tmp_path, soon):
    for name in ("metrics.jsonl", "log.txt", "lock"):
        special(tmp_path / name, kind)
    assert "is no regular file" in metrics(tmp_path)[1]
    assert status(tmp_path) == ("stopped", {})


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "link"])
@pytest.mark.parametrize("name", ["lock", "log.txt"])
def test_a_run_is_not_begun_where_a_file_of_its_own_is_none(name, kind, tmp_path, soon):
    """Nor through a link: what lies elsewhere is not written over."""
    (tmp_path / "run").mkdir()
    (other := tmp_path / "other").write_text("precious")
    if kind == "link":
        (tmp_path / "run" / name).symlink_to(other)
    else:
        special(tmp_path / "run" / name, kind)
    mine = record.Record(root=str(tmp_path))
    with pytest.raises((Refused, Unwritable), match=rf"run/{name}"):
        with record.claim(mine, "run", "seed: 0\n"):
            pytest.fail("claimed")
    assert other.read_text() == "precious"


def test_a_run_that_ended_by_an_error_of_several_lines_has_failed(tmp_path):
    mine = record.Record(root=str(tmp_path))
    with pytest.raises(RuntimeError), record.claim(mine, "run", ""):
        raise RuntimeError("one line\nand more")
    assert status(tmp_path / "run") == ("failed", {"error": r"one line\nand more (resumable)"})


def test_a_link_that_comes_meanwhile_is_not_written_through(tmp_path, monkeypatch):
    (other := tmp_path / "other").write_text("precious")
    (tmp_path / "log.txt").symlink_to(other)
    monkeypatch.setattr(files, "_refuse_others", lambda *given: None)  # as it was a moment before
    with pytest.raises(OSError, match="symbolic link"):
        open(tmp_path / "log.txt", "a", opener=files.regular)
    assert files.read_text(tmp_path / "log.txt") == "precious"  # to read from one is no harm


def test_a_resumed_run_cuts_nothing_back_through_a_link(tmp_path):
    (other := tmp_path / "other").write_text("precious")
    for name in ("metrics.jsonl", "events.out.tfevents.1"):
        (tmp_path / name).symlink_to(other)
    with pytest.raises(Unwritable):
        record.Run(tmp_path).rewind({"metrics.jsonl": 1, "events.out.tfevents.1": 1})
    assert other.read_text() == "precious"


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_what_is_written_whole_takes_the_place_of_what_is_no_file(kind, tmp_path, soon):
    for name in (".result.json.tmp", "result.json"):
        special(tmp_path / name, kind)
    checkpoint.write_whole(tmp_path / "result.json", lambda file: file.write(b"{}"))
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_bytes() == b"{}"


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_what_grows_is_a_file(kind, tmp_path, soon, caplog):
    special(tmp_path / "metrics.jsonl", kind)
    with pytest.raises(Unwritable, match="metrics.jsonl: "):
        record.Run(tmp_path).write_metrics({"step": 1})
    special(tmp_path / "experiments.txt", kind)
    with caplog.at_level(logging.WARNING, "sat"):
        record.enter(tmp_path, "alpha")
    assert "reports will miss it" in caplog.text
    (tmp_path / "x.sent.jsonl").write_text("")
    sent = _Sent(tmp_path / "x.sent.jsonl")
    special(tmp_path / "x.sent.jsonl", kind)
    with pytest.raises(OSError):
        sent.new(["a"], 1)


def test_a_name_that_is_no_text_is_no_experiment(tmp_path):
    (tmp_path / "experiments.txt").write_bytes(b"\xff\xfe\n")
    record.enter(tmp_path, "alpha")
    assert (tmp_path / "experiments.txt").read_bytes() == b"\xff\xfe\nalpha\n"


def test_an_endless_text_is_not_read(tmp_path):
    with open(tmp_path / "metrics.jsonl", "wb") as file:
        file.truncate(2**40)  # with nothing in it
    assert "is larger" in metrics(tmp_path)[1]


# disks that refuse ------------------------------------------------------------------------------

LOCKLESS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]


@pytest.fixture(params=LOCKLESS, ids=errno.errorcode.get)
def lockless(request, monkeypatch):
    """A disk that refuses flock."""

    def flock(*given):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock._warn_once.cache_clear()
    return request.param


def test_a_disk_without_locks_lets_one_process_in(lockless, tmp_path, caplog):
    mine = record.Record(root=str(tmp_path))
    with caplog.at_level(logging.WARNING, "sat"):
        with record.claim(mine, "run", "seed: 0\n") as run:
            assert lock.is_running(run.directory)
            with pytest.raises(Busy, match=f"process {os.getpid()} "):
                with record.claim(mine, "run", "seed: 0\n", wait=False):
                    pytest.fail("two are in")
        assert not lock.is_running(run.directory) and not (run.directory / "lock.held").exists()
        with record.claim(mine, "run", "seed: 0\n", wait=False):
            pass
    assert caplog.text.count("its disk takes no locks") == 1, "said once"
    assert os.strerror(lockless) in caplog.text


@pytest.fixture
def enolck(monkeypatch):
    def flock(*given):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


HOLDERS = {  # what differs from this process, and whether it is taken for alive
    "another machine": ({"host": "elsewhere", "process": 1}, True),
    "another start, or a copy of this machine": ({"boot": "another"}, True),
    "another program's": ({"boot": None}, True),
    "another container": ({"processes": "pid:[1]", "process": 2**22}, True),
    "a number that another process has by now": ({"began": "1"}, False),
    "a dead process": ({"process": 2**22}, False),
    "no process": ({"process": "x"}, False),
}


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux tells of processes")
@pytest.mark.parametrize("case", HOLDERS)
def test_who_is_dead_keeps_nobody_out(case, enolck, tmp_path):
    change, alive = HOLDERS[case]
    (tmp_path / "lock.held").write_text(json.dumps({**lock._oneself(), **change}))
    assert lock.is_running(tmp_path) == alive
    if alive:
        with pytest.raises(Busy):
            lock.take(tmp_path, wait=False)
    else:
        lock.take(tmp_path, wait=False).close()
    assert (tmp_path / "lock.held").exists() == alive


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_who_is_not_known_may_be_alive(content, enolck, tmp_path):
    (tmp_path / "lock.held").write_text(content)
    with pytest.raises(Busy, match="process . on . "):
        lock.take(tmp_path, wait=False)


def test_who_is_taken_for_dead_while_it_removes_a_file_goes_on(enolck, tmp_path, monkeypatch):
    (held := tmp_path / "lock.held").write_text(json.dumps({**lock._oneself(), "process": 2**22}))

    def slow(path):
        (tmp_path / ".lock.held.breaking").rmdir()  # by another, a minute later

    monkeypatch.setattr(lock, "_holder", slow)
    lock._remove(held)
    assert not held.exists()


def test_of_many_that_find_a_dead_one_one_gets_in(enolck, tmp_path):
    """Also where one was killed while it removed the dead one's file."""
    (tmp_path / "lock.held").write_text(json.dumps({**lock._oneself(), "process": 2**22}))
    (breaking := tmp_path / ".lock.held.breaking").mkdir()
    os.utime(breaking, (0, 0))
    inside, most, done = [], [], []

    def enter() -> None:
        held = lock.take(tmp_path, wait=True)
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()
        held.close()
        done.append(1)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 8 and max(most) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"lock"}


def test_a_run_begun_afresh_keeps_its_lock(enolck, tmp_path):
    mine = record.Record(root=str(tmp_path))
    with record.claim(mine, "run", "seed: 0\n"):
        pass
    with record.claim(record.Record(root=str(tmp_path), fresh=True), "run", "seed: 0\n"):
        assert (tmp_path / "run/lock.held").exists()
        with pytest.raises(Busy):
            lock.take(tmp_path / "run", wait=False)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_that_flushes_nothing_is_written_to(number, tmp_path, monkeypatch, caplog):
    def fsync(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoint._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "sat"):
        for content in (b"one", b"two"):
            checkpoint.write_whole(tmp_path / "x", lambda file, c=content: file.write(c))
    assert (tmp_path / "x").read_bytes() == b"two"
    assert caplog.text.count("after a power cut") == 1


def test_a_disk_that_fails_to_flush_is_a_fault(tmp_path, monkeypatch):
    def fsync(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Unwritable, match="see to the disk"):
        checkpoint.write_whole(tmp_path / "x", lambda file: file.write(b"one"))


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    place, seen = tmp_path / "x", []
    monkeypatch.setattr(os, "fsync", lambda n: seen.append((os.fstat(n).st_size, place.exists())))
    checkpoint.write_whole(place, lambda file: file.write(b"one"))
    assert seen == [(3, False)]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_links_keeps_two_checkpoints(number, tmp_path, monkeypatch):
    def link(*given):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in range(3):
        checkpoint.rotate(last, previous, {"step": step})
    assert [checkpoint.read(path)["step"] for path in (last, previous)] == [2, 1]
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "previous.pt"}


# screens that are closed ------------------------------------------------------------------------


class Broken(io.StringIO):
    """As a pipe that nobody reads, a terminal that is closed, a full disk."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def write(self, *text):
        raise OSError(self.number, os.strerror(self.number))

    flush = write

    def isatty(self):
        return True


def test_a_broken_screen_ends_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(errno.EIO))
    monkeypatch.setattr(sys, "stderr", None)
    assert ended(f"record.root={tmp_path / 'outputs'}", *DIGITS) == 0
    (run,) = (tmp_path / "outputs").glob("*/result.json")
    assert json.loads(run.read_text())["status"] == "finished"
    sys.stderr.close()


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF])
def test_what_can_not_be_told_is_dropped(number, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Broken(number))
    assert ended("seed=-1") == 2
    print("a package that prints", file=sys.stderr, flush=True)


CLOSED = {
    "both": '"$@" >&- 2>&- <&-',
    "out": '"$@" >&-',
    "pipe": '{ "$@"; echo $? > code; } 2>err | head -c 1 >/dev/null; exit $(cat code)',
}


@pytest.mark.parametrize("how", CLOSED)
def test_streams_that_are_closed_are_nobodys_files(how, tmp_path):
    """What is opened next must not get their numbers; and nothing is said at the end of Python."""
    told = (
        "import os, sys; from sat.loggers import screen; screen.set_up()\n"
        "file = open('own', 'w'); numbers = file.fileno()\n"
        "for _ in range(3000): screen.log.info('line'); print('line')\n"
        "os.write(1, b'raw') if numbers != 1 else None\n"
        "file.write(str(numbers)); file.close()\n"
        "from sat.launch import end; end(0)"
    )
    done = subprocess.run(
        ["sh", "-c", CLOSED[how], "sh", sys.executable, "-c", told], cwd=tmp_path,
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    said = done.stderr + ((tmp_path / "err").read_text() if (tmp_path / "err").exists() else "")
    assert (done.returncode, said) == (0, "")
    assert int((tmp_path / "own").read_text()) > 2


@pytest.mark.parametrize("command", ["bench.benchmark", "models.command", "report.command"])
def test_the_other_commands_have_a_lasting_screen_too(command, tmp_path, monkeypatch):
    main = importlib.import_module(f"sat.{command}").main
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Broken(errno.EPIPE))
    words = {"bench.benchmark": ["--nothing"], "models.command": [str(tmp_path)],
             "report.command": [str(tmp_path)]}  # fmt: skip
    try:
        code = main(words[command])
    except SystemExit as end:
        code = end.code
    assert code == 2


def test_text_that_a_screen_does_not_know_is_spelt(monkeypatch):
    from sat.launch import lasting_streams

    ascii_only = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    lasting_streams()
    print("caf\u00e9 \udce9", flush=True)
    assert ascii_only.buffer.getvalue() == b"caf\\xe9 \\udce9\n"


def test_a_warning_of_a_package_is_a_line_of_ours(capfd):
    import warnings

    from sat.loggers import screen

    for handler in list(screen.log.handlers):
        screen.log.removeHandler(handler)
    with warnings.catch_warnings():
        screen.set_up()
        warnings.simplefilter("always")
        warnings.warn("of two\n  lines", FutureWarning, stacklevel=1)
    assert capfd.readouterr().err == "! FutureWarning: of two lines\n"


# places that are gone, words that are wrong -----------------------------------------------------


def one_line(done) -> str:
    lines = [line for line in done.err.splitlines() if line]
    assert done.code == 2 and len(lines) == 1 and lines[0].startswith("! "), done.err
    return lines[0]


def test_a_folder_that_is_gone_is_told(sat, tmp_path, monkeypatch):
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in ([], ["-m", "seed=0,1"], ["--help"]):
        assert "the folder that this command was called in is gone" in one_line(sat(*words))


def test_no_place_for_temporary_files_is_told(sat, monkeypatch):
    def mkdtemp(**given):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    assert "TMPDIR: no place for temporary files (No usable" in one_line(sat())


BROKEN = {
    b"a: [1\nb: {": r"mine/experiment/own.yaml", b"a: ${": "a value of a file can't be read",
    b"a: \xff": "a file of --config-dir is no UTF-8", b"a: &a [*a]": "is nested too deeply",
}  # fmt: skip


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_file_of_the_users_that_is_no_config_is_told(content, sat, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/own.yaml").write_bytes(content)
    line = one_line(sat(f"--config-dir={tmp_path / 'mine'}", "experiment=own", "seed=-1"))
    assert re.search(BROKEN[content], line), line


@pytest.mark.parametrize("name", ["dataset/digits.yaml", "schedule/decay/cosine.yaml"])
def test_a_file_of_the_users_that_would_not_be_read_is_told(name, sat, tmp_path):
    """Of two options of one name Hydra takes ours, without a word. A `config.yaml` is no option: a
    run and the folder of another program have one."""
    (own := tmp_path / "mine" / name).parent.mkdir(parents=True)
    own.write_text("limit: 100\n")
    (tmp_path / "mine/config.yaml").write_text("limit: 100\n")
    words = [f"--config-dir={tmp_path / 'mine'}", "seed=-1"]
    assert f"{own}: has the name of a file of this program" in one_line(sat(*words))
    own.write_bytes((CONF / name).read_bytes())  # a copy, as somebody begins with
    assert "seed=-1" in one_line(sat(*words))


def test_a_second_folder_of_options_is_told(sat, tmp_path):
    words = [f"--config-dir={tmp_path}", "--config-dir", str(tmp_path), "seed=-1"]
    assert "--config-dir: is there more than once" in one_line(sat(*words))


@pytest.mark.parametrize("key", ["record.root", "dataset.name", "model.weights", "evaluate"])
def test_a_name_that_is_no_utf8_is_told(key, sat):
    line = one_line(sat(f"{key}=caf\udce9"))
    assert line.startswith(f"! {key}=caf") and "is no UTF-8, as config.yaml is" in line


HYDRAS = {
    **dict.fromkeys(
        ["hydra.run.dir=/proc/x", "hydra.job.chdir=true", "++hydra.job.chdir=true",
         "~hydra.run.dir", " hydra.job.chdir=true", "hydra.output_subdir=x",
         "hydra.sweep.subdir=..", "hydra.run={dir:x}", "hydra.sweep={dir:x}"],
        "results lie where record.root says"),
    **dict.fromkeys(
        ["hydra.job.env_copy=[X]", "+hydra.job.env_set.HOME=/x", "hydra={}", "hydra.callbacks={}",
         "hydra/job_logging=disabled", "hydra.launcher=null", "hydra.sweeper=null",
         "hydra.runtime.cwd=/", "hydra.searchpath=[file:///x]", "hydra.verbose=true"],
        "is Hydra's own"),
    "hydra.sweeper.params={seed:'1,2'}": "is written as a sweep: -m seed=0,1,2",
    "+hydra.sweeper.params.seed=5": "is written as a sweep",
    "objective=${oc.create:[1]}": "is a group; write the name of one of its options",
    "+experiment=${oc.env:HOME}": "is a group; write the name of one of its options",
    "activation=[relu,silu]": "a run has one option of activation; .* -m activation=relu,silu",
    "+attack@evaluation.attacks.a=[pgd],fgsm": "one option of attack; .*attacks.a=pgd,fgsm",
    "~recipe=[]": "one option of recipe",
    "--seed=1": "no such option; a key has no dashes: seed=1",
    "-x": "-x: no such option", "--cfg": "invalid choice: 'seed=0'",
}  # fmt: skip


@pytest.mark.parametrize("word", HYDRAS)
def test_words_for_hydra_are_refused_before_it_acts(word, sat, tmp_path, monkeypatch):
    """Its own keys that move, delete or silence what is ours; options that it has not."""
    monkeypatch.chdir(tmp_path)
    line = one_line(sat("-m", word, "seed=0"))
    assert HYDRAS[word] in line or re.search(HYDRAS[word], line), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, told", [
    (["dataset.path=my", "data/f.npz"], "data/f.npz: has no =; quote a path with spaces whole"),
    (["-m", "activation=relu,", "silu"], "no space after a comma: activation=relu,silu"),
    (["objective=trades", "beta=6"], "beta: no such key; it is objective.beta"),
    (["dataset=npz", "dataset.root=F"], "dataset.root: no such key; it is dataset.path"),
    (["schedule/decay=step", "schedule.decay=cosine"], "schedule/decay: is schedule.decay by an"),
    (["--config-dir", "nope"], "--config-dir: nope: no such folder"),
])  # fmt: skip
def test_a_slip_of_the_command_line_is_told(words, told, sat):
    line = one_line(sat(*words, tiny=False))
    assert line.removeprefix("! ").startswith(told) or line.endswith(told)


@pytest.mark.parametrize("words, told", [
    (["seed=${nothing}"], "seed: follows nothing, which is not there"),
    (["evaluate=${nothing}"], "evaluate: follows nothing, which is not there"),
    (["-m", "seed=${nothing}"], "seed: follows nothing, which is not there"),
    (["record.root=${oc.env:NOT_SET}"], "root: Environment variable 'NOT_SET' not found; set"),
    (["seed=${seed}"], "seed: Recursive interpolation"),
    (["-m", "seed=3", "schedule.epochs=${seed}", "attack.eps=-1"], "attack.eps=-1"),
])  # fmt: skip
def test_words_are_followed_as_the_runs_config_and_not_as_hydras(words, told, sat):
    """Where the words of a command line are kept as text, what stands in them is none of a text."""
    assert told in one_line(sat(*words))


def test_logging_that_a_file_disables_tells_what_is_refused(sat, tmp_path):
    text = yaml.safe_dump({"defaults": [{"override /hydra/job_logging": "disabled"}]})
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/silent.yaml").write_text("# @package _global_\n" + text)
    words = [f"--config-dir={tmp_path / 'mine'}", "experiment=silent", "seed=-1"]
    assert "seed=-1" in one_line(sat(*words))


# few open files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("limits, ends", [((24, 24), True), ((24, 4096), False), ((-1, -1), False),
                                          ((24, -1), False), ((1024, 1024), False)])  # fmt: skip
def test_few_open_files_are_told_before_processes_read(limits, ends, monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, given: asked.append(given))
    if ends:
        with pytest.raises(Fault, match="dataset.workers=2: may need 96 open files.* may have 24"):
            ImageFolder(workers=2).reading(torch.device("cpu"))
    else:
        ImageFolder(workers=2).reading(torch.device("cpu"))
    assert asked == ([(96, limits[1])] if limits[0] == 24 and not ends else [])
    ImageFolder(workers=0).reading(torch.device("cpu"))


class Exhausting:
    """A source whose worker process may have no more open files after its first image."""

    sequential = False

    def open(self, number):
        limit = len(os.listdir("/proc/self/fd")) - 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        return Image.new("RGB", (8, 8)), 0

    def describe(self, number):
        return str(number)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_worker_that_can_not_hand_over_an_image_ends(watched_workers, soon, capfd):
    """Neither a hang nor a traceback without end."""
    reading = Reading(ResizedCrop(8), torch.device("cpu"), 1, False)
    split = StreamSplit(Exhausting(), torch.arange(8), torch.zeros(8), reading)
    with pytest.raises(Fault):
        list(split.stream([Batch(torch.arange(4), None), Batch(torch.arange(4, 8), None)]))
    assert capfd.readouterr().err == ""


def test_a_launcher_that_finds_no_more_open_files_is_one_line(sat, monkeypatch):
    def app():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("sat.run.app", app)
    done = sat("-m", "seed=0,1")
    assert (done.code, done.err) == (1, "! [Errno 24] Too many open files\n")


# systems that are not supported -----------------------------------------------------------------


def test_windows_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ImportError, match="^sat runs on Linux and macOS"):
        runpy.run_path(str(ROOT / "sat/__init__.py"))


def test_who_may_do_without_the_package_can_tell_that_its_packages_are_not_there(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="^sat: its packages are not installed .* pip install"):
        runpy.run_path(str(ROOT / "sat/__init__.py"))


@pytest.mark.parametrize("words", [
    ["-m", "sat.run"], ["-m", "sat.report.command", "outputs"], ["scripts/report.py", "outputs"],
    ["-c", "import sys; sys.argv[0] = '/venv/bin/sat-report'; import sat"],
])  # fmt: skip
def test_a_command_whose_packages_are_not_installed_says_so_in_a_line(words):
    """-S: without site-packages."""
    done = subprocess.run([sys.executable, "-S", *words], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, env={"PATH": ""})  # fmt: skip
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("! sat: its packages") and done.stderr.count("\n") == 1


def test_the_gpu_of_a_mac_is_refused_in_a_line(sat):
    assert "device=mps: nobody has tried" in one_line(sat("device=mps"))


# what was kept, and is damaged --------------------------------------------------------------------


def no_arrays(path: Path) -> None:
    path.write_bytes(b"junk")


def other_settings(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    settings = json.loads(str(arrays["settings"]))
    np.savez(path, **{**arrays, "settings": json.dumps({**settings, "steps": 17})})


@pytest.mark.parametrize("harm, name, says", [
    (no_arrays, "last-pgd20.npz", "last-pgd20.npz: is damaged (it holds objects, or is no archive"),
    (other_settings, "best-pgd20.npz", "'pgd20' "),
    (no_arrays, "partial/last-pgd20-1.npz", "partial/last-pgd20-1.npz: "),
])  # fmt: skip
def test_what_was_kept_is_looked_at_before_a_stopped_run_goes_on(harm, name, says, sat, ran):
    """A refusal changes nothing."""
    flags = ran.run / "flags"
    (ran.run / "result.json").unlink()
    if "partial" in name:
        (flags / "partial").mkdir()
    harm(flags / name)
    before = {path: path.read_bytes() for path in ran.run.rglob("*") if path.is_file()}
    assert says in one_line(sat())
    after = {path: path.read_bytes() for path in ran.run.rglob("*") if path.is_file()}
    changed = {p.name for p in before | after if before.get(p) != after.get(p)}
    assert changed <= {"lock", "log.txt"}
