"""From a run's checkpoints to `result.json`: the test set is touched here, and only here."""

import logging
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from sat import checkpoint
from sat.config import Spec
from sat.console import Progress, table
from sat.dashboard import Dashboard
from sat.data import Data
from sat.draws import Draws
from sat.errors import Fault, Refused
from sat.evaluate import Evaluation, Flags, accuracy, float32, measure, robustness
from sat.journal import facts_of, indexed, same_facts
from sat.record import CHECKPOINTS, Run, code_digest, read_result

log = logging.getLogger("sat")
WHOLE = [None, None]  # the subset that is the whole test set
WORST = "worst_case"  # over all attacks of an evaluation, image by image


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
    log.info("%s", summary(result))
    return result


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
    kept = [w for w in CHECKPOINTS if (directory / "checkpoints" / f"{w}.pt").exists()]
    done = all(
        result[which].get("robust", {}).get(name, {}).get("settings") == evaluation.settings(name)
        for which in kept or CHECKPOINTS
        for name in evaluation.attacks
    ) and all(clean_covers(result[which], evaluation) for which in kept or CHECKPOINTS)
    worst = result["last"].get("robust", {}).get(WORST, {}).get("attacks")
    done = done and (len(evaluation.attacks) < 2 or worst == list(evaluation.attacks))
    if not done and not kept:
        raise Refused(
            f"{directory}: no checkpoint stayed to be measured (record.keep); record.fresh=true"
            " trains again"
        )
    return done


def clean_covers(part: dict[str, Any], evaluation: Evaluation) -> bool:
    """Whether clean accuracy is there, on the whole test set or on the part that is asked for."""
    subset = part.get("clean", {}).get("subset")
    return subset is not None and subset in (WHOLE, evaluation.subset)


def conclude(
    spec: Spec, run: Run, model: nn.Module, data: Data, result: dict[str, Any]
) -> dict[str, Any]:
    """Measures `best` and `last` on the test set, adds what is new to the result, and shows it."""
    same_facts(result, {"hash": spec.hash, "dataset": facts_of(data)})
    torch.set_num_threads(result["choices"]["threads"])  # another count rounds otherwise
    exam = Examination(run, model, data, spec.evaluation, spec.seed)
    exam.check_names()
    dashboard = Dashboard(run.directory)
    twins = result["best"]["step"] == result["last"]["step"]
    for which, twin in (("last", "best"), ("best", "last")):
        if (part := exam.of(which, twin if twins else None)) is None:
            log.warning("%s: its checkpoint was not kept (record.keep)", which)
            continue
        before = result[which]
        result[which] = merged(before, part)
        at = {"step": before["step"], "epoch": before["epoch"], "checkpoint": which}
        at |= {"images": before["step"] * spec.schedule.batch_size}
        if row := news(before, result[which]):
            run.write_metrics({**at, "seconds": result["wall_seconds"], **row})
            dashboard.scalars(row, at["images"])
    exam.show(dashboard, result["images"])
    dashboard.hyperparameters(spec.config, final_metrics(result))
    dashboard.close()
    run.write_result({**result, "status": "finished"})
    run.drop_checkpoints(spec.record.keep)
    log.info("\n%s\n\nresults in %s", summary(result), run.directory)
    log.info("dashboard: tensorboard --logdir %s", spec.record.root)
    return result


def news(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """What an evaluation added to a checkpoint's results, by tag."""
    row = {
        f"test/robust/{name}": entry["accuracy"]
        for name, entry in after["robust"].items()
        if name not in before.get("robust", {})
    }
    if before.get("clean") != after["clean"]:
        row["test/clean"] = after["clean"]["accuracy"]
    return row


class Examination:
    """Measures the checkpoints of one run on the test set, attack by attack.

    What was measured before, by this process or by one that was killed, is read from the flags.
    """

    def __init__(self, run: Run, model: nn.Module, data: Data, evaluation: Evaluation, seed: int):
        self.run, self.model, self.data = run, model, data
        self.evaluation, self.seed = evaluation, seed
        self.indices = data.test_subset(evaluation.limit, evaluation.subset_seed)

    def check_names(self) -> None:
        """Raises Refused when a name of an attack is taken by one with other settings."""
        for which in CHECKPOINTS:
            for name in self.evaluation.attacks:
                self.run.read_flags(f"{which}-{name}", self.evaluation.settings(name))

    def of(self, which: str, twin: str | None = None) -> dict[str, Any] | None:
        """One checkpoint's part of `result.json`; None where the checkpoint is gone.

        `twin` names a checkpoint with the same weights, whose flags serve as well.
        """
        files = [self.run.checkpoints / f"{name}.pt" for name in (which, twin or which)]
        if (path := next((file for file in files if file.exists()), None)) is None:
            return None
        state = checkpoint.read(path)
        self.model.load_state_dict(state.get("average") or state["model"])
        settings = self.evaluation.settings
        flags = {name: self._flags(which, name, twin) for name in self.evaluation.attacks}
        robust = {
            name: robustness(f, self.evaluation.attacks[name], settings(name))
            for name, f in flags.items()
        }
        clean = next(iter(flags.values())) if flags else self._measure(which, None)
        part = {"clean": {**accuracy(clean.clean), "subset": self.evaluation.subset}}
        if len(flags) > 1:
            worst = torch.stack([f.robust for f in flags.values()]).all(0)
            robust[WORST] = {**accuracy(worst), "attacks": list(flags)}
        return {**part, "robust": robust}

    def _flags(self, which: str, name: str, twin: str | None) -> Flags:
        settings = self.evaluation.settings(name)
        for source in filter(None, (which, twin)):
            if (found := self.run.read_flags(f"{source}-{name}", settings)) is not None:
                seconds = float(found["seconds"])
                flags = Flags(*map(torch.from_numpy, (found["clean"], found["robust"])), seconds)
                if source == which:
                    return flags
                break
        else:
            flags = self._measure(which, name)
        self.run.write_flags(
            f"{which}-{name}", settings, clean=flags.clean.numpy(), robust=flags.robust.numpy(),
            indices=self.indices.numpy(), seconds=flags.seconds,
        )  # fmt: skip
        return flags

    def _measure(self, which: str, name: str | None) -> Flags:
        attack = self.evaluation.attacks[name] if name else None
        bar = Progress(f"{which}: {name or 'clean'}", len(self.indices))

        def batches():
            for batch in indexed(self.data.test, self.indices, self.evaluation):
                yield batch
                bar.advance(len(batch[0]))

        try:
            with float32(self.model):
                restarts = self.evaluation.restarts if attack else 0
                return measure(self.model, batches(), attack, self.seed, restarts)
        finally:
            bar.close()

    def show(self, dashboard: Dashboard, images: int) -> None:
        """Eight test images, clean and adversarial, on the dashboard."""
        attack = next(iter(self.evaluation.attacks.values()), None)
        if attack is None:
            return
        self.model.eval()
        chosen = self.indices[:8]
        for indices, x, y in indexed(self.data.test, chosen, self.evaluation):
            with float32(self.model):
                x_adv = attack(self.model, x, y.clamp_min(0), Draws(0, indices.to(x.device)))
            dashboard.pictures(x, x_adv, images)


def merged(before: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's results with new attacks added; nothing that was there is touched.

    Clean accuracy and the worst case over several attacks are those of the latest evaluation,
    but what was measured on the whole test set gives way to no part of it.
    """
    clean = part["clean"]
    if before.get("clean", {}).get("subset") == WHOLE:
        clean = before["clean"]
    old = {name: e for name, e in before.get("robust", {}).items() if name != WORST}
    return {**before, "clean": clean, "robust": {**part["robust"], **old}}


def summary(result: dict[str, Any]) -> str:
    """The table at the end of a run: clean and under each attack, with intervals."""
    rows = []
    for which in ("best", "last"):
        if "clean" not in (part := result[which]):
            continue
        label = f"{which} (epoch {part['epoch']:.1f})"
        for name, entry in {"clean": part["clean"], **part["robust"]}.items():
            rows.append([label, name, f"{entry['images']:,}", percent(entry)])
            label = ""
    return table(["checkpoint", "attack", "images", "accuracy (95 % interval)"], rows)


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
        for which in CHECKPOINTS
        if (part := result.get(which))
        for name, entry in {"clean": part["clean"], **part["robust"]}.items()
    }
