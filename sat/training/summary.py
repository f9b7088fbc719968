"""What is about to run, in a few lines for the screen and the trackers."""

from collections.abc import Mapping
from typing import Any

from sat.config import Spec
from sat.evaluation.reproduction import Published, overridden
from sat.training.best import Best
from sat.training.state import TrainState

FEW = 150  # after 34, 51 and 105 steps networks for small sets of a few classes were at chance


def summary(spec: Spec, facts: Mapping[str, Any], state: TrainState) -> str:
    """`facts` is what the run's callbacks know of data and shape."""
    choices = state.plan.choices
    lines = [
        data_line(facts["dataset"], facts["shape"]) + extra_words(spec.config["dataset"]),
        model_line(spec, state),
        swap_line(spec, state.model.swap),
        "attack: "
        + described(spec, "attack").replace("loss=auto", f"loss=auto (here {state.attack.loss})"),
        f"objective: {described(spec, 'objective')}",
        *(
            f"{group}: {described(spec, group)}"
            for group in ("regulariser", "weight_attack")
            if spec.choices.get(group, "none") != "none"
        ),
        f"augment: {described(spec, 'augment')}",
        training_line(state),
        *validation_lines(facts["dataset"]["held_out"], Best(spec).selects),
        *verdict_lines(spec),
        f"on: {state.device}"
        + f", {state.world.size} processes" * (state.world.size > 1)
        + f", {choices['threads']} thread{'s' * (choices['threads'] != 1)}, {choices['precision']}"
        + ", channels_last" * choices["channels_last"]
        + ", compiled: the first steps may take minutes" * bool(choices["compile"]),
    ]
    return "\n".join(lines)


def described(spec: Spec, section: str) -> str:
    """An option and its arguments, but for what it leaves switched off: `pgd eps=8 steps=1`."""
    words = [spec.choices.get(section, section)]
    for key, value in spec.config[section].items():
        off = value is None or not value and key in spec.settings[section].usual
        if key != "_target_" and not off:
            words.append(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}")
    return " ".join(words)


def data_line(dataset: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    few = " (few: the choice of `best` is noisy)" if dataset["held_out"] < 100 else ""
    few = few if dataset["held_out"] else " (no `best`, no alarm while it trains)"
    size = shape["image_size"]
    return (
        f"data: {dataset['name']}: {dataset['train']:,} training,"
        f" {dataset['held_out']:,} held-out{few}, {dataset['test']:,} test images"
        f" of {dataset['classes']} classes, {shape['channels']}x{size}x{size}"
    )


def extra_words(dataset: Mapping[str, Any]) -> str:
    """How much of a batch comes from a file beside the set, where there is one."""
    if not dataset.get("extra"):
        return ""
    return f"; {dataset['extra_fraction']:.3g} of each batch from {dataset['extra']}"


def model_line(spec: Spec, state: TrainState) -> str:
    parameters = sum(p.numel() for p in state.model.parameters())
    cost = state.plan.image_cost / 1e6
    return (
        f"model: {described(spec, 'model')}: {parameters:,} parameters,"
        f" {cost:,.1f} million multiply-adds an image"
    )


def swap_line(spec: Spec, swap: Any) -> str:
    gates = ", ".join(swap.gates[:3]) + ", ..." * (len(swap.gates) > 3)
    told = f"{len(swap.places)} kept" if swap.kept else f"{swap.swapped} swapped, none left"
    left = f"; {len(swap.gates)} sigmoid or softmax gates left as they are: {gates}"
    return f"activation: {described(spec, 'activation')}: {told}" + left * bool(gates)


def validation_lines(held_out: int, selects: str) -> list[str]:
    """What a validation will say, in a few characters, of the held-out images."""
    if not held_out:
        return []
    told = f"validation: `val C/R` is clean/robust accuracy in % on {held_out:,} held-out images"
    return [f"{told}; `best` is the highest {selects} one so far, whose weights are best.pt"]


def verdict_lines(spec: Spec) -> list[str]:
    """Why a run of a recipe won't be compared with its published numbers, before it trains."""
    published = Published.of(spec.config.get("published"))
    if published is None or not published.overridden:
        return []
    return [f"no verdict: {overridden(published, 3)}"]


def training_line(state: TrainState) -> str:
    plan, schedule = state.plan, state.plan.schedule
    off: dict[str, Any] = {"warmup_epochs": 0, "layer_decay": 1, "ema": 0, "ema_ramp": False}
    off |= {"ema_start": 0, "swa_start": 0, "accumulate": 1, "clip": 0}
    extras = "".join(
        f", {key}={value if isinstance(value, str | bool) else f'{value:g}'}"
        for key, usual in off.items()
        if (value := getattr(schedule, key)) != usual
    )
    if schedule.batch_size > plan.images:
        extras += (
            f" (! a batch is more than all {plan.images:,} training images, which moves the number"
            f" of epochs; write schedule.batch_size={max(2, plan.images // 2)} or less)"
        )
    elif plan.steps < FEW:
        extras += " (so few steps may teach nothing; a smaller schedule.batch_size makes more)"
    return (
        f"training: {plan.steps:,} step{'s' * (plan.steps != 1)} of {schedule.batch_size} images,"
        f" {plan.epochs} epoch{'s' * (plan.epochs != 1)}; {schedule.optimizer}, {schedule.decay},"
        f" learning_rate={schedule.learning_rate:g} for {schedule.learning_rate_batch} images"
        + extras
    )
