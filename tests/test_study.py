"""Tables and verdicts: runs and experiments written by hand, numbers worked out by hand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from written import CLAIM, Folder, change

from sat.evaluation.measure import accuracy
from sat.loggers.markdown import terminal
from sat.report import pages, spec, tables
from sat.report.claims import LEVEL

ROOT = Path(__file__).parents[1]
BEST = ("best", "pgd20")


def only(folder: Folder):
    (table,) = tables.read(folder.outputs).tables
    return table


def labels(table) -> list[str]:
    return [row.label for row in table.rows]


# rows and tables ----------------------------------------------------------------------------------


def test_rows_are_runs_that_differ_in_the_seed_alone(folder, write):
    """By hand: 50, 52, 54 have deviation 2, and t of 2 degrees of freedom is 4.303."""
    for seed in range(3):
        folder.add("relu", seed, 50 + 2 * seed, record={"root": f"elsewhere{seed}"})
        folder.add("elu", seed, 40, alpha=1.0)
    folder.add("elu", 0, 45, alpha=1.2)
    write(whole={"hydra": {"sweeper": {"params": {"activation": "relu, elu"}}}})
    table = only(folder)
    assert labels(table) == ["ReLU", "ELU alpha=1", "ELU alpha=1.2"]
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
    folder.add("silu", 0, 50, attack={"_target_": "sat.attacks.Free", "replays": 8})
    assert [t.rows[0].gradients for t in tables.read(folder.outputs).tables] == [8, 32]
    assert (relu.activation, relu.steps) == ("relu", 1)
    assert table.setting == (
        "attack sat.attacks.pgd.PGD eps=8 steps=1, dataset sat.data.memory.Digits limit=-,"
        " model sat.models.ResNet depth=10, schedule decay=cosine epochs=4, test images aa"
    )
    assert table.name == "x-digits" and table.facts["training"] == "7m00s for 7 runs"


def test_settings_have_a_table_each_and_say_what_differs(folder, write):
    for epochs in (4.0, 8.0):
        for decay in (0.1, 0.2):
            folder.add("relu", 0, 50, schedule={"epochs": epochs, "weight_decay": decay})
    folder.add("relu", 0, 50, experiments=["x", "y"], facts={"name": "cifar"},
               choices={"dataset": "cifar"})  # fmt: skip
    write("y", rows=["schedule.epochs"], reference=None, published=None)
    found = tables.read(folder.outputs).tables
    settings = [table.setting for table in found]
    assert len(found) == len(set(settings)) == 6
    assert sorted(table.name for table in found) == [
        "x-cifar", "x-digits", "x-digits-2", "x-digits-3", "x-digits-4", "y-cifar",
    ]  # fmt: skip
    assert sum("epochs=8 weight_decay=0.2" in text for text in settings) == 1
    (alone,) = (table.setting for table in found if table.name == "y-cifar")
    assert "epochs" not in alone and "weight_decay" not in alone
    assert [table.dataset for table in found] == ["cifar"] * 2 + ["digits"] * 4, "a test: last"


def test_a_value_at_its_default_has_a_table_of_its_own(folder, write):
    """What decides a run is kept by difference from the defaults."""
    for decay in (0.1, 0.2):
        run = folder.add("relu", 0, 50, schedule={"weight_decay": decay})
        if decay == 0.1:
            whole = json.loads((run / "result.json").read_text())
            del whole["identity"]["schedule"]["weight_decay"]
            (run / "result.json").write_text(json.dumps(whole))
    settings = [table.setting for table in tables.read(folder.outputs).tables]
    assert sorted("weight_decay=0.2" in text for text in settings) == [False, True]


def test_a_group_among_the_rows_brings_its_arguments(folder, write):
    write(rows=["activation"], reference=None)
    for alpha in (1.0, 2.0):
        folder.add("elu", 0, 50, alpha=alpha)
    assert labels(only(folder)) == ["ELU alpha=1", "ELU alpha=2"]


def test_rows_may_differ_in_their_images(folder, write):
    """Each size has its own digest; but seeds of one size that differ in it are no seeds."""
    write(rows=["dataset.image_size"], reference=None, published=None)
    for size, digest in ((8, "aa"), (16, "bb")):
        for seed in range(2):
            facts = {"test_content": digest}
            folder.add("relu", seed, 50, dataset={"image_size": size}, facts=facts)
    assert [(row.label, len(row.runs)) for row in only(folder).rows] == [
        ("image_size=8", 2), ("image_size=16", 2),
    ]  # fmt: skip
    folder.add("relu", 2, 99, dataset={"image_size": 8}, facts={"test_content": "cc"})
    eights = {"image_size=8 test images=aa", "image_size=8 test images=cc"}
    assert set(labels(only(folder))) == eights | {"image_size=16"}


def test_other_images_and_other_settings_are_never_averaged_in(folder, write):
    for seed in range(2):
        folder.add("relu", seed, 50)
    stranger = folder.add("relu", 3, {"other": 99})
    folder.add("relu", 4, 99, facts={"test_content": "bb"})
    copies = [shutil.copytree(folder.outputs / stranger.name, folder.outputs / n) for n in "xyz"]
    mine, other = tables.read(folder.outputs).tables
    assert set(mine.rows[0].numbers[BEST].seeds) == {0, 1} and len(mine.rows[0].runs) == 3
    assert f"{stranger.name}: pgd20 left out, of other settings (eps)" in mine.notes
    for copy in copies:  # however many, they are no majority
        assert f"{copy.name}: left out, the same run as {stranger.name}" in mine.notes
    assert "test images aa" in mine.setting and "test images bb" in other.setting


def test_a_row_that_was_measured_otherwise_throughout_is_told_and_changes_no_other(folder, write):
    for seed in range(2):
        folder.add("silu", seed, 60)
    run = folder.add("relu", 0, 50)
    part = json.loads((run / "result.json").read_text())
    for which in (part["best"], part["last"]):
        for entry in (which["clean"], which["robust"]["pgd20"]):
            entry["images"] = 20
    (run / "result.json").write_text(json.dumps(part))
    table = only(folder)
    assert (labels(table), table.attack) == (["SiLU"], "pgd20")
    assert "ReLU: no row, none of its runs was measured as the rest" in table.notes


def test_a_smaller_part_of_the_test_set_is_another_setting(folder, write):
    """Of as many runs on either side the larger part stays."""
    for seed, images in enumerate((100, 60)):
        run = folder.add("relu", seed, 50)
        whole = json.loads((run / "result.json").read_text())
        for part in (whole["best"], whole["last"]):
            part["robust"]["pgd20"]["images"] = images
        (run / "result.json").write_text(json.dumps(whole))
    table = only(folder)
    assert table.rows[0].numbers[BEST].images == 100
    assert any("pgd20 left out" in note and "(images)" in note for note in table.notes)


def test_a_worst_case_is_averaged_over_equal_attacks_alone(folder, write):
    for seed in range(3):
        third = {"third": 50} if seed else {}
        run = folder.add("relu", seed, {"pgd20": 70, "strong": 60, **third})
        whole = json.loads((run / "result.json").read_text())
        robust = whole["best"]["robust"]
        entry = {
            k: robust["third" if seed else "strong"][k] for k in ("accuracy", "ci95", "images")
        }
        robust["strong"] |= {"eps": 128.0, "norm": "l2"}
        robust["pgd20"] |= {"eps": 8.0, "norm": "linf"}
        robust["worst_case"] = {**entry, "attacks": list(robust), "norm": "union"}
        (run / "result.json").write_text(json.dumps(whole))
    table = only(folder)
    assert table.facts["worst_case is the union of"] == "128/255 l2, 8/255 linf"
    found = table.rows[0].numbers["best", "worst_case"]
    assert found.seeds == {1: 0.5, 2: 0.5}
    assert any("worst_case left out, of other settings" in note for note in table.notes)


def test_the_strongest_attack_that_all_rows_have_judges(folder, write):
    for seed in range(2):
        folder.add("relu", seed, {"pgd20": 50, "strong": 40})
    silu = folder.add("silu", 0, {"pgd20": 50, "strong": 40})
    assert only(folder).attack == "strong"
    shutil.rmtree(silu)
    folder.add("silu", 0, 50)
    table = only(folder)
    assert table.attack == "pgd20"
    passed = "strong: 2 of 3 runs were measured with it, so the table is judged by pgd20"
    assert passed in table.notes
    folder.add("silu", 1, {"pgd20": 50, "strong": 40})  # a row has it, but not for all its seeds
    table = only(folder)
    assert table.attack == "pgd20" and passed.replace("2 of 3", "3 of 4") in table.notes
    _, cells, _ = pages.cells_of(table)
    assert "(n=1)" in cells[1][4] and "(n=1)" not in cells[0][4]


def test_apgd_of_more_steps_than_pgd_judges(folder, write):
    for name in ("relu", "silu"):
        folder.add(name, 0, {"pgd20": 50, "apgd": 40})
    assert only(folder).attack == "apgd"


@pytest.mark.parametrize("eps", [8.0, "8/255"])
def test_an_attack_of_another_size_does_not_judge(eps, folder, write):
    own = {"eps": eps, "norm": "linf"}
    for name in ("relu", "silu"):
        folder.add(name, 0, {"pgd20": 50, "weak": 60}, dataset=own)
    assert only(folder).attack == "pgd20"


def test_an_experiment_may_show_the_rows_of_others(folder, write):
    folder.pair("relu", "silu", [9, 10])
    for epochs in (4.0, 9.0):
        folder.add("relu", 0, 70, attack={"steps": 3}, schedule={"epochs": epochs},
                   experiments=["controls"])  # fmt: skip
    rows = ["activation", "attack.steps"]
    write(rows=rows, also=["controls"])
    (mine,) = [t for t in tables.read(folder.outputs).tables if t.experiment.name == "x"]
    assert labels(mine) == ["ReLU steps=1", "ReLU steps=3", "SiLU steps=1"]
    write(rows=rows)
    (mine,) = [t for t in tables.read(folder.outputs).tables if t.experiment.name == "x"]
    assert labels(mine) == ["ReLU steps=1", "SiLU steps=1"]


def test_labels_are_templates_or_texts_of_single_values(folder, write):
    for alpha in (1.0, 2.5):
        folder.add("elu", 0, 50, alpha=alpha)
    write(labels={"activation.alpha": "alpha {}", "activation": {"elu": "ELU"}})
    assert labels(only(folder)) == ["ELU alpha 1", "ELU alpha 2.5"]
    write(labels={"activation.alpha": {1.0: ""}})
    assert labels(only(folder)) == ["ELU", "ELU alpha=2.5"]


def test_rows_come_by_their_numbers_and_as_the_literature_names_them(folder, write):
    for name in ("mine", "celu", "silu", "elu", "relu"):
        for alpha in (10.0, 2.0):
            folder.add(name, 0, 50, alpha=alpha)
    names = [name for name in ("ReLU", "ELU", "SiLU", "CELU", "mine") for _ in range(2)]
    assert labels(only(folder)) == [
        f"{name} alpha={alpha}" for name, alpha in zip(names, [2, 10] * 5, strict=True)
    ]


# runs of no experiment ----------------------------------------------------------------------------


def test_rows_of_no_experiment_are_what_differs(folder, write):
    """README's own sweep; depth comes with the width of the network, which goes without saying."""
    for name, alphas in (("elu", (1.0, 2.0)), ("relu", (None,))):
        for alpha in alphas:
            for depth in (10, 14):
                for seed in range(2):
                    words = [f"activation={name}", f"activation.alpha={alpha}"]
                    words += [f"model.depth={depth}", f"seed={seed}"]
                    model = {"depth": depth, "blocks": [depth]}
                    folder.add(name, seed, 50, alpha=alpha, experiments=(), model=model,
                               overrides=words)  # fmt: skip
    table = only(folder)
    assert (
        table.experiment.title == "Runs by activation, alpha, depth"
        and table.name == "other_runs-digits"
    )
    assert labels(table) == [
        "ReLU depth=10", "ReLU depth=14", "ELU alpha=1 depth=10", "ELU alpha=1 depth=14",
        "ELU alpha=2 depth=10", "ELU alpha=2 depth=14",
    ]  # fmt: skip
    assert [len(row.runs) for row in table.rows] == [2] * 6
    kinds = [(figure["kind"], figure.get("x")) for figure in table.experiment.figures]
    assert kinds == [("dots", None), ("scatter", None), ("epochs", None),
                     ("lines", "activation.alpha"), ("lines", "model.depth")]  # fmt: skip
    assert "command" not in table.facts
    head, rows, keys = pages.cells_of(table)
    assert head[:keys] == ["activation", "alpha", "depth", ""]
    assert rows[0][:4] == ("ReLU", "-", "10", "") and rows[2][:4] == ("ELU", "1", "10", "")


def test_weights_of_files_are_rows_by_themselves(folder, write):
    """Two files are no two seeds, nor are two states of one file, and no training's setting is
    theirs, nor the figures of runs."""
    for name in ("a.pt", "b.pt"):
        folder.add("relu", 0, 50, evaluate=name)
    other = folder.add("relu", 0, 55, evaluate="b.pt")
    change(other / "result.json", hash="87654321", identity={"weights": "of other content"})
    again = folder.add("relu", 1, 57, evaluate="b.pt")  # attacks drew by another seed
    change(again / "result.json", identity={"weights": "of other content", "seed": 1})
    folder.add("relu", 0, 60, experiments=())
    found = tables.read(folder.outputs)
    mine, files = sorted(found.tables, key=lambda table: len(table.rows))
    assert files.experiment.title == "Weights of files" and "epochs" not in files.setting
    assert [label.split(" hash=")[0] for label in labels(files)] == ["a.pt", "b.pt", "b.pt"]
    assert sorted(len(row.runs) for row in files.rows) == [1, 1, 2] and files.attack == "pgd20"
    assert labels(mine) == ["ReLU"] and mine.name != files.name and not found.notes


# differences and verdicts -------------------------------------------------------------------------


def test_differences_are_paired_by_seed_and_marked_after_holm(folder, write):
    """By hand: 9, 10, 11 have error 1/sqrt(3), so t = 17.3 and p = 0.0033; 2, 4 have p = 0.2."""
    folder.pair("relu", "silu", [9, 10, 11])
    for seed, more in enumerate((2, 4)):
        folder.add("gelu", seed, 50 + 2 * seed + more)
    rows = {row.label: row for row in only(folder).rows}
    relu, gelu, silu = rows["ReLU"], rows["GELU"], rows["SiLU"]
    found = silu.differences[BEST]
    assert (found.mean, found.p) == (
        pytest.approx(0.1),
        pytest.approx(2 * 0.00332, abs=1e-5),
    )  # of two
    assert found.high - 0.1 == pytest.approx(4.302653 * 0.01 / 3**0.5)
    assert found.p < LEVEL
    assert gelu.differences[BEST].p == pytest.approx(0.2048, abs=1e-4)  # the larger of two
    assert gelu.differences[BEST].p >= LEVEL and not relu.differences
    clean = silu.differences["best", "clean"]  # equal for all seeds
    assert clean.mean == 0 and clean.p == 1 and 0 < clean.high < 0.02


def test_a_star_is_corrected_for_the_rows_that_are_compared(folder, write):
    """p is 0.025 of one row, and 0.05 of each of two."""
    folder.pair("relu", "silu", [4, 6, 9])
    marked = {row.label: row.differences[BEST].p < LEVEL for row in only(folder).rows[1:]}
    assert marked == {"SiLU": True}
    for seed, more in enumerate((4, 6, 9)):
        folder.add("gelu", seed, 50 + 2 * seed + more)
    rows = {row.label: row for row in only(folder).rows}
    assert not any(rows[name].differences[BEST].p < LEVEL for name in ("SiLU", "GELU"))


@pytest.mark.parametrize("points, changes, answer, reason", [
    ([9, 10, 11], {}, "supports", "+10.0 points (7.5 to 12.5), 3 seeds, pgd20, best"),
    ([-9, -10, -11], {}, "contradicts", "-10.0 points (-12.5 to -7.5), 3 seeds, pgd20, best"),
    ([-9, 9, 3], {}, "says nothing", "+1.0 points (-21.8 to 23.8), 3 seeds, pgd20, best"),
    ([9, 10, 11], {"within": 13}, "supports", "3 seeds"),
    ([9, 10, 11], {"within": 9}, "says nothing", "3 seeds"),
    ([9, 10, 11], {"within": 7}, "contradicts", "3 seeds"),
    ([-9, -10, -11], {"within": 7}, "contradicts", "3 seeds"),
    ([9, 10, 11], {"measure": "last robust"}, "supports", "3 seeds, pgd20, last"),
    ([9, 10, 11], {"measure": "clean"}, "says nothing", "+0.0 points"),
    ([9], {}, "says nothing", "+9.0 points, pgd20, best; one seed is in both"),
    ([9, 9], {"than": {"activation": "elu"}}, "not run", "no row activation=elu"),
    ([9, 10, 11], {"equal": "gradients"}, "supports", "SiLU against ReLU: "),
])  # fmt: skip
def test_verdicts(folder, write, points, changes, answer, reason):
    folder.pair("relu", "silu", points)
    write(claims=[{**CLAIM, **changes}])
    (verdict,) = only(folder).verdicts
    assert verdict.answer == answer and reason in verdict.reason, verdict


def test_a_claim_may_name_the_lowest_and_the_highest(folder, write):
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
    write(claims=claims, reference=lowest)
    table = only(folder)
    assert table.verdicts[0].answer == "not run"  # elu has no run at the table's highest alpha
    assert "no row activation=elu, activation.alpha=9.0" in table.verdicts[0].reason
    assert table.verdicts[1].answer == "not run" and "3 rows fit (ELU" in table.verdicts[1].reason
    assert table.reference == "ELU alpha=1"
    for seed in range(3):
        folder.add("elu", seed, 40 + seed, alpha=9.0)
    verdict = only(folder).verdicts[0]
    assert verdict.answer == "supports" and "+20.0 points" in verdict.reason


def test_a_selector_may_name_words_and_several_values(folder, write):
    for seed in range(2):
        for name in ("b0", "b1", "b2"):
            folder.add(name, seed, 50 + 10 * int(name[1]) + seed)
    claims = [{**CLAIM, "better": {"activation": end}, "than": {"activation": "b0"}}
              for end in ("highest", ["b1", "nowhere"], ["b1", "b2"])]  # fmt: skip
    write(rows=["activation"], claims=claims, reference={"activation": "lowest"})
    table = only(folder)
    assert table.reference == "b0"
    first, second, third = (v.reason for v in table.verdicts)
    assert "+20.0 points" in first and "+10.0 points" in second and "2 rows fit (b1, b2)" in third


def curve(run, *robust: float) -> None:
    """Writes a validation an epoch into a run."""
    rows = ({"epoch": k, "val/clean": 0.9, "val/robust": r} for k, r in enumerate(robust, 1))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_value_may_be_chosen_by_held_out_images(folder, write):
    """The decay of the best held-out accuracy counts, not that of the best test accuracy."""
    for seed in range(3):
        for activation, decay, held_out, right in (
            ("relu", 1e-4, 0.5, 60 + seed), ("relu", 5e-4, 0.6, 40 + seed),
            ("silu", 1e-4, 0.7, 50), ("silu", 5e-4, 0.6, 30 + seed),
        ):  # fmt: skip
            run = folder.add(activation, seed, right, schedule={"weight_decay": decay})
            result = json.loads((run / "result.json").read_text())
            result["best"]["held_out"] = {"clean": 0.9, "robust": held_out}
            change(run / "result.json", best=result["best"])
    sides = {side: {"activation": name, "schedule.weight_decay": "tuned"}
             for side, name in (("better", "silu"), ("than", "relu"))}  # fmt: skip
    write(rows=["activation", "schedule.weight_decay"], claims=[CLAIM | sides], reference=None)
    (verdict,) = only(folder).verdicts
    assert verdict.answer == "supports" and "+9.0 points" in verdict.reason
    assert "SiLU weight_decay=0.0001 against ReLU weight_decay=0.0005" in verdict.reason


def test_robust_overfitting_is_how_far_last_is_behind_best(folder, write):
    for seed in range(3):
        for activation, behind in (("relu", 20 + seed), ("silu", 3)):
            run = folder.add(activation, seed, 60)
            result = json.loads((run / "result.json").read_text())
            last = accuracy(np.arange(100) < 60 - behind)
            result["last"]["robust"]["pgd20"] |= last
            result["last"]["step"] = 99
            change(run / "result.json", last=result["last"])
    write(claims=[CLAIM | {"measure": "last behind best"}])
    (verdict,) = only(folder).verdicts
    assert verdict.answer == "supports" and "+18.0 points" in verdict.reason
    assert "pgd20, last behind best" in verdict.reason


def test_collapses_are_counted_and_compared(folder, write):
    """After the sixth epoch below a third of the best so far; Fisher's exact test over runs."""
    for seed in range(5):
        curve(folder.add("relu", seed, 5), 0.2, 0.01, 0.3, 0.3, 0.3, 0.3, 0.3, *[0.09] * seed)
        curve(folder.add("silu", seed, 30), 0.0, 0.3, 0.3, 0.3, 0.3, 0.01, 0.12, 0.11)
        curve(folder.add("gelu", seed, 30), *[0.3] * 9)
    claim = CLAIM | {"better": {"activation": ["silu", "gelu"]}, "measure": "collapse"}
    write(claims=[claim, claim | {"than": {"activation": "elu"}}])
    table = only(folder)
    first, second = table.verdicts
    assert first.answer == "supports" and second.answer == "not run"
    assert "0 of 10 collapsed against 4 of 5" in first.reason and "p = 0.0037" in first.reason
    head, rows, keys = pages.cells_of(table)
    told = {row[0].split()[0]: row[head.index("collapsed")] for row in rows}
    assert told == {"ReLU": "4 of 5 (epochs 8, 8, 8, 8)", "SiLU": "0 of 5", "GELU": "0 of 5"}
    folder.add("elu", 0, 5)  # never validated: it counts nowhere
    for seed, never in enumerate((0.0, 0.1), 1):  # nor where it was never better than chance
        curve(folder.add("elu", seed, 5), never, never, *[0.0] * 6)
    write(claims=[claim | {"than": {"activation": ["elu", "silu"]}},
                  claim | {"than": {"activation": "elu"}}])  # fmt: skip
    table = only(folder)
    assert "both sides have runs in common" in table.verdicts[0].reason
    assert table.verdicts[1].answer == "says nothing"
    assert "0 of 0, 3 left out" in sum(pages.cells_of(table)[1], ())


@pytest.mark.parametrize("robust, when", [
    ([0.3, 0.3, 0.3, 0.05, *[0.0] * 6], " (epoch 4)"),  # since when it was so to the end
    ([0.3, 0.05, 0.3, 0.3, 0.3, 0.3, 0.3, 0.05, 0.04], " (epoch 8)"),
    ([*[0.3] * 7, 0.05, 0.3, 0.04, 0.03], " (epoch 10)"),
    ([*[0.3] * 7, 0.05, 0.3, 0.3], " (epoch 8)"),  # it came back
    ([0.3, 0.3, 0.05, 0.3, 0.3, 0.3, 0.3], ""),  # early, and no more
])  # fmt: skip
def test_a_collapse_is_told_from_when_it_fell_for_good(folder, write, robust, when):
    curve(folder.add("relu", 0, 5), *robust)
    write(claims=[CLAIM | {"measure": "collapse"}])
    assert f"{int(bool(when))} of 1{when}" in sum(pages.cells_of(only(folder))[1], ())


def test_collapses_are_compared_between_runs_that_are_alike_in_all_else(folder, write):
    """All of ReLU's collapse at 16 epochs and all of SiLU's hold at 8: which decides nothing."""
    held, fell = [0.3] * 8, [*[0.3] * 7, 0.0]
    for seed in range(5):
        curve(folder.add("relu", seed, 5, schedule={"epochs": 16.0}), *fell)
        curve(folder.add("silu", seed, 30, schedule={"epochs": 8.0}), *held)
    claim = CLAIM | {"measure": "collapse"}
    write(rows=["activation", "schedule.epochs"], claims=[claim])
    assert only(folder).verdicts[0].answer == "says nothing"
    for seed in range(5):
        run = folder.add("relu", seed, 30, schedule={"epochs": 8.0})
        curve(run, *(fell if seed else held))
        change(run / "result.json", alarms=[{"name": "collapse", "message": "fell"}] * (seed > 2))
    (verdict,) = only(folder).verdicts
    assert verdict.answer == "supports", verdict.reason
    assert "0 of 5 collapsed against 4 of 5 (2 of their runs raised alarms)" in verdict.reason


def test_a_claim_at_equal_cost_needs_equal_costs(folder, write):
    for seed in range(3):
        folder.add("relu", seed, 50)
        folder.add("silu", seed, 60 + seed, schedule={"epochs": 8.0})
    claims = [{**CLAIM, "equal": "gradients"}, CLAIM]
    write(rows=["activation", "schedule.epochs"], claims=claims)
    first, second = only(folder).verdicts
    assert first.answer == "not run" and "16 and 8 gradient computations" in first.reason
    assert second.answer == "supports"


def test_verdicts_are_corrected_for_their_number(folder, write):
    """p is 0.025 of one claim, and 0.05 of two."""
    folder.pair("relu", "silu", [4, 6, 9])
    write(claims=[CLAIM])
    (alone,) = only(folder).verdicts
    assert alone.answer == "supports" and "p = 0.05" not in alone.reason
    write(claims=[CLAIM, {**CLAIM, "measure": "last robust"}])
    assert [verdict.answer for verdict in only(folder).verdicts] == ["says nothing"] * 2


def test_alarms_and_what_auto_chose_are_told(folder, write):
    folder.pair("relu", "silu", [9, 10, 11], evaluation={"masking_checks": 0})
    run = next(folder.outputs.glob("silu-s1*"))
    alarm = {"name": "masked_gradient", "message": "..."}
    change(run / "result.json", alarms=[alarm], choices={"threads": 1, "precision": "bf16"})
    change(
        next(folder.outputs.glob("relu-s1*")) / "result.json",
        choices={"threads": 1, "precision": "fp32"},
    )
    write(claims=[CLAIM])
    report = tables.read(folder.outputs)
    (table,) = report.tables
    assert f"! {run.name}: raised alarms (masked_gradient)" in table.notes
    assert (
        "pgd20: not checked for masked gradients in 6 of 6 runs (evaluation.masking_checks=0)"
        in table.notes
    )
    assert table.facts["precision"] == "bf16, fp32"
    assert "1 of their runs raised alarms" in table.verdicts[0].reason
    page = pages.markdown(report)
    for text in (page, terminal(page)):
        assert "SiLU (!)" in text and "(!): runs of this row raised alarms" in text


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
    "result": "damaged: ", "number": "ValueError: last.clean.accuracy is 'nan'",
    "config": "config.yaml: can't be read (", "stopped": "stopped",
    "foreign": "config.yaml: is none of this program's",
    "experiments": "experiments.txt is damaged", "failed": "failed: the loss",
    "metrics": "metrics.jsonl is damaged in line 1",
}  # fmt: skip


@pytest.mark.parametrize("how, line", SAID.items())
def test_damage_is_named_in_one_line_and_the_rest_is_reported(folder, write, how, line):
    write(figures=[{"kind": "epochs"}])
    folder.pair("relu", "silu", [9, 10, 11])
    for run in folder.outputs.glob("*"):
        (run / "metrics.jsonl").write_text("")
    run = next(folder.outputs.glob("silu-s2*"))
    damage(run, how)
    report = tables.read(folder.outputs)
    (table,) = report.tables
    (said,) = [text for text in [*report.notes, *table.notes] if run.name in text]
    assert f"{run.name}: {line}" in said
    assert len(table.rows[1].runs) == (3 if how == "metrics" else 2)


def test_a_run_without_accuracies_is_a_table_without_rows(folder):
    run = folder.add("relu", 0, 50, experiments=())
    change(run / "result.json", best=None, last={"step": 1, "epoch": 4.0})
    report = tables.read(folder.outputs)
    assert labels(report.tables[0]) == [] and "no row, none of its runs" in pages.markdown(report)


def test_values_that_no_run_writes_fault_no_report(folder, write):
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
                report = tables.read(folder.outputs)
                for table in report.tables:
                    pages.csv_of(table)
                pages.markdown(report, [], folder.outputs / "report.md")
                known = {r.name for table in report.tables for row in table.rows for r in row.runs}
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


def test_an_experiment_of_the_users_own_folder_is_known(folder, write, tmp_path):
    write("mine")
    own = (tmp_path / "conf").rename(tmp_path / "own")
    folder.add("relu", 0, 50, experiments=["mine"])
    report = tables.read(folder.outputs)
    assert "--config-dir DIR" in report.notes[0] and report.tables[0].experiment.name != "mine"
    report = tables.read(folder.outputs, own)
    assert report.tables[0].experiment.name == "mine" and not report.notes


def test_experiments_without_a_readable_file_leave_their_runs_to_others(folder, write, tmp_path):
    folder.add("relu", 0, 50)
    folder.add("silu", 0, 50, experiments=["gone"])
    folder.add("gelu", 0, 50, experiments=["old"])
    folder.add("elu", 0, 50, experiments=["x", "gone"], alpha=1.0)
    write("old")
    old = tmp_path / "conf/experiment/old.yaml"
    old.write_text("report: {rows: [activation], reference: {activatoin: relu}}")
    report = tables.read(folder.outputs)
    assert any("experiment gone: has no file in" in note for note in report.notes)
    wrong = "experiment old: report.reference=activatoin: unknown; did you mean acti"
    assert any(wrong in note for note in report.notes)
    mine, others = report.tables
    assert labels(mine) == ["ReLU", "ELU alpha=1"] and labels(others) == ["GELU", "SiLU"]


WRONG = [
    ({"published": {"rows": 5}}, "report.published.rows is '5'"),
    ({"rows": []}, "report.rows: must name"),
    ({"rows": "activation"}, "report.rows is 'activation'"),
    ({"clams": []}, "report=clams: unknown; did you mean claims?"),
    ({"reference": {"model": "a"}}, "report.reference=model: unknown"),
    ({"figures": [{"kind": "pie"}]}, "report.figures[0].kind=pie: unknown; did you mean lines?"),
    ({"claims": [{**CLAIM, "measure": "speed"}]}, "report.claims[0].measure=speed: unknown"),
    ({"claims": [{**CLAIM, "within": "a"}]}, "report.claims.0.within is 'a'"),
    ({"claims": [{**CLAIM, "than": "relu"}]}, "report.claims.0.than is 'relu'"),
    ({"published": {"rows": [{"clean": "a"}]}}, "report.published.rows.0.clean is 'a'"),
    ({"labels": {"activation": 1}}, "report.labels.activation is '1'"),
    ({"published": {"rows": [{"activaton": 1}]}}, "report.published.rows[0]=activaton: unknown"),
]


@pytest.mark.parametrize("changes, line", WRONG)
def test_a_report_node_is_checked(write, changes, line):
    write(**changes)
    with pytest.raises(ValueError) as refused:
        spec.load("x")
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_tables_and_states_need_no_torch(folder):
    folder.add("relu", 0, 50, experiments=())
    code = f"""if True:
        import sys
        sys.modules |= dict.fromkeys(("torch", "timm", "hydra", "matplotlib"))  # not to be had
        from sat.report.command import main
        main([{str(folder.outputs)!r} + "/relu-s0-0"]), main(["--status", {str(folder.outputs)!r}])
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip
    assert not done.stderr and done.stdout.endswith("1 finished\n"), done.stderr
    assert "pgd20, %" in done.stdout


def test_the_command_below_a_table_is_what_was_typed(folder):
    """Each once; of kept runs what their commands share."""
    words = ["activation=relu", "schedule.epochs=4"]
    runs = [folder.add("relu", seed, 50, experiments=(), overrides=words) for seed in range(3)]
    assert only(folder).facts["overrides"] == "activation=relu schedule.epochs=4"
    typed = ["sat -m seed=0,1", "sat -m seed=0,1", "python -m sat.run activation.alpha=1,2"]
    for run, command in zip(runs, typed, strict=True):
        change(run / "result.json", environment={"command": command})
    facts = only(folder).facts
    assert facts["command"] == "python -m sat.run activation.alpha=1,2; sat -m seed=0,1"
    assert "overrides" not in facts


def test_a_group_that_came_later_is_told_where_it_differs(folder):
    """Runs of before have no word of it: they are at the option that adds nothing."""
    folder.add("relu", 0, 50, experiments=())
    for name, size in (("cutout", 2), ("cutout", 4)):
        run = folder.add("relu", 0, 60, experiments=(), choices={"augment": name})
        written = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump({**written, "augment": {"size": size}}))
        told = json.loads((run / "result.json").read_text())["identity"]
        told["augment"] = {"_target_": name, "size": size}
        change(run / "result.json", identity=told)
    table = only(folder)
    assert labels(table) == ["cutout size=2", "cutout size=4", "standard"]
    head, rows, keys = pages.cells_of(table)
    assert head[:keys] == ["augment", ""]
    assert [row[:keys] for row in rows] == [
        ("cutout", "size=2"), ("cutout", "size=4"), ("standard", ""),
    ]  # fmt: skip


def test_an_interval_ends_where_accuracies_do(folder, write):
    for seed, right in enumerate((99, 100)):
        folder.add("relu", seed, right)
    found = only(folder).rows[0].numbers[BEST]
    assert found.high == 1 and found.low == pytest.approx(0.995 - 12.7062 * 0.005)
    assert "99.5 [93.1, 100.0]" in pages.markdown(tables.read(folder.outputs)).replace("\\", "")
