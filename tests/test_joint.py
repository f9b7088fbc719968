"""Sweeps over options of which some lack a key that is swept: a baseline beside the others."""

import pytest

from sat import sweep
from sat.config import composed, joint
from sat.errors import Refused
from sat.job import network_of

WORDS = ["-m", "activation=relu,elu,celu", "activation.alpha=1,2"]


@pytest.mark.parametrize(
    "words, keys",
    [
        (WORDS, ["activation.alpha"]),
        (WORDS[1:], []),  # single runs are refused as ever
        (["-m", "activation=relu", "activation.alpha=1,2"], []),
        (["-m", "activation=relu,silu", "activation.alpha=1,2"], []),
        (["-m", "activation=elu,celu", "activation.alpha=1,2"], []),
        (["-m", "activation=relu,mine", "activation.alpha=1,2"], []),  # what it has, who knows
        (["-m", "attack=fgsm,pgd", "attack.steps=1,3"], ["attack.steps"]),
        (["-m", "dataset=cifar100,imagenet", "dataset.crop=2"], ["dataset.crop"]),
        (["-m", "activation=relu,elu", "activation.alhpa=1"], []),
        (["-m", "seed=1,2", "alpha=1", "x.y.z=1", "nothing.alpha=1", "--config-dir", "a=b"], []),
    ],
)
def test_keys_that_some_options_have_are_found(words, keys):
    told, found = joint.joined(words)
    assert found == keys
    marked = [word for word in told if word.startswith("++")]
    assert [word[2:].split("=")[0] for word in marked] == keys
    assert [word.removeprefix("++") for word in told] == words


@pytest.mark.parametrize("word", ["--m", "--multi", "--multirun", "hydra.mode=MULTIRUN"])
def test_whatever_asks_for_a_sweep_is_m(word):
    words = joint.options_first([WORDS[1], word, "--config-dir", "mine", WORDS[2]])
    assert words == ["-m", "--config-dir", "mine", *WORDS[1:]]
    assert looked_at([word, *WORDS[1:], "seed=1"])[0][0] == ["activation=relu", "seed=1"]


@pytest.mark.parametrize("word", ["hydra.mode=2", "hydra.mode='MULTIRUN'", "hydra.mode=null"])
def test_a_mode_by_another_name_is_refused(word):
    with pytest.raises(Refused, match="a sweep is asked for with -m"):
        looked_at([*WORDS[1:], word])


def looked_at(words):
    """The jobs of a command line: their overrides and the names of their runs."""
    from sat import config

    jobs = []

    def look(cfg, choices, overrides):
        plain = joint.without(config.resolve(cfg), [*joint.lacking(choices)])
        jobs.append((overrides, config.check({**plain, "choices": choices})))

    sweep.each_job(words, look)
    return jobs


def test_the_baseline_is_one_run_and_the_others_have_every_value():
    jobs = looked_at(WORDS)
    assert [words for words, _ in jobs] == [
        ["activation=relu"], ["activation=relu"],
        ["activation=elu", "activation.alpha=1"], ["activation=elu", "activation.alpha=2"],
        ["activation=celu", "activation.alpha=1"], ["activation=celu", "activation.alpha=2"],
    ]  # fmt: skip
    names = [spec.name for _, spec in jobs]
    assert len({*names}) == 5 and names[0] == names[1]
    for k, words in ((0, ["activation=relu"]), (3, ["activation=elu", "activation.alpha=2"])):
        ((_, alone),) = looked_at(words)
        assert names[k] == alone.name


def test_elu_and_celu_at_alpha_1_are_one_network():
    spec = lambda *words: composed(words)  # noqa: E731
    elu, celu = (network_of(spec(f"activation={name}")) for name in ("elu", "celu"))
    assert elu == celu == network_of(spec("activation=celu", "activation.alpha=1.0"))
    others = [
        spec("activation=elu", "activation.alpha=2"),
        spec("activation=relu"),
        spec("activation=celu", "activation.alpha=2"),
        spec("activation=elu", "seed=1"),
    ]
    assert len({elu, *map(network_of, others)}) == 5


def test_a_joint_sweep_trains_the_baseline_once_and_says_so(sat):
    done = sat("-m", "activation=relu,elu,celu", "activation.alpha=1,2", "schedule.epochs=0.1")
    assert done.code == 0, done.err
    assert len(done.runs) == 5
    for job in (1, 2):
        assert f"job {job} has no activation.alpha: it is the baseline" in done.out
    assert "job 3 has no" not in done.out
    table = done.out[done.out.index("best: clean %") :]
    rows = [" ".join(line.split()) for line in table.splitlines()[2:8]]
    assert rows[0].endswith("activation=relu (baseline: no activation.alpha)")
    assert rows[1] == "2 activation=relu (the same run as job 1)"
    assert "jobs 3 and 5 are one network: ELU and CELU at alpha 1 are one function" in table
    baseline = next(run for run in done.runs if "-relu-" in run.name)
    assert '"activation=relu"' in (baseline / "result.json").read_text()
    assert "alpha" not in (baseline / "config.yaml").read_text().split("attack:")[0]


def test_what_no_option_has_is_refused_as_ever(sat):
    for words in (["-m", "activation=relu,silu", "activation.alpha=1,2"],
                  ["activation=relu", "activation.alpha=1"],
                  ["-m", "activation=relu", "activation.alpha=1,2"]):  # fmt: skip
        done = sat(*words)
        assert done.code == 2 and "activation.alpha: no such key" in done.err and not done.runs
