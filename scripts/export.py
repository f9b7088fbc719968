"""Gives a run's model to others: `python scripts/export.py outputs/<run>`."""

import argparse
import json
import sys
from pathlib import Path

from sat.models.export import CONFIG, export


def how_to_load(folder: Path) -> str:
    """The lines of Python that give the model, ready for images in [0, 1]."""
    needs = json.loads((folder / CONFIG).read_text())["architecture"] == "sat"
    lines = ["import timm, torch"]
    lines += ["import sat.models.export  # registers the architecture `sat` with timm"] if needs else []
    return "\n".join([
        *lines,
        f'net = timm.create_model("local-dir:{folder}", pretrained=True).eval()',
        'mean, std = (torch.tensor(net.pretrained_cfg[k]).view(-1, 1, 1) for k in ("mean", "std"))',
        "logits = net((images - mean) / std)  # images [B, C, H, W] in [0, 1]",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's directory")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="the checkpoint")
    parser.add_argument("--to", type=Path, help="a folder (default: <run>/export-<which>)")
    arguments = parser.parse_args()
    folder = arguments.to or arguments.run / f"export-{arguments.which}"
    try:
        folder = export(arguments.run, folder, arguments.which)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{folder}: written, loaded by timm, and its logits are those of the run\n")
    print(how_to_load(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
