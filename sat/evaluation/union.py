"""Robustness in several balls at once: an image stands that withstands the attack in each (Tramer
and Boneh 2019, "Adversarial training and robustness for multiple perturbations")."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sat.evaluation.measure import accuracy
from sat.rundir.result import Accuracy


def union(found: Mapping[str, Any], labels: Tensor) -> Any:
    """What the attacks of several norms leave together, of a `Robustness` for each on the same
    images with `labels` [N]; `felled` counts the images that fell in each ball first."""
    first, *others = found.values()
    standing, adversarial = first.standing, first.adversarial.clone()
    felled = [sum(first.felled.values())]
    for one in others:
        new = standing & ~one.standing
        adversarial[new], standing = one.adversarial[new], standing & ~new
        felled.append(int(new.sum()))
    told = {"name": first.attack["name"], "norm": "union",
            "eps": {norm: one.attack["eps"] for norm, one in found.items()},
            "norms": {norm: one.attack for norm, one in found.items()}}  # fmt: skip
    return replace(
        first,
        robust=Accuracy(**accuracy(standing)), standing=standing, adversarial=adversarial,
        felled=dict(zip(found, felled, strict=True)), classes=shares_by_class(standing, labels),
        masking_checks=None, attack=told, norms=dict(found),
        alarms=[replace(alarm, message=f"{norm}: {alarm.message}")
                for norm, one in found.items() for alarm in one.alarms],
        ties={key: max(one.ties[key] for one in found.values()) for key in first.ties},
        seconds=round(sum(one.seconds for one in found.values()), 3),
    )  # fmt: skip


def shares_by_class(flags: Tensor, labels: Tensor) -> dict[int, float]:
    """The share of each class's images whose flag [N] is set."""
    return {k: float(flags[labels == k].double().mean()) for k in torch.unique(labels).tolist()}
