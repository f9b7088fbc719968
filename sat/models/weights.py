"""Models from specs, and weights from files: nothing but tensors is ever unpickled."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sat.errors import Refused, refusing
from sat.identity import NEUTRAL, SECTIONS
from sat.models.classifier import Classifier, assemble
from sat.models.custom import Given
from sat.models.files import read_file, state_dicts
from sat.models.foreign import Foreign
from sat.models.memory import build_within, room
from sat.rundir import checkpoint
from sat.rundir.record import weights_file
from sat.rundir.untrusted import misfit, read_sections

log = logging.getLogger("sat")
Tensors = Mapping[str, Tensor]

# Counters of updates: no output of a trained model depends on them.
_COUNTERS = ("num_batches_tracked", "n_averaged")
_HELPER = re.compile(r"(^|\.)(criterion|loss\w*|metrics?|attacker|optimizer)\.")
# `model_ema`, `modelEMA`, `netema`; and neither `schema` nor `swapped`
_AVERAGE = re.compile(r"averag|(?<![a-z])(avg|ema|swa)(?![a-z])|(?<!sch)ema(?![a-z])")
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_OPTIMIZER = re.compile(r"(^|\.)(optim(i[sz]ers?)?(_state(_dict)?)?|exp_avg(_sq)?"
                        r"|momentum_buffer)(\.|$)")  # fmt: skip
_MEAN = re.compile(r"(?!running).*(mean|(^|_)mu($|_))")
_STD = re.compile(r"(?!running).*(std|sigma)")


def shape_of(data: Any) -> dict[str, Any]:
    """What a network must know of its dataset; kept in every checkpoint."""
    return {
        "channels": data.channels,
        "classes": len(data.classes),
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
    }


def build_model(
    spec: Any, shape: Mapping[str, Any], device: torch.device, copies: int = 1
) -> Classifier:
    """The spec's network for such images, seeded, with its activations swapped and proved; refused
    where the device has no room for so many `copies` of its weights.

    Its normalisation is the one given, else that of pretrained weights, else the dataset's; a
    network of the user's own has it inside.
    Raises ValueError, beginning with the key, for what can't be built.
    """
    size, channels = shape["image_size"], shape["channels"]
    for key, values in spec.normalisation.items():
        if len(values) != channels:
            raise ValueError(
                f"{key}={values}: has {len(values)} values, where images have {channels} channel"
                f"{'s' * (channels > 1)}; write one a channel, or take the dataset's own:"
                " model.mean=null model.std=null"
            )
    limit = min(room(torch.device("cpu")), room(device) / copies)

    def seeded() -> nn.Module:
        torch.manual_seed(spec.seed)
        return spec.model(channels, shape["classes"], size)

    backbone = build_within(limit, seeded, _told_of(spec.model))
    scale = {"mean": shape["mean"], "std": shape["std"]}
    own = isinstance(spec.model, Given)
    if own:
        scale = {"mean": [0.0] * channels, "std": [1.0] * channels}
    if getattr(spec.model, "pretrained", False):  # the weights expect their own normalisation
        cfg = backbone.pretrained_cfg
        if len(cfg["mean"]) == channels:
            scale = {"mean": cfg["mean"], "std": cfg["std"]}
    scale |= spec.normalisation
    model = assemble(backbone, spec.activation, **scale, image_shape=(channels, size, size))
    if spec.weights:
        load_weights(model, spec.weights, spec.normalisation, transfer=spec.evaluate is None)
    model.any_layout = not own or _takes_channels_last(model, (2, channels, size, size))
    if isinstance(backbone, Foreign):
        backbone.move(device)
    return model.to(device)


@torch.no_grad()
def _takes_channels_last(model: Classifier, shape: tuple[int, ...]) -> bool:
    """Whether a network runs with the channels last; one that flattens by `view` does not."""
    mode, images = model.training, torch.full(shape, 0.5).to(memory_format=torch.channels_last)
    try:
        model.eval().to(memory_format=torch.channels_last)(images)
    except RuntimeError:
        return False
    finally:
        model.train(mode).to(memory_format=torch.contiguous_format)
    return True


def _told_of(model: Any) -> str:
    """What says how large a network is, as it is written."""
    given = vars(model)
    key = next((key for key in ("width", "variant", "name") if key in given), "_target_")
    return f"{key}={given.get(key, type(model).__name__)}"


def load_weights(
    model: Classifier,
    place: str,
    given: Collection[str] = (),
    key: str = "weights",
    transfer: bool = False,
) -> Mapping[str, Any] | None:
    """Puts the weights of a run directory or a file, trained anywhere, into `model`.

    A file is a checkpoint of this program, what `torch.save` wrote of tensors, or `.safetensors`.
    Its state dict may be nested in others, of which averages are preferred, and its keys may have
    a prefix (`module.`, `1.`). A normalisation in it becomes the model's, but for what `given`
    names (`mean`, `std`: set by hand). With `transfer` a last layer of other classes stays as it
    began, and that is said. Raises ValueError, beginning with the key, naming what does not fit;
    `model` is then as it was. Returns what a checkpoint of this program says of the images
    that the network was made for (see `shape_of`), None for other files.
    """
    own = model.backbone.state_dict()
    try:
        state = read_file(weights_file(place))
        name, prefix, tensors = _find(state, own)
        weights = {key: tensors[prefix + key] for key in own if prefix + key in tensors}
        placed = {prefix + key for key in weights}
        unplaced = {key: t for key, t in tensors.items() if key not in placed}
        rest, beside = _beside(unplaced, prefix, weights)
        scale = _normalisation(rest, model.mean.numel(), given)
        known = {*scale.values(), *beside}
        surplus = [k for k in rest if not k.endswith(_COUNTERS) and k not in known]
        heads = _heads(weights, own, model) if transfer else []
        weights |= {head: own[head] for head in heads}
        _refuse_misfits(model, weights, [key.removeprefix(prefix) for key in surplus])
    except OSError as error:
        raise ValueError(f"{key}={place}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{key}={place}: {error}") from None
    told = f"{key}={place}".replace("weights=", "model.weights=", 1)
    model.backbone.load_state_dict({**own, **weights})
    taken = {what: rest[key] for what, key in scale.items() if what not in given}
    if heads:
        log.warning("%s: its last layer is of other classes; %s begin anew", told, _listed(heads))
    if left_out := [key for key in beside if key not in scale.values()]:
        log.info("%s: left out %s, beside the network", told, _listed(left_out))
    for what, values in taken.items():
        getattr(model, what).copy_(values.detach().view(1, -1, 1, 1))
    chosen = given if model.mean.any() else ("mean", "std")  # 0 and 1: the network has its own
    _tell(told, name, prefix, taken, chosen)
    facts = state.get("facts")
    return facts.get("shape") if isinstance(facts, Mapping) else None


def load_evaluated(model: Classifier, spec: Any, image_size: int) -> None:
    """The weights that `evaluate=` names. Raises Refused where they suit neither model nor set."""
    with refusing(""):
        shape = load_weights(model, spec.evaluate, spec.normalisation, key="evaluate")
    size = shape.get("image_size", image_size) if isinstance(shape, Mapping) else image_size
    if size != image_size:
        raise Refused(
            f"evaluate={spec.evaluate}: is a network for images of {size} pixels,"
            f" and the set's have {image_size}; see dataset and dataset.image_size"
        )


def _find(state: Any, own: Tensors) -> tuple[str, str, Tensors]:
    """The state dict within `state` that has most of the network's keys, with its name and the
    prefix of those keys. Of several that have as many, averages come first, then those that are
    nested the least; raises ValueError where that leaves several with other values."""
    wanted = {key for key in own if not key.endswith(_COUNTERS)}
    found = [(name, *_prefix(held, wanted), held) for name, held in state_dicts(state)
             if not _OPTIMIZER.search(name)]  # fmt: skip
    most = max((count for _, count, *_ in found), default=0)
    if not most:
        there = _listed([key for *_, other in found for key in other]) or type(state).__name__
        raise ValueError(
            f"holds none of this network's weights; there: {there}; here: {_listed(own)}"
        )
    fitting = [(fit[0], fit[2], fit[3]) for fit in found if fit[1] == most]
    shaped = [fit for fit in fitting if _has_shapes(fit[2], fit[1], own)]
    averages = [fit for fit in shaped or fitting if _is_average(fit[0])]
    left = averages or shaped or fitting
    depth = min(fit[0].count(".") for fit in left)
    (name, prefix, held), *others = [fit for fit in left if fit[0].count(".") == depth]
    for other, before, its in others:
        keys = [key for key in wanted if prefix + key in held and before + key in its]
        same = (_alike(held[prefix + key], its[before + key]) for key in keys)
        if len(keys) < most or not all(same):
            raise ValueError(
                f"holds two networks of this kind with other values, {name!r} and {other!r}; save"
                " the one that is meant"
            )
    return name, prefix, held


def _is_average(name: str) -> bool:
    return _AVERAGE.search(_WORDS.sub("_", name).lower()) is not None


def _has_shapes(held: Tensors, prefix: str, own: Tensors) -> bool:
    return all(held[prefix + k].shape == t.shape for k, t in own.items() if prefix + k in held)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal in the narrower of their types."""
    narrow = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(narrow).nan_to_num(), other.to(narrow).nan_to_num())


def _prefix(names: Iterable[str], wanted: Collection[str]) -> tuple[int, str]:
    """How many of the wanted keys are there under the prefix that has most of them, and it."""
    counts: Counter[str] = Counter({"": 0})
    for name in names:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    prefix = max(counts, key=lambda p: (counts[p], -len(p)))
    return counts[prefix], prefix


def _beside(rest: Tensors, prefix: str, weights: Tensors) -> tuple[Tensors, list[str]]:
    """What has no place in the network, less second copies of it; and the keys that are no part of
    it: those, and parts of the training (a loss) that lie outside of its prefix. Raises
    ValueError for a second network of this kind, with other values."""
    ends: dict[str, list[str]] = {}
    for key in rest:
        for own in weights:
            if key.endswith("." + own) or key == own:
                ends.setdefault(key.removesuffix(own), []).append(own)
    copies = []
    for other, keys in ends.items():
        if len(keys) < len(weights):
            continue
        if not all(torch.equal(rest[other + key], weights[key]) for key in keys):
            raise ValueError(
                f"holds two networks of this kind with other values, {prefix!r} and {other!r};"
                " save the one that is meant"
            )
        copies += [other + key for key in keys]
    left = {key: tensor for key, tensor in rest.items() if key not in copies}
    outside = [key for key in left if not key.startswith(prefix) and _HELPER.search(key)]
    return left, [*copies, *outside]


def _normalisation(rest: Tensors, channels: int, given: Collection[str]) -> dict[str, str]:
    """The keys, among tensors with no other place, of a mean and a standard deviation."""
    found = {}
    for what, pattern in (("mean", _MEAN), ("std", _STD)):
        keys = [k for k, t in rest.items() if t.numel() == channels]
        keys = [k for k in keys if pattern.match(k.rpartition(".")[2].lower())]
        if not keys or any(not torch.equal(rest[k].view(-1), rest[keys[0]].view(-1)) for k in keys):
            return {}
        found[what] = keys[0]
    for what, key in found.items():
        values, lowest = rest[key].float(), 0.0 if what == "mean" else 1e-6
        if what not in given and not bool(((values >= lowest) & (values <= 1)).all()):
            raise ValueError(
                f"its normalisation {key} = {_values(values)} is not for images in [0, 1]; "
                f"give model.{what}=[...]"
            )
    return found


def _channels(weights: Tensors, own: Tensors) -> int | None:
    """The image channels of the weights, where their first convolution has others."""
    first = next((key for key in own if own[key].ndim == 4), None)
    if first is None or first not in weights or weights[first].ndim != 4:
        return None
    channels = weights[first].shape[1]
    return channels if channels != own[first].shape[1] else None


def _refuse_misfits(model: Classifier, weights: Tensors, surplus: list[str]) -> None:
    """Raises ValueError, in one line, where the weights are not those of the model's network."""
    own = model.backbone.state_dict()
    missing = [key for key in own if key not in weights and not key.endswith(_COUNTERS)]
    shaped = [key for key in weights if weights[key].shape != own[key].shape]
    if not (missing or surplus or shaped):
        return
    sizes = [f"{k} is {_size(weights[k])} there, {_size(own[k])} here" for k in shaped]
    kinds = (("lacks ", missing), ("has no place for ", surplus), ("", sizes))
    says = "; ".join(word + _listed(names) for word, names in kinds if names)
    places = set(model.swap.places if model.swap else ())
    if {key.rpartition(".")[0] for key in (*missing, *surplus)} & places:
        says += "; the activations' parameters differ: another activation=?"
    elif shaped and all(_is_head(weights[key], own[key], model) for key in shaped):
        says += "; another class count?"
    elif (channels := _channels(weights, own)) is not None:
        says += f"; it is for images of {channels} channels, these have {model.mean.numel()}"
    elif any(key.startswith(("conv1.", "conv_stem.")) for key in shaped):
        says += "; a stem for large images is model.stem=large"
    raise ValueError(f"{says}; the model must be the same")


def _heads(weights: Tensors, own: Tensors, model: Classifier) -> list[str]:
    """The weights of a last layer of other classes, where nothing else differs in its shape."""
    shaped = [key for key in weights if weights[key].shape != own[key].shape]
    return shaped if all(_is_head(weights[key], own[key], model) for key in shaped) else []


def _is_head(there: Tensor, here: Tensor, model: Classifier) -> bool:
    """Whether two misfits differ in the number of classes alone."""
    classes = getattr(model.backbone, "num_classes", None)
    return here.shape[:1] == (classes,) and here.shape[1:] == there.shape[1:]


def _tell(told: str, name: str, prefix: str, taken: Tensors, given: Collection[str]) -> None:
    """Says what was taken, and warns of a normalisation that nobody has chosen."""
    said = [f"the state dict {name!r}"] if name else []
    said += [f"keys after {prefix!r}"] if prefix else []
    said += [f"{what} {_values(values)}" for what, values in taken.items()]
    if said:
        log.info("%s: took %s", told, ", ".join(said))
    if left := [f"model.{what}" for what in ("mean", "std") if what not in {*taken, *given}]:
        log.warning(
            "%s: has no normalisation; the dataset's mean and std are used unless %s are "
            "given", told, " and ".join(left),
        )  # fmt: skip


def _listed(names: Iterable[str]) -> str:
    """The first three, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _values(tensor: Tensor) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in tensor.flatten().tolist()) + "]"


# What a checkpoint must have to be used as a network.
NEEDED = {
    "facts": {
        "hash": str,
        "shape": {"channels": int, "classes": int, "image_size": int,
                  "mean": [int | float], "std": [int | float]},
    },
    "model": {"*": Tensor}, "average?": {"*": Tensor},
}  # fmt: skip


def read_run(run_directory: str | Path, which: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's config, as it builds the network without any weights, and its checkpoint `which`.

    Raises ValueError where the directory holds no such checkpoint.
    """
    directory = Path(run_directory)
    if not directory.exists():
        raise ValueError(f"{directory}: no such folder; name the directory of a run")
    try:
        (directory / "config.yaml").stat()  # no run at all, rather than one with a damaged config
        config = read_sections(directory / "config.yaml", SECTIONS)
        if config.get("evaluate"):  # weights of a file: there is one set
            which = "last"
        state = checkpoint.read(directory / "checkpoints" / f"{which}.pt")
    except OSError as error:
        raise ValueError(f"{directory}: no run with a {which!r} checkpoint ({error})") from None
    if missing := [key for key in SECTIONS if key not in {**config, **NEUTRAL}]:
        raise ValueError(f"{directory / 'config.yaml'}: is damaged; {missing[0]} is missing")
    if wrong := misfit(state, NEEDED, ""):
        raise ValueError(
            f"{directory / 'checkpoints' / which}.pt: is damaged, or of another program ({wrong})"
        )
    config["evaluate"] = None  # the file may be gone
    config["model"] = without_weights(config["model"])
    return config, state


def without_weights(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config that builds its network and loads nothing."""
    built = {**model, "weights": None}
    if model.get("pretrained"):
        built["pretrained"] = False
        if model.get("stem") == "auto":  # it kept the stem of the pretrained weights
            built["stem"] = "large"
    return built


def load(
    run_directory: str | Path, which: str = "best", device: str = "cpu", model: Any = None
) -> Classifier:
    """The trained model of a run, in eval mode and float32, for images [B, C, H, W] in [0, 1].

    `which` is `best` or `last`; `model` the module that a run of `sat.train(model=...)` began with,
    which no directory holds. Raises ValueError where the directory holds no such checkpoint.
    """
    from sat.config import check

    config, state = read_run(run_directory, which)
    spec = check(config)
    if isinstance(spec.model, Given) and model is not None:
        spec = spec.bringing(model=spec.model.bringing(lambda _: deepcopy(model), ""))
    with torch.random.fork_rng():  # the caller's random numbers are the caller's
        net = build_model(spec, state["facts"]["shape"], torch.device(device))
    try:
        net.load_state_dict(state.get("average") or state["model"])
    except RuntimeError:  # one line for each weight
        place = Path(run_directory) / "checkpoints" / f"{which}.pt"
        raise ValueError(f"{place}: holds the weights of another network") from None
    return net.eval()
