"""Pretrained networks: their weights from a file, their activations, stems, and how they train."""

import pytest
import timm
import torch
from conftest import made
from torch import nn

from sat.activations import Keep, ReLU, SiLU
from sat.activations.swap import prove_swap, swap_activations
from sat.models import ResNet, Timm
from sat.rundir import checkpoint


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A file of weights for timm's `test_vit`, of 1,000 classes and three channels."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save({"state_dict": timm.create_model("test_vit").state_dict()}, path)
    return path


def held(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_pretrained_network_begins_with_the_weights_of_a_file(pretrained):
    net = Timm("test_vit", pretrained=str(pretrained))(3, 10, 160)
    own, there = net.state_dict(), held(pretrained)
    assert {key for key in own if own[key].shape != there[key].shape} == {
        "head.weight",
        "head.bias",
    }
    assert all(torch.equal(own[key], there[key]) for key in own if not key.startswith("head."))


def test_a_convolutional_stem_begins_anew_and_the_rest_is_pretrained(pretrained):
    net = Timm("test_vit", pretrained=str(pretrained), stem="conv")(3, 10, 160)
    there = held(pretrained)
    kept = {key for key, value in net.state_dict().items() if key in there
            and torch.equal(value, there[key])}  # fmt: skip
    assert {*there} - kept == {"patch_embed.proj.weight", "patch_embed.proj.bias", "head.weight",
                               "head.bias"}  # fmt: skip


@pytest.mark.parametrize("name, widths, last", [
    ("convnext_tiny", [48, 96], False), ("vit_small_patch16_224", [48, 96, 192, 384], True),
])  # fmt: skip
def test_the_convolutional_stem_is_the_published_one(name, widths, last):
    with torch.device("meta"):
        plain = Timm(name, stem="large")(3, 10, 224)
        net = Timm(name, stem="conv")(3, 10, 224)
    stem = net.patch_embed.proj if last else net.stem
    for k, (before, width) in enumerate(zip([3, *widths], widths, strict=False)):
        conv, norm, activation = stem[3 * k : 3 * k + 3]
        assert (conv.in_channels, conv.out_channels) == (before, width)
        assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (2, 2), (1, 1))
        assert conv.bias is not None and isinstance(activation, nn.GELU)
        assert isinstance(norm, nn.LayerNorm) and norm.weight.shape == (width,)
    assert len(stem) == 3 * len(widths) + last
    assert not last or (stem[-1].kernel_size, stem[-1].out_channels) == ((1, 1), widths[-1])
    image = torch.zeros(1, 3, 224, 224, device="meta")
    assert net.forward_features(image).shape == plain.forward_features(image).shape
    rest = {key for key, _ in net.named_parameters() if not key.startswith(("stem", "patch_embed"))}
    assert rest <= {key for key, _ in plain.named_parameters()}


def test_a_stem_of_halvings_needs_patches_of_a_power_of_two():
    with torch.device("meta"), pytest.raises(ValueError, match="stem=conv: no patches of 14"):
        Timm("vit_small_patch14_dinov2", stem="conv")(3, 10, 224)


def test_kept_activations_are_the_networks_own():
    net = Timm("test_vit")(3, 10, 160).eval()
    before = {name: module for name, module in net.named_modules()}
    report = swap_activations(net, Keep)
    assert dict(net.named_modules()) == before and report.kept and report.swapped == 0
    assert [type(net.get_submodule(place)) for place in report.places] == [nn.GELU] * 6
    proved = prove_swap(net, torch.rand(1, 3, 160, 160), report)
    assert proved.called == 6 and any("Softmax" in gate or "softmax" in gate
                                      for gate in proved.gates) == bool(proved.gates)  # fmt: skip
    assert swap_activations(ResNet(10, 0.25)(1, 10, 8), SiLU).swapped == 9


def test_functional_activations_may_be_kept_but_not_missed():
    class Functional(nn.Module):
        def forward(self, x):
            return torch.relu(x)

    net = nn.Sequential(Functional())
    image = torch.rand(1, 1, 4, 4) - 0.5
    assert prove_swap(net, image, swap_activations(net, Keep)).kept
    with pytest.raises(ValueError, match="calls .*relu"):
        prove_swap(net, image, swap_activations(net, ReLU))


RUN = [
    "model=timm", "model.name=test_vit", "activation=keep", "dataset.image_size=32",
    "dataset.limit=96", "dataset.holdout=30", "schedule.batch_size=32", "schedule.epochs=2",
    "schedule.optimizer=adamw", "schedule.learning_rate=1e-3", "schedule.betas=[0.9,0.95]",
    "schedule.layer_decay=0.5", "schedule.precision=fp32", "model.drop_path=0.1",
    "validation.attack.steps=1", "evaluation.attacks.pgd20.steps=1", "evaluation.limit=20",
    "evaluation.masking_checks=0",
]  # fmt: skip


def test_a_pretrained_transformer_is_fine_tuned(pretrained, tmp_path):
    run = made(tmp_path, *RUN, f"model.pretrained={pretrained}")
    state = checkpoint.read(run / "checkpoints" / "last.pt")
    there, moved = held(pretrained), {}
    for key, value in state["model"].items():
        name = key.removeprefix("backbone.")
        if name in there and value.shape == there[name].shape:
            moved[name] = (value - there[name]).abs().max().item()
    first, final = moved["blocks.0.mlp.fc1.weight"], moved["blocks.5.mlp.fc1.weight"]
    assert 0 < first < 0.1 * final, "layers near the image learn at a small part of the rate"
    groups = state["optimizer"]["param_groups"]
    assert [tuple(group["betas"]) for group in groups] == [(0.9, 0.95)] * len(groups)
    assert {0.5**k for k in range(8)} == {group["lr_scale"] for group in groups}
    assert "keep" in run.name and "6 kept" in (run / "log.txt").read_text()
    assert state["model"]["mean"].flatten().tolist() != [0.5], "one channel: the set's own"


def test_pretrained_weights_count_by_what_is_in_the_file(pretrained, tmp_path):
    from test_experiments import spec

    def hash_of(path) -> str:
        return spec("model=timm", "model.name=test_vit", f"model.pretrained={path}").hash

    copied, other = tmp_path / "copied.pth", tmp_path / "other.pth"
    copied.write_bytes(pretrained.read_bytes())
    torch.save(timm.create_model("test_vit").state_dict(), other)
    assert hash_of(pretrained) == hash_of(copied) != hash_of(other)


class Anything:
    """What a pickle may run."""


@pytest.mark.parametrize("words, says", [
    (["model.pretrained=/nowhere.pth"], "model.pretrained=/nowhere.pth: No such file"),
    (["model.pretrained={objects}"], "model.pretrained="),
    (["model.pretrained={empty}"], "holds no weights"),
    (["model.name=vgg11", "model.drop_path=0.1"], "model.drop_path=0.1: vgg11 has none"),
    (["model.name=test_vit", "model.drop_path=1.0"], "model.drop_path=1.0: is a probability"),
    (["model.name=resnet18", "model.stem=conv"], "model.stem=conv: not known for ResNet"),
])  # fmt: skip
def test_what_can_not_be_fine_tuned_is_refused(words, says, sat, tmp_path):
    files = {"objects": tmp_path / "objects.pth", "empty": tmp_path / "empty.pth"}
    torch.save(Anything(), files["objects"])
    torch.save({}, files["empty"])
    words = [word.format(**files) for word in words]
    answer = sat("model=timm", "dataset.image_size=32", *words, tiny=False)
    assert answer.code == 2 and answer.err.count("\n") == 1 and not answer.runs, answer.err
    assert says in answer.err
