"""The single entrypoint: `python -m sat.run [key=value ...]`, or `-m` for a sweep."""

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sat import config, sweep
from sat.config import CONF, Spec
from sat.errors import SIGNALS, Busy, Diverged, Fault, Lost, Refused, Stopped, refusing
from sat.launch import end, local_rank, processes
from sat.loggers import screen

log = logging.getLogger("sat")


def execute(spec: Spec, overrides: list[str], wait: bool = True) -> dict[str, Any]:
    """One run, from a checked config to the headline of its result; what was done before is not
    done again.

    Waits for another process that runs it, or raises Busy.
    """
    from sat import distributed
    from sat.acceleration.device import find_device, settle_on
    from sat.evaluation import results
    from sat.loggers import About, Loggers
    from sat.rundir import record
    from sat.rundir.result import RunResult

    with refusing("device"):
        seat = local_rank() if processes()[1] > 1 else sweep.seat()
        device = find_device(spec.device, seat)
    settle_on(device)
    with distributed.join(device) as world:
        one_run(world.gather(spec.name))
        if (done := world.on_rank0(lambda: results.finished(spec))) is not None:
            if world.first:
                record.enter(Path(spec.record.root) / spec.name, spec.experiment)
            return results.headline(done, spec.evaluation)
        with world.raise_together():
            data, model = set_up(spec, device, world)
        claim = record.claim if world.first else record.stand_by
        with claim(spec.record, spec.name, spec.yaml(), wait) as run:
            if world.first:
                record.enter(run.directory, spec.experiment)
            about = About(run.directory, spec.name, spec.hash, spec.experiment)
            with closing(Loggers(spec.logger, about, world.first)) as loggers:
                run.track(loggers)
                result = world.on_rank0(lambda: results.usable(run.result(), run.directory))
                if result is None:
                    obtain = train if spec.evaluate is None else taken_over
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


def set_up(spec: Spec, device: Any, world: Any) -> tuple[Any, Any]:
    """The images and the network, with everything that would refuse them later."""
    from sat.acceleration.recomputation import recompute
    from sat.data import first_images
    from sat.models import weights
    from sat.objectives import training_attack
    from sat.training import preflight
    from sat.training.optimizer import build_optimizer

    attack = spec.attack
    if spec.evaluate is None:
        preflight.check_objective(attack, spec.objective)
        attack = training_attack(attack, spec.objective)
        on_gpu = device.type == "cuda"
        preflight.check_processes(spec.schedule, spec.attack, spec.dataset, on_gpu, world.size)
    with refusing("dataset."), world.in_turn():
        data = spec.dataset(device, spec.seed)
    with refusing("model."):
        model = weights.build_model(spec, weights.shape_of(data), device)
    if spec.evaluate is not None:
        weights.load_evaluated(model, spec, data.image_size)
    with refusing("schedule."):
        build_optimizer(model, spec.schedule)
        if spec.schedule.grad_checkpointing:
            recompute(model)
    begun = (Path(spec.record.root) / spec.name / "checkpoints").exists()
    if world.first and not begun:
        preflight.preflight(model, attack, *first_images(data.train, 32))
        measured = {"validation": spec.validation.attack, **spec.evaluation.attacks}
        preflight.warn_of_threat_models(spec.attack, measured)
    return data, model


def taken_over(spec: Spec, run: Any, model: Any, data: Any, world: Any) -> dict[str, Any]:
    """A run of no steps, whose checkpoint holds the weights of a file."""
    from sat.data.fingerprint import same_facts
    from sat.rundir import checkpoint
    from sat.training.callbacks import Callbacks
    from sat.training.resume import facts_in

    callbacks, last = Callbacks(spec, run, data, world), run.checkpoints / "last.pt"
    if world.first and (before := facts_in(last)) is not None:  # of a measurement that was killed
        same_facts(before, callbacks.facts)
    state = {"step": 0, "model": model.state_dict(), "facts": callbacks.facts}
    if world.first:
        checkpoint.save(last, state)
    run.rewind({})
    return callbacks.untrained(model)


def train(spec: Spec, run: Any, model: Any, data: Any, world: Any) -> dict[str, Any]:
    """Trains from the last checkpoint, or from the start, to the end of the schedule."""
    import torch

    from sat.data import epoch_batches
    from sat.distributed import shared
    from sat.objectives import training_attack
    from sat.rundir.result import RunResult
    from sat.training.callbacks import Callbacks
    from sat.training.loop import fit
    from sat.training.state import TrainState
    from sat.training.summary import summary

    callbacks = Callbacks(spec, run, data, world)
    kept = last_checkpoint(spec, run, model, callbacks.facts, world)
    plan = plan_of(spec, model, data, kept, world)
    model = shared(model, spec.schedule.sync_batch_norm, spec.attack, world)
    attack = training_attack(spec.attack, spec.objective)
    state = TrainState(model, attack, spec.objective, plan, world, spec.metrics)
    callbacks.resume(state, kept)
    rows = torch.cat(state.rows).cpu()

    def stream(step: int) -> Any:
        size = plan.schedule.batch_size
        batches = epoch_batches(plan.images, size, spec.seed, step, plan.steps, spec.sampler)
        return data.train.stream(batch.part(rows) for batch in batches)

    text = summary(spec.config, callbacks.facts, state)
    log.info("%s\n%s", run.directory, text)
    try:
        with callbacks.open(state, text, stream):
            fit(state, stream, callbacks)
    except Diverged as error:
        failed = callbacks.result(state, status="failed", error=str(error))
        run.write_result(RunResult.from_json(failed))
        raise
    return callbacks.result(state, status="trained")


def last_checkpoint(spec: Spec, run: Any, model: Any, facts: Any, world: Any) -> Any:
    """Where this training stood when it was stopped; None where it has not begun."""
    from sat.rundir.checkpoint import newest
    from sat.training.resume import check_state

    check = lambda state: check_state(state, facts, model, spec.schedule)  # noqa: E731
    return world.on_rank0(lambda: newest(run.checkpoints, check))


def plan_of(spec: Spec, model: Any, data: Any, kept: Any, world: Any) -> Any:
    """How the training unfolds, with what `auto` stands for: as its checkpoint has it, or chosen
    now; of which this process takes on what holds for all of it."""
    import torch

    from sat.acceleration.auto import THREADS, choose, depthwise, multiply_adds
    from sat.acceleration.compilation import forget
    from sat.acceleration.precision import set_tf32
    from sat.training.plan import Plan

    schedule, device, images = spec.schedule, next(model.parameters()).device, len(data.train)
    cost = multiply_adds(model, (data.channels, data.image_size, data.image_size))
    new = lambda: choose(schedule, device, images, cost, depthwise(model))  # noqa: E731
    choices = world.on_rank0(lambda: kept["choices"] if kept else new())
    if kept and len(kept["generators"]) != world.size:
        choices = {**choices, "threads": THREADS}  # these have another share of the cores
    torch.set_num_threads(choices["threads"])
    set_tf32(choices["tf32"])
    if choices["compile"]:
        forget()
    return Plan(schedule, images, spec.seed, choices, spec.validation.every, cost)


def without_fresh(spec: Spec) -> str:
    """For a run that was stopped: record.fresh=true would begin it anew once more."""
    return " (without record.fresh=true)" if spec.record.fresh else ""


def choices_of(at: Any) -> dict[str, str]:
    """The option of each group of a run, by Hydra's account."""
    groups = {*config.SECTIONS, "experiment"}
    return {group: option for group, option in at.runtime.choices.items() if group in groups}


def one_experiment(at: Any, sweeping: bool) -> None:
    """Warns of an experiment without -m. Raises Refused for a list of experiments, of which Hydra
    would run one job each."""
    if not at.sweeper.params:
        return
    name = at.runtime.choices["experiment"]
    if not sweeping:
        log.warning("experiment=%s: this is one run of it; -m runs them all", name)
    elif not {*at.sweeper.params} <= {override.split("=", 1)[0] for override in at.overrides.task}:
        raise Refused(f"experiment={name}: is one of several; name one experiment a command line")


def spec_of(cfg: DictConfig, at: Any, sweeping: bool) -> Spec:
    """The checked run that a job asks for, or whose results it asks to extend."""
    one_experiment(at, sweeping)
    choices = choices_of(at)
    if cfg.evaluate is None:
        return config.check({**config.resolve(cfg), "choices": choices})
    from sat.evaluation.reevaluate import reevaluated

    return reevaluated(cfg, choices, list(at.overrides.task))


def attempt(cfg: DictConfig) -> dict[str, Any]:
    """A job: what became of it goes to the screen and to the ledger of the sweep."""
    at = HydraConfig.get()
    sweeping = at.mode == RunMode.MULTIRUN
    number, overrides = at.job.num if sweeping else 0, list(at.overrides.task)
    before = sweep.before(number)
    if before is not None and sweep.has_ended(before):
        return before
    outcome: dict[str, Any] = {"job": number, "overrides": overrides, "code": 1, "message": sweep.RUNNING}
    sweep.note(outcome)
    try:
        if sweeping:
            screen.label(f"job {number}" if sweep.is_worker() else "")
            log.info("\njob %d: %s", number, " ".join(overrides))
        spec = spec_of(cfg, at, sweeping)
        if (twin := sweep.twin(number, spec.name)) is not None:
            log.warning("job %d is the same run as job %d: %s", number, twin, spec.name)
            spec = spec.asked_again()
        if before is not None and before["message"] != sweep.PUT_OFF:  # killed, or requeued
            spec = spec.asked_again()
        sweep.note(outcome := {**outcome, "name": spec.name})
        # A sweep takes what no other command line is at; what is left it waits for.
        wait = not sweeping or before is not None and before["message"] == sweep.PUT_OFF
        outcome |= {"code": 0, "message": "", **execute(spec, overrides, wait)}
    except Busy as error:
        outcome |= {"code": 0, "message": sweep.PUT_OFF}
        log.info("%s; put off to the end of the sweep", error)
    except Refused as error:
        outcome |= {"code": 2, "message": str(error)}
        screen.tell_once("%s", error)
    except Stopped as error:
        sweep.note({**outcome, "code": error.code, "message": str(error)})
        screen.tell_once("%s; the same command goes on from here%s", error, without_fresh(spec))
        if callable(asked := signal.getsignal(error.number)):
            asked(error.number, None)  # a cluster's launcher requeues the job
        raise SystemExit(error.code) from None  # ends a whole sweep
    except (KeyboardInterrupt, SystemExit) as error:
        sweep.note({**outcome, "code": getattr(error, "code", 130), "message": "stopped"})
        log.error("stopped; the same command goes on from here")
        raise
    except Diverged as error:
        outcome["message"] = str(error)
        screen.tell_once("%s", error)
    except Lost as error:
        outcome["message"] = str(error)
        screen.tell_once("%s", error, also=1)  # the first may be the one that is gone
    except (Fault, OSError) as error:
        outcome["message"] = str(error)
        log.error("%s", error)
    except Exception as error:
        outcome["message"] = f"{type(error).__name__}: {error}"
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = outcome["message"].splitlines()[0]
            log.error("compilation failed (%s); schedule.compile=false does without it", reason)
        else:
            log.exception("%s", outcome["message"])
    sweep.note(outcome)
    return outcome


class Meeting(Callback):
    """Has the jobs of a cluster's queue meet where all of its machines can see them: beside the
    files of their launcher. There is none of several processes of one run."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if processes()[1] > 1:
            screen.tell_once("-m: is no sweep under torchrun; start torchrun once for each run")
            raise SystemExit(2)  # of a callback Hydra would make a warning of any other
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


def refuse_pickles(words: list[str]) -> None:
    """Hydra would unpickle the file that `--experimental-rerun` names, shortened or not."""
    for option in (word.split("=", 1)[0] for word in words):
        if option.startswith("--e") and "--experimental-rerun".startswith(option):
            raise Refused(
                f"{option}: would unpickle a file, which can run any code; write the overrides of"
                " that run instead (they are in its result.json)"
            )


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(cfg: DictConfig) -> float | None:
    screen.set_up()
    if sweep.is_worker():  # a process that begins here
        for number in SIGNALS:
            signal.signal(number, leave)
        sweep.follow_the_command_line()
    return attempt(cfg).get("score")


def leave(number: int, frame: Any) -> None:
    """Answers a signal that finds no training: files on disk are whole at any moment."""
    sys.exit(128 + number)


def main() -> None:
    """Runs what the command line asks for. Exit codes: 0 done, 1 fault, 2 refused, 130, 143."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises, and the line is ours
    os.environ[sweep.FOLDER] = folder = tempfile.mkdtemp(prefix=f"sat-{datetime.now():%m%d-%H%M}-")
    os.environ[sweep.NAME] = Path(folder).name
    screen.set_up()
    sys.argv[1:] = options_first(sys.argv[1:])
    code = 1
    try:
        refuse_pickles(sys.argv[1:])
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
        sweep.report()
        shutil.rmtree(folder, ignore_errors=True)
    if code and processes()[0]:
        time.sleep(10)  # torchrun ends all with the first that fails: let that be who tells why
    end(code)


if __name__ == "__main__":
    main()
