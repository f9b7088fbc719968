"""The single entrypoint: `python -m sat.run [key=value ...]`, or `-m` for a sweep."""

import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sat import config, console, sweep
from sat.config import CONF, Spec
from sat.errors import Diverged, Fault, Refused, Stopped, refusing

log = logging.getLogger("sat")


def execute(spec: Spec, overrides: list[str]) -> dict[str, Any]:
    """One run, from a checked config to its result; what was done before is not done again."""
    from sat import hardware, record, results, weights
    from sat.data import first_images
    from sat.diagnostics import preflight, warn_of_threat_models
    from sat.schedule import build_optimizer

    with refusing("device"):
        device = hardware.find_device(spec.device)
    if (done := results.finished(spec)) is not None:
        record.enter(Path(spec.record.root) / spec.name, spec.experiment)
        return done
    with refusing("dataset."):
        data = spec.dataset(device, spec.seed)
    with refusing("model."):
        model = weights.build_model(spec, weights.shape_of(data), device)
    if spec.evaluate is not None:
        weights.load_evaluated(model, spec, data.image_size)
    with refusing("schedule."):
        build_optimizer(model, spec.schedule)
    if not (Path(spec.record.root) / spec.name / "checkpoints").exists():
        preflight(model, spec.attack, *first_images(data.train, 32))
        measured = {"validation": spec.validation.attack, **spec.evaluation.attacks}
        warn_of_threat_models(spec.attack, measured)
    with record.claim(spec.record, spec.name, spec.yaml()) as run:
        record.enter(run.directory, spec.experiment)
        result = results.usable(run.result(), run.directory)
        if result is None:
            obtain = train if spec.evaluate is None else taken_over
            result = {"overrides": overrides, **obtain(spec, run, model, data)}
        return results.conclude(spec, run, model, data, result)


def taken_over(spec: Spec, run: Any, model: Any, data: Any) -> dict[str, Any]:
    """A run of no steps, whose checkpoint holds the weights of a file."""
    from sat import checkpoint
    from sat.journal import Journal, same_facts
    from sat.resume import facts_in

    journal, last = Journal(spec, run, data), run.checkpoints / "last.pt"
    if (before := facts_in(last)) is not None:  # of a measurement that was killed
        same_facts(before, journal.facts)
    state = {"step": 0, "model": model.state_dict(), "facts": journal.facts}
    checkpoint.save(last, state)
    return journal.untrained(model)


def train(spec: Spec, run: Any, model: Any, data: Any) -> dict[str, Any]:
    """Trains from the last checkpoint, or from the start, to the end of the schedule."""
    import torch

    from sat.checkpoint import newest
    from sat.data import epoch_batches
    from sat.hardware import choose, depthwise, multiply_adds
    from sat.introduction import introduction
    from sat.journal import Journal
    from sat.resume import check_state
    from sat.train import Plan, Trainer, fit

    journal = Journal(spec, run, data)
    state = newest(
        run.checkpoints, lambda state: check_state(state, journal.facts, model, spec.schedule)
    )
    device = next(model.parameters()).device
    images = len(data.train)
    cost = multiply_adds(model, (data.channels, data.image_size, data.image_size))
    choices = (
        state["choices"] if state else choose(spec.schedule, device, images, cost, depthwise(model))
    )
    torch.set_num_threads(choices["threads"])
    plan = Plan(spec.schedule, images, spec.seed, choices, spec.validation.every, cost)
    trainer = Trainer(model, spec.attack, spec.objective, plan)
    journal.resume(trainer, state)

    def stream(step: int) -> Any:
        size = spec.schedule.batch_size
        return data.train.stream(epoch_batches(images, size, spec.seed, step, plan.steps))

    text = introduction(spec.config, journal.facts, trainer)
    log.info("%s\n%s", run.directory, text)
    try:
        with journal.open(trainer, text):
            fit(trainer, stream, journal)
    except Diverged as error:
        run.write_result(journal.result(trainer, status="failed", error=str(error)))
        raise
    return journal.result(trainer, status="trained")


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """What a sweep's table shows of a run: the checkpoint that its held-out images chose."""
    from sat.results import measured, percent

    part = next(iter(measured(result).values()), {"clean": None, "robust": {}})
    robust = next(iter(part["robust"].values()), None)
    score = (robust or part["clean"] or {}).get("accuracy")
    return {"clean": percent(part["clean"]), "robust": percent(robust), "score": score}


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


def attempt(cfg: DictConfig) -> dict[str, Any]:
    """A job: what became of it goes to the screen and to the ledger of the sweep."""
    at = HydraConfig.get()
    sweeping = at.mode == RunMode.MULTIRUN
    number, overrides = at.job.num if sweeping else 0, list(at.overrides.task)
    outcome = {"job": number, "overrides": overrides, "code": 1, "message": "did not end"}
    sweep.note(outcome)
    try:
        if sweeping:
            log.info("\njob %d: %s", number, " ".join(overrides))
        one_experiment(at, sweeping)
        choices = choices_of(at)
        if cfg.evaluate is None:
            spec = config.check({**config.resolve(cfg), "choices": choices})
        else:
            from sat.recall import recalled

            spec = recalled(cfg, choices, overrides)
        if (twin := sweep.twin(number, spec.name)) is not None:
            log.warning("job %d is the same run as job %d: %s", number, twin, spec.name)
            spec = spec.asked_again()
        sweep.note(outcome := {**outcome, "name": spec.name})
        outcome |= {"code": 0, "message": "", **headline(execute(spec, overrides))}
    except Refused as error:
        outcome |= {"code": 2, "message": str(error)}
        log.error("%s", error)
    except Stopped as error:
        sweep.note({**outcome, "code": error.code, "message": str(error)})
        log.error("%s; the same command goes on from here%s", error, without_fresh(spec))
        raise SystemExit(error.code) from None  # ends a whole sweep
    except (KeyboardInterrupt, SystemExit):
        log.error("stopped; the same command goes on from here")
        raise
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
    console.set_up()  # a worker process of a sweep begins here
    return attempt(cfg).get("score")


def main() -> None:
    """Runs what the command line asks for. Exit codes: 0 done, 1 fault, 2 refused, 130, 143."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises, and the line is ours
    os.environ[sweep.FOLDER] = folder = tempfile.mkdtemp(prefix="sat-")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console.set_up()
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    code = 1
    try:
        refuse_pickles(sys.argv[1:])
        app()
        code = sweep.exit_code(sweep.jobs())
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # while composing
        log.error("%s", config.one_line(error))
        code = 2
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    finally:
        sweep.report()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
