"""Images and labels as a user hands them in: what they must be, and a remedy for what is not."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

NEARLY = 1e-3  # beyond [0, 1]: of rounding


def checked(images: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """The images [N, C, H, W] or [N, F] without a gradient, and the labels [N], int64, both free of
    `inference_mode`. Raises ValueError, in one line, for images or labels that are none."""
    images = _images(images)
    labels = _labels(labels, len(images))
    return tuple(part.clone() if part.is_inference() else part for part in (images, labels))


def _images(images: Any) -> Tensor:
    if not isinstance(images, Tensor) or images.ndim not in (2, 4) or not images.numel():
        kind = "" if isinstance(images, Tensor) else f"{type(images).__name__} "
        what = f"{kind}{list(getattr(images, 'shape', []))}"
        remedy = " (torch.from_numpy(images))" * isinstance(images, np.ndarray)
        raise ValueError(f"images: {what}; give a tensor [N, C, H, W], or flat [N, F]{remedy}")
    _refuse_without_values("images", images)
    if images.dtype != torch.float32:
        remedy = "images.float()" + " / 255" * (not images.is_floating_point())
        raise ValueError(f"images: are {images.dtype}; give float32 in [0, 1] ({remedy})")
    low, high = images.min().item(), images.max().item()
    if not math.isfinite(high - low):
        count = int((~images.isfinite()).flatten(1).any(1).sum())
        raise ValueError(f"images: {count} of {len(images)} hold NaN or inf; give 0 to 1 alone")
    if low < 0 or high > 1:
        digits, normalise = 3, "torchvision.transforms.Normalize(mean, std)"
        remedy = f"let the model normalise: torch.nn.Sequential({normalise}, model)"
        if low >= -NEARLY and high <= 1 + NEARLY:
            digits, remedy = 9, "give images.clamp(0, 1)"
        elif low >= 0 and high > 2:  # of 255
            remedy = "give images / 255"
        lie = f"[{low:.{digits}g}, {high:.{digits}g}]"
        raise ValueError(f"images: lie in {lie}, not in [0, 1]; {remedy}")
    return images.detach()


def _labels(labels: Any, count: int) -> Tensor:
    wanted = f"give one whole number an image [{count}]"
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"labels: {type(labels).__name__}, no numbers; {wanted}") from None
    _refuse_without_values("labels", labels)
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        remedy = _remedy(labels) if labels.shape[:1] == (count,) else ""
        raise ValueError(f"labels: {labels.dtype} {list(labels.shape)}; {wanted}{remedy}")
    return labels.long()


def _remedy(labels: Tensor) -> str:
    """How labels [N, K], [N, 1] or of floats become classes; empty where nobody can tell."""
    if labels.is_complex() or labels.ndim > 2 or (labels.double() % 1 != 0).any():
        return ""
    if labels.ndim == 2 and labels.shape[1] != 1:  # one-hot
        return " (labels.argmax(1))" if bool((labels.sum(1) == 1).all()) else ""
    return f" (labels{'[:, 0]' * (labels.ndim == 2)}{'.long()' * labels.is_floating_point()})"


def _refuse_without_values(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise ValueError(f"{name}: are on no device (meta), and have no values")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: are {tensor.layout}; give {name}.to_dense()")
