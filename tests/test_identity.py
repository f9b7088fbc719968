"""What makes two runs the same run, and keeps finished ones finished while the program changes.

Run as a program, `python tests/test_identity.py`, it writes what is new into the table of defaults;
a default that has moved it leaves to you.
"""

import json
import re
import shutil
from dataclasses import dataclass, field, make_dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from messages import FINISHED
from PIL import Image
from test_config import composed, spec

from sat import config, identity
from sat.attacks import PGD, Curve
from sat.config import CONF, check, resolve, schema
from sat.data import Cifar10, Digits, ImageFolder, Npz, TinyImageNet, fingerprint
from sat.errors import Refused
from sat.evaluation.settings import Evaluation
from sat.identity import Settings, class_name, defaults, settings_of, silent
from sat.training.schedule import Schedule

TABLE = Path(__file__).with_name("defaults.json")


def grown(cls: type, *added, **moved) -> type:
    """The class as a later version may have it: with options more, or with defaults moved."""
    kinds = [(key, cls.__dataclass_fields__[key].type, default) for key, default in moved.items()]
    fields = [(name, kind, field(default=value)) for name, kind, value in added]
    later = make_dataclass(cls.__name__, [*kinds, *fields], bases=(cls,), frozen=True)
    later.__module__ = cls.__module__
    return later


def put(monkeypatch, later: type) -> None:
    """Puts a class in the place of the one that it grew out of, wherever a config may name it."""
    for place in (later.__module__, later.__module__.rpartition(".")[0]):
        if hasattr(module := import_module(place), later.__name__):
            monkeypatch.setattr(module, later.__name__, later)


LATER = (
    grown(PGD, ("momentum", float, 0.0), ("loss", str, "auto")),
    grown(Schedule, ("sharpness", float, 1.0)),
    grown(Evaluation, ("bootstrap", int, 1000)),
)


# by difference --------------------------------------------------------------------------------


def test_an_option_that_is_added_with_a_default_moves_no_hash(monkeypatch):
    overrides = [[], ["dataset=cifar10", "schedule.epochs=3"], ["attack.steps=3", "seed=4"]]
    before = [spec(*these).hash for these in overrides]
    for later in LATER:
        put(monkeypatch, later)
    after = [spec(*these) for these in overrides]
    assert [run.hash for run in after] == before
    assert after[0].attack.momentum == 0 and "sharpness" in after[0].config["schedule"]
    assert spec("+attack.momentum=0.5").hash != before[0] != spec("+schedule.sharpness=0.5").hash
    assert spec("+evaluation.bootstrap=1").hash == before[0]


def test_an_option_that_is_added_measures_nothing_again(sat, monkeypatch):
    evaluation = ["evaluation.masking_checks=4", "+attack@evaluation.attacks.other=fgsm"]
    first = sat("schedule.epochs=0.2", *evaluation)
    assert first.code == 0, first.err
    kept = {path: path.stat().st_mtime_ns for path in first.run.rglob("*") if path.is_file()}
    for later in LATER:
        put(monkeypatch, later)
    monkeypatch.setattr(
        "sat.evaluation.evaluator.measure_together", lambda *_: pytest.fail("measured again")
    )
    again = sat("schedule.epochs=0.2", *evaluation)
    same = [
        "evaluation.limit=50",
        "evaluation.attacks.pgd20.steps=3",
        "evaluation.masking_checks=0",
    ]
    by_name = sat(f"evaluate={first.run}", *same, *evaluation[1:], tiny=False)
    for answer in (again, by_name):
        assert answer.code == 0 and FINISHED in answer.err + answer.out, answer.err
    now = {path: path.stat().st_mtime_ns for path in first.run.rglob("*") if path.is_file()}
    assert {p: t for p, t in now.items() if p.name != "lock"} == {
        p: t for p, t in kept.items() if p.name != "lock"
    }
    monkeypatch.undo()


def test_a_class_that_moves_to_another_file_moves_no_hash(monkeypatch):
    before, moved = spec(), grown(PGD)
    put(monkeypatch, moved)
    moved.__module__ = "sat.attacks.elsewhere"
    after = spec()
    assert after.config["attack"]["_target_"] == "sat.attacks.elsewhere.PGD"
    assert after.hash == before.hash and type(after.attack) is moved
    after.refuse_moved(before.config, Path("run"))
    stored = yaml.safe_load(before.yaml())  # by a program in which it stood in a file that is gone
    stored["attack"]["_target_"] = "sat.old.attacks.PGD"
    assert check(stored).hash == before.hash


def test_a_default_that_moved_refuses_the_old_run_by_its_key(sat, monkeypatch):
    short = ["schedule.epochs=0.2", "evaluation=clean", "evaluation.limit=20"]
    tiny = [
        "dataset.limit=160",
        "dataset.holdout=30",
        "model.width=0.0625",
        "evaluation.masking_checks=0",
    ]
    first = sat(*tiny, *short, tiny=False)
    assert first.code == 0, first.err
    put(monkeypatch, grown(Schedule, clip=1.0))
    second = sat(*tiny, *short, "schedule.clip=1", tiny=False)  # as the option's file has it then
    assert second.code == 2 and second.err.count("\n") == 1, second.err
    for words in ("schedule.clip=1.0", str(first.run), "begun with 0.0", "record.fresh=true"):
        assert words in second.err, second.err
    (first.run / "result.json").unlink()  # half done, it is refused as well
    assert "schedule.clip=1.0" in sat(*tiny, *short, "schedule.clip=1", tiny=False).err
    old = sat(*tiny, *short, tiny=False)  # who asks for the old value by name asks for another run
    assert old.code == 0 and len(old.runs) == 2
    fresh = sat(*tiny, *short, "schedule.clip=1", "record.fresh=true", tiny=False)
    assert fresh.code == 0 and len(fresh.runs) == 2


def test_a_neutral_option_that_moved_is_asked_of_trainings_alone(tmp_path):
    """No hash has it, neither of a training nor of weights that are measured."""
    (file := tmp_path / "w.pt").write_bytes(b"weights")
    cfg, choices = config.compose([])
    trained = check({**resolve(cfg), "choices": choices})
    stored = yaml.safe_load(trained.yaml())
    stored["augment"]["_target_"] = "sat.data.Unchanged"
    with pytest.raises(Refused, match="augment._target_=Standard: is the default by now"):
        trained.refuse_moved(stored, Path("run"))
    check({**resolve(cfg), "choices": choices, "evaluate": f"{file}"}).refuse_moved(stored, file)


def test_what_both_have_and_differs_is_found_at_any_depth():
    now = spec("validation=strong", "attack.steps=2")
    stored = yaml.safe_load(now.yaml())
    now.refuse_moved(stored, Path("run"))
    for section, key, value, told in (
        ("attack", "steps", 1, "attack.steps=2"),
        ("attack", "norm", "l2", "attack.norm=linf"),
        ("attack", "_target_", "sat.attacks.FGSM", "attack._target_=PGD"),
        ("model", "mean", [0.5], "model.mean=null"),
        ("attack", "norm", "l2\n\x1b[2J", r"begun with l2\n\x1b[2J;"),
    ):
        other = {**stored, section: {**stored[section], key: value}}
        with pytest.raises(Refused, match=re.escape(told)):
            now.refuse_moved(other, Path("run"))
    stored["validation"]["attack"]["attacks"] = ["apgd-ce"]
    with pytest.raises(Refused, match="validation.attack.attacks"):
        now.refuse_moved(stored, Path("run"))
    silent_ones = yaml.safe_load(now.yaml())
    silent_ones["schedule"] |= {"shard": True, "milestones": [0.1]}
    silent_ones["attack"]["gone"] = 3
    del silent_ones["attack"]["clean_start"]
    silent_ones["evaluation"]["restarts"] = 7
    now.refuse_moved(silent_ones, Path("run"))


def test_settings_of_a_measurement_are_compared_by_difference():
    before = json.loads(json.dumps(Evaluation(attacks={"a": PGD(8, 20)}).settings("a")))
    assert before["attack"] == "PGD" and before["eps"] == 8 and before["clean_start"] == 0
    later = grown(PGD, ("momentum", float, 0.0), ("kind", str, "a"))

    def changes(attack, restarts: int = 1) -> list[str]:
        return Evaluation(attacks={"a": attack}, restarts=restarts).settings("a").changes(before)

    assert changes(later(8, 20)) == []
    assert changes(later(8, 20, momentum=0.5)) == ["momentum"]
    assert changes(later(8, 21), 2) == ["steps", "restarts"]
    assert changes(grown(PGD, clean_start=0.5)(8, 20)) == ["clean_start"]
    curve = Evaluation(curves={"c": Curve(PGD(8, 3), "eps", (0, 1))})
    drawn = json.loads(json.dumps(curve.settings("c")))
    assert curve.settings("c").changes(drawn) == [] and "batch_size" not in drawn
    longer = Evaluation(curves={"c": Curve(later(8, 4), "eps", (0, 1), batch_size=3)})
    assert longer.settings("c").changes(drawn) == ["attack.steps"]
    gone = {**before, "gone": 1}
    assert Evaluation(attacks={"a": PGD(8, 20)}).settings("a").changes(gone) == ["gone"]
    assert Settings({"a": True}).changes({"a": 1}) == ["a"]


def test_an_option_is_named_as_its_group_names_it():
    plain = {**resolve(composed())}
    names = {"attack": "pgd", "dataset": "digits"}
    one = check({**plain, "choices": names})
    other = check({**plain, "choices": {**names, "attack": "another"}})
    assert one.identity["attack"]["_target_"] == "pgd" and one.hash != other.hash
    assert other.identity["attack"]["_target_"] == "another=PGD"  # no file of ours says so
    wrong = check({**plain, "choices": {**names, "attack": "fgsm"}})
    assert wrong.identity["attack"]["_target_"] == "fgsm=PGD"
    subset = spec("dataset=cifar10_subset")
    assert subset.identity["dataset"]["_target_"] == "cifar10_subset"  # by what it builds on
    assert class_name("sat.attacks.pgd.PGD") == class_name("sat.attacks.PGD") == "PGD"
    assert class_name("mine.attacks.MIFGSM") == class_name("mine:MIFGSM") == "mine:MIFGSM"
    assert class_name("PGD") == "PGD"


def test_a_plug_in_is_named_by_its_package_and_option(monkeypatch):
    later = grown(PGD)
    later.__module__ = "mine.attacks"
    monkeypatch.setattr(schema, "target", lambda name, path: later if path == "attack"
                        else TARGET(name, path))  # fmt: skip
    assert spec().identity["attack"]["_target_"] == "mine:pgd"


TARGET = config.target


def test_what_moves_no_number_says_so_where_it_stands():
    base = spec()
    moved = ["schedule.shard=true", "schedule.grad_checkpointing=true", "validation.batch_size=9",
             "schedule.milestones=[0.5]"]  # fmt: skip
    for override in moved:
        run = spec(override)
        section, key = override.split("=")[0].split(".")
        assert run.hash == base.hash and key not in run.compared[section], override
    step = spec("schedule.decay=step")
    assert step.hash != spec("schedule.decay=step", "schedule.milestones=[0.5]").hash
    assert silent(TinyImageNet)["root"] is silent(ImageFolder)["skip_unreadable"] is False
    assert "limit" in spec().compared["dataset"] and "eps" not in spec().compared["dataset"]

    class Other:
        no_identity = ("workers",)

        def __init__(self, size: int = 3, workers: int = 2):
            self.size, self.workers = size, workers

    assert settings_of(Other(4, 5)).difference() == {"_target_": class_name(_dotted(Other)),
                                                     "size": 4}  # fmt: skip


ADAMW, UNDECAYED = "schedule.optimizer=adamw", "schedule.weight_decay=0"


@pytest.mark.parametrize(
    "beside, more, alone",
    [
        (["attack.step=1*eps"], "attack.step=1.0*eps", True),
        (["attack.step=1*eps"], "attack.step=' 1 * eps'", True),
        (["attack.step=1*eps"], "attack.step=1.25*eps", False),
        ([ADAMW], "schedule.momentum=0.5", True),
        ([], "schedule.momentum=0.5", False),
        ([UNDECAYED], "schedule.weight_decay_on=all", True),
        ([], "schedule.weight_decay_on=all", False),
    ],
)
def test_what_one_run_is_called_once(beside, more, alone):
    """A size that is written otherwise, and a value that nothing beside it reads."""
    assert (spec(*beside).hash == spec(*beside, more).hash) == alone
    assert spec("attack.step= 1.0 * eps").config["attack"]["step"] == "1*eps"


def _dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


# images ---------------------------------------------------------------------------------------


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 256, (60, 8, 8), np.uint8), np.arange(60) % 3
    return {"x_train": x[:40], "y_train": y[:40], "x_test": x[40:], "y_test": y[40:]}


def test_arrays_are_told_by_all_pixels_and_labels(tmp_path):
    def told(name: str, save=np.savez, **changed) -> str:
        save(tmp_path / name, **arrays() | changed)
        return Npz(path=str(tmp_path / name)).fingerprint()

    first, own = told("a.npz"), arrays()
    assert first == told("b.npz", np.savez_compressed) == told("a.npz", more=np.zeros(3))
    assert first == told("c.npz", y_train=own["y_train"].astype(np.int8))
    seen = {first}
    for key, place in (("x_train", (39, 7, 7)), ("x_test", (0, 3, 3)), ("y_test", 5)):
        changed = own[key].copy()
        changed[place] = (changed[place] + 1) % 3
        seen.add(told("a.npz", **{key: changed}))  # written over: asked anew
    assert len(seen) == 4
    assert Digits().fingerprint() is Cifar10(root="nowhere").fingerprint() is None
    with pytest.raises(ValueError, match="path=nowhere.npz: no such file"):
        Npz(path="nowhere.npz").fingerprint()


def folder(root: Path, images: int = 3, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for part in ("train", "val"):
        for name in "ab":
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for k in range(images):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.bmp")
    return root


def test_folders_are_told_by_names_sizes_and_contents(tmp_path):
    told = lambda root: ImageFolder(root=str(root)).fingerprint()  # noqa: E731
    root = folder(tmp_path / "one")
    first = told(root)
    assert first == told(folder(tmp_path / "two"))  # elsewhere, with other dates
    (root / "train" / "notes.txt").write_text("no image")
    assert first == told(root)
    image = root / "val" / "b" / "2.bmp"
    content = image.read_bytes()
    image.write_bytes(content[:-1] + b"\x00\x01"[content[-1] == 0 :][:1])
    assert first != told(root), "another pixel under the same name and size"
    image.write_bytes(content)
    assert first == told(root)
    image.rename(image.with_name("3.bmp"))
    assert first != told(root)
    (root / "val" / "b" / "3.bmp").rename(root / "val" / "a" / "3.bmp")
    assert first != told(root)


def test_a_test_set_of_the_training_images_is_told(tmp_path, caplog):
    """Who only measures may have no others."""
    folder(tmp_path)
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val").symlink_to("train")
    ImageFolder(root=str(tmp_path)).fingerprint()
    assert "val holds the images of train" in caplog.text


def test_of_many_files_a_thousand_are_read_and_the_rest_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fingerprint, "READ", 4)
    names = [f"{k}".encode() for k in range(10)]
    for name in names:
        (tmp_path / name.decode()).write_bytes(b"x" * 9)
    read = []
    content = fingerprint._content
    monkeypatch.setattr(
        fingerprint, "_content", lambda *at: read.append(Path(at[0].decode()).name) or content(*at)
    )
    with caplog.at_level("INFO", "sat"):
        first = fingerprint.of_files(tmp_path, names)
    assert read == ["0", "3", "6", "9"]
    assert "10 images by names and sizes and the contents of 4" in caplog.text
    (tmp_path / "1").write_bytes(b"y" * 9)
    assert fingerprint.of_files(tmp_path, names) == first
    (tmp_path / "1").write_bytes(b"y" * 8)
    assert fingerprint.of_files(tmp_path, names) != first
    monkeypatch.setattr(fingerprint, "WHOLE", 8)
    monkeypatch.setattr(fingerprint, "BLOCK", 2)
    monkeypatch.setattr(fingerprint, "BLOCKS", 3)
    first = fingerprint.of_files(tmp_path, names)
    (tmp_path / "3").write_bytes(b"x" * 8 + b"z")
    assert fingerprint.of_files(tmp_path, names) != first


def test_a_moved_set_is_the_same_run_and_another_set_another(tmp_path):
    one = spec("dataset=imagefolder", f"dataset.root={folder(tmp_path / 'a' / 'flowers')}")
    same = spec("dataset=imagefolder", f"dataset.root={folder(tmp_path / 'b' / 'flowers')}",
                "dataset.workers=1")  # fmt: skip
    called = spec("dataset=imagefolder", f"dataset.root={folder(tmp_path / 'birds')}",
                  "dataset.name=flowers")  # fmt: skip
    assert one.name == same.name == called.name and one.name.startswith("flowers-224px-resnet50-")
    folder(tmp_path / "b" / "flowers", seed=1)
    other = spec("dataset=imagefolder", f"dataset.root={tmp_path / 'b' / 'flowers'}")
    assert other.hash != one.hash
    np.savez(tmp_path / "y.npz", **arrays())
    assert spec("dataset=npz", f"dataset.path={tmp_path / 'y.npz'}").name.startswith("y-")


def test_images_that_changed_at_their_place_are_another_run(sat, tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, **arrays())
    words = ["dataset=npz", f"dataset.path={path}", "dataset.holdout=6", "model.depth=10",
             "model.width=0.0625", "schedule.epochs=1", "schedule.batch_size=16",
             "evaluation.attacks.pgd20.steps=1", "evaluation.masking_checks=0"]  # fmt: skip
    first = sat(*words, tiny=False)
    assert first.code == 0, first.err
    told = first.result["identity"]["dataset"]["fingerprint"]
    assert told == Npz(path=str(path)).fingerprint()
    changed = arrays()
    changed["x_test"] = arrays(1)["x_test"]
    np.savez(path, **changed)
    more = sat(f"evaluate={first.run}", "+attack@evaluation.attacks.more=fgsm", tiny=False)
    assert more.code == 2 and "other images" in more.err and more.err.count("\n") == 1, more.err
    again = sat(*words, tiny=False)
    assert again.code == 0 and len(again.runs) == 2, again.err
    np.savez(path, **arrays())
    assert FINISHED in sat(*words, tiny=False).out


def test_facts_see_every_pixel_of_a_set_in_memory():
    facts = []
    for flipped in (None, 17):
        data = Digits()(torch.device("cpu"), 0)
        if flipped:
            data.test._cut.images[flipped, 0, 3, 3] += 1
        facts.append(fingerprint.facts_of(data))
    assert facts[0]["test_content"] != facts[1]["test_content"]
    assert facts[0]["content"] != facts[1]["content"]


@dataclass(frozen=True)
class Unnamed:
    """A set that does not tell its images from others."""


def test_a_set_of_a_users_own_tells_its_images_apart(monkeypatch):
    monkeypatch.setattr(schema, "target", lambda name, path: Unnamed if path == "dataset"
                        else TARGET(name, path))  # fmt: skip
    plain = resolve(composed())
    plain["dataset"] = {key: plain["dataset"][key] for key in identity.FOLLOWED}
    with pytest.raises(Refused, match=r"dataset._target_=Unnamed: .* fingerprint\(\)"):
        check(plain)


def test_processes_that_read_other_images_are_refused():
    from sat.run import one_run

    one_run(["a", "a"])
    with pytest.raises(Refused, match="process 1 finds other images"):
        one_run(["a", "b"])


# the table ------------------------------------------------------------------------------------


def table() -> dict[str, dict[str, object]]:
    """The defaults of every class that a file of `conf` names, by group and class."""
    found: dict[str, dict[str, object]] = {}
    for file in sorted(CONF.glob("*/**/*.yaml")):
        group = file.relative_to(CONF).parts[0]
        for name in re.findall(r"^ *_target_: *(\S+)", file.read_text(), re.M):
            if group == "hydra" or not name.startswith("sat."):
                continue
            module, _, attribute = name.rpartition(".")
            cls = getattr(import_module(module), attribute)
            own = {k: v for k, v in defaults(cls).items() if k != "inplace"}
            found[f"{group}: {attribute}"] = dict(sorted(own.items()))
    return found


def test_defaults_are_moved_deliberately():
    kept, now = json.loads(TABLE.read_text()), table()
    moved = [
        f"{place}.{key}: {was} -> {now[place].get(key, 'gone')}"
        for place, values in kept.items()
        for key, was in values.items()
        if place in now and (key not in now[place] or now[place][key] != was)
    ]
    assert not moved, (
        f"{moved}: with this, every run that was begun with the old value is refused by the key"
        " under its own command, and every command that names the old value starts another run. If"
        f" that is what you want, change {TABLE.name} by hand and say so in CHANGELOG.md"
    )
    new = [p for p in now if now[p].keys() != kept.get(p, now[p]).keys()]  # a class may be new
    new += kept.keys() - now.keys()
    assert not new, f"{new}: new options; python tests/{Path(__file__).name} adds them to the table"


def write_table() -> None:
    kept, now = json.loads(TABLE.read_text()) if TABLE.exists() else {}, table()
    merged = {p: {k: kept.get(p, {}).get(k, v) for k, v in now[p].items()} for p in sorted(now)}
    TABLE.write_text(json.dumps(merged, indent=1) + "\n")


if __name__ == "__main__":
    write_table()
