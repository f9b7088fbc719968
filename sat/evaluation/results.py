"""Results: from checkpoints to `result.json`. The test set is touched here, and only here."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sat.attacks.outcomes import AttackOutcomes, Ensemble
from sat.attacks.transfer import drop_others
from sat.config import Spec
from sat.data import Data
from sat.data.corrupted import place_of
from sat.data.fingerprint import same_facts
from sat.distributed import ALONE, World
from sat.errors import Fault, Refused
from sat.evaluation import curves
from sat.evaluation.evaluator import Evaluator
from sat.evaluation.masking_checks import square_alarm
from sat.evaluation.measure import accuracy
from sat.evaluation.reproduction import Published
from sat.evaluation.telling import asked_for, compare, part_of, show, tell
from sat.evaluation.todo import MASKING_CHECKS, check_names, files_of, todo, warn_of_sizes
from sat.loggers import screen
from sat.rundir.environment import code_digest
from sat.rundir.record import Run
from sat.rundir.result import (
    CLEAN,
    CORRUPTIONS,
    LAST_RAW,
    WORST,
    AttackResult,
    Member,
    RunResult,
)
from sat.rundir.untrusted import read_yaml

log = logging.getLogger("sat")
ENSEMBLE = "ensemble"  # where an alarm comes from, beside MASKING_CHECKS


def finished(spec: Spec) -> RunResult | None:
    """The result of a run that has all that is asked for, told on the screen; else None.

    Raises Fault for a run that failed: it would fail again.
    """
    directory = Path(spec.record.root) / spec.name
    Published.of(spec.config.get("published"))
    unaveraged = spec.evaluate is not None or not spec.schedule.averages
    if LAST_RAW in spec.evaluation.checkpoints and unaveraged:
        raise Refused(
            "evaluation.checkpoints=[last_raw]: the run averages no weights (schedule.ema,"
            " schedule.swa_start);"
            " write last"
        )
    drop_others(spec.evaluation.attacks, spec.config["dataset"], {})
    if spec.record.fresh:
        return None
    if (directory / "config.yaml").is_file():
        spec.refuse_moved(read_yaml(directory / "config.yaml"), directory)
    if (result := usable(RunResult.read(directory), directory)) is None:
        return None
    drop_others(spec.evaluation.attacks, spec.config["dataset"], result.dataset)
    if todo(result, spec.evaluation, directory) or moved(spec, directory):
        return None
    changed = result.environment.get("code") != code_digest()
    note = " (the program's code has changed since)" if changed else ""
    log.info("%s: is finished%s; record.fresh=true runs it again", directory, note)
    tell(result)
    compare(spec, result)
    return result


def usable(result: RunResult | None, directory: Path) -> RunResult | None:
    """The result, or None; raises Fault for a run that failed: it would fail again."""
    if result is not None and result.status == "failed":
        raise Fault(f"{directory}: failed before: {result.error}; record.fresh=true starts over")
    return result


def moved(spec: Spec, directory: Path) -> bool:
    """Whether the images are read from another place than when the run was begun."""
    before = read_yaml(directory / "config.yaml").get("dataset")
    if not isinstance(before, dict):
        raise Refused(f"{directory / 'config.yaml'}: is damaged; dataset is no group of keys")
    return any(before.get(key) != spec.config["dataset"].get(key) for key in ("root", "path"))


def conclude(
    spec: Spec, run: Run, model: nn.Module, data: Data, result: RunResult, world: World = ALONE
) -> RunResult:
    """Measures on the test set what is asked for and not known; says it to screen and loggers."""
    evaluator = Evaluator(spec, run, model, data, world)
    with world.raise_together():
        same_facts({"hash": result.hash, "dataset": result.dataset}, evaluator.facts)
        drop_others(spec.evaluation.attacks, spec.config["dataset"], result.dataset)
    torch.set_num_threads(result.choices["threads"])  # another count rounds otherwise
    if not world.first:
        evaluator.follow()
        return result
    files, before = files_of(result, spec.evaluation, run.directory), result
    check_names(result, files, spec.evaluation)
    evaluator.open(files)
    warn_of_sizes(spec.evaluation.attacks, spec.config["dataset"])
    log.info(
        "measuring %s on %s test images of %s: %s", " and ".join(files),
        part_of(len(evaluator.indices), result.test_images), result.dataset["name"],
        asked_for(spec.evaluation), extra=screen.ONCE,
    )  # fmt: skip
    screen.stage("measuring")
    if result.lengths:  # an evaluation that was killed may have told of itself already
        run.rewind(result.lengths)
    for which, name in todo(result, spec.evaluation, run.directory):
        if name == MASKING_CHECKS:
            result = with_masking_checks(result, which, evaluator)
        elif name == CORRUPTIONS:
            result = with_corruptions(result, which, evaluator)
        else:
            outcomes = evaluator(which, name)
            result = with_outcomes(result, which, name, outcomes, evaluator)
    screen.stage("drawing figures and images")
    views = evaluator.views()
    evaluator.dismiss()
    show(spec, run, before, result, views)
    lengths = {**result.lengths, **run.lengths()}  # other trackers' files may be there, too
    result = replace(result, status="finished", lengths=lengths)
    run.write_result(result)
    run.drop_checkpoints(spec.record.keep)
    screen.stage()
    tell(result, run.told)
    compare(spec, result)
    log.info("\nresults in %s", run.directory)
    if spec.evaluation.curves:
        log.info("figures and data of the curves in %s", run.directory / "curves")
    if "tensorboard" in spec.logger:
        log.info("dashboard: tensorboard --logdir %s", spec.record.root, extra=screen.ONCE)
    return result


def with_outcomes(
    result: RunResult, which: str, name: str, outcomes: AttackOutcomes, evaluator: Evaluator
) -> RunResult:
    """Adds a checkpoint's outcomes under an attack or a curve, CLEAN or WORST."""
    evaluation, part = evaluator.evaluation, result.part(which)
    if name == CLEAN:
        ties = outcomes.ties["clean"]
        told = {"subset": evaluation.subset, "by_class": evaluator.by_class(outcomes.clean)}
        clean = AttackResult(**accuracy(outcomes.clean), **told, ties=ties)
        return result.with_part(which, part.with_attack(CLEAN, clean))
    if name == WORST:
        ties, names = outcomes.ties["attacked"], list(outcomes.names)
        union = len({evaluation.attacks[name].norm for name in names}) > 1
        told = {"norm": "union" if union else None, "subset": evaluation.subset,
                "by_class": evaluator.by_class(outcomes.robust)}  # fmt: skip
        worst = AttackResult(**accuracy(outcomes.robust), **told, attacks=names, ties=ties)
        return result.with_part(which, part.with_attack(WORST, worst))
    if name in evaluation.curves:
        labels, classes = evaluator.data.test.labels[evaluator.indices], evaluator.data.classes
        curve, settings = evaluation.curves[name], evaluation.settings(name)
        found = curves.curve_result(curve, outcomes, labels, classes, settings)
        return result.with_part(which, part.with_curve(name, found))
    after = part.with_attack(name, attack_result(name, outcomes, evaluator))
    if after is part:
        return result
    counts = [int((outcomes.fell == k).sum()) for k in range(len(outcomes.names))]
    alarm = square_alarm(outcomes.names, counts, len(outcomes.fell))
    result = result.with_alarms(which, name, ENSEMBLE, [alarm] if alarm else [])
    return result.with_part(which, after)


def attack_result(name: str, outcomes: AttackOutcomes, evaluator: Evaluator) -> AttackResult:
    """Robust accuracy under one attack; of an ensemble, also what each of its attacks left."""
    attack, seconds = evaluator.evaluation.attacks[name], outcomes.seconds
    told = {"eps": attack.eps, "norm": attack.norm, "steps": attack.steps,
            "step": attack.step_size}  # fmt: skip
    members = {
        member: Member(
            **accuracy(outcomes.left_by(k)),
            felled=int((outcomes.fell == k).sum()),
            seconds=round(float(seconds[k]), 3),
        )
        for k, member in enumerate(outcomes.names)
    }
    return AttackResult(
        **accuracy(outcomes.robust),
        **told,
        seconds=round(float(seconds.sum()), 3),
        ties=outcomes.ties["attacked"],
        attacks=members if isinstance(attack, Ensemble) else None,
        by_class=evaluator.by_class(outcomes.robust),
        settings=evaluator.evaluation.settings(name),
        environment=evaluator.environment,
    )


def with_corruptions(result: RunResult, which: str, evaluator: Evaluator) -> RunResult:
    """Adds what a checkpoint makes of the corrupted set that is asked for."""
    name, part = place_of(str(evaluator.evaluation.corruptions)).name, result.part(which)
    found = {**part.corruptions, name: evaluator.corrupted(which)}
    return result.with_part(which, replace(part, corruptions=found))


def with_masking_checks(result: RunResult, which: str, evaluator: Evaluator) -> RunResult:
    """Adds the answer whether a checkpoint's strongest attack is to be believed, and its alarms."""
    part = result.part(which)
    found = evaluator.check_masking(which)
    if found is None or (after := part.with_masking_checks(found)) is part:
        return result
    result = result.with_part(which, after)
    return result.with_alarms(which, found.attack, MASKING_CHECKS, found.alarms)
