"""What is compiled, when, and what is said of it; a real compilation is in test_run.py."""

import _ctypes
import fcntl
import types
from pathlib import Path

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


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library in a cache of torch's: this process has loaded one like it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compilation.drop_torn_libraries.cache_clear()
    whole = Path(fcntl.__file__ if fcntl.__file__.endswith(".so") else _ctypes.__file__)
    (tmp_path / "ab").mkdir()
    path = tmp_path / "ab" / "cabc.main.so"
    path.write_bytes(whole.read_bytes())
    path.with_name("cabc.main.so.load_ok").write_text("")
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/cabc.lock").write_text("")
    return path


@pytest.mark.parametrize("left", ["nothing", "a head", "half", "zeros", "all"])
def test_a_library_that_was_not_written_whole_is_compiled_again(left, library):
    whole = library.read_bytes()
    size = {"nothing": 0, "a head": 64, "half": len(whole) // 2, "all": len(whole)}
    library.write_bytes(bytes(len(whole)) if left == "zeros" else whole[: size[left]])
    compilation.drop_torn_libraries()
    assert library.exists() == (left == "all")
    assert library.with_name("cabc.main.so.load_ok").exists() == (left == "all")


def test_a_library_that_another_process_writes_is_left_alone(library):
    library.write_bytes(b"")
    with open(library.parents[1] / "locks/cabc.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        compilation.drop_torn_libraries()
    assert library.exists()


def test_a_library_that_can_not_be_loaded_is_compiled_anew(library, sat, monkeypatch):
    """What no look at its head tells: one fault, and then it goes on."""

    def execute(*given):
        text = f"backend='inductor' raised:\nImportError: {library}: undefined symbol: x"
        error = torch._dynamo.exc.TorchDynamoException(text)
        raise error

    monkeypatch.setattr("sat.run.execute", execute)
    done = sat()
    assert done.code == 1 and "undefined symbol: x); the same command compiles anew" in done.err
    assert not library.exists()
    assert "schedule.compile=false" in sat().err


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
    assert tricks(GPU, optimizer="lamb") == [True, False, True]
    assert tricks(CPU, shard=True) == [False, False, False]  # of whole weights
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
