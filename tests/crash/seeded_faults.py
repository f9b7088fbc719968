"""Faults put into the program on purpose, to see whether the tests named with each catch it:

    python -m tests.crash.seeded_faults [NAME or FOLDER ...]

Each is one replacement of text that stands once in the package; the place is found by the text, so
a file may move. `history` names the commit that mended such a fault: it is put back. The program
stays as it is: the tests run on a copy. Exit code 1 where a fault escapes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("sat",)  # in which a text stands once
LONGEST = 600.0  # seconds until tests that do not end have caught a fault


@dataclass(frozen=True)
class Fault:
    name: str
    folder: str  # of the package, or the file in it
    old: str
    new: str
    tests: str  # arguments of pytest
    history: str | None = None


FAULTS = [
    # activations ------------------------------------------------------------------------------
    Fault("mish overflows far from 0", "activations",
          ".mul_(low).div_(m)", ".mul_(x).div_(m)",
          "tests/test_activations.py -k mish", "b2ea822"),
    Fault("a proof leaves its cache behind", "activations",
          "net.train()  # clears what some", "pass  # clears what some",
          "tests/test_models.py -k cached"),
    Fault("a surrogate gradient in every phase", "activations",
          "if self.phase in self.phases:", "if self.phases:",
          "tests/test_surrogate.py -k phase"),
    # models -----------------------------------------------------------------------------------
    Fault("EfficientNet starts far from chance on few classes", "models",
          "net.classifier.weight.mul_(min(1.0, classes / 1000) ** 0.5)", "pass",
          "tests/test_models.py -k starts_at_chance", "472e5c4"),
    Fault("a network for other image sizes is measured", "models",
          "if size != image_size:", "if size is None:",
          "tests/test_reevaluate.py -k can_not_be_evaluated", "5ead9ce"),
    Fault("deviations of the pixels are not divided by", "models",
          "x = (x - self.mean) / self.std", "x = x - self.mean",
          "tests/test_models.py -k normalises"),
    # attacks ----------------------------------------------------------------------------------
    Fault("Square is given up whose ascent came near a fall", "attacks",
          " & (reached > AGAIN * first)", "",
          "tests/test_verdicts.py -k ends_early"),
    Fault("gradients that lead astray are trusted", "attacks",
          "ASTRAY = 0.2", "ASTRAY = 20.0",
          "tests/test_verdicts.py -k astray"),
    Fault("an image's own gradient is not asked", "attacks",
          "DOUBTFUL = 0.15", "DOUBTFUL = 15.0",
          "tests/test_verdicts.py -k doubtful"),
    Fault("PGD leaves the ball", "attacks",
          "point.clamp(low, high)", "point.clamp(0, 1)",
          "tests/test_attacks.py -k ball"),
    Fault("a tie is a right answer", "attacks",
          "right = sound & (own > others).all(1)", "right = sound & (own >= others).all(1)",
          "tests/test_verdicts.py -k rule"),
    Fault("a point outside of the ball decides", "attacks",
          "return Verdicts(verdict.right | ~holds, verdict.tied & holds)", "return verdict",
          "tests/test_verdicts.py -k nothing_follows_from_a_point_outside"),
    Fault("a point of a curve is taken for a mistaken unit", "attacks",
          'object.__setattr__(other, "eps", factor * attack.eps)',
          "other = replace(attack, eps=factor * attack.eps)",
          "tests/test_evaluate.py -k curve", "4e67fa2"),
    Fault("a killed part undoes what another has decided", "attacks",
          "passed = torch.maximum(self.passed, other.passed)", "passed = other.passed",
          "tests/test_distributed.py -k put_together"),
    # objectives -------------------------------------------------------------------------------
    Fault("the clean images are trained on", "objectives",
          "logits = model(x_adv)\n        with torch",
          "logits = model(x)\n        with torch",
          "tests/test_objectives.py -k adversarial_is"),
    Fault("labels are not smoothed", "objectives",
          "F.cross_entropy(logits, y, label_smoothing=self.label_smoothing), logits",
          "F.cross_entropy(logits, y), logits",
          "tests/test_objectives.py -k adversarial_is"),
    Fault("a doubtful clean answer is no reason for more of the divergence", "objectives",
          "(divergence * doubt).mean()", "divergence.mean()",
          "tests/test_objectives.py -k mart_is"),
    Fault("a perturbation is as large as its gradient", "objectives",
          "torch._foreach_div_(sizes, lengths)", "pass",
          "tests/test_weight_attacks.py -k goes_up"),
    # data -------------------------------------------------------------------------------------
    Fault("images that unfold are decoded", "data",
          'warnings.simplefilter("error", Image.DecompressionBombWarning)', "pass",
          "tests/test_untrusted.py -k unfolds_is", "d019fbc"),
    Fault("held-out images are trained on", "data",
          "return chosen[remains], chosen[held_out]", "return chosen, chosen[held_out]",
          "tests/test_data.py -k apart"),
    Fault("the order of an epoch depends on where a run resumes", "data",
          'seed_of(seed, "order", epoch)', 'seed_of(seed, "order", start)',
          "tests/test_data.py -k step"),
    # training ---------------------------------------------------------------------------------
    Fault("a short training is all warm-up", "training",
          "return min(asked, 0.2 * steps)", "return asked",
          "tests/test_schedule.py", "22e3fbc"),
    Fault("an average begins with the initial weights", "training",
          "(number < self.averaging.copies) | (self.done == 0)",
          "(number < self.averaging.copies) | (number == 0)",
          "tests/test_average.py -k initial"),
    Fault("weights keep what a skipped step made of them", "training",
          "weight.copy_(torch.where(broken, kept, after))", "weight.copy_(after)",
          "tests/test_weight_attacks.py -k skipped"),
    Fault("the ascent of weights moves statistics", "training",
          "self.statistics.put_back()\n        self.model.zero_grad", "self.model.zero_grad",
          "tests/test_weight_attacks.py -k descends"),
    Fault("dropout draws anew after a resume", "training",
          'set_generators(state["generators"], self.device)', "pass",
          "tests/test_faults.py -k loaded"),
    Fault("an optimiser's state lies otherwise than its weights", "training",
          "kept[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)", "pass",
          "tests/test_fold.py -k layout", "b1d5624"),
    Fault("a collapse of all is taken for a masked one", "training",
          "(real and half and single / images >= kept)", "(real and half)",
          "tests/test_alarms.py -k tells_collapse"),
    # acceleration -----------------------------------------------------------------------------
    Fault("norms of several processes are not merged", "acceleration",
          "return nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d, SyncBatchNormAct",
          "return nn.BatchNorm2d, BatchNormAct2d",
          "tests/test_fold.py -k several_processes", "dba2990"),
    Fault("depthwise convolutions in bf16 on a CPU", "acceleration",
          'not (kind == "cpu" and (scattered or small))', 'not (kind == "cpu" and small)',
          "tests/test_hardware.py", "06cd156"),
    Fault("verdicts in TF32", "acceleration",
          'torch.set_float32_matmul_precision("highest")', "pass",
          "tests/test_evaluate.py -k float32", "4e67fa2"),
    # distributed ------------------------------------------------------------------------------
    Fault("processes count alike whatever their images", "distributed",
          "torch._foreach_mul_([*means], sums[-1])", "sums[-1]",
          "tests/test_distributed.py -k same_weights"),
    Fault("a refusal is told by every process", "distributed",
          "raise kind(text) if self.first else Refused(text)", "raise kind(text)",
          "tests/test_distributed.py -k first_alone", "0db79c1"),
    # evaluation -------------------------------------------------------------------------------
    Fault("a number that the test set chose is compared", "evaluation",
          'if number.chosen_on == "test":', "if False:",
          "tests/test_recipes.py -k reason"),
    Fault("an evaluation that was killed is told twice", "evaluation",
          "run.rewind(result.lengths)", "pass",
          "tests/test_reevaluate.py -k told_once", "2e9580a"),
    Fault("a measurement of fewer images takes the place of more", "evaluation",
          "elif old and found.images <= old.images:", "elif False:",
          "tests/test_result.py -k fewer", "1bc8599"),
    Fault("best has the verdicts of last", "evaluation",
          'if found is not None and str(found.get("weights")) == of.weights:',
          "if found is not None:",
          "tests/test_run.py -k promises"),
    Fault("flags of other weights are believed", "evaluation",
          '(("weights", of.weights), ("images", self.images))', '(("images", self.images),)',
          "tests/test_reevaluate.py -k these_weights"),
    Fault("flags that unfold to more than memory are read", "evaluation",
          "if sum(member.file_size for member in file.zip.infolist()) > LARGEST:", "if False:",
          "tests/test_untrusted.py -k more_than_memory", "d019fbc"),
    # rundir -----------------------------------------------------------------------------------
    Fault("a file that is shorter than it was is filled with zeros", "rundir",
          "elif path.stat().st_size > length:", "else:",
          "tests/test_resume.py -k filled_up", "c811793"),
    Fault("half a line of metrics stays", "rundir",
          "file.truncate(file.tell() - written)", "pass",
          "tests/test_faults.py -k half_a_line", "f20c887"),
    Fault("who waited for a run that was moved away goes on in it", "rundir",
          'os.path.samestat(os.fstat(file.fileno()), os.stat(directory / NAME))', "True",
          "tests/test_sweeps.py -k moved_away", "22e3fbc"),
    Fault("a file takes its name before the disk has what is in it", "rundir",
          "                _to_disk(file, path)", "                pass",
          "tests/test_system.py -k takes_its_name"),
    Fault("what lies elsewhere is written over through a link", "rundir",
          "os.O_NONBLOCK | os.O_NOFOLLOW * bool(writing)", "os.O_NONBLOCK",
          "tests/test_system.py -k meanwhile"),
    Fault("a dead process of a disk without locks keeps others out", "rundir",
          'return state != "Z" and now == began', "return True",
          "tests/test_system.py -k who_is_dead"),
    Fault("a changed bit of a checkpoint is taken", "rundir",
          'if state.pop("checksum", None) != checksum(state):',
          'if state.pop("checksum", None) is None:',
          "tests/test_resume.py -k changed_bit", "8423ea9"),
    # loggers ----------------------------------------------------------------------------------
    Fault("true is the number 1 on the dashboard", "loggers",
          " and not isinstance(value, bool)\n    return value if is_number",
          "\n    return value if is_number",
          "tests/test_loggers.py -k true_is"),
    Fault("a refusal as long as what was given", "loggers",
          'text if len(text) <= 800 or "\\n" in text else', "text if True else",
          "tests/test_run.py -k readable", "99ae866"),
    # report -----------------------------------------------------------------------------------
    Fault("stars that are not corrected for their number", "report",
          "adjusted = holm([each.p for _, each in paired])",
          "adjusted = [each.p for _, each in paired]",
          "tests/test_study.py -k star", "73a7f3c"),
    Fault("runs of other settings are averaged", "report",
          'settings = {**settings, "images": entry.images}', "settings = {}",
          "tests/test_study.py -k never_averaged"),
    Fault("a worst case over other attacks is averaged", "report",
          "if isinstance(entry.attacks, list):  # the worst", "if False:  # the worst",
          "tests/test_study.py -k worst_case"),
    # bench ------------------------------------------------------------------------------------
    Fault("blocks too short for the clock", "bench",
          "if block else timer.autorange()", "if block else (1, timer.timeit(1))",
          "tests/test_benchmark.py -k long_enough"),
    Fault("rounds in one order", "bench",
          "draw.shuffle(order)", "list(order)",
          "tests/test_benchmark.py -k long_enough"),
    Fault("a forecast of one checkpoint", "bench",
          "checkpoints = len(set(evaluation.checkpoints))", "checkpoints = 1",
          "tests/test_forecast.py -k multiply"),
    # loose files ------------------------------------------------------------------------------
    Fault("a shortened option unpickles", "run.py",
          "if given.experimental_rerun is not None:",
          'if "--experimental-rerun" in words:',
          "tests/test_untrusted.py -k unpickles", "c811793"),
    Fault("the command that goes on begins anew", "run.py",
          'return " (without record.fresh=true)" if spec.record.fresh else ""', 'return ""',
          "tests/test_sweeps.py -k once_more", "22e3fbc"),
    Fault("a sweep with a fault ends as refused", "sweep.py",
          "return 1 if codes - {0, 2} else max(codes, default=0)", "return max(codes, default=0)",
          "tests/test_sweeps.py -k worst_of_its_jobs"),
    Fault("jobs begin though a worker was stopped", "sweep.py",
          'raise SystemExit(codes[0])', "pass",
          "tests/test_sweeps.py -k nothing_begins", "af1b8ee"),
    Fault("code of anybody's package is run", "config",
          "if not typed and top not in allowed():", "if False:",
          "tests/test_plugins.py -k not_trusted_either"),
    Fault("a whole number beyond all floats", "config",
          "return isinstance(value, float) or abs(value) <= sys.float_info.max", "return True",
          "tests/test_config.py", "790b31d"),
    Fault("milestones that nobody reads make another run", "training",
          ', metadata={"identity": _takes_milestones}', "",
          "tests/test_identity.py -k moves_no_number", "22e3fbc"),
    Fault("a value at its default is part of a run's hash", "identity.py",
          "for key, value in self.items() if key not in self.usual}",
          "for key, value in self.items()}",
          "tests/test_identity.py -k added_with_a_default"),
    Fault("a run's name does not tell its width", "identity.py",
          'network += f"-w{model[\'width\']:g}"', "pass",
          "tests/test_config.py -k name_tells", "aed3072"),
    Fault("two draws of a step are one", "rng.py",
          "device, seed = self.rows.device, self._seed(name)",
          "device, seed = self.rows.device, self.key & 0x7FFFFFFF",
          "tests/test_draws.py"),
    Fault("seeds that agree by chance prove anything", "statistics.py",
          "sd = max(float(given.std(ddof=1)), step / math.sqrt(n))",
          "sd = float(given.std(ddof=1))",
          "tests/test_statistics.py -k step", "73a7f3c"),
]  # fmt: skip


def place_of(fault: Fault, root: Path = ROOT) -> Path:
    """The file that holds the text. Raises ValueError unless it stands once."""
    found = {
        path: count
        for place in PLACES
        for path in sorted((root / place).rglob("*.py"))
        if (count := path.read_text().count(fault.old))
    }
    if list(found.values()) != [1]:
        where = ", ".join(str(path.relative_to(root)) for path in found) or "nowhere"
        raise ValueError(f"{fault.name}: the text stands {sum(found.values())} times ({where})")
    (path,) = found
    return path


def copied(target: Path) -> Path:
    """The program and its tests, without what was made by them."""
    for name in ("sat", "scripts", "conf", "tests", "docs"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("[!.]*"):
        if path.is_file():
            shutil.copy(path, target)
    return target


def told(copy: Path, tests: str) -> tuple[bool, str]:
    """Whether the tests pass in a copy, and their last line."""
    import shlex

    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*words, *shlex.split(tests)], cwd=copy, capture_output=True, text=True, check=False,
            timeout=LONGEST, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"no end within {LONGEST:.0f} s"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    last = (failed or done.stdout.splitlines() or [done.stderr[-200:]])[-1]
    if done.returncode not in (0, 1, 2):  # no tests were run
        raise SystemExit(f"{tests}: {last}")
    return done.returncode == 0, last[:150]


def tried(fault: Fault, copy: Path) -> tuple[str, str]:
    """`caught` or `escaped`, or `unsound`, and by what; the copy is whole again afterwards."""
    path = place_of(fault, copy)
    whole = path.read_text()
    path.write_text(whole.replace(fault.old, fault.new))
    try:
        passed, last = told(copy, fault.tests)
    finally:
        path.write_text(whole)
    if passed:
        return "escaped", last
    sound, more = told(copy, fault.tests)
    return ("caught", last) if sound else ("unsound", f"they fail without it too: {more}")


def main() -> int:
    names = sys.argv[1:]
    asked = [f for f in FAULTS if not names or f.folder in names or f.name in names]
    if not asked:
        print(f"no such fault or folder: {' '.join(names)}", file=sys.stderr)
        return 2
    escaped = 0
    with tempfile.TemporaryDirectory(prefix="seeded-") as folder:
        copy = copied(Path(folder) / "sat")
        for fault in asked:
            begun = time.monotonic()
            answer, last = tried(fault, copy)
            escaped += answer != "caught"
            seconds = f"{time.monotonic() - begun:5.0f}s"
            told_of = f"{fault.folder:13} {answer:8} {seconds}  {fault.name}"
            print(f"{told_of}{f' [{fault.history}]' if fault.history else ''}: {last}", flush=True)
    print(f"{len(asked) - escaped} of {len(asked)} caught")
    return int(escaped > 0)


if __name__ == "__main__":
    sys.exit(main())
