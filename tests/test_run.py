"""The whole program on a tiny run: what it writes, what it refuses, and that it comes back."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, start
from messages import FINISHED, RESUMED

import sat as package
from sat.data import Digits


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    times = ("seconds", "train/images_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def same_outcome(a: Path, b: Path) -> None:
    """Equal to the bit: weights, averages, metrics, results and flags; times apart."""
    for name in ("last", "best"):
        one, two = (torch.load(r / f"checkpoints/{name}.pt", weights_only=True) for r in (a, b))
        for part in ("model", "average"):
            if one.get(part):
                for key, value in one[part].items():
                    assert torch.equal(value, two[part][key]), (name, part, key)
    assert without_times(metrics(a)) == without_times(metrics(b))
    for flags in sorted((a / "flags").glob("*.npz")):
        with np.load(flags) as one, np.load(b / "flags" / flags.name) as two:
            for key in ("clean", "robust", "fell", "passed", "indices", "settings"):
                assert np.array_equal(one[key], two[key]), (flags.name, key)
    one, two = (json.loads((r / "result.json").read_text()) for r in (a, b))
    for result in (one, two):
        for which in ("best", "last"):
            for entry in result[which]["robust"].values():
                entry.pop("seconds", None)
                entry.pop("environment", None)
            for asked in result[which].get("masking_checks", {}).values():
                asked.pop("seconds")
        for key in ("wall_seconds", "images_per_second", "environment", "overrides", "lengths"):
            result.pop(key)
    assert one == two


def test_a_run_writes_all_it_promises(sat):
    done = sat()
    assert done.code == 0, done.err
    run, result = done.run, done.result
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert {"config.yaml", "metrics.jsonl", "log.txt", "lock", "result.json",
            "checkpoints/last.pt", "checkpoints/best.pt", "flags/best-pgd20.npz",
            "flags/last-pgd20.npz"} <= names  # fmt: skip
    assert not any(name.endswith(".tmp") or "previous" in name for name in names)
    assert result["status"] == "finished" and result["name"] == run.name
    assert result["hash"] in run.name and result["seed"] == 0
    assert result["activation"]["swapped"] == 9 and result["activation"]["gates"] == []
    for which in ("best", "last"):
        part = result[which]
        robust = part["robust"]["pgd20"]
        assert 0 <= robust["accuracy"] <= part["clean"]["accuracy"] <= 1
        assert robust["ci95"][0] <= robust["accuracy"] <= robust["ci95"][1]
        assert (robust["eps"], robust["steps"], robust["images"]) == (38, 3, 50)
        with np.load(run / f"flags/{which}-pgd20.npz", allow_pickle=False) as flags:
            assert flags["robust"].mean() == robust["accuracy"]
            assert flags["clean"].mean() == part["clean"]["accuracy"]
            assert json.loads(str(flags["settings"]))["attack"] == "PGD"
    rows = metrics(run)
    assert all({"step", "epoch", "images"} <= row.keys() for row in rows)
    tags = {key for row in rows for key in row if "/" in key}
    assert {
        "train/loss",
        "train/adversarial_accuracy",
        "train/learning_rate",
        "val/clean",
        "train/images_per_second",
        "val/robust",
        "test/clean",
        "test/robust/pgd20",
    } <= tags
    assert [r["epoch"] for r in rows if "val/clean" in r] == pytest.approx([1, 2, 3], abs=0.25)
    for words in ("best", "last", "clean", "pgd20", str(run), "tensorboard --logdir",
                  "9 swapped, none left"):  # fmt: skip
        assert words in done.out, words


def test_the_dashboard_holds_scalars_config_images_and_hyperparameters(ran):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(ran.run), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    for tag in ("train/loss", "val/clean", "val/robust", "verdict/best/pgd20"):
        assert tag in tags["scalars"]
    rows = [row for row in metrics(ran.run) if "train/loss" in row]
    points = events.Scalars("train/loss")
    assert [p.step for p in points] == [row["images"] for row in rows]
    assert [p.value for p in points] == pytest.approx([row["train/loss"] for row in rows])
    assert tags["images"] == ["views/held-out", "views/test"]
    texts = {"config/text_summary", "run/text_summary"}
    assert texts <= set(tags["tensors"])
    assert {"_hparams_/session_start_info",
            "_hparams_/session_end_info"} <= events.summary_metadata.keys()  # fmt: skip


def test_a_finished_run_returns_at_once(sat, ran):
    before = {p: p.stat().st_mtime_ns for p in ran.run.rglob("*") if p.is_file()}
    again = sat()
    assert again.code == 0 and FINISHED in again.out and "pgd20" in again.out
    assert {p: p.stat().st_mtime_ns for p in ran.run.rglob("*") if p.is_file()} == before


def test_another_evaluation_trains_nothing_and_adds_its_results(sat, ran):
    first = ran.result
    weights = ran.run / "checkpoints/best.pt"
    before = weights.read_bytes()
    added = sat("+attack@evaluation.attacks.pgd4=pgd", "evaluation.attacks.pgd4.steps=4")
    assert added.code == 0, added.err
    assert weights.read_bytes() == before and "training" not in added.out
    for which in ("best", "last"):
        assert added.result[which]["robust"]["pgd20"] == first[which]["robust"]["pgd20"]
        assert added.result[which]["robust"]["pgd4"]["steps"] == 4
    other = sat("evaluation.attacks.pgd20.steps=4")
    assert other.code == 2 and "pgd20" in other.err and "another name" in other.err
    assert other.result == added.result


def test_fresh_moves_the_old_run_aside(sat, ran):
    before = ran.result
    old = (ran.run / "log.txt").read_text()
    again = sat("record.fresh=true")
    assert again.code == 0
    (aside,) = (again.root / ".replaced").iterdir()
    assert (aside / "log.txt").read_text() == old
    assert again.result["best"]["clean"] == before["best"]["clean"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["attack.steps=2", "model=resnet_cifar", "model.depth=8", "schedule.ema=0.9"],
        ["attack=fgsm", "schedule.accumulate=3", "schedule.clip=1", "activation=smoothrelu"],
        ["attack=none", "schedule.precision=bf16", "schedule.channels_last=true"],
        ["attack.norm=l2", "attack.eps=100", "schedule.optimizer=adamw",
         "schedule.learning_rate=0.01", "schedule.decay=one_cycle", "schedule.warmup_epochs=0"],
        ["attack.batch_norm=train", "objective.label_smoothing=0.1", "evaluation.restarts=2"],
        ["schedule.precision=fp16", "schedule.epochs=0.5"],
    ],
    ids=lambda a: a[0],
)  # fmt: skip
def test_variants_run_to_their_end(sat, arguments):
    small = ["model.width=0.5"] if "model=resnet_cifar" in arguments else []
    done = sat(*arguments, *small)
    assert done.code == 0, done.err
    assert done.result["status"] == "finished"


def test_accumulated_parts_see_the_noise_of_the_whole_batch(tmp_path):
    """Without batch norm, parts of a batch give the update of the whole."""
    from torch import nn

    from sat.attacks import PGD
    from sat.objectives import Adversarial, Method
    from sat.training.plan import Plan
    from sat.training.schedule import Schedule
    from sat.training.state import TrainState
    from sat.training.step import update

    def after(parts: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.SiLU(), nn.Linear(8, 3)).double()
        choices = {"precision": "fp32", "channels_last": False, "compile": False}
        plan = Plan(Schedule(batch_size=10, accumulate=parts), 10, 0, choices)
        trainer = TrainState(model, Method(PGD(38, 2), Adversarial()), plan)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            x = torch.rand(10, 1, 4, 4, generator=generator, dtype=torch.float64)
            update(trainer, x, torch.arange(10) % 3)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    for parts in (2, 3, 5):
        assert (after(parts) - after(1)).abs().max() < 1e-12


@pytest.mark.skipif(shutil.which("g++") is None, reason="compilation on a CPU needs g++")
@pytest.mark.parametrize("activation", ["silu", "surrogate"])
def test_a_compiled_update_is_the_plain_one(activation):
    """Attack and update are two graphs of one model: frozen in eval mode, and not frozen; with the
    gradient of another activation in one of them."""
    from torch import nn

    from sat.activations.surrogate import SurrogateReLU
    from sat.attacks import PGD
    from sat.objectives import Adversarial, Method
    from sat.training.plan import Plan
    from sat.training.schedule import Schedule
    from sat.training.state import TrainState
    from sat.training.step import update

    def after(compiled: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4),
            nn.SiLU() if activation == "silu" else SurrogateReLU("softplus", outer=False),
            nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip
        choices = {"precision": "fp32", "channels_last": False, "compile": compiled}
        plan = Plan(Schedule(), 1000, 0, choices)
        trainer = TrainState(model, Method(PGD(38, 2), Adversarial()), plan)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            update(trainer, torch.rand(8, 1, 4, 4, generator=generator), torch.arange(8) % 3)
        return torch.cat([value.flatten() for value in model.state_dict().values()])

    assert (after(True) - after(False)).abs().max() < 1e-5


def test_it_learns(sat):
    """A few images are overfitted, adversarially, in seconds."""
    done = sat("dataset.limit=60", "dataset.holdout=10", "model.width=0.25", "schedule.epochs=60",
               "schedule.batch_size=25", "dataset.crop=0", "validation.every=60",
               "schedule.learning_rate=0.8", "dataset.eps=8")  # fmt: skip
    rows = [row for row in metrics(done.run) if "train/adversarial_accuracy" in row]
    accuracy = [row["train/adversarial_accuracy"] for row in rows]
    assert accuracy[-1] > 0.95 > 0.5 > accuracy[0]


def test_load_gives_the_model_that_was_measured(sat):
    from sklearn.datasets import load_digits

    done = sat("activation=smoothrelu", "evaluation.limit=null")
    model = package.load(done.run)
    assert not model.training
    device = torch.device("cpu")
    from sat.data import Digits, evaluation_batches

    data = Digits()(device, 0)
    batches = evaluation_batches(torch.arange(len(data.test)), 512)
    right = [(model(x).argmax(1) == y).float() for x, y in data.test.stream(batches)]
    assert torch.cat(right).mean().item() == pytest.approx(done.result["best"]["clean"]["accuracy"])
    assert len(load_digits().target) == 1797
    with pytest.raises(ValueError, match="no run"):
        package.load(done.root)


def test_training_from_given_weights(sat, ran, tmp_path):
    for place in (ran.run, ran.run / "checkpoints/last.pt"):
        second = sat(f"model.weights={place}", "schedule.epochs=0.2", root=tmp_path / place.name)
        assert second.code == 0, second.err
    other = sat(f"model.weights={ran.run}", "activation=smoothrelu", root=tmp_path / "other")
    assert other.code == 2 and "model.weights" in other.err and "lacks" in other.err
    (tmp_path / "bad.pt").write_text("no checkpoint")
    bad = sat(f"model.weights={tmp_path / 'bad.pt'}", root=tmp_path / "other")
    assert bad.code == 2 and "bad.pt" in bad.err and bad.runs == []


# bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["attack.eps=0.03"], "attack.eps=0.03"),
        (["activation=gleu"], "activation=gleu"),
        (["+schedule.epohcs=3"], "schedule.epohcs"),
        (["schedule.epohcs=3"], "schedule.epohcs"),
        (["device=cuda:99"], "device=cuda:99"),
        (["device=tpu"], "device=tpu"),
        (["dataset=imagefolder", "dataset.root=/nowhere"], "dataset.root=/nowhere"),
        (["model=timm", "model.name=resnett18"], "model.name=resnett18"),
        (["dataset.holdout=100000"], "dataset.holdout=100000"),
        (["evaluation.attacks.pgd20=null", "+evaluation.attacks.x=3"], "evaluation.attacks.x=3"),
    ],
    ids=lambda a: a[0] if isinstance(a, list) else None,
)  # fmt: skip
def test_bad_input_is_refused_and_changes_nothing(sat, arguments, says):
    given = TINY if "=" not in arguments[0] or arguments[0].split("=")[0] not in (
        "dataset", "model") else []  # fmt: skip
    done = sat(*given, *arguments, tiny=False)
    assert done.code == 2, done.out + done.err
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert len(lines) == 1 and says in lines[0], done.err
    assert "Traceback" not in done.out + done.err
    assert not done.root.exists() or list(done.root.iterdir()) == []


def test_a_refusal_stays_readable_whatever_was_given(sat):
    done = sat(f"model.mean=[{','.join(['0.5'] * 2000)}]")
    assert done.code == 2 and len(done.err) < 1000 and done.err.count("\n") == 1
    assert "model.mean=" in done.err


def test_a_root_that_is_no_directory_is_refused(sat, tmp_path):
    (tmp_path / "file").write_text("x")
    done = sat(root=tmp_path / "file" / "outputs")
    assert done.code == 2 and "record.root" in done.err and "Traceback" not in done.err


def test_a_checkpoint_of_another_config_is_refused(sat, ran, tmp_path):
    second = sat("seed=1", root=tmp_path / "b")
    (second.run / "result.json").unlink()
    state = (ran.run / "checkpoints/last.pt").read_bytes()
    (second.run / "checkpoints/last.pt").write_bytes(state)
    refused = sat("seed=1", root=tmp_path / "b")
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert (second.run / "checkpoints/last.pt").read_bytes() == state


def test_a_damaged_checkpoint_falls_back_to_the_one_before(sat, ran):
    (ran.run / "result.json").unlink()
    last = ran.run / "checkpoints/last.pt"
    (ran.run / "checkpoints/previous.pt").write_bytes(last.read_bytes())
    last.write_bytes(last.read_bytes()[:1000])
    again = sat("record.checkpoint_minutes=0")
    assert again.code == 0 and "previous.pt" in again.err
    last.write_bytes(b"x")
    (ran.run / "result.json").unlink()
    lost = sat()
    assert lost.code == 2 and "damaged" in lost.err and "record.fresh=true" in lost.err


def test_a_damaged_result_is_named(sat, ran):
    (ran.run / "result.json").write_text("{")
    again = sat()
    assert again.code == 2 and "result.json" in again.err and "record.fresh" in again.err


def test_a_loss_that_is_not_finite_is_a_fault(sat):
    done = sat("schedule.learning_rate=1e30", "schedule.warmup_epochs=0")
    assert done.code == 1 and "not finite" in done.err and "Traceback" not in done.err
    assert done.result["status"] == "failed"
    again = sat("schedule.learning_rate=1e30", "schedule.warmup_epochs=0")
    assert again.code == 1 and "failed before" in again.err


def photographs(folder: Path, size: int = 16) -> Path:
    """Two classes of noisy JPEGs, one dark and one light."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 10)):
        for label, level in (("dark", 60), ("light", 200)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = (level + rng.normal(0, 20, (size, size, 3))).clip(0, 255)
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / split / label / f"{i:02}.jpg")
    return folder


FOLDER = [
    "dataset=imagefolder", "dataset.image_size=16", "dataset.holdout=8", "dataset.workers=1",
    "model.depth=10", "model.width=0.0625", "schedule.epochs=2", "schedule.batch_size=16",
    "schedule.warmup_epochs=0", "validation.attack.steps=2", "evaluation.attacks.pgd20.steps=2",
    "schedule.precision=fp32", "evaluation.masking_checks=0",
]  # fmt: skip


def test_an_unreadable_image_is_a_fault_that_can_be_mended(sat, tmp_path):
    root = photographs(tmp_path / "photos")
    whole = sat(*FOLDER, f"dataset.root={root}", root=tmp_path / "whole", tiny=False)
    assert whole.code == 0, whole.err
    victim = root / "train/light/27.jpg"
    content = victim.read_bytes()
    victim.write_bytes(content[:100])
    arguments = [*FOLDER, f"dataset.root={root}"]
    torn = sat(*arguments, tiny=False)
    assert torn.code == 1 and "Traceback" not in torn.err
    assert "27.jpg" in torn.err and "dataset.skip_unreadable=true" in torn.err
    skipped = sat(*arguments, "dataset.skip_unreadable=true", tiny=False)
    assert skipped.code == 0 and "left out" in skipped.err
    assert skipped.run == torn.run  # resumed, not begun anew
    victim.write_bytes(content)
    torn.run.rename(tmp_path / "skipped")
    victim.write_bytes(content[:100])
    assert sat(*arguments, tiny=False).code == 1
    victim.write_bytes(content)
    mended = sat(*arguments, tiny=False)
    assert mended.code == 0  # other images: another run
    (run,) = (run for run in mended.runs if (run / "result.json").exists())
    same_outcome(run, whole.run)


def test_other_images_under_the_same_name_are_another_run(sat, tmp_path):
    root = photographs(tmp_path / "a/photos")
    first = sat(*FOLDER, f"dataset.root={root}", tiny=False)
    assert first.code == 0, first.err
    other = photographs(tmp_path / "b/photos")
    same = sat(*FOLDER, f"dataset.root={other}", tiny=False)
    assert same.code == 0 and same.run == first.run
    (other / "train/light/00.jpg").unlink()
    changed = sat(*FOLDER, f"dataset.root={other}", tiny=False)
    assert changed.code == 0 and len(changed.runs) == 2, changed.err


# stopped and killed ----------------------------------------------------------------------------

LONG = ["schedule.epochs=24", "schedule.ema=0.99", "validation.every=4"]


def rows_of(folder: Path) -> int:
    found = list(folder.glob("outputs/*/metrics.jsonl"))
    return len(found[0].read_text().splitlines()) if found else 0


def test_stopped_and_resumed_equals_never_stopped(sat, tmp_path):
    """Real processes, one after the other stopped in training; the rest runs in this one."""
    arguments = [*LONG, "record.checkpoint_minutes=0"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        before = rows_of(tmp_path)
        process = start(tmp_path, *arguments)
        while rows_of(tmp_path) < before + 3 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, out + err
        assert "Traceback" not in err and (RESUMED in out) == (before > 0)
        assert ("the same command goes on from here" in err) == (number != signal.SIGKILL)
    root = tmp_path / "outputs"
    (run,) = (path.parent for path in root.glob("*/config.yaml"))
    assert not (run / "result.json").exists()
    resumed = sat(*arguments, root=root)
    assert resumed.code == 0 and RESUMED in resumed.out
    whole = sat(*arguments, root=tmp_path / "whole")
    same_outcome(resumed.run, whole.run)
    steps = [row["step"] for row in metrics(run) if "train/loss" in row]
    assert steps == sorted(set(steps))


def test_killed_in_evaluation_keeps_what_was_measured(sat, tmp_path, monkeypatch):
    from sat.evaluation import evaluator

    measured, measure = [], evaluator.measure_together
    monkeypatch.setattr(evaluator, "measure_together", lambda *a: measured.append(1) or measure(*a))
    long = ["validation.every=1.5", "schedule.learning_rate=0.1"]
    done = sat(*long, root=tmp_path / "a")
    states = [torch.load(done.run / f"checkpoints/{name}.pt") for name in ("best", "last")]
    different = states[0]["step"] != states[1]["step"]
    assert len(measured) == 1 + different
    whole = sat(*long, root=tmp_path / "b")
    (done.run / "result.json").unlink()
    (done.run / "flags/last-pgd20.npz").unlink()
    measured.clear()
    again = sat(*long, root=tmp_path / "a")
    assert again.code == 0 and len(measured) == different
    same_outcome(again.run, whole.run)


def test_clean_accuracy_and_worst_case_follow_the_evaluation(sat):
    few = sat("evaluation.limit=10").result["last"]
    assert few["clean"]["images"] == 10 and "worst_case" not in few["robust"]
    more = ["+attack@evaluation.attacks.b=pgd", "evaluation.attacks.b.steps=2",
            "evaluation.attacks.pgd20=null"]  # fmt: skip
    both = sat("evaluation.limit=null", "+attack@evaluation.attacks.a=fgsm", *more)
    assert both.code == 0, both.err
    last = both.result["last"]
    assert last["clean"]["images"] == 359 and last["robust"]["pgd20"] == few["robust"]["pgd20"]
    assert last["robust"]["worst_case"]["attacks"] == ["a", "b"]
    flags = [np.load(both.run / f"flags/last-{name}.npz")["robust"] for name in "ab"]
    assert last["robust"]["worst_case"]["accuracy"] == (flags[0] & flags[1]).mean()


def test_a_union_over_norms_and_the_spread_over_classes(ran, sat):
    done = sat("evaluation=union", "evaluation.attacks.strong_l1=null",
               "evaluation.attacks.strong_linf.eps=3", "evaluation.attacks.strong_l2.eps=10",
               "evaluation.checkpoints=[last]",
               *(f"evaluation.attacks.strong_{n}.attacks=[apgd-ce]" for n in ("linf", "l2")),
               *(a for a in TINY if "pgd20" not in a), tiny=False)  # fmt: skip
    assert done.code == 0, done.err
    found = done.result["last"]["robust"]["worst_case"]
    flags = [np.load(done.run / f"flags/last-strong_{n}.npz") for n in ("linf", "l2")]
    stand = flags[0]["robust"] & flags[1]["robust"]
    assert found["norm"] == "union" and found["accuracy"] == stand.mean()
    assert "balls are, in 1/255, 3 in linf, 10 in l2, and none is the data set's" in done.err
    labels = Digits().load().test_labels.numpy()[flags[0]["indices"]]
    shares = [stand[labels == k].mean() for k in range(10)]
    assert found["by_class"]["lowest"] == pytest.approx(min(shares))
    assert found["by_class"]["deviation"] == pytest.approx(np.std(shares))
    assert f"(class {found['by_class']['worst']})" in done.out


def test_the_strong_evaluation_is_one_more_attack(sat):
    first = sat("schedule.epochs=6", "dataset.eps=8").result["last"]
    tiny = ["evaluation=strong", "evaluation.attacks.strong.attacks=[apgd-ce,apgd-t]"]
    given = [a for a in TINY if "pgd20" not in a]
    strong = sat(*given, "schedule.epochs=6", "dataset.eps=8", *tiny, tiny=False)
    assert strong.code == 0, strong.err
    robust = strong.result["last"]["robust"]
    assert robust["strong"]["accuracy"] <= robust["pgd20"]["accuracy"]
    assert robust["pgd20"] == first["robust"]["pgd20"]
    again = sat(*given, "schedule.epochs=6", "dataset.eps=8", *tiny, tiny=False)
    assert FINISHED in again.out


def test_an_evaluation_without_checkpoints_is_refused(sat):
    done = sat("record.keep=[]")
    assert done.code == 0 and not list((done.run / "checkpoints").iterdir())
    assert sat("record.keep=[]").code == 0
    more = sat("+attack@evaluation.attacks.b=pgd")
    assert more.code == 2 and "record.keep" in more.err


def test_the_last_weights_stay_where_no_best_was_chosen(sat):
    done = sat("record.keep=[best]", "dataset.holdout=0", "schedule.epochs=1")
    assert done.code == 0 and done.err.count("record.keep=[best]: ") == 1, done.err
    assert [path.name for path in (done.run / "checkpoints").iterdir()] == ["last.pt"]


def test_fresh_is_done_once_in_a_sweep(sat):
    done = sat("-m", "seed=0,0", "record.fresh=true")
    assert done.code == 0 and not (done.root / ".replaced").exists()


def test_a_threat_model_that_differs_is_warned_of(sat):
    words = ["attack.norm=l2", "attack.eps=128", "schedule.epochs=0.2"]
    for more in ([], ["record.fresh=true"]):  # which is looked at as the first one was
        mixed = sat(*words, *more)
        assert mixed.code == 0 and "dataset.norm=l2" in mixed.err
    whole = sat("dataset.norm=l2", "dataset.eps=128", "schedule.epochs=0.2", "seed=1")
    assert whole.code == 0 and whole.err == ""
    (second,) = (run for run in whole.runs if "-s1-" in run.name)
    settings = json.loads((second / "result.json").read_text())
    assert settings["last"]["robust"]["pgd20"]["norm"] == "l2"


def test_two_averages_differ(sat, tmp_path):
    results = []
    for ema in (0.5, 0.9):
        done = sat(f"schedule.ema={ema}", root=tmp_path / str(ema))
        state = torch.load(done.run / "checkpoints/last.pt")
        assert any(not torch.equal(v, state["model"][k]) for k, v in state["average"].items())
        results.append(torch.cat([v.flatten().float() for v in state["average"].values()]))
    assert not torch.equal(*results)


def test_best_is_what_the_checkpoint_says_after_a_kill(sat, ran):
    """A kill between a `best` and the next checkpoint must not mix two of them."""
    (ran.run / "result.json").unlink()
    best = ran.run / "checkpoints/best.pt"
    content = torch.load(best)
    torch.save({**content, "step": 999}, best)
    again = sat()
    assert again.code == 0
    assert torch.load(best)["step"] == content["step"] == again.result["best"]["step"]


def test_a_second_process_waits_for_the_first(sat, default_run, tmp_path):
    """`default_run` has this process import all that a run needs: the first must not end before."""
    arguments = ["schedule.epochs=20"]
    one = start(tmp_path, *arguments)
    while not rows_of(tmp_path) and one.poll() is None:
        time.sleep(0.02)
    two = sat(*arguments)
    _, err = one.communicate(timeout=120)
    assert one.returncode == two.code == 0, err
    assert "waiting for" in two.out
    (run,) = (path.parent for path in tmp_path.glob("outputs/*/result.json"))
    steps = [row["step"] for row in metrics(run) if "train/loss" in row]
    assert steps == sorted(set(steps))


# sweeps ----------------------------------------------------------------------------------------


def test_a_sweep_runs_all_and_lists_what_failed(sat):
    sweep = ["-m", "seed=0,1", "attack.eps=38,0.1"]
    done = sat(*sweep)
    assert done.code == 2
    assert len(done.runs) == 2 and all((run / "result.json").exists() for run in done.runs)
    assert done.err.count("attack.eps=0.1") >= 2 and "Traceback" not in done.err
    table = done.out[done.out.rindex("job") :]
    assert "seed=0" in done.out and "seed=1" in table
    assert not list(done.root.glob("*.yaml")) and not list(Path(".").glob("multirun*"))
    missing = done.runs[1]
    (missing / "result.json").unlink()
    again = sat(*sweep)
    assert again.out.count(FINISHED) == 1 and (missing / "result.json").exists()


def test_jobs_that_are_the_same_run_are_said_so(sat):
    done = sat("-m", "attack.eps=38,38.0")
    assert done.code == 0 and len(done.runs) == 1
    assert "job 2 is the same run as job 1" in done.err and FINISHED in done.out


def test_a_fault_in_one_job_does_not_stop_the_others(sat):
    done = sat("-m", "schedule.learning_rate=1e30,0.4", "schedule.warmup_epochs=0")
    assert done.code == 1 and "not finite" in done.err
    states = [json.loads((run / "result.json").read_text())["status"] for run in done.runs]
    assert sorted(states) == ["failed", "finished"]


def test_jobs_of_one_process_do_not_lean_on_each_other(sat, tmp_path):
    sweep = sat("-m", "seed=1,0", "activation=relu,silu", root=tmp_path / "sweep")
    alone = sat("seed=0", "activation=silu", root=tmp_path / "alone")
    same = next(run for run in sweep.runs if run.name == alone.run.name)
    assert len(sweep.runs) == 4
    same_outcome(same, alone.run)


def test_a_sweep_over_processes(tmp_path):
    joblib = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1"]
    process = start(tmp_path, *joblib, "attack.eps=38,0.1", "schedule.epochs=1")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    results = sorted(tmp_path.glob("outputs/*/result.json"))
    assert [json.loads(r.read_text())["seed"] for r in results] in ([0, 1], [1, 0])
    table = out[out.rindex("job  ") :]
    assert "seed=1 eps=38" in table and "! job 2 (seed=0 eps=0.1)" in table
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_status_lists_every_state(sat, ran, tmp_path, capfd):
    from sat.report.command import main as report

    sat("schedule.learning_rate=1e30", "schedule.warmup_epochs=0")
    stopped = ran.root / "half"
    stopped.mkdir()
    (stopped / "config.yaml").write_text("seed: 0\n")
    for name, text in (("torn", "{"), ("odd", '{"status": {"a": 1}}')):
        damaged = ran.root / name
        damaged.mkdir()
        (damaged / "config.yaml").write_text("seed: 0\n")
        (damaged / "result.json").write_text(text)
    assert report(["--status", str(ran.root)]) == 0
    listed = capfd.readouterr().out
    for state in ("1 finished", "1 failed", "1 stopped", "2 damaged"):
        assert state in listed, listed
    assert report(["--status", str(tmp_path / "none")]) == 2
    assert "no such folder" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words, says",
    [
        (
            ["activation=relu,silu"],
            "activation=relu,silu: several values are a sweep; write -m",
        ),
        (["--epochs", "5"], "--epochs: no such option; a key has no dashes: schedule.epochs=5"),
        (
            ["--lr=1"],
            "--lr: no such option; a key has no dashes: schedule.learning_rate=1",
        ),
        (["--seed", "-m"], "--seed: no such option; a key has no dashes: seed=VALUE"),
    ],
)
def test_what_other_programs_take_is_answered_with_what_this_one_takes(sat, words, says):
    done = sat(*words, tiny=False)
    assert (done.code, done.runs) == (2, []) and done.err.startswith(f"! {says}")
    assert done.err.count("\n") == 1
