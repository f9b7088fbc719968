"""From a command line to a checked run, by Hydra; and what Hydra says over many lines, in one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sat.config.groups import CONF, SCALARS, instead, nearest, options
from sat.config.spec import BESIDE, PATHS, Spec, check
from sat.errors import Refused, printable
from sat.identity import SECTIONS

# What a config has beside its keys: the options that were chosen, and what a report tells.
UNGIVEN = ("choices", "report")


def composed(words: Sequence[str]) -> Spec:
    """The checked run of a command line, as a single job; raises `Refused`."""
    cfg, choices = compose(words)
    return check({**resolve(cfg), "choices": choices})


def refuse_slips(words: Sequence[str]) -> None:
    """Raises Refused for a word that a space has cut off from its value, for one key by two names,
    of which Hydra would drop one, for several options of a group where a run has one (Hydra would
    lay the last over those before, whose keys stay), and for what is no key, though a config has
    it."""
    keys = {word.partition("=")[0].lstrip("+") for word in words}
    if twice := [key for key in keys if "/" in key and key.replace("/", ".") in keys]:
        key = twice[0].replace("/", ".")
        raise Refused(f"{twice[0]}: is {key} by another name, which is there too; drop one")
    for before, word in zip(["", *words], words, strict=False):
        key, is_override, value = word.partition("=")
        if not is_override and key[:1] != "~":
            cut = before.partition("=")[0]
            if before.endswith(","):
                raise Refused(f"{before} {word}: no space after a comma: {before}{word}")
            if cut in (*PATHS, "evaluate"):
                raise Refused(f"{word}: has no =; quote a path with spaces whole: '{cut}=\"...\"'")
            raise Refused(f"{word}: is no override; write group=option or key=value")
        group = re.split("[/@]", key.lstrip("+~"))[0]
        if group.split(".")[0] in UNGIVEN:
            known = [*SECTIONS, *SCALARS, "logger", "recipe", "experiment"]
            raise Refused(f"{word}: no such key; {nearest(group, known)}")
        if group in options() and group != "logger" and value.lstrip().startswith("["):
            if group == "experiment":
                raise Refused(f"{word}: are several; name one experiment a command line")
            several = ",".join(re.findall(r"[\w.-]+", value)) or "one,another"
            raise Refused(
                f"{word}: a run has one option of {group}; several are a sweep: -m {key}={several}"
            )


def compose(words: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The config of a command line, as a single job, and the option of each group; raises
    `Refused`."""
    import hydra
    from hydra.errors import HydraException

    refuse_slips(words)
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("config", overrides=list(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise Refused(one_line(error)) from error
    choices = dict(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg, choices


@contextmanager
def followed() -> Iterator[None]:
    """Raises Refused, in one line, for a value of a composed config that follows what is none."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise Refused(one_line(error)) from error


@followed()
def resolve(cfg: DictConfig, under: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The composed config as plain data, interpolations resolved; what stands in `under` takes the
    place of what was composed, and interpolations follow it."""
    if under is not None:
        cfg = OmegaConf.create({**OmegaConf.to_container(cfg, resolve=False), **under})
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return {key: value for key, value in plain.items() if key not in BESIDE}


def is_hydras(error: BaseException) -> bool:
    """Whether Hydra, or a package of its own, raised it: the command line or a file of the user's
    is wrong, and not this program."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    raised = {place.partition(".")[0], type(error).__module__.partition(".")[0]}
    return bool(raised & {"hydra", "hydra_plugins", "omegaconf", "antlr4", "yaml"})


def one_line(error: BaseException) -> str:
    """What Hydra or OmegaConf say over many lines, as one that names the nearest valid name."""
    text = str(error).strip() or str(error.__cause__ or "").strip()
    if isinstance(error, RecursionError):
        return "a value, or a file of --config-dir, is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"a file of --config-dir is no UTF-8 ({text})"
    if type(error) in (AssertionError, AttributeError, KeyError, TypeError):  # it stumbled
        return f"Hydra can't compose this ({type(error).__name__}: {' '.join(text.split())[:300]})"
    groups = options()
    if found := re.search(r"Could not (?:find|load) '([\w/]+)/([^'/]*)'", text):
        group, name = found.groups()
        known = groups.get(group) or re.findall(r"^\t(\S+)$", text, re.M)
        own = "; one of your own: --config-dir DIR"
        return f"{group}={name}: no such option; {nearest(name, known)}{own}"
    if found := re.search(r"Could not override '([^']*)'", text):
        key = found[1]
        if "No match in the defaults" in text:
            return f"{key}: no such group; {nearest(key, list(groups))}"
        parent = getattr(getattr(error, "__cause__", None), "parent_node", None)
        above = parent._get_full_key(None).split(".") if parent is not None else []
        siblings = [name for name in parent or () if name not in ("_target_", "hydra")]
        if above in ([], [""]):  # a word of the first level is what nobody knows
            above, siblings = [], [*(siblings or [*SECTIONS, *SCALARS]), "recipe", "experiment"]
        part = key.split(".")[len(above) :] or [key]  # nothing is left: a key of a mapping
        whole = parent._get_root() if parent is not None else None
        return f"{key}: no such key; {instead(key, part[0], siblings, whole)}"
    if found := re.search(r"Ambiguous value for argument '([^']*)'", text):
        word = found[1]
        return f"{word}: several values are a sweep; write -m {word} (a list is key=[a,b])"
    if found := re.search(r"Sweep parameters '(.*)' requires --multirun", text):
        return f"{found[1]}: several values are a sweep; write -m '{found[1]}'"
    if found := re.search(r"Error parsing override '([^'=]*)'", text):
        return f"{found[1]}: is no override; write group=option or key=value"
    if found := re.search(r"Interpolation key '(sizes[\w.]*)' not found", text):
        there = ", ".join(groups.get("sizes", []))
        return (
            f"{found[1]}: the experiment needs it, and the sizes of this dataset lack it; add it"
            f" to conf/sizes/<dataset>.yaml; there are: {there}"
        )
    if found := re.search(r"Interpolation key '([\w.]+)' not found\s+full_key: ([\w.]+)", text):
        return f"{found[2]}: follows {found[1]}, which is not there; give it a value"
    if found := re.search(r"raised while resolving interpolation: (.*)\s+full_key: (\S+)", text):
        told, key = found[1].strip('"'), found[2]
        return f"{key}: {told}; set what it follows, or give {key} a value"
    if "LexerNoViableAlt" in text or "OverrideParse" in type(error).__name__:
        given = next((line for line in text.splitlines() if "=" in line), text.splitlines()[0])
        given = getattr(error, "override", None) or given.split(": ")[-1].strip()
        given = printable(given)
        key, _, value = given.partition("=")
        return (
            f"{given}: can't be read; quote the value for Hydra and the shell: '{key}=\"{value}\"'"
        )
    if "no viable alternative at input" in text:
        return f"a value of a file can't be read ({text.splitlines()[0]}); quote it"
    if "Config group override must be" in text:  # Hydra does not say which
        listed = ", ".join(groups)
        return f"a group can't be null or a number; write group=option; groups: {listed}"
    return _joined(text, error)


def _joined(text: str, error: BaseException) -> str:
    """What Hydra says, without its noise."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    noise = ("full_key:", "object_type", "See http")
    line = " ".join(line for line in lines if not line.startswith(noise)) or type(error).__name__
    if (key := re.search(r"^\s*full_key: (\S+)", text, re.M)) and key[1] not in line:
        line = f"{key[1]}: {line}"
    return line if len(line) <= 400 else line[:397] + "..."  # some quote the whole config
