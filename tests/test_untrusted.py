"""What others may have written: checkpoints, configs, arrays and images are data, never code."""

import io
import json
import os
import pickle
import runpy
import shutil
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image

import sat as package
from sat import config, identity
from sat.data.folders import Files, sorted_files
from sat.data.images import opened
from sat.errors import Diverged, Fault, Refused
from sat.evaluation.store import read_file
from sat.rundir import untrusted
from sat.rundir.result import RunResult

CHEAP = ["evaluation=clean", "evaluation.limit=60", "evaluation.masking_checks=0"]
RUNS: list[Path] = []


class Runs:
    """A pickle of it makes a file where it is loaded."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def run(sat, tmp_path, tmp_path_factory):
    """A finished run of a second, of this test's own."""
    if not RUNS:
        done = sat(root=tmp_path_factory.mktemp("one"))
        assert done.code == 0, done.err
        RUNS.append(done.run)
    return Path(shutil.copytree(RUNS[0], tmp_path / "outputs" / RUNS[0].name))


def rewrite(run: Path, change) -> None:
    plain = yaml.safe_load((run / "config.yaml").read_text())
    change(plain)
    (run / "config.yaml").write_text(yaml.safe_dump(plain))


def refused_in_a_line(done, *words: str) -> None:
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert all(word in done.err for word in words), done.err


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(how, run, sat, tmp_path):
    mark, last = tmp_path / "it ran", run / "checkpoints/last.pt"
    state = {**torch.load(last, weights_only=True), "more": Runs(mark)}
    if how == "pickle":
        last.write_bytes(pickle.dumps(state["more"]))
    else:
        torch.save(state, last, _use_new_zipfile_serialization=how == "torch")
    shutil.copy(last, run / "checkpoints/best.pt")
    shutil.copy(last, tmp_path / "weights.pt")
    where = {"root": run.parent}
    refused_in_a_line(sat(f"evaluate={run}", *CHEAP, tiny=False, **where), "last.pt")
    given = sat(f"evaluate={tmp_path}/weights.pt", "activation=silu", *CHEAP, tiny=False)
    refused_in_a_line(given, "weights.pt", "could run code")
    refused_in_a_line(sat(f"model.weights={tmp_path}/weights.pt"), "could run code")
    (run / "result.json").unlink()
    refused_in_a_line(sat(**where), "last.pt", "record.fresh=true")
    with pytest.raises(ValueError, match="best.pt"):
        package.load(run)
    assert not mark.exists()


def test_weights_with_a_changed_bit_are_no_other_weights(run, sat, tmp_path):
    content = bytearray((run / "checkpoints/best.pt").read_bytes())
    tensors = torch.load(run / "checkpoints/best.pt", weights_only=True)["model"].values()
    largest = bytes(max(tensors, key=lambda tensor: tensor.numel()).untyped_storage())
    at = bytes(content).find(largest)
    assert at > 0
    content[at + 100] ^= 1
    (tmp_path / "weights.pt").write_bytes(content)
    assert torch.load(tmp_path / "weights.pt", weights_only=True)  # torch does not see it
    given = sat(f"evaluate={tmp_path}/weights.pt", "activation=silu", "model.width=0.0625", *CHEAP,
                tiny=False)  # fmt: skip
    refused_in_a_line(given, "weights.pt", "is damaged", "not what was written")


@pytest.mark.parametrize("script", ["export"])
def test_the_scripts_refuse_it_as_well(script, run, tmp_path, monkeypatch, capfd):
    mark = tmp_path / "it ran"
    for name in ("last", "best"):
        torch.save({"more": Runs(mark)}, run / f"checkpoints/{name}.pt")
    monkeypatch.setattr(sys, "argv", [script, str(run)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / f"scripts/{script}.py"), run_name="__main__")
    told = end.value.code if isinstance(end.value.code, str) else capfd.readouterr().err.strip()
    assert end.value.code and "best.pt: is damaged, or is no checkpoint" in told
    assert "\n" not in told and not mark.exists()


def test_flags_and_arrays_are_no_pickles(run, sat, tmp_path):
    mark = tmp_path / "it ran"
    objects = np.array([Runs(mark)], dtype=object)
    with np.load(run / "flags/last-pgd20.npz") as file:
        flags = dict(file)
    np.savez(run / "flags/last-pgd20.npz", **{**flags, "fell": objects})
    more = ["evaluation.limit=60", f"evaluate={run}"]
    same = ["evaluation.attacks.pgd20.steps=3", "evaluation.masking_checks=0"]
    done = sat(*more, *same, tiny=False, root=run.parent)
    refused_in_a_line(done, "last-pgd20.npz", "damaged")
    np.savez(tmp_path / "set.npz", x_train=objects, y_train=objects, x_test=objects, y_test=objects)
    for name in ("set.npz", "set.npy"):
        np.save(tmp_path / "set.npy", objects)
        done = sat("dataset=npz", f"dataset.path={tmp_path}/{name}", tiny=False)
        refused_in_a_line(done, name)
    assert not mark.exists()


def test_flags_that_unfold_to_more_than_memory_are_refused(run, sat, monkeypatch):
    import zipfile

    from sat.evaluation import store

    monkeypatch.setattr(store, "LARGEST", 2**20)

    with zipfile.ZipFile(run / "flags/last-pgd20.npz", "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("more.npy", bytes(2**21))
    done = sat(f"evaluate={run}", "evaluation.attacks.pgd20.steps=3", "evaluation.limit=60",
               tiny=False, root=run.parent)  # fmt: skip
    refused_in_a_line(done, "last-pgd20.npz", "1 GB")


def test_flags_that_are_no_file_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "last-pgd20.npz")
    with pytest.raises(Refused, match="last-pgd20.npz: "):
        read_file(tmp_path / "last-pgd20.npz")


@pytest.mark.parametrize("target", [
    "sat.run.main", "sat.config.check", "sat.config.spec.Path", "sat.rundir.record.Run",
    "os.system", "subprocess.Popen", "sat.data.Digits", "sat.attacks.pgd.os.System",
    "sat.data.memory.MemorySet", "", None, 5, ["os.system"], "sat.attacks.__init__.PGD", "sat..PGD",
    "/tmp/x.PGD",
])  # fmt: skip
@pytest.mark.parametrize("place", ["attack", "evaluation.attacks.x", "schedule.epochs"])
def test_a_config_names_only_classes_of_its_place(place, target, run, monkeypatch):
    plain = yaml.safe_load((run / "config.yaml").read_text())
    node = plain
    *above, key = place.split(".")
    for part in above:
        node = node[part]
    node[key] = {"_target_": target, "args": "true"}
    before = set(sys.modules)
    with pytest.raises(Refused, match=place) as refusal:
        config.check(plain)
    assert "\n" not in str(refusal.value)
    assert {name for name in set(sys.modules) - before if not name.startswith("sat.")} == set()


def test_what_hydra_would_obey_is_refused(run, sat, monkeypatch):
    monkeypatch.setenv("SECRET", "hush")
    for key, value in (("_partial_", True), ("_convert_", "all"), ("_args_", [1])):
        rewrite(run, lambda plain, k=key, v=value: plain["attack"].update({k: v}))
        done = sat(f"evaluate={run}", *CHEAP, tiny=False, root=run.parent)
        refused_in_a_line(done, f"attack.{key}")
        rewrite(run, lambda plain, k=key: plain["attack"].pop(k))
    for value in ("${oc.env:SECRET}", "a${oc.env:SECRET}", "${seed}", "${hydra:runtime.cwd}"):
        rewrite(run, lambda plain, v=value: plain["choices"].update(dataset=v))
        done = sat(f"evaluate={run}", *CHEAP, tiny=False, root=run.parent)
        refused_in_a_line(done, "choices.dataset=${" if value[0] == "$" else "choices.dataset=a")
        assert "hush" not in done.err + done.out


def test_yaml_is_data_and_can_not_unfold(tmp_path):
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for above, name in zip("abcdefgh", "bcdefghi", strict=True):
        laughs += f"{name}: &{name} [{', '.join([f'*{above}'] * 9)}]\n"
    mark = tmp_path / "it ran"
    texts = {
        "laughs": laughs, "ring": "a: &a [*a]\n", "deep": "a: " + "[" * 10000, "list": "[1]",
        "python": f"a: !!python/object/apply:os.mkdir ['{mark}']\n", "nul": "a: '\0'\n",
        "long": "a: " + "x" * 2**21, "digits": "a: " + "9" * 5000,
        "base 60": "a: " + "1:" * 10**5 + "1", "asked for": f"a: !!int '{'1:' * 10**5}1'",
        "float": "a: 1:30.5", "bytes": "a: !!binary aGk=", "half": r'a: "\uD800"',
    }  # fmt: skip
    for name, text in texts.items():
        (path := tmp_path / name).write_text(text)
        begun = time.process_time()
        with pytest.raises(Refused, match=str(path)) as refusal:
            untrusted.read_yaml(path)
        assert time.process_time() - begun < 5 and len(str(refusal.value)) < 400
    (tmp_path / "ours").write_text("a: &a [1, *a]\n")  # a file of ours may hold aliases
    assert untrusted.read_yaml(tmp_path / "ours", aliases=True)["a"][0] == 1
    (tmp_path / "dates").write_text("a: 2024-01-01\n2024-01-02: !!timestamp 2024-01-03\n")
    dates = {"a": "2024-01-01", "2024-01-02": "2024-01-03"}
    assert untrusted.read_yaml(tmp_path / "dates") == dates
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="pipe"):
        untrusted.read_yaml(tmp_path / "pipe")
    assert not mark.exists()


@pytest.mark.parametrize("strange", [["x"], {"": 1}, 5, True])
def test_an_option_that_is_no_name_is_damage(strange, tmp_path):
    """It would be written beside others, or into the name of a run."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"choices": {"attack": None, "experiment": strange}}))
    with pytest.raises(Refused, match="choices.experiment is no name of an option"):
        untrusted.read_sections(path, ["choices"])


@pytest.mark.parametrize("kind", [Refused, Fault, Diverged])
def test_what_a_message_quotes_makes_no_second_line_of_it(kind):
    told = kind("result.json: status is a\nb\x1b[2J; move it")
    assert str(told) == f"{told}" == r"result.json: status is a\nb\x1b[2J; move it"


NAMES = ["../../../x", "/tmp/x", "..", ".", "-", "a/../../b", "a\nb", "a\0b", "C:\\x", "~root"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_stays_in_its_folder_whatever_it_is_called(name, run, tmp_path):
    plain = yaml.safe_load((run / "config.yaml").read_text())
    for section in ("imagefolder", "npz"):
        place = "path" if section == "npz" else "root"
        own = config.composed([f"dataset={section}", f"dataset.{place}=x"]).config["dataset"]
        spec = config.check({**plain, "dataset": {**own, "name": name}})
        place = (tmp_path / spec.title).resolve()
        assert place.parent == tmp_path.resolve() and not place.name.startswith(".")
    for key in ("attack", "activation", "dataset", "model"):
        spec = config.check({**plain, "choices": {**plain["choices"], key: name}})
        assert (tmp_path / spec.name).resolve().parent == tmp_path.resolve()
    attack = plain["evaluation"]["attacks"]["pgd20"]
    named = {**plain["evaluation"], "attacks": {name: attack}}
    with pytest.raises(Refused, match="^evaluation"):
        config.check({**plain, "evaluation": named})


@pytest.mark.parametrize("name", ["hf-hub:someone/net", "local-dir:/tmp", "../../x", "/etc/passwd"])
def test_a_network_is_one_that_timm_has(name, sat):
    done = sat("model=timm", f"model.name={name}", "dataset.limit=100", tiny=False)
    refused_in_a_line(done, "model.name=", "no such model in timm")


def test_half_a_character_ends_no_report(run, capfd):
    from sat.report.command import main

    result = json.loads((run / "result.json").read_text())
    result["overrides"] = ["a=\ud800"]
    (run / "result.json").write_text(json.dumps(result))
    assert main([str(run.parent)]) == 0
    assert "result.json: is damaged ('utf-8' codec can't encode" in capfd.readouterr().out


def test_reports_stay_in_their_folder(run, capfd):
    from sat.report.command import main

    for name in ("../../x", "/tmp/x", "..", "a\x1b[2Jb"):
        (run / "experiments.txt").write_text(name + "\n")
        assert main([str(run.parent)]) == 0
        assert {path.name for path in run.parents[1].iterdir()} == {"outputs"}
        assert {path.name for path in run.parent.iterdir()} == {run.name, "report"}
        out = capfd.readouterr().out
        assert "has no file in" in out and "\x1b" not in out


@pytest.mark.parametrize(
    "option", ["--experimental-rerun", "--experimental-rerun=", "--exp", "--e"]
)
def test_hydra_unpickles_nothing(option, sat, tmp_path, monkeypatch):
    mark = tmp_path / "it ran"
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(Runs(mark)))
    monkeypatch.chdir(tmp_path)
    words = [f"{option}config.pickle"] if option[-1] == "=" else [option, "config.pickle"]
    refused_in_a_line(sat(*words), "can run any code")
    assert not mark.exists()


# images -------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A whole PNG file of black pixels in a few kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checked)

    head, squeeze = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(squeeze.compress(row) for _ in range(height // 100)) + squeeze.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.fixture
def folder(tmp_path):
    """`train` and `val` with two classes of twelve images."""
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / place).mkdir(parents=True)
        for k in range(12):
            Image.new("RGB", (12, 12), (20 * k, 0, 0)).save(tmp_path / place / f"{k}.png")
    return tmp_path


FOLDER = ["dataset=imagefolder", "dataset.image_size=8", "dataset.workers=0", "model.depth=10",
          "model.width=0.0625", "schedule.epochs=1", "schedule.batch_size=8",
          "validation.attack.steps=1", "evaluation=clean", "evaluation.masking_checks=0",
          "schedule.precision=fp32"]  # fmt: skip


@pytest.mark.parametrize("content", [
    png(60000, 60000), png(12000, 12000), EPS, b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(50), None,
], ids=["bomb", "large", "postscript", "empty", "text", "no png", "pipe"])  # fmt: skip
def test_what_is_no_image_is_named_and_not_decoded(content, folder, sat):
    path = folder / "train/a/3.png"
    path.unlink()
    assert content is None or len(content) < 300_000
    os.mkfifo(path) if content is None else path.write_bytes(content)
    done = sat(*FOLDER, f"dataset.root={folder}", tiny=False)
    assert done.code == 1 and "unreadable image" in done.err, done.err
    assert str(path) in done.err and done.err.count("\n") == 1, done.err


def test_an_image_that_unfolds_is_refused_where_warnings_are_not_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Image.DecompressionBombWarning):
            opened(io.BytesIO(png(12000, 12000)))


def test_rings_and_ladders_of_links_are_walked_once(folder):
    top = folder / "train"
    (top / "a/again").symlink_to(top / "a")
    for step in range(30):  # two links to the next: 2**30 ways to the last
        (top / f"b/{step}").mkdir()
    for step in range(29):
        for side in "lr":
            (top / f"b/{step}/{side}").symlink_to(top / f"b/{step + 1}")
    (top / "b/nowhere.png").symlink_to(top / "none")
    begun = time.process_time()
    files = sorted_files(top, ["a", "b"])
    assert time.process_time() - begun < 5
    assert len(files.labels) == 25
    with pytest.raises(FileNotFoundError):
        files.open(24)
    assert isinstance(files, Files)


def test_dashboards_are_opened_here_alone():
    files = [ROOT / "Makefile", ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    files += [*(ROOT / "sat").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    for path in files:
        text = path.read_text()
        assert not any(word in text for word in ("bind_all", "0.0.0.0", "--host")), path


def undescribed(held):
    """Keys of a result that no field of its description has."""
    yield from held.more
    for value in vars(held).values():
        inner = value.values() if isinstance(value, dict) else value
        for each in inner if isinstance(value, dict | list) else [value]:
            if hasattr(each, "more"):
                yield from undescribed(each)


def test_our_own_results_and_configs_pass(run):
    assert RunResult.read(run).as_json() == json.loads((run / "result.json").read_text())
    assert not any(undescribed(RunResult.read(run)))
    own = untrusted.read_sections(run / "config.yaml", list(identity.SECTIONS))
    assert config.check(own).yaml() == (run / "config.yaml").read_text()
