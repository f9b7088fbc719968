"""`result.json` as it is described, and what an evaluation finds still to be done in it."""

import json
import shlex
from dataclasses import fields, is_dataclass, replace

import pytest

from sat.attacks import FGSM, PGD, Curve, Transfer
from sat.errors import Refused
from sat.evaluation import telling
from sat.evaluation.settings import Evaluation
from sat.evaluation.todo import MASKING_CHECKS, todo
from sat.rundir.environment import typed
from sat.rundir.record import Run
from sat.rundir.result import (
    CLEAN,
    WORST,
    Alarm,
    AttackResult,
    CheckpointResult,
    ClassSpread,
    CorruptionResult,
    CurveResult,
    MaskingChecks,
    Member,
    Point,
    RunResult,
)


def entry(images=50, **more):
    return AttackResult(accuracy=0.5, ci95=(0.25, 0.75), images=images, **more)


def measured(attack, name="pgd", images=50, **asked):
    """What an evaluation leaves of that attack."""
    return entry(images, settings=Evaluation(attacks={name: attack}, **asked).settings(name))


def result(**parts):
    last = CheckpointResult(step=8, epoch=2.0)
    kept = {
        "name": "run", "hash": "01234567", "identity": {"seed": 0}, "status": "finished",
        "seed": 0, "environment": {},
        "dataset": {"name": "digits", "test": 50}, "test_images": 50, "attack": None,
        "choices": {"threads": 1}, "steps": 8, "images": 256, "wall_seconds": 1.5,
        "images_per_second": None, "last": last, "best": None,
    }  # fmt: skip
    return RunResult(**{**kept, **parts})


def full():
    """A result in which every field is something."""
    ensemble = entry(
        eps=8.0, norm="l2", steps=3, step=2.0, seconds=1.0, ties=2, environment={"torch": "2"},
        attacks={"apgd": Member(accuracy=0.5, ci95=(0.25, 0.75), images=50, felled=3, seconds=1.0)},
        settings={"limit": None, "subset_seed": None, "eps": 8.0},
        by_class=ClassSpread(worst="cat", lowest=0.25, best="ship", highest=0.75, deviation=0.125),
    )  # fmt: skip
    point = Point(accuracy=0.5, ci95=(0.25, 0.75), images=50, eps=4.0, steps=3)
    curve = CurveResult(
        over="eps", points=[point], classes={"0": [0.5]}, clean=0.5, eps=8.0, norm="linf",
        images=50, seconds=1.0, settings={"limit": 50, "subset_seed": 1}, median=9.5,
    )  # fmt: skip
    alarm = Alarm("random", "as by chance", {"clean": 0.1}, step=1, epoch=0.5, checkpoint="last",
                  attack="pgd", source=MASKING_CHECKS)  # fmt: skip
    checks = MaskingChecks(images=40, seconds=1.0, curve=[{"attack": CLEAN, "accuracy": 0.5}],
                           alarms=[alarm], attack="pgd", asked=128, subset=(50, None))  # fmt: skip
    corrupted = CorruptionResult(accuracy=0.5, types={"fog": [0.5] * 5}, images=9, seconds=1.0,
                                 by_class=ensemble.by_class, limit=9, digest="ab")  # fmt: skip
    part = CheckpointResult(
        step=8, epoch=2.0, of="average", selected_by="robust accuracy on held-out training images",
        held_out={"clean": 0.5, "robust": 0.25}, clean=entry(subset=(50, None)),
        robust={"strong": ensemble, WORST: entry(attacks=["strong", "pgd"], milder=[["a", "b"]])},
        curves={"c": curve}, masking_checks={"pgd": checks}, corruptions={"CIFAR-10-C": corrupted},
    )  # fmt: skip
    return result(
        configuration="run-0123", error="none", overrides=["seed=0"], parameters=9, last_raw=part,
        regulariser={"option": "elle"}, weight_attack={"option": "awp"},
        activation={"option": "silu", "gates": []}, attack={"option": "pgd", "eps": 8.0},
        environment={"torch": "2"}, objective={"option": "adversarial"}, skipped_steps=1,
        multiply_adds=1e6, images_per_second=9.5, last=part, best=part, alarms=[alarm],
        lengths={"metrics.jsonl": 9},
    )  # fmt: skip


def test_a_result_is_the_same_after_its_file(tmp_path):
    for told in (result(), full()):
        Run(tmp_path).write_result(told)
        assert RunResult.read(tmp_path) == told
    assert RunResult.read(tmp_path / "none") is None


def test_what_is_no_finite_number_is_null(tmp_path):
    alarm = Alarm("stochastic", "changes", {"difference": float("nan"), "share": float("inf")})
    Run(tmp_path).write_result(result(alarms=[alarm]))
    told = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert told["alarms"][0]["numbers"] == {"difference": None, "share": None}
    assert RunResult.read(tmp_path).alarms[0].numbers == {"difference": None, "share": None}


def test_keys_that_no_field_has_are_kept(tmp_path):
    told = full().as_json() | {"note": "mine"}
    told["last"]["robust"]["strong"]["more"] = {"x": [1]}
    told["alarms"][0]["seen"] = True
    (tmp_path / "result.json").write_text(json.dumps(told))
    assert RunResult.read(tmp_path).as_json() == told


def spoiled(place, value):
    told = full().as_json()
    *above, key = place
    node = told
    for step in above:
        node = node[step]
    if value is None:
        del node[key]
    else:
        node[key] = value
    return told


STRONG = ("last", "robust", "strong")


@pytest.mark.parametrize(
    "place, value",
    [
        (("seed",), None),
        (("seed",), "0"),
        (("last",), 5),
        (("best",), []),
        (("last", "step"), True),
        (("choices", "threads"), 0),
        (("dataset", "name"), None),
        (("test_images",), -1),
        (("lengths", "metrics.jsonl"), 2**70),
        ((*STRONG, "accuracy"), 1.5),
        ((*STRONG, "accuracy"), float("nan")),
        ((*STRONG, "ci95"), [0.1]),
        ((*STRONG, "settings", "limit"), "all"),
        ((*STRONG, "attacks", "apgd", "felled"), -1),
        (("last", "curves", "c", "points", 0, "steps"), 0.5),
        (("last", "masking_checks", "pgd"), "no"),
        (("alarms", 0, "message"), None),
    ],
)
def test_a_damaged_result_is_refused_by_its_place(tmp_path, place, value):
    (tmp_path / "result.json").write_text(json.dumps(spoiled(place, value)))
    with pytest.raises(Refused, match="result.json: is damaged .*record.fresh=true") as refusal:
        RunResult.read(tmp_path)
    text = str(refusal.value)
    assert "\n" not in text and ".".join(map(str, place)) in text, text


def test_a_file_of_something_else_is_no_result(tmp_path):
    for text in ("", "[1]", "{", '{"status": 3}', "[" * 100_000, '{"status": "finished"}'):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(Refused, match="record.fresh=true"):
            RunResult.read(tmp_path)


def test_more_images_take_the_place_of_fewer():
    part = CheckpointResult(step=1, epoch=1.0)
    few, many = entry(20), entry(50)
    for name in (CLEAN, "pgd"):
        known = part.with_attack(name, few)
        assert known.accuracies == {name: few}
        assert known.with_attack(name, many).accuracies == {name: many}
        assert known.with_attack(name, many).with_attack(name, few).accuracies == {name: many}
        assert known.with_attack(name, replace(few, accuracy=0.1)) is known  # the first stays
    other = replace(many, attacks=["a", "b"])  # a worst case over others gives way
    known = part.with_attack(WORST, many).with_attack(WORST, other)
    assert known.robust[WORST] is other


def test_an_alarm_gives_way_to_those_of_its_own_measurement_alone():
    a, b = (Alarm(name, name) for name in "ab")
    said = result(alarms=[a]).with_alarms("last", "pgd", MASKING_CHECKS, [a, b])
    said = said.with_alarms("best", "pgd", MASKING_CHECKS, [b])
    again = said.with_alarms("last", "pgd", MASKING_CHECKS, [b])
    places = [(alarm.name, alarm.checkpoint) for alarm in again.alarms]
    assert places == [("a", None), ("b", "best"), ("b", "last")]


@pytest.mark.parametrize("change, told", [
    ({}, ["best and last"]), ({"robust": {}}, ["best", "last"]), ({"step": 9}, ["best", "last"]),
    ({"clean": entry(9)}, ["best", "last"]), ({"clean": None}, ["best"]),
])  # fmt: skip
def test_best_and_last_are_told_as_one_where_they_are_the_same_weights(change, told):
    best = CheckpointResult(step=8, epoch=2.0, clean=entry(), robust={"pgd20": entry(eps=8.0)})
    found = result(best=best, last=replace(best, **change))
    assert [*telling.once(found)] == told
    text = telling.summary(found)
    assert [line.split(" (")[0] for line in text.split("\n") if "(epoch" in line] == told
    assert max(map(len, text.split("\n"))) <= 80
    averaged = result(best=replace(best, of="weights"), last=best)
    assert [*telling.once(averaged)] == ["best", "last"]


@pytest.mark.parametrize("attacks, row", [(["a", "b"], "worst_case "), (["a"], "worst_case (a) ")])
def test_a_worst_case_names_its_attacks_where_they_are_not_all(attacks, row):
    robust = {"a": entry(), "b": entry(), WORST: entry(attacks=attacks)}
    last = CheckpointResult(step=8, epoch=2.0, clean=entry(), robust=robust)
    told = telling.summary(result(last=last))
    assert any(line.strip().startswith(row + " ") for line in told.split("\n")), told


def test_every_field_of_a_result_is_tried():
    def filled(held):
        for f in fields(held):
            value = getattr(held, f.name)
            if f.name == "more" or value not in (None, {}, []):
                yield type(held), f.name
            inner = value.values() if isinstance(value, dict) else value
            for each in inner if isinstance(value, dict | list) else [value]:
                if is_dataclass(each):
                    yield from filled(each)

    seen = set(filled(full()))
    assert seen == {(cls, f.name) for cls in {cls for cls, _ in seen} for f in fields(cls)}
    assert len({cls for cls, _ in seen}) == 10


# what is to be done -------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A directory with both checkpoints, and outcomes under `pgd` of each."""
    for name in ("checkpoints/last.pt", "checkpoints/best.pt", "flags/last-pgd.npz",
                 "flags/best-pgd.npz"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def done(attack, images=50, **asked):
    """A run whose checkpoints, of different steps, were measured under `pgd`."""
    clean = entry(images, subset=(asked.get("limit"), asked.get("subset_seed")))
    part = CheckpointResult(step=8, epoch=2.0, clean=clean,
                            robust={"pgd": measured(attack, images=images, **asked)})  # fmt: skip
    return result(last=part, best=replace(part, step=4))


def ask(attacks, masking_checks=0, **more):
    return Evaluation(attacks=attacks, masking_checks=masking_checks, **more)


def test_of_a_run_without_numbers_all_is_to_be_done(run):
    found = todo(result(), ask({"a": PGD(8), "b": FGSM(8)}, 4), run)
    names = ["a", "b", WORST, CLEAN, MASKING_CHECKS]  # weights of one file are called `last`
    assert found == [("last", name) for name in names]
    assert todo(result(), ask({}), run) == [("last", CLEAN)]
    fresh = result(best=CheckpointResult(step=4, epoch=1.0))
    found = todo(fresh, ask({"a": PGD(8)}, 4), run)
    assert found == [("last", "a"), ("last", CLEAN), ("best", "a"), ("best", CLEAN),
                     ("last", MASKING_CHECKS), ("best", MASKING_CHECKS)]  # fmt: skip


def test_what_is_known_is_not_measured_again(run):
    known, pgd = done(PGD(8)), PGD(8)
    assert todo(known, ask({"pgd": pgd}), run) == []
    assert todo(known, ask({"pgd": pgd}, limit=20), run) == []  # a part of all
    assert todo(known, ask({"pgd": pgd}, limit=20, subset_seed=3), run) == []
    assert todo(known, ask({"pgd": pgd}, checkpoints=("last",)), run) == []
    for other in (ask({"pgd": PGD(4)}), ask({"pgd": pgd}, restarts=2), ask({"pgd": PGD(8, 3)})):
        assert ("last", "pgd") in todo(known, other, run)
    curve = Evaluation(curves={"pgd2": Curve(pgd, "eps", (1.0,))}, masking_checks=0)
    assert todo(known, curve, run) == [("last", "pgd2"), ("best", "pgd2")]


def test_a_part_is_no_whole_and_another_seed_another_part(run):
    known, pgd = done(PGD(8), images=20, limit=20), PGD(8)
    assert todo(known, ask({"pgd": pgd}, limit=20), run) == []
    assert todo(known, ask({"pgd": pgd}, limit=10), run) == []
    lacking = [("last", "pgd"), ("last", CLEAN), ("best", "pgd"), ("best", CLEAN)]
    for more in ({}, {"limit": 30}, {"limit": 20, "subset_seed": 1}):
        assert todo(known, ask({"pgd": pgd}, **more), run) == lacking


def test_a_worst_case_is_over_just_the_attacks_asked_for(run):
    def over(names, images):
        known = done(PGD(8)).last
        known = known.with_attack("a", measured(FGSM(8), "a"))
        return result(last=known.with_attack(WORST, entry(images, attacks=names)))

    (run / "flags/last-a.npz").touch()
    both, of_both = ask({"pgd": PGD(8), "a": FGSM(8)}), over(["pgd", "a"], 50)
    assert todo(of_both, both, run) == []
    assert todo(over(["a", "b"], 50), both, run) == [("last", WORST)]
    part = replace(both, limit=20)
    assert todo(over(["a", "b"], 50), part, run) == [("last", WORST)]  # of more, but of others
    assert todo(over(["pgd", "a", "b"], 50), part, run) == []
    of_seed = replace(of_both.last.robust[WORST], images=20, subset=(20, 1))
    assert todo(result(last=replace(of_both.last, robust=of_both.last.robust | {WORST: of_seed})),
                part, run) == [("last", WORST)]  # of other images, as many  # fmt: skip
    (run / "flags/last-a.npz").unlink()
    assert todo(of_both, both, run) == [("last", "a")]


def test_a_milder_worst_case_takes_no_place_and_is_asked_once(run):
    known = done(PGD(8)).last.with_attack("a", measured(FGSM(8), "a"))
    hard = replace(entry(50, attacks=["pgd", "b"]), accuracy=0.1)
    mild = replace(entry(50, attacks=["pgd", "a"]), accuracy=0.4)
    (run / "flags/last-a.npz").touch()
    after = known.with_attack(WORST, hard).with_attack(WORST, mild)
    assert after.robust[WORST] == replace(hard, milder=[["pgd", "a"]])
    assert todo(result(last=after), ask({"pgd": PGD(8), "a": FGSM(8)}), run) == []
    assert known.with_attack(WORST, mild).with_attack(WORST, hard).robust[WORST] is hard


@pytest.mark.parametrize("subset, attacks, share, stays", [
    ((20, None), ["a", "b"], 0.6, False), ((20, 1), ["a", "b"], 0.6, True),
    ((20, 1), ["a", "b"], 0.4, False), ((10, 1), ["a"], 0.1, True),
    ((10, 1), ["a", "c"], 0.9, False), ((30, 1), ["a"], 0.9, False),
])  # fmt: skip
def test_a_worst_case_stays_beside_milder_ones_of_its_images_alone(subset, attacks, share, stays):
    """What is asked for last is told: a lower number of other images says nothing of these."""
    old = replace(entry(20, attacks=["a", "b"]), subset=(20, 1), accuracy=0.5)
    new = replace(entry(subset[0], attacks=attacks), subset=subset, accuracy=share)
    part = CheckpointResult(step=1, epoch=1.0).with_attack(WORST, old).with_attack(WORST, new)
    assert (replace(part.robust[WORST], milder=None) == old) == stays


def test_images_of_other_networks_are_no_worst_case(run):
    moved = {name: Transfer(PGD(8), "run", name, "place") for name in ("x", "y")}
    names = [name for _, name in todo(result(), ask(moved), run)]
    assert names == ["x", "y", CLEAN] and ask({**moved, "pgd": PGD(8)}).worst_over == ["pgd"]


def test_masking_is_checked_as_far_as_is_asked(run):
    def checked(asked, subset, images=4):
        found = MaskingChecks(images=images, seconds=0.0, curve=[], alarms=[], attack="pgd",
                              asked=asked, subset=subset)  # fmt: skip
        known = done(PGD(8))
        parts = {w: known.part(w).with_masking_checks(found) for w in ("last", "best")}
        return replace(known, **parts)

    lacking = [("last", MASKING_CHECKS), ("best", MASKING_CHECKS)]
    for known, count, todos in (
        (done(PGD(8)), 4, lacking), (checked(4, (None, None)), 4, []),
        (checked(4, (None, None)), 5, lacking), (checked(4, (20, None)), 4, lacking),
        (checked(4, (20, None)), 0, []),
    ):  # fmt: skip
        assert todo(known, ask({"pgd": PGD(8)}, count), run) == todos


def test_a_verdict_tells_on_how_many_images_it_was_doubted():
    checks = MaskingChecks(images=30, seconds=0.0, curve=[], alarms=[], attack="pgd")
    known = done(PGD(8))
    best, whole = known.best.with_masking_checks(checks), replace(checks, images=50)
    last = known.last.with_masking_checks(whole).with_attack("more", measured(PGD(8, 9)))
    assert telling.doubted(replace(known, best=best)) == [
        "best, pgd: checked for masked gradients on 30 of 50 images: no alarm",
        "last, pgd: not checked for masked gradients (evaluation.masking_checks=0)",
    ]
    assert [line.split(":")[0] for line in telling.doubted(known)] == ["best, pgd and last, pgd"]
    assert telling.doubted(replace(known, last=replace(last, robust={}), best=None)) == []
    (told,) = telling.doubted(replace(known, last=last))
    assert told.startswith("best, pgd and last, more: not checked"), "more came after the checks"
    last = known.last.with_masking_checks(whole)
    told = "last, pgd: checked for masked gradients on 50 images: "
    assert f"{told}no alarm" in telling.doubted(replace(known, last=last))
    raised = replace(whole, alarms=[Alarm("coarse", "rounded")])
    last = known.last.with_masking_checks(raised)
    assert f"{told}coarse" in telling.doubted(replace(known, last=last))


def test_what_measures_is_told_with_its_ball(run):
    told = telling.asked_for(ask({"a": PGD(8), "b": PGD(8, 3), "c": PGD(128, norm="l2")}))
    assert told == "a, b (eps 8/255 in linf); c (eps 128/255 in l2)"
    assert telling.asked_for(ask({})) == "clean accuracy"


def test_outcomes_that_were_moved_away_are_measured_again(run):
    (run / "flags/best-pgd.npz").unlink()
    assert todo(done(PGD(8)), ask({"pgd": PGD(8)}), run) == [("best", "pgd")]


def test_without_a_checkpoint_nothing_can_be_added(run):
    known = done(PGD(8))
    (run / "checkpoints/best.pt").unlink()
    other = ask({"pgd2": PGD(8, 3)})
    assert todo(known, other, run) == [("last", "pgd2")]
    same_step = replace(known, best=replace(known.best, step=8))  # last.pt holds its weights
    assert todo(same_step, other, run) == [("last", "pgd2"), ("best", "pgd2")]
    (run / "checkpoints/last.pt").unlink()
    assert todo(known, ask({"pgd": PGD(8)}, 4), run) == []
    with pytest.raises(Refused, match=r"no checkpoint stayed .*record.fresh=true trains again"):
        todo(known, other, run)


def test_an_alarm_of_two_checkpoints_with_the_same_weights_is_told_once():
    from sat.evaluation.telling import told_once

    one = Alarm(name="black_box", message="Square fells 8", checkpoint="last", attack="pgd20")
    more = Alarm(name="more_steps", message="steps help", checkpoint="best", attack="pgd20")
    early = Alarm(name="no_curvature", message="flat", step=0, epoch=0.0)
    told = told_once([early, one, replace(one, checkpoint="best"), more])
    assert [where for where, _ in told] == ["epoch 0.00", "last and best, pgd20", "best, pgd20"]
    assert [alarm for _, alarm in told] == [early, one, more]
    other = replace(more, message="steps help a lot", attack="pgd50", checkpoint="last")
    ((where, alarm),) = told_once([more, replace(more, attack="pgd50"), other])
    assert where == "best, pgd20 and pgd50 (last, pgd50 too, with other numbers)" and alarm is more
    collapse = Alarm(name="collapse", message="collapsed", step=8, epoch=2.0)
    assert len(told_once([collapse, replace(collapse, step=16, epoch=4.0)])) == 2  # twice, indeed


def test_an_alarm_that_the_screen_has_shown_is_named_alone(caplog):
    from sat.evaluation.telling import tell

    one = Alarm(name="collapse", message="robust accuracy collapsed; train so", step=8, epoch=2.0)
    with caplog.at_level("WARNING", "sat"):
        tell(result(alarms=[one]), {one.message})
        tell(result(alarms=[one]))  # as by a command that trained nothing
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 2.00: collapse, as told above", f"epoch 2.00: {one.message}",
    ]  # fmt: skip


@pytest.mark.parametrize("given, told", [
    ("/a/sat/run.py -m seed=0,1", "python -m sat.run -m seed=0,1"),
    ("/b/bin/sat ++activation.alpha=1,2 a/b", "sat activation.alpha=1,2 a/b"),
    ("sat.py 'dataset.root=my sets'", "sat.py 'dataset.root=my sets'"),
])  # fmt: skip
def test_the_command_is_what_was_typed_whichever_way_the_program_was_started(given, told):
    assert typed(*shlex.split(given)) == told


def test_a_machine_without_git_has_no_commit(monkeypatch, tmp_path):
    """And what lies within another repository has none of that one."""
    from sat.rundir import environment

    def missing(*_, **__):
        raise FileNotFoundError(2, "No such file or directory", "git")

    assert environment._commit() is None or len(environment._commit()) == 40
    monkeypatch.setattr(environment.subprocess, "run", missing)
    assert environment._commit() is None
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "sat")
    assert environment._commit() is None
