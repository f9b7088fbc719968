"""What of a result goes to the screen, to the loggers and into the table of a sweep."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sat.config import Spec
from sat.evaluation import corruptions, curves
from sat.evaluation.reproduction import Published, beside, beside_card
from sat.evaluation.settings import Evaluation
from sat.loggers.screen import percent, table
from sat.rundir.record import Run
from sat.rundir.result import (
    BEST,
    CLEAN,
    CORRUPTIONS,
    LAST,
    WORST,
    Alarm,
    AttackResult,
    CheckpointResult,
    RunResult,
)

log = logging.getLogger("sat")
_BALL = {"l2": "L2", "l1": "L1", "union": "union"}  # what is said of a ball not of L-inf


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
