"""The jobs of one sweep, in this process and others: what became of each, who sits where, and who
is told to stop. Its processes share a folder of one small file a job."""

import fcntl
import json
import logging
import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sat.config import CONF, options, plugins, refuse_slips
from sat.config.joint import JOINT, joined, lacking, options_first, plain
from sat.errors import Fault, Refused, on_signals
from sat.loggers.screen import columns, duration, table

log = logging.getLogger("sat")
# Environment variables, so that worker processes inherit them.
FOLDER, NAME = "SAT_SWEEP_DIR", "SAT_SWEEP_NAME"
COUNTS = "SAT_SWEEP_COUNTS"
MOVES = "results lie where record.root says, and Hydra makes no folder; write record.root=DIR"
# What a command line may say of Hydra's own: how a sweep is run.
HYDRAS = "hydra/launcher= hydra.launcher. hydra/sweeper hydra.sweeper. hydra.mode=".split()
RUNNING = "did not end"
PUT_OFF = "was put off"
SAVING = 60.0  # seconds that worker processes have to save themselves when the sweep is stopped


def _folder() -> Path:
    return Path(os.environ[FOLDER])


def note(job: dict[str, Any]) -> None:
    """Writes down where a job stands; a file each, so that machines do not mix their lines. Raises
    Fault where that can't be written."""
    path = _folder() / f"job-{job['job']}.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps({**job, "worker": os.getpid() if is_worker() else None}))
        os.replace(temporary, path)
    except FileNotFoundError:
        if not is_worker():  # else the command line is gone, and waits no more, or tells of it
            refuse_lost_folder()
    except OSError as error:
        raise Fault(
            f"TMPDIR: {_folder()} can't be written ({error.strerror}); the same command goes on"
        ) from error


def refuse_lost_folder() -> None:
    """Raises Fault where somebody has deleted what the jobs of this command line noted."""
    if not _folder().is_dir():
        raise Fault(
            f"TMPDIR: {_folder()} is gone, with what became of each job; the same command goes on"
        )


def jobs() -> list[dict[str, Any]]:
    """The jobs that were noted, in their order in the sweep."""
    noted = [json.loads(path.read_text()) for path in _folder().glob("job-*.json")]
    return sorted(noted, key=lambda job: job["job"])


def has_ended(job: dict[str, Any]) -> bool:
    """Whether no pass need come back to it; a job that was stopped, say, is to go on."""
    return job["code"] in (0, 1, 2) and job["message"] not in (RUNNING, PUT_OFF)


def is_worker() -> bool:
    """Whether this process runs jobs beside others, of which all share one screen."""
    return multiprocessing.current_process().name != "MainProcess"


@cache
def follow_the_command_line() -> None:
    """Ends this worker process when its command line is gone, after a checkpoint of the job at
    hand: idle, it may wait for ever for a job that nobody can send."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        _alone.set()
        os.kill(os.getpid(), signal.SIGTERM)
        _working.acquire(timeout=SAVING)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


_working, _alone = threading.Lock(), threading.Event()  # a job is at hand; the command line is gone


@contextmanager
def at_work() -> Iterator[None]:
    """For the time of a job. One that had been sent before the command line went is not begun: the
    next sweep would wait for it."""
    if _alone.is_set():
        os._exit(128 + signal.SIGTERM)
    with _working:
        yield


def refuse_overrides(words: Sequence[str]) -> None:
    """Raises Refused for words of a command line that Hydra would take, and lose results by."""
    refuse_slips(words)
    for word in words:
        key, _, value = word.partition("=")
        key = key.strip(" \t+~'\"")
        if key in options() and re.search(r"\$\{[\w.]+:", value):
            raise Refused(f"{word}: is a group; write the name of one of its options")
        if re.split("[./@]", key)[0] != "hydra":
            continue
        if key == "hydra.sweeper.params" or key.startswith("hydra.sweeper.params."):
            raise Refused(f"{key}: is written as a sweep: -m seed=0,1,2")
        if key == "hydra.mode" and value != "RUN":
            raise Refused(f"{word}: a sweep is asked for with -m")
        if not f"{key}=".startswith(tuple(HYDRAS)):
            moves = re.match(r"hydra\.(job\.chdir|run|sweep|output_subdir)\b", key)
            own = "is Hydra's own; of its keys hydra/launcher, hydra.launcher.*, hydra/sweeper,"
            own += " hydra.sweeper.* and hydra.mode are taken"
            raise Refused(f"{key}: {MOVES if moves else own}")


def words_of(own: Any) -> list[str]:
    """The words of a command line or a job by Hydra's own config, as they were typed: `${...}` in
    them is for the run's config to follow."""
    return list(OmegaConf.to_container(own.overrides.task, resolve=False))


def counts_of(own: Any) -> dict[str, int]:
    """How many values a sweep gives each key, by Hydra's own config; none where a search decides
    it."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not own.sweeper._target_.endswith(".BasicSweeper"):
        return {}
    swept = OmegaConf.to_container(own.sweeper, resolve=False).get("params") or {}
    words = [f"{key}={values}" for key, values in swept.items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    counts = {}  # the command line wins over an experiment, key by key
    for word in parser.parse_overrides([*words, *words_of(own)]):
        discrete = word.is_sweep_override() and word.is_discrete_sweep()
        counts[word.get_key_element()] = len([*word.sweep_string_iterator()]) if discrete else 1
    return counts


def _counts() -> dict[str, int]:
    return json.loads(os.environ.get(COUNTS, "{}"))


def varying(number: int, overrides: Sequence[str]) -> str:
    """The words of a job that its sweep varies; of the first job, and in a search, all."""
    keys = {key.lstrip("+") for key, count in _counts().items() if count > 1}
    own = [word for word in overrides if word.partition("=")[0].lstrip("+") in keys]
    return " ".join(own if number > 1 and own else overrides)


def place(number: int) -> str:
    """`job 3 of 8, 1m40s left`: by the pace of the jobs that this sweep has trained."""
    counts, known = _counts(), jobs()
    if not counts:
        return f"job {number}"
    total = math.prod(counts.values())
    ended = [job for job in known if has_ended(job)]
    trained = [job for job in ended if not job.get("known")]
    left = ""
    if trained:
        passed = time.time() - min(job["began"] for job in trained)
        left = f", {duration(passed / len(trained) * (total - len(ended)))} left"
    return f"job {number} of {total}{left}"


# before a job -------------------------------------------------------------------------------------


def before(number: int) -> dict[str, Any] | None:
    """What is known of a job from an earlier pass over the sweep. Raises SystemExit where the
    sweep is being stopped."""
    known = jobs()
    if codes := [job["code"] for job in known if job["worker"] and job["code"] > 128]:
        raise SystemExit(codes[0])
    return next((job for job in known if job["job"] == number), None)


def duplicate_job(number: int, name: str) -> int | None:
    """An earlier job of this sweep that is the same run."""
    return next((job["job"] for job in jobs() if job.get("name") == name and job["job"] != number),
                None)  # fmt: skip


@cache
def seat() -> int:
    """The place of this process among those of the sweep, from 0 on, for as long as it lives.

    Places are taken by locks: that of a process that was killed is free again.
    """
    for number in count():
        try:
            file = os.open(_folder() / f"seat-{number}", os.O_CREAT | os.O_WRONLY)  # stays open
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        except (OSError, KeyError):  # no locks there, as on some clusters; no sweep
            return 0
        else:
            return number
    raise AssertionError


# the whole sweep ----------------------------------------------------------------------------------


def run(app: Callable[[], Any]) -> None:
    """Passes over the sweep until no job is left: those that another command line was running were
    put off, and those that a dead worker process has torn down go on.

    Raises Fault when no job ended since a worker process died, and when nobody knows what became of
    the jobs.
    """
    ended = -1
    while True:
        try:
            app()
        except BrokenProcessPool:
            left = ended
            if (ended := sum(map(has_ended, jobs()))) <= left:
                raise Fault(f"{KILLED}, twice without a job's end between") from None
            log.warning("%s; going on with the jobs that did not end", KILLED)
        else:
            refuse_lost_folder()
            if not any(job["message"] == PUT_OFF for job in jobs()):
                return


KILLED = "a process of the sweep was killed (was the memory full?), and took the others with it"


@contextmanager
def stopping() -> Iterator[None]:
    """A signal to the command line stops its worker processes, too: each saves its run first."""
    told: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if not told:
            told.append(number)
            _stop_workers(number)
        sys.exit(128 + number)

    found = on_signals(stop)
    try:
        yield
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)


def _stop_workers(number: int) -> None:
    """Returns when each has saved its run, is dead, or has had its time."""
    deadline = time.monotonic() + SAVING
    for worker in (running := _workers()):
        with suppress(ProcessLookupError):
            os.kill(worker, number)
    if running:
        log.warning("stopping %d jobs with a checkpoint; again: at once, without", len(running))
    while _workers() and time.monotonic() < deadline:
        time.sleep(0.1)


def _workers() -> list[int]:
    """The living processes that run a job beside the command line."""
    found = [job["worker"] for job in jobs() if job["worker"] and job["message"] == RUNNING]
    return [worker for worker in found if is_alive(worker)]


def is_alive(process: int) -> bool:
    """Whether a process of this machine has not ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def exit_code(done: Sequence[dict[str, Any]]) -> int:
    """1 if any job had a fault or did not end, else 2 if any was refused, else 0."""
    codes = {job["code"] for job in done}
    return 1 if codes - {0, 2} else max(codes, default=0)


def report() -> None:
    """The sweep's table on the screen, where there was a sweep."""
    done = jobs()
    if len(done) > 1:
        log.info("\n%s", summary(done))


def summary(done: Sequence[dict[str, Any]]) -> str:
    """A row a job, told by what it does not share with all; below, why those failed that did."""
    shared = set.intersection(*(set(job["overrides"]) for job in done))
    own = {job["job"]: [word for word in job["overrides"] if word not in shared] for job in done}
    short = shortened([word for words in own.values() for word in words])
    told = {n: " ".join(short[word] for word in words) or "(as the others)"
            for n, words in own.items()}  # fmt: skip
    first = {job.get("name"): job for job in reversed(done)}
    rows = []
    for job in done:
        numbers = [job.get(key, "-") for key in ("clean", "robust", "alarms")]
        other = first[job.get("name")]
        remark = "".join(f" (baseline: no {key})" for key in job.get("lacks", ()))
        alike = all(job.get(key, "-") == other.get(key, "-") for key in ("robust", "attack"))
        if job.get("name") and other is not job and alike:
            numbers, remark = ["", "", ""], f" (the same run as job {other['job']})"
        rows.append([str(job["job"]), *numbers, told[job["job"]] + remark])
    attacks = {job["attack"] for job in done if job.get("attack")}
    robust = f"{attacks.pop()} %" if len(attacks) == 1 else "robust %"
    lines = beside(["job", "best: clean %", robust, "alarms"], "differs in", rows)
    below = one_network(done)
    below += [
        f"! job {job['job']} ({told[job['job']]}): {job['message']}" for job in done if job["code"]
    ]
    return "\n".join([*lines, *([""] if below else []), *below])


def shortened(words: Sequence[str]) -> dict[str, str]:
    """Words without the group of their key, where no other key ends alike: `alpha=2`."""
    keys = {word.partition("=")[0] for word in words}
    ends = Counter(key.rpartition(".")[2] for key in keys)
    plain = [key for key in keys if re.fullmatch(r"\w+(\.\w+)+", key)]
    cut = {key: key.rpartition(".")[0] + "." for key in plain if ends[key.rpartition(".")[2]] == 1}
    return {word: word.removeprefix(cut.get(word.partition("=")[0], "")) for word in words}


def beside(head: list[str], last: str, rows: list[list[str]]) -> list[str]:
    """The lines of a table with a last column to the left, which on a terminal is as wide as it
    is: what does not fit goes on below."""
    lines = table(head, [row[:-1] for row in rows]).splitlines()
    room = (columns() or 999) - len(lines[1]) - 2
    told = [textwrap.wrap(row[-1], max(room, 20)) for row in rows]
    rule = "-" * max(map(len, [last, *chain(*told)]))
    width = max(map(len, lines))
    return [
        f"{line:{width}}  {text}".rstrip()
        for line, texts in zip(lines, [[last], [rule], *told], strict=True)
        for line, text in zip([line, *[""] * len(texts)], texts, strict=False)
    ]


def one_network(done: Sequence[dict[str, Any]]) -> list[str]:
    """A line for jobs whose runs have two names and one function in the network."""
    lines, first = [], {job.get("name"): job for job in reversed(done)}
    for network in dict.fromkeys(job.get("network") for job in done if job.get("network")):
        same = [job["job"] for job in first.values() if job.get("network") == network]
        if len(same) > 1:
            jobs = " and ".join(map(str, sorted(same)))
            lines.append(f"jobs {jobs} are one network: ELU and CELU at alpha 1 are one function")
    return lines


# without running --------------------------------------------------------------------------------


def each_job(words: Sequence[str], look: Callable[[Any, dict[str, str], list[str]], None]) -> None:
    """Composes the jobs of a command line as the program would and calls `look(cfg, choices,
    overrides)` with each, in this process, whatever launcher would run them; leaves nothing behind.

    Raises Refused, in one line, for what does not compose.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from sat.config import one_line

    words = options_first(words)
    after = zip(["", *words], words, strict=False)
    refuse_overrides([w for before, w in after if w[:1] != "-" and before != "--config-dir"])

    def job(cfg: Any) -> None:
        at = HydraConfig.get()
        chosen = at.runtime.choices.items()
        choices = {k: v for k, v in chosen if "/" not in k and "@" not in k}
        look(cfg, choices, plain(words_of(at), [*lacking(choices)]))

    words, keys = joined(words)
    words = [w for w in words if not w.startswith(("hydra/launcher=", "hydra.launcher."))]
    changed = ("HYDRA_FULL_ERROR", FOLDER, JOINT, plugins.TYPED)
    own = Singleton._instances  # the caller may be a program of Hydra's itself
    around = {cls: own.pop(cls) for cls in (GlobalHydra, HydraConfig) if cls in own}
    argv, before = sys.argv, {k: os.environ.get(k) for k in changed}
    with tempfile.TemporaryDirectory(prefix="sat-") as folder:  # for Hydra's multirun.yaml
        os.environ |= {"HYDRA_FULL_ERROR": "1", FOLDER: folder, JOINT: ",".join(keys)}
        os.environ[plugins.TYPED] = plugins.typed(words)
        sys.argv = [argv[0], *words, "hydra/launcher=basic"]
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
        except (HydraException, OmegaConfBaseException) as error:
            raise Refused(one_line(error)) from error
        finally:
            sys.argv = argv
            for cls in (GlobalHydra, HydraConfig):
                own.pop(cls, None)
            own.update(around)
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})
