"""Networks from elsewhere, opened: files that hold a whole network, and factories of packages.

Both run what is in them: whoever names one trusts it. Nothing but tensors is unpickled, though, and
no native code is loaded.
"""

import hashlib
import inspect
import logging
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sat.config import plugins
from sat.errors import first_line
from sat.models.content import content_of
from sat.models.custom import Make, Network
from sat.rundir.untrusted import check_sums, objects_in, reason_of

FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
TORCHSCRIPT, EXPORT, ONNX = "TorchScript", "torch.export", "ONNX"
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
AGREE = 1e-3  # of the largest logit: how near a converted network is to onnxruntime


def kind_of(path: Path) -> str | None:
    """What kind of whole network a file holds; None for any other file."""
    if path.suffix == ".onnx":
        return ONNX
    names = names_in(path)
    if "constants.pkl" in names:
        return TORCHSCRIPT
    return EXPORT if {"archive_format", "serialized_exported_program.json"} & names else None


def names_in(path: Path) -> set[str]:
    """What lies in an archive that torch has written, without the name of the archive."""
    if not zipfile.is_zipfile(path):
        return set()
    try:
        with zipfile.ZipFile(path) as file:
            return {name.partition("/")[2] or name for name in file.namelist()}
    except zipfile.BadZipFile:
        return set()


# files ------------------------------------------------------------------------------------------


def open_file(path: Path) -> tuple[Make, str]:
    """The network of a file, on the CPU, and what tells it from others: its bytes. Raises
    ValueError, in one line, for what can't be opened."""
    kind = kind_of(path)
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if kind == ONNX:
        return _open_onnx(path, content)
    if kind == EXPORT and (compiled := [n for n in names_in(path) if "aotinductor" in n]):
        raise ValueError(f"{kind}: holds compiled code ({compiled[0]}), which is not loaded")
    try:
        check_sums(path)
        with tensors_alone(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats to come, and of old ones
            network = _read_export(path) if kind == EXPORT else _read_script(path)
            return lambda image: network, content
    except OSError:
        raise
    except Exception as error:  # torch raises many kinds
        if objects := objects_in(error):
            raise ValueError(
                f"{kind}: {objects}, and is not loaded, since that could run code"
            ) from None
        raise ValueError(
            f"{kind}: is damaged, or of another version ({reason_of(error)})"
        ) from None


def _read_script(path: Path) -> Network:
    return torch.jit.load(path, map_location="cpu").eval()


def _read_export(path: Path) -> Network:
    return torch.export.load(path).module()


@contextmanager
def tensors_alone() -> Iterator[None]:
    """Has torch unpickle tensors alone, though it be asked for more: `torch.export.load` falls back
    to a plain pickle where that fails."""

    def refused(*_: Any, **__: Any) -> Any:
        raise pickle.UnpicklingError("GLOBAL pickle")

    kept, forced = (pickle.load, pickle.loads), os.environ.get(FORCED)
    pickle.load = pickle.loads = refused
    os.environ[FORCED] = "1"
    level = logging.getLogger("torch").level
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # it tells of a failure at length
    try:
        yield
    finally:
        logging.getLogger("torch").setLevel(level)
        pickle.load, pickle.loads = kept
        os.environ.pop(FORCED) if forced is None else os.environ.update({FORCED: forced})


def _open_onnx(path: Path, content: str) -> tuple[Make, str]:
    """The network of an ONNX file as torch has it, whose logits are those of onnxruntime."""
    try:
        import onnx2torch
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            f"ONNX: needs {error.name}; pip install 'onnx2torch>=1.5.15' 'onnxruntime>=1.20'"
        ) from None
    try:
        network = onnx2torch.convert(str(path)).eval()
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # either raises many kinds
        text = " ".join(str(error).split())
        found = re.search(r"operation_type='(\w+)'", text)
        what = f"the operation {found[1]} can't be converted" if found else text[:200]
        raise ValueError(
            f"ONNX: {what}; write the file by torch.onnx.export(..., dynamo=False), or give a"
            " torch.export or TorchScript file of it"
        ) from None

    def make(image: tuple[int, int, int]) -> Network:
        _check_onnx(network, session, image)
        return network

    return make, f"{content}-{content_of(network)}"  # weights may lie in a file beside it


def _check_onnx(network: nn.Module, session: Any, image: tuple[int, int, int]) -> None:
    """Raises ValueError where the logits of random images are not those of onnxruntime."""
    (given, *_), generator = session.get_inputs(), torch.Generator().manual_seed(0)
    size = given.shape[0] if isinstance(given.shape[0], int) else 4
    images = torch.rand(size, *image, generator=generator)
    try:
        theirs = torch.from_numpy(session.run(None, {given.name: images.numpy()})[0])
        with torch.no_grad():
            ours = network(images)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"ONNX: fails on images {list(images.shape)} ({reason})") from None
    if not isinstance(ours, Tensor):
        raise ValueError("ONNX: gives several outputs; write a file with the logits alone")
    off = (ours - theirs).abs().max() if ours.shape == theirs.shape else torch.tensor(torch.nan)
    if not off <= AGREE * theirs.abs().max():
        raise ValueError(
            "ONNX: onnx2torch's network gives other logits than onnxruntime; give a torch.export or"
            " TorchScript file of it"
        )


# packages ---------------------------------------------------------------------------------------


def open_factory(name: str, typed: bool) -> tuple[Make, str]:
    """The network that a function of a package makes, `package.module:factory`, and what tells it
    from others. Where its name is `typed`, the package may be imported.

    Raises ValueError, in one line, for a package that may not, or a function that makes none.
    """
    module, _, attribute = name.partition(":")
    make = plugins.attribute_of(module, attribute, "function", typed)
    with torch.random.fork_rng(devices=[]):  # where weights are drawn, they are always the same
        torch.manual_seed(0)
        network = _made(make, name)
    return lambda image: network, f"{name}-{content_of(network)}"


def _made(make: Callable[[], Any], name: str) -> Network:
    if isinstance(make, nn.Module):
        return make
    try:
        network = make()
    except (Exception, SystemExit) as error:  # of any kind: the code is the user's
        wanted = "; name a function without arguments that returns the network"
        wanted *= not _needs_nothing(make)
        raise ValueError(f"{name}() fails ({first_line(error)}){wanted}") from error
    if not callable(network) or isinstance(network, Tensor):
        kind = type(network).__name__
        raise ValueError(f"{name}() gives {kind}; it must give a module, or a function of images")
    return network


def _needs_nothing(make: Callable[..., Any]) -> bool:
    """Whether a function can be called without arguments, as far as it tells."""
    try:
        inspect.signature(make).bind()
    except TypeError:
        return False
    except ValueError:  # it tells nothing
        pass
    return True
