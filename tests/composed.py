"""Compositions of `conf/` for tests whose subject is not Hydra's: each file is read once a process,
and what follows from the chosen options alone is composed once; given out are copies. The names of
Hydra's that are replaced are private ones, of 1.3."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hydra._internal import config_loader_impl as loader
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides

from sat.config import CONF

# Where the options lie that no test changes; others are read each time.
LASTING = {("pkg", "hydra.conf"), ("file", str(CONF)), ("structured", "")}
READ, COMPOSE, LIST = (
    ConfigRepository.load_config,
    loader.ConfigLoaderImpl._compose_config_from_defaults_list,
    loader.create_defaults_list,
)


def lasting(repo: Any) -> bool:
    return {(source.scheme(), source.path) for source in repo.get_sources()} <= LASTING


class Compositions:
    """What was read, listed and composed before, by its name, its options and its list."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lists: dict[tuple, DefaultsList] = {}
        self.composed: dict[int, bytes] = {}

    def read(self, repo: ConfigRepository, config_path: str) -> Any:
        if not lasting(repo):
            return READ(repo, config_path)
        return copied(self.files, config_path, lambda: READ(repo, config_path))

    def listed(self, *, repo: Any, overrides_list: list, **given: Any) -> DefaultsList:
        """Hydra's list of defaults; the single values that are given are those of this call."""
        if not lasting(repo):
            return LIST(repo=repo, overrides_list=overrides_list, **given)
        values = Overrides(repo, overrides_list).config_overrides
        key = (*(o.input_line for o in overrides_list if o not in values), *given.items())
        if key not in self.lists:
            self.lists[key] = LIST(repo=repo, overrides_list=overrides_list, **given)
        found = self.lists[key]
        return DefaultsList(found.defaults, found.defaults_tree, values, found.overrides)

    def compose(self, hydras: Any, defaults: list, repo: Any) -> Any:
        if not lasting(repo):
            return COMPOSE(hydras, defaults, repo)
        return copied(self.composed, id(defaults), lambda: COMPOSE(hydras, defaults, repo))


def copied(known: dict, key: Any, make: Callable[[], Any]) -> Any:
    """A copy of what was made for `key`."""
    if key not in known:
        known[key] = pickle.dumps(make())
    return pickle.loads(known[key])


@pytest.fixture(scope="session", autouse=True)
def composed_once():
    made = Compositions()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "create_defaults_list", made.listed)
        patch.setattr(ConfigRepository, "load_config", lambda *a, **k: made.read(*a, **k))
        name = "_compose_config_from_defaults_list"
        patch.setattr(loader.ConfigLoaderImpl, name, lambda *a, **k: made.compose(*a, **k))
        yield
