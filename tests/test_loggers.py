"""What trackers are told, and what TensorBoard makes of a folder of runs, asked as its tabs ask."""

import copy
import io
import json
import logging
import os
import re
import shlex
import sys
import termios
import threading
import time
from dataclasses import replace

import pytest
import torch
from messages import FINISHED, RESUMED

from sat.evaluation.views import Views, views
from sat.loggers import About, Logger, Loggers, compared, screen
from sat.loggers.pictures import sheet
from sat.loggers.tensorboard import TensorBoard, shown
from sat.rundir.record import Run
from sat.training.callbacks import Callbacks

CONFIG = {
    "choices": {"dataset": "digits", "activation": "relu", "attack": "pgd", "experiment": None,
                "schedule": "digits", "record": "default"},
    "seed": 0,
    "evaluate": None,
    "dataset": {"_target_": "sat.data.memory.Digits", "limit": None,
                "flip": False},
    "activation": {"_target_": "sat.activations.ReLU"},
    "augment": {"_target_": "sat.data.Standard"},
    "attack": {"_target_": "sat.attacks.PGD", "eps": 38.0, "steps": 1, "start": "uniform"},
    "objective": {"_target_": "sat.objectives.Adversarial", "label_smoothing": 0.0},
    "model": {"_target_": "sat.models.ResNet", "depth": 10, "mean": [0.5]},
    "schedule": {"_target_": "sat.training.schedule.Schedule", "epochs": 8.0},
}  # fmt: skip


def hyperparameters(root):
    """The answers behind the HPARAMS tab: its experiment, and its rows by name."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.hparams.list_session_groups import Handler

    events = EventMultiplexer().AddRunsFromDirectory(str(root))
    events.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(events, str(root))))
    at, found = RequestContext(), context.hparams_from_data_provider(RequestContext(), "", None)
    written = context.hparams_metadata(at, "")
    experiment = context.experiment_from_metadata(at, "", True, written, found)
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=api_pb2.Status.values(), slice_size=100
    )
    groups = Handler(at, context, "", request).run().session_groups
    return experiment, {group.name: group for group in groups}


def numbers(group):
    return {metric.name.tag: metric.value for metric in group.metric_values}


def accumulated(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"images": 0, "scalars": 0, "tensors": 0}
    return EventAccumulator(str(directory), size_guidance=everything).Reload()


def texts(events, tag):
    found = events.Tensors(f"{tag}/text_summary")
    return [(point.step, point.tensor_proto.string_val[0].decode()) for point in found]


def tracked(directory, **members):
    """The trackers of a run there; TensorBoard by default."""
    about = About(directory, directory.name, directory.name.split("-")[-1])
    return Loggers(members or {"tensorboard": TensorBoard()}, about)


def written(directory, config, images=100, **metrics):
    """The event file of a run that trained and, where there are metrics, came to its end."""
    dashboard = tracked(directory)
    dashboard.introduce(config, "seed: 0\nmodel:\n  depth: 10\n", "data: digits\nmodel: resnet")
    dashboard.scalars({"diagnostics/cosine": 0.5, "train/loss": 2.0, "val/clean": 0.5}, images)
    if metrics:
        numbers = {f"test/{key.replace('_', '/')}": value for key, value in metrics.items()}
        dashboard.conclude(config, numbers, images)
    dashboard.close()


def changed(**sections):
    config = copy.deepcopy(CONFIG)
    for section, values in sections.items():
        config[section] = config[section] | values if isinstance(values, dict) else values
    return config


@pytest.fixture
def folder(tmp_path):
    """Three runs, the first of which has no alpha; the last still trains."""
    ends = {"best_clean": 0.9, "best_pgd20": 0.5, "last_clean": 0.8, "last_pgd20": 0.4, "alarms": 1}
    written(tmp_path / "set-relu-a", CONFIG, **ends)
    celu = {"choices": {"activation": "celu"}, "activation": {"alpha": 1.4}, "seed": 1}
    written(tmp_path / "set-celu-b", changed(**celu), **ends, best_square=0.6)
    written(tmp_path / "set-celu-c", changed(**celu, attack={"steps": 2}))
    return tmp_path


def test_activation_and_seed_come_first_and_what_differs_and_then_the_final_numbers(folder):
    experiment, rows = hyperparameters(folder)
    assert set(rows) == {
        "a set-relu",
        "b set-celu",
        "c set-celu",
    }  # cut off at its end, a row is still told
    shown = [info.name for info in experiment.hparam_infos if info.differs]
    assert shown == ["activation", "activation.alpha", "attack.steps", "dataset", "seed"]
    assert [info.name for info in experiment.hparam_infos][:5] == shown
    tags = {info.name.tag: info.display_name for info in experiment.metric_infos}
    final = ("best/clean", "best/pgd20", "best/square", "alarms", "last/clean", "last/pgd20")
    assert [*tags] == [f"verdict/{tag}" for tag in final]
    assert tags["verdict/best/clean"] == "best clean"
    assert min(tags) > "val_diagnostics/cosine" > "val/clean" > "train/loss"  # curves come first


def test_of_many_keys_that_differ_the_first_five_are_shown_and_no_run_is_lost(tmp_path):
    keys = ("width", "depth", "blocks")
    for number in range(4):
        model = {key: number if number > k else 0 for k, key in enumerate(keys)}
        told = changed(seed=number, model=model, attack={"steps": number})
        written(tmp_path / f"set-net-run{number}", told)
    shown = [info.name for info in hyperparameters(tmp_path)[0].hparam_infos if info.differs]
    assert sorted(shown) == ["activation", "attack.steps", "model.depth", "model.width", "seed"]
    (tmp_path / ".hparams" / "columns.json").write_text("{torn")
    written(tmp_path / "set-net-run5", CONFIG)
    experiment, rows = hyperparameters(tmp_path)
    assert "activation" in [info.name for info in experiment.hparam_infos] and len(rows) == 5


def test_two_runs_that_begin_at_once_keep_their_curves(tmp_path, monkeypatch):
    """They write one file, each by a temporary one; on a collision a run lost its tracker."""
    from sat.loggers import columns
    from sat.rundir import checkpoint

    def meanwhile(*given):
        monkeypatch.setattr(checkpoint, "_to_disk", lambda *given: None)
        columns.tell(tmp_path, {"seed": 1}, {})

    monkeypatch.setattr(checkpoint, "_to_disk", meanwhile)
    columns.tell(tmp_path, {"seed": 0}, {"verdict/best/clean": 0.5})
    assert hyperparameters(tmp_path)[0].metric_infos
    assert not [*tmp_path.glob(".hparams/*.tmp")]


def test_numbers_filter_as_numbers_and_words_as_words(folder):
    from tensorboard.plugins.hparams import api_pb2

    experiment, rows = hyperparameters(folder)
    infos = {info.name: info for info in experiment.hparam_infos}
    for name in ("seed", "attack.steps", "attack.eps", "model.depth", "schedule.epochs"):
        assert infos[name].type == api_pb2.DATA_TYPE_FLOAT64, name
    assert infos["activation"].type == api_pb2.DATA_TYPE_STRING
    assert rows["a set-relu"].hparams["attack.start"].string_value == "uniform"
    assert numbers(rows["b set-celu"])["verdict/best/square"] == pytest.approx(0.6)
    assert numbers(rows["a set-relu"])["verdict/alarms"] == 1
    status = {name: row.sessions[0].status for name, row in rows.items()}
    assert status["a set-relu"] == api_pb2.STATUS_SUCCESS != status["c set-celu"]


def test_true_is_a_word_and_no_number():
    assert compared(changed(model={"pretrained": True}))["model.pretrained"] == "True"
    assert compared(changed(model={"pretrained": 1}))["model.pretrained"] == 1


def test_what_says_nothing_is_no_column():
    table = compared(CONFIG)
    assert table.keys() == {
        "dataset", "activation", "attack", "seed", "dataset.flip", "attack.eps", "attack.steps",
        "attack.start", "model.depth", "model.mean", "schedule.epochs", "objective.label_smoothing",
    }  # fmt: skip
    assert table["model.mean"] == "[0.5]" and table["attack.eps"] == 38.0
    asked = compared(changed(choices={"experiment": "elu_vs_celu", "variant": "wide"}))
    assert asked["experiment"] == "elu_vs_celu" and asked["variant"] == "wide"
    weights = compared(changed(evaluate="/models/Engstrom2019.pt"))
    assert weights["weights"] == "Engstrom2019" and "seed" not in weights
    assert not any(key.startswith(("attack", "schedule")) for key in weights)


def test_pictures_come_behind_every_curve(tmp_path):
    from matplotlib.figure import Figure

    dashboard = tracked(tmp_path)
    x, names = torch.rand(8, 1, 8, 8), list("01234567")
    fell = [True] + 7 * [False]
    seen = Views(x, (x + 0.1).clamp(0, 1), names, names, ["7", *names[1:]], fell, "PGD-2")
    dashboard.pictures("test", seen, 100)
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    dashboard.figure("curves/best-eps_curve", figure, 100)
    dashboard.close()
    events = accumulated(tmp_path)
    pictures = ["views/curves/best-eps_curve", "views/test"]
    assert sorted(events.Tags()["images"]) == pictures and min(pictures) > "val/robust"
    (grid,) = events.Images("views/test")
    assert (grid.step, grid.width, grid.height) == (100, 4 * 132, 26 + 2 * (3 * 132 + 2 * 26 + 8))
    other = sheet(replace(seen, fell=8 * [False]))
    changed = (sheet(seen) != other).any(0).nonzero()  # in the head, and above the image that fell
    below = changed[changed[:, 0] > 26]
    assert len(below) and below[:, 0].max() < 26 + 132 + 2 * 26 and below[:, 1].max() < 132


def test_what_is_seen_of_images_is_told_by_class_and_the_model_is_left_as_it_was():
    from sat.attacks import PGD, Clean

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False)).train()
    model[1].weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    x = torch.full((3, 1, 2, 2), 0.5)
    x[0, 0, 0], x[1, 0, 0], x[2, 0, 0] = (
        torch.tensor(v) for v in ([0.9, 0.1], [0.51, 0.5], [0.1, 0.9])
    )
    y, rows, names = torch.tensor([0, 0, -1]), torch.arange(3), ("cat", "dog")
    seen = views(model, x, y, rows, PGD(8, 2), names)
    assert (seen.truth, seen.clean) == (["cat", "cat", "?"], ["cat", "cat", "dog"])
    assert seen.attacked == ["cat", "dog", "dog"] and seen.fell == [False, True, False]
    assert seen.attack == "PGD-2, eps 8/255 linf" and model.training
    assert views(model, x, y, rows, Clean(), names) is None


def test_alarms_and_facts_are_text(tmp_path):
    written(tmp_path, CONFIG)
    dashboard = tracked(tmp_path)
    dashboard.alarm("**black_box** (best, pgd20): Square fells 8 of 120 images", 100)
    dashboard.close()
    events = accumulated(tmp_path)
    ((step, alarm),) = texts(events, "alarms")
    assert step == 100 and alarm.startswith("**black_box** (best, pgd20): ")
    assert texts(events, "config") == [(0, "    seed: 0\n    model:\n      depth: 10\n    ")]
    assert texts(events, "run") == [(0, "data: digits  \nmodel: resnet")]  # lines in Markdown


def test_a_run_is_one_row_with_its_final_numbers(ran):
    events = accumulated(ran.run)
    tags = set(events.Tags()["scalars"])
    ends = {f"verdict/{which}/{name}" for which in ("best", "last") for name in ("clean", "pgd20")}
    assert {tag for tag in tags if tag.startswith("verdict/")} == ends | {"verdict/alarms"}
    assert {tag.split("/")[0] for tag in tags} == {"train", "val", "val_diagnostics", "verdict"}
    for tag in sorted(tags):
        steps = [point.step for point in events.Scalars(tag)]
        assert len(steps) == len(set(steps)), tag
    experiment, rows = hyperparameters(ran.root)
    (row,) = rows.values()
    final = numbers(row)
    for which in ("best", "last"):
        part = ran.result[which]
        assert final[f"verdict/{which}/clean"] == pytest.approx(part["clean"]["accuracy"])
        robust = part["robust"]["pgd20"]["accuracy"]
        assert final[f"verdict/{which}/pgd20"] == pytest.approx(robust)
    assert final["verdict/alarms"] == len(ran.result["alarms"])
    assert row.name == f"{ran.result['hash']} {ran.run.name[:-9]}"
    assert row.hparams["activation"].string_value == "silu"
    ((_, config),) = texts(events, "config")
    assert config.startswith("    choices:") and "\n    seed: 0" in config


def test_a_run_that_was_killed_shows_no_step_twice(sat, monkeypatch):
    validate, alive, validating = Callbacks.validate, [True, False, False], []

    def killed(journal, trainer):
        """At the second validation after the only checkpoint, with a step of each kind beyond."""
        validate(journal, trainer)
        validating.append(journal.progress.what)
        if alive.pop(0):
            return journal.save(trainer)
        if not alive:
            raise SystemExit(137)

    monkeypatch.setattr(Callbacks, "validate", killed)
    assert sat().code == 137
    assert validating[0].startswith("ep 1/") and validating[0].endswith(", validating")
    monkeypatch.setattr(Callbacks, "validate", validate)
    done = sat()
    assert done.code == 0 and RESUMED in done.out + done.err
    assert len(list(done.run.glob("events.out.tfevents.*"))) == 2  # killed, resumed
    events = accumulated(done.run)
    lines = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    for tag in ("train/loss", "val/clean", "val/robust", "diagnostics/gap"):
        steps = [row["images"] for row in lines if tag in row]
        assert (
            [point.step for point in events.Scalars(shown(tag))] == steps == sorted(set(steps))
        ), tag
    assert len(texts(events, "config")) == 1
    assert len(hyperparameters(done.root)[1]) == 1


class Remote(Logger):
    """A tracker whose history can't be cut back, kept outside of the run directory."""

    remote = True
    told: list = []

    def scalars(self, values, images):
        self.told += [(tag, images) for tag in values]

    def text(self, tag, text, images):
        self.told.append((tag, images))


class Broken(Logger):
    """Fails at its second point."""

    points = 0

    def scalars(self, values, images):
        self.points += 1
        if self.points == 2:
            raise ConnectionError("no route to host")


def test_files_of_one_name_in_two_folders_are_each_cut_to_its_own_length(tmp_path):
    run = Run(tmp_path)
    run.growing.append("*/points.txt")
    for count, folder in enumerate("ab", 1):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "points.txt").write_text(count * "x")
    lengths = run.lengths()
    for folder in "ab":
        (tmp_path / folder / "points.txt").write_text("xxx")
    run.rewind(lengths)
    assert [(tmp_path / folder / "points.txt").read_text() for folder in "ab"] == ["x", "xx"]


def test_what_a_remote_tracker_was_told_it_is_not_told_again(tmp_path):
    told, Remote.told = [], []
    for images in ((32, 64, 96), (64, 96, 128)):  # killed, and resumed from a checkpoint at 32
        loggers = tracked(tmp_path, mine=Remote())
        for at in images:
            loggers.scalars({"train/loss": 1.0}, at)
            loggers.alarm("an alarm", 64)
        loggers.scalars({"val/clean": 0.5}, 64)  # another tag, at a point that was told of
        loggers.close()
    told = [at for tag, at in Remote.told if tag == "train/loss"]
    assert told == [32, 64, 96, 128]
    assert Remote.told.count(("alarms", 64)) == Remote.told.count(("val/clean", 64)) == 1


class Exiting(Logger):
    """Asks the program to end, when it is told and when it is closed."""

    def __init__(self, code):
        self.code = code

    def scalars(self, values, images):
        raise SystemExit(self.code)

    def close(self, code=0):
        raise SystemExit(self.code)


@pytest.mark.parametrize("code", [None, 0, 3, "no licence"])
def test_a_tracker_that_asks_the_program_to_end_ends_alone(code, tmp_path, caplog):
    loggers = tracked(tmp_path, exiting=Exiting(code), whole=Remote())
    Remote.told = []
    for images in range(2):
        loggers.scalars({"train/loss": 1.0}, images)
    loggers.close()
    assert len(Remote.told) == 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("logger=exiting: fails (SystemExit: ")


def test_a_signal_that_finds_a_tracker_at_work_ends_the_run(tmp_path):
    with pytest.raises(SystemExit):
        tracked(tmp_path, exiting=Exiting(143)).scalars({"train/loss": 1.0}, 1)


def test_a_tracker_that_fails_is_said_once_and_told_nothing_more(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging.getLogger("sat"), "warning", lambda *w: said.append(w[0] % w[1:]))
    broken, Remote.told = Broken(), []
    loggers = tracked(tmp_path, broken=broken, whole=Remote())
    for images in range(5):
        loggers.scalars({"train/loss": 1.0}, images)
    loggers.close()
    assert broken.points == 2 and len(Remote.told) == 5
    assert said == [
        "logger=broken: fails (ConnectionError: no route to host); the run goes on without it"
    ]


@pytest.mark.parametrize(
    "ledger", ["5\n", "[1, 2]\n", '[[], ["a"]]\n', '[32, ["train/lo', b"\xff\xfe\n", b"[\xff"]
)
def test_a_ledger_that_is_torn_or_no_ledger_keeps_what_follows(ledger, tmp_path):
    content = ledger if isinstance(ledger, bytes) else ledger.encode()
    (tmp_path / "mine.sent.jsonl").write_bytes(b'[16, ["train/loss"]]\n' + content)
    Remote.told = []
    for _ in range(2):  # the second is told nothing again
        loggers = tracked(tmp_path, mine=Remote())
        for images in (16, 32):
            loggers.scalars({"train/loss": 1.0}, images)
        loggers.close()
    assert Remote.told == [("train/loss", 32)]


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_ledger_that_can_not_be_kept_ends_its_tracker_alone(kind, tmp_path):
    ledger, Remote.told = tmp_path / "mine.sent.jsonl", []
    if kind == "link":
        ledger.symlink_to(tmp_path / "elsewhere")
    else:
        ledger.mkdir()
    whole = Broken()
    loggers = tracked(tmp_path, mine=Remote(), whole=whole)
    loggers.scalars({"train/loss": 1.0}, 1)
    loggers.alarm("an alarm", 1)
    assert Remote.told == [] and whole.points == 1 and [*loggers.members] == ["whole"]
    loggers.close()


def test_only_the_first_process_tells_anything(tmp_path):
    Remote.told = []
    loggers = Loggers({"mine": Remote()}, About(tmp_path, "run", "0"), first=False)
    loggers.scalars({"train/loss": 1.0}, 1)
    loggers.introduce(CONFIG, "a", "b")
    loggers.close()
    assert Remote.told == [] and not list(tmp_path.iterdir())


def test_a_run_without_trackers_still_writes_its_metrics(sat):
    done = sat("logger=[]")
    assert done.code == 0 and not list(done.run.glob("events*"))
    for said in (done.out, (done.run / "log.txt").read_text()):
        epochs = re.findall(r"epoch (\d)/3 val [\d.]+/[\d.]+ best [\d.]+ loss \d.\d", said)
        assert epochs == [*"123"]
    assert (done.run / "metrics.jsonl").read_text().count("\n") > 3
    again = sat()  # trackers are no part of a run's identity
    assert FINISHED in again.out and again.runs == [done.run]


@pytest.fixture
def speaking():
    level, shows = screen.log.level, screen._Handler.shows
    screen.log.setLevel(logging.INFO)
    screen._Handler.shows = True
    yield
    screen.log.setLevel(level)
    screen._Handler.shows = shows


def test_a_bar_of_80_columns_has_the_accuracies_first_and_the_bar_last(speaking, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = screen.Progress("ep 1/30", 1000, unit="img")
    progress.show()
    progress.bar.start_t -= 2
    progress.say("ep 9/30 val 76.5/41.2 best 41.5")
    progress.advance(250)
    assert "left" not in str(progress.bar), "of two seconds it means nothing yet"
    progress.bar.start_t -= 8
    line = progress.bar.format_meter(**progress.bar.format_dict | {"ncols": 80})
    words, bar = line.split("|", 1)
    assert re.fullmatch(r"ep 9/30 val 76.5/41.2 best 41.5  25 img/s  30s left ", words)
    assert len(line) == 80 and bar[0] == "█" and bar[-2:] == " |"
    progress.close()


def test_bar_and_line_tell_one_pace_of_the_steps_since_the_first(speaking, monkeypatch):
    """Which may have compiled for minutes, and began at a checkpoint's images."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    said = []
    monkeypatch.setattr(screen.log, "info", lambda form, text: said.append(text))
    progress = screen.Progress("ep 2/4", 1000, done=400)
    progress.advance(100)
    progress.line("epoch 1/4")
    for begun in (progress.bar, progress):
        name = "start_t" if begun is progress.bar else "begun"
        setattr(begun, name, getattr(begun, name) - 10)
    progress.advance(100)
    line = progress.bar.format_meter(**progress.bar.format_dict | {"ncols": 80})
    progress.line("epoch 2/4")
    progress.close()
    assert said == ["epoch 1/4", "epoch 2/4  10 img/s  40s left"]
    assert line.startswith("ep 2/4  10 img/s  40s left ")


def test_what_goes_on_is_shown_until_the_next_of_it(speaking, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    screen.stage("reading the images")
    screen.stage("building the network")
    clock = screen._stage
    progress = screen.Progress("ep 1/30", 10)
    progress.show()
    assert screen._stage is None and not clock.pulse.thread.is_alive()
    progress.close()
    shown = re.sub(r"\s*\r\s*", "\n", capsys.readouterr().err).split("\n")
    lines = [line for line in shown if line]
    assert lines[:2] == ["reading the images ... 0s", "building the network ... 0s"]
    assert lines[2].startswith("ep 1/30 |") and len(lines) == 3


def test_without_a_terminal_what_takes_a_second_is_a_line(speaking, monkeypatch):
    monkeypatch.setattr(screen, "SILENT", 0.01)
    said, long = [], threading.Event()

    def hear(*given):
        said.append(given[0] % given[1:])
        long.set()

    monkeypatch.setattr(screen.log, "info", hear)
    screen.stage("reading the images")
    assert long.wait(5)
    screen.stage()
    assert said == ["reading the images ..."]


def test_a_bar_that_does_not_move_shows_that_the_program_lives(speaking, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(screen, "SILENT", 0.01)
    progress = screen.Progress("last: strong: square", 1000)
    progress.show()
    progress.bar.start_t -= 14
    progress.bar.last_print_t -= 14
    shown, end = "", time.monotonic() + 5
    while "(14s)" not in shown and time.monotonic() < end:
        time.sleep(0.01)
        shown += capsys.readouterr().err
    assert "last: strong: square (14s) |" in shown
    if hasattr(os, "fork"):  # a child has a screen of its own, and its parent's goes on
        if (child := os.fork()) == 0:
            os._exit(len(screen._Pulse.living))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert progress.pulse.thread.is_alive()
    progress.close()
    assert not progress.pulse.thread.is_alive()


def test_a_line_longer_than_the_terminal_goes_on_below_between_words(monkeypatch):
    path = "outputs/" + 20 * "deep-" + "end"
    long = f"attack: {'word ' * 20}{path} and-no-hyphen-is-a-place-to-break a sentence"
    assert screen.fitted(long) == long  # no terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    lines = screen.fitted(f"short\n\n  {long}").split("\n")
    assert lines[:2] == ["short", ""] and lines[2].startswith("  attack: word")
    assert " ".join(lines[2:]).split() == long.split()
    assert all(len(line) <= 40 or line.strip() == path for line in lines)
    assert all(line.startswith("    ") for line in lines[3:])


def test_what_stands_in_quotes_for_the_shell_is_not_broken(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    word = "'+evaluation.attacks.own={_target_: sat.attacks.PGD, eps: 8.0, norm: linf}'"
    text = f"the run's attack isn't measured as before; write {word}, or another's name of yours"
    lines = screen.fitted(text).split("\n")
    assert any(word in line for line in lines) and " ".join(map(str.strip, lines)) == text
    assert len(lines) == 4 and all(len(line) <= 40 or word in line for line in lines)


def test_a_line_is_as_long_as_the_terminal_that_it_goes_to(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    ends = os.openpty()
    with open(ends[0], "rb"), open(ends[1], "w") as terminal:  # standard output is another
        for size, room in ((200, 200), (5, 20), (0, 80)):
            termios.tcsetwinsize(terminal.fileno(), (24, size))
            assert screen.columns(terminal) == room
        monkeypatch.setenv("COLUMNS", "60")
        assert screen.columns(terminal) == 60
    assert screen.columns(io.StringIO()) == 0


def test_a_long_command_line_can_be_copied(monkeypatch):
    words = ["python", "-m", "sat.run", "-m", *(f"group.key{k}=value" for k in range(9)), "a=[b c]"]
    assert screen.to_copy(words) == shlex.join(words)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    copied = screen.to_copy(words)
    assert max(map(len, copied.split("\n"))) <= 40 and copied.count("\n") > 3
    assert shlex.split(copied.replace("\\\n", "")) == words


def test_columns_that_the_terminal_has_no_room_for_follow_below(monkeypatch):
    head, rows = ["run", "clean", "robust", "time"], [["a", "1", "2", "3"], ["b", "4", "5", "6"]]
    whole = screen.table(head, rows)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert screen.fitted(whole) == whole and len(whole.split("\n")) == 4
    monkeypatch.setenv("COLUMNS", "20")
    assert screen.table(head, rows) == whole  # as a file keeps it
    before, first, second, after = screen.fitted(f"a title\n\n{whole}\n\na line").split("\n\n")
    assert (before, after) == ("a title", "a line")
    assert first == screen.table(head[:3], [row[:3] for row in rows])
    assert second == screen.table(["run", "time"], [["a", "3"], ["b", "6"]])


def test_a_table_is_whole_in_the_log_and_folded_on_the_screen(tmp_path, monkeypatch, capsys):
    wide = screen.table(["run", *(f"attack {k}" for k in range(6))], [[*"abcdefg"], [*"ABCDEFG"]])
    kept = logging.FileHandler(tmp_path / "log.txt")
    monkeypatch.setattr(screen, "columns", lambda stream=None: 40)
    screen.set_up()
    screen.log.addHandler(kept)
    try:
        screen.log.info("\n%s", wide)
        for job in "aba":
            screen.log.info("data: digits\n%s", job, extra=screen.ONCE)
    finally:
        screen.log.removeHandler(kept)
        kept.close()
    whole = (tmp_path / "log.txt").read_text().strip()
    assert whole == wide + "".join(f"\ndata: digits\n{job}" for job in "aba")
    shown = capsys.readouterr().out
    assert max(map(len, shown.split("\n"))) <= 40 and shown.count("run") == 2
    assert shown.endswith("\ndata: digits\na\nb\na\n"), "what jobs share is told once"
