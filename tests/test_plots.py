"""Figures and the page of a report: drawn from tables that are made up here."""

import dataclasses
import importlib
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
LABELS = ["relu", "silu", "gelu", "elu alpha=1", "elu alpha=2", "celu alpha=2", "softplus",
          "parametric_softplus alpha=10", "smoothrelu", "mish", "leaky_relu", "pssilu"]  # fmt: skip
FIGURES = [
    {"kind": "scatter"},
    {"kind": "dots"},
    {"kind": "lines", "x": "gradients", "series": ["activation"]},
    {"kind": "epochs"},
]


@pytest.fixture
def made(monkeypatch) -> SimpleNamespace:
    """The scripts as modules: these import each other by their bare names."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    names = ("study", "pages", "canvas", "placing", "trends", "plots", "webpage")
    modules = {name: importlib.import_module(name) for name in names}
    with matplotlib.rc_context(modules["canvas"].STYLE):
        yield SimpleNamespace(**modules)


@pytest.fixture
def number(made):
    def make(mean: float, seeds: int = 3, spread: float = 0.01):
        shares = np.clip(mean + spread * np.linspace(-1, 1, seeds) * (seeds > 1), 0, 1)
        half = 0.02 if seeds == 1 else 3 * spread
        return made.study.Number(mean, mean - half, mean + half, dict(enumerate(shares.tolist())))

    return make


@pytest.fixture
def table(made, number, tmp_path):
    """`table(rows, seeds)`, whose accuracies lie `apart` of a random direction from each other."""

    def make(rows: int = 4, seeds: int = 3, *, apart: float = 0.05, spread: float = 0.01, **spec):
        random, found = np.random.default_rng(rows), []
        for k, label in enumerate(LABELS[:rows]):
            clean, robust = (0.85, 0.45) + apart * random.uniform(-1, 1, 2)
            runs = [tmp_path / f"run-{k}-{seed}" for seed in range(seeds)]
            for seed, run in enumerate(runs):
                write_metrics(run, 10 + 10 * (k % 2), seed)
            numbers = {
                ("best", "clean"): number(clean, seeds, spread),
                ("best", "pgd20"): number(robust, seeds, spread),
                ("last", "pgd20"): number(robust - 0.02, seeds, spread),
            }
            difference = made.study.Difference(0.01, -0.01, 0.03, 0.04, "seeds", k % 3 == 1)
            name, _, alpha = label.partition(" alpha=")
            found.append(made.study.Row(
                label, {"activation": name, "activation.alpha": float(alpha) if alpha else None},
                runs, numbers, {("best", "pgd20"): difference} if k else {},
                {"clean": 68.8, "robust": 33.0 + k} if k < 3 else None, 80.0 * 2**k, 300_000,
            ))  # fmt: skip
        spec = {"title": "Activations", "rows": ["activation", "activation.alpha"],
                "figures": FIGURES, **spec}  # fmt: skip
        return made.study.Table("activations", "digits", "digits, eps 38/255, resnet10, 40 epochs",
                                spec, found, "pgd20")  # fmt: skip

    return make


@pytest.fixture
def alphas(made, number):
    """ELU and CELU over alpha, and ReLU, which has none."""

    def make(names=("elu", "celu"), values=(1.0, 1.5, 2.0)):
        rows = [
            made.study.Row(
                f"{name} alpha={value:g}", {"activation": name, "activation.alpha": value}, [],
                {("best", "clean"): number(0.85), ("best", "pgd20"): number(0.45 - 0.01 * value)},
            )
            for name in names for value in values
        ]  # fmt: skip
        relu = {("best", "clean"): number(0.8), ("best", "pgd20"): number(0.4)}
        rows.append(
            made.study.Row("relu", {"activation": "relu", "activation.alpha": None}, [], relu)
        )
        return made.study.Table("elu_vs_celu", "digits", "digits, eps 38/255",
                                {"title": "ELU against CELU"}, rows, "pgd20")  # fmt: skip

    return make


def with_numbers(row, **numbers):
    return dataclasses.replace(row, numbers={("best", name): n for name, n in numbers.items()})


def write_metrics(run: Path, epochs: int, seed: int) -> None:
    """Robust accuracy peaks halfway, at 50 % and a percent a seed more."""
    run.mkdir(exist_ok=True)
    lines = []
    for epoch in range(1, epochs + 1):
        robust = 0.5 + 0.01 * seed - 0.02 * abs(epoch - epochs / 2)
        lines.append({"epoch": epoch, "val/robust": max(robust, 0), "val/clean": 0.9})
        lines.append({"epoch": epoch + 0.4, "train/loss": 1.0})
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def words(figure) -> list[tuple[str, np.ndarray]]:
    """Every visible text of a figure and its box, in pixels."""
    figure.draw_without_rendering()
    renderer, found = figure.canvas.get_renderer(), []
    unseen = {
        label
        for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }  # fmt: skip
    for text in set(figure.findobj(matplotlib.text.Text)) - unseen:
        owner = getattr(text, "axes", None)
        if text.get_visible() and text.get_text().strip() and (not owner or owner.get_visible()):
            box = matplotlib.text.Text.get_window_extent(text, renderer)
            found.append((text.get_text(), box.extents))
    return found


def collisions(figure) -> list[tuple[str, str]]:
    return [
        (a, b)
        for (a, one), (b, two) in combinations(words(figure), 2)
        if (np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2]) > 1).all()
    ]


# figures ------------------------------------------------------------------------------------------


def test_each_kind_is_drawn_with_its_labels_and_the_same_bytes_again(made, table, tmp_path):
    mine = table(4)
    first = made.plots.draw([mine], tmp_path / "one")
    assert [each.png.name for each in first] == [
        f"activations-digits-{n}-{kind}.png"
        for n, kind in enumerate(("scatter", "dots", "lines", "epochs"), 1)
    ]
    again = made.plots.draw([mine], tmp_path / "two")
    for one, two in zip(first, again, strict=True):
        assert one.png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert one.png.stat().st_size < 60_000
        said = "".join(ET.parse(one.svg).getroot().itertext())
        shown = (
            ["ReLU", "SiLU", "GELU", "ELU"]
            if one.svg.stem.endswith(("lines", "epochs"))
            else LABELS[:4]
        )
        assert all(label in said for label in shown), one.svg
        assert "Activations" in said and "accuracy, %" in said and "3 seeds" in said
        assert re.search(r"\d\d\.\d %", one.text) and one.table == mine.name
        for kind in ("png", "svg"):
            assert getattr(one, kind).read_bytes() == getattr(two, kind).read_bytes()


@pytest.mark.parametrize("rows, seeds, apart, spread", [
    (12, 5, 0.05, 0.01), (12, 5, 0.002, 0.001), (12, 3, 0, 0), (12, 2, 0.02, 0.2),
    (4, 1, 0, 0), (1, 2, 0.05, 0.01),
])  # fmt: skip
def test_no_text_covers_another(made, table, rows, seeds, apart, spread):
    mine = table(rows, seeds, apart=apart, spread=spread)
    for kind in (made.plots.scatter, made.plots.dots):
        assert not collisions(kind(mine, {})[0])
    if rows > 1:
        entry = {"x": "gradients", "series": []}
        assert not collisions(made.trends.lines(mine, entry)[0])


def test_panels_of_epochs_and_ends_of_lines_do_not_collide(made, table, alphas):
    assert not collisions(made.trends.epochs(table(12, 2), {})[0])
    assert not collisions(made.trends.lines(alphas(), ALPHA)[0])
    many = alphas(("elu", "celu", "parametric_softplus"), (0.1, 1.0, 10.0, 100.0, 1000.0))
    assert not collisions(made.trends.lines(many, ALPHA)[0])


ALPHA = {"x": "activation.alpha", "series": ["activation"]}


def test_the_pareto_front_by_hand(made):
    """b beats a; d equals c, and neither beats the other; e is best in x alone."""
    a, b, c, d, e = (1, 1), (1, 3), (2, 2), (2, 2), (3, 0)
    assert made.plots.pareto([a, b, c, d, e]) == [1, 2, 3, 4]
    assert made.plots.pareto([e, c, b]) == [2, 1, 0]
    assert made.plots.pareto([a]) == [0]


def test_the_front_is_a_step_line_through_what_is_not_beaten(made, table, number):
    mine = table(3)
    given = [(0.80, 0.40), (0.70, 0.50), (0.75, 0.30)]
    rows = [
        dataclasses.replace(
            row, numbers={("best", "clean"): number(x), ("best", "pgd20"): number(y)}
        )
        for row, (x, y) in zip(mine.rows, given, strict=True)
    ]
    figure, text = made.plots.scatter(dataclasses.replace(mine, rows=rows), {})
    front = next(line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-pre")
    np.testing.assert_allclose(front.get_xydata()[1:-1], [(70, 50), (80, 40)])
    assert "silu (70.0 % clean, 50.0 % robust), relu (80.0 %" in text and "gelu (" not in text


def test_one_name_twice_overwrites_nothing(made, table, tmp_path):
    spec = {"figures": [{"kind": "dots"}]}
    two = [dataclasses.replace(table(2, **spec), setting=name) for name in ("a", "b")]
    figures = made.plots.draw(two, tmp_path / "f")
    assert [each.setting for each in figures] == ["a", "b"]
    assert len({each.png for each in figures} | {each.svg for each in figures}) == 4
    odd = dataclasses.replace(two[0], experiment="../a b")
    assert made.plots.stems([odd, *two]) == [".._a_b-digits", "activations-digits",
                                             "activations-digits_2"]  # fmt: skip


def test_what_cannot_be_drawn_is_named_in_a_line(made, table, tmp_path, caplog):
    mine = table(2, figures=[{"kind": "pie"}, {"kind": "lines", "x": "multiply_adds"},
                             {"kind": "lines", "x": "none"}, {}, {"kind": "epochs"},
                             {"kind": "dots"}])  # fmt: skip
    rows = [dataclasses.replace(row, runs=[tmp_path / "gone"]) for row in mine.rows]
    figures = made.plots.draw([dataclasses.replace(mine, rows=rows)], tmp_path / "f")
    assert [each.png.name for each in figures] == ["activations-digits-6-dots.png"]
    said = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(said) == 5 and "figure 1 (pie) left out: no such kind; write one of" in said[0]
    assert "multiply_adds has no two values" in said[1] and "val/robust" in said[4]


def test_a_row_without_the_measure_is_left_out_of_the_figure_alone(made, table, tmp_path, caplog):
    mine = table(3, figures=[{"kind": "dots"}, {"kind": "scatter"}])
    bare = dataclasses.replace(
        mine.rows[1], numbers={("best", "clean"): mine.rows[1].numbers["best", "clean"]}
    )
    figures = made.plots.draw(
        [dataclasses.replace(mine, rows=[mine.rows[0], bare, mine.rows[2]])], tmp_path / "f"
    )
    assert len(figures) == 2 and "silu isn't drawn" in caplog.text
    assert ">gelu<" in figures[0].svg.read_text() and ">silu<" not in figures[0].svg.read_text()


def test_published_numbers_stand_in_a_panel_of_their_own(made, table):
    said = {"setting": "ImageNet, ResNet-50", "source": "figure 2", "rows": []}
    figure, _ = made.plots.dots(table(4, published=said), {})
    robust, clean, published = figure.axes
    assert "not measured here" in published.get_title() and "ImageNet" in caption(figure)
    assert sorted(line.get_xdata()[0] for line in published.lines) == [33, 34, 35, *[68.8] * 3]
    assert robust.get_xlim()[0] > 36 and clean.get_xlim()[0] > 70  # neither holds 33 or 68.8


def caption(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_intervals_far_wider_than_the_points_leave_the_frame_and_it_says_so(made, table, number):
    mine = table(2)
    assert "go on" not in caption(made.plots.dots(mine, {})[0])
    wide = dataclasses.replace(number(0.45), low=-0.3, high=1.2)
    rows = [
        dataclasses.replace(r, numbers={**r.numbers, ("best", "pgd20"): wide}) for r in mine.rows
    ]
    figure = made.plots.dots(dataclasses.replace(mine, rows=rows), {})[0]
    low, high = figure.axes[0].get_xlim()
    assert 30 < low < 44 and 46 < high < 60 and "bars that reach the frame go on" in caption(figure)


def test_no_interval_leaves_what_an_accuracy_can_be(made, table, alphas, number):
    wide = dataclasses.replace(number(0.97, spread=0.02), low=0.9, high=1.04)
    np.testing.assert_allclose(made.canvas.bars(wide), [[7], [3]])
    for kind, mine in ((made.plots.scatter, table(2)), (made.plots.dots, table(2)),
                       (lambda t, _: made.trends.lines(t, ALPHA), alphas())):  # fmt: skip
        rows = [with_numbers(row, clean=wide, pgd20=wide) for row in mine.rows]
        figure, _ = kind(dataclasses.replace(mine, rows=rows), {})
        paths = [
            path for axes in figure.axes for bar in axes.collections for path in bar.get_paths()
        ]
        bands = [band for axes in figure.axes for band in axes.patches]
        paths += [band.get_patch_transform().transform_path(band.get_path()) for band in bands]
        assert max(x for path in paths for x in path.vertices.flat) == 100


def test_only_differences_over_seeds_get_a_star(made, table):
    def stars(mine):
        figure, _ = made.plots.dots(mine, {})
        assert ("Holm" in caption(figure)) == bool(figure.axes[0].texts)
        return [text.xy[1] for text in figure.axes[0].texts]

    mine = table(5)
    assert stars(mine) == [1, 4]
    rows = list(mine.rows)
    for k in (1, 4):
        (found,) = rows[k].differences.values()
        images = dataclasses.replace(found, test="images")
        rows[k] = dataclasses.replace(rows[k], differences={("best", "pgd20"): images})
        assert stars(dataclasses.replace(mine, rows=rows)) == [4] * (k == 1)


def test_a_row_that_raised_alarms_is_crossed_out(made, table, alphas):
    for kind, mine, crosses in (
        (made.plots.scatter, table(3), 1), (made.plots.dots, table(3), 2),
        (lambda t, _: made.trends.lines(t, ALPHA), alphas(), 2),
    ):  # fmt: skip
        rows = [mine.rows[0], dataclasses.replace(mine.rows[1], alarms=2), *mine.rows[2:]]
        for given, count in ((mine, 0), (dataclasses.replace(mine, rows=rows), crosses)):
            figure, _ = kind(given, {})
            drawn = [line for axes in figure.axes for line in axes.lines]
            assert [line.get_marker() for line in drawn].count("x") == count
            assert ("x: raised alarms" in caption(figure)) == bool(count)


def test_captions_say_which_checkpoint_is_drawn(made, table, alphas):
    mine = table(2)
    figures = made.plots.scatter(mine, {}), made.plots.dots(mine, {}), lines(made, alphas())
    for figure, _ in figures:
        assert "Checkpoint chosen on held-out images" in caption(figure)


def lines(made, table, **entry):
    return made.trends.lines(table, {**ALPHA, **entry})


@pytest.mark.parametrize("rows", [4, 12])
def test_networks_of_no_series_are_points_with_their_names(made, table, rows):
    costs = {"x": "gradients", "series": []}
    mine = table(rows)
    joined = lines(made, mine, **costs)[0].axes
    assert {axes.containers[0][0].get_linestyle() for axes in joined} == {"-"}
    figure, text = lines(made, mine, **costs, join=False)
    for axes in figure.axes:
        assert axes.containers[0][0].get_linestyle() == "None"
        said = {text.get_text().replace("\n", " ") for text in axes.texts}
        assert said == set(LABELS[:rows])
    assert "relu 4" in text and " to " not in text and not collisions(figure)


def test_no_line_stands_upright(made, table):
    mine = table(3)
    for factor, style in ((1.0001, "None"), (1.5, "-")):
        rows = [*mine.rows[:2], dataclasses.replace(mine.rows[2], gradients=160 * factor)]
        figure, _ = lines(made, dataclasses.replace(mine, rows=rows), x="gradients", series=[])
        assert {axes.containers[0][0].get_linestyle() for axes in figure.axes} == {style}


def test_axes_are_named_for_people(made):
    keys = ("schedule.weight_decay", "schedule.epochs", "activation.alpha", "model.depth",
            "dataset.image_size", "attack.steps", "parameters")  # fmt: skip
    assert list(map(made.trends.axis_name, keys)) == [
        "weight decay", "epochs", "alpha", "depth", "image size, pixels", "attack steps",
        "parameters"]  # fmt: skip


def test_lines_over_a_number_and_rows_that_have_none(made, alphas):
    figure, text = made.trends.lines(alphas(), ALPHA)
    robust, clean = figure.axes
    elu, celu = robust.containers
    (x, y), (other, _) = elu[0].get_xydata().T, celu[0].get_xydata().T
    np.testing.assert_allclose(y, [44, 43.5, 43])
    assert (x < other).all()  # beside each other, by a hair
    np.testing.assert_allclose((x + other) / 2, [1, 1.5, 2])
    (level,) = [line for line in robust.lines if line.get_linestyle() == "--"]
    assert list(level.get_ydata()) == [40, 40]
    assert robust.get_xscale() == "linear" and "ELU 44.0 % at 1 to 43.0 % at 2" in text
    wide, _ = made.trends.lines(alphas(values=(0.1, 1.0, 10.0)), ALPHA)
    assert wide.axes[0].get_xscale() == "log"
    assert {text.get_text() for text in figure.axes[1].texts} == {"ELU", "CELU", "relu"}


def test_names_at_the_ends_of_lines_keep_their_distance(made):
    spread = made.placing.spread
    assert spread([1, 9], 2, 0, 10) == [1, 9]
    assert spread([5, 5], 2, 0, 10) == [4, 6]
    assert spread([10, 9.5, 0], 2, 0, 10) == [10, 8, 0]


def test_epochs_are_means_over_seeds_of_what_is_whole(made, table):
    mine = table(1, seeds=3)
    path = mine.rows[0].runs[0] / "metrics.jsonl"
    damage = (
        '{"epoch": 5, "val/rob\n[1]\n{"epoch": "x", "val/robust": 1}\n{"val/robust": 1}\nnull\n'
    )
    path.write_text(damage + path.read_text() + '{"epoch": 11, "val/robust": NaN}\n')
    curves = made.trends.held_out([*mine.rows[0].runs, path.parent / "gone"])
    epochs, mean, low, high = curves["robust"]
    np.testing.assert_allclose(epochs, range(1, 11))
    np.testing.assert_allclose([mean[4], low[4], high[4]], [51, 50, 52])
    figure, text = made.trends.epochs(mine, {})
    best = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in best] == [(5, pytest.approx(51))]
    assert "from 51.0 % (epoch 5) to 41.0 %" in text


def test_series_share_a_panel_and_trainings_of_any_length_an_axis(made, table):
    figure, _ = made.trends.epochs(table(5), {"series": ["activation"]})
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["ReLU", "SiLU", "GELU", "ELU"]
    assert len({axes.get_xlim() for axes in shown}) == 1 and shown[0].get_xlim()[1] >= 20
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"robust", "clean", "alpha=1", "alpha=2"} <= set(told)


# the page -----------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Balanced tags, ids and text of a page."""

    VOID = {"meta", "br"}

    def __init__(self, page: str):
        super().__init__()
        self.open, self.ids, self.links, self.said, self.tags = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.note(attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.note(attrs)

    def note(self, attrs):
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            elif key in ("href", "xlink:href"):
                self.links.append(value)
            self.links += re.findall(r"url\((.*?)\)", value or "") if key != "id" else []

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.said.append(data)


EVIL = '<script>alert("x")</script> & more'


def test_the_page_is_whole_escaped_and_alone(made, table, tmp_path):
    mine = table(
        4,
        question="Which?",
        figures=[{"kind": "scatter"}, {"kind": "epochs"}],
        reference={"activation": EVIL},
    )
    verdict = made.study.Verdict(EVIL, "supports", EVIL)
    rows = [*mine.rows[:3], dataclasses.replace(mine.rows[3], label=EVIL)]
    mine = dataclasses.replace(mine, rows=rows, verdicts=[verdict], notes=[EVIL])
    other = dataclasses.replace(table(2, figures=[{"kind": "dots"}]), setting=EVIL)
    figures = made.plots.draw([mine, other], tmp_path / "f")
    text = made.webpage.page(EVIL, [mine, other], figures, [EVIL], f"{EVIL}\n\nSecond.")
    read = Reader(text)
    said = "".join(read.said)
    assert "script" not in read.tags and said.count(EVIL) >= 8
    assert all(row.label in said for row in mine.rows) and "Which?" in said
    assert read.tags.count("svg") == 3 and read.tags.count("style") == 1
    assert len(read.ids) == len(set(read.ids)) > 100
    assert read.links and all(link[0] == "#" and link[1:] in read.ids for link in read.links)
    assert made.webpage.page(EVIL, [mine, other], figures, [EVIL], f"{EVIL}\n\nSecond.") == text


def test_the_tables_of_the_page_tell_what_the_text_tells(made, table):
    mine = table(3, published={"setting": "ImageNet", "source": "figure 2"})
    one = made.study.Number(0.4567, 0.4, 0.52, {0: 0.4567})
    difference = made.study.Difference(-0.031, -0.05, -0.012, 0.0031, "images", False)
    row = dataclasses.replace(mine.rows[1], numbers={("best", "pgd20"): one}, runs=["a"],
                              differences={("best", "pgd20"): difference})  # fmt: skip
    answers = ("supports", "contradicts", "says nothing", "not run")
    mine = dataclasses.replace(
        mine, rows=[mine.rows[0], row, mine.rows[2]], reference="relu", facts={"machine": "a, b"},
        verdicts=[made.study.Verdict("c", answer, "r") for answer in answers],
    )  # fmt: skip
    text = made.webpage.page("T", [mine], [], [], "")
    section = text[text.index('<section id="table-1">') :]
    head, rows = made.pages.cells_of(mine)
    shown = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", line) for line in section.splitlines()]
    shown = [[re.sub("<[^>]*>", "", cell) for cell in line] for line in shown if line]
    assert shown == [head, *rows]
    assert "<td>45.7 <small>[40.0, 52.0]</small></td>" in text
    assert "<td>-3.1 <small>(-5.0 to -1.2) †</small></td>" in text
    assert '<td class="published">68.8</td>' in text
    under = [" ".join(made.pages.legend(rows)), *made.pages.remarks(mine)]
    said = "".join(Reader(text).said)
    assert "McNemar" in said and "Wilson" in said and all(line in said for line in under)
    for kind, answer in zip(("yes", "no", "none", "none"), answers, strict=True):
        assert re.search(f'<li class="{kind}"><b>. {answer}</b>', text)


def test_claims_stand_first_each_answer_in_its_colour(made, table, monkeypatch):
    mine = table(2)
    assert "glance" not in made.webpage.page("T", [mine], [], [], "").split("</style>")[1]
    row = ["alpha", EVIL, "supports: +1.2 points", "contradicts: -1", "says nothing: why", "-",
           "not run"]  # fmt: skip
    head = ["experiment", "claim", "digits", "cifar10", "a", "b", "c"]
    monkeypatch.setattr(made.pages, "glance_of", lambda tables: (head, [row]))
    monkeypatch.setattr(made.pages, "rule_of", lambda tables: f"By {len(tables)} & <b>")
    text = made.webpage.page("T", [mine], [], [], "")
    glance = text[text.index("at a glance") : text.index('<section id="table-1">')]
    assert re.findall('<td class="(.*?)"><b>. (.*?)</b> <small>(.*?)</small>', glance) == [
        ("yes", "supports", "+1.2 points"), ("no", "contradicts", "-1"),
        ("none", "says nothing", "why"), ("none", "not run", "")]  # fmt: skip
    assert "<td>-</td>" in glance and "By 1 &amp; &lt;b&gt;" in glance
    assert EVIL in "".join(Reader(text).said)
