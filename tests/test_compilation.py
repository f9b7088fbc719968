"""What is compiled, when, and what is said of it; a real compilation is in test_run.py."""

import types

import pytest
import torch
from torch import nn

from sat.acceleration import auto, compilation
from sat.acceleration.auto import choose
from sat.acceleration.compilation import Warmup, compiled
from sat.training.schedule import Schedule

CPU, GPU = torch.device("cpu"), torch.device("cuda")
IMAGES, COST = 50_000, 555_000_000  # ResNet-18 on CIFAR-10


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """With fast bfloat16 and a compiler, whatever this one has."""
    monkeypatch.setattr(auto, "bf16_pays", lambda kind: True)
    monkeypatch.setattr(auto, "compiles", lambda device: True)


def chosen(device: torch.device, cost: int = COST, key: str = "compile", **schedule):
    return choose(Schedule(**schedule), device, IMAGES, cost, False)[key]


def test_long_runs_are_compiled_and_short_ones_are_not():
    assert chosen(CPU, epochs=30) and chosen(GPU, epochs=30, graph=False)
    assert not chosen(CPU, epochs=0.5) and not chosen(GPU, epochs=0.5, graph=False)
    assert not chosen(CPU, cost=100_000, epochs=30)
    assert chosen(GPU, cost=100_000, epochs=30, graph=False)  # bound by launches


def test_beside_a_graph_a_compiler_has_less_to_save():
    assert not chosen(GPU, epochs=30) and chosen(GPU, epochs=200)
    assert not chosen(GPU, cost=100_000, epochs=200)


def test_a_step_is_one_graph_where_a_gpu_would_wait_for_launches(monkeypatch):
    def graph(device=GPU, **words):
        return chosen(device, key="graph", **words)

    assert graph() and graph(optimizer="adamw") and graph(epochs=1, cost=100_000)
    assert not graph(CPU) and graph(CPU, graph=True) and not graph(graph=False)
    assert not graph(epochs=0.1)  # 39 updates
    assert not graph(cost=4_000_000_000) and graph(cost=4_000_000_000, accumulate=4)
    assert not graph(optimizer="lamb") and not graph(fused=False) and not graph(shard=True)
    assert not graph(compile="reduce-overhead")
    monkeypatch.setattr(auto, "processes", lambda: (0, 2))
    assert not graph()


@pytest.mark.parametrize("words", [{"optimizer": "lamb"}, {"fused": False}])
def test_a_graph_needs_a_rate_on_the_device(words):
    with pytest.raises(ValueError, match="^graph=true: needs a fused optimizer, sgd, momentum,"):
        Schedule(graph=True, **words)


def test_a_graph_holds_no_other_graphs():
    with pytest.raises(ValueError, match="^graph=true: .* write compile=true"):
        Schedule(graph=True, compile="reduce-overhead")


def test_a_graph_of_a_cpu_is_refused(sat):
    refused = sat("schedule.graph=true")
    assert refused.code == 2 and "schedule.graph=true: is for one process on a GPU" in refused.err


def test_nothing_is_compiled_by_itself_without_a_compiler_for_several_processes_or_shared_weights(
    monkeypatch,
):
    assert not chosen(CPU, epochs=30, shard=True)
    monkeypatch.setattr(auto, "processes", lambda: (0, 2))
    assert not chosen(CPU, epochs=30)
    monkeypatch.setattr(auto, "processes", lambda: (0, 1))
    monkeypatch.setattr(auto, "compiles", lambda device: False)
    assert not chosen(CPU, epochs=30) and chosen(CPU, epochs=0.5, compile=True)


def test_a_compiler_that_fails_is_none(monkeypatch):
    def failing(function):
        def call(x):
            raise RuntimeError("no compiler")

        return call

    compilation.compiles.cache_clear()
    monkeypatch.setattr(torch, "compile", failing)
    assert not compilation.compiles(CPU)
    compilation.compiles.cache_clear()


@pytest.mark.parametrize("asked", [False, True, "reduce-overhead", "auto"])
def test_the_network_is_compiled_as_asked(monkeypatch, asked):
    calls, config = [], types.SimpleNamespace(suppress_errors=None)
    monkeypatch.setattr(torch, "compile", lambda net, mode: calls.append(mode) or net)
    monkeypatch.setattr(torch._dynamo, "config", config)
    compiled(nn.Linear(1, 1), True if asked == "auto" else asked, asked == "auto")
    assert calls == ([] if asked is False else [asked if isinstance(asked, str) and asked != "auto"
                                                else None])  # fmt: skip
    assert config.suppress_errors is {False: None, "auto": True}.get(asked, False)


def test_compilations_are_told_once(monkeypatch):
    count = [2]
    monkeypatch.setattr(compilation, "graphs", lambda: count[0])
    monkeypatch.setattr(compilation, "seconds", lambda: 41.6)
    warmup = Warmup(True)
    assert warmup.news(1) == []
    count[0] = 4
    assert warmup.news(3) == ["step 3: 2 graphs compiled, 42 s in all so far"]
    assert warmup.news(4) == [] == Warmup(False).news(9)
    count[0] = 0  # another run's compiler was reset
    assert warmup.news(5) == []
    count[0] = 1
    assert warmup.news(6) == ["step 6: 1 graphs compiled, 42 s in all so far"]


def test_the_counts_are_torchs():
    before, spent = compilation.graphs(), compilation.seconds()
    torch.compile(lambda x: x.sin() + 1, backend="aot_eager")(torch.zeros(3))
    assert compilation.graphs() == before + 1 and compilation.seconds() > spent


def test_tricks_are_on_where_they_help():
    def tricks(device, **schedule):
        found = choose(Schedule(epochs=1, **schedule), device, IMAGES, COST, False)
        return [found[key] for key in ("fold", "fused", "tf32")]

    assert tricks(CPU) == [True, True, False] and tricks(GPU) == [True, True, True]
    assert tricks(GPU, precision="fp16") == [False, True, True]
    assert tricks(GPU, optimizer="lamb", shard=True) == [True, False, True]
    assert tricks(CPU, shard=True) == [True, False, False]
    assert tricks(GPU, fold=False, fused=False, tf32=False) == [False, False, False]
    with pytest.raises(ValueError, match="fused=true: lamb has no such step"):
        Schedule(optimizer="lamb", fused=True)


def test_a_run_with_cuda_graphs_ends_and_says_so(sat, monkeypatch):
    """On a CPU there are none; nothing is compiled here."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda net, mode: asked.append(mode) or net)
    done = sat("schedule.compile=reduce-overhead")
    assert done.code == 0 and {*asked} == {"reduce-overhead"}
    assert "compiled" in (done.run / "log.txt").read_text()
    assert done.result["choices"]["compile"] == "reduce-overhead"
