"""Reports on run directories: written here by hand, but for the config of one real run."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from sat.evaluation.settings import accuracy
from sat.rundir.record import Run

ROOT = Path(__file__).parents[1]
REAL: list[Path] = []  # one run of a second, made by the first test that asks
PGD = {"attack": "PGD", "eps": 38.0, "steps": 20, "limit": None, "subset_seed": None}


@pytest.fixture
def real(sat, tmp_path_factory) -> Path:
    if not REAL:
        REAL.append(sat(root=tmp_path_factory.mktemp("real")).run)
    return REAL[0]


def write_flags(run: Path, name: str, settings: dict, **arrays) -> None:
    (run / "flags").mkdir(exist_ok=True)
    np.savez(run / f"flags/{name}.npz", settings=np.array(json.dumps(settings)), **arrays)


@pytest.fixture
def write(real, tmp_path):
    """`write(name, {"pgd20": robust}, clean)` makes a finished run with these flags."""

    def make(name, attacks, clean, *, settings=PGD, indices=None, seed=0, steps=1, facts=()):
        run = Run(tmp_path / "outputs" / name)
        run.directory.mkdir(parents=True)
        config = yaml.safe_load((real / "config.yaml").read_text())
        config["seed"], config["attack"]["steps"] = seed, steps
        (run.directory / "config.yaml").write_text(yaml.safe_dump(config))
        result = json.loads((real / "result.json").read_text())
        result.pop("configuration")  # as of an earlier version: the config tells
        result |= {"seed": seed, "dataset": {**result["dataset"], **dict(facts)}}
        indices = np.arange(len(clean)) if indices is None else np.asarray(indices)
        subset = [settings["limit"], settings["subset_seed"]]
        for which in ("best", "last"):
            robust = {n: {**accuracy(f), "settings": settings} for n, f in attacks.items()}
            result[which] |= {"clean": {**accuracy(clean), "subset": subset}, "robust": robust}
            for attack, flags in attacks.items():
                given = {"clean": clean, "robust": flags, "indices": indices, "seconds": 1.0}
                write_flags(run.directory, f"{which}-{attack}", settings, **given)
        run.write_result(result)
        return run.directory

    return make


@pytest.fixture
def report(monkeypatch, capfd):
    """`report("--compare", a, b)` in this process: exit code and output."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    main = importlib.import_module("report").main
    draws_nothing = {"plots": {"draw": lambda *_: []}, "webpage": {"page": lambda *_: ""}}
    for name, functions in draws_nothing.items():  # matplotlib takes seconds
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**functions))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
        capfd.readouterr()
        code = main()
        out, err = capfd.readouterr()
        assert not err
        return code, out

    return call


def first(right: int, images: int = 100) -> np.ndarray:
    return np.arange(images) < right


def cells(out: str, begin: str) -> list[str]:
    """The cells of the one table line that begins so."""
    (line,) = [line for line in out.splitlines() if line.startswith((begin + " ", begin + "-"))]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


# two runs -----------------------------------------------------------------------------------------


def test_compare_counts_image_by_image(write, report):
    """By hand: robust, A has 40 right, B the last 30 of these and 2 more, so 10 to 2."""
    b = (np.arange(100) >= 10) & (np.arange(100) < 42)
    code, out = report(
        "--compare",
        write("a", {"pgd20": first(40)}, first(90)),
        write("b", {"pgd20": b}, first(90)),
    )
    assert code == 0
    name, images, of_a, of_b, difference, only_a, only_b, p = cells(out, "pgd20")
    assert (images, only_a, only_b) == ("100", "10", "2")
    assert of_a == "40.0 % (30.9 % - 49.8 %)" and of_b.startswith("32.0 %")
    assert difference.startswith("+8.0 (+1.1 to ")
    assert p == "0.039"  # 2 (1 + 12 + 66) / 4096
    assert cells(out, "clean")[4:] == ["+0.0 (-3.5 to +3.5)", "0", "0", "1"]


def test_compare_takes_the_images_that_both_have(write, report):
    """A has images 0 to 49, of which 0 to 19 stand; B 30 to 79, of which 30 to 34 stand."""
    one = write("a", {"pgd20": first(20, 50)}, first(50, 50), settings={**PGD, "limit": 50})
    other = {**PGD, "limit": 50, "subset_seed": 7}
    two = write("b", {"pgd20": first(5, 50)}, first(50, 50), settings=other,
                indices=range(30, 80))  # fmt: skip
    code, out = report("--compare", one, two)
    assert code == 0 and cells(out, "pgd20")[1] == "20"
    assert cells(out, "pgd20")[5:7] == ["0", "5"]


def test_clean_is_compared_over_all_files_of_a_run(write, report):
    """The first attack's files have no image in common, the second attack's have."""
    runs = []
    for name, indices in (("a", range(50)), ("b", range(50, 100))):
        run = write(name, {"pgd20": first(9, 50)}, first(40, 50), indices=indices)
        whole = {"clean": first(90), "robust": first(7), "indices": np.arange(100), "seconds": 1.0}
        write_flags(run, "best-strong", PGD, **whole)
        runs.append(run)
    code, out = report("--compare", *runs)
    assert code == 0 and cells(out, "clean")[1] == "100" and cells(out, "strong")[1] == "100"
    assert "pgd20: left out, no image was measured in both" in out


def test_compare_leaves_out_what_was_not_measured_alike(write, report):
    a = write("a", {"pgd20": first(40), "mine": first(30)}, first(90))
    b = write("b", {"pgd20": first(40), "fgsm": first(30)}, first(90))
    changed = {**PGD, "steps": 50}
    write_flags(b, "best-pgd20", changed, clean=first(90), robust=first(40),
                indices=np.arange(100), seconds=1.0)  # fmt: skip
    code, out = report("--compare", a, b)
    assert code == 0
    assert "pgd20: left out, measured with other settings (steps: 20, 50)" in out
    assert "mine: left out, measured in A alone" in out and "fgsm: left out, measured in B" in out
    assert not [line for line in out.splitlines() if line.startswith("pgd20  ")]
    assert cells(out, "clean")[1] == "100"
    code, out = report("--compare", a, b, "--checkpoint", "last")
    assert code == 0 and "checkpoint: last" in out and cells(out, "pgd20")[1] == "100"


@pytest.mark.parametrize("key, value", [("test_content", "bb"), ("name", "mnist"), ("test", 9)])
def test_compare_refuses_other_images(write, report, key, value):
    a = write("a", {"pgd20": first(40)}, first(90), facts={"test_content": "aa"})
    b = write("b", {"pgd20": first(40)}, first(90), facts={"test_content": "aa", key: value})
    code, out = report("--compare", a, b)
    assert code == 2 and out.count("\n") == 1 and f"other images (dataset {key}: " in out


def test_compare_doubts_images_that_no_digest_tells(write, report):
    a = write("a", {"pgd20": first(40)}, first(90), facts={"test_content": "aa"})
    old = write("b", {"pgd20": first(40)}, first(90), seed=1)
    result = json.loads((old / "result.json").read_text())
    result["dataset"].pop("test_content", None)
    (old / "result.json").write_text(json.dumps(result))
    code, out = report("--compare", a, old)
    assert code == 0 and "Only name, classes and size" in out
    code, out = report("--compare", a, a)
    assert code == 0 and "Only name, classes and size" not in out


class Trap:
    """What a pickle may do: makes a folder as it is loaded."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def damage(run: Path, how: str) -> None:
    path, images = run / "flags" / "best-pgd20.npz", np.arange(100)
    content = {"settings": np.array(json.dumps(PGD)), "indices": images, "seconds": 1.0}
    content |= {"clean": first(90), "robust": first(40)}
    match how:
        case "cut":
            path.write_bytes(path.read_bytes()[:200])
        case "pickle":
            np.savez(path, **{**content, "robust": np.array([Trap(run / "executed")])})
        case "short":
            np.savez(path, **{**content, "robust": first(40)[:-1]})
        case "counts":
            np.savez(path, **{**content, "robust": images})
        case "twice":
            np.savez(path, **{**content, "indices": images // 2})
        case "missing":
            np.savez(path, **{key: value for key, value in content.items() if key != "clean"})
        case "settings":
            np.savez(path, **{**content, "settings": np.array("[]")})
        case "none":
            shutil.rmtree(run / "flags")
        case "no run":
            shutil.rmtree(run)
        case "no result":
            (run / "result.json").unlink()
        case "result":
            (run / "result.json").write_text("{")
        case "facts":
            (run / "result.json").write_text('{"status": "finished", "seed": 0}')


REFUSALS = {
    **dict.fromkeys("cut pickle short counts twice missing settings".split(), "npz: is damaged ("),
    "none": "holds no flags of 'best'",
    "no run": "is no run",
    "no result": "has no result yet",
    "result": "result.json: is damaged",
    "facts": "result.json: is damaged",
}


@pytest.mark.parametrize("how, line", REFUSALS.items())
def test_compare_refuses_in_one_line(write, report, how, line):
    a = write("a", {"pgd20": first(40)}, first(90))
    b = write("b", {"pgd20": first(40)}, first(90))
    assert report("--compare", a, b)[0] == 0
    damage(b, how)
    for pair in ((a, b), (b, a)):
        code, out = report("--compare", *pair)
        assert code == 2 and out.count("\n") == 1 and line in out and str(b) in out, out
    assert not (b / "executed").exists()


def test_compare_refuses_runs_without_a_common_image(write, report):
    a = write("a", {"pgd20": first(40)}, first(90))
    b = write("b", {"pgd20": first(40)}, first(90), indices=range(100, 200))
    code, out = report("--compare", a, b)
    assert code == 2 and "no test image was measured in both" in out


def test_flags_of_the_command_that_are_ignored_nowhere(write, report):
    a = write("a", {"pgd20": first(40)}, first(90))
    for wrong in (["--compare", a, a, a.parent], ["--status", "--compare", a, a], [],
                  ["--checkpoint", "last", a.parent], [a / "none"]):  # fmt: skip
        code, out = report(*wrong)
        assert code == 2 and out.count("\n") == 1, out


# configurations over seeds ------------------------------------------------------------------------


def test_seeds_of_a_configuration_form_one_row(write, report):
    """By hand: 76, 78, 80 have deviation 2, and t of 2 degrees of freedom is 4.303."""
    for seed, right in enumerate((76, 78, 80)):
        run = write(f"x-s{seed}", {"pgd20": first(right)}, first(90), seed=seed)
    write("alone", {"pgd20": first(81)}, first(90), steps=2)
    code, out = report(run.parent)
    assert code == 0
    mine, single = (
        cells(out, "digits-resnet10-w0.0625-silu-pgd1"),
        cells(out, "digits-resnet10-w0.0625-silu-pgd2"),
    )
    assert mine[0].startswith("digits-resnet10-w0.0625-silu-pgd1-") and "-s0" not in mine[0]
    assert mine[1:] == ["3", "100", "90.0 ± 0.0 %", "78.0 ± 5.0 %", "78.0 ± 5.0 %"]
    assert single[1:5] == ["1", "100", "90.0 % (82.6 % - 94.5 %) *", "81.0 % (72.2 % - 87.5 %) *"]
    assert "* one seed: Wilson's interval" in out and "Not in the table" not in out


def test_seedless_name_is_that_of_the_run_with_seed_0(real, report):
    code, out = report(real)
    assert code == 0 and cells(out, real.name.replace("-s0-", "-"))[1] == "1"


def test_what_is_not_finished_is_named_and_not_averaged(write, report):
    for seed in range(6):
        run = write(f"s{seed}", {"pgd20": first(50 + seed)}, first(90), seed=seed)
    outputs = run.parent
    (outputs / "s2" / "result.json").unlink()
    failed = json.loads((outputs / "s3" / "result.json").read_text())
    failed |= {"status": "failed", "error": "the loss is not finite"}
    (outputs / "s3" / "result.json").write_text(json.dumps(failed))
    (outputs / "s4" / "result.json").write_text('{"status": "fin')
    (outputs / "s5" / "config.yaml").write_text("seed: 5\n")
    shutil.copytree(outputs / "s0", outputs / "copy")
    code, out = report(outputs)
    assert code == 0
    assert cells(out, "digits-resnet10-w0.0625-silu-pgd1")[1:5:3] == [
        "2",
        "50.5 ± 6.4 %",
    ]  # of s0 and s1
    below = out[out.index("Not in the table:") :]
    assert "  s2: stopped\n" in below and "  s3: failed: the loss is not finite\n" in below
    assert "  s4: damaged: " in below and "  s5: can't be read (KeyError" in below
    assert "s0: left out, the same run as copy" in out
    for seed in (0, 1):
        shutil.rmtree(outputs / f"s{seed}")
    shutil.rmtree(outputs / "copy")
    code, out = report(outputs)
    assert code == 0 and out.startswith("no finished run\n")


def test_other_settings_are_never_averaged(write, report):
    changed = [PGD, PGD, {**PGD, "steps": 50}, {**PGD, "limit": 60}, {**PGD, "steps": 50}]
    for seed, settings in enumerate(changed):
        images = settings["limit"] or 100
        flags = {"pgd20": first(10 * seed, images)}
        run = write(f"s{seed}", flags, first(60, images), seed=seed, settings=settings)
    code, out = report(run.parent)
    assert code == 0 and cells(out, "digits")[1:5] == ["5", "100", "60.0 ± 0.0 % (n=4)",
                                                       "5.0 ± 63.5 % (n=2)"]  # fmt: skip
    assert "s2: pgd20 left out, of other settings (steps)" in out
    assert "s3: pgd20 left out, of other settings (images, limit)" in out
    assert "s3: clean left out" in out and "s0: " not in out and "s1: " not in out


def test_an_attack_that_some_seeds_lack_says_over_how_many(write, report):
    for seed in range(3):
        attacks = {"pgd20": first(70 + seed)} | ({"strong": first(60 + seed)} if seed else {})
        run = write(f"s{seed}", attacks, first(90), seed=seed)
    code, out = report(run.parent)
    assert code == 0 and cells(out, "digits")[3:6] == ["90.0 ± 0.0 %", "71.0 ± 2.5 %",
                                                       "61.5 ± 6.4 % (n=2)"]  # fmt: skip


def test_worst_case_is_averaged_over_equal_attacks_alone(write, report):
    for seed in range(3):
        attacks = {"pgd20": first(70), "strong": first(60)} | ({"third": first(50)} if seed else {})
        run = write(f"s{seed}", attacks, first(90), seed=seed)
        result = json.loads((run / "result.json").read_text())
        worst = {**accuracy(first(60 - 10 * bool(seed))), "attacks": list(attacks)}
        result["best"]["robust"]["worst_case"] = worst
        (run / "result.json").write_text(json.dumps(result))
    code, out = report(run.parent)
    assert code == 0 and cells(out, "digits")[1] == "3"
    assert "50.0 ± 0.0 % (n=2)" in out and "s0: worst_case left out, of other settings" in out


def test_through_the_real_command_line(sat, report, tmp_path):
    for seed in (0, 1):
        runs = sat(f"seed={seed}", "schedule.epochs=1").runs
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/report.py"), "--compare", *map(str, runs)],
        capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert cells(done.stdout, "pgd20")[1] == "50"
    row = cells(report(tmp_path / "outputs")[1], "digits-resnet10-w0.0625-silu-pgd1")
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    mean = sum(result["best"]["clean"]["accuracy"] for result in results) / 2
    assert row[1:3] == ["2", "50"] and row[3].startswith(f"{100 * mean:.1f} ± ")


def test_configs_of_earlier_versions_and_weights_of_files_have_rows(write, report):
    """Keys that came later may be missing; two files of weights are no two seeds."""
    old = write("old", {"pgd20": first(40)}, first(90))
    for name, place in (("one", "a.pt"), ("two", "b.pt")):
        run = write(name, {"pgd20": first(40)}, first(90))
        result = json.loads((run / "result.json").read_text())
        result["best"] = None
        (run / "result.json").write_text(json.dumps(result))
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"evaluate": place}))
    config = yaml.safe_load((old / "config.yaml").read_text())
    del config["evaluate"]
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    code, out = report(old.parent)
    assert code == 0 and "can't be read" not in out
    rows = out.splitlines()[2:5]
    assert sum(row.startswith(("one", "two")) for row in rows) == 2 and "90.0 %" in rows[0]


def test_the_recorded_configuration_counts_where_weights_it_began_with_are_gone(write, report):
    for seed in (0, 1):
        run = write(f"f{seed}", {"pgd20": first(40)}, first(90), seed=seed)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["model"]["weights"] = "/gone/w.pt"
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(result | {"configuration": "tuned-1234"}))
    code, out = report(run.parent)
    assert code == 0 and cells(out, "tuned-1234")[1] == "2"


def test_seeds_measured_on_other_images_form_no_row(write, report):
    for seed, digest in ((0, "aa"), (1, "bb")):
        run = write(f"x{seed}", {"pgd20": first(40)}, first(90), seed=seed,
                    facts={"test_content": digest})  # fmt: skip
    code, out = report(run.parent)
    rows = [
        line for line in out.splitlines() if line.startswith("digits-resnet10-w0.0625-silu-pgd1")
    ]
    assert code == 0 and len(rows) == 2, out
