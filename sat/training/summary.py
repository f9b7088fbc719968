"""What is about to run, in a few lines for the screen and the dashboard."""

from collections.abc import Mapping
from typing import Any

from sat.training.loop import Trainer


def summary(config: Mapping[str, Any], facts: Mapping[str, Any], trainer: Trainer) -> str:
    """`config` is the run's resolved config, `facts` what its journal knows of data and shape."""
    choices = trainer.plan.choices
    lines = [
        data_line(facts["dataset"], facts["shape"]),
        model_line(config, trainer),
        swap_line(config, trainer.model.swap),
        f"attack: {told(config, 'attack')}",
        training_line(trainer),
        f"on: {trainer.device}"
        + f", {trainer.world.size} processes" * (trainer.world.size > 1)
        + f", {choices['threads']} threads, {choices['precision']}"
        + ", channels_last" * choices["channels_last"]
        + ", compiled: the first steps may take minutes" * bool(choices["compile"]),
    ]
    return "\n".join(lines)


def told(config: Mapping[str, Any], section: str) -> str:
    """An option and its arguments: `pgd eps=8 steps=1`."""
    words = [config["choices"].get(section, section)]
    for key, value in config[section].items():
        if key != "_target_" and value is not None:
            words.append(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}")
    return " ".join(words)


def data_line(dataset: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    few = " (few: `best` is a coarse choice)" if dataset["held_out"] < 100 else ""
    size = shape["image_size"]
    return (
        f"data: {dataset['name']}: {dataset['train']:,} training,"
        f" {dataset['held_out']:,} held-out{few}, {dataset['test']:,} test images"
        f" of {dataset['classes']} classes, {shape['channels']}x{size}x{size}"
    )


def model_line(config: Mapping[str, Any], trainer: Trainer) -> str:
    parameters = sum(p.numel() for p in trainer.model.parameters())
    cost = trainer.plan.image_cost / 1e6
    return (
        f"model: {told(config, 'model')}: {parameters:,} parameters,"
        f" {cost:,.1f} million multiply-adds an image"
    )


def swap_line(config: Mapping[str, Any], swap: Any) -> str:
    gates = ", ".join(swap.gates[:3]) + ", ..." * (len(swap.gates) > 3)
    return (
        f"activation: {told(config, 'activation')}: {swap.swapped} activations swapped, none left;"
        f" {len(swap.gates)} gates left alone{': ' * bool(gates)}{gates}"
    )


def training_line(trainer: Trainer) -> str:
    plan, schedule = trainer.plan, trainer.plan.schedule
    off = {"warmup_epochs": 0, "label_smoothing": 0, "ema": 0, "accumulate": 1, "clip": 0}
    extras = "".join(
        f", {key}={value if isinstance(value, str) else f'{value:g}'}"
        for key, usual in off.items()
        if (value := getattr(schedule, key)) != usual
    )
    return (
        f"training: {plan.steps:,} steps of {schedule.batch_size} images,"
        f" {plan.epoch(plan.steps):.2f} epochs; {schedule.optimizer}, {schedule.decay},"
        f" learning_rate={schedule.learning_rate:g} for 256 images{extras}"
    )
