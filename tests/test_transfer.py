"""Images crafted on one network, counted on others, and the matrix of a sweep."""

import json
import shutil
import types

import numpy as np
import pytest
import torch
from conftest import small_network, trained_on_digits
from torch import nn

from sat.attacks import PGD, FastAutoAttack, Transfer, transfer
from sat.attacks.outcomes import AttackOutcomes
from sat.errors import Refused
from sat.evaluation.settings import Evaluation
from sat.evaluation.views import views
from sat.report import transfer as report
from sat.rng import RowRng
from sat.rundir.result import RunResult
from sat.rundir.untrusted import read_yaml

PGD5 = PGD(25, 5)


@pytest.fixture(scope="module")
def networks():
    """Two networks trained on digits, and 60 images."""
    model, x, y = trained_on_digits(small_network(), epochs=1, batch=50)
    other, *_ = trained_on_digits(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.SiLU(), nn.Linear(40, 10)), 1, 50
    )
    return model, other, x[:60], y[:60]


def crafted(place="outputs/run-1", weights="ab"):
    return Transfer(PGD5, "run-1", weights, place, batch_size=25)


def verdicts(attack, model, x, y):
    outcomes = AttackOutcomes.new(attack.names, len(x))
    outcomes.survey(model, x, y)
    attack.run(model, x, y, RowRng(3, torch.arange(len(x))), outcomes)
    return outcomes


def test_images_are_made_on_the_other_network_and_counted_on_this_one(networks, monkeypatch):
    model, other, x, y = networks
    monkeypatch.setattr(transfer, "_loaded", lambda *where: other)
    found = verdicts(crafted(), model, x, y)
    points = PGD5(other, x, y, RowRng(3, torch.arange(60)))
    clean = model(x).argmax(1) == y
    assert torch.equal(found.robust, clean & (model(points).argmax(1) == y))
    assert torch.equal(crafted()(model, x, y, RowRng(3, torch.arange(60))), points)
    own = clean & (model(PGD5(model, x, y, RowRng(3, torch.arange(60)))).argmax(1) == y)
    assert own.sum() < found.robust.sum() < clean.sum()


def test_a_network_for_other_images_is_refused(networks, monkeypatch):
    model, _, x, y = networks
    for other in (nn.Conv2d(3, 10, 1), nn.Sequential(nn.Flatten(), nn.Linear(64, 7))):
        monkeypatch.setattr(transfer, "_loaded", lambda *where, other=other: other)
        with pytest.raises(Refused, match="evaluation.source=outputs/run-1: is a network for"):
            verdicts(crafted(), model, x, y)


def test_an_ensemble_makes_no_images_for_others(ran):
    """Its images are clean ones wherever the network that it was run on stands."""
    strong = FastAutoAttack(25)
    for method in (strong, crafted()):
        with pytest.raises(ValueError, match=f"^method={type(method).__name__}: .*plain attack"):
            Transfer(method, "run-1", "ab", "outputs/run-1")
    for source in (str(ran.run), f"{ran.run.parent}/*"):
        with pytest.raises(ValueError, match="^attacks.strong=FastAutoAttack: .*plain attack"):
            Evaluation(attacks={"pgd": PGD5, "strong": strong}, source=source)


def test_a_small_ball_keeps_its_unit(networks):
    """A bare 0.25 is refused, where an attack is made of it."""
    model, _, x, y = networks
    small = Transfer(PGD("0.25/255", 2), "run-1", "ab", "outputs/run-1")
    shown = views(model, x[:8], y[:8], torch.arange(8), small, "0123456789")
    assert "eps 0.25/255" in shown.attack and (shown.x_adv - x[:8]).abs().max() < 1e-3


def test_the_weights_decide_and_their_place_does_not():
    settings = lambda attack: Evaluation(attacks={"a": attack}).settings("a")  # noqa: E731
    one = settings(crafted())
    assert settings(crafted(place="elsewhere")) == one and one["attack"] == "Transfer"
    assert one["run_name"] == "run-1" and one["method"]["steps"] == 5
    assert settings(crafted(weights="cd")).changes(one) == ["weights"]


def test_a_run_under_the_images_of_others(sat, ran, tmp_path):
    run = ran.run
    other = tmp_path / "outputs" / "other-run"
    shutil.copytree(run, other)
    own = RunResult.read(run).hash
    text = (other / "result.json").read_text().replace(own, "0123abcd")
    (other / "result.json").write_text(text)
    words = [f"evaluate={run}", "evaluation=transfer", "evaluation.limit=50",
             "evaluation.checkpoints=[best]", "evaluation.attacks.transfer.steps=3"]  # fmt: skip
    done = sat(*words, f"evaluation.source={tmp_path}/outputs/*", tiny=False)
    assert done.code == 0, done.err
    flags = {name: np.load(run / f"flags/best-transfer_{name}.npz") for name in (own, "0123abcd")}
    assert np.array_equal(*(each["robust"] for each in flags.values()))  # of equal weights
    assert "transfer_0123abcd" in done.out
    told = report.transfer(tmp_path / "outputs", tmp_path / "report")
    assert "1 " + run.name not in told.splitlines()[0] and "other-run" in told
    lines = (tmp_path / "report/transfer-best.csv").read_text().splitlines()
    assert lines[0] == f"crafted on,{run.name}" and len(lines) == 3
    assert float(lines[1].split(",")[1]) == flags[own]["robust"].mean()
    assert (tmp_path / "report/transfer-best.png").stat().st_size > 1000
    nothing = sat(*words, tiny=False)
    assert nothing.code == 2 and "evaluation.source" in nothing.out + nothing.err
    with pytest.raises(Refused, match="no run was measured under images of another"):
        report.transfer(other, tmp_path / "report")


def test_a_matrix_has_the_rows_that_were_measured_and_the_screen_the_names_of_all(
    tmp_path, monkeypatch
):
    """Of a, b and c images were crafted on a and c, and counted on a and b."""

    def entry(source, accuracy):
        settings = {"attack": "Transfer", "run_name": source}
        return types.SimpleNamespace(settings=settings, accuracy=accuracy)

    runs = [
        types.SimpleNamespace(name=name, entries={
            ("best", f"transfer_{source}"): entry(source, share) for source, share in found.items()
        })
        for name, found in (("below/a", {"a": 0.25, "c": 0.5}), ("b", {"a": 0.75}))
    ]  # fmt: skip
    monkeypatch.setattr(report, "finished", lambda root: runs)
    told = report.transfer(tmp_path, tmp_path / "report").splitlines()
    assert told[1].split() == ["crafted", "on", "1", "2"]
    shown = [line.split() for line in told[3:6]]
    assert shown == [["1", "a", "25.0", "75.0"], ["2", "b"], ["3", "c", "50.0"]]
    written = (tmp_path / "report/transfer-best.csv").read_text()
    assert written == "crafted on,a,b\na,0.25,0.75\nc,0.5,\n"
    assert (tmp_path / "report/transfer-best.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "file, old, new, why",
    [
        ("config.yaml", "image_size: null", "image_size: 16", "image_size: 16, here None"),
        ("config.yaml", "sat.data.memory.Digits", "sat.data.memory.Npz", "kind: Npz, here Digits"),
        ("result.json", '"name": "digits"', '"name": "others"', "name: others, here digits"),
        ("result.json", '"classes": 10', '"classes": 7', "classes: 7, here 10"),
    ],
)
def test_runs_of_other_sets_are_passed_over_or_refused(ran, tmp_path, caplog, file, old, new, why):
    own, other = ran.run, tmp_path / "outputs" / "other[1]"  # a name that is a pattern, too
    shutil.copytree(own, other)
    for text, was, now in ((file, old, new), ("result.json", RunResult.read(other).hash, "0123")):
        content = (other / text).read_text()
        assert was in content
        (other / text).write_text(content.replace(was, now))
    dataset, facts = read_yaml(own / "config.yaml")["dataset"], RunResult.read(own).dataset
    many = transfer.transfers(f"{tmp_path}/outputs/*", PGD5, 25)
    assert len(many) == 2
    transfer.drop_others(many, dataset, facts)
    assert [attack.run_name for attack in many.values()] == [own.name]
    assert f"{other} is passed over" in caplog.text and why in caplog.text
    with pytest.raises(Refused, match="evaluation.source=.*is of another data set"):
        transfer.drop_others(transfer.transfers(str(other), PGD5, 25), dataset, facts)


def test_a_foreign_network_is_passed_over_or_refused(ran, tmp_path, caplog):
    own, other = ran.run, tmp_path / "outputs" / "foreign"
    shutil.copytree(own, other)
    config = read_yaml(other / "config.yaml")
    config["model"] = {"_target_": "sat.models.custom.Given"}
    own_hash = RunResult.read(own).hash
    content = (other / "result.json").read_text().replace(own_hash, "0123")
    (other / "result.json").write_text(content)
    (other / "config.yaml").write_text(json.dumps(config))
    found = transfer.transfers(f"{tmp_path}/outputs/*", PGD5, 25)
    assert [attack.run_name for attack in found.values()] == [own.name]
    assert f"{other} is passed over: does not hold its network" in caplog.text
    with pytest.raises(ValueError, match="^source=.*: does not hold its network"):
        transfer.transfers(str(other), PGD5, 25)


def test_memory_that_ran_out_is_no_other_data_set(networks, monkeypatch):
    model, _, x, _ = networks

    def full(images):
        raise torch.OutOfMemoryError("out")

    monkeypatch.setattr(transfer, "_loaded", lambda *where: full)
    with pytest.raises(torch.OutOfMemoryError):
        crafted()._other(model, x)
