"""Weights from anywhere: nested, prefixed, normalised; and what is refused, in one line."""

import argparse
import json
import logging
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file
from torch import nn

from sat.activations import PReLU, SiLU, SmoothReLU
from sat.config import CONF, check, resolve
from sat.errors import Refused
from sat.models.backbones import ResNet
from sat.models.classifier import assemble
from sat.models.weights import build_model, load_weights

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
SHAPE = {"channels": 3, "classes": 5, "image_size": 8, "mean": [0.5] * 3, "std": [0.25] * 3}


def classifier(seed=0, depth=10, classes=5, activation=SiLU, width=0.0625):
    torch.manual_seed(seed)
    net = ResNet(depth, width=width)(3, classes, 8)
    for name, buffer in net.named_buffers():  # as if trained
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1)
    return assemble(net, activation, SHAPE["mean"], SHAPE["std"], (3, 8, 8)).eval()


def spec(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(resolve(compose("config", ["model.width=0.0625", *overrides])))


@pytest.fixture(scope="module")
def theirs():
    return classifier(1)


def copied(tensors, prefix=""):
    return {prefix + key: value.clone() for key, value in tensors.items()}


def logits(net):
    return net(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5)))


NORMALISED = {"0.mean": nn.Parameter(torch.tensor(MEAN)), "0.std": torch.tensor(STD).view(3, 1, 1)}
FILES = {
    "plain": lambda w: w,
    "module": lambda w: copied(w, "module."),
    "stacked": lambda w: {"epoch": 3, "state_dict": copied(w, "module._orig_mod.model.")},
    "deep": lambda w: {"a": {"net": {"weights": copied(w, "backbone.")}}, "loss": torch.ones(3)},
    "averaged model": lambda w: {"swa": {"n_averaged": torch.tensor(9)} | copied(w, "module.")},
    "no counters": lambda w: {k: v for k, v in w.items() if "num_batches" not in k},
    "half": lambda w: {k: v.half() if v.is_floating_point() else v for k, v in w.items()},
}


@pytest.mark.parametrize("kind", FILES)
def test_a_state_dict_of_any_wrapping_loads(kind, theirs, tmp_path, caplog):
    torch.save(FILES[kind](theirs.backbone.state_dict()), tmp_path / "w.pt")
    mine = classifier(2)
    with caplog.at_level(logging.INFO, "sat"):
        load_weights(mine, str(tmp_path / "w.pt"))
    tolerance = 1e-2 if kind == "half" else 0
    assert torch.allclose(logits(mine), logits(theirs), rtol=tolerance, atol=tolerance)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "the dataset's mean and std" in warning and "model.mean" in warning


def test_a_normalisation_layer_becomes_the_models(theirs, tmp_path, caplog):
    """nn.Sequential(normalise, net): keys `1.*`, and the layer's buffers."""
    weights = copied(theirs.backbone.state_dict(), "1.") | NORMALISED
    torch.save({"model_state_dict": weights}, tmp_path / "w.pt")
    mine = classifier(2)
    with caplog.at_level(logging.INFO, "sat"):
        load_weights(mine, str(tmp_path / "w.pt"))
    assert mine.mean.flatten().tolist() == pytest.approx(MEAN)
    assert mine.std.flatten().tolist() == pytest.approx(STD)
    assert not mine.mean.requires_grad  # learned there, fixed here
    (said,) = [record.getMessage() for record in caplog.records]
    for word in ("model_state_dict", "'1.'", "mean [0.4, 0.5, 0.6]", "std [0.2, 0.3, 0.25]"):
        assert word in said


@pytest.mark.parametrize(
    "names", ["mean std", "mu sigma", "n.image_mean n.image_std", "0.MU 0.STD"]
)
def test_a_normalisation_has_many_names(names, theirs, tmp_path):
    scale = dict(zip(names.split(), NORMALISED.values(), strict=True))
    torch.save(copied(theirs.backbone.state_dict(), "net.") | scale, tmp_path / "w.pt")
    mine = classifier(2)
    load_weights(mine, str(tmp_path / "w.pt"))
    assert mine.mean.flatten().tolist() == pytest.approx(MEAN)


def test_statistics_of_a_layer_are_no_normalisation(theirs, tmp_path):
    statistics = {"bn9.running_mean": torch.zeros(3), "bn9.running_std": torch.ones(3)}
    torch.save(copied(theirs.backbone.state_dict()) | statistics, tmp_path / "w.pt")
    assert "no place for bn9.running_mean" in refusal(classifier(), tmp_path / "w.pt")


def test_mean_and_std_set_by_hand_stay(theirs, tmp_path, caplog):
    torch.save(copied(theirs.backbone.state_dict(), "1.") | NORMALISED, tmp_path / "w.pt")
    mine = classifier(2)
    load_weights(mine, str(tmp_path / "w.pt"), given=("mean", "std"))
    assert mine.mean.flatten().tolist() == [0.5] * 3 and mine.std.flatten().tolist() == [0.25] * 3
    torch.save(theirs.backbone.state_dict(), tmp_path / "bare.pt")
    load_weights(mine, str(tmp_path / "bare.pt"), given=("mean", "std"))
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("keys", [
    ("model", "ema"), ("state_dict", "state_dict_ema"), ("model", "modelEMA"), ("net", "emaModel"),
    ("net", "netema"), ("net", "EMANet"), ("net", "averaged_net"), ("model", "model_avg"),
])  # fmt: skip
def test_averages_come_first_and_the_log_says_so(keys, theirs, tmp_path, caplog):
    plain, average = keys
    other = classifier(3)
    state = {
        plain: other.state_dict(),
        average: theirs.state_dict(),
        "optimizer": {0: torch.ones(2)},
    }
    torch.save(state, tmp_path / "w.pt")
    mine = classifier(2)
    with caplog.at_level(logging.INFO, "sat"):
        load_weights(mine, str(tmp_path / "w.pt"))
    assert torch.equal(logits(mine), logits(theirs)) and repr(average) in caplog.text


@pytest.mark.parametrize("name", ["schema", "swapped", "swag_mean", "teacher", "momentum_encoder"])
def test_two_networks_of_which_none_is_an_average_are_refused(name, theirs, tmp_path):
    state = {"model": theirs.state_dict(), name: classifier(3).state_dict()}
    torch.save(state, tmp_path / "w.pt")
    assert f"two networks of this kind with other values, 'model' and '{name}'" in refusal(
        classifier(2), tmp_path / "w.pt"
    )
    equal, half = copied(theirs.state_dict(), "module."), copied(theirs.state_dict())
    half = {key: value.half() for key, value in half.items() if value.is_floating_point()}
    fewer = classifier(3, classes=4).state_dict()  # of other shapes
    torch.save({"model": theirs.state_dict(), name: equal, "half": half, "other": fewer},
               tmp_path / "w.pt")  # fmt: skip
    mine = classifier(2)
    load_weights(mine, str(tmp_path / "w.pt"))
    assert torch.equal(logits(mine), logits(theirs))


def test_what_an_optimiser_keeps_for_each_weight_is_no_network(theirs, tmp_path):
    beside = classifier(3).state_dict()
    state = {"exp_avg": beside, "model": theirs.state_dict(), "optimizer": {"ema": beside}}
    torch.save(state, tmp_path / "w.pt")
    mine = classifier(2)
    load_weights(mine, str(tmp_path / "w.pt"))
    assert torch.equal(logits(mine), logits(theirs))


def test_an_average_without_counters_comes_first(theirs, tmp_path):
    average = FILES["no counters"](theirs.backbone.state_dict())
    torch.save({"model": classifier(3).state_dict(), "swa": average}, tmp_path / "w.pt")
    mine = classifier(2)
    load_weights(mine, str(tmp_path / "w.pt"))
    assert torch.equal(logits(mine), logits(theirs))


def test_an_average_of_parameters_alone_gives_way(theirs, tmp_path):
    ema = dict(classifier(3).backbone.named_parameters())
    torch.save({"ema": ema, "model": theirs.state_dict()}, tmp_path / "w.pt")
    mine = classifier(2)
    load_weights(mine, str(tmp_path / "w.pt"))
    assert torch.equal(logits(mine), logits(theirs))


def test_safetensors_with_and_without_a_normalisation(theirs, tmp_path):
    weights = copied(theirs.backbone.state_dict())
    save_file(weights | NORMALISED, tmp_path / "layer.safetensors")
    scale = {"normalisation": json.dumps({"mean": MEAN, "std": STD})}
    save_file(weights, tmp_path / "metadata.safetensors", metadata=scale)
    for name in ("layer", "metadata"):
        mine = classifier(2)
        load_weights(mine, str(tmp_path / f"{name}.safetensors"))
        assert mine.mean.flatten().tolist() == pytest.approx(MEAN), name
        assert torch.equal(mine.backbone.fc.weight, theirs.backbone.fc.weight)


# What is refused


class Trap:
    """What an untrusted pickle may hold: a call."""

    def __init__(self, at):
        self.at = str(at)

    def __reduce__(self):
        return Path.touch, (Path(self.at),)


def refusal(model, path):
    before = copied(model.state_dict())
    with pytest.raises(ValueError) as caught:
        load_weights(model, str(path))
    line = str(caught.value)
    assert line.startswith(f"weights={path}: ") and "\n" not in line
    assert len(line) - len(str(path)) < 400, line
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return line


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_of_objects_is_never_run(legacy, tmp_path):
    weights = {"model": classifier(1).state_dict(), "x": Trap(tmp_path / "ran")}
    zipped = {"_use_new_zipfile_serialization": not legacy}
    torch.save(weights, tmp_path / "trap.pt", **zipped)
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    for name in ("trap.pt", "trap.pkl"):
        line = refusal(classifier(), tmp_path / name)
        assert "could run code" in line and "save model.state_dict()" in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("extra", [argparse.Namespace(lr=1), np.float64(0.5), nn.Linear(1, 1)])
def test_harmless_objects_are_named(extra, tmp_path):
    torch.save({"state_dict": classifier().state_dict(), "args": extra}, tmp_path / "w.pt")
    line = refusal(classifier(), tmp_path / "w.pt")
    assert "objects other than tensors" in line
    assert any(name in line for name in ("argparse.Namespace", "multiarray.scalar", "nn.modules"))


def damage(path):
    torch.save(classifier().state_dict(), path)
    path.write_bytes(path.read_bytes()[:3000])


def write_endless(path):
    state = {"step": 1}
    state["self"] = state
    torch.save(state, path)


def write_packed(path: Path) -> None:
    """An archive as torch's, packed to a thousandth; with more than torch would write."""
    torch.save({"w": torch.zeros(2**16)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("packed/data/9", bytes(2 * 10**8))


BAD = {
    "text.pt": (lambda p: p.write_text("no checkpoint"), "is damaged, or is no file of weights"),
    "empty.pt": (lambda p: p.write_text(""), "is damaged, or is no file of weights"),
    "cut.pt": (damage, "is damaged, or is no file of weights"),
    "text.safetensors": (lambda p: p.write_text("not this either"), "is damaged"),
    "tensor.pt": (lambda p: torch.save(torch.ones(3), p), "none of this network's weights"),
    "other.pt": (lambda p: torch.save(nn.Linear(2, 2).state_dict(), p), "there: weight, bias"),
    "endless.pt": (write_endless, "unfolds to far more than the file holds"),
    "packed.pt": (write_packed, "unfolds to 0.2 GB"),
    "spread.pt": (lambda p: torch.save({"w": torch.zeros(1).expand(2**26)}, p), "unfolds to far"),
    "absent.pt": (lambda p: None, "No such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_without_weights_is_one_line(name, tmp_path):
    write, says = BAD[name]
    write(tmp_path / name)
    assert says in refusal(classifier(), tmp_path / name)


def test_a_last_layer_of_other_classes_begins_anew_where_weights_are_transferred(tmp_path, caplog):
    theirs, mine = classifier(1, classes=100), classifier(2)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    begun = {key: value.clone() for key, value in mine.backbone.fc.state_dict().items()}
    load_weights(mine, str(tmp_path / "w.pt"), transfer=True)
    assert "fc.weight, fc.bias begin anew" in caplog.text
    for key, value in mine.backbone.state_dict().items():
        there = theirs.backbone.state_dict()[key]
        expected = begun[key.removeprefix("fc.")] if key.startswith("fc.") else there
        assert torch.equal(value, expected), key
    wide = classifier(1, classes=100, width=0.125)
    torch.save(wide.state_dict(), tmp_path / "wide.pt")
    with pytest.raises(ValueError, match="must be the same"):
        load_weights(mine, str(tmp_path / "wide.pt"), transfer=True)


MISFITS = [
    (dict(classes=100), {}, ["fc.weight is 100 x 32 there, 5 x 32 here", "another class count?"]),
    (dict(depth=18), {}, ["no place for layer1.1.conv1.weight", "more", "must be the same"]),
    ({}, dict(depth=18), ["lacks layer1.1.conv1.weight", "more"]),
    (dict(width=0.125), {}, ["conv1.weight is 8 x 3 x 3 x 3 there, 4 x 3 x 3 x 3 here"]),
    (dict(activation=PReLU), {}, ["no place for act1.weight", "another activation=?"]),
    ({}, dict(activation=SmoothReLU), ["lacks act1.beta", "another activation=?"]),
]


@pytest.mark.parametrize(("there", "here", "says"), MISFITS)
def test_what_does_not_fit_is_named(there, here, says, tmp_path):
    torch.save(copied(classifier(1, **there).state_dict(), "module."), tmp_path / "w.pt")
    line = refusal(classifier(2, **here), tmp_path / "w.pt")
    for word in says:
        assert word in line
    for hint in {"another class count?", "another activation=?"} - set(says):
        assert hint not in line


def test_a_surplus_tensor_and_a_foreign_normalisation_are_refused(theirs, tmp_path):
    weights = copied(theirs.backbone.state_dict())
    torch.save(weights | {"head2.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    assert "no place for head2.weight" in refusal(classifier(), tmp_path / "w.pt")
    pixels = {"mean": torch.tensor([123.7, 116.3, 103.5]), "std": torch.tensor([58.4, 57.1, 57.4])}
    torch.save(weights | pixels, tmp_path / "w.pt")
    assert "mean = [123.7, 116.3, 103.5] is not for images in [0, 1]" in refusal(
        classifier(), tmp_path / "w.pt"
    )
    torch.save(weights | {"mean": torch.ones(3)}, tmp_path / "w.pt")  # where is its std?
    assert "no place for mean" in refusal(classifier(), tmp_path / "w.pt")


# model.mean and model.std


def test_the_normalisation_can_be_given():
    plain, given = spec(), spec("model.mean=[0, 0, 1]", "model.std=[1,1,0.5]")
    assert plain.hash == spec("model.mean=null", "model.std=null").hash
    hashes = {s.hash for s in (plain, given, spec("model.mean=[0,0,0]"), spec("model.std=[1,1,1]"))}
    assert len(hashes) == 4
    built = [build_model(s, SHAPE, torch.device("cpu")) for s in (plain, given)]
    assert [net.mean.flatten().tolist() for net in built] == [[0.5] * 3, [0, 0, 1]]
    assert [net.std.flatten().tolist() for net in built] == [[0.25] * 3, [1, 1, 0.5]]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.std=[1,0,1]", "model.std=[1.0, 0.0, 1.0]: must be one value a channel, above 0"),
        ("model.mean=[123,116,103]", "by 255"),
        ("model.mean=[nan,0,0]", "model.mean="),
        ("model.mean=[]", "one value a channel"),
        ("model.mean=0.5", "model.mean=0.5: must be a list"),
    ],
)
def test_what_is_no_normalisation_is_refused(override, says):
    with pytest.raises(Refused) as caught:
        spec(override)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_normalisation_of_another_length_is_refused():
    says = r"^std=\[1.0\]: has 1 values, where images have 3 channels; .* model.std=null"
    with pytest.raises(ValueError, match=says):
        build_model(spec("model.std=[1]"), SHAPE, torch.device("cpu"))


def test_given_weights_with_a_given_normalisation(theirs, tmp_path, caplog):
    torch.save(theirs.backbone.state_dict(), tmp_path / "w.pt")
    start = [f"model.weights={tmp_path / 'w.pt'}", "model.mean=[0,0,0]", "model.std=[1,1,1]"]
    net = build_model(spec(*start), SHAPE, torch.device("cpu")).eval()
    assert torch.equal(net.backbone.fc.weight, theirs.backbone.fc.weight)
    assert net.mean.sum() == 0 and net.std.sum() == 3 and "normalisation" not in caplog.text


def test_parts_of_a_training_are_left_out_and_others_are_not(tmp_path, caplog):
    """A loss beside the network is no part of it; a denoiser before it is."""
    net = classifier(3).backbone
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    torch.save({**state, "criterion.weight": torch.ones(5)}, tmp_path / "loss.pt")
    mine = classifier(4)
    with caplog.at_level(logging.INFO, "sat"):
        load_weights(mine, str(tmp_path / "loss.pt"))
    assert "left out criterion.weight" in caplog.text
    torch.save({**state, "denoise.weight": torch.ones(5)}, tmp_path / "more.pt")
    with pytest.raises(ValueError, match="has no place for denoise.weight"):
        load_weights(mine, str(tmp_path / "more.pt"))


def test_two_networks_of_one_kind_are_told_apart(tmp_path):
    """A student beside its teacher: which is meant only the user knows."""
    state = {f"{name}.{key}": value for name, seed in (("student", 3), ("teacher", 4))
             for key, value in classifier(seed).backbone.state_dict().items()}  # fmt: skip
    torch.save(state, tmp_path / "both.pt")
    with pytest.raises(ValueError, match="two networks .*'student.' and 'teacher.'; save the one"):
        load_weights(classifier(5), str(tmp_path / "both.pt"))


def test_what_is_said_of_weights_names_the_key_that_was_written(theirs, tmp_path, caplog):
    torch.save(theirs.backbone.state_dict(), tmp_path / "w.pt")
    load_weights(classifier(), str(tmp_path / "w.pt"), key="evaluate")
    assert f"evaluate={tmp_path / 'w.pt'}: " in caplog.text
    assert "weights=" not in caplog.text
    load_weights(classifier(), str(tmp_path / "w.pt"))
    assert f"model.weights={tmp_path / 'w.pt'}: has no normalisation" in caplog.text
