"""The single entrypoint: `python -m sat.run [key=value ...]`, or `-m` for a sweep."""

import logging
import os
import shutil
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sat import config, job, sweep
from sat.config import CONF, Spec
from sat.errors import Fault, Refused, on_signals, refusing
from sat.launch import end, local_rank, processes
from sat.loggers import screen

log = logging.getLogger("sat")
HYDRAS_OWN = "hydra.job.chdir hydra.run.dir hydra.sweep.dir hydra.sweep.subdir hydra.output_subdir"
MOVES = "results lie where record.root says, and Hydra makes no folder; write record.root=DIR"


def execute(spec: Spec, overrides: list[str], wait: bool = True) -> dict[str, Any]:
    """Does what is not done yet of one run, from a checked config to the headline of its result.

    Waits for another process that runs it, or raises Busy.
    """
    from sat import distributed
    from sat.acceleration.device import find_device, settle_on
    from sat.evaluation import results
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
            return {**results.headline(done, spec.evaluation), "known": True}
        with world.raise_together():
            data, model = set_up(spec, device, world)
        claim = record.claim if world.first else record.stand_by
        with claim(spec.record, spec.name, spec.yaml(), wait) as run:
            if world.first:
                record.enter(run.directory, spec.experiment)
            about = About(run.directory, spec.name, spec.hash, spec.experiment)
            with Loggers(spec.logger, about, world.first) as loggers:
                run.track(loggers)
                result = world.on_rank0(lambda: results.usable(run.result(), run.directory))
                if result is None:
                    obtain = train if spec.evaluate is None else take_over
                    told = {"overrides": overrides, **obtain(spec, run, model, data, world)}
                    result = RunResult.from_json(told)
                result = results.conclude(spec, run, model, data, result, world)
                return results.headline(result, spec.evaluation)


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
        os.environ[sweep.JOBS] = str(sweep.count_jobs(config.hydra))
        if "submitit_folder" in config.hydra.launcher:
            folder = Path(config.hydra.launcher.submitit_folder).absolute().parent
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[sweep.FOLDER] = str(folder)


def options_first(words: list[str]) -> list[str]:
    """The words with -m and --config-dir at the front: between overrides argparse refuses them."""
    first: list[str] = []
    rest: list[str] = []
    coming = iter(words)
    for word in coming:
        option = word.split("=", 1)[0] in ("-m", "--multirun", "--config-dir")
        (first if option else rest).append(word)
        if word == "--config-dir":
            first += [value for value in [next(coming, None)] if value is not None]
    return first + rest


def refuse_words(words: list[str]) -> None:
    """Raises Refused for what Hydra would do with files: unpickle the one that
    `--experimental-rerun` names, shortened or not, and make or enter folders of its own."""
    for option in (word.split("=", 1)[0].lstrip("+~") for word in words):
        if option.startswith("--e") and "--experimental-rerun".startswith(option):
            raise Refused(
                f"{option}: would unpickle a file, which can run any code; write the overrides of"
                " that run instead (they are in its result.json)"
            )
        if option in HYDRAS_OWN.split():
            raise Refused(f"{option}: {MOVES}")


HYDRAS_FLAGS = (
    "--help --hydra-help --version --cfg --resolve --package --run --multirun --shell-completion"
    " --config-path --config-name --config-dir --experimental-rerun --info"
).split()


def refuse_flags(words: list[str]) -> None:
    """Raises Refused for `--epochs 5`, as most programs have it."""
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or any(known.startswith(flag) for known in HYDRAS_FLAGS):
            continue
        key = config.meant(flag[2:].replace("-", "_")) or "key"
        value = value if equals else "VALUE" if following.startswith("-") else following
        raise Refused(f"{flag}: a key has no dashes before it; write {key}={value}")


def refuse_moves(own: DictConfig) -> None:
    """Raises Refused where a file of the user's sets what `refuse_words` refuses."""
    if own.job.chdir:
        raise Refused(f"hydra.job.chdir={own.job.chdir}: {MOVES}")
    if own.output_subdir is not None:
        raise Refused(f"hydra.output_subdir={own.output_subdir}: {MOVES}")


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
    return job.attempt(cfg, HydraConfig.get(), execute).get("score")


def leave(number: int, frame: Any) -> None:
    """Answers a signal that finds no training: files on disk are whole at any moment."""
    sys.exit(128 + number)


def main() -> None:
    """Runs what the command line asks for. Exit codes: 0 done, 1 fault, 2 refused, 130, 143."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises, and the line is ours
    os.environ[sweep.FOLDER] = folder = tempfile.mkdtemp(prefix=f"sat-{datetime.now():%m%d-%H%M}-")
    os.environ[sweep.NAME] = Path(folder).name
    screen.set_up()
    sys.argv[1:], keys = sweep.joined(place_keys_added(options_first(sys.argv[1:])))
    os.environ[sweep.JOINT] = ",".join(keys)
    code = 1
    try:
        refuse_words(sys.argv[1:])
        refuse_flags(sys.argv[1:])
        if not {word for word in sys.argv[1:] if word[:1] == "-"} - {"-m", "--multirun"}:
            screen.stage("starting")  # and no word of Hydra's own, which prints itself
        with sweep.stopping():
            sweep.run(app)
        code = sweep.exit_code(sweep.jobs())
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # while composing
        screen.tell_once("%s", config.one_line(error))
        code = 2
    except (Fault, RuntimeError) as error:  # of a launcher
        log.error("%s", config.one_line(error))
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    finally:
        screen.stage()
        sweep.report()
        shutil.rmtree(folder, ignore_errors=True)
    if code and processes()[0]:
        time.sleep(10)  # torchrun ends all with the first that fails: let that be who tells why
    end(code)


if __name__ == "__main__":
    main()
