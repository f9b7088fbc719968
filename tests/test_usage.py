"""`--help` and `--version`."""

import pytest
import yaml

import sat
from sat import config
from sat.identity import SECTIONS
from sat.loggers import usage

GROUPS = [g for g in usage.groups([config.CONF]) if g.split("/")[0] in (*SECTIONS, "logger")]


def keys_of(node, path=""):
    """The dotted keys of plain values."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from keys_of(value, f"{path}{key}.")
        elif key not in ("_target_", "defaults"):
            yield f"{path}{key}"


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_of_every_option_says_what_it_means(group):
    for option in usage.groups([config.CONF])[group]:
        said = usage.meanings([config.CONF], group, option)
        assert said[""], f"{group}/{option}.yaml does not begin with what it is"
        written = yaml.safe_load((config.CONF / group / f"{option}.yaml").read_text()) or {}
        bare = [key for key in keys_of(written) if not said.get(key)]
        assert not bare, f"{group}/{option}.yaml: no comment beside {bare}"


def test_help_shows_the_run_with_meanings_and_units(sat, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ["attack.steps=2", "objective=trades", "logger=[tensorboard,wandb]",
             "+attack@evaluation.attacks.mine=square"]  # fmt: skip
    told = sat(*words, "--help", tiny=False)
    assert told.code == 0
    lines = {" ".join(line.split()) for line in told.out.splitlines()}
    assert not [line for line in lines if len(line) > 80 and "record.root" not in line]
    assert {
        "attack.eps=${dataset.eps} in 1/255", "attack.steps=2 gradients of an image",
        "objective.beta=6.0 the paper's 1/lambda", "device=auto cpu, cuda, cuda:1, ...",
        "evaluation.attacks.mine.queries=100", "forwards of an image", "seed=0",
        "logger.wandb.tags=[] words", "validation.attack.steps=10",
    } <= lines  # fmt: skip
    assert "schedule.milestones=[0.3,0.6,0.9]" in lines  # too long for a meaning beside it
    assert "validation.attack.step=auto" not in lines, "is as the attack's, told above"
    groups = {line.split(":")[0] for line in lines}
    assert "recipe" in groups and not {"experiment/alpha", "sampler"} & groups, "are no choices"


def test_help_knows_the_options_of_a_folder_and_refuses_what_a_run_refuses(sat, tmp_path):
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack/mine.yaml").write_text("# My own\n_target_: a.B\nsize: 3 # in pixels\n")
    for words in (["--config-dir", f"{tmp_path}"], [f"--config-dir={tmp_path}"]):
        told = sat(*words, "attack=mine", "-h", tiny=False)
        assert told.code == 0
        assert "  attack.size=3                   in pixels" in told.out.splitlines()
        (line,) = (line for line in told.out.splitlines() if line.startswith("  attack: "))
        assert "mine" in line.split(": ")[1].split(", ")
    told = sat("attack=pdg", "--help", tiny=False)
    assert told.code == 2 and told.err.startswith("! attack=pdg: ")


def test_the_version_is_this_programs(capsys):
    from sat.run import answered

    assert answered(["--version"]) and capsys.readouterr().out == f"sat {sat.__version__}\n"
