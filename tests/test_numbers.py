"""Each number of the config has a range: one outside is refused in a line that names its key."""

import math
import time
import types
from collections.abc import Iterator
from itertools import product
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from inputs import memory_limited
from omegaconf import OmegaConf
from torch import nn

from sat.config import CONF, build, check, resolve, target
from sat.errors import Refused
from sat.identity import FOLLOWED, START
from sat.models.memory import build_within

# What nothing computes with, and what float32 and int64 just hold.
EXTREMES = [
    0, -1, 1e-300, 5e-324, 1e300, 1.7e308, 10**19, math.nan, math.inf, -1e300,
    1.2e-38, 1e-9, 1e9, 1e18, 1e39, 3e38, 2**62,
]  # fmt: skip

PGD_10 = {"_target_": "sat.attacks.PGD"}


def numbers(hint: Any) -> bool | None:
    """Whether a place takes a number (True) or a list of them (False)."""
    union = get_origin(hint) in (Union, types.UnionType)
    for part in get_args(hint) if union else (hint,):
        if part in (int, float):
            return True
        if get_origin(part) in (tuple, list) and get_args(part)[0] in (int, float):
            return False
    return None


def options() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each group and each option of it that names a class, with its values that are written out."""
    for file in sorted(CONF.rglob("*.yaml")):
        group = file.parent.relative_to(CONF).as_posix()
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        if isinstance(content, dict) and "_target_" in content:
            path, beside = group.replace("/", "."), {"dataset": FOLLOWED, "model": START}
            node = {k: v for k, v in plain(content).items() if k not in beside.get(path, ())}
            yield from places(path, node | ({"attack": PGD_10} if path == "validation" else {}))


def places(path: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A node and those in it, such as an evaluation's attacks and curves."""
    if "_target_" in node:
        yield path, node
    for key, value in node.items():
        if isinstance(value, dict):
            yield from places(f"{path}.{key}", value)


def plain(content: Any) -> Any:
    """A node without what is interpolated or composed."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()
                if key != "defaults" and "${" not in str(value)}  # fmt: skip
    return content


def nodes(node: dict[str, Any], cls: Any) -> Iterator[tuple[str, bool]]:
    for key, hint in get_type_hints(cls.__init__).items():
        if (single := numbers(hint)) is not None:
            yield key, single


CASES = list({str(case): case for case in options()}.values())


@pytest.mark.parametrize("path, node", CASES, ids=[f"{p}-{n['_target_']}" for p, n in CASES])
def test_an_extreme_number_is_refused_by_its_key_or_taken(path, node):
    cls = target(node["_target_"], path)
    for key, single in nodes(node, cls):
        for value in EXTREMES:
            given = {**node, key: value if single else [value]}
            try:
                build(given, path, partial_=path == "activation")
            except Refused as fault:
                said = str(fault)
                assert said.startswith(f"{path}.") and f"{key}=" in said, (value, said)
                assert "\n" not in said


def test_numbers_that_no_class_takes_are_refused_by_their_keys():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        usual = resolve(compose("config"))
    keys = [f"dataset.{key}" for key in ("eps", "depth", "width")] + [
        "model.mean",
        "model.std",
        "seed",
    ]
    for key, value in product(keys, EXTREMES):
        group, _, name = key.partition(".")
        given = [value] if group == "model" else value
        words = {key: given} if not name else {group: {**usual[group], name: given}}
        try:
            check({**usual, **words})
        except Refused as fault:
            assert str(fault).startswith(f"{key}=") and "\n" not in str(fault)


@pytest.mark.parametrize("word, says", [
    ("augment=cutout", "augment=cutout: leaves nothing of images of 8 pixels"),
    ("dataset.crop=8", "dataset.crop=8: leaves nothing of 8 pixels"),
    ("validation.attack.target=10", "validation.attack.target=10: there are 9 wrong classes"),
])  # fmt: skip
def test_what_a_set_can_not_have_is_refused_before_training(word, says, sat):
    done = sat(word)
    assert done.code == 2 and says in done.err and not done.runs


def test_a_line_comes_before_an_attack_that_may_take_long(sat, monkeypatch):
    def tried(*given):
        time.sleep(0.2)
        raise Refused("attack: is tried now")

    monkeypatch.setattr("sat.loggers.screen.SILENT", 0.01)
    monkeypatch.setattr("sat.training.preflight.preflight", tried)
    done = sat()
    assert (done.code, done.err) == (2, "! attack: is tried now\n")
    assert done.out.endswith("trying network and attack on 32 images ...\n")


def of_memory(monkeypatch, size: int) -> None:
    """Has the machine that much memory."""
    for place in ("sat.models.weights", "sat.training.train"):
        monkeypatch.setattr(f"{place}.room", lambda device: size)


def test_a_large_network_is_counted_before_its_memory_is_written():
    large = lambda: nn.Linear(2**16, 2**13)  # noqa: E731, 2.1 GB
    with memory_limited(1 << 30), pytest.raises(ValueError, match="^width=9: its weights take 2.1"):
        build_within(2e9, large, "width=9")
    assert build_within(1, lambda: nn.Linear(2, 2), "").in_features == 2


@pytest.mark.parametrize("size, words, says", [
    (None, ["model.width=277"], "model.width=277.0: "),
    (None, ["schedule.batch_size=1e9"], "schedule.batch_size=1000000000: is a number of images"),
    (10**6, ["schedule.batch_size=2000"],
     "schedule.batch_size=2000: its images take 1.02 MB under an attack, and there are 1 MB;"
     " write 1953 at most"),
    (4 * 10**5, [], "schedule.batch_size=32: an update keeps 406 kB for its backward pass, and"
     " there are 400 kB; write schedule.accumulate=2, or a smaller batch"),
])  # fmt: skip
def test_what_no_memory_holds_is_refused_by_its_key(size, words, says, sat, monkeypatch):
    if size is not None:
        of_memory(monkeypatch, size)
    done = sat(*words)
    assert done.code == 2 and says in done.err and not done.runs
    assert "evaluation.batch_size" not in done.err
