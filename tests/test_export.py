"""What an export holds, that timm builds the run's model from it, and what is refused."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from safetensors import safe_open
from test_result import full as full_result
from torch import nn

import sat as package
from sat.config import CONF, check, resolve
from sat.models.export import export
from sat.models.weights import build_model, load_weights
from sat.rundir import checkpoint
from sat.rundir.record import Run

SHAPE = {"channels": 3, "classes": 5, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
TINY = ["model.width=0.0625"]
SMALL = ["model=timm", "model.name=test_resnet"]


@pytest.fixture
def trained(tmp_path):
    """`trained("model=timm")` makes a run directory as training leaves it, without the training."""

    def make(*overrides, size=32, name="run"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            spec = check(resolve(compose("config", list(overrides))))
        shape = SHAPE | {"image_size": size}
        model = build_model(spec, shape, torch.device("cpu"))
        for value in model.backbone.state_dict().values():
            if value.is_floating_point() and value.ndim < 2:  # scales of 0 would hide a branch
                value.add_(torch.rand(value.shape) * (0.3 if value.ndim else 0.01))
        state = {"model": model.state_dict(), "facts": {"shape": shape, "hash": spec.hash}}
        average = {key: value * 1.1 for key, value in state["model"].items()}
        torch.manual_seed(1)
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(spec.yaml())
        checkpoint.save(tmp_path / name / "checkpoints/best.pt", state)
        last = tmp_path / name / "checkpoints/last.pt"
        checkpoint.save(last, {**state, "average": average})
        return tmp_path / name

    return make


def same_logits(run, folder, size=32, which="best"):
    """What a stranger computes from the folder, and what `sat.load` gives."""
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(6, 3, size, size)
    mean, std = (torch.tensor(net.pretrained_cfg[k]).view(-1, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        ours, theirs = package.load(run, which)(images), net((images - mean) / std)
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5) and ours.std() > 1e-3


def described(folder):
    return json.loads((folder / "config.json").read_text())


BY_TIMM = [
    ([*SMALL, "activation=gelu", "model.stem=large"], "test_resnet", "gelu"),
    (["model=timm", "model.name=test_vit", "activation=silu"], "test_vit", "silu"),
    *(
        ([*SMALL, f"activation={name}", "model.stem=large"], "test_resnet", name)
        for name in ("relu", "leaky_relu", "prelu", "elu", "celu", "mish")
    ),
    (
        [*SMALL, "activation=gelu", "activation.approximate=tanh", "model.stem=large"],
        "test_resnet",
        "gelu_tanh",
    ),
    ([*SMALL, "activation=surrogate_relu", "model.stem=large"], "test_resnet", "relu"),
]


@pytest.mark.parametrize(("overrides", "architecture", "activation"), BY_TIMM)
def test_timm_alone_builds_what_it_can(overrides, architecture, activation, trained, tmp_path):
    run = trained(*overrides)
    folder = export(run, tmp_path / "to")
    told = described(folder)
    assert (told["architecture"], told["model_args"]) == (architecture, {"act_layer": activation})
    assert same_logits(run, folder)


BY_SAT = [
    (TINY, 8),
    ([*TINY, "activation=smoothrelu", "model.depth=18"], 8),
    (["model=wide_resnet", "model.depth=10", "model.width=1", "activation=pssilu"], 8),
    ([*SMALL, "activation=silu"], 32),  # its stem is made small
    ([*SMALL, "activation=elu", "activation.alpha=0.5", "model.stem=large"], 32),
    (["model=timm", "model.name=test_efficientnet", "activation=softplus"], 32),
]


@pytest.mark.parametrize(("overrides", "size"), BY_SAT)
def test_all_else_is_built_by_sat(overrides, size, trained, tmp_path):
    run = trained(*overrides, size=size)
    folder = export(run, tmp_path / "to")
    assert described(folder)["architecture"] == "sat"
    assert same_logits(run, folder, size)


def test_a_stranger_needs_sat_for_its_own_architecture_alone(trained, tmp_path):
    """In a process of its own: what this one has imported proves nothing."""
    plain = export(trained(*SMALL, "model.stem=large", name="plain"), tmp_path / "to plain")
    own = export(trained(*TINY, size=8, name="own"), tmp_path / "to own")
    code = (
        "import sys, timm\n"
        f"timm.create_model('local-dir:{plain}', pretrained=True)\n"
        "assert not any(name.split('.')[0] == 'sat' for name in sys.modules)\n"
        "import sat.models.export\n"
        f"timm.create_model('local-dir:{own}', pretrained=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    script = "import sat, sys; assert not {'timm', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_the_file_alone_is_a_checkpoint_of_timm(trained, tmp_path):
    run = trained(*SMALL, "activation=mish", "model.stem=large")
    file = export(run, tmp_path / "to") / "model.safetensors"
    net = timm.create_model("test_resnet", num_classes=5, act_layer="mish", checkpoint_path=file)
    mine = package.load(run)
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(net.eval()((images - mine.mean) / mine.std), mine(images), rtol=1e-5)


def test_another_head_and_other_channels_go_on_from_an_export(trained, tmp_path):
    folder = export(trained(*TINY, size=8), tmp_path / "to")
    given = timm.create_model(f"local-dir:{folder}", pretrained=True)
    net = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7, in_chans=1)
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 7)
    assert torch.equal(net.layer4[0].conv1.weight, given.layer4[0].conv1.weight)


def test_an_export_is_weights_to_start_from(trained, tmp_path, caplog):
    """With its normalisation, which the file keeps beside the backbone."""
    run = trained(*TINY, size=8)
    file = export(run, tmp_path / "to") / "model.safetensors"
    mine, wanted = package.load(run, "last"), package.load(run)
    mine.mean.zero_()
    load_weights(mine, str(file))
    assert "no normalisation" not in caplog.text
    for key, value in wanted.state_dict().items():
        assert torch.equal(mine.state_dict()[key], value), key


def test_the_file_says_what_it_is(trained, tmp_path):
    run = trained(*TINY, size=8)
    result = full_result()
    best = replace(result.best, clean=replace(result.best.clean, accuracy=0.9))
    Run(run).write_result(replace(result, name="digits-x-0123", best=best))
    with safe_open(export(run, tmp_path / "to") / "model.safetensors", "pt") as file:
        said = file.metadata()
    assert (said["format"], said["run"], said["checkpoint"]) == ("pt", "digits-x-0123", "best")
    assert len(said["hash"]) == 8
    assert json.loads(said["accuracies"]) == {"clean": 0.9, "strong": 0.5, "worst_case": 0.5}
    assert json.loads(said["recipe"])["activation"]["_target_"].endswith(".SiLU")


def test_averages_are_exported_and_an_export_is_written_again(trained, tmp_path):
    run = trained(*TINY, size=8)
    folder = export(run, tmp_path / "to", "last")
    assert same_logits(run, folder, 8, "last")
    assert export(run, folder, "last") == folder
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json"}


def test_nothing_of_others_is_overwritten(trained, tmp_path):
    run, other = trained(*TINY, size=8), trained(*TINY, "seed=1", size=8, name="other")
    folder = export(run, tmp_path / "to")
    kept = (folder / "model.safetensors").read_bytes()
    for refused in ((other, folder), (run, folder, "last")):
        with pytest.raises(ValueError, match="holds another model") as caught:
            export(*refused)
        assert "\n" not in str(caught.value)
    assert (folder / "model.safetensors").read_bytes() == kept
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds another model"):
        export(run, tmp_path / "theirs")


def test_what_can_not_be_exported_is_one_line(trained, tmp_path, monkeypatch):
    run = trained(*TINY, size=8)
    (tmp_path / "file").write_text("")
    for place, which, says in (
        (tmp_path, "best", "no run with a 'best' checkpoint"),
        (run, "first", "no run with a 'first' checkpoint"),
        (run, "best", "can't be written"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            export(place, tmp_path / "file", which)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr("sat.models.export.swap_activations", lambda net, activation: None)
    with pytest.raises(ValueError, match="gives other logits"):  # the proof sees ReLU
        export(run, tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


def no_model(run) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["model"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def no_run(run) -> None:
    (run / "config.yaml").write_text("a: 1\n")


def lacks(*keys):
    def change(run) -> None:
        state = within = checkpoint.read(run / "checkpoints/best.pt")
        for key in keys[:-1]:
            within = within[key]
        del within[keys[-1]]
        checkpoint.save(run / "checkpoints/best.pt", state)

    return change


def pickled(run) -> None:
    (run / "checkpoints/best.pt").write_bytes(pickle.dumps({"model": print}, protocol=4))


@pytest.mark.parametrize(
    "change, says",
    [(no_model, r"config.yaml: is damaged; model is missing"),
     (no_run, r"config.yaml: is damaged; \w+ is missing"),
     (lacks("facts"), r"best.pt: is damaged, .*\(facts is missing\)"),
     (lacks("facts", "shape"), r"\(facts.shape is missing\)"),
     (lacks("facts", "shape", "mean"), r"\(facts.shape.mean is missing\)"),
     (lacks("model"), r"\(model is missing\)"),
     (lacks("model", "mean"), r"best.pt: holds the weights of another network"),
     (pickled, r"best.pt: .*\(a plain pickle\)\)$")],
)  # fmt: skip
def test_a_run_that_is_damaged_is_one_line(change, says, trained, tmp_path):
    """Loaded or exported, in Python, where no command line looks before."""
    run = trained()
    change(run)
    for take in (package.load, lambda run: export(run, tmp_path / "out")):
        with pytest.raises(ValueError, match=says) as refusal:
            take(run)
        assert "\n" not in str(refusal.value)


def test_a_recipe_reaches_no_class_of_others(trained, tmp_path):
    folder = export(trained(*TINY, size=8), tmp_path / "to")
    told = described(folder)
    told["model_args"]["recipe"]["activation"] = {"_target_": "subprocess.Popen", "args": "true"}
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="subprocess.Popen: is outside of this program"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_a_run_from_pretrained_weights_keeps_their_stem(trained):
    """On small images stem=auto is large for pretrained weights, which a loaded run has no more."""
    run = trained(*SMALL, "model.stem=large")
    images = torch.rand(2, 3, 32, 32)
    before = package.load(run)(images)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"] |= {"pretrained": True, "stem": "auto"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert torch.equal(package.load(run)(images), before)


def test_the_script_on_a_real_run(ran, tmp_path, capfd, monkeypatch):
    run = ran.run
    spec = importlib.util.spec_from_file_location("export_script", ROOT / "scripts/export.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["export", str(run)])
    assert script.main() == 0
    said = capfd.readouterr().out
    lines = said.split("\n\n", 1)[1]
    images = torch.rand(3, 1, 8, 8)
    given = {"images": images}
    exec(lines, given)  # what it prints is what works
    assert torch.allclose(given["logits"], package.load(run)(images), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path), "--to", str(tmp_path / "x")])
    assert script.main() == 2 and not (tmp_path / "x").exists()
    assert "no run with a 'best' checkpoint" in capfd.readouterr().err


def test_help_and_a_wrong_folder_wait_for_no_torch(tmp_path):
    code = """if True:
        import sys
        sys.modules |= dict.fromkeys(("torch", "timm"))  # not to be had
        from sat.models.command import main
        assert main(["nowhere"]) == 2
        main(["--help"])
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip
    assert done.returncode == 0 and "--card" in done.stdout, done.stderr
    assert done.stderr == "! nowhere: no such folder; name the directory of a run\n"


# RobustBench


def test_a_loaded_run_keeps_the_contract_of_robustbench(trained):
    """`benchmark(model, ...)` takes a module in eval mode, from [0, 1] to logits, with gradients
    of its input, for any batch size; it moves it to a device and leaves nothing behind."""
    model = package.load(trained(*TINY, "activation=smoothrelu"))
    assert isinstance(model, nn.Module) and not model.training
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model = model.to("cpu")
    images = torch.rand(7, 3, 32, 32)
    with torch.no_grad():
        whole = model(images)
        assert whole.shape == (7, 5) and whole.dtype == torch.float32
        parts = torch.cat([model(part) for part in images.split([1, 2, 4])])
        assert torch.allclose(whole, parts, atol=1e-5)
        assert torch.equal(whole, model(images))  # AutoAttack refuses to judge what is random
        assert not torch.allclose(whole.sum(1), torch.ones(7), atol=0.1)  # no probabilities
    model.requires_grad_(False)  # AutoAttack else leaves gradients on every parameter
    images.requires_grad_()
    model(images).logsumexp(1).sum().backward()
    assert images.grad.shape == images.shape and images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not list(model._forward_hooks) and all(m.training is False for m in model.modules())
    model.load_state_dict(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
