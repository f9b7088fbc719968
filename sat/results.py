"""From a run's checkpoints to `result.json`: the test set is touched here, and only here."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from sat import curves
from sat.config import Spec
from sat.console import table
from sat.dashboard import Dashboard
from sat.data import Data
from sat.errors import Fault, Refused
from sat.evaluate import EVALUATED, Evaluation
from sat.examination import FILES, WORST, Examination
from sat.journal import facts_of, same_facts
from sat.record import Run, code_digest, read_result

log = logging.getLogger("sat")
WHOLE = [None, None]  # the subset that is the whole test set


def finished(spec: Spec) -> dict[str, Any] | None:
    """The result of a run that has all that is asked for, told on the screen; else None.

    Raises Fault for a run that failed: it would fail again.
    """
    directory = Path(spec.record.root) / spec.name
    if spec.record.fresh:
        return None
    if (result := usable(read_result(directory), directory)) is None:
        return None
    if not covers(result, directory, spec.evaluation) or moved(spec, directory):
        return None
    changed = result["environment"].get("code") != code_digest()
    note = " (the program's code has changed since)" if changed else ""
    log.info("%s: is finished%s; record.fresh=true runs it again", directory, note)
    tell(result)
    return result


def tell(result: dict[str, Any]) -> None:
    """The table of a result, and its alarms."""
    log.info("\n%s", summary(result))
    for alarm in result.get("alarms", ()):
        where = f"epoch {alarm.get('epoch', 0):.2f}"
        if "checkpoint" in alarm:
            where = f"{alarm['checkpoint']}, {alarm['attack']}"
        log.warning("%s: %s", where, alarm["message"])


def usable(result: dict[str, Any] | None, directory: Path) -> dict[str, Any] | None:
    """The result, or None; raises Fault for a run that failed: it would fail again."""
    if result is not None and result["status"] == "failed":
        raise Fault(f"{directory}: failed before: {result['error']}; record.fresh=true starts over")
    return result


def moved(spec: Spec, directory: Path) -> bool:
    """Whether the images are read from another place than when the run was begun."""
    before = yaml.safe_load((directory / "config.yaml").read_text())["dataset"]
    return any(before.get(key) != spec.config["dataset"].get(key) for key in ("root", "path"))


def covers(result: dict[str, Any], directory: Path, evaluation: Evaluation) -> bool:
    """Whether a result holds all that the evaluation asks for, measured with its settings.

    Raises Refused when it does not and no checkpoint is left to measure.
    """
    asked = list(evaluation.checkpoints)
    if result["best"] is None:  # weights of a file: there is one set
        asked = [which for which in asked if which != "best"] or ["last"]
    kept = [w for w in asked if (directory / "checkpoints" / FILES[w]).exists()]
    done = all(
        part_covers(
            result.get(which) or {},
            evaluation,
            lambda name, which=which: directory / "flags" / f"{which}-{name}.npz",
        )
        for which in kept or asked
    )
    if not done and not kept:
        raise Refused(
            f"{directory}: no checkpoint stayed to be measured (record.keep); record.fresh=true"
            " trains again"
        )
    return done


def part_covers(part: dict[str, Any], evaluation: Evaluation, flags: Callable[[str], Path]) -> bool:
    """The same of one checkpoint's part of the result; `flags` tells where an attack's are."""
    found = {**part.get("robust", {}), **part.get("curves", {})}
    worst = part.get("robust", {}).get(WORST, {}).get("attacks")
    doubts = part.get("doubts", {}).get(next(reversed(evaluation.attacks), "clean"), {})
    return (
        all(
            found.get(name, {}).get("settings") == evaluation.settings(name)
            and flags(name).exists()
            for name in evaluation.judges
        )
        and clean_covers(part, evaluation)
        and (len(evaluation.attacks) < 2 or worst == list(evaluation.attacks))
        and doubts.get("asked", 0) >= evaluation.doubts
    )


def clean_covers(part: dict[str, Any], evaluation: Evaluation) -> bool:
    """Whether clean accuracy is there, on the whole test set or on the part that is asked for."""
    subset = part.get("clean", {}).get("subset")
    return subset is not None and subset in (WHOLE, evaluation.subset)


def conclude(
    spec: Spec, run: Run, model: nn.Module, data: Data, result: dict[str, Any]
) -> dict[str, Any]:
    """Measures the checkpoints on the test set, adds what is new to the result, and shows it."""
    facts = {"hash": spec.hash, "dataset": facts_of(data)}
    same_facts(result, facts)
    torch.set_num_threads(result["choices"]["threads"])  # another count rounds otherwise
    exam = Examination(run, model, data, spec, facts)
    twins = {which: twin(result, which) for which in spec.evaluation.checkpoints}
    exam.check_names(result, twins)
    names = ", ".join(spec.evaluation.judges) or "clean accuracy"
    which = " and ".join(spec.evaluation.checkpoints)
    log.info("measuring %s on %d test images: %s", which, len(exam.indices), names)
    dashboard = Dashboard(run.directory)
    for which in spec.evaluation.checkpoints:
        if which == "best" and result["best"] is None:  # weights of a file: there is one set
            continue
        if (part := exam.of(which, twins[which])) is None:
            log.warning("checkpoints/%s: is missing, and not measured (record.keep)", FILES[which])
            continue
        before = result.get(which) or {key: result["last"][key] for key in ("step", "epoch")}
        result[which] = merged(before, part)
        result["alarms"] = alarms_after(result, which, part.get("doubts", {}))
        at = {"step": before["step"], "epoch": before["epoch"], "checkpoint": which}
        at |= {"images": before["step"] * spec.schedule.batch_size}
        if row := news(before, result[which]):
            run.write_metrics({**at, "seconds": result["wall_seconds"], **row})
            dashboard.scalars(row, at["images"])
        draw(run, dashboard, at, part)
    exam.show(dashboard, result["images"])
    dashboard.hyperparameters(spec.config, final_metrics(result))
    dashboard.close()
    run.write_result({**result, "status": "finished"})
    run.drop_checkpoints(spec.record.keep)
    tell(result)
    log.info("\nresults in %s", run.directory)
    if spec.evaluation.curves:
        log.info("figures and data of the curves in %s", run.directory / "curves")
    log.info("dashboard: tensorboard --logdir %s", spec.record.root)
    return result


def draw(run: Run, dashboard: Dashboard, at: dict[str, Any], part: dict[str, Any]) -> None:
    """A checkpoint's curves as files and figures, and its alarms on the dashboard."""
    which, images = at["checkpoint"], at["images"]
    for name, entry in part["curves"].items():
        label, title = f"{which}-{name}", f"{run.directory.name}, {which}"
        drawn = curves.write(run.directory / "curves", label, title, entry)
        dashboard.figure(f"curves/{label}", drawn, images)
    for alarm in (a for asked in part.get("doubts", {}).values() for a in asked["alarms"]):
        dashboard.alarm(f"**{alarm['name']}** ({which}): {alarm['message']}", images)


def alarms_after(
    result: dict[str, Any], which: str, doubts: dict[str, Any]
) -> list[dict[str, Any]]:
    """All alarms of a run; those of a checkpoint and an attack give way to the new ones."""
    alarms = result.get("alarms", [])
    for attack, asked in doubts.items():
        at = {"checkpoint": which, "attack": attack}
        alarms = [alarm for alarm in alarms if {key: alarm.get(key) for key in at} != at]
        alarms += [{**alarm, **at} for alarm in asked["alarms"]]
    return alarms


def twin(result: dict[str, Any], which: str) -> str | None:
    """The checkpoint that holds the same weights, if one does."""
    best = result.get("best")
    if best is None or best["step"] != result["last"]["step"]:
        return None
    return {"last": "best", "best": "last"}.get(which)


def news(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """What an evaluation added to a checkpoint's results, by tag."""
    row = {
        f"test/robust/{name}": entry["accuracy"]
        for name, entry in after["robust"].items()
        if before.get("robust", {}).get(name) != entry
    }
    if before.get("clean") != after["clean"]:
        row["test/clean"] = after["clean"]["accuracy"]
    return row


def merged(before: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's results with new attacks added; nothing that was there is touched.

    Clean accuracy and the worst case over several attacks are those of the latest evaluation that
    had them, but what was measured on the whole test set gives way to no part of it.
    """
    clean = part["clean"]
    if before.get("clean", {}).get("subset") == WHOLE:
        clean = before["clean"]
    added = {"clean": clean, "robust": joined(before.get("robust", {}), part["robust"])}
    if WORST in part["robust"]:
        added["robust"][WORST] = part["robust"][WORST]
    if drawn := joined(before.get("curves", {}), part["curves"]):
        added["curves"] = drawn
    if asked := {**before.get("doubts", {}), **part.get("doubts", {})}:
        added["doubts"] = asked
    return {**before, **added}


def joined(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Entries of both; of one name that which was measured on more images, or else the first."""
    larger = {
        name: entry
        for name, entry in new.items()
        if name not in before or entry["images"] > before[name]["images"]
    }
    return {**larger, **{name: e for name, e in before.items() if name not in larger}}


def measured(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of a result that hold accuracies, `best` first."""
    names = sorted(EVALUATED)
    return {name: result[name] for name in names if "clean" in (result.get(name) or {})}


def summary(result: dict[str, Any]) -> str:
    """The table at the end of a run: clean and under each attack, with intervals."""
    rows = []
    for which, part in measured(result).items():
        label = f"{which} (epoch {part['epoch']:.1f})" if part["step"] else "weights"
        for name, entry in {"clean": part["clean"], **part["robust"]}.items():
            rows.append([label, name, size_of(entry), f"{entry['images']:,}", percent(entry)])
            label = ""
    return table(["checkpoint", "attack", "eps", "images", "accuracy (95 % interval)"], rows)


def size_of(entry: dict[str, Any]) -> str:
    """`8 L2`, in 1/255; L-inf goes without saying."""
    if "eps" not in entry:
        return ""
    return f"{entry['eps']:g}" + " L2" * (entry.get("norm") == "l2")


def percent(entry: dict[str, Any] | None) -> str:
    """`97.8 % (95.7 - 98.9)`."""
    if entry is None:
        return "-"
    low, high = entry["ci95"]
    return f"{entry['accuracy']:.1%} ({low:.1%} - {high:.1%})".replace("%", " %")


def final_metrics(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of the hyper-parameter table."""
    return {
        f"{which}/{name}": entry["accuracy"]
        for which, part in measured(result).items()
        for name, entry in {"clean": part["clean"], **part["robust"]}.items()
    }
