"""Files that are read, damaged at random: the answer is a clear message or a correct run, never a
traceback, a hang or a changed result."""

import json
import os
import random
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import yaml

from .asked import TINY, answer, ask

CHEAP = ["evaluation=clean", "evaluation.limit=60", "evaluation.masking_checks=0"]
OWN = [*TINY, "schedule.ema=0.5"]
SET = [*(word for word in TINY if "pgd20" not in word), "dataset.limit=null",
       "dataset.holdout=10", "dataset.image_size=8", "evaluation=clean", "schedule.batch_size=8",
       "attack=none"]  # fmt: skip
# Of a run, by their place in it; of a set, by theirs beside the runs.
OF_RUN = {
    "checkpoint": "checkpoints/*.pt", "flags": "flags/*.npz", "result": "result.json",
    "config": "config.yaml", "metrics": "metrics.jsonl", "events": "events.*", "texts": "*.txt",
    "no files": "**/*.*",
}  # fmt: skip
OF_SET = {"npz": "digits.npz", "image": "pictures/*/*/*.png"}
KINDS = {**OF_RUN, **OF_SET}
GROWS = ("log.txt", "lock", "experiments.txt")  # of which nothing is a result
BELIEVED = ("result.json", "last.pt", "best.pt")  # what reads well there is another result
STRANGE = [
    None, True, -1, 0, 1.5, 2**70, -(10**400), 1e308, float("nan"), float("inf"), "", "x" * 5000,
    "../../x", "${oc.env:HOME}", "${seed}", "sat.run.main", "nan", "\0", "é\u202e\n", [], {}, [[]],
    [None], {"_target_": "os.system", "command": "true"}, {"": {"": []}}, [0] * 1000,
]  # fmt: skip
LAUGHS = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n".encode() for a, b in pairwise("abcdefghij")
)
OTHERS = [b"", b"\0" * 99, b"[" * 99999, b"{a: " * 9999, b"\x80\x04K\x01.", b"\xff\xfe", b"null",
          b"1", b"a: &a [*a]\n", LAUGHS]  # fmt: skip


def altered(tree, draw: random.Random):
    """A copy with one value strange, missing, moved or buried."""
    if isinstance(tree, dict | list) and tree and draw.random() < 0.85:
        names = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        copy, name = tree.copy(), draw.choice(names)
        action = draw.random()
        if action < 0.1:
            del copy[name]
        elif action < 0.2:
            copy[name] = copy[draw.choice(names)]
        elif action < 0.25 and isinstance(copy, dict):
            copy[draw.choice(["", "../../x", 5, None, "x y", f"{name}_"])] = copy.pop(name)
        else:
            copy[name] = altered(copy[name], draw)
        return copy
    if isinstance(tree, torch.Tensor):
        return draw.choice([tree.double(), tree[None], tree * float("nan"), tree.flatten()[:1], 0])
    return draw.choice(STRANGE)


def scratched(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, some lost, doubled or added, or all of them something else."""
    content, at = bytearray(content), draw.randrange(len(content) + 1)
    action = draw.randrange(6)
    if action == 0:
        return bytes(content[:at])
    if action == 1:
        return bytes(content[:at] + content[at : at + 300] + content[at:])
    if action == 2:
        return draw.choice(OTHERS)
    for _ in range(draw.choice([1, 3, 30])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


def damage(path: Path, draw: random.Random) -> bool:
    """One random edit of a file, in its bytes or in its own terms; whether the latter."""
    raw = path.suffix not in (".json", ".yaml", ".pt", ".npz", ".txt", ".jsonl")
    if raw or not path.stat().st_size or draw.random() < 0.4:
        path.write_bytes(scratched(path.read_bytes() or b"x", draw))
        return False
    if path.suffix == ".json":
        path.write_text(json.dumps(altered(json.loads(path.read_text()), draw), skipkeys=True))
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(altered(yaml.safe_load(path.read_text()), draw)))
    elif path.suffix == ".pt":
        torch.save(altered(torch.load(path, weights_only=True), draw), path)
    elif path.suffix == ".npz":
        with np.load(path) as file:
            arrays = dict(file)
        name = draw.choice(list(arrays))
        found = arrays.pop(name)
        arrays |= draw.choice([
            {}, {name: found[None]}, {name: found.astype("U")}, {"x": found},
            {name: np.array(draw.choice(STRANGE))}, {name: np.repeat(found, 2)},
            {name: np.array({"a": 1})},
        ])  # fmt: skip
        np.savez(path, **arrays)
    else:
        lines = path.read_text().splitlines()
        at = draw.randrange(len(lines))
        given = altered(json.loads(lines[at]), draw) if path.suffix == ".jsonl" else None
        lines[at] = json.dumps(given) if given is not None else str(draw.choice(STRANGE))
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    return True


def replaced(path: Path, draw: random.Random) -> bool:
    """A pipe, a device, a folder, or a link in the place of a file."""
    path.unlink()
    kind = draw.randrange(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    else:
        path.symlink_to(["/dev/zero", "/dev/null", path.name][kind - 2])  # the last is a ring
    return False


def content_of(run: Path) -> dict[str, bytes]:
    files = [path for path in run.rglob("*") if path.is_file() and path.name not in GROWS]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def numbers(run: Path) -> dict:
    """What a result says of what the run was asked for."""
    result = json.loads((run / "result.json").read_text())
    parts = {which: result[which] for which in ("last", "best")}
    found = {w: [part["clean"], part["robust"]["pgd20"]] for w, part in parts.items()}
    return {w: [[e["accuracy"], e["images"]] for e in entries] for w, entries in found.items()}


def report_of(root: Path) -> list[str]:
    """What is wrong with the reports of a folder of runs; no figure is drawn."""
    from sat.run import main

    wrong = []
    with patch("sat.report.figures.draw", lambda tables, folder: []):
        for words in ([str(root)], ["--status", str(root)]):
            told = answer(main, "sat-report", *words)
            if told.code not in (0, 2) or any(w in told.err for w in ("Traceback", "Warning")):
                wrong.append(f"report: {told.code} {told.err[-500:]}")
    return wrong


@dataclass
class Files:
    """Trials by number, each on a copy of a finished run and its set."""

    folder: Path

    def __post_init__(self) -> None:
        from sklearn.datasets import load_digits

        from .kills import photographs

        images, labels = load_digits(return_X_y=True)
        x, y = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8), labels
        place = self.folder / "tried"  # always the same: a set that moved is read anew
        place.mkdir(parents=True)
        np.savez(place / "digits.npz", x_train=x[:80], y_train=y[:80], x_test=x[80:110],
                 y_test=y[80:110])  # fmt: skip
        photographs(place / "pictures")
        self.runs, self.right = {}, []
        for name in ("run", "npz", "image"):
            done = ask(*self.words(name, place))
            assert done.code == 0, done.err
            (config,) = place.glob(f"outputs-{name}/*/config.yaml")
            self.runs[name] = config.parent.relative_to(place)
        run = place / self.runs["run"]
        (run / "experiments.txt").write_text("activations\nalpha\n")
        again = shutil.copytree(run, self.folder / "again" / run.name)
        assert ask(f"evaluate={again}", *CHEAP).code == 0
        self.right = [numbers(run), numbers(again)]
        shutil.copytree(place, self.folder / "whole")

    @staticmethod
    def words(name: str, place: Path) -> list[str]:
        """The command of a run; of a set of its own for that of these names."""
        own = {
            "run": OWN,
            "npz": ["dataset=npz", f"dataset.path={place}/digits.npz", "dataset.crop=1", *SET],
            "image": ["dataset=imagefolder", f"dataset.root={place}/pictures", *SET,
                      "dataset.workers=0"],
        }  # fmt: skip
        return [f"record.root={place}/outputs-{name}", *own[name]]

    def attempt(self, kind: str, number: int) -> tuple[int, list[str]]:
        """One file damaged; then the run is asked again, measured and reported: how many files,
        and what was wrong."""
        draw = random.Random(f"files {kind} {number}")
        tried = self.folder / "tried"
        shutil.rmtree(tried, ignore_errors=True)
        shutil.copytree(self.folder / "whole", tried)
        name = kind if kind in OF_SET else "run"
        run = tried / self.runs[name]
        if kind in OF_SET:
            wrong = self._of_set(draw.choice(sorted(tried.glob(OF_SET[kind]))), name, run, draw)
        else:
            there = sorted(path for path in run.glob(OF_RUN[kind]) if path.is_file())
            wrong = self._of_run(kind, draw.choice(there), run, draw)
        wrong += report_of(run.parent)
        return 1, [f"{kind} {number}: {line}" for line in wrong]

    def _right(self, found: dict, said: str) -> bool:
        """Whether numbers are those of the run or of its measurement; where a checkpoint was told
        to be gone, each of them on its own."""
        if found in self.right or "is missing, and not measured" not in said:
            return found in self.right
        return all(found[which] in [right[which] for right in self.right] for which in found)

    def _of_set(self, path: Path, name: str, run: Path, draw: random.Random) -> list[str]:
        before = content_of(run)
        damage(path, draw)
        wrong = ask(*self.words(name, run.parents[1])).complaints()
        return wrong + ["a finished run was changed"] * (content_of(run) != before)

    def _of_run(self, kind: str, path: Path, run: Path, draw: random.Random) -> list[str]:
        if stopped := draw.random() < 0.5:
            if path.name == "result.json":
                stopped = False
            else:
                (run / "result.json").unlink()
        last = run / "checkpoints/last.pt"
        if stopped and draw.random() < 0.5:
            shutil.copy(last, last.with_name("previous.pt"))
        harm = replaced if kind == "no files" else damage
        believed = harm(path, draw) and path.name in BELIEVED
        commands = [self.words("run", run.parents[1]), [f"evaluate={run}", *CHEAP]]
        wrong, said = [], ""
        for words in draw.sample(commands, 2):
            before = content_of(run)
            done = ask(*words)
            wrong, said = wrong + done.complaints(), said + done.err
            after = content_of(run)
            # it may have trained before it saw the damage, or knew the weights that were measured
            if stopped and (kind != "flags" or "was measured on other" in done.err):
                own = str(path.relative_to(run))
                before, after = ({own: of.get(own)} for of in (before, after))
            wrong += ["refused, and changed"] * (done.code == 2 and before != after)
            if not believed and done.code == 0 and (run / "result.json").is_file():
                found = numbers(run)
                wrong += [f"other numbers: {found}"] * (not self._right(found, said))
        return [f"{path.relative_to(run)}, stopped {stopped}: {line}" for line in wrong]
