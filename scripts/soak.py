"""Kills real runs at many points, starts them again with the same command until they finish, and
compares them with runs that nobody has touched:

    make soak                                        # 54 kills
    make soak ARGS="--kills 12 --seed 3 --only folder"

A third of the kills come from outside, at a random moment of `python -m sat.run`; the others hit a
chosen point (see strikes.py). Exit code 1 where anything differs or was not said.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from equality import differences
from strikes import EVALUATION, MOMENT, POINTS, RARE, STARTING, TRAINING, Strike

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 3600  # seconds until a process counts as one that hangs; each takes a few

QUICK = ["schedule.precision=fp32", "schedule.epochs=20", "validation.every=4",
         "validation.attack.steps=2", "evaluation.attacks.pgd20.steps=3",
         "record.checkpoint_minutes=0"]  # fmt: skip
DIGITS = [*QUICK, "dataset.limit=160", "dataset.holdout=30", "schedule.batch_size=32",
          "evaluation.limit=50"]  # fmt: skip
FOLDER = [*QUICK, "dataset=imagefolder", "dataset.root=../../photographs", "dataset.image_size=16",
          "dataset.holdout=8", "schedule.batch_size=16"]  # fmt: skip
RESNET = ["model.depth=10", "model.width=0.0625"]
DROPOUT = ["model=efficientnet", "model.dropout=0.3", "schedule.epochs=4", "validation.every=2"]
# Sets in memory and in folders, each decay, average, accumulation, clipping, workers, dropout, a
# scaler.
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
}  # fmt: skip


class Process:
    """A command in a folder of its own; what it says goes to files, since workers that outlive a
    killed process would keep a pipe open."""

    def __init__(self, folder: Path, arguments: list[str], strike: Strike | None = None):
        program = ["-m", "sat.run"]
        if strike is not None and strike.where in POINTS:
            words = json.dumps([strike.where, strike.nth, strike.signals])
            program = [str(ROOT / "scripts/strikes.py"), words]
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.begun = folder, time.monotonic()
        with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *program, *arguments], cwd=folder, stdout=out, stderr=err,
                env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
            )  # fmt: skip

    def ended(self, deadline: float = LONGEST) -> int:
        """Its exit code; killed where it hangs."""
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise SystemExit(f"no end within {deadline:.0f} s: {self.process.args}") from None

    def strike(self, strike: Strike, startup: float, running: float) -> None:
        """Sends the signals at a random moment, from outside, to the whole group as a terminal
        does: of the start, or after the first line of metrics that is new."""
        if strike.where == MOMENT:
            size = self.written()
            while self.written() == size and self.process.poll() is None:
                time.sleep(0.02)
            startup = running
        time.sleep(strike.nth * startup)
        if self.process.poll() is None:
            for each in strike.signals:
                os.killpg(self.process.pid, signal.Signals[each])

    def written(self) -> int:
        """Bytes of metrics.jsonl."""
        return sum(path.stat().st_size for path in self.folder.glob("outputs/*/metrics.jsonl"))

    def said(self) -> tuple[str, str]:
        return (self.folder / "out").read_text(), (self.folder / "err").read_text()


def run_of(folder: Path) -> Path:
    (config,) = folder.glob("outputs/*/config.yaml")
    return config.parent


def strikes_of(case: str, draw: random.Random) -> list[Strike]:
    """A few random strikes, in an order in which one run can meet them all."""
    saves = "saved" not in case
    training = [at for at in TRAINING if saves or not TRAINING[at][0].startswith("os.")]
    kinds = [training, [MOMENT, MOMENT, MOMENT, STARTING]]
    first = [draw.choice(kinds[k % 2]) for k in range(draw.randint(1, 4))]
    last = sorted(draw.sample([*EVALUATION], draw.randint(1, 2)), key=[*EVALUATION].index)
    return [drawn(where, draw) for where in (*first, *last)]


def drawn(where: str, draw: random.Random) -> Strike:
    kinds = [("SIGKILL",)] * 4 + [("SIGTERM",), ("SIGINT",)] * 2 + [("SIGTERM", "SIGTERM")]
    if where == STARTING:  # before the program has set its handlers a signal is the system's affair
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
        return self.code != 0

    def __str__(self) -> str:
        step = "none" if self.step is None else self.step
        fate = f"code {self.code:4}, checkpoint {step}" if self.hit else "had ended before"
        return f"{self.case:32} {self.strike} {fate} {'; '.join(self.wrong)}".rstrip()


def killed(case: str, process: Process, strike: Strike) -> Kill:
    """The account of a process that has ended, by its code, words and checkpoint."""
    code = process.ended()
    out, err = process.said()
    wrong = ["a traceback"] * ("Traceback" in out + err)
    done = any(process.folder.glob("outputs/*/result.json"))  # its interpreter may be ending
    if code not in (0, strike.code, *[-signal.Signals[s] for s in strike.signals if done]):
        wrong.append(f"expected code {strike.code}: {err[-300:]}")
    found, training = None, strike.where in TRAINING
    for name in ("last.pt", "previous.pt"):
        for path in process.folder.glob(f"outputs/*/checkpoints/{name}"):
            found = step_in(path, wrong) if found is None else found
    asked = code > 0 and len(strike.signals) == 1 and strike.signals != ("SIGKILL",)
    if asked and "the same command goes on from here" not in err:
        wrong.append("does not say how to go on")
    if asked and training and (found is None or "stopping after this step" not in err):
        wrong.append("no checkpoint")
    return Kill(case, strike, code, found, wrong)


def step_in(path: Path, wrong: list[str]) -> int | None:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)["step"]
    except Exception as error:  # torch raises many kinds
        wrong.append(f"{path.name}: {error}")
        return None


@dataclass
class Alone:
    """A case that nobody disturbs, and the seconds until it trains and from then on."""

    case: str
    folder: Path
    startup: float = 0.0
    running: float = 0.0

    def run(self) -> None:
        process = Process(self.folder, CASES[self.case])
        while not process.written() and process.process.poll() is None:
            time.sleep(0.02)
        self.startup = time.monotonic() - process.begun
        if code := process.ended():
            raise SystemExit(f"{self.case}: alone it ends with code {code}: {process.said()[1]}")
        self.running = time.monotonic() - process.begun - self.startup


def struck(alone: Alone, strikes: list[Strike], folder: Path, tell: Callable[[Kill], None]):
    """One run of a case, killed with each strike in turn and started again until it finishes; the
    last account holds what tells it from the one that stayed alone."""
    arguments, kills, code = CASES[alone.case], [], 1
    for strike in strikes:
        process = Process(folder, arguments, strike)
        if strike.where not in POINTS:
            process.strike(strike, alone.startup, alone.running)
        kills.append(killed(alone.case, process, strike))
        code = kills[-1].code
        tell(kills[-1])
        if code == 0:
            break
    if code:
        last = Process(folder, arguments)
        if code := last.ended():
            wrong = f"started again it ends with code {code}: {last.said()[1]}"
            kills[-1].wrong.append(wrong)
    if not code:
        kills[-1].wrong += differences(run_of(alone.folder), run_of(folder))
    return kills


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


def soak(case: str, count: int, folder: Path, seed: int) -> list[Kill]:
    """Runs of a case until so many processes have been killed."""
    draw, kills, number = random.Random(f"{seed} {case}"), [], 0
    alone = Alone(case, folder / "alone")
    if count:
        alone.run()
    while (left := count - sum(kill.hit for kill in kills)) > 0:
        number += 1
        strikes = strikes_of(case, draw)[:left]
        say = lambda kill: print(kill, flush=True)  # noqa: E731
        kills += struck(alone, strikes, folder / f"killed{number}", say)
        for line in kills[-1].wrong:
            print(f"! {case}: {line}", flush=True)
    return kills


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=54, help="in all, shared out among the cases")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed where")
    parser.add_argument("--only", default="", help="the cases whose names hold this")
    return parser.parse_args()


def summary(kills: list[Kill]) -> str:
    """How many were killed where, and by what."""
    hits = [kill for kill in kills if kill.hit]
    lines = []
    titles: dict[str, Callable[[Kill], str]] = {
        "where": lambda kill: kill.strike.where,
        "by": lambda kill: "+".join(kill.strike.signals),
        "case": lambda kill: kill.case,
    }
    for title, of in titles.items():
        lines += ["", f"killed, {title}"]
        lines += [f"{count:4}  {name}" for name, count in Counter(map(of, hits)).most_common()]
    wrong = sum(bool(kill.wrong) for kill in kills)
    lines += ["", f"{len(hits)} killed and started again, {len(kills) - len(hits)} had ended"
              f" before; {wrong} wrong"]  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    asked = parsed()
    cases = [case for case in CASES if asked.only in case]
    if not cases:
        print(f"--only {asked.only}: no such case; there are: {', '.join(CASES)}", file=sys.stderr)
        return 2
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory() as place:
        photographs(Path(place) / "photographs")
        for number, case in enumerate(cases):
            count = asked.kills // len(cases) + (number < asked.kills % len(cases))
            kills += soak(case, count, Path(place) / f"case{number}", asked.seed)
    print(summary(kills))
    return int(any(kill.wrong for kill in kills))


if __name__ == "__main__":
    sys.exit(main())
