"""Published corrupted sets, in their form: arrays as CIFAR-10-C, folders as ImageNet-C."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from torch import nn

from sat.data.corrupted import SEVERITIES, TYPES, Corrupted
from sat.data.sets import Data
from sat.distributed import ALONE
from sat.errors import Refused
from sat.evaluation.corruptions import CorruptionStore, measure, text
from sat.evaluation.measure import by_class
from sat.evaluation.settings import Evaluation
from sat.evaluation.todo import lacks_corruptions
from sat.rundir.result import CheckpointResult
from sat.training.preflight import check_corruptions

CPU = torch.device("cpu")
EACH = 6  # images of a type and severity


class Brightness(nn.Module):
    """Two classes: dark and bright."""

    def __init__(self, channels):
        super().__init__()
        self.mean = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))

    def forward(self, x):
        level = (x - self.mean).flatten(1).mean(1)
        return torch.stack([-level, level], 1)


@pytest.fixture
def colours():
    part = torch.zeros(0)
    return Data("two", ("dark", "light"), 3, 4, (0.5,) * 3, (1.0,) * 3, part, part, part, True)


def pixels(kind, severity, label):
    """Right at the severities up to a number that depends on the type."""
    right = severity <= TYPES.index(kind) % 6
    return 255 * (label if right else 1 - label)


def arrays(folder, shape=(4, 4, 3), classes=2):
    """As published: `<type>.npy` of five severities one after the other, and `labels.npy`."""
    folder.mkdir()
    labels = np.tile(np.arange(EACH) % classes, len(SEVERITIES))
    np.save(folder / "labels.npy", labels)
    for kind in (*TYPES, "spatter"):  # one that is for validation
        kinds = kind if kind in TYPES else "fog"
        levels = [pixels(kinds, s, label % 2) for s in SEVERITIES for label in labels[:EACH]]
        images = np.ones((len(levels), *shape)) * np.reshape(levels, (-1, 1, 1, 1))
        np.save(folder / f"{kind}.npy", images.astype(np.uint8))
    return folder


def folders(folder, size=4):
    """As published: `<type>/<severity>/<class>/*.JPEG`."""
    for kind in TYPES:
        for severity in SEVERITIES:
            for label, name in enumerate(("dark", "light")):
                place = folder / kind / str(severity) / name
                place.mkdir(parents=True)
                level = pixels(kind, severity, label)
                for k in range(EACH // 2):
                    Image.new("RGB", (size, size), (level,) * 3).save(place / f"{k}.JPEG")
    return folder


EXPECTED = {kind: [float(s <= TYPES.index(kind) % 6) for s in SEVERITIES] for kind in TYPES}


@pytest.mark.parametrize("make", [arrays, folders])
def test_every_type_at_every_severity_counts_as_much(make, colours, tmp_path):
    root = make(tmp_path / "CIFAR-10-C")
    images, store = Corrupted(root, colours), CorruptionStore(tmp_path / "cells", "w")
    found = measure(Brightness(3), images, store, 4, ALONE, "x")
    assert found.types == EXPECTED and found.images == EACH
    assert found.accuracy == pytest.approx(np.mean([*EXPECTED.values()]))
    assert found.by_class.lowest == pytest.approx(found.accuracy) and found.limit is None
    few = Corrupted(root, colours, 2).split("fog", 3, CPU)
    assert len(few) == 2 and few.labels.tolist() == [0, 1]
    shown = text("best", "CIFAR-10-C", found).splitlines()
    assert shown[2].split() == ["gaussian_noise", *["0.0"] * 6]
    assert shown[-1].split()[-1] == f"{100 * found.accuracy:.1f}" and len(shown) == 18


def test_what_a_killed_evaluation_has_measured_is_kept_for_the_same_weights(colours, tmp_path):
    root, cells = arrays(tmp_path / "set"), tmp_path / "cells"

    class Killed(Brightness):
        asked = 0

        def forward(self, x):
            self.asked += 1
            if self.asked == 40:
                raise KeyboardInterrupt
            return super().forward(x)

    network = Killed(3)
    with pytest.raises(KeyboardInterrupt):
        measure(network, Corrupted(root, colours), CorruptionStore(cells, "w"), 8, ALONE, "x")
    found = measure(network, Corrupted(root, colours), CorruptionStore(cells, "w"), 8, ALONE, "x")
    assert found.types == EXPECTED and network.asked == 80  # a type is begun again
    np.save(root / "fog.npy", 255 - np.load(root / "fog.npy"))
    changed = measure(network, Corrupted(root, colours), CorruptionStore(cells, "w"), 8, ALONE, "x")
    assert network.asked == 85 and changed.types["fog"] == [1 - s for s in EXPECTED["fog"]]
    measure(network, Corrupted(root, colours), CorruptionStore(cells, "other"), 8, ALONE, "x")
    assert network.asked == 85 + 75


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda root: (root / "fog.npy").unlink(), "lacks fog; name the folder"),
        (lambda root: np.save(root / "labels.npy", np.arange(30)), "0 to 1, the classes"),
        (lambda root: np.save(root / "labels.npy", np.zeros(9, int)), "9 labels"),
        (lambda root: np.save(root / "fog.npy", np.zeros((30, 4, 4, 3))), "holds float64"),
        (lambda root: np.save(root / "fog.npy", np.zeros((30, 4, 4, 1), np.uint8)), "1 channels"),
        (lambda root: (root / "fog.npy").write_bytes(b"PK"), "can't be read"),
        (lambda root: np.save(root / "fog.npy", np.array([{}])), "can't be read"),
    ],
)
def test_another_set_is_refused_in_one_line(spoil, words, colours, tmp_path):
    root = arrays(tmp_path / "set")
    spoil(root)
    with pytest.raises(Refused, match=words):
        Corrupted(root, colours).split("fog", 1, CPU)
    with pytest.raises(Refused, match=words) as told:
        check_corruptions(Evaluation(corruptions=str(root)), colours)
    assert str(root) in str(told.value) and "\n" not in str(told.value)


def test_a_set_that_can_not_be_measured_is_refused_before_anything_is_trained(sat, tmp_path):
    (tmp_path / "none").mkdir()
    done = sat(f"evaluation.corruptions={tmp_path / 'none'}")
    assert done.code == 2 and "lacks gaussian_noise" in done.err and not done.runs
    check_corruptions(Evaluation(), None)


def test_severities_of_other_numbers_of_images_are_refused(colours, tmp_path):
    root, store = folders(tmp_path / "folders"), CorruptionStore(tmp_path / "cells", "w")
    (root / "fog" / "3" / "dark" / "1.JPEG").unlink()
    with pytest.raises(Refused, match="fog: has 6 images of severity 1 and 5 of severity 3"):
        measure(Brightness(3), Corrupted(root, colours), store, 8, ALONE, "x")
    root = arrays(tmp_path / "arrays")
    np.save(root / "labels.npy", np.zeros(29, int))
    np.save(root / "fog.npy", np.load(root / "fog.npy")[:29])  # no multiple of five
    with pytest.raises(Refused, match="fog.npy: holds uint8 .29, 4, 4, 3."):
        Corrupted(root, colours).split("fog", 1, CPU)


def test_class_folders_of_another_set_are_refused(colours, tmp_path):
    root = folders(tmp_path / "set")
    (root / "fog" / "2" / "light").rename(root / "fog" / "2" / "grey")
    with pytest.raises(Refused, match="the class 'grey', which the data set has not"):
        Corrupted(root, colours).split("fog", 2, CPU)
    with pytest.raises(Refused, match="the class 'grey', which the data set has not"):
        Corrupted(root, colours).check()
    (root / "fog" / "1" / "light" / "0.JPEG").write_bytes(b"no image")
    from sat.data.sets import UnreadableImage

    split = Corrupted(root, colours).split("fog", 1, CPU)
    from sat.data.batches import indexed

    with pytest.raises(UnreadableImage):
        list(indexed(split, torch.arange(len(split)), 2))


def test_the_spread_over_classes():
    flags, labels = torch.tensor([1, 1, 0, 0, 1, 1]).bool(), torch.tensor([0, 0, 2, 2, 2, 3])
    found = by_class(flags, labels, ["cat", "none", "dog", "ship"])
    assert (found.worst, found.best) == ("dog", "cat")
    assert (found.lowest, found.highest) == (pytest.approx(1 / 3), 1.0)
    assert found.deviation == pytest.approx(np.std([1, 1 / 3, 1]))
    assert by_class(flags, labels - 1, ["cat"] * 4) is None  # a label is unknown
    assert by_class(flags[:0], labels[:0], ["cat"]) is None


def test_a_run_is_measured_on_a_corrupted_set(sat, ran, tmp_path):
    root = arrays(tmp_path / "Digits-C", (8, 8, 1), 10)
    words = [
        "evaluation=corruptions",
        "evaluation.checkpoints=[last]",
        *(a for a in TINY if "pgd20" not in a),
    ]
    done = sat(*words, f"evaluation.corruptions={root}", tiny=False)
    assert done.code == 0, done.err
    found = done.result["last"]["corruptions"]["Digits-C"]
    assert np.mean([*found["types"].values()]) == pytest.approx(found["accuracy"])
    assert "last: Digits-C" in done.out and "jpeg_compression" in done.out
    assert (done.run / "corruptions/last-Digits-C.png").stat().st_size > 1000
    assert len((done.run / "corruptions/last-Digits-C.csv").read_text().splitlines()) == 16
    rows = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("test/corruptions/Digits-C") == found["accuracy"] for row in rows)
    (root / "fog.npy").unlink()  # nothing is measured twice
    again = sat(*words, f"evaluation.corruptions={root}", tiny=False)
    assert again.code == 0 and again.result == done.result
    refused = sat(*words, f"evaluation.corruptions={tmp_path}", tiny=False)
    assert refused.code == 2 and "lacks gaussian_noise" in refused.out + refused.err
    nothing = sat(*words, tiny=False)
    assert nothing.code == 2 and "evaluation.corruptions" in nothing.out + nothing.err


def test_another_folder_of_the_same_name_is_another_set(colours, tmp_path, monkeypatch):
    roots = [tmp_path / name / "set" for name in ("a", "b")]
    for root in roots:
        root.parent.mkdir()
        arrays(root)
    store = CorruptionStore(tmp_path / "cells", "w")
    found = measure(Brightness(3), Corrupted(roots[0], colours), store, 8, ALONE, "x")
    part = CheckpointResult(step=1, epoch=1.0, corruptions={"set": found})
    asked = [Evaluation(corruptions=str(root)) for root in roots]
    assert [lacks_corruptions(part, one) for one in asked] == [False, True]
    monkeypatch.chdir(roots[0])
    assert not lacks_corruptions(part, Evaluation(corruptions="."))
    np.save(roots[0] / "fog.npy", np.load(roots[0] / "fog.npy")[:5])
    assert lacks_corruptions(part, asked[0])
    for nameless in ("", "/"):
        with pytest.raises(ValueError, match="corruptions=.*: name the folder"):
            Evaluation(corruptions=nameless)
