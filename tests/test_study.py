"""Reports on experiments: runs and experiments written by hand, numbers worked out by hand."""

import csv
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from sat.evaluation.settings import accuracy

ROOT = Path(__file__).parents[1]
PGD = {"attack": "PGD", "eps": 8.0, "norm": "linf", "steps": 20, "limit": None}
STRONG = {"attack": "FastAutoAttack", "eps": 8.0, "norm": "linf", "limit": None}
SPEC = {
    "title": "Activations",
    "question": "Is smooth better?",
    "rows": ["activation", "activation.alpha"],
    "reference": {"activation": "relu"},
    "published": {
        "setting": "ImageNet", "source": "figure 2",
        "rows": [{"activation": "relu", "clean": 68.8, "robust": 33.0}],
    },
}  # fmt: skip


def config(activation: str, seed: int, alpha: float | None = None, **changes) -> dict:
    """A run's config; `changes` go by section: `schedule={"epochs": 8.0}`."""
    written = {
        "choices": {"activation": activation, "attack": "pgd", "model": "resnet",
                    "dataset": "digits", "experiment": None},
        "seed": seed, "evaluate": None,
        "dataset": {"_target_": "sat.data.memory.Digits", "limit": None},
        "activation": {"_target_": f"sat.activations.{activation}"},
        "attack": {"_target_": "sat.attacks.pgd.PGD", "eps": 8.0, "steps": 1},
        "model": {"_target_": "sat.models.ResNet", "depth": 10, "weights": None},
        "schedule": {"epochs": 4.0, "decay": "cosine", "milestones": [0.3]},
        "objective": {}, "validation": {}, "evaluation": {}, "record": {"root": str(seed)},
    }  # fmt: skip
    if alpha is not None:
        written["activation"]["alpha"] = alpha
    for section, values in changes.items():
        written[section] = {**written[section], **values}
    return written


class Folder:
    """A folder of runs that are written by hand."""

    def __init__(self, outputs: Path):
        self.outputs = outputs

    def add(self, activation, seed, right, *, alpha=None, experiments=("x",), facts=(), **changes):
        """A finished run of 100 test images, 90 of them right when clean; `right` stand pgd20, or
        with a dict each of its attacks."""
        run = (
            self.outputs / f"{activation}{alpha or ''}-s{seed}-{len(list(self.outputs.glob('*')))}"
        )
        (run / "flags").mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump(config(activation, seed, alpha, **changes)))
        (run / "experiments.txt").write_text("\n".join(experiments))
        attacks = right if isinstance(right, dict) else {"pgd20": right}
        clean, result = np.arange(100) < 90, {"status": "finished", "seed": seed}
        result["dataset"] = {"name": "digits", "classes": 10, "test": 100, "test_content": "aa"}
        result["dataset"] |= dict(facts)
        result |= {"configuration": activation, "parameters": 5, "wall_seconds": 60.0}
        result["environment"] = {"device": "a machine", "torch": "2.0", "commit": "abcdef0123"}
        for which in ("best", "last"):
            part = {"clean": {**accuracy(clean), "subset": [None, None]}, "robust": {}}
            for name, count in attacks.items():
                settings = {"strong": STRONG, "other": {**PGD, "eps": 4.0}}.get(name, PGD)
                name = {"other": "pgd20"}.get(name, name)
                flags = np.arange(100) < count
                part["robust"][name] = {**accuracy(flags), "settings": settings}
                np.savez(run / f"flags/{which}-{name}.npz", indices=np.arange(100), clean=clean,
                         robust=flags, settings=np.array(json.dumps(settings)))  # fmt: skip
            result[which] = part
        (run / "result.json").write_text(json.dumps(result))
        return run

    def pair(self, one: str, two: str, points: list[int], base: int = 50) -> None:
        """A run of each for each seed, `two` above `one` by so many points."""
        for seed, more in enumerate(points):
            self.add(one, seed, base + 2 * seed)
            self.add(two, seed, base + 2 * seed + more)


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """The modules of scripts/ by name, with experiments of this test's alone."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    names = ("runs", "specs", "study", "differences", "pages", "report")
    found = SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    found.specs.load.cache_clear()
    monkeypatch.setattr(found.specs, "CONF", tmp_path / "conf")
    return found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "outputs").mkdir()
    return Folder(tmp_path / "outputs")


@pytest.fixture
def spec(tmp_path, scripts):
    """`spec(claims=[...])` writes the experiment x, `spec("y", rows=[...])` another."""

    def write(name="x", whole=None, **changes):
        path = tmp_path / "conf" / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        node = {key: v for key, v in {**SPEC, **changes}.items() if v is not None}
        path.write_text(yaml.safe_dump({"report": node, **(whole or {})}))
        scripts.specs.load.cache_clear()

    write()
    return write


@pytest.fixture
def command(scripts, monkeypatch, capfd, folder):
    """`command("--experiment", "x")` over the folder: exit code and output; figures are stubs."""

    def draw(tables, place):
        place.mkdir(parents=True, exist_ok=True)
        (place / "a b.png").write_bytes(b"")
        return [SimpleNamespace(table=tables[0].name, title="t", png=place / "a b.png",
                                svg=place / "a b.svg", text="dots")]  # fmt: skip

    stubs = {"plots": {"draw": draw}, "webpage": {"page": lambda *given: repr(given)}}
    for name, functions in stubs.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**functions))

    def call(*arguments, outputs=folder.outputs):
        monkeypatch.setattr(sys, "argv", ["report.py", str(outputs), *map(str, arguments)])
        capfd.readouterr()
        code = scripts.report.main()
        out, err = capfd.readouterr()
        assert not err
        return code, out

    return call


def only(report):
    (table,) = report.tables
    return table


BEST = ("best", "pgd20")

# rows and tables ----------------------------------------------------------------------------------


def test_rows_are_runs_that_differ_in_the_seed_alone(scripts, folder, spec):
    """By hand: 50, 52, 54 have deviation 2, and t of 2 degrees of freedom is 4.303."""
    for seed in range(3):
        folder.add("relu", seed, 50 + 2 * seed, record={"root": f"elsewhere{seed}"})
        folder.add("elu", seed, 40, alpha=1.0)
    folder.add("elu", 0, 45, alpha=1.2)
    spec(whole={"hydra": {"sweeper": {"params": {"activation": "relu, elu"}}}})
    table = only(scripts.study.read(folder.outputs))
    assert [row.label for row in table.rows] == ["ReLU", "ELU alpha=1", "ELU alpha=1.2"]
    relu, elu, alone = table.rows
    assert relu.keys == {"activation": "relu", "activation.alpha": None}
    assert relu.numbers[BEST].mean == pytest.approx(0.52)
    assert relu.numbers[BEST].high - 0.52 == pytest.approx(4.302653 * 0.02 / 3**0.5)
    assert relu.numbers[BEST].seeds == {0: 0.5, 1: 0.52, 2: 0.54}
    assert [run.name[:7] for run in relu.runs] == ["relu-s0", "relu-s1", "relu-s2"]
    assert (alone.numbers[BEST].low, alone.numbers[BEST].high) == pytest.approx(
        (0.356, 0.548), abs=1e-3
    )
    assert relu.gradients == 8  # 4 epochs of an attack step and an update
    assert relu.published == {"clean": 68.8, "robust": 33.0} and elu.published is None
    assert table.setting == "digits, eps 8/255 L-inf, resnet10, trained on pgd1, 4 epochs"
    assert table.name == "x-digits" and table.facts["training"] == "7m00s for 7 runs"


def test_settings_have_a_table_each_and_say_what_differs(scripts, folder, spec):
    for epochs in (4.0, 8.0):
        for decay in (0.1, 0.2):
            folder.add("relu", 0, 50, schedule={"epochs": epochs, "weight_decay": decay})
    folder.add("relu", 0, 50, experiments=["x", "y"], facts={"name": "cifar"},
               choices={"dataset": "cifar"})  # fmt: skip
    spec("y", rows=["schedule.epochs"], reference=None, published=None)
    tables = scripts.study.read(folder.outputs).tables
    settings = [table.setting for table in tables]
    assert len(tables) == len(set(settings)) == 6
    assert sorted(table.name for table in tables) == [
        "x-cifar", "x-digits", "x-digits-2", "x-digits-3", "x-digits-4", "y-cifar",
    ]  # fmt: skip
    assert sum("8 epochs, schedule.weight_decay 0.2" in text for text in settings) == 1
    assert "epochs" not in settings[-1] and "weight_decay" not in settings[-1]


def test_a_group_among_the_rows_brings_its_arguments(scripts, folder, spec):
    spec(rows=["activation"], reference=None)
    for alpha in (1.0, 2.0):
        folder.add("elu", 0, 50, alpha=alpha)
    table = only(scripts.study.read(folder.outputs))
    assert [row.label for row in table.rows] == ["ELU alpha=1.0", "ELU alpha=2.0"]


def test_rows_may_differ_in_their_images(scripts, folder, spec):
    """Each size has its own digest; but seeds of one size that differ in it are no seeds."""
    spec(rows=["dataset.image_size"], reference=None, published=None)
    for size, digest in ((8, "aa"), (16, "bb")):
        for seed in range(2):
            facts = {"test_content": digest}
            folder.add("relu", seed, 50, dataset={"image_size": size}, facts=facts)
    table = only(scripts.study.read(folder.outputs))
    assert [(row.label, len(row.runs)) for row in table.rows] == [
        ("image_size=8", 2), ("image_size=16", 2),
    ]  # fmt: skip
    folder.add("relu", 2, 99, dataset={"image_size": 8}, facts={"test_content": "cc"})
    labels = {row.label for row in only(scripts.study.read(folder.outputs)).rows}
    eights = {"image_size=8 test images aa", "image_size=8 test images cc"}
    assert labels == eights | {"image_size=16"}


def test_published_numbers_go_to_the_row_that_names_most_keys(scripts, folder, spec):
    rows = [{"activation": "elu", "robust": 1}, {"activation.alpha": 2.0, "robust": 3}]
    rows += [{"activation": "elu", "activation.alpha": 2.0, "robust": 2}]
    spec(published={"rows": rows})
    for alpha in (1.0, 2.0):
        folder.add("elu", 0, 50, alpha=alpha)
    table = only(scripts.study.read(folder.outputs))
    assert [row.published for row in table.rows] == [{"robust": 1}, {"robust": 2}]


def test_other_images_and_other_settings_are_never_averaged_in(scripts, folder, spec):
    for seed in range(3):
        folder.add("relu", seed, 50)
        folder.add("silu", seed, 60)
    stranger = folder.add("relu", 3, {"other": 99})
    folder.add("relu", 4, 99, facts={"test_content": "bb"})
    earlier = folder.add("relu", 5, 50, facts={"test_content": None})
    copy = shutil.copytree(folder.outputs / stranger.name, folder.outputs / "zz")
    report = scripts.study.read(folder.outputs)
    mine, other, doubtful = report.tables
    assert set(mine.rows[0].numbers[BEST].seeds) == {0, 1, 2} and len(mine.rows[0].runs) == 4
    assert f"{stranger.name}: pgd20 left out, of other settings (eps)" in mine.notes
    assert f"{copy.name}: left out, the same run as {stranger.name}" in mine.notes
    assert "test images aa" in mine.setting and "test images bb" in other.setting
    assert "test images unknown" in doubtful.setting
    assert any("other test images" in note for note in mine.notes)
    assert [run.name for run in doubtful.rows[0].runs] == [earlier.name]
    shutil.rmtree(next(folder.outputs.glob("relu-s4*")))
    table = only(scripts.study.read(folder.outputs))  # no doubt which images the earlier run had
    assert set(table.rows[0].numbers[BEST].seeds) == {0, 1, 2, 5}


def test_the_strongest_attack_that_all_rows_have_judges(scripts, folder, spec):
    for seed in range(2):
        folder.add("relu", seed, {"pgd20": 50, "strong": 40})
    silu = folder.add("silu", 0, {"pgd20": 50, "strong": 40})
    assert only(scripts.study.read(folder.outputs)).attack == "strong"
    shutil.rmtree(silu)
    folder.add("silu", 0, 50)
    table = only(scripts.study.read(folder.outputs))
    assert table.attack == "pgd20"
    passed = "strong: 2 of 3 runs were measured with it, so the table is judged by pgd20"
    assert passed in table.notes
    folder.add("silu", 1, {"pgd20": 50, "strong": 40})  # a row has it, but not for all its seeds
    table = only(scripts.study.read(folder.outputs))
    assert table.attack == "pgd20" and passed.replace("2 of 3", "3 of 4") in table.notes


def test_an_attack_of_another_size_does_not_judge(scripts, folder, spec, monkeypatch):
    monkeypatch.setitem(PGD, "steps", 20)
    own = {"eps": 8.0, "norm": "linf"}
    for name in ("relu", "silu"):
        run = folder.add(name, 0, 50, dataset=own)
        result = json.loads((run / "result.json").read_text())
        weak = {**result["best"]["robust"]["pgd20"], "settings": {**PGD, "eps": 2.0, "steps": 50}}
        for which in ("best", "last"):
            result[which]["robust"]["pgd50"] = weak
        (run / "result.json").write_text(json.dumps(result))
    assert only(scripts.study.read(folder.outputs)).attack == "pgd20"


# differences and verdicts -------------------------------------------------------------------------


def test_differences_are_paired_by_seed_and_marked_after_holm(scripts, folder, spec):
    """By hand: 9, 10, 11 have error 1/sqrt(3), so t = 17.3 and p = 0.0033; 2, 4 have p = 0.2."""
    folder.pair("relu", "silu", [9, 10, 11])
    for seed, more in enumerate((2, 4)):
        folder.add("gelu", seed, 50 + 2 * seed + more)
    rows = {row.label: row for row in only(scripts.study.read(folder.outputs)).rows}
    relu, gelu, silu = rows["ReLU"], rows["GELU"], rows["SiLU"]
    found = silu.differences[BEST]
    assert (found.mean, found.p) == (pytest.approx(0.1), pytest.approx(0.00332, abs=1e-5))
    assert found.high - 0.1 == pytest.approx(4.302653 * 0.01 / 3**0.5)
    assert found.test == "seeds" and found.seeds == 3 and found.marked
    assert gelu.differences[BEST].p == pytest.approx(0.2048, abs=1e-4)
    assert not gelu.differences[BEST].marked and not relu.differences
    clean = silu.differences["best", "clean"]  # equal for all seeds
    assert clean.mean == 0 and clean.p == 1 and 0 < clean.high < 0.02


def test_one_seed_is_compared_image_by_image_where_flags_are(scripts, folder, spec):
    """By hand: silu alone stands on 10 images, so p = 2 / 2^10."""
    relu = folder.add("relu", 0, 50)
    folder.add("silu", 0, 60)
    rows = only(scripts.study.read(folder.outputs)).rows
    found = rows[1].differences[BEST]
    assert (found.test, found.mean, found.p) == ("images", pytest.approx(0.1), 2 / 2**10)
    assert found.marked
    moved = shutil.copytree(folder.outputs, folder.outputs.parent / "moved")
    shutil.rmtree(moved / relu.name / "flags")
    table = only(scripts.study.read(moved))
    assert not table.rows[1].differences
    assert sum("SiLU: no difference to ReLU is told, one seed" in note for note in table.notes) == 1


CLAIM = {"text": "SiLU wins.", "better": {"activation": "silu"}, "than": {"activation": "relu"},
         "measure": "robust"}  # fmt: skip


@pytest.mark.parametrize("points, changes, answer, reason", [
    ([9, 10, 11], {}, "supports", "+10.0 points (7.5 to 12.5), 3 seeds, pgd20, best"),
    ([-9, -10, -11], {}, "contradicts", "-10.0 points (-12.5 to -7.5), 3 seeds, pgd20, best"),
    ([-9, 9, 3], {}, "says nothing", "+1.0 points (-21.8 to 23.8), 3 seeds, pgd20, best"),
    ([9, 10, 11], {"within": 13}, "supports", "3 seeds"),
    ([9, 10, 11], {"within": 9}, "says nothing", "3 seeds"),
    ([9, 10, 11], {"within": 7}, "contradicts", "3 seeds"),
    ([9, 10, 11], {"measure": "last robust"}, "supports", "3 seeds, pgd20, last"),
    ([9, 10, 11], {"measure": "clean"}, "says nothing", "+0.0 points"),
    ([-9, -10, -11], {"within": 7}, "contradicts", "3 seeds"),
    ([9, 10, 11], {}, "supports", "SiLU against ReLU: "),
    ([9], {}, "says nothing", "+9.0 points, pgd20, best; one seed is in both"),
    ([9, 9], {"than": {"activation": "elu"}}, "not run", "no row activation=elu"),
    ([9, 10, 11], {"equal": "gradients"}, "supports", "3 seeds"),
])  # fmt: skip
def test_verdicts(scripts, folder, spec, points, changes, answer, reason):
    folder.pair("relu", "silu", points)
    spec(claims=[{**CLAIM, **changes}])
    (verdict,) = only(scripts.study.read(folder.outputs)).verdicts
    assert verdict.answer == answer and reason in verdict.reason, verdict


def test_a_claim_may_name_the_lowest_and_the_highest(scripts, folder, spec):
    for seed in range(3):
        for alpha, right in ((1.0, 60), (1.5, 30), (2.0, 40)):
            folder.add("elu", seed, right + seed, alpha=alpha)
        folder.add("celu", seed, 50, alpha=9.0)
        folder.add("relu", seed, 10)
    lowest, highest = (
        {"activation": "elu", "activation.alpha": end} for end in ("lowest", "highest")
    )
    claims = [{**CLAIM, "better": lowest, "than": highest}]
    claims += [{**CLAIM, "better": {"activation": "elu"}}]
    spec(claims=claims, reference=lowest)
    table = only(scripts.study.read(folder.outputs))
    assert table.verdicts[0].answer == "not run"  # elu has no run at the table's highest alpha
    assert "no row activation=elu, activation.alpha=9.0" in table.verdicts[0].reason
    assert table.verdicts[1].answer == "not run" and "fits 3 rows" in table.verdicts[1].reason
    assert table.reference == "ELU alpha=1"
    for seed in range(3):
        folder.add("elu", seed, 40 + seed, alpha=9.0)
    verdict = only(scripts.study.read(folder.outputs)).verdicts[0]
    assert verdict.answer == "supports" and "+20.0 points" in verdict.reason


def test_a_claim_at_equal_cost_needs_equal_costs(scripts, folder, spec):
    for seed in range(3):
        folder.add("relu", seed, 50)
        folder.add("silu", seed, 60 + seed, schedule={"epochs": 8.0})
    claims = [{**CLAIM, "equal": "gradients"}, CLAIM]
    spec(rows=["activation", "schedule.epochs"], claims=claims)
    first, second = only(scripts.study.read(folder.outputs)).verdicts
    assert first.answer == "not run" and "16 and 8 gradient computations" in first.reason
    assert second.answer == "supports"


def test_verdicts_are_corrected_for_their_number(scripts, folder, spec):
    """p is 0.025 of one claim, and 0.05 of two."""
    folder.pair("relu", "silu", [4, 6, 9])
    spec(claims=[CLAIM])
    (alone,) = only(scripts.study.read(folder.outputs)).verdicts
    assert alone.answer == "supports" and "p = 0.05" not in alone.reason
    spec(claims=[CLAIM, {**CLAIM, "measure": "last robust"}])
    pair = only(scripts.study.read(folder.outputs)).verdicts
    assert [verdict.answer for verdict in pair] == ["says nothing"] * 2


def test_alarms_are_told_wherever_their_numbers_are(command, folder, spec):
    folder.pair("relu", "silu", [9, 10, 11])
    run = next(folder.outputs.glob("silu-s1*"))
    result = json.loads((run / "result.json").read_text())
    result["alarms"] = [{"name": "masked_gradient", "message": "..."}]
    (run / "result.json").write_text(json.dumps(result))
    spec(claims=[CLAIM])
    code, out = command()
    page = (folder.outputs / "report/report.md").read_text()
    for text in (out, page.replace("\\", "")):
        assert "SiLU (!)" in text and "(!): runs of this row raised alarms" in text
        assert f"{run.name}: raised alarms (masked_gradient)" in text
        assert "1 of their runs raised alarms" in text


def test_an_experiment_may_show_the_rows_of_others(scripts, folder, spec):
    folder.pair("relu", "silu", [9, 10])
    folder.add("relu", 0, 70, attack={"steps": 3}, experiments=["controls"])
    folder.add("relu", 0, 70, attack={"steps": 3}, schedule={"epochs": 9.0},
               experiments=["controls"])  # fmt: skip
    rows = ["activation", "attack.steps"]
    spec(rows=rows, also=["controls"])
    tables = scripts.study.read(folder.outputs).tables
    mine = [table for table in tables if table.experiment == "x"]
    assert len(mine) == 1
    assert [row.label for row in mine[0].rows] == [
        "ReLU steps=1", "ReLU steps=3", "SiLU steps=1",
    ]  # fmt: skip
    spec(rows=rows)
    assert len(only(scripts.study.read(folder.outputs, "x")).rows) == 2


def test_a_selector_may_name_words_and_several_values(scripts, folder, spec):
    for seed in range(2):
        for name in ("b0", "b1", "b2"):
            folder.add(name, seed, 50 + 10 * int(name[1]) + seed)
    claims = [{**CLAIM, "better": {"activation": end}, "than": {"activation": "b0"}}
              for end in ("highest", ["b1", "nowhere"], ["b1", "b2"])]  # fmt: skip
    spec(rows=["activation"], claims=claims, reference={"activation": "lowest"})
    table = only(scripts.study.read(folder.outputs))
    assert table.reference == "b0"
    first, second, third = (v.reason for v in table.verdicts)
    assert "+20.0 points" in first and "+10.0 points" in second and "fits 2 rows" in third


def test_labels_are_templates_or_texts_of_single_values(scripts, folder, spec):
    for alpha in (1.0, 2.5):
        folder.add("elu", 0, 50, alpha=alpha)
    spec(labels={"activation.alpha": "alpha {}", "activation": {"elu": "ELU"}})
    table = only(scripts.study.read(folder.outputs))
    assert [row.label for row in table.rows] == ["ELU alpha 1", "ELU alpha 2.5"]
    spec(labels={"activation.alpha": {1.0: ""}})
    table = only(scripts.study.read(folder.outputs))
    assert [row.label for row in table.rows] == ["ELU", "ELU alpha=2.5"]


def test_rows_come_as_published_where_the_sweep_follows_the_dataset(scripts, folder, spec):
    for name in ("celu", "elu", "relu", "silu"):
        folder.add(name, 0, 50)
    rows = [{"activation": name, "clean": 50} for name in ("relu", "silu", "elu")]
    whole = {"hydra": {"sweeper": {"params": {"activation": "${sizes.activations}"}}}}
    spec(published={"rows": rows}, whole=whole)
    table = only(scripts.study.read(folder.outputs))
    assert [row.label for row in table.rows] == ["ReLU", "SiLU", "ELU", "CELU"]


# pages --------------------------------------------------------------------------------------------


def test_the_page_opens_with_every_claim_and_says_what_to_run(command, folder, spec):
    folder.pair("relu", "silu", [9, 10, 11])
    spec(claims=[CLAIM, {**CLAIM, "text": "The other way.", "better": CLAIM["than"],
                         "than": CLAIM["better"]}])  # fmt: skip
    assert command()[0] == 0
    page = (folder.outputs / "report/report.md").read_text()
    glance = page.split("## The claims at a glance")[1].split("\n## ")[0]
    assert "| **supports**: SiLU against ReLU: +10.0 points" in glance
    assert "| **contradicts**: ReLU against SiLU: -10.0" in glance
    assert "Verdicts (2)" in glance
    assert "command: python -m sat.run -m experiment=x seed=0,1,2" in page.replace("\\", "")


def test_evidence_names_no_machine(command, folder, spec, tmp_path):
    run = folder.add("relu", 0, 50, dataset={"root": "/home/me/sets/flowers"})
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["record"]["root"] = "/home/me/outputs"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    result = json.loads((run / "result.json").read_text())
    result["environment"] |= {"host": "mine", "command": "/home/me/sat record.root=/home/me/o"}
    result["best"]["environment"] = dict(result["environment"])
    result["overrides"] = ["seed=0", "record.root=/home/me/o", "+dataset.root=/home/me/sets"]
    (run / "result.json").write_text(json.dumps(result))
    assert command("--keep", tmp_path / "kept")[0] == 0
    texts = [path.read_text() for path in (tmp_path / "kept" / run.name).iterdir()]
    assert not any("/home" in text or "mine" in text for text in texts)
    kept = json.loads((tmp_path / "kept" / run.name / "result.json").read_text())
    assert kept["overrides"] == ["seed=0"] and kept["environment"]["device"] == "a machine"
    kept = yaml.safe_load((tmp_path / "kept" / run.name / "config.yaml").read_text())
    assert (kept["dataset"]["root"], kept["record"]["root"]) == ("flowers", "outputs")


def test_the_command_writes_the_same_numbers_everywhere(command, folder, spec):
    folder.pair("relu", "silu", [9, 10, 11])
    spec(claims=[CLAIM])
    (folder.outputs / "preface.md").write_text("# Mine\n")
    code, out = command()
    assert code == 0 and "Is smooth better?" in out and "supports: SiLU wins." in out
    line = next(line for line in out.splitlines() if line.startswith("SiLU"))
    assert "62.0 ± 7.5" in line and "+10.0 (+7.5 to +12.5) *" in line
    written = folder.outputs / "report"
    page = (written / "report.md").read_text()
    assert page.startswith("# Mine\n") and "## Activations (`x`)" in page
    row = next(line for line in page.splitlines() if line.startswith("| SiLU |"))
    assert row.split(" | ")[3] == "62.0 ± 7.5" and "+10.0 (+7.5 to +12.5) \\*" in row
    head = page.splitlines()[page.splitlines().index(row) - 3]
    assert head.count("|") == row.count("|") and "published robust" in head
    assert "![dots](figures/a%20b.png)" in page and "Published: ImageNet (figure 2)." in page
    assert "- **supports**: SiLU wins. (SiLU against ReLU: +10.0 points (7.5 to 12.5)" in page
    with open(written / "x-digits.csv") as file:
        lines = {(r["row"], r["checkpoint"], r["measure"]): r for r in csv.DictReader(file)}
    silu, relu = lines["SiLU", "best", "pgd20"], lines["ReLU", "best", "pgd20"]
    assert float(silu["mean"]) == pytest.approx(0.62) and silu["seed 2"] == "0.65"
    assert float(silu["difference"]) == pytest.approx(0.1) and silu["significant"] == "True"
    assert relu["published robust"] == "0.33" and relu["difference"] == "" and len(lines) == 8
    html = (written / "report.html").read_text()
    assert html.startswith("('Mine', [Table(experiment='x'")


def test_the_page_may_stand_elsewhere(command, folder, spec, tmp_path):
    folder.add("relu", 0, 50)
    page = tmp_path / "docs" / "results.md"
    code, out = command("--to", tmp_path / "docs" / "figs", "--page", page)
    assert code == 0 and f"written: {page}" in out
    assert "![dots](figs/figures/a%20b.png)" in page.read_text()
    assert not (folder.outputs / "report").exists()


def test_one_run_is_told_on_the_screen_and_written_where_it_is_said(
    command, folder, spec, tmp_path
):
    run = folder.add("relu", 0, 50)
    assert command(outputs=run)[0] == 0
    assert not (run / "report").exists() and not (folder.outputs / "report").exists()
    code, out = command("--page", tmp_path / "a.md", outputs=run)
    assert code == 2 and out.count("name --to FOLDER") == 1
    assert command("--to", tmp_path / "there", outputs=run)[0] == 0
    assert (tmp_path / "there" / "x-digits.csv").exists()
    code, out = command("--to", run / "config.yaml")
    assert code == 2 and out.splitlines()[-1].startswith(f"{run}/config.yaml: can't be written (")


def test_evidence_gives_the_same_report(command, folder, spec, tmp_path):
    folder.pair("relu", "silu", [9, 10, 11])
    folder.add("gelu", 0, 99, experiments=["gone"])
    (folder.add("elu", 0, 50, alpha=1.0) / "result.json").unlink()
    (folder.outputs / "preface.md").write_text("# Mine\n")
    rows = [{"step": 1, "epoch": 1.0, "val/clean": 0.5, "val/robust": 0.25, "diagnostics/x": 1.0},
            {"step": 2, "epoch": 2.0, "train/loss": 1.0}]  # fmt: skip
    run = next(folder.outputs.glob("silu-s0*"))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, page = tmp_path / "kept", "report/report.md"
    code, out = command("--keep", kept)
    assert code == 0 and not (kept / run.name / "metrics.jsonl").exists()
    assert sorted(path.name for path in (kept / run.name).iterdir()) == [
        "config.yaml", "experiments.txt", "result.json",
    ]  # fmt: skip
    assert command(outputs=kept)[1].replace(str(kept), "") == out.split("kept:")[0].replace(
        str(folder.outputs), ""
    )
    assert (kept / page).read_text() == (folder.outputs / page).read_text()
    spec(figures=[{"kind": "epochs"}])
    command("--keep", kept)
    (line,) = (kept / run.name / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {k: v for k, v in rows[0].items() if k != "diagnostics/x"}
    code, out = command("--keep", folder.outputs / "kept")
    assert code == 2 and "lies among the runs" in out
    shutil.rmtree(run)
    assert f"{kept / run.name}: is no run of this report" in command("--keep", kept)[1]


def test_a_second_report_is_the_first(command, folder, spec):
    folder.pair("relu", "silu", [9, 10, 11])
    first, page = command(), folder.outputs / "report" / "report.md"
    before = page.read_bytes()
    assert command() == first and page.read_bytes() == before


# bad input ----------------------------------------------------------------------------------------


def damage(run: Path, how: str) -> None:
    match how:
        case "result":
            (run / "result.json").write_text('{"status": "fin')
        case "number":
            text = (run / "result.json").read_text()
            (run / "result.json").write_text(text.replace('"accuracy": 0.9', '"accuracy": NaN'))
        case "config":
            (run / "config.yaml").write_text("a: [1\nb: {")
        case "foreign":
            (run / "config.yaml").write_text("- a list\n")
        case "experiments":
            (run / "experiments.txt").write_bytes(b"\xff\xfe\x00")
        case "metrics":
            (run / "metrics.jsonl").write_text('{"epoch": 1, "val/clean": 0.5\n')
        case "stopped":
            (run / "result.json").unlink()
        case "failed":
            failed = {"status": "failed", "error": "the loss is not finite"}
            (run / "result.json").write_text(json.dumps(failed))


SAID = {
    "result": "damaged: ", "number": "can't be read (ValueError: an accuracy is nan",
    "config": "can't be read (config.yaml is damaged: ", "stopped": "stopped",
    "foreign": "can't be read (config.yaml is none of this program's)",
    "experiments": "can't be read (experiments.txt is damaged", "failed": "failed: the loss",
    "metrics": "metrics.jsonl is damaged in line 1",
}  # fmt: skip


@pytest.mark.parametrize("how, line", SAID.items())
def test_damage_is_named_in_one_line_and_the_rest_is_reported(command, folder, spec, how, line):
    spec(figures=[{"kind": "epochs"}])
    folder.pair("relu", "silu", [9, 10, 11])
    for run in folder.outputs.glob("*"):
        (run / "metrics.jsonl").write_text("")
    run = next(folder.outputs.glob("silu-s2*"))
    damage(run, how)
    code, out = command()
    (said,) = [text for text in out.splitlines() if run.name in text]
    assert code == 0 and f"{run.name}: {line}" in said
    assert [line for line in out.splitlines() if line.startswith("SiLU")][0].split()[1] == (
        "3" if how == "metrics" else "2"
    )


def test_values_that_no_run_writes_fault_no_report(scripts, folder, spec):
    """Every value of a result and a config in turn becomes what it never is."""
    folder.pair("relu", "silu", [9, 10])
    run = next(folder.outputs.glob("silu-s1*"))
    for name, load in (("result.json", json.loads), ("config.yaml", yaml.safe_load)):
        text = (run / name).read_text()
        for place in places(load(text)):
            for wrong in (None, "x", [], -7):
                whole = load(text)
                node = whole
                for key in place[:-1]:
                    node = node[key]
                node[place[-1]] = wrong
                (run / name).write_text(json.dumps(whole))  # JSON is YAML
                report = scripts.study.read(folder.outputs)
                for table in report.tables:
                    scripts.pages.csv_of(table)
                scripts.pages.markdown(report, [], folder.outputs / "report.md")
                tabled = {r for t in report.tables for row in t.rows for r in row.runs}
                known = {r.name for r in tabled} | {r.path.name for r in report.others}
                named = any(run.name in text for t in report.tables for text in t.notes)
                named = named or any(run.name in text for text in report.notes)
                assert len(known - {run.name}) == 3, (place, wrong)  # the whole ones stay
                assert run.name in known or named, (place, wrong)  # and this one is told
        (run / name).write_text(text)


def places(node, above=()):
    for key, value in node.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def test_experiments_without_a_readable_file_leave_their_runs_to_others(command, folder, spec):
    folder.add("relu", 0, 50)
    folder.add("silu", 0, 50, experiments=["gone"])
    folder.add("gelu", 0, 50, experiments=["old"])
    folder.add("elu", 0, 50, experiments=["x", "gone"], alpha=1.0)
    spec("old")
    old = folder.outputs.parent / "conf/experiment/old.yaml"
    old.write_text("report: {rows: [activation], claims: [{text: a, better: {activatoin: relu}}]}")
    code, out = command()
    assert code == 0 and "  experiment gone: has no file any more" in out
    assert "experiment old: report.claims[0].better=activatoin: unknown; did you mean acti" in out
    others = out[out.index("configuration") :]
    assert "\nsilu " in others and "\ngelu " in others and "\nelu " not in others
    code, out = command("--experiment", "y")
    assert code == 2 and out.count("\n") == 1 and "allowed: gone, old, x" in out
    spec("idle")
    code, out = command("--experiment", "idle")
    assert code == 2 and "idle: has no run in" in out and out.count("\n") == 1
    code, out = command("--experiment", "gone")
    assert code == 0 and "silu" in out and "relu" not in out


WRONG = [
    ({"published": {"rows": 5}}, "'int' object is not iterable"),
    ({"rows": []}, "report.rows: must name"),
    ({"rows": "activation"}, "report.rows=activation: must be a sequence"),
    ({"clams": []}, "report.clams: no such key; did you mean claims?"),
    ({"reference": {"model": "a"}}, "report.reference=model: unknown"),
    ({"figures": [{"kind": "pie"}]}, "report.figures[0].kind=pie: unknown; did you mean lines?"),
    ({"claims": [{**CLAIM, "measure": "speed"}]}, "report.claims[0].measure=speed: unknown"),
    ({"claims": [{**CLAIM, "within": "a"}]}, "report.claims[0].within=a: must be in points"),
    ({"claims": [{**CLAIM, "than": "relu"}]}, "report.claims[0].than=relu: must be a group"),
    ({"published": {"rows": [{"clean": "a"}]}}, "report.published.rows[0].clean=a: must be in per"),
    (
        {"labels": {"activation": 1}},
        "report.labels.activation=1: must be a text with {}, or a group",
    ),
    ({"published": {"rows": [{"activaton": 1}]}}, "report.published.rows[0]=activaton: unknown"),
]


@pytest.mark.parametrize("changes, line", WRONG)
def test_a_report_node_is_checked(scripts, spec, changes, line):
    spec(**changes)
    with pytest.raises(ValueError) as refused:
        scripts.specs.load("x")
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_reading_loads_no_torch(folder):
    folder.add("relu", 0, 50)
    code = f"""if True:
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT / "scripts")!r})
        import study, pages, report
        pages.terminal(study.read(Path({str(folder.outputs)!r})))
        print({{"torch", "timm", "hydra", "matplotlib"}} & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip
    assert done.stdout.strip() == "set()", done.stderr
