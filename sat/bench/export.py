"""Gives a run's model to others, in timm's format: `sat-export outputs/<run>`, which is the same as
`python scripts/export.py outputs/<run>`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sat.models.export import CONFIG, export


def how_to_load(folder: Path) -> str:
    """The lines of Python that give the model, ready for images in [0, 1]."""
    needs = json.loads((folder / CONFIG).read_text())["architecture"] == "sat"
    lines = ["import timm, torch"]
    lines += ["import sat.models.export  # registers `sat` with timm"] if needs else []
    return "\n".join([
        *lines,
        f'net = timm.create_model("local-dir:{folder}", pretrained=True).eval()',
        'mean, std = (torch.tensor(net.pretrained_cfg[k]).view(-1, 1, 1) for k in ("mean", "std"))',
        "logits = net((images - mean) / std)  # images [B, C, H, W] in [0, 1]",
    ])  # fmt: skip


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="export.py", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's directory")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="the checkpoint")
    parser.add_argument("--to", type=Path, help="a folder (default: <run>/export-<which>)")
    own = parser.parse_args(given)
    folder = own.to or own.run / f"export-{own.which}"
    try:
        folder = export(own.run, folder, own.which)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{folder}: written, loaded by timm, and its logits are those of the run\n")
    print(how_to_load(folder))
    return 0
