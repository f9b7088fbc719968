"""The weights that held-out images choose: which they are, and what was measured of them."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from sat.attacks import Clean
from sat.config import Spec
from sat.training.state import TrainState
from sat.training.validation import Validated


class Best:
    """The best weights so far, `kept` with their step, epoch and accuracies as `best.pt` has them;
    None before the first validation."""

    def __init__(self, spec: Spec):
        # Without adversarial training the most robust weights are those that learned nothing.
        hardens = spec.objective.attacked is False  # by other means
        self.selects = "clean" if isinstance(spec.attack, Clean) and not hardens else "robust"
        self.ties = spec.validation.ties
        self.kept: dict[str, Any] | None = None

    def offer(self, state: TrainState, found: Validated, model: nn.Module, of: str) -> bool:
        """Keeps these weights, the `average` or the `weights`, if they are better than all before;
        and whether they are. Raises Diverged where they are no finite numbers."""
        score = [found.robust, found.clean]
        if self.selects == "clean":
            score.reverse()
        if self.kept is not None and not beats(score, state.step, self.kept, self.ties):
            return False
        state.check_finite()
        weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        epoch = state.plan.told_epoch(state.step)
        self.kept = {"step": state.step, "epoch": epoch, "clean": found.clean,
                     "robust": found.robust, "score": score, "model": weights}  # fmt: skip
        if state.average:
            self.kept["of"] = of
        return True

    @property
    def percent(self) -> float:
        """The accuracy by which they were chosen."""
        assert self.kept
        return 100 * self.kept["score"][0]

    def as_json(self) -> dict[str, Any] | None:
        """What `result.json` says of them before the test set is touched."""
        if self.kept is None:
            return None
        return {
            **{key: self.kept[key] for key in ("of", "step", "epoch") if key in self.kept},
            "selected_by": f"{self.selects} accuracy on held-out training images",
            "held_out": {key: self.kept[key] for key in ("clean", "robust")},
        }


def beats(score: Sequence[float], step: int, best: dict[str, Any], ties: str) -> bool:
    """Whether what was measured after `step` takes the place of `best`."""
    if ties == "later" and step > best["step"]:
        return score[0] >= best["score"][0]
    return score > best["score"]
