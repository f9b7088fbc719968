"""Compositions of `conf/` for tests whose subject is not Hydra's: what follows from the chosen
options alone is composed once a process, and given out in copies."""

import pickle
from typing import Any

import pytest
import yaml
from hydra._internal import config_loader_impl as loader
from hydra._internal.defaults_list import DefaultsList, Overrides

from sat.config import CONF

# Where the options lie that no test changes; others are read each time.
LASTING = {("pkg", "hydra.conf"), ("file", str(CONF)), ("structured", "")}


class Compositions:
    """Hydra's list of defaults for each choice of options, and what it composes to before single
    values are set."""

    def __init__(self) -> None:
        self.make = loader.create_defaults_list
        self.compose = loader.ConfigLoaderImpl._compose_config_from_defaults_list
        self.lists: dict[tuple, DefaultsList] = {}
        self.composed: dict[int, bytes] = {}

    def list_once(self, *, repo: Any, overrides_list: list, **given: Any) -> DefaultsList:
        if not {(source.scheme(), source.path) for source in repo.get_sources()} <= LASTING:
            return self.make(repo=repo, overrides_list=overrides_list, **given)
        values = Overrides(repo, overrides_list).config_overrides
        chosen = tuple(o.input_line for o in overrides_list if o not in values)
        key = (chosen, *given.items())
        if key not in self.lists:
            self.lists[key] = self.make(repo=repo, overrides_list=overrides_list, **given)
            self.composed[id(self.lists[key].defaults)] = b""
        found = self.lists[key]
        return DefaultsList(found.defaults, found.defaults_tree, values, found.overrides)

    def compose_once(self, hydras: loader.ConfigLoaderImpl, defaults: list, repo: Any) -> Any:
        if (kept := self.composed.get(id(defaults))) is None:
            return self.compose(hydras, defaults, repo)
        if not kept:
            kept = self.composed[id(defaults)] = pickle.dumps(self.compose(hydras, defaults, repo))
        return pickle.loads(kept)


class Texts:
    """What config files hold, parsed once: a third of each composition of others' folders."""

    def __init__(self) -> None:
        self.load = yaml.load
        self.parsed: dict[str, Any] = {}

    def read(self, stream: Any, Loader: type) -> Any:  # noqa: N803, as callers name it
        if Loader.__name__ != "OmegaConfLoader" or isinstance(stream, str):
            return self.load(stream, Loader)
        if (text := stream.read()) not in self.parsed:
            stream.seek(0)
            self.parsed[text] = self.load(stream, Loader)
        return self.parsed[text]


@pytest.fixture(scope="session", autouse=True)
def composed_once():
    with pytest.MonkeyPatch.context() as patch:
        made = Compositions()
        patch.setattr(loader, "create_defaults_list", made.list_once)
        name = "_compose_config_from_defaults_list"
        patch.setattr(loader.ConfigLoaderImpl, name, lambda *a, **k: made.compose_once(*a, **k))
        patch.setattr(yaml, "load", Texts().read)
        yield
