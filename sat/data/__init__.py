"""Data: small sets whole on the device, large ones streamed; batches in [0, 1] either way.

An option of `conf/dataset` is one of the classes here; called with a device and the run's seed it
makes a `Data`, whose splits turn `Batch`es into images and labels.
"""

from sat.data.arrays import Npz
from sat.data.augment import Augment, CutMix, Cutout, MixUp, Standard, Unchanged
from sat.data.batches import (
    Batch,
    chunks,
    epoch_batches,
    evaluation_batches,
    indexed,
    some_images,
)
from sat.data.folders import ImageFolder, ImageNet, TinyImageNet
from sat.data.loader import Loader
from sat.data.memory import Digits
from sat.data.policies import IDBH, Jitter, RandAugment
from sat.data.published import SVHN, Cifar10, Cifar100, FashionMNIST
from sat.data.sets import Data, Split, UnreadableImage
from sat.data.timm_augment import TimmAugment
from sat.data.timm_sets import Timm

__all__ = [
    "IDBH",
    "SVHN",
    "Augment",
    "Batch",
    "Cifar10",
    "Cifar100",
    "CutMix",
    "Cutout",
    "Data",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "ImageNet",
    "Jitter",
    "Loader",
    "MixUp",
    "Npz",
    "RandAugment",
    "Split",
    "Standard",
    "Timm",
    "TimmAugment",
    "TinyImageNet",
    "Unchanged",
    "UnreadableImage",
    "chunks",
    "epoch_batches",
    "evaluation_batches",
    "indexed",
    "some_images",
]
