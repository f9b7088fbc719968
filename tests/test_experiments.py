"""The experiments: every sweep composes on every kind of dataset, and says what it is to show."""

import itertools
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from sat.config import CONF, check, resolve
from sat.config.spec import BESIDE
from sat.report.spec import MEASURES

FILES = sorted((CONF / "experiment").glob("*.yaml"))
SWEEPS = [path.stem for path in FILES if path.stem not in ("imagenet_resnet50", "speedrun")]
RUNS = {  # on digits
    "activations": 8, "alpha": 8, "attack_steps": 6, "collapse": 16, "compound": 5, "curvature": 5,
    "depth": 6, "efficientnet": 3, "elu_vs_celu": 12, "equal_cost": 4, "gradient_quality": 4,
    "longer_training": 6, "methods": 8, "resolution": 6, "weight_decay": 12, "width": 6,
}  # fmt: skip
IMAGENET = {"activations": 8, "alpha": 12, "attack_steps": 6, "collapse": 16, "compound": 5,
            "curvature": 5, "depth": 6, "efficientnet": 10, "elu_vs_celu": 12, "equal_cost": 4,
            "gradient_quality": 4, "longer_training": 4, "methods": 8, "resolution": 6,
            "weight_decay": 12, "width": 6}  # fmt: skip

# Clean and robust, in percent, in the order of the files: of the paper's figures (PGD-200) and of
# its released checkpoints (PGD-50); equal_cost: Bai et al. 2021 and EasyRobust (AutoAttack).
RELU, SILU, CHECKPOINT = (68.8, 33.0), (69.73, 42.3), [(68.7, 33.1), (69.7, 41.9)]
PUBLISHED = {
    "activations": [RELU, (68.8, 38.7), (68.36, 40.0), (69.4, 40.3), (69.95, 41.65),
                    (69.95, 41.65), (69.2, 41.7), SILU],
    "alpha": [(68.36, 40.0), (68.8, 38.7), (69.4, 40.3)],
    "attack_steps": [RELU, SILU],
    "compound": [(69.7, 41.9), (74.0, 45.8), (73.3, 44.8), (71.6, 43.8), (78.0, 51.0)],
    "depth": [*CHECKPOINT, (72.9, 45.2), (74.0, 45.8)],
    "efficientnet": [*((clean, None) for clean in (65.2, 68.6, 70.3, 73.1, 75.9, 77.8, 79.2, 79.8,
                                                   80.7)), (82.2, 58.6)],
    "elu_vs_celu": [(69.2, 41.7)],
    "equal_cost": [(66.77, 26.41), (65.1, 34.9)],
    "gradient_quality": [RELU, (68.3, 34.5), (69.4, 35.8), (68.9, 36.9)],
    "longer_training": [RELU, SILU],
    "resolution": [*CHECKPOINT, (70.7, 43.6), (71.6, 43.8)],
    "width": [*CHECKPOINT, (71.1, 42.2), (73.3, 44.8)],
}  # fmt: skip


def swept(*overrides: str) -> list[list[str]]:
    """The overrides of each job that Hydra's sweeper makes of an experiment."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=True)
    params = OmegaConf.to_container(OmegaConf.masked_copy(cfg, ["sizes"]))
    given = {k: str(v) for k, v in cfg.hydra.sweeper.params.items()}
    assert params["sizes"]
    lists = [[f"{key}={value}" for value in given[key].split(",")] for key in given]
    return [list(job) for job in itertools.product(*lists)]


def spec(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        choices = dict(cfg.pop("hydra").runtime.choices)
    return check({**resolve(cfg), "choices": choices})


def report(name: str) -> dict:
    return yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())["report"]


def test_every_sweep_is_counted():
    assert SWEEPS == sorted(RUNS) == sorted(IMAGENET)


@pytest.mark.parametrize("name", SWEEPS)
def test_on_digits_every_job_is_a_run_of_its_own(name):
    jobs = swept(f"experiment={name}")
    assert len(jobs) == RUNS[name]
    assert len({spec(f"experiment={name}", *job).hash for job in jobs}) == RUNS[name]


@pytest.mark.parametrize("dataset", ["cifar10", "imagefolder", "imagenet"])
@pytest.mark.parametrize("name", SWEEPS)
def test_on_any_dataset_the_last_job_composes_and_no_two_are_one(name, dataset):
    """The last has the largest sizes; the first is that of the digits but for its sizes."""
    jobs = swept(f"experiment={name}", f"dataset={dataset}")
    if dataset == "imagenet":
        assert len(jobs) == IMAGENET[name]
    assert len(set(map(tuple, jobs))) == len(jobs) > 1
    assert spec(f"experiment={name}", f"dataset={dataset}", *jobs[-1]).attack.eps > 0


def test_all_datasets_have_the_same_kinds_of_sizes():
    files = [yaml.safe_load(path.read_text()) for path in (CONF / "sizes").glob("*.yaml")]
    own = [set(node) for node in files if "defaults" not in node]
    assert len(own) == 3 and all(found == own[0] for found in own), own
    assert all(set(node) <= own[0] | {"defaults"} for node in files)


def test_every_dataset_of_images_has_its_sizes():
    datasets = {path.stem for path in (CONF / "dataset").glob("*.yaml")}
    assert datasets - {path.stem for path in (CONF / "sizes").glob("*.yaml")} == {"npz", "timm"}


def test_on_imagenet_the_recipe_is_the_papers():
    run = spec("experiment=activations", "dataset=imagenet", "activation=silu", "evaluation=paper")
    attack, schedule = run.attack, run.schedule
    assert (attack.eps, attack.steps, attack.step_size) == (4, 1, 4)
    assert (attack.clean_start, attack.batch_norm, attack.start) == (0.2, "eval", "uniform")
    assert (schedule.epochs, schedule.batch_size, schedule.learning_rate) == (100, 256, 0.1)
    assert (schedule.decay, list(schedule.milestones)) == ("step", [0.3, 0.6, 0.9])
    assert (schedule.warmup_epochs, schedule.weight_decay) == (5, 1e-4)
    assert schedule.ema == 0
    assert run.config["dataset"]["image_size"] == 224 and run.model.depth == 50
    assert run.evaluation.attacks["pgd200"].steps == 200
    assert all(attack.clean_start == 0 for attack in run.evaluation.attacks.values())
    scaled = swept("experiment=compound", "dataset=imagenet")[-1]
    largest = spec("experiment=compound", "dataset=imagenet", *scaled)
    family = largest.model
    assert (family.depth, family.cardinality, family.base_width) == (152, 32, 8)
    assert largest.config["dataset"]["image_size"] == 380
    enhanced = swept("experiment=efficientnet", "dataset=imagenet")[-1]
    efficient = spec("experiment=efficientnet", "dataset=imagenet", *enhanced)
    assert (efficient.model.variant, efficient.schedule.ema) == ("l1", 0.9999)
    assert efficient.config["dataset"]["image_size"] == 600


def test_equal_cost_is_equal():
    for dataset in ("digits", "imagenet"):
        base = [f"dataset={dataset}", "experiment=equal_cost"]
        runs = [spec(*base, *job) for job in swept(*base)]
        assert len({run.schedule.epochs * (run.attack.steps + 1) for run in runs}) == 1


@pytest.mark.parametrize("name", SWEEPS)
def test_a_report_speaks_of_its_rows_and_its_file_opens_with_what_to_expect(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    head = text[: text.index("\n\n")]
    for word in (f"-m experiment={name} seed=0,1,2", "dataset=imagenet", "minutes", "Expect"):
        assert word in text.split("report:")[0], word
    assert head.startswith("# @package _global_\n# ")
    told = report(name)
    assert set(told) <= {"title", "question", "rows", "labels", "reference", "figures",
                         "published", "claims", "also"}  # fmt: skip
    rows = set(told["rows"])
    run = spec(f"experiment={name}", *swept(f"experiment={name}")[0]).config
    for key in (key for key in rows if "." in key):
        section, _, last = key.partition(".")
        assert last in run[section] or section == "activation", key
    assert set(told["reference"]) <= rows
    for claim in told["claims"]:
        assert set(claim["better"]) | set(claim["than"]) <= rows and claim["text"].endswith(".")
        assert claim["measure"] in MEASURES
    for figure in told["figures"]:
        assert figure["kind"] in ("scatter", "dots", "lines", "epochs")
    published = told.get("published", {"rows": ()})["rows"]
    for row in published:
        assert set(row) - {"clean", "robust"} <= rows
    numbers = [(row.get("clean"), row.get("robust")) for row in published]
    assert numbers == PUBLISHED.get(name, [])


def test_a_sweep_runs_and_each_run_knows_its_experiments(sat):
    fast = ["schedule.epochs=1", "dataset.limit=100", "validation.attack.steps=1"]
    answer = sat("-m", "experiment=gradient_quality", *fast)
    assert answer.code == 0, answer.err
    assert len(answer.runs) == 4
    for run in answer.runs:
        assert (run / "experiments.txt").read_text() == "gradient_quality\n"
        kept = yaml.safe_load((run / "config.yaml").read_text())
        assert not set(BESIDE) & set(kept)
        assert kept["choices"]["experiment"] == "gradient_quality"
    again = ["activation=surrogate_relu", "activation.inner=false,true", *fast]
    answer = sat("-m", "experiment=activations", *again)
    assert answer.code == 0 and len(answer.runs) == 4
    entered = [(run / "experiments.txt").read_text().split() for run in answer.runs]
    assert sorted(map(len, entered)) == [1, 1, 2, 2]
    answer = sat("-m", "experiment=activations", *again)
    assert max(len(Path(run / "experiments.txt").read_text().split()) for run in answer.runs) == 2


def test_without_m_an_experiment_says_that_it_is_a_sweep(sat):
    answer = sat("experiment=depth", "schedule.epochs=1", "activation=relu")
    assert answer.code == 0
    assert "experiment=depth: this is one run of it; -m runs them all" in answer.err


def test_a_dataset_without_sizes_is_refused_in_one_line(sat, tmp_path):
    answer = sat("-m", "experiment=depth", "dataset=npz", f"dataset.path={tmp_path}/x.npz")
    assert answer.code == 2 and not answer.runs
    (line,) = answer.err.strip().splitlines()
    assert "conf/sizes/<dataset>.yaml" in line and "digits" in line


def test_a_run_that_can_not_note_its_experiment_is_whole_all_the_same(tmp_path, caplog):
    from sat.rundir.record import enter

    (tmp_path / "experiments.txt").mkdir()
    enter(tmp_path, "depth")
    assert "experiments.txt: can't be written" in caplog.text
    enter(tmp_path, None)
    assert len(caplog.records) == 1


def test_a_list_of_experiments_is_refused(sat):
    listed = sat("experiment=[depth,width]")
    assert listed.code == 2 and "-m" not in listed.err
    assert "name one experiment a command line" in listed.err
    answer = sat("-m", "experiment=depth,width")
    assert answer.code == 2 and not answer.runs
    assert "experiment=depth: is one of several; name one experiment a command line" in answer.err


def test_a_misspelt_report_is_named(sat):
    answer = sat("+reprot.title=x")
    assert answer.code == 2 and "did you mean report?" in answer.err


def test_the_speed_run_waits_for_nothing_but_its_training():
    """One validation, at its end; a graph of compiled networks; ten restarts of PGD-50 at 8/255."""
    import torch

    from sat.acceleration.auto import choose
    from sat.training.plan import Plan

    run = spec("experiment=speedrun")
    choices = choose(run.schedule, torch.device("cuda"), 49_500, 555_000_000, False)
    assert choices["graph"] and choices["compile"]
    plan = Plan(run.schedule, 49_500, 0, choices, run.validation.every)
    assert [step for step in range(plan.steps + 1) if plan.validates(step)] == [plan.steps]
    (attack,) = run.evaluation.attacks.values()
    assert (attack.eps, attack.steps, run.evaluation.restarts) == (8, 50, 10)
    assert run.evaluation.checkpoints == ("last",)
