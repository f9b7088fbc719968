"""The single entrypoint: `python -m sat.run [key=value ...]`, or `-m` for a sweep."""

import filecmp
import gc
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

import sat
from sat import config, job, sweep
from sat.config import CONF, Spec, joint, plugins
from sat.errors import Fault, Refused, on_signals, refusing
from sat.launch import end, local_rank, processes
from sat.loggers import screen, usage

log = logging.getLogger("sat")


def execute(spec: Spec, overrides: list[str], wait: bool = True) -> dict[str, Any]:
    """Does what is not done yet of one run, from a checked config to the headline of its result.

    Waits for another process that runs it, or raises Busy.
    """
    from sat import distributed
    from sat.acceleration.device import find_device, settle_on
    from sat.evaluation import results, telling, todo
    from sat.loggers import About, Loggers
    from sat.rundir import record
    from sat.rundir.result import RunResult
    from sat.training.train import set_up, take_over, train

    screen.stage("looking for the run")
    with refusing("device"):
        seat = local_rank() if processes()[1] > 1 else sweep.seat()
        device = find_device(spec.device, seat)
    settle_on(device)
    with distributed.join(device) as world:
        one_run(world.gather(spec.name))
        if (done := world.on_rank0(lambda: results.finished(spec))) is not None:
            if world.first:
                record.enter(Path(spec.record.root) / spec.name, spec.experiment)
            return {**telling.headline(done, spec.evaluation), "known": True}
        with world.raise_together():
            data, model = set_up(spec, device, world)
        claim = record.claim if world.first else record.stand_by
        with claim(spec.record, spec.name, spec.yaml(), wait) as run:
            if world.first:
                record.enter(run.directory, spec.experiment)
            # who held the lock may have done it all: nothing is told twice
            if (done := world.on_rank0(lambda: results.finished(spec))) is not None:
                return {**telling.headline(done, spec.evaluation), "known": True}
            about = About(run.directory, spec.name, spec.hash, spec.experiment)
            with Loggers(spec.logger, about, world.first) as loggers:
                run.track(loggers)
                result = world.on_rank0(lambda: results.usable(run.result(), run.directory))
                if result is None:
                    world.on_rank0(lambda: todo.check_flags(spec.evaluation, run.flags))
                    obtain = train if spec.evaluate is None else take_over
                    told = {"overrides": overrides, **obtain(spec, run, model, data, world)}
                    result = RunResult.from_json(told)
                result = results.conclude(spec, run, model, data, result, world)
                return telling.headline(result, spec.evaluation)


def one_run(names: list[str]) -> None:
    """Raises Refused where the processes of a run read other images or weights than the first."""
    for rank, name in enumerate(names):
        if name != names[0]:
            raise Refused(
                f"dataset: process {rank} finds other images or weights ({name}) than the first"
                f" one ({names[0]}); give every machine the same files"
            )


class Meeting(Callback):
    """Has the jobs of a cluster's queue meet where all of its machines can see them: beside the
    files of their launcher. There is none of several processes of one run."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if processes()[1] > 1:
            screen.tell_once("-m: is no sweep under torchrun; start torchrun once for each run")
            raise SystemExit(2)  # of a callback Hydra would make a warning of any other
        screen.stage("composing the jobs")
        os.environ[sweep.COUNTS] = json.dumps(sweep.counts_of(config.hydra))
        if "submitit_folder" in config.hydra.launcher:
            folder = Path(config.hydra.launcher.submitit_folder).absolute().parent
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[sweep.FOLDER] = str(folder)


def refuse_words(words: list[str]) -> None:
    """Raises Refused for an option that is none, and for what Hydra would do with files: unpickle
    the one that `--experimental-rerun` names, shortened or not, and make or enter folders."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise Refused(
                f"{word}: is no UTF-8, as config.yaml is; give the place another name, or a link"
            ) from None
    parser = get_args_parser()
    parser.error = partial(refuse_option, words)
    given = parser.parse_args([word for word in words if word != "--version"])
    if given.config_dir:
        if sum(re.match(r"(--config-dir|-cd)(=|$)", word) is not None for word in words) > 1:
            raise Refused("--config-dir: is there more than once; Hydra reads one folder")
        if not Path(given.config_dir).is_dir():
            raise Refused(f"--config-dir: {given.config_dir}: no such folder")
        refuse_hidden(Path(given.config_dir))
    if given.experimental_rerun is not None:
        raise Refused(
            "--experimental-rerun: would unpickle a file, which can run any code; write the"
            " overrides of that run instead (they are in its result.json)"
        )
    sweep.refuse_overrides(given.overrides)


def refuse_hidden(folder: Path) -> None:
    """Raises Refused for an option of --config-dir that is not read: Hydra takes ours of its
    name."""
    for ours in sorted(CONF.glob("*/**/*.yaml")):
        path = folder / ours.relative_to(CONF)
        with suppress(OSError):  # what can't be read is told where it is
            if path.is_file() and not filecmp.cmp(path, ours, shallow=False):
                raise Refused(
                    f"--config-dir: {path}: has the name of a file of this program, which is read"
                    " in its place; give yours another name"
                )


def refuse_option(words: list[str], message: str) -> NoReturn:
    """Raises Refused for what argparse has to say of the options among the words."""
    unknown = message.removeprefix("unrecognized arguments: ")
    if unknown == message:
        raise Refused(f"{message}; see --help")
    word = unknown.split(" ")[0]
    flag, _, value = word.partition("=")
    if key := config.meant(flag.lstrip("-").replace("-", "_")):
        rest = words[words.index(word) + 1 :] if word in words else []
        value = value or next((other for other in rest[:1] if "=" not in other), "VALUE")
        raise Refused(f"{flag}: no such option; a key has no dashes: {key}={value}")
    raise Refused(f"{flag}: no such option; see --help")


def refuse_moves(own: DictConfig) -> None:
    """Raises Refused where a file of the user's sets what `refuse_words` refuses."""
    if own.job.chdir:
        raise Refused(f"hydra.job.chdir={own.job.chdir}: {sweep.MOVES}")
    if own.output_subdir is not None:
        raise Refused(f"hydra.output_subdir={own.output_subdir}: {sweep.MOVES}")


def place_keys_added(words: list[str]) -> list[str]:
    """The words, with those of a dataset added where its option, which `evaluate=RUN` does not
    take, lacks the key: the run's own dataset has it."""
    if not any(word.startswith("evaluate=") for word in words):
        return words
    return [f"++{word}" if word.startswith("dataset.") else word for word in words]


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(cfg: DictConfig) -> float | None:
    screen.set_up()
    if sweep.is_worker():  # a process that begins here
        on_signals(leave)
        sweep.follow_the_command_line()
    refuse_moves(HydraConfig.get())
    with sweep.at_work():
        return job.attempt(cfg, HydraConfig.get(), execute).get("score")


def leave(number: int, frame: Any) -> None:
    """Answers a signal that finds no training: files on disk are whole at any moment."""
    sys.exit(128 + number)


def answered(words: list[str]) -> bool:
    """Whether a command line asks for the version or the help alone, which it then gets."""
    if "--version" in words:  # Hydra's parser would give its own
        print(f"sat {sat.__version__}")
        return True
    given = get_args_parser().parse_args(words)
    if given.help:
        folders = [Path(given.config_dir).absolute()] if given.config_dir else []
        places = [f"hydra.searchpath=['{folder}']" for folder in folders]
        cfg, choices = config.compose([*given.overrides, *places])
        print(usage.text(OmegaConf.to_container(cfg, resolve=False), choices, [CONF, *folders]))
    return given.help


@contextmanager
def ledger() -> Iterator[None]:
    """The folder in which the jobs of this command line note what became of them, told at the end.
    Raises Refused where there is no place for it, or none to work in."""
    try:
        os.getcwd()
    except OSError:
        lost = "the folder that this command was called in is gone; change to another"
        raise Refused(lost) from None
    try:
        folder = tempfile.mkdtemp(prefix=f"sat-{datetime.now():%m%d-%H%M}-")
    except OSError as error:
        raise Refused(f"TMPDIR: no place for temporary files ({error.strerror})") from None
    os.environ[sweep.FOLDER], os.environ[sweep.NAME] = folder, Path(folder).name
    try:
        yield
    finally:
        screen.stage()
        sweep.report()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Runs what the command line asks for. Exit codes: 0 done, 1 fault, 2 refused, 130, 143."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises, and the line is ours
    gc.set_threshold(10_000)  # the usual 700 look through torch again and again as it is loaded
    screen.set_up()
    screen.forget()
    code = 1
    try:
        with ledger(), sweep.stopping():
            words = joint.options_first(sys.argv[1:])
            refuse_words(words)
            if not answered(words):
                if not {word for word in words if word[:1] == "-"} - {"-m"}:
                    screen.stage("starting")  # and no word of Hydra's own, which prints itself
                sys.argv[1:], keys = joint.joined(place_keys_added(words))
                os.environ[sweep.JOINT] = ",".join(keys)
                os.environ[plugins.TYPED] = plugins.typed(words)
                sweep.run(app)
            code = sweep.exit_code(sweep.jobs())
    except (Fault, RuntimeError, OSError) as error:  # of a launcher
        log.error("%s", config.one_line(error))
        # a file that is not there is an OSError of Hydra's, a value nested too deeply no launcher's
        code = 2 if isinstance(error, RecursionError | HydraException) else 1
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except Exception as error:  # while composing
        if not isinstance(error, ValueError) and not config.is_hydras(error):
            raise
        screen.set_up()
        screen.tell_once("%s", config.one_line(error))
        code = 2
    if code and processes()[0]:
        time.sleep(10)  # torchrun ends all with the first that fails: let that be who tells why
    end(code)


if __name__ == "__main__":
    main()
