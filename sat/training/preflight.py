"""Is the set-up sound? One batch tells, before hours of training do."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sat.acceleration.precision import float32
from sat.activations.swap import in_eval_mode
from sat.arguments import complete
from sat.attacks import MinimalNorm
from sat.attacks.base import Attack, check_attack, check_fields, is_setting
from sat.attacks.minimal_norm import adv_lib
from sat.config import Spec
from sat.data import Data, Loader
from sat.data.augment import Augment, Unchanged
from sat.data.corrupted import Corrupted, place_of
from sat.data.folders import FolderSet
from sat.distributed import normed_by_attack
from sat.errors import Refused, refusing
from sat.evaluation.settings import Evaluation, Validation
from sat.models.foreign import NO_GRADIENT, has_gradient
from sat.models.memory import kept_for_backward, size_of
from sat.objectives import Method, Objective, Regulariser, Unperturbed
from sat.rng import RowRng
from sat.training.schedule import Schedule

log = logging.getLogger("sat")


def named(options: Mapping[str, str], group: str) -> str:
    """What a run has of a group, by its option's name, as `objective=mart`."""
    return f"{group}={options[group]}" if options.get(group) else group


def check_training(spec: Spec) -> Method:
    """The method of a run that trains. Raises Refused, naming key or option, for all that makes no
    sense whatever the images and the machine are."""
    complete(spec.regulariser, Regulariser)
    check_objective(spec.attack, spec.objective, spec.choices)
    check_validation(spec.validation, spec.schedule)
    method = Method.of(spec)
    check_method(method, spec.schedule, spec.choices)
    complete(spec.augment, Augment)
    check_labels(spec.objective, spec.augment, spec.choices)
    return method


def check_sizes(spec: Spec, held_out: int, classes: int, pixels: int) -> None:
    """Raises Refused for what can't be had of a set with so many held-out images and classes, or of
    images with so many pixels a side."""
    if spec.evaluate is None:
        check_held_out(spec.evaluation, held_out)
    measured = attacks_of(spec)
    check_classes(measured, classes)
    for key, attack in measured.items():
        with refusing(f"{key}."):
            attack.check_size(pixels, pixels)


def check_objective(attack: Attack, objective: Objective, options: Mapping[str, str]) -> None:
    """Raises Refused for a training whose objective and attack make no sense together, by the
    `options` that the groups have."""
    with refusing("attack: "):
        check_fields(attack)
    complete(objective, Objective)
    name = named(options, "objective")
    if objective.attacked and not attack.eps:
        raise Refused(
            f"{name}: compares adversarial with clean images,"
            " and without an attack they are the same; write attack=pgd, or objective=adversarial"
        )
    if objective.attacked is False and attack.eps:
        raise Refused(
            f"{name}: looks at no adversarial image; write attack=none, or objective=adversarial"
        )
    if attack.eps and objective.attack_loss != "ce" and not is_setting(attack, "loss"):
        raise Refused(
            f"{name}: its attack ascends {objective.attack_loss}, and"
            f" {named(options, 'attack')} only {attack.loss}; write attack=pgd"
        )


def check_validation(validation: Validation, schedule: Schedule) -> None:
    """Raises Refused where `best` is to be chosen from what a run does not have."""
    if validation.weights == "either" and not schedule.averages:
        raise Refused(
            "validation.weights=either: the run averages no weights; write validation.weights="
            "average, or schedule.ema=0.995"
        )


def check_held_out(evaluation: Evaluation, images: int) -> None:
    """Raises Refused where `best` is asked for and no images choose it."""
    if not images and evaluation.checkpoints == ("best",):
        raise Refused(
            "evaluation.checkpoints=[best]: none is chosen with dataset.holdout=0; write [last]"
        )


def check_packages(evaluation: Evaluation) -> None:
    """Raises Refused where a package is not installed that the evaluation needs."""
    if any(isinstance(curve, MinimalNorm) for curve in evaluation.curves.values()):
        adv_lib()


def check_corruptions(evaluation: Evaluation, data: Data) -> None:
    """Raises Refused where the corrupted images that are asked for are none of this set."""
    if evaluation.corruptions is not None:
        Corrupted(place_of(evaluation.corruptions), data).check()


def check_sampler(loader: Loader) -> None:
    """Raises Refused for a sampler that gives no batch of this set, by its first step."""
    sizes, size = loader.data.sizes, loader.batch_size
    mixed = {"fraction": "extra_fraction"} if loader.sampler is loader.data.mixture else {}
    with refusing("dataset." if mixed else "sampler.", **mixed):
        indices = loader.sampler(loader.seed, 0, size, sizes)
    whole = indices.dtype == torch.int64 and indices.shape == (size,)
    if not whole or not 0 <= int(indices.min()) <= int(indices.max()) < sum(sizes):
        raise Refused(
            f"sampler: gives {indices.dtype} of shape {list(indices.shape)}; it must give"
            f" {size} places, int64, of {sum(sizes)} images"
        )


def check_batch(schedule: Schedule, data: Any, room: int) -> None:
    """Raises Refused for a batch of which not even the images fit into `room` bytes, with what an
    attack makes of them."""
    size = 2 * 4 * data.channels * data.image_size**2
    if schedule.batch_size * size > room:
        raise Refused(
            f"schedule.batch_size={schedule.batch_size}: its images take"
            f" {size_of(schedule.batch_size * size)} under an attack, and there are"
            f" {size_of(room)}; write {room // size} at most"
        )


def check_memory(schedule: Schedule, model: nn.Module, x: Tensor, room: int) -> None:
    """Raises Refused where an update needs more than `room` bytes, as a forward of one image x
    [1, C, H, W] tells: what each layer is given is kept for the backward pass, and more."""
    if schedule.grad_checkpointing or schedule.accumulate == "auto":
        return
    with in_eval_mode(model), torch.no_grad(), kept_for_backward(model) as counts:
        model(x)
    image = (4 if schedule.precision == "fp32" else 2) * sum(counts)  # bytes
    at_once = -(-schedule.batch_size // schedule.parts)
    if at_once * image > room:
        parts = -(-schedule.batch_size * image // room)
        may = 2 * parts <= schedule.batch_size  # two images a part
        remedy = f"schedule.accumulate={parts}, or a smaller batch" if may else "smaller images"
        raise Refused(
            f"schedule.batch_size={schedule.batch_size}: an update keeps {size_of(at_once * image)}"
            f" for its backward pass, and there are {size_of(room)}; write {remedy}"
        )


def check_labels(objective: Objective, augment: Augment, options: Mapping[str, str]) -> None:
    """Raises Refused for mixed images where an objective is about one label of each, and for views
    that are all alike where it compares them."""
    if objective.views > 1 and isinstance(augment, Unchanged):
        raise Refused(
            f"{named(options, 'objective')}: compares augmentations of an image, which are all"
            f" alike with {named(options, 'augment')}; write augment=standard, or another"
        )
    if objective.one_label and augment.partners:
        raise Refused(
            f"{named(options, 'objective')}: weighs an image by the answer to its one label, and"
            f" {named(options, 'augment')} mixes two images and their labels; write"
            " augment=standard, or another that mixes none"
        )


def check_augment(loader: Loader, options: Mapping[str, str]) -> None:
    """Raises Refused for an augmentation that breaks its contract, as two images tell."""
    given = loader.augment
    name, data = named(options, "augment"), loader.data
    count, classes = 2 * (1 + given.partners), len(data.classes)
    x = torch.linspace(0, 1, count).view(-1, 1, 1, 1)
    x = x.expand(-1, data.channels, data.image_size, data.image_size).contiguous()
    y = torch.eye(classes)[:1].expand(count, -1) if given.partners else torch.zeros(count).long()
    x, y = given(x, y, RowRng(0, torch.arange(2)))
    labels = (2, classes) if given.partners else (2,)
    shape = (2, data.channels, data.image_size, data.image_size)
    if x.shape != shape or y.shape != labels or not (x >= 0).all() or not (x <= 1).all():
        raise Refused(
            f"{name}: makes images of {list(x.shape)} and labels of {list(y.shape)} where"
            f" {list(shape)}, from 0 to 1, and {list(labels)} are due"
        )
    if not x.any():
        raise Refused(f"{name}: leaves nothing of images of {data.image_size} pixels; see its keys")


def check_method(method: Method, schedule: Schedule, options: Mapping[str, str]) -> None:
    """Raises Refused, naming the key or the option, for what a schedule can't do with it."""
    if method.second_order:
        check_second_order(schedule)
    unperturbed = isinstance(method.weight_attack, Unperturbed)
    if method.attack.replays and not unperturbed:
        raise Refused(
            f"{named(options, 'weight_attack')}: moves the weights after the attack, and"
            f" {named(options, 'attack')} is the update's own gradient; write weight_attack=none,"
            " or attack=pgd"
        )
    if method.attack.replays and schedule.swa_start:
        raise Refused(
            f"schedule.swa_start={schedule.swa_start:g}: estimates statistics under the training's"
            f" attack, and {named(options, 'attack')} is the update's own gradient; write"
            " schedule.ema=0.999"
        )
    norm = method.regulariser.norm
    if norm is not None and method.attack.norm != norm:
        raise Refused(
            f"{named(options, 'regulariser')}: its noise fills a ball of {norm}, and the attack's"
            f" is of {method.attack.norm}; write attack.norm={norm}, or regulariser=none"
        )
    if method.attack.update_statistics and schedule.grad_checkpointing:
        raise Refused(
            "schedule.grad_checkpointing=true: computes each forward of the attack twice, and with"
            " attack.update_statistics=true both would move the statistics; write false for one"
        )
    if schedule.shard and not unperturbed:
        raise Refused(
            "schedule.shard=true: no process has whole weights to perturb; write"
            " weight_attack=none, or schedule.shard=false"
        )


def check_second_order(schedule: Schedule) -> None:
    """Raises Refused for what no gradient can be differentiated under."""
    why = {
        "compile": "torch differentiates no gradient of a compiled network",
        "grad_checkpointing": "forwards that are computed again would move statistics again",
        "shard": "weights are gathered for one backward pass, and this takes two",
    }
    for key, reason in why.items():
        if (value := getattr(schedule, key)) not in (False, "auto"):
            raise Refused(
                f"schedule.{key}={value}: {reason}, as this objective or regulariser asks for;"
                " write false"
            )


def check_processes(spec: Spec, on_gpu: bool, size: int) -> None:
    """Raises Refused, naming the key, for what `size` processes can't do."""
    schedule, attack = spec.schedule, spec.attack
    if schedule.sync_batch_norm and not on_gpu:
        raise Refused(
            "schedule.sync_batch_norm=true: torch has none for a CPU; write null, or take a network"
            " without batch norm"
        )
    if schedule.sync_batch_norm and normed_by_attack(attack):
        raise Refused(
            "schedule.sync_batch_norm=true: with attack.batch_norm=train each step of the attack"
            " would wait for all processes; write attack.batch_norm=eval"
        )
    if attack.replays and size > 1:
        raise Refused(
            f"{named(spec.choices, 'attack')}: keeps a perturbation for each place of the batch,"
            " and a checkpoint has those of one process alone; start one"
        )
    if schedule.graph is True and (not on_gpu or size > 1):
        raise Refused(
            "schedule.graph=true: is for one process on a GPU; write auto, which takes a step as a"
            " graph where it can and pays"
        )
    if schedule.shard and size == 1:
        raise Refused(
            "schedule.shard=true: shares out the weights over processes, and there is one; start"
            " them with torchrun"
        )
    if schedule.shard and (schedule.precision == "fp16" or schedule.compile is True):
        raise Refused(
            "schedule.shard=true: goes with fp32 and bf16, uncompiled; see schedule.precision and"
            " schedule.compile"
        )
    for key in ("fold", "fused"):
        if schedule.shard and getattr(schedule, key) is True:
            raise Refused(f"schedule.{key}=true: is for whole weights (shard=false); write auto")
    if size == 1:
        return
    if schedule.accumulate == "auto":
        raise Refused(
            "schedule.accumulate=auto: is for one process, since others would not know of its"
            " memory; write a number"
        )
    if schedule.batch_size < 2 * schedule.parts * size:
        raise Refused(
            f"schedule.batch_size={schedule.batch_size}: leaves less than two images for each of"
            f" {size} processes in each of {schedule.parts} parts; start fewer processes"
        )


def preflight(model: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> None:
    """Checks images x [B, C, H, W], labels y [B], model and attack against each other.

    Raises Refused with a sentence that says what is wrong; warns of what may be meant. In float32,
    whatever ran before in this process. Leaves the model and the generators as they were.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    training = model.training
    with torch.random.fork_rng(devices), float32(model):
        try:
            _check_images(x)
            _check_model(model.eval(), x, y)
            check_attack(attack, model, x, y)
        finally:
            model.train(training)


def check_network(model: nn.Module, evaluation: Evaluation, x: Tensor, y: Tensor) -> None:
    """Checks a network from elsewhere on images x [B, C, H, W], labels y [B], for what would end
    its evaluation. Raises Refused."""
    _check_images(x)
    model.eval()
    with float32(model), torch.no_grad():
        classes = model(x[:2]).shape[1]
    if int(y.max()) >= classes:
        _refuse_label(int(y.max()), classes)
    blind = not any(attack.asks_gradients for attack in evaluation.attacks.values())
    with refusing(""):
        sighted = blind or has_gradient(model, x)
    if not sighted:
        raise Refused(
            f"{NO_GRADIENT}; without one only Square measures it: evaluation=strong"
            " 'evaluation.attacks.strong.attacks=[square]'"
        )


def _refuse_label(label: int, classes: int) -> None:
    raise Refused(
        f"dataset: has the label {label}, but the model {classes} classes;"
        " labels must run from 0 to classes - 1"
    )


def attacks_of(spec: Spec) -> dict[str, Any]:
    """All attacks that the run makes use of, by their keys."""
    attacks = {f"evaluation.attacks.{name}": a for name, a in spec.evaluation.attacks.items()}
    attacks |= {
        f"evaluation.curves.{k}.attack": c.attack for k, c in spec.evaluation.curves.items()
    }
    if spec.evaluate is None:
        attacks |= {"attack": spec.attack, "validation.attack": spec.validation.attack}
    return attacks


def check_apart(dataset: Any) -> None:
    """Raises Refused where the folder of test images is that of the training images; who measures
    alone may have no other."""
    if isinstance(dataset, FolderSet):
        parts = {os.path.realpath(os.path.join(dataset.root, part)) for part in ("train", "val")}
        if len(parts) == 1:
            raise Refused(f"dataset.root={dataset.root}: val is the folder of train")


def check_classes(measured: Mapping[str, Any], classes: int) -> None:
    """Raises Refused for an attack, by its key, that can't be had for so few classes."""
    for key, attack in measured.items():
        if attack.target and attack.target >= classes:
            raise Refused(f"{key}.target={attack.target}: there are {classes - 1} wrong classes")
        if classes < attack.fewest_classes:
            raise Refused(
                f"{key}: {type(attack).__name__} compares {attack.fewest_classes} logits, and the"
                f" set has {classes} classes; write evaluation=strong, or for the package"
                f" {key}.version=custom '{key}.attacks=[apgd-ce,fab-t,square]'"
            )


def warn_of_threat_models(training: Attack, others: Mapping[str, Attack]) -> None:
    """An L2 model measured under L-inf, or the reverse, is nearly always a mistake."""
    for name, attack in others.items():
        if training.eps and attack.norm != training.norm:
            log.warning("attack.norm=%s, but %s is in %s; dataset.norm=%s changes all",
                        training.norm, name, attack.norm, training.norm)  # fmt: skip


def warn_of_short_steps(attack: Attack) -> None:
    """Steps that don't reach the ball's edge: `step` is easily written for `steps`."""
    steps, size = attack.steps or 0, attack.step_size or 0.0
    if attack.eps and not attack.crosses:
        log.warning(
            "attack.step=%g: reaches %.3g of eps=%g in its %d step%s; attack.steps=N takes more",
            size, steps * size, attack.eps, steps, "s" * (steps > 1),
        )  # fmt: skip


def _check_images(x: Tensor) -> None:
    low, high = x.min().item(), x.max().item()
    if x.dtype != torch.float32 or not (0 <= low <= high <= 1):
        raise Refused(
            f"dataset: images are {x.dtype} from {low:.3g} to {high:.3g} instead of float32 in"
            " [0, 1]; they must be neither normalised (the model does it) nor left at 0 to 255"
        )
    if high - low < 0.1:
        raise Refused(
            f"dataset: a batch of images spans {low:.3g} to {high:.3g} only, as if divided by 255"
            " twice; store them as uint8, 0 to 255"
        )


def _check_model(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        logits = model(x)
    if logits.shape[:1] != x.shape[:1] or logits.ndim != 2 or not torch.isfinite(logits).all():
        raise Refused(
            f"model: gives logits of shape {list(logits.shape)} for {len(x)} images, or some that"
            " are not finite; try schedule.precision=fp32, or another model"
        )
    if y.max() >= logits.shape[1]:
        _refuse_label(int(y.max()), logits.shape[1])
