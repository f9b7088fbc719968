"""Real commands killed at many points, started again until they finish, and compared with the same
that nobody has touched.

A third of the kills come from outside, at a random moment of `python -m sat.run`; the others hit a
chosen point (see strikes.py). A sweep loses a worker, its command line, or all of its processes.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import warm

from sat.rundir.lock import is_running
from sat.sweep import is_alive

from .equality import differences
from .strikes import (
    COMMAND,
    EVALUATION,
    MOMENT,
    POINTS,
    RARE,
    STARTING,
    TRAINING,
    WORKER,
    Strike,
)

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 3600  # seconds until a process counts as one that hangs; each takes a few
ORPHANS = 60.0  # seconds; who has lost its command line ends its step, saves and ends

QUICK = ["schedule.precision=fp32", "schedule.epochs=20", "validation.every=4",
         "validation.attack.steps=2", "evaluation.attacks.pgd20.steps=3",
         "record.checkpoint_minutes=0", "device=cpu"]  # fmt: skip
DIGITS = [*QUICK, "dataset.limit=160", "dataset.holdout=30", "schedule.batch_size=32",
          "evaluation.limit=50"]  # fmt: skip
FOLDER = [*QUICK, "dataset=imagefolder", "dataset.root=../../photographs", "dataset.image_size=16",
          "dataset.holdout=8", "schedule.batch_size=16"]  # fmt: skip
RESNET = ["model.depth=10", "model.width=0.0625"]
DROPOUT = ["model=efficientnet", "model.dropout=0.3", "schedule.epochs=4", "validation.every=2"]
# Sets in memory and in folders and mixtures, each decay, average, accumulation, clipping, workers,
# dropout, a scaler, attacks and objectives that remember, no tracker and two, sweeps.
CASES = {
    "digits constant ema": [*DIGITS, *RESNET, "schedule.decay=constant", "schedule.ema=0.9"],
    "digits step accumulate": [*DIGITS, *RESNET, "schedule.decay=step", "schedule.accumulate=3"],
    "digits one_cycle adamw": [*DIGITS, *RESNET, "schedule.decay=one_cycle", "schedule.clip=1",
                               "schedule.optimizer=adamw", "schedule.learning_rate=0.01"],
    "digits cosine fp16, saved rarely": [*DIGITS, *RESNET, "schedule.precision=fp16",
                                         "record.checkpoint_minutes=0.02"],
    "digits dropout ema": [*DIGITS, *DROPOUT, "schedule.ema=0.9"],
    "digits, never saved": [*DIGITS, *RESNET, "record.checkpoint_minutes=100"],
    "folder 2 workers ema accumulate": [*FOLDER, *RESNET, "dataset.workers=2", "schedule.ema=0.9",
                                        "schedule.accumulate=2"],
    "folder 1 worker step clip": [*FOLDER, *RESNET, "dataset.workers=1", "schedule.decay=step",
                                  "schedule.clip=1", "evaluation.masking_checks=0"],
    "folder dropout one_cycle": [*FOLDER, *DROPOUT, "dataset.workers=0",
                                 "schedule.decay=one_cycle"],
    "digits trades norms, no tracker": [*DIGITS, *RESNET, "objective=trades", "schedule.ema=0.9",
                                        "weight_attack=awp", "metrics=gradient_norm", "logger=[]"],
    "digits mixture ramp, two trackers": [
        *DIGITS, *RESNET, "dataset.extra=../../made.npz", "dataset.extra_fraction=0.4",
        "schedule.ema=0.9", "schedule.ema_ramp=true", "weight_attack=awp",
        "+logger.second._target_=sat.loggers.tensorboard.TensorBoard",
    ],
    "digits free": [*DIGITS, *RESNET, "attack=free", "attack.replays=3", "schedule.epochs=12"],
    "digits elle_a fgsm, saved rarely": [*DIGITS, *RESNET, "attack=fgsm", "regulariser=elle_a",
                                         "record.checkpoint_minutes=0.02"],
    "digits apgd mart": [*DIGITS, *RESNET, "attack=apgd", "attack.steps=2", "objective=mart",
                         "schedule.epochs=8"],
    "digits multi swa accumulate": [*DIGITS, *RESNET, "attack=multi", "attack.steps=2",
                                    "schedule.accumulate=2", "schedule.swa_start=0.4",
                                    "schedule.epochs=8"],
    "folder consistency, gradient norms": [*FOLDER, *RESNET, "dataset.workers=1",
                                           "objective=consistency", "metrics=gradient_norm"],
    "sweep of 6, 2 workers": ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *DIGITS,
                              *RESNET, "evaluation.masking_checks=0", "seed=0,1,2,3,4,5"],
}  # fmt: skip


if shutil.which("nvidia-smi"):
    CASES["digits, one CUDA graph"] = [*DIGITS, *RESNET, "device=cuda", "schedule.graph=true"]


def begin(words: list[str], folder: Path, anew: bool) -> subprocess.Popen | warm.Command:
    """A process of its own session in the folder, and what it says in `out` and `err` there: `anew`
    by an interpreter that starts, or forked from one that has imported torch."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if not anew:
        return warm.Command(words, folder, environment, folder)
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        return subprocess.Popen(
            words, cwd=folder, stdout=out, stderr=err, env=environment, start_new_session=True
        )


class Process:
    """A command in a folder of its own; what it says goes to files, since workers that outlive a
    killed process would keep a pipe open."""

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        strike: Strike | None = None,
        anew: bool = False,
    ):
        program = ["-m", "sat.run"]
        if strike is not None and strike.where in POINTS:
            words = json.dumps([strike.where, strike.nth, strike.signals])
            program = [str(Path(__file__).with_name("strikes.py")), words]
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.begun = folder, time.monotonic()
        anew = anew or (strike is not None and strike.where == STARTING)
        self.process = begin([sys.executable, *program, *arguments], folder, anew)

    def ended(self, deadline: float = LONGEST) -> int:
        """Its exit code; killed where it hangs."""
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise SystemExit(f"no end within {deadline:.0f} s: {self.process.args}") from None

    def strike(self, strike: Strike, startup: float, running: float) -> None:
        """Sends the signals at a random moment, from outside: of the start, or after the first line
        of metrics that is new; to the whole group as a terminal does, or to one process."""
        if strike.where != STARTING:
            size = self.written()
            while self.written() == size and self.process.poll() is None:
                time.sleep(0.02)
            startup = running
        time.sleep(strike.nth * startup)
        if self.process.poll() is not None:
            return
        if strike.where == WORKER:
            for worker in workers(self.folder)[:1]:
                os.kill(worker, signal.SIGKILL)
        elif strike.where == COMMAND:
            self.process.kill()
        else:
            for each in strike.signals:
                os.killpg(self.process.pid, signal.Signals[each])

    def written(self) -> int:
        """Bytes of metrics.jsonl."""
        return sum(path.stat().st_size for path in self.folder.glob("outputs/*/metrics.jsonl"))

    def said(self) -> tuple[str, str]:
        return (self.folder / "out").read_text(), (self.folder / "err").read_text()


def workers(folder: Path) -> list[int]:
    """The processes that train right now, by the locks of runs that have no result."""
    locks = [
        path for path in folder.glob("outputs/*/lock") if not path.with_name("result.json").exists()
    ]
    numbers = (re.match(r"process (\d+)", path.read_text()) for path in locks)
    return [int(found[1]) for found in numbers if found and is_alive(int(found[1]))]


def runs_of(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("outputs/*/config.yaml"))


def strikes_of(case: str, draw: random.Random) -> list[Strike]:
    """A few random strikes, in an order in which one run can meet them all."""
    if case.startswith("sweep"):
        return [drawn(draw.choice([WORKER, WORKER, COMMAND, MOMENT]), draw) for _ in range(4)]
    saves = "saved" not in case
    training = [at for at in TRAINING if saves or not TRAINING[at][0].startswith("os.")]
    kinds = [training, [MOMENT, MOMENT, MOMENT, STARTING]]
    first = [draw.choice(kinds[k % 2]) for k in range(draw.randint(1, 4))]
    last = sorted(draw.sample([*EVALUATION], draw.randint(1, 2)), key=[*EVALUATION].index)
    return [drawn(where, draw) for where in (*first, *last)]


def drawn(where: str, draw: random.Random) -> Strike:
    kinds = [("SIGKILL",)] * 4 + [("SIGTERM",), ("SIGINT",)] * 2 + [("SIGTERM", "SIGTERM")]
    if where in (STARTING, WORKER, COMMAND):  # whose answer to a signal is the system's affair
        return Strike(where, draw.random(), ("SIGKILL",))
    if where == MOMENT:
        return Strike(where, 0.6 * draw.random(), draw.choice(kinds))
    return Strike(where, 1 if where in RARE else draw.randint(1, 12), draw.choice(kinds))


@dataclass
class Kill:
    """What became of a process that was to be killed."""

    case: str
    strike: Strike
    code: int
    step: int | None  # of the checkpoint that it left
    wrong: list[str]

    @property
    def hit(self) -> bool:
        return self.code != 0 or self.strike.where == WORKER

    def __str__(self) -> str:
        step = "none" if self.step is None else self.step
        fate = f"code {self.code:4}, checkpoint {step}" if self.hit else "had ended before"
        return f"{self.case:32} {self.strike} {fate} {'; '.join(self.wrong)}".rstrip()


def killed(case: str, process: Process, strike: Strike, before: int | None) -> Kill:
    """The account of a process that has ended, by its code, words and checkpoint; `before` is the
    step of the one that it found: who is asked to stop while it reads that one has no other."""
    code = process.ended()
    out, err = process.said()
    wrong = ["a traceback"] * ("Traceback" in out + err)
    done = any(process.folder.glob("outputs/*/result.json"))  # its interpreter may be ending
    allowed = {0, strike.code} | {-signal.Signals[s] for s in strike.signals if done}
    if strike.where == WORKER:  # twice in a row without a job's end between: one line, and a 1
        allowed = {0, 1}
    if code not in allowed:
        wrong.append(f"expected code {strike.code}: {err[-300:]}")
    found, training = None, strike.where in TRAINING
    for name in ("last.pt", "previous.pt"):
        for path in process.folder.glob(f"outputs/*/checkpoints/{name}"):
            found = step_in(path, wrong) if found is None else found
    asked = code > 0 and len(strike.signals) == 1 and strike.signals != ("SIGKILL",)
    if asked and "the same command goes on from here" not in err + out:
        wrong.append("does not say how to go on")
    stopped = "stopping after this step" in err or found == before
    if asked and training and (found is None or not stopped):
        wrong.append("no checkpoint")
    return Kill(case, strike, code, found, wrong)


def step_in(path: Path, wrong: list[str]) -> int | None:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)["step"]
    except FileNotFoundError:  # a worker that lives on has renamed it
        return None
    except Exception as error:  # torch raises many kinds
        wrong.append(f"{path.name}: {error}")
        return None


@dataclass
class Alone:
    """A case that nobody disturbs, and the seconds until it trains and from then on."""

    case: str
    folder: Path
    arguments: list[str]
    startup: float = 0.0
    running: float = 0.0

    def run(self) -> "Alone":
        process = Process(self.folder, self.arguments, anew=True)
        while not process.written() and process.process.poll() is None:
            time.sleep(0.02)
        self.startup = time.monotonic() - process.begun
        if code := process.ended():
            raise SystemExit(f"{self.case}: alone it ends with code {code}: {process.said()[1]}")
        self.running = time.monotonic() - process.begun - self.startup
        return self


def struck(alone: Alone, strikes: list[Strike], folder: Path) -> list[Kill]:
    """One command of a case, killed with each strike in turn and started again until it finishes;
    the last account holds what tells it from the one that stayed alone."""
    kills, code, finished, seen = [], 1, {}, set()
    for strike in strikes:
        process = Process(folder, alone.arguments, strike)
        if strike.where not in POINTS:
            process.strike(strike, alone.startup, alone.running)
        seen |= {*workers(folder)}
        kills.append(killed(alone.case, process, strike, kills[-1].step if kills else None))
        finished = times_of(folder) | finished
        if (code := kills[-1].code) == 0:
            break
    for _ in range(2):  # a sweep ends once more where a worker was killed twice
        if code:
            last = Process(folder, alone.arguments)
            code = last.ended()
    wrong = [f"{path}: was changed after the run had finished"
             for path, time_of in finished.items()
             if not path.exists() or path.stat().st_mtime_ns != time_of]  # fmt: skip
    if code:
        wrong.append(f"started again it ends with code {code}: {last.said()[1]}")
    else:
        ours, theirs = runs_of(alone.folder), runs_of(folder)
        wrong += ["other runs"] * ([run.name for run in ours] != [run.name for run in theirs])
        for one, two in zip(ours, theirs, strict=False):
            wrong += differences(one, two)
    wrong += orphans(seen)
    kills[-1].wrong += wrong
    return kills


def times_of(folder: Path) -> dict[Path, int]:
    """When each file of the runs that have finished was last written."""
    found: dict[Path, int] = {}
    for run in runs_of(folder):
        if (run / "result.json").exists() and not is_running(run):
            if json.loads((run / "result.json").read_text())["status"] == "finished":
                kept = [*run.glob("*.json*"), *run.glob("checkpoints/last.pt")]
                found |= {path: path.stat().st_mtime_ns for path in kept}
    return found


def orphans(seen: set[int]) -> list[str]:
    """Workers that live on though their command line is gone."""
    until = time.monotonic() + ORPHANS
    while (left := [process for process in seen if is_alive(process)]) and time.monotonic() < until:
        time.sleep(0.1)
    return [f"process {process} still lives" for process in left]


def made(path: Path) -> None:
    """Grey images beside the digits, of all classes."""
    import numpy as np

    images = np.random.default_rng(0).integers(256, size=(60, 8, 8), dtype=np.uint8)
    np.savez(path, image=images, label=np.arange(60) % 10)


def photographs(folder: Path) -> None:
    """Two classes of noisy images, one dark and one light."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10)):
        for label, level in (("dark", 90), ("light", 160)):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = (level + noise.normal(0, 60, (16, 16, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number:02}.png")


@dataclass
class Kills:
    """Trials by number: the same number is the same case with the same strikes."""

    folder: Path
    alone: dict[str, Alone] = field(default_factory=dict)

    def __post_init__(self) -> None:
        photographs(self.folder / "photographs")
        made(self.folder / "made.npz")

    def attempt(self, number: int) -> tuple[int, list[str]]:
        """How many were killed, and what was wrong; prints a line for each."""
        case = [*CASES][number % len(CASES)]
        place = self.folder / f"case{number % len(CASES)}"
        if case not in self.alone:
            self.alone[case] = Alone(case, place / "alone", CASES[case]).run()
        strikes = strikes_of(case, random.Random(f"kills {number}"))
        kills = struck(self.alone[case], strikes, place / f"killed{number}")
        for kill in kills:
            print(kill, flush=True)
        wrong = [f"{case}: {line}" for kill in kills for line in kill.wrong]
        return sum(kill.hit for kill in kills), wrong
