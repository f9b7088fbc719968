"""Trainings side by side: what is timed, on a CPU without streams."""

import timeit
import types
from contextlib import nullcontext

import pytest
import torch

from sat.acceleration import graph
from sat.bench import parts, stopwatch
from sat.bench.case import case_of

WATCH = stopwatch.Stopwatch(torch.device("cpu"), 1)


@pytest.fixture
def case(monkeypatch):
    monkeypatch.setattr(timeit.Timer, "autorange", lambda timer: (1, timer.timeit(1)))
    monkeypatch.setattr(graph, "FIRST", 1)
    monkeypatch.setattr(stopwatch, "WARMING", {"cpu": 1})
    words = ["dataset=digits", "model.width=0.25", "schedule.batch_size=4", "device=cpu"]
    return case_of(words)


class Stream:
    """That of a CPU: all is done in its turn."""

    def __init__(self, log):
        self.log = log

    def wait_stream(self, other):
        self.log.append((self, other))


@pytest.fixture
def waits(monkeypatch):
    log = []
    main = Stream(log)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream(log))
    return main, log


def test_four_trainings_are_timed_one_after_the_other_and_side_by_side(case, waits, monkeypatch):
    captured = []
    monkeypatch.setattr(graph, "record", lambda call: captured.append(1) or call)
    alone, beside = parts.side_by_side(case, WATCH)
    assert len(captured) == 4, "a graph each"
    assert alone["name"] == "4 seeds, one after the other"
    assert alone["times one after the other"]["median"] == 1
    assert beside["name"] == "4 seeds, side by side" and beside["images/s"] > 0
    main, log = waits
    begun, ended = log[:4], log[4:8]
    assert {other for _, other in begun} == {main} and {first for first, _ in ended} == {main}
    assert {first for first, _ in begun} == {other for _, other in ended}


def test_a_step_that_is_no_graph_is_left_out(case, waits, monkeypatch):
    monkeypatch.setattr(graph, "record", lambda call: 1 / 0)
    ((key, note),) = [row for row in parts.side_by_side(case, WATCH)[0].items()]
    assert key == "note" and "ZeroDivisionError" in note


def test_a_cpu_has_none(case):
    ((*_, work),) = parts.seeds(case, None, WATCH)
    assert "are for a GPU" in work()[0]["note"]
    on_gpu = types.SimpleNamespace(device=torch.device("cuda"))
    ((key, *_),) = parts.seeds(on_gpu, None, WATCH)
    assert key == "seeds"
