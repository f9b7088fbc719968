"""Command lines by number: typos, wrong types, extreme numbers, odd text, interpolations."""

import random
import tempfile
from functools import cache
from pathlib import Path
from unittest.mock import patch

import yaml

from sat.config import CONF, SCALARS, options
from sat.errors import Refused

from .asked import TINY, ask, ask_process

ODD = [
    "", "0", "1", "-1", "1.5", "1e400", "-0.0", ".nan", "inf", "nan", "9" * 400, "1_000", "0x10",
    "1e18", "1.7e308", "5e-324", "1e39", "8/255", "0.3/1", "[]", "[1,2]", "[[[]]]", "{}", "{a:1}",
    "{_target_:os.system}", "a,b", "1,2,3", "range(1,3)", "choice(a,b)", "${oc.env:HOME}",
    "${seed}", "${nothing}", "${", "???", "'", '"', "\\", "~", "../../x", "/dev/null",
    "/etc/passwd", "x" * 3000, "a b", "=", "==", "\n", "é", "\u202e", "\udce9", "null", "true",
    "off", "auto", "os.system", "sat.run.main", "sat.data.Digits", "sat.attacks.PGD", "[a", "{a",
    "(", ")", "\t", "%s", "$_$", "{x:{y:{z:1}}}",
]  # fmt: skip
GOOD = [
    "activation=gelu", "activation=elu activation.alpha=2", "dataset.eps=8", "dataset.norm=l2",
    "dataset=npz dataset.path=x.npz dataset.name=../../x", "seed=1e1", "schedule.epochs=0.5",
    "+attack@evaluation.attacks.x=pgd", "model=timm model.name=../x", "-m seed=1,2,1",
    "model.mean=[0.5] model.std=[.5]", "dataset=imagefolder dataset.root=/", "evaluate=x",
    "attack={_target_:sat.attacks.PGD,eps:1}", "attack.eps=0.25/255", "-m", "--nothing", "--",
]  # fmt: skip
HYDRA = [
    "hydra.job.chdir=true", "hydra.run.dir=elsewhere", "hydra.run.dir=/proc/x", "hydra.mode=RUN",
    "hydra.sweep.dir=elsewhere", "hydra.sweep.subdir=../x", "hydra.output_subdir=x", "--cfg job",
    "hydra.verbose=true", "hydra/job_logging=disabled", "hydra.sweeper.params={seed:'1,2'}",
    "hydra.mode=MULTIRUN", "hydra.job.name=x", "--help", "--info", "--resolve", "--package x",
    "--config-name=x", "--config-dir=.", "--experimental-rerun x", "hydra.callbacks=null",
    "objective=${oc.create:[1]}", "hydra/launcher=nothing", "hydra.searchpath=[file:///x]",
]  # fmt: skip
NOTHING = "nothing is trained here"


@cache
def keys() -> list[str]:
    """Groups, and every key of each option."""
    found = {*SCALARS, "_target_", "choices", "record.root", "attack._target_"}
    for group, names in options().items():
        found.add(group)
        for name in names:
            option = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
            found |= {f"{group}.{key}" for key in option or () if key != "defaults"}
    return sorted(found)


def text(draw: random.Random) -> str:
    ranges = [(32, 127), (32, 127), (128, 0x3000), (0x1F300, 0x1F600), (1, 32)]
    return "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(12)))


def key(draw: random.Random) -> str:
    """One that is there, or with a letter more, less or changed, or any text."""
    name = draw.choice(keys())
    if draw.random() < 0.6:
        return name
    at = draw.randrange(len(name) + 1)
    near = name[:at] + draw.choice(["", "x", ".", "@", "/", "_", "é"]) + name[at + 1 :]
    return draw.choice([near, near, text(draw)])


def value(draw: random.Random, name: str) -> str:
    named = options().get(name)
    if named and draw.random() < 0.7:
        return draw.choice(named)
    number = draw.choice(
        [str(draw.randrange(-(10**6), 10**6)), repr(10 ** draw.uniform(-300, 300))]
    )
    return draw.choice([number, draw.choice(ODD), draw.choice(ODD), text(draw)])


def line(number: int, hydras: bool = False) -> list[str]:
    """The words of the command line of that number, with one of Hydra's own keys or without."""
    draw, words = random.Random(f"lines {number} {hydras}"), []
    for _ in range(draw.randint(1, 4)):
        if draw.random() < 0.4:
            words += draw.choice(GOOD).split()
            continue
        name = key(draw)
        prefix = draw.choice(["", "", "", "", "+", "++", "~"])
        words.append(draw.choice([f"{prefix}{name}={value(draw, name)}"] * 5 + [text(draw)]))
    words = [word.replace("\0", "") for word in words]
    words = [word for word in words if not word.lstrip("+~").startswith("hydra")]
    return words + (draw.choice(HYDRA).split() if hydras else [])


def attempt(number: int, hydras: bool = False) -> tuple[int, list[str]]:
    """Answers a line in this process, where nothing is trained: how many, and what was wrong."""
    words, places = line(number, hydras), []

    def trains_nothing(spec, *rest, **more):
        yaml.safe_load(spec.yaml())
        places.append((Path("outputs") / spec.name).resolve().parent)
        raise Refused(NOTHING)

    with patch("sat.run.execute", trains_nothing):
        done = ask(*words)
    wrong = done.complaints() or ["a fault, where nothing is trained"] * (done.code == 1)
    wrong += ["outside of its folder"] * any(p != Path("outputs").resolve() for p in places)
    return 1, [f"{words!r}: {line}" for line in wrong]


def attempt_process(number: int) -> tuple[int, list[str]]:
    """Answers a line as a process, which may train for a moment."""
    words = [word for word in line(number) if word not in ("-m", "--multirun")]
    with tempfile.TemporaryDirectory() as folder:
        wrong = ask_process(Path(folder), *TINY, *words).complaints()
    return 1, [f"{words!r}: {line}" for line in wrong]
