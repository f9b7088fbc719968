"""Random command lines, and random damage to a run's files: any answer is a clear message or a
correct run, never a traceback, a hang or a changed result.

`make test` tries the same few inputs each time. FUZZ=2000 tries that many command lines, and a
quarter as many damaged runs, anew at each call:

    FUZZ=2000 python -m pytest -q tests/test_fuzz.py
"""

import io
import json
import os
import random
import shutil
import signal
import sys
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, Answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ", 0))
DEADLINE = 600  # seconds until a command counts as one that hangs; each takes about one
CHEAP = ["evaluation=clean", "evaluation.limit=60", "evaluation.masking_checks=0"]
SAME = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def examples(few: int, share: float = 1.0):
    """So many fixed inputs; with FUZZ that share of it, which differ from call to call."""
    count = max(1, int(EXAMPLES * share)) if EXAMPLES else few
    return settings(max_examples=count, derandomize=not EXAMPLES, **SAME)


class Hang(BaseException):
    """Nothing in the program catches it."""


@contextmanager
def streams():
    """Standard output and error as they are in a terminal, which a lone surrogate may not enter."""

    def stop(number, frame):
        raise Hang(f"no answer within {DEADLINE} s")

    kept = sys.stdout, sys.stderr, signal.signal(signal.SIGALRM, stop), torch.get_num_threads()
    sys.stdout = io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape")
    sys.stderr = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    signal.alarm(DEADLINE)
    try:
        yield sys.stdout, sys.stderr
    finally:
        signal.alarm(0)
        torch.set_num_threads(kept[3])
        signal.signal(signal.SIGALRM, kept[2])
        sys.stdout, sys.stderr = kept[:2]


def answer(main, argv: list[str], root: Path) -> Answer:
    """What a command said, in this process."""
    before = sys.argv
    sys.argv = argv
    with streams() as (out, err):
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv = before
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode("utf-8", "replace"))
    return Answer(code, *texts, root)


def ask(*words: str, root: Path) -> Answer:
    """`sat` with these words."""
    from hydra.core.global_hydra import GlobalHydra

    from sat.loggers import screen
    from sat.run import main

    for handler in list(screen.log.handlers):
        screen.log.removeHandler(handler)
    term = signal.getsignal(signal.SIGTERM)
    try:
        return answer(main, ["sat", *words], root)
    finally:
        signal.signal(signal.SIGTERM, term)
        GlobalHydra.instance().clear()


def check_clear(done: Answer, asked: object) -> None:
    """A message a line, or a run."""
    told = f"{asked!r}\n{done.code}\n{done.out[-1000:]}\n{done.err[-3000:]}"
    assert done.code in (0, 1, 2), told
    assert "Traceback" not in done.err + done.out, told
    if done.err.startswith("usage: "):  # argparse's own, for an option that is not there
        return
    assert all(line.startswith("! ") for line in done.err.splitlines()), told
    assert bool(done.code) <= bool(done.err.strip()), told
    assert max(map(len, done.err.splitlines()), default=0) < 1500, told


# the command line ---------------------------------------------------------------------------------

KEYS = [
    "seed", "device", "evaluate", "dataset", "dataset.limit", "dataset.holdout", "dataset.eps",
    "dataset.norm", "dataset.image_size", "dataset.name", "dataset.root", "dataset.path", "model",
    "model.depth", "model.width", "model.weights", "model.mean", "model.std", "model.name",
    "model.cardinality", "activation", "activation.alpha", "activation.inner", "attack",
    "attack.eps", "attack.steps", "attack.step", "attack.norm", "attack.random_start",
    "attack.batch_norm", "attack._target_", "schedule", "schedule.epochs", "schedule.batch_size",
    "schedule.milestones", "schedule.precision", "schedule.ema", "schedule.clip", "objective",
    "validation", "validation.attack", "validation.every", "validation.attack.eps", "evaluation",
    "evaluation.attacks", "evaluation.attacks.pgd20", "evaluation.attacks.pgd20.steps",
    "evaluation.checkpoints", "evaluation.limit", "evaluation.masking_checks", "evaluation.curves",
    "record", "record.root", "record.keep", "record.checkpoint_minutes", "experiment", "sizes",
    "report", "choices", "attack@evaluation.attacks.x", "_target_", "model._target_",
]  # fmt: skip
OPTIONS = [
    "cifar10", "imagefolder", "npz", "timm", "digits", "resnet", "wide_resnet", "gelu", "elu",
    "surrogate_relu", "pgd", "fgsm", "none", "strong", "paper", "curves", "activations", "alpha",
    "equal_cost/silu_pgd1", "linf", "l2", "auto", "null", "true", "off", "sgd", "adamw", "bf16",
]  # fmt: skip
ODD = [
    "", "0", "1", "-1", "1.5", "1e400", "-0.0", ".nan", "inf", "nan", "9" * 400, "1_000", "0x10",
    "8/255", "[]", "[1,2]", "[[[]]]", "{}", "{a:1}", "{_target_:os.system}", "a,b", "1,2,3",
    "range(1,3)", "choice(a,b)", "${oc.env:HOME}", "${seed}", "${nothing}", "${", "???", "'", '"',
    "\\", "~", "../../x", "/dev/null", "/etc/passwd", "x" * 3000, "a b", "=", "==", "\n", "é",
    "\u202e", "\ud800", "os.system", "sat.run.main", "sat.config.Spec", "sat.data.Digits",
    "sat.attacks.PGD", "sat.attacks.Curve", "[a", "{a", "(", ")", "\t", "%s", "{x:{y:{z:1}}}",
]  # fmt: skip
TEXT = st.text(st.characters(blacklist_characters="\0"), max_size=12)


@st.composite
def near(draw) -> str:
    """A key with a letter more, less or changed."""
    key = draw(st.sampled_from(KEYS))
    at = draw(st.integers(0, len(key)))
    return key[:at] + draw(st.sampled_from(["", "x", ".", "@", "/", "_", "é"])) + key[at + 1 :]


VALUES = st.one_of(
    st.sampled_from(OPTIONS), st.sampled_from(ODD), TEXT, st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip
NAMES = st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), near(), TEXT)
GOOD = [
    "activation=gelu", "activation=elu activation.alpha=2", "dataset.eps=8", "dataset.norm=l2",
    "model=wide_resnet", "dataset=cifar10", "dataset=npz dataset.path=x.npz dataset.name=../../x",
    "attack=fgsm", "seed=1e1", "evaluation=strong", "evaluation=curves", "experiment=activations",
    "schedule.epochs=0.5", "+attack@evaluation.attacks.x=pgd", "model=timm model.name=../x",
    "model.mean=[0.5] model.std=[.5]", "-m seed=1,2,1", "dataset=imagefolder dataset.root=/",
    "attack={_target_:sat.attacks.PGD,eps:1}",
]  # fmt: skip
WORD = st.one_of(
    st.sampled_from(GOOD),
    st.sampled_from(GOOD),
    st.tuples(st.sampled_from(["", "", "", "", "+", "++", "~"]), NAMES, st.just("="), VALUES)
    .map("".join),
    st.sampled_from(["-m", "--multirun", "-", "--", "--nothing"]),
    TEXT,
)  # fmt: skip


@examples(30)
@given(words=st.lists(WORD, min_size=1, max_size=4))
def test_any_command_line_is_answered(words, monkeypatch_module):
    import sat.run

    def trains_nothing(spec, overrides, wait):
        yaml.safe_load(spec.yaml())
        place = (Path("outputs") / spec.name).resolve()
        assert place.parent == Path("outputs").resolve(), spec.name
        return {}

    words = [w for word in words for w in (word.split() if word in GOOD else [word])]
    words = [w for w in words if not w.lstrip("+~").startswith("hydra")]
    with monkeypatch_module.context() as patch:
        patch.setattr(sat.run, "execute", trains_nothing)
        done = ask(*words, root=Path())
    check_clear(done, words)


@pytest.fixture(scope="module")
def monkeypatch_module(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        patch.setenv("HYDRA_FULL_ERROR", "1")
        yield patch


# the files of a run -------------------------------------------------------------------------------

STRANGE = [
    None, True, -1, 0, 1.5, 2**70, -(10**400), 1e308, float("nan"), float("inf"), "", "x" * 5000,
    "../../x", "${oc.env:HOME}", "${seed}", "sat.run.main", "nan", "\0", "é\u202e\n", [], {}, [[]],
    [None], {"_target_": "os.system", "command": "true"}, {"": {"": []}}, [0] * 1000,
]  # fmt: skip
GROWS = ("log.txt", "lock", "experiments.txt")  # of which nothing is a result


@pytest.fixture(scope="module")
def begun(tmp_path_factory, monkeypatch_module):
    """A finished run of an experiment, and its numbers before and after it is measured again."""
    folder = tmp_path_factory.mktemp("begun")
    done = ask(f"record.root={folder}/outputs", *TINY, "schedule.ema=0.5", root=folder / "outputs")
    assert done.code == 0, done.err
    (done.run / "experiments.txt").write_text("activations\nalpha\n")
    for path in done.run.glob("events.*"):
        path.unlink()
    again = shutil.copytree(done.run, folder / "again" / done.run.name)
    assert ask(f"evaluate={again}", *CHEAP, root=again.parent).code == 0
    return done.run, [numbers(done.run), numbers(again)]


def altered(tree, draw: random.Random):
    """A copy with one value strange, missing, moved or buried."""
    if isinstance(tree, dict | list) and tree and draw.random() < 0.85:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        copy, key = tree.copy(), draw.choice(keys)
        action = draw.random()
        if action < 0.1:
            del copy[key]
        elif action < 0.2:
            copy[key] = copy[draw.choice(keys)]
        elif action < 0.25 and isinstance(copy, dict):
            copy[draw.choice(["", "../../x", 5, None, "x y", f"{key}_"])] = copy.pop(key)
        else:
            copy[key] = altered(copy[key], draw)
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
        return draw.choice([b"", b"\0" * 99, b"[" * 99999, b"{a: " * 9999, b"\x80\x04K\x01.",
                            b"\xff\xfe", b"null", b"1", b"a: &a [*a]\n", LAUGHS])  # fmt: skip
    for _ in range(draw.choice([1, 3, 30])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


LAUGHS = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n".encode() for a, b in pairwise("abcdefghij")
)


def damage(path: Path, draw: random.Random) -> bool:
    """One random edit of a file, in its bytes or in its own terms; whether the latter."""
    import numpy as np

    if not path.stat().st_size or draw.random() < 0.4:
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
        key = draw.choice(list(arrays))
        found = arrays.pop(key)
        arrays |= draw.choice([
            {}, {key: found[None]}, {key: found.astype("U")}, {key: np.array(draw.choice(STRANGE))},
            {key: np.repeat(found, 2)}, {"x": found}, {key: np.array({"a": 1})},
        ])  # fmt: skip
        np.savez(path, **arrays)
    else:
        lines = path.read_text().splitlines()
        at = draw.randrange(len(lines))
        given = altered(json.loads(lines[at]), draw) if path.suffix == ".jsonl" else None
        lines[at] = json.dumps(given) if given is not None else str(draw.choice(STRANGE))
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    return True


def content_of(run: Path) -> dict[str, bytes]:
    files = [path for path in run.rglob("*") if path.is_file() and path.name not in GROWS]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def numbers(run: Path) -> dict:
    """What a result says of what the run was asked for."""
    result = json.loads((run / "result.json").read_text())
    parts = {which: result[which] for which in ("last", "best")}
    found = {w: [part["clean"], part["robust"]["pgd20"]] for w, part in parts.items()}
    return {w: [[e["accuracy"], e["images"]] for e in entries] for w, entries in found.items()}


def report_of(root: Path, patch) -> Answer:
    from sat.report import command, figures

    patch.setattr(figures, "draw", lambda tables, folder: [])
    words = [["report", str(root)], ["report", "--status", str(root)]]
    first, second = (answer(command.main, argv, root) for argv in words)
    texts = first.out + second.out, first.err + second.err
    return Answer(max(first.code, second.code), *texts, root)


@examples(8, 0.25)
@given(seed=st.integers(0, 2**32), stopped=st.booleans())
def test_damaged_files_are_told_or_do_no_harm(seed, stopped, begun, monkeypatch_module):
    try_damaged(random.Random(seed), stopped, begun, monkeypatch_module)


def try_damaged(draw: random.Random, stopped: bool, begun: tuple, patch) -> None:
    """One file damaged of a copy of the run; then it is asked again, measured and reported."""
    whole, right = begun
    outputs = whole.parent.parent / "tried" / "outputs"
    shutil.rmtree(outputs.parent, ignore_errors=True)
    run = Path(shutil.copytree(whole, outputs / whole.name))
    if stopped:
        (run / "result.json").unlink()
    last = run / "checkpoints/last.pt"
    if stopped and draw.random() < 0.5:
        shutil.copy(last, last.with_name("previous.pt"))
    path = draw.choice(sorted(p for p in run.rglob("*") if p.is_file() and p.name != "lock"))
    # What reads well is believed of these: other numbers, or weights, are another result.
    believed = damage(path, draw) and path.name in ("result.json", last.name, "best.pt")
    said = path.relative_to(run), stopped
    commands = [
        [f"record.root={outputs}", *TINY, "schedule.ema=0.5"],
        [f"evaluate={run}", *CHEAP],
    ]
    for words in draw.sample(commands, 2):
        found = content_of(run)
        done = ask(*words, root=outputs)
        check_clear(done, (*said, words[-1]))
        kept = content_of(run)
        if stopped:  # it may have trained to its end before it saw the damage
            kept, found = (
                {k: v for k, v in of.items() if k == str(said[0])} for of in (kept, found)
            )
        assert done.code != 2 or kept == found, (*said, done.err)
        if not believed and (run / "result.json").exists() and done.code == 0:
            assert numbers(run) in right, (*said, numbers(run), right)
    told = report_of(outputs, patch)
    assert told.code in (0, 2) and "Traceback" not in told.err + told.out, (*said, told.err)
    assert "Warning" not in told.err, (*said, told.err)
