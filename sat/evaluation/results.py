"""From a run's checkpoints to `result.json`: the test set is touched here, and only here."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sat.config import Spec
from sat.data import Data
from sat.distributed import ALONE, World
from sat.errors import Fault, Refused
from sat.evaluation import curves
from sat.evaluation.evaluator import FILES, WORST, Evaluator
from sat.evaluation.settings import EVALUATED, Evaluation
from sat.evaluation.store import changes
from sat.loggers.screen import percent, table
from sat.loggers.tensorboard import Dashboard
from sat.rundir.record import Run, code_digest
from sat.rundir.untrusted import read_whole_result, read_yaml
from sat.training.callbacks import same_facts

log = logging.getLogger("sat")


def finished(spec: Spec) -> dict[str, Any] | None:
    """The result of a run that has all that is asked for, told on the screen; else None.

    Raises Fault for a run that failed: it would fail again.
    """
    directory = Path(spec.record.root) / spec.name
    unaveraged = spec.evaluate is not None or not spec.schedule.ema
    if "last_raw" in spec.evaluation.checkpoints and unaveraged:
        raise Refused(
            "evaluation.checkpoints=[last_raw]: the run averages no weights (schedule.ema=0);"
            " write last"
        )
    if spec.record.fresh:
        return None
    if (result := usable(read_whole_result(directory), directory)) is None:
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
            where = f"{alarm['checkpoint']}, {alarm.get('attack', '')}"
        log.warning("%s: %s", where, alarm["message"])


def usable(result: dict[str, Any] | None, directory: Path) -> dict[str, Any] | None:
    """The result, or None; raises Fault for a run that failed: it would fail again."""
    if result is not None and result["status"] == "failed":
        raise Fault(f"{directory}: failed before: {result['error']}; record.fresh=true starts over")
    return result


def moved(spec: Spec, directory: Path) -> bool:
    """Whether the images are read from another place than when the run was begun."""
    before = read_yaml(directory / "config.yaml").get("dataset")
    if not isinstance(before, dict):
        raise Refused(f"{directory / 'config.yaml'}: is damaged; dataset is no group of keys")
    return any(before.get(key) != spec.config["dataset"].get(key) for key in ("root", "path"))


def covers(result: dict[str, Any], directory: Path, evaluation: Evaluation) -> bool:
    """Whether a result holds all that the evaluation asks for, measured with its settings.

    Raises Refused when it does not and no checkpoint is left to measure.
    """
    names = asked(result, evaluation)
    kept = [w for w in names if (directory / "checkpoints" / FILES[w]).exists()]
    parts = {which: result.get(which) or {} for which in kept or names}
    measured = all(part_covers(part, result["test_images"], evaluation) for part in parts.values())
    if not kept:
        if measured:
            return True
        raise Refused(
            f"{directory}: no checkpoint stayed to be measured (record.keep); record.fresh=true"
            " trains again"
        )
    flags = (
        directory / "flags" / f"{w}-{name}.npz" for w in parts for name in evaluation.measured_by
    )
    checked = all(
        masking_checks_cover(part, result["test_images"], evaluation) for part in parts.values()
    )
    return measured and checked and all(path.exists() for path in flags)


def asked(result: dict[str, Any], evaluation: Evaluation) -> list[str]:
    """The checkpoints to measure; weights of a file are one set, called `last`."""
    names = list(evaluation.checkpoints)
    if result.get("best") is None:
        names = [which for which in names if which != "best"] or ["last"]
    return names


def part_covers(part: dict[str, Any], images: int, evaluation: Evaluation) -> bool:
    """The same of one checkpoint's part of the result; of a test set of so many `images`."""
    found = {**part.get("robust", {}), **part.get("curves", {})}
    for name in evaluation.measured_by:
        settings = found.get(name, {}).get("settings")
        if settings is None or changes(settings, evaluation.settings(name)):
            return False
        subset = [settings["limit"], settings["subset_seed"]]
        if not subset_covers(subset, found[name]["images"], images, evaluation):
            return False
    clean, worst = part.get("clean"), part.get("robust", {}).get(WORST)
    if clean is None or not subset_covers(clean.get("subset"), clean["images"], images, evaluation):
        return False
    if len(evaluation.attacks) < 2:
        return True
    return worst is not None and (
        worst["attacks"] == list(evaluation.attacks)
        or (evaluation.limit is not None and worst["images"] > evaluation.limit)
    )


def masking_checks_cover(part: dict[str, Any], images: int, evaluation: Evaluation) -> bool:
    """Whether the numbers have been doubted as far as is asked for."""
    found = masking_checks_of(part).get(next(reversed(evaluation.attacks), "clean"))
    if evaluation.masking_checks == 0:
        return True
    if found is None or found.get("asked", 0) < evaluation.masking_checks:
        return False
    return subset_covers(found.get("subset"), 0, images, evaluation)


def subset_covers(
    subset: list[int | None] | None, measured: int, images: int, evaluation: Evaluation
) -> bool:
    """Whether what was `measured` on a subset `[limit, seed]` of `images` holds what is asked."""
    if subset is None:
        return False
    (limit, seed), now = subset, evaluation.subset
    if limit is None or measured >= images or subset == now:
        return True
    return seed == now[1] and now[0] is not None and limit >= now[0]


def masking_checks_of(part: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's doubts by attack; an earlier version kept those of one attack."""
    masking_checks = part.get("masking_checks", {})
    return (
        {masking_checks["attack"]: masking_checks}
        if isinstance(masking_checks.get("attack"), str)
        else masking_checks
    )


def conclude(
    spec: Spec, run: Run, model: nn.Module, data: Data, result: dict[str, Any], world: World = ALONE
) -> dict[str, Any]:
    """Measures the checkpoints on the test set, adds what is new to the result, and shows it."""
    exam = Evaluator(run, model, data, spec, world)
    facts = exam.facts
    with world.raise_together():
        same_facts(result, facts)
    torch.set_num_threads(result["choices"]["threads"])  # another count rounds otherwise
    if not world.first:
        exam.follow()
        return result
    result["dataset"] = {**result["dataset"], **facts["dataset"]}  # it may lack later facts
    twins = {which: twin(result, which) for which in asked(result, spec.evaluation)}
    exam.check_names(result, twins)
    names = ", ".join(spec.evaluation.measured_by) or "clean accuracy"
    which = " and ".join(twins)
    log.info("measuring %s on %d test images: %s", which, len(exam.indices), names)
    if "lengths" in result:  # an evaluation that was killed may have told of itself already
        run.rewind(result["lengths"])
    dashboard = Dashboard(run.directory)
    for which in asked(result, spec.evaluation):
        if (part := exam.of(which, twins[which])) is None:
            log.warning("checkpoints/%s: is missing, and not measured (record.keep)", FILES[which])
            continue
        before = result.get(which) or {key: result["last"][key] for key in ("step", "epoch")}
        part["masking_checks"] = newer_masking_checks(before, part)
        result[which] = merged(before, part)
        new = alarms_of(which, part)
        result["alarms"] = [*alarms_kept(result.get("alarms", []), which, part), *new]
        at = {"step": before["step"], "epoch": before["epoch"], "checkpoint": which}
        at |= {"images": before["step"] * spec.schedule.batch_size}
        if row := news(before, result[which]):
            run.write_metrics({**at, "seconds": result["wall_seconds"], **row})
            dashboard.scalars(row, at["images"])
        draw(run, dashboard, at, part, new)
    exam.dismiss()
    exam.show(dashboard, result["images"])
    dashboard.conclude(spec.config, final_metrics(result), result["images"])
    dashboard.close()
    run.write_result({**result, "lengths": run.lengths(), "status": "finished"})
    run.drop_checkpoints(spec.record.keep)
    tell(result)
    log.info("\nresults in %s", run.directory)
    if spec.evaluation.curves:
        log.info("figures and data of the curves in %s", run.directory / "curves")
    log.info("dashboard: tensorboard --logdir %s", spec.record.root)
    return result


def draw(run: Run, dashboard: Dashboard, at: dict[str, Any], part: dict[str, Any], alarms) -> None:
    """A checkpoint's curves as files and figures, and its new alarms on the dashboard."""
    which, images = at["checkpoint"], at["images"]
    for name, entry in part["curves"].items():
        label, title = f"{which}-{name}", f"{run.directory.name}, {which}"
        drawn = curves.write(run.directory / "curves", label, title, entry)
        dashboard.figure(f"curves/{label}", drawn, images)
    for alarm in alarms:
        text = f"**{alarm['name']}** ({which}, {alarm['attack']}): {alarm['message']}"
        dashboard.alarm(text, images)


def newer_masking_checks(before: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Those of a measurement that are of at least as many images as the ones before."""
    old = masking_checks_of(before)
    return {
        attack: asked
        for attack, asked in part.get("masking_checks", {}).items()
        if asked["images"] >= old.get(attack, {}).get("images", 0)
    }


def alarms_of(which: str, part: dict[str, Any]) -> list[dict[str, Any]]:
    """The alarms of a measurement: from an ensemble's own numbers, and from what was doubted."""
    checked = {attack: asked["alarms"] for attack, asked in part["masking_checks"].items()}
    return [
        {**alarm, "checkpoint": which, "attack": attack, "from": source}
        for source, found in (("ensemble", part["alarms"]), ("masking_checks", checked))
        for attack, alarms in found.items()
        for alarm in alarms
    ]


def alarms_kept(
    alarms: list[dict[str, Any]], which: str, part: dict[str, Any]
) -> list[dict[str, Any]]:
    """Alarms of before, but for those that this measurement asked after anew."""
    asked = {(which, attack, "ensemble") for attack in part["alarms"]}
    asked |= {(which, attack, "masking_checks") for attack in part["masking_checks"]}
    at = lambda a: (a.get("checkpoint"), a.get("attack"), a.get("from", "masking_checks"))  # noqa: E731
    return [alarm for alarm in alarms if at(alarm) not in asked]


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
    """A checkpoint's results with new attacks added; nothing that was there is touched, but for
    what gives way to the same on more images, and a worst case to that over other attacks."""
    known, clean = before.get("robust", {}), before.get("clean")
    if clean is None or part["clean"]["images"] > clean["images"] or "subset" not in clean:
        clean = part["clean"]
    added = {"clean": clean, "robust": joined(known, part["robust"])}
    if (worst := part["robust"].get(WORST)) and (old := known.get(WORST)):
        added["robust"][WORST] = worst if worst["images"] >= old["images"] else old
    if drawn := joined(before.get("curves", {}), part["curves"]):
        added["curves"] = drawn
    if masking_checks := {**masking_checks_of(before), **part["masking_checks"]}:
        added["masking_checks"] = masking_checks
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


def final_metrics(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of the hyper-parameter table."""
    accuracies = {
        f"{which}/{name}": entry["accuracy"]
        for which, part in measured(result).items()
        for name, entry in {"clean": part["clean"], **part["robust"]}.items()
    }
    return {**accuracies, "alarms": len(result["alarms"])}
