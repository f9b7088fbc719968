"""Results: from checkpoints to `result.json`. The test set is touched here, and only here."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sat.arguments import check_unit
from sat.attacks import PGD
from sat.attacks.outcomes import AttackOutcomes, Ensemble
from sat.attacks.transfer import drop_others
from sat.config import Spec
from sat.data import Data
from sat.data.corrupted import is_set, place_of
from sat.data.fingerprint import same_facts
from sat.distributed import ALONE, World
from sat.errors import Fault, Refused
from sat.evaluation import corruptions, curves
from sat.evaluation.evaluator import Evaluator
from sat.evaluation.masking_checks import square_alarm
from sat.evaluation.measure import accuracy
from sat.evaluation.reproduction import Published, beside, beside_card
from sat.evaluation.settings import Evaluation
from sat.evaluation.store import changes, outcomes_in, read_file, taken
from sat.loggers import screen
from sat.loggers.screen import percent, table
from sat.rundir.environment import code_digest
from sat.rundir.record import Run
from sat.rundir.result import (
    BEST,
    CLEAN,
    CORRUPTIONS,
    LAST,
    LAST_RAW,
    WORST,
    Alarm,
    AttackResult,
    CheckpointResult,
    Chosen,
    CurveResult,
    Member,
    RunResult,
)
from sat.rundir.untrusted import read_yaml

log = logging.getLogger("sat")
FILES = {LAST: "last.pt", BEST: "best.pt", LAST_RAW: "last.pt"}  # whose weights they hold
ENSEMBLE, MASKING_CHECKS = "ensemble", "masking_checks"  # where an alarm comes from


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
    result = replace(result, status="finished", lengths=run.lengths())
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


def part_of(images: int, every: int) -> str:
    """`1,000 of 10,000`, or `10,000`."""
    return f"{images:,} of {every:,}" if images < every else f"{images:,}"


def asked_for(evaluation: Evaluation) -> str:
    """`pgd10, pgd20 (eps 8/255 in linf)`: what measures, ball by ball."""
    balls: dict[str, list[str]] = {}
    for name, attack in evaluation.attacks.items():
        balls.setdefault(f" (eps {attack.eps:g}/255 in {attack.norm})", []).append(name)
    told = [", ".join(names) + ball for ball, names in balls.items()]
    return "; ".join([*told, *evaluation.curves]) or "clean accuracy"


# what is to be done -------------------------------------------------------------------------------


def todo(result: RunResult, evaluation: Evaluation, directory: Path) -> list[tuple[str, str]]:
    """(checkpoint, name) of what the evaluation asks for and the run lacks: outcomes under an
    attack or a curve, CLEAN, WORST, CORRUPTIONS, then MASKING_CHECKS.

    Raises Refused when something is lacking and no checkpoint is left to measure.
    """
    files, flags = files_of(result, evaluation, directory), directory / "flags"
    found = {which: lacking(result, which, evaluation) for which in files}
    for which, names in found.items():
        gone = [n for n in evaluation.measured_by if not (flags / f"{which}-{n}.npz").exists()]
        found[which] = [n for n in gone if n not in names] + names
    if not files and any(lacking(result, which, evaluation) for which in asked(result, evaluation)):
        raise Refused(
            f"{directory}: no checkpoint stayed to be measured (record.keep); record.fresh=true"
            " trains again"
        )
    pairs = [(which, name) for which, names in found.items() for name in names]
    unchecked = [which for which in files if not checked(result, which, evaluation)]
    return pairs + [(which, MASKING_CHECKS) for which in unchecked]


def asked(result: RunResult, evaluation: Evaluation) -> list[str]:
    """The checkpoints to measure; weights of a file are one set, called `last`."""
    names = list(evaluation.checkpoints)
    return names if result.best is not None else [n for n in names if n != BEST] or [LAST]


def files_of(result: RunResult, evaluation: Evaluation, directory: Path) -> dict[str, Path]:
    """The files that hold what is to be measured, by checkpoint; those that are gone are left out,
    but for what another one holds as well."""
    found: dict[str, Path] = {}
    for which in asked(result, evaluation):
        for name in filter(None, (which, result.same_weights_as(which))):
            if (path := directory / "checkpoints" / FILES[name]).exists():
                found.setdefault(which, path)
    return found


def lacking(result: RunResult, which: str, evaluation: Evaluation) -> list[str]:
    """What a checkpoint's results don't hold as it is asked for: names of attacks and curves,
    CLEAN, WORST."""

    def holds(found: AttackResult | CurveResult) -> bool:
        return subset_covers(found.chosen, found.images, result.test_images, evaluation)

    part = result.part(which)
    names = [
        name
        for name in evaluation.measured_by
        if (found := part.measured.get(name)) is None
        or not holds(found)
        or changes(found.settings or {}, evaluation.settings(name))
    ]
    worst, attacks = part.robust.get(WORST), evaluation.worst_over
    holds_worst = worst is not None and holds(worst) and is_over(worst, evaluation)
    if len(attacks) > 1 and (not holds_worst or {*names} & {*attacks}):
        names.append(WORST)
    if not (part.clean and holds(part.clean)):
        names.append(CLEAN)
    return [*names, CORRUPTIONS] if lacks_corruptions(part, evaluation) else names


def is_over(worst: AttackResult, evaluation: Evaluation) -> bool:
    """Whether a worst case is over the attacks that are asked for, or over more of them on more
    images."""
    attacks, over = evaluation.worst_over, list(worst.attacks or ())
    if attacks in (over, *(worst.milder or ())):
        return True
    more = evaluation.limit is not None and worst.images > evaluation.limit
    return more and {*attacks} <= {*over}


def lacks_corruptions(part: CheckpointResult, evaluation: Evaluation) -> bool:
    """Whether a checkpoint was not measured on as many images of the corrupted set."""
    if evaluation.corruptions is None:
        return False
    found = part.corruptions.get((root := place_of(evaluation.corruptions)).name)
    if found is None or not is_set(root, found.digest):
        return True
    return found.limit is not None and found.limit < (evaluation.limit or math.inf)


def checked(result: RunResult, which: str, evaluation: Evaluation) -> bool:
    """Whether a checkpoint's numbers have been looked at as far as is asked for."""
    found = result.part(which).masking_checks.get(next(reversed(evaluation.attacks), CLEAN))
    if evaluation.masking_checks == 0:
        return True
    if found is None or found.asked < evaluation.masking_checks:
        return False
    return subset_covers(found.subset, 0, result.test_images, evaluation)


def subset_covers(
    subset: Chosen | None, measured: int, images: int, evaluation: Evaluation
) -> bool:
    """Whether what was `measured` on a subset (limit, seed) of `images` holds what is asked."""
    if subset is None:
        return False
    (limit, seed), now = subset, evaluation.subset
    if limit is None or measured >= images or subset == now:
        return True
    return seed == now[1] and now[0] is not None and limit >= now[0]


def warn_of_sizes(attacks: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
    """Warns where attacks of several norms are joined, and none is in the set's own ball."""
    norm, eps = dataset["norm"], check_unit("eps", dataset["eps"], dataset["norm"])
    names = [name for name, attack in attacks.items() if attack.norm == norm]
    joined = len({attack.norm for attack in attacks.values()}) > 1
    if joined and names and all(attacks[name].eps != eps for name in names):
        balls = ", ".join(f"{attack.eps:g} in {attack.norm}" for attack in attacks.values())
        log.warning(
            "evaluation: the attacks' balls are, in 1/255, %s, and none is the data set's own;"
            " evaluation.attacks.%s.eps=%g measures in that one", balls, names[0], eps,
        )  # fmt: skip


def check_names(result: RunResult, files: Mapping[str, Path], evaluation: Evaluation) -> None:
    """Warns of checkpoints that are gone. Raises Refused when the name of an attack is taken by one
    with other settings."""
    for which in asked(result, evaluation):
        if which not in files:
            log.warning("checkpoints/%s: is missing, and not measured (record.keep)", FILES[which])
    for part in map(result.part, files):
        for name in evaluation.measured_by:
            settings = evaluation.settings(name)
            before = part.measured[name].settings if name in part.measured else None
            if changed := changes(before or settings, settings):
                raise Refused(taken(name, changed, settings))


def check_flags(evaluation: Evaluation, flags: Path) -> None:
    """Raises Refused, before anything is trained or told, where what a killed evaluation kept in a
    run's `flags` is damaged, or was measured with other settings under the name of an attack."""
    for path in flags.glob("partial/*.npz"):
        outcomes_in(path, read_file(path) or {})
    for which in evaluation.checkpoints:
        for name in evaluation.measured_by:
            if (found := read_file(path := flags / f"{which}-{name}.npz")) is None:
                continue
            outcomes_in(path, found)
            settings = evaluation.settings(name)
            if changed := changes(found["settings"], settings):
                raise Refused(taken(name, changed, settings))


# what was found -----------------------------------------------------------------------------------


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
    told = {"eps": attack.eps, "norm": attack.norm, "steps": asdict(attack).get("steps")}
    if isinstance(attack, PGD):
        told["step"] = attack.step_size
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


# where it is shown --------------------------------------------------------------------------------


def show(spec: Spec, run: Run, before: RunResult, result: RunResult, views: Any) -> None:
    """What is new goes to `metrics.jsonl`, to files and figures of curves, and to the loggers."""
    loggers = run.loggers
    for which, part in result.measured.items():
        old, images = before.part(which), part.step * spec.schedule.batch_size
        if row := news(old, part):
            at = {"step": part.step, "epoch": part.epoch, "checkpoint": which, "images": images}
            run.write_metrics({**at, "seconds": result.wall_seconds, **row})
        for name, curve in part.curves.items():
            if old.curves.get(name) != curve:
                label, title = f"{which}-{name}", f"{run.directory.name}, {which}"
                drawn = curves.write(run.directory / "curves", label, title, curve)
                loggers.figure(f"curves/{label}", drawn, images)
        for name, corrupted in part.corruptions.items():
            if old.corruptions.get(name) != corrupted:
                label, title = f"{which}-{name}", f"{run.directory.name}, {which}"
                drawn = corruptions.write(run.directory / CORRUPTIONS, label, title, corrupted)
                loggers.figure(f"corruptions/{label}", drawn, images)
    new = [alarm for alarm in result.alarms if alarm.checkpoint and alarm not in before.alarms]
    for where, alarm in told_once(new):
        images = result.part(alarm.checkpoint or LAST).step * spec.schedule.batch_size
        loggers.alarm(f"**{alarm.name}** ({where}): {alarm.message}", images)
    loggers.pictures("test", views, result.images)
    loggers.conclude(spec.compared, final_metrics(result), result.images)
    loggers.flush()


def news(before: CheckpointResult, after: CheckpointResult) -> dict[str, float]:
    """What an evaluation added to a checkpoint's accuracies, by tag."""
    known = before.accuracies
    told = {
        f"test/{name}" if name == CLEAN else f"test/robust/{name}": found.accuracy
        for name, found in after.accuracies.items()
        if known.get(name) != found
    }
    return told | {
        f"test/corruptions/{name}": found.accuracy
        for name, found in after.corruptions.items()
        if before.corruptions.get(name) != found
    }


def final_metrics(result: RunResult) -> dict[str, float]:
    """The numbers of the hyper-parameter table."""
    accuracies = {
        f"test/{which}/{name}": found.accuracy
        for which, part in result.measured.items()
        for name, found in part.accuracies.items()
    }
    return {**accuracies, "test/alarms": len(told_once(result.alarms))}


def tell(result: RunResult, known: Collection[str] = ()) -> None:
    """The table of a result, whether it was doubted, and its alarms; of those whose messages are
    `known` the names."""
    log.info("\n%s", "\n".join([summary(result), "", *doubted(result)]).rstrip())
    for which, part in once(result).items():
        for name, corrupted in part.corruptions.items():
            log.info("\n%s", corruptions.text(which, name, corrupted))
        for name, curve in part.curves.items():
            if curve.median is not None:
                text = "%s, %s: half of the images need no more than %.4g/255 (%s)"
                log.info(text, which, name, curve.median, curve.norm)
        for name, found in part.accuracies.items():
            if found.ties:
                text = "%s, %s: %d images are wrong, as another logit equals the label's (a tie)"
                log.info(text, which, name, found.ties)
    for where, alarm in told_once(result.alarms):
        told = f"{alarm.name}, as told above" if alarm.message in known else alarm.message
        log.warning("%s: %s", where, told)


def doubted(result: RunResult) -> list[str]:
    """On how many images it was asked whether the last attack's numbers hold, of each checkpoint;
    or that it was not asked. Nothing without an attack."""
    found: dict[str, list[str]] = {}
    for which, part in once(result).items():
        if not (attacks := [name for name in part.robust if name != WORST]):
            continue
        name = attacks[-1]
        told = "not checked for masked gradients (evaluation.masking_checks=0)"
        if checks := part.masking_checks.get(name):
            few = part_of(checks.images, part.robust[name].images)
            alarms = ", ".join(alarm.name for alarm in checks.alarms) or "no alarm"
            told = f"checked for masked gradients on {few} images: {alarms}"
        found.setdefault(told, []).append(f"{which if part.step else 'weights'}, {name}")
    return [f"{' and '.join(places)}: {told}" for told, places in found.items()]


def told_once(alarms: Sequence[Alarm]) -> list[tuple[str, Alarm]]:
    """Alarms and where they are from; one of several checkpoints or attacks, told with the numbers
    of the first, is one."""
    found: dict[tuple[Any, ...], list[Alarm]] = {}
    for alarm in alarms:
        found.setdefault((alarm.epoch, alarm.step, alarm.name), []).append(alarm)
    told = []
    for first, *others in found.values():
        where = f"epoch {first.epoch or 0:.2f}"
        if first.checkpoint is not None:
            same = [alarm for alarm in (first, *others) if alarm.message == first.message]
            where = _places(same)
            if len(same) <= len(others):
                rest = _places([alarm for alarm in others if alarm not in same])
                where = f"{where} ({rest} too, with other numbers)"
        told.append((where, first))
    return told


def _places(alarms: Sequence[Alarm]) -> str:
    """`last and best, pgd20`."""
    checkpoints, attacks = (
        " and ".join(dict.fromkeys(str(each) for each in found if each is not None))
        for found in ([a.checkpoint for a in alarms], [a.attack for a in alarms])
    )
    return ", ".join(filter(None, [checkpoints, attacks]))


_BALL = {"l2": "L2", "l1": "L1", "union": "union"}  # what is said of a ball not of L-inf


def compare(spec: Spec, result: RunResult) -> None:
    """The published numbers of the run's recipe, or of its network's card, beside its own."""
    if (published := Published.of(spec.config.get("published"))) is None:
        return
    if spec.brought is not None:
        log.info("\n%s", beside_card(published, result))
        return
    name, root = spec.recipe or "given", Path(spec.record.root)
    log.info("\n%s", beside(name, published, result, root))


def summary(result: RunResult) -> str:
    """The table at the end of a run: clean and under each attack, with intervals."""
    rows = list[list[str]]()
    for which, part in once(result).items():
        label = f"{which} (epoch {part.epoch:.1f})" if part.step else "weights"
        rows += [[label, "", "", "", ""], *_rows(part)]
    return table(["checkpoint, attack", "eps", "images", "accuracy (95 %)", "worst class"], rows)


def once(result: RunResult) -> dict[str, CheckpointResult]:
    """What was measured of each checkpoint, by its name; of `best` and `last` as one where they are
    the same weights, of which the same is known."""
    told = dict(result.measured)
    if result.same_weights_as(LAST) in told and _known(told[BEST]) == _known(told.get(LAST)):
        del told[LAST]
        told = {f"{BEST} and {LAST}" if k == BEST else k: part for k, part in told.items()}
    return told


def _known(part: CheckpointResult | None) -> Any:
    if part is None:
        return None
    found = {name: (each.images, each.accuracy) for name, each in part.accuracies.items()}
    return found, [*part.curves], [*part.corruptions]


def _rows(part: CheckpointResult) -> list[list[str]]:
    rows, attacks = [], [name for name in part.robust if name != WORST]
    for name, found in part.accuracies.items():
        size = _BALL.get(found.norm or "", "")
        size = size if found.eps is None else f"{found.eps:g} {size}".strip()
        spread = found.by_class
        worst = f"{100 * spread.lowest:.1f} % (class {spread.worst})" if spread else ""
        if name == WORST and [*(found.attacks or ())] != attacks:  # of others than stand here
            name = f"{name} ({', '.join(found.attacks or ())})"
        rows.append([f"  {name}", size, f"{found.images:,}", percent(vars(found)), worst])
    return rows


def short(found: AttackResult | None) -> str:
    """`97.8 (95.7-98.9)`, in percent."""
    if found is None:
        return "-"
    low, high = found.ci95
    return f"{100 * found.accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def headline(result: RunResult, evaluation: Evaluation) -> dict[str, Any]:
    """What a sweep's table shows of a run: the checkpoint that its held-out images chose, under the
    first attack that is asked for; and for a search its accuracy on them, since the test set is for
    reporting alone."""
    which, part = next(iter(result.measured.items()), (None, None))
    found = {} if part is None else part.accuracies
    names = [name for name in [*evaluation.attacks, *found] if name in found and name != CLEAN]
    told: dict[str, Any] = {"clean": short(found.get(CLEAN)), "robust": short(None)}
    for name in names[:1]:
        told |= {"robust": short(found[name]), "attack": name}
    alarms = [alarm for alarm in result.alarms if alarm.checkpoint in (None, which)]
    told["alarms"] = str(len(told_once(alarms)))
    held_out = (result.best and result.best.held_out) or {}
    chosen_by = ((result.best and result.best.selected_by) or "robust").split()[0]
    return {**told, "score": held_out.get(chosen_by)}
