"""`evaluate=`: a finished run, a checkpoint or a file of weights, measured without training."""

import json
import pickle

import numpy as np
import pytest
import torch
from conftest import TINY, made
from messages import FINISHED

import sat as package
from sat.rundir import checkpoint

# Enough for a model that is right more often than not.
BETTER = ["schedule.ema=0.8", "validation.every=4", "dataset.limit=600", "model.width=0.125",
          "schedule.epochs=14", "dataset.eps=12"]  # fmt: skip
SILU = ["activation=silu"]  # what the weights of the fixture's run were trained with
FEW = ["evaluation.masking_checks=0", "evaluation.limit=40", "evaluation.attacks.pgd20.steps=3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of one tiny run with weight averaging; tests copy it."""
    return made(tmp_path_factory.mktemp("finished"), *TINY, *BETTER)


@pytest.fixture
def copy(finished, tmp_path):
    """The run in an outputs folder of this test's own."""
    import shutil

    return shutil.copytree(finished, tmp_path / "outputs" / finished.name)


def result_of(run):
    return json.loads((run / "result.json").read_text())


def weights_of(run):
    return {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}


def test_another_evaluation_is_added_to_a_run_and_nothing_else_touched(sat, copy):
    before, weights = result_of(copy), weights_of(copy)
    done = sat(f"evaluate={copy}", "evaluation=paper", "evaluation.limit=30",
               *(f"evaluation.attacks.pgd{n}.steps=2" for n in (10, 20, 50, 200)),
               "evaluation.attacks.pgd20=null", tiny=False, root=copy.parent)  # fmt: skip
    assert done.code == 0, done.err
    after = result_of(copy)
    assert weights_of(copy) == weights and done.runs == [copy]
    for which in ("last", "best"):
        robust = after[which].pop("robust")
        assert robust.pop("pgd20") == before[which].pop("robust")["pgd20"]
        assert {"pgd10", "pgd50", "pgd200", "worst_case"} == set(robust)
        assert robust["pgd10"]["eps"] == 12  # it follows the run's dataset
        for part in (before[which], after[which]):
            part.pop("clean")
            part.pop("masking_checks", None)
    for part in (before, after):
        part.pop("alarms", None)
        part.pop("lengths")
    assert after == before


def test_the_files_of_other_trackers_stay_known(sat, copy):
    """They were told of by a command that had them, and the next one with them cuts to that."""
    result = result_of(copy)
    result["lengths"]["mine/points.txt"] = 3
    (copy / "result.json").write_text(json.dumps(result))
    another = "+evaluation.attacks.two={_target_: sat.attacks.PGD, steps: 2}"
    words = another, "evaluation.attacks.pgd20=null", "evaluation.limit=30"
    done = sat(f"evaluate={copy}", *words, tiny=False, root=copy.parent)
    assert done.code == 0, done.err
    lengths = result_of(copy)["lengths"]
    assert lengths["mine/points.txt"] == 3
    assert lengths["metrics.jsonl"] == (copy / "metrics.jsonl").stat().st_size


def test_the_runs_own_set_is_followed_not_the_default(sat, tmp_path):
    run = sat("dataset.eps=20", "dataset.norm=l2", "model.depth=14").run
    done = sat(f"evaluate={run}", "evaluation.attacks.again.steps=2", "evaluation.limit=20",
               "evaluation=clean", "+attack@evaluation.attacks.again=pgd",
               "evaluation.masking_checks=0", tiny=False)  # fmt: skip
    assert done.code == 0, done.err
    again = result_of(run)["best"]["robust"]["again"]
    assert (again["eps"], again["norm"], again["images"]) == (20, "l2", 20)


def test_one_checkpoint_and_the_weights_without_their_average(sat, copy):
    one = sat(f"evaluate={copy}/checkpoints/last.pt", "+attack@evaluation.attacks.a=fgsm",
              "evaluation.attacks.pgd20=null", "evaluation.masking_checks=0", tiny=False,
              root=copy.parent)  # fmt: skip
    assert one.code == 0, one.err
    found = result_of(copy)
    assert "a" in found["last"]["robust"] and "a" not in found["best"]["robust"]
    raw = sat(f"evaluate={copy}", "evaluation.checkpoints=[last_raw]", *FEW, tiny=False,
              root=copy.parent)  # fmt: skip
    assert raw.code == 0, raw.err
    found = result_of(copy)
    assert found["last_raw"]["clean"]["images"] == 40
    state = torch.load(copy / "checkpoints/last.pt")
    model = package.load(copy, "last")
    (x, y), share = images(), {}
    chosen = package_digits().test_subset(40)
    for name in ("model", "average"):
        model.load_state_dict(state[name])
        share[name] = (model(x).argmax(1) == y)[chosen].float().mean().item()
    assert share["model"] == pytest.approx(found["last_raw"]["clean"]["accuracy"])


def images():
    data = package_digits()
    ((x, y),) = data.test.stream([batch(len(data.test))])
    assert len(x) == 359
    return x, y


def package_digits():
    from sat.data import Digits

    return Digits(limit=600, holdout=30)(torch.device("cpu"), 0)


def batch(count):
    from sat.data import Batch

    return Batch(torch.arange(count), None)


def test_weights_of_a_file_become_a_run_of_no_steps(sat, copy, tmp_path):
    model = package.load(copy, "best")
    foreign = {f"module.{key}": value for key, value in model.backbone.state_dict().items()}
    foreign |= {"normalize.mean": model.mean, "normalize.std": model.std}
    torch.save({"state_dict": foreign, "epoch": 3}, tmp_path / "theirs.pth")
    described = [f"evaluate={tmp_path}/theirs.pth", "model.width=0.125", *SILU, *FEW]
    done = sat(*described, tiny=False)
    assert done.code == 0, done.err
    (run,) = (r for r in done.runs if "theirs" in r.name)
    found = result_of(run)
    assert found["status"] == "finished" and found["steps"] == 0 and found["best"] is None
    assert found["last"]["clean"]["images"] == 40 and found["last"]["clean"]["accuracy"] > 0.7
    x, _ = images()
    assert torch.equal(package.load(run)(x), model(x))
    again = sat(*described, tiny=False)
    assert again.code == 0 and FINISHED in again.out
    other = sat(*described, "seed=1", tiny=False)  # attacks draw by it
    assert other.code == 0 and FINISHED not in other.out, other.err
    (drawn,) = (r for r in other.runs if "theirs" in r.name and r != run)
    assert drawn.name.startswith(run.name.removesuffix(found["hash"]) + "s1-")
    assert result_of(drawn)["configuration"] == found["configuration"] == run.name
    one, two = (np.load(each / "flags/last-pgd20.npz") for each in (run, drawn))
    assert not np.array_equal(one["passed"], two["passed"])
    more = sat(*described, "evaluation.attacks.pgd20=null", "+attack@evaluation.attacks.b=fgsm",
               tiny=False)  # fmt: skip
    assert more.code == 0 and set(result_of(run)["last"]["robust"]) == {"pgd20", "b"}
    (tmp_path / "theirs.pth").unlink()
    assert torch.equal(package.load(run)(x), model(x))
    alone = sat(f"evaluate={run}", "evaluation=clean", tiny=False)
    assert alone.code == 0, alone.err


def test_a_checkpoint_of_an_unfinished_run_brings_its_config(sat, copy):
    (copy / "result.json").unlink()
    refused = sat(f"evaluate={copy}", tiny=False, root=copy.parent)
    assert refused.code == 2 and "not finished" in refused.err
    done = sat(f"evaluate={copy}/checkpoints/last.pt", *FEW, tiny=False, root=copy.parent)
    assert done.code == 0, done.err
    (run,) = (r for r in done.runs if "weights-last" in r.name)
    x, _ = images()
    assert torch.equal(package.load(run, "last")(x), package.load(copy, "last")(x))


class Evil:
    def __reduce__(self):
        return print, ("this must never run",)


def spoil(kind, run, folder):
    """A place to evaluate that is not right, and what the line about it says."""
    file = folder / "w.pt"
    model = package.load(run)
    if kind == "no file":
        return folder / "none.pt", "no such file"
    if kind == "pattern":
        return folder / "*relu*", "no pattern is followed (-m evaluate=A,B)"
    if kind == "no run":
        return folder, "no config.yaml"
    if kind == "text":
        file.write_text("weights")
        return file, "no file of weights"
    if kind == "pickle":
        file.write_bytes(pickle.dumps({"model": Evil()}))
        return file, "objects other than tensors"
    if kind == "torch pickle":
        torch.save({"model": Evil()}, file)
        return file, "objects other than tensors"
    if kind == "image size":
        state = torch.load(run / "checkpoints/best.pt")
        state["facts"]["shape"]["image_size"] = 32
        torch.save(state, file)
        return file, "images of 32 pixels"
    state = model.backbone.state_dict()
    if kind == "classes":
        state["fc.weight"], state["fc.bias"] = torch.zeros(7, 32), torch.zeros(7)
    elif kind == "channels":
        state["conv1.weight"] = torch.zeros(4, 3, 3, 3)
    torch.save(state, file)
    return file, {"classes": "fc.weight", "channels": "conv1.weight"}[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "no file",
        "pattern",
        "no run",
        "text",
        "pickle",
        "torch pickle",
        "classes",
        "channels",
        "image size",
    ],
)
def test_what_can_not_be_evaluated_is_refused_in_one_line(sat, copy, tmp_path, kind):
    place, says = spoil(kind, copy, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = [] if "pickle" in kind else SILU  # before it is asked what can't be seen in weights
    done = sat(f"evaluate={place}", "model.width=0.125", *words, tiny=False, root=copy.parent)
    assert done.code == 2 and done.err.count("\n") == 1 and says in done.err, done.err
    assert done.err.startswith(f"! evaluate={place}")
    assert "must never run" not in done.out and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "override, says",
    [
        ("activation=relu", "activation=relu: can't be changed"),
        ("schedule.epochs=5", "schedule.epochs=5: can't be changed"),
        ("dataset.eps=4", "evaluation.attacks.<name>.eps"),
        ("evaluation.attacks.pgd20.eps=0.03", "the unit is 1/255"),
        ("evaluation.checkpoints=[first]", "choose from last, best, last_raw"),
        ("evaluation.attacks.pgd20.steps=4", "was measured in this run with other settings"),
        ("dataset=cifar10", "dataset=cifar10: can't be changed"),
    ],
)
def test_a_run_keeps_its_own_config(sat, copy, override, says):
    before = (copy / "result.json").read_bytes()
    done = sat(f"evaluate={copy}", override, tiny=False, root=copy.parent)
    assert done.code == 2 and done.err.count("\n") == 1 and says in done.err, done.err
    assert (copy / "result.json").read_bytes() == before


def test_damaged_flags_and_configs_are_refused(sat, copy):
    flags = copy / "flags" / "last-pgd20.npz"
    flags.write_bytes(flags.read_bytes()[:100])
    damaged = sat(f"evaluate={copy}", "evaluation.limit=40", "evaluation.attacks.pgd20.steps=3",
                  tiny=False, root=copy.parent)  # fmt: skip
    assert damaged.code == 2 and flags.name in damaged.err and damaged.err.count("\n") == 1
    (copy / "config.yaml").write_text("seed: 0")
    none = sat(f"evaluate={copy}", tiny=False, root=copy.parent)
    assert none.code == 2 and "no config of a run" in none.err


def test_a_killed_ensemble_goes_on_where_it_was(sat, copy, monkeypatch):
    """The second attack is interrupted: what was decided is not decided again."""
    from sat.attacks import ensemble, pool
    from sat.evaluation import evaluator

    monkeypatch.setattr(evaluator, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(ensemble, "APGDSearch", shorter(ensemble.APGDSearch))
    attack = ["evaluation=strong", "evaluation.limit=40", "evaluation.checkpoints=[best]",
              "evaluation.attacks.strong.eps=12",
              "evaluation.attacks.strong.attacks=[apgd-ce,apgd-t]",
              "evaluation.masking_checks=0"]  # fmt: skip
    run, entered, told = pool.Pool.run, [], []

    def killed(self, search, network, images):
        entered.append(len(images))
        if len(entered) == 2:
            decide, self.left = self.left, lambda *a: told.append(a) or decide(*a) or stop()
        run(self, search, network, images)

    def stop():
        if sum(len(images) for images, *_ in told) > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(pool.Pool, "run", killed)
    assert sat(f"evaluate={copy}", *attack, tiny=False, root=copy.parent).code == 130
    assert len(list((copy / "flags/partial").iterdir())) == 1
    decided = sum(len(images) for images, *_ in told)
    assert 3 < decided < entered[1]
    monkeypatch.setattr(
        pool.Pool, "run", lambda self, *a: entered.append(len(a[2])) or run(self, *a)
    )
    done = sat(f"evaluate={copy}", *attack, tiny=False, root=copy.parent)
    assert done.code == 0 and entered[2:] == [0, entered[1] - decided], done.err
    assert not (copy / "flags/partial").exists()
    entry = result_of(copy)["best"]["robust"]["strong"]
    felled = {name: part["felled"] for name, part in entry["attacks"].items()}
    assert list(felled) == ["apgd-ce", "apgd-t"]
    clean = result_of(copy)["best"]["clean"]
    right = round(40 * entry["accuracy"]) + sum(felled.values())
    assert right == entered[0] and (clean["images"] != 40 or right == 40 * clean["accuracy"])


def test_an_evaluation_killed_before_its_result_is_told_once(sat, copy, tmp_path, monkeypatch):
    """All is measured and written down but the result: of a run, and of a file of weights, of which
    nothing was there before."""
    import shutil

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from sat.rundir.record import Run

    def told(words, root, killed):
        words = [*words, *FEW[:2], "evaluation.checkpoints=[last]",
                 "+attack@evaluation.attacks.b=fgsm", "evaluation.attacks.pgd20=null"]  # fmt: skip
        if killed:
            with monkeypatch.context() as patch:
                patch.setattr(Run, "write_result", lambda *_: stop())
                assert sat(*words, tiny=False, root=root).code == 130
        done = sat(*words, tiny=False, root=root)
        assert done.code == 0, done.err
        run = max(done.runs, key=lambda run: (run / "result.json").stat().st_mtime)
        events = EventAccumulator(str(run), purge_orphaned_data=False).Reload()
        points = {tag: [(e.step, e.value) for e in events.Scalars(tag)]
                  for tag in events.Tags()["scalars"] if "second" not in tag}  # fmt: skip
        assert points["verdict/last/b"]
        return (run / "metrics.jsonl").read_text(), points

    def stop():
        raise KeyboardInterrupt

    torch.save(package.load(copy, "best").backbone.state_dict(), tmp_path / "theirs.pth")
    theirs = [f"evaluate={tmp_path}/theirs.pth", "model.width=0.125", *SILU]
    assert told(theirs, tmp_path / "a", False) == told(theirs, tmp_path / "b", True)
    other = shutil.copytree(copy, tmp_path / "other" / copy.name)
    of_run = told([f"evaluate={copy}"], copy.parent, False)
    assert of_run == told([f"evaluate={other}"], other.parent, True)
    assert len(of_run[1]["val/clean"]) > 1  # the training's are all there


def shorter(kind):
    from functools import partial

    return partial(kind, iterations=8)


def test_curves_never_rise_and_are_drawn(sat, copy):
    done = sat(f"evaluate={copy}", "evaluation=curves", "evaluation.limit=60",
               "evaluation.curves.eps_curve.attack.steps=3",
               "evaluation.curves.eps_curve.values=[0,0.5,1,4]",
               "evaluation.curves.steps_curve.values=[1,3,9]", tiny=False,
               root=copy.parent)  # fmt: skip
    assert done.code == 0, done.err
    for which in ("last", "best"):
        part = result_of(copy)[which]
        assert "worst_case" not in part["robust"] and set(part["robust"]) == {"pgd20"}
        for name, length in (("eps_curve", 4), ("steps_curve", 3)):
            curve = part["curves"][name]
            shares = [point["accuracy"] for point in curve["points"]]
            assert shares == sorted(shares, reverse=True) and len(shares) == length
            assert len(curve["classes"]) == 10 and curve["images"] == 60
            lines = (copy / f"curves/{which}-{name}.csv").read_text().splitlines()
            assert len(lines) == 1 + length and lines[0].endswith("class 8,class 9")
            picture = (copy / f"curves/{which}-{name}.png").read_bytes()
            assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
        eps = part["curves"]["eps_curve"]
        assert eps["points"][0]["accuracy"] == eps["clean"] > shares[-1]
        assert [point["eps"] for point in eps["points"]] == [0, 6, 12, 48]
    events = b"".join(path.read_bytes() for path in copy.glob("events.*"))
    assert b"curves/best-eps_curve" in events
    again = sat(f"evaluate={copy}", "evaluation=curves", "evaluation.limit=60",
                "evaluation.curves.eps_curve.attack.steps=3",
                "evaluation.curves.eps_curve.values=[0,0.5,1,4]",
                "evaluation.curves.steps_curve.values=[1,3,9]", tiny=False,
                root=copy.parent)  # fmt: skip
    assert again.code == 0 and FINISHED in again.out


def test_a_network_without_a_right_answer_is_measured(sat, copy, tmp_path):
    model = package.load(copy)
    state = model.backbone.state_dict()
    state["fc.weight"].zero_()
    state["fc.bias"].copy_(-(torch.arange(10.0) ** 0))
    state["fc.bias"][3] = 5.0
    torch.save(state, tmp_path / "three.pt")
    described = [f"evaluate={tmp_path}/three.pt", "model.width=0.125", *SILU]
    done = sat(*described, "evaluation.limit=10", "evaluation.attacks.pgd20.steps=3", tiny=False)
    assert done.code == 0, done.err
    (run,) = (r for r in done.runs if "three" in r.name)
    last = result_of(run)["last"]
    assert last["clean"]["accuracy"] <= 0.1 and last["robust"]["pgd20"]["accuracy"] <= 0.1
    (alarm,) = (a for a in result_of(run)["alarms"] if a["name"] == "random")
    assert alarm["checkpoint"] == "last" and alarm["attack"] == "pgd20" and "one class" in done.err


def test_weights_of_a_file_need_their_activation(sat, copy, tmp_path):
    torch.save(package.load(copy).backbone.state_dict(), tmp_path / "w.pt")
    done = sat(f"evaluate={tmp_path}/w.pt", "model.width=0.125", tiny=False)
    assert done.code == 2 and "activation=relu" in done.err and not done.runs[1:]


def test_a_part_gives_way_to_more_images_and_answers_for_fewer(sat, copy):
    def ask(*more):
        done = sat(f"evaluate={copy}", "evaluation=clean", "+attack@evaluation.attacks.q=pgd",
                   "evaluation.attacks.q.steps=2", "evaluation.masking_checks=0", *more, tiny=False,
                   root=copy.parent)  # fmt: skip
        assert done.code == 0, done.err
        return result_of(copy)["best"]["robust"]["q"]

    few, more = ask("evaluation.limit=30"), ask("evaluation.limit=60")
    assert (few["images"], more["images"]) == (30, 60)
    whole = ask()
    assert whole["images"] == 359 and ask("evaluation.limit=30") == whole
    with np.load(copy / "flags/best-q.npz") as flags:
        assert len(flags["indices"]) == 359 and flags["robust"].mean() == whole["accuracy"]
    ask(
        "evaluation.limit=30",
        "evaluation.masking_checks=20",
        "evaluation.checkpoints=[best]",
        "+attack@evaluation.attacks.r=fgsm",
    )  # the worst case and the checks look at q again
    with np.load(copy / "flags/best-q.npz") as flags:
        assert len(flags["indices"]) == 359
    other = sat(f"evaluate={copy}", "evaluation=clean", "+attack@evaluation.attacks.q=pgd",
                "evaluation.attacks.q.steps=3", tiny=False, root=copy.parent)  # fmt: skip
    assert other.code == 2 and "other settings (steps)" in other.err


def test_flags_are_of_these_weights_and_images(sat, copy):
    ask = [f"evaluate={copy}", *FEW, "evaluation.limit=50"]
    assert FINISHED in sat(*ask, tiny=False, root=copy.parent).out
    flags = copy / "flags/best-pgd20.npz"
    before = flags.read_bytes()
    flags.unlink()  # as a damaged file is moved away: it is measured again, to the same flags
    assert sat(*ask, tiny=False, root=copy.parent).code == 0
    with np.load(flags) as new:
        arrays = dict(new)
    flags.write_bytes(before)
    with np.load(flags) as old:
        assert all(np.array_equal(old[key], arrays[key]) for key in ("fell", "weights", "images"))
    for key in ("weights", "images"):
        np.savez(flags, **{**arrays, key: np.array("00000000")})
        refused = sat(*ask, "+attack@evaluation.attacks.more=fgsm", tiny=False, root=copy.parent)
        assert refused.code == 2 and f"other {key}" in refused.err, refused.err
    for key, value in (("fell", arrays["fell"][:-1]), ("fell", arrays["fell"] + 9)):
        np.savez(flags, **{**arrays, key: value})
        refused = sat(*ask, "+attack@evaluation.attacks.more=fgsm", tiny=False, root=copy.parent)
        assert refused.code == 2 and flags.name in refused.err, refused.err


def test_a_foreign_or_damaged_checkpoint_in_a_run_is_refused_before_anything(sat, copy):
    best = copy / "checkpoints/best.pt"
    ask = [f"evaluate={copy}", "evaluation=clean", "+attack@evaluation.attacks.m=fgsm"]
    state = checkpoint.read(best)
    spoiled = {"hash": "00000000", "dataset": state["facts"]["dataset"]}
    for content, says in (
        ({**state, "facts": spoiled}, "another config"),
        ({"facts": state["facts"]}, "is damaged"),
        (None, "is damaged"),
    ):
        checkpoint.save(best, content) if content else best.write_bytes(b"junk")
        refused = sat(*ask, tiny=False, root=copy.parent)
        assert refused.code == 2 and says in refused.err, refused.err
        assert refused.err.count("\n") == 1 and not (copy / "flags/last-m.npz").exists()
    for place in ("bset.pt", "previous.pt", "last_raw.pt"):
        none = sat(f"evaluate={copy}/checkpoints/{place}", tiny=False, root=copy.parent)
        assert none.code == 2 and "no such" in none.err, none.err


def test_another_evaluation_erases_no_finding(sat, copy):
    two = ["+attack@evaluation.attacks.a=pgd", "+attack@evaluation.attacks.b=fgsm",
           "evaluation.limit=40", "evaluation.masking_checks=12"]  # fmt: skip
    assert sat(f"evaluate={copy}", "evaluation=clean", *two, tiny=False, root=copy.parent).code == 0
    before = result_of(copy)["best"]
    one = sat(f"evaluate={copy}", "evaluation=clean", "+attack@evaluation.attacks.c=fgsm",
              "evaluation.limit=40", tiny=False, root=copy.parent)  # fmt: skip
    after = result_of(copy)["best"]
    assert one.code == 0 and after["robust"]["worst_case"] == before["robust"]["worst_case"]
    assert (
        after["masking_checks"]["b"] == before["masking_checks"]["b"]
        and after["masking_checks"]["c"]["asked"] == 128
    )


def test_weights_measured_on_another_set_of_the_same_name_are_another_run(sat, copy, tmp_path):
    x, y = (tensor.numpy() for tensor in images())
    model, places = package.load(copy), []
    torch.save(model.backbone.state_dict(), tmp_path / "w.pt")
    for name, pixels in (("one", x), ("two", 1 - x)):
        places.append(tmp_path / name / "mine.npz")
        places[-1].parent.mkdir()
        pixels = (255 * pixels.transpose(0, 2, 3, 1)).astype(np.uint8)
        np.savez(places[-1], x_train=pixels, y_train=y, x_test=pixels, y_test=y)
    ask = [f"evaluate={tmp_path}/w.pt", "dataset=npz", "model=resnet", "model.depth=10",
           "model.width=0.125", "model.mean=[0.3]", "model.std=[0.4]", *SILU, *FEW]  # fmt: skip
    done = sat(*ask, f"dataset.path={places[0]}", tiny=False)
    assert done.code == 0, done.err
    other = sat(*ask, f"dataset.path={places[1]}", tiny=False)
    assert other.code == 0 and len([r for r in other.runs if "mine" in r.name]) == 2, other.err


def test_a_part_takes_nothing_from_the_whole(sat, copy):
    """Masking checks, alarms, clean and worst case of fewer images give way to those of more."""
    weak = ["evaluation=clean", "+attack@evaluation.attacks.a=fgsm",
            "+attack@evaluation.attacks.weak=pgd", "evaluation.attacks.weak.eps=12",
            "evaluation.attacks.weak.step=0.2"]  # fmt: skip
    whole = sat(f"evaluate={copy}", *weak, tiny=False, root=copy.parent)
    assert whole.code == 0, whole.err
    before = result_of(copy)
    alarm = next(a for a in before["alarms"] if a["name"] == "more_steps")
    assert alarm["attack"] == "weak" and "weak: more steps help" in whole.err
    few = sat(f"evaluate={copy}", *weak, "evaluation.limit=20", "evaluation.masking_checks=5",
              tiny=False, root=copy.parent)  # fmt: skip
    assert few.code == 0 and FINISHED in few.out, few.err
    again = sat(f"evaluate={copy}", *weak, "evaluation.limit=359", tiny=False, root=copy.parent)
    assert FINISHED in again.out and result_of(copy) == before
    assert before["best"]["clean"]["images"] == 359
    assert before["best"]["robust"]["worst_case"]["images"] == 359
    (copy / "flags/best-weak.npz").unlink()  # so that the part is measured indeed
    few = sat(f"evaluate={copy}", *weak, "evaluation.limit=20", tiny=False, root=copy.parent)
    after = result_of(copy)
    assert few.code == 0 and FINISHED not in few.out
    assert after["alarms"] == before["alarms"]
    for key in ("clean", "robust", "masking_checks"):
        assert after["best"][key] == before["best"][key], key


def test_the_batch_of_a_search_is_no_setting_of_its_verdict(sat, copy):
    ask = [
        f"evaluate={copy}",
        "evaluation=strong",
        "evaluation.limit=12",
        "evaluation.masking_checks=0",
        "evaluation.attacks.strong.attacks=[apgd-ce]",
        "evaluation.checkpoints=[best]",
    ]
    assert sat(*ask, tiny=False, root=copy.parent).code == 0
    again = sat(*ask, "evaluation.attacks.strong.batch_size=7", tiny=False, root=copy.parent)
    assert again.code == 0 and FINISHED in again.out, again.err


def test_last_raw_is_refused_before_anything(sat, copy, tmp_path):
    torch.save(package.load(copy).backbone.state_dict(), tmp_path / "w.pt")
    for ask in (["schedule.ema=0"], [f"evaluate={tmp_path}/w.pt", "activation=silu"]):
        root = tmp_path / "none"
        done = sat(*ask, "evaluation.checkpoints=[last_raw]", tiny=False, root=root)
        assert done.code == 2 and "averages no weights" in done.err and not root.exists()
    best = sat(f"evaluate={tmp_path}/w.pt", "activation=silu", "model.width=0.125", *FEW,
               "evaluation.checkpoints=[best]", tiny=False)  # fmt: skip
    assert best.code == 0 and "weights" in best.out, best.err
