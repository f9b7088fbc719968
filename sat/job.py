"""One job of a command line: from its composed config to what became of it."""

import logging
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sat import config, identity, sweep
from sat.config import Spec, joint, plugins
from sat.errors import Busy, Diverged, Fault, Lost, Refused, Stopped, is_of_the_compiler
from sat.identity import SECTIONS, digest
from sat.loggers import screen

log = logging.getLogger("sat")
GROUPS = {*SECTIONS, "experiment", "recipe"}
Execute = Callable[[Spec, list[str], bool], dict[str, Any]]


def attempt(cfg: Any, at: Any, execute: Execute) -> dict[str, Any]:
    """What became of a job, which goes to the screen and to the ledger of the sweep, too; `at` is
    Hydra's account of it, and `execute` runs it."""
    sweeping = at.mode.name == "MULTIRUN"
    lacks = [*joint.lacking(choices_of(at))]
    number, overrides = at.job.num + 1 if sweeping else 1, joint.plain(sweep.words_of(at), lacks)
    before = sweep.before(number)
    if before is not None and sweep.has_ended(before) and before["overrides"] == overrides:
        return before  # of the same values: a search may have proposed others this time
    told = {"overrides": overrides, "code": 1, "message": sweep.RUNNING}
    outcome: dict[str, Any] = {"job": number, "lacks": lacks, "began": time.time(), **told}
    sweep.note(outcome)
    try:
        if sweeping:
            screen.label(f"job {number}" if sweep.is_worker() else "")
            log.info("\n%s: %s", sweep.place(number), sweep.varying(number, overrides))
        spec = spec_of(cfg, at, sweeping)
        place = str(Path(spec.record.root) / spec.name)
        if (same := sweep.duplicate_job(number, place)) is not None:
            log.warning("job %d is the same run as job %d: %s", number, same, spec.name)
            spec = spec.asked_again()
        if before is not None and before["message"] != sweep.PUT_OFF:  # killed, or requeued
            spec = spec.asked_again()
        sweep.note(outcome := {**outcome, "name": place, "network": network_of(spec)})
        # A sweep takes what no other command line is at; what is left it waits for.
        wait = not sweeping or before is not None and before["message"] == sweep.PUT_OFF
        with plugins.blaming():
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
        tell_of(error)
    sweep.note({**outcome, "seconds": time.time() - outcome["began"]})
    return outcome


def tell_of(error: Exception) -> None:
    """Says what nobody foresaw, with its traceback; what to do where a network could not be
    compiled."""
    if not is_of_the_compiler(error):
        log.exception("%s: %s", type(error).__name__, error)
        return
    from sat.acceleration.compilation import drop_library

    lines = [line for line in str(error).splitlines() if line]
    reason = " ".join([type(error).__name__ + ":", *lines[:2]])[:300]
    remedy = "schedule.compile=false does without it"
    if drop_library(error):
        remedy = "the same command compiles anew"
    log.error("compilation failed (%s); %s", reason, remedy)


@config.followed()
def spec_of(cfg: Any, at: Any, sweeping: bool) -> Spec:
    """The checked run that a job asks for, or whose results it asks to extend."""
    screen.stage("loading torch and what the run is made of")
    one_experiment(at, sweeping)
    choices, overrides = choices_of(at), sweep.words_of(at)
    if cfg.evaluate is None:
        for key in (lacks := [*joint.lacking(choices)]):
            text = "job %d has no %s: it is the baseline of those that have"
            log.info(text, at.job.num + 1, key)
        return config.check(resolved(cfg, choices, overrides, lacks))
    if cfg.evaluate == "":
        raise Refused("evaluate=: is empty; name a run directory or a file of weights")
    from sat.evaluation.reevaluate import reevaluated

    return reevaluated(cfg, choices, overrides)


def resolved(
    cfg: Any, choices: Mapping[str, str], overrides: list[str], lacks: Sequence[str] = ()
) -> dict[str, Any]:
    """The plain config of a training, less the keys that its options lack, with what it says of the
    recipe that it follows."""
    plain = {**joint.without(config.resolve(cfg), lacks), "choices": choices}
    if isinstance(told := plain.get("published"), Mapping):
        plain["published"] = {**told, "overridden": overridden(plain, overrides)}
    return plain


def network_of(spec: Spec) -> str:
    """The hash of a run, shared with one whose activation is the same function by another name."""
    activation = spec.identity["activation"]  # what differs from the default, alpha = 1
    if len(activation) > 1 or activation["_target_"].lower() not in ("elu", "celu"):
        return spec.hash
    return digest({**spec.identity, "activation": "elu, celu"})


def choices_of(at: Any) -> dict[str, str]:
    """The option of each group of a run, by Hydra's account."""
    return {group: option for group, option in at.runtime.choices.items() if group in GROUPS}


# Groups and keys that a recipe leaves to its user.
FREE = {"recipe", "seed", "device", "record", "logger", "evaluation", "evaluate", "published"}


def overridden(plain: Mapping[str, Any], overrides: list[str]) -> list[str]:
    """The words of a command line, of a sweep's job too, that change what a recipe says: all but
    those that move no number of the training."""
    changed = []
    for word in overrides:
        key = config.key_of(word)
        key = key.partition("@")[2] or key  # of an option that is put elsewhere
        group, _, name = key.partition(".")
        node = plain.get(group)
        silent: Mapping[str, Any] = {}
        if name and isinstance(node, Mapping):
            silent = identity.silent(config.target(node.get("_target_"), group))
        if re.split("[@/.]", key)[0] not in FREE and silent.get(name) is not False:
            changed.append(word)
    return changed


def one_experiment(at: Any, sweeping: bool) -> None:
    """Warns of an experiment without -m. Raises Refused for a list of experiments, of which Hydra
    would run one job each."""
    if not at.sweeper.params:
        return
    name = at.runtime.choices["experiment"]
    if not sweeping:
        log.warning("experiment=%s: this is one run of it; -m runs them all", name)
    elif not {*at.sweeper.params} <= {word.split("=", 1)[0] for word in sweep.words_of(at)}:
        raise Refused(f"experiment={name}: is one of several; name one experiment a command line")


def without_fresh(spec: Spec) -> str:
    """A word for a run that was stopped: record.fresh=true would begin it anew once more."""
    return " (without record.fresh=true)" if spec.record.fresh else ""
