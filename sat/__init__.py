"""Smooth Adversarial Training: `python -m sat.run` trains, `sat.load` gives the model."""


def load(run_directory, which="best", device="cpu"):
    """The trained model of a run directory, ready for images [B, C, H, W] in [0, 1]."""
    from sat.models.weights import load

    return load(run_directory, which, device)
