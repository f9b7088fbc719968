"""Figures of a report: drawn from tables that are made up here. One of each kind is drawn for all
tests that only look at it."""

import dataclasses
import io
import re
import xml.etree.ElementTree as ET
from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from written import config

from sat.report import figures
from sat.report.rows import Row
from sat.report.runs import Measured
from sat.report.spec import Experiment
from sat.report.tables import Table
from sat.statistics import Estimate

LABELS = ["relu", "silu", "gelu", "elu alpha=1", "elu alpha=2", "celu alpha=2", "softplus",
          "parametric_softplus alpha=10", "smoothrelu", "mish", "leaky_relu", "pssilu"]  # fmt: skip
COST = {"kind": "lines", "x": "gradients", "series": ["activation"]}
POINTS = {"kind": "scatter", "x": "gradients"}
FIGURES = [{"kind": "scatter"}, {"kind": "dots"}, COST, {"kind": "epochs"}]
ALPHA = {"kind": "lines", "x": "activation.alpha", "series": ["activation"]}


@pytest.fixture(autouse=True)
def style(monkeypatch):
    """Figures are drawn as they are, but written coarsely, which takes a tenth of the time."""
    with matplotlib.rc_context(figures.STYLE):
        monkeypatch.setitem(figures.STYLE, "savefig.dpi", 40)
        yield


def number(mean: float, seeds: int = 3, spread: float = 0.01) -> Estimate:
    shares = np.clip(mean + spread * np.linspace(-1, 1, seeds) * (seeds > 1), 0, 1)
    half = 0.02 if seeds == 1 else 3 * spread
    low, high = max(mean - half, 0), min(mean + half, 1)
    return Estimate(mean, low, high, dict(enumerate(shares.tolist())))


def run(seed: int, epochs: int) -> Measured:
    """Its robust accuracy peaks halfway, at 50 % and a percent a seed more."""
    rows = [
        {"epoch": e, "val/robust": 0.5 + 0.01 * seed - 0.02 * abs(e - epochs / 2), "val/clean": 0.9}
        for e in range(1, epochs + 1)
    ]
    return Measured("x", (), config("relu", seed), {}, {}, {}, rows)


def row(
    label: str, clean: float, robust: float, seeds: int = 3, spread: float = 0.01, **more
) -> Row:
    name, _, alpha = label.partition(" alpha=")
    numbers = {("best", "clean"): number(clean, seeds, spread),
               ("best", "pgd20"): number(robust, seeds, spread),
               ("last", "pgd20"): number(robust - 0.02, seeds, spread)}  # fmt: skip
    keys = {"activation": name, "activation.alpha": float(alpha) if alpha else None}
    return Row(label, keys, [run(seed, 10) for seed in range(seeds)], numbers, activation=name,
               **{"steps": 1, **more})  # fmt: skip


def table(rows: int = 4, seeds: int = 3, *, apart: float = 0.05, spread: float = 0.01, **spec):
    """Rows whose accuracies lie `apart` of a random direction from each other."""
    random, found = np.random.default_rng(rows), []
    for k, label in enumerate(LABELS[:rows]):
        clean, robust = (0.85, 0.45) + apart * random.uniform(-1, 1, 2)
        found.append(row(label, clean, robust, seeds, spread, gradients=80.0 * 2**k))
    spec = {"title": "Activations", "rows": ["activation", "activation.alpha"],
            "figures": FIGURES, **spec}  # fmt: skip
    return Table(Experiment("activations", **spec), "digits", "eps 38", found, "pgd20")


def alphas(names=("elu", "celu"), values=(1.0, 1.5, 2.0)) -> Table:
    """ELU and CELU over alpha, and ReLU, which has none."""
    rows = [
        row(f"{name} alpha={v:g}", 0.85, max(0.45 - 0.01 * v, 0.1))
        for name in names
        for v in values
    ]
    rows.append(row("relu", 0.8, 0.4))
    experiment = Experiment("elu_vs_celu", [], title="ELU against CELU")
    return Table(experiment, "digits", "eps 38", rows, "pgd20")


def with_rows(mine: Table, **changes: dict) -> Table:
    """The table with fields of some rows replaced: `r1={"alarms": 2}`."""
    rows = [dataclasses.replace(r, **changes.get(f"r{k}", {})) for k, r in enumerate(mine.rows)]
    return dataclasses.replace(mine, rows=rows)


def caption(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def words(figure) -> list[tuple[str, np.ndarray]]:
    """Every visible text of a figure and its box, in pixels, but for the numbers in markers."""
    renderer, found = FigureCanvasAgg(figure).get_renderer(), []
    figure.draw_without_rendering()
    unseen = {
        label
        for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }  # fmt: skip
    unseen |= {text for axes in figure.axes for text in axes.texts if text.get_text().isdigit()}
    for text in set(figure.findobj(matplotlib.text.Text)) - unseen:
        owner = getattr(text, "axes", None)
        if text.get_visible() and text.get_text().strip() and (not owner or owner.get_visible()):
            box = matplotlib.text.Text.get_window_extent(text, renderer)
            found.append((text.get_text(), box.extents))
    return found


def collisions(figure) -> list[tuple[str, str]]:
    """Texts that cover each other, or leave the sheet."""
    found = words(figure)
    wide, high = figure.canvas.get_width_height()
    out = [(a, "edge") for a, box in found
           if min(box[:2]) < -1 or box[2] > wide + 1 or box[3] > high + 1]  # fmt: skip
    return out + [
        (a, b)
        for (a, one), (b, two) in combinations(found, 2)
        if (np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2]) > 1).all()
    ]


def test_each_kind_is_drawn_with_its_labels_and_the_same_bytes_again(tmp_path):
    mine = table(4)
    first = figures.draw([mine], tmp_path / "one")
    assert [each.png.name for each in first] == [
        f"activations-digits-{n}-{kind}.png"
        for n, kind in enumerate(("scatter", "dots", "lines", "epochs"), 1)
    ]
    for one in first:
        assert one.png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        said = "".join(ET.parse(one.png.with_suffix(".svg")).getroot().itertext())
        labels = ["ReLU", "SiLU"] if "lines" in one.png.name else LABELS[:4]
        assert all(label in said for label in labels), one.png
        assert ", %" in said and "3 seeds" in said
        assert one.text.startswith("Activations: ") and one.table == mine.name
    titles = [re.search("Activations, digits: ([^<]+)", each.png.with_suffix(".svg").read_text())[1]
              for each in first]  # fmt: skip
    assert titles == ["robust over clean", "robust and clean", "over gradients",
                      "over the training"]  # fmt: skip
    again = figures.draw([mine], tmp_path / "two")
    for one, two in zip(first, again, strict=True):
        assert one.png.read_bytes() == two.png.read_bytes()
        svgs = {each.png.with_suffix(".svg").read_bytes() for each in (one, two)}
        assert len(svgs) == 1


@pytest.mark.parametrize("rows, seeds, apart, spread", [
    (12, 5, 0.05, 0.01), (12, 2, 0.02, 0.2), (1, 1, 0, 0),
])  # fmt: skip
def test_no_text_covers_another(rows, seeds, apart, spread):
    mine = table(rows, seeds, apart=apart, spread=spread)
    for kind in (figures.scatter, figures.dots, figures.epochs):
        assert not collisions(kind(mine, {})), kind
    if rows > 1:
        assert not collisions(figures.lines(mine, COST))
        assert not collisions(figures.scatter(mine, POINTS))
        many = alphas(("elu", "celu", "parametric_softplus"), (0.1, 1.0, 10.0, 100.0, 1000.0))
        assert not collisions(figures.lines(many, ALPHA))


def test_an_activation_has_its_colour_and_a_number_of_steps_its_marker_everywhere():
    one = with_rows(table(3), r1={"steps": 3}, r2={"activation": "mine"})
    two = dataclasses.replace(one, rows=[one.rows[1], row("silu", 0.8, 0.4), one.rows[2]])
    two = with_rows(two, **{f"r{k}": {"gradients": 10.0 + k} for k in range(3)})
    for kind, entry in ((figures.scatter, {}), (figures.scatter, POINTS), (figures.dots, {}),
                        (figures.epochs, {}), (figures.lines, COST)):  # fmt: skip
        for mine in (one, two):
            drawn = {(line.get_color(), line.get_marker())
                     for axes in kind(mine, entry).axes for line in axes.lines
                     if line.get_marker() in ("o", "^") and len(line.get_xdata()) == 1}  # fmt: skip
            looks = [figures.look(each) for each in mine.rows]
            assert drawn == {(each["color"], each["marker"]) for each in looks}, kind
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    others = [dataclasses.replace(one.rows[0], activation=name) for name in ("mine", "yours")]
    colours = {figures.look(each)["color"] for each in others}
    assert len(colours) == 2 and not colours & {*figures.COLOURS.values()}


def test_the_pareto_front_by_hand():
    """b beats a; c stands twice; e is best in x alone; f is as good as e in x, and worse in y."""
    a, b, c, e, f = (1, 1), (1, 3), (2, 2), (3, 0), (3, -1)
    assert figures.pareto([a, b, c, c, e, f]) == [b, c, e]
    assert figures.pareto([a]) == [a]


def test_the_front_is_a_step_line_through_what_is_not_beaten_and_points_have_numbers():
    rows = [row("relu", 0.80, 0.40), row("silu", 0.70, 0.50), row("gelu", 0.75, 0.30)]
    figure = figures.scatter(dataclasses.replace(table(3), rows=rows), {})
    front = next(line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-pre")
    np.testing.assert_allclose(front.get_xydata()[1:-1], [(70, 50), (80, 40)])
    places = {note.get_text(): note.xy for note in figure.axes[0].texts}
    assert set(places) == {"1", "2", "3"} and places["2"] == pytest.approx((70, 50))
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["1 relu", "2 silu", "3 gelu"]


def test_rows_of_one_place_have_one_number_and_the_legend_says_which():
    rows = [row("elu", 0.8, 0.4), row("relu", 0.7, 0.5), row("celu", 0.80001, 0.4)]
    figure = figures.scatter(dataclasses.replace(table(3), rows=rows), {})
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2", "1"]
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["1 elu", "2 relu", "3 celu (at 1)"]


def test_what_cannot_be_drawn_is_told_in_its_place(tmp_path):
    mine = table(2, figures=[{"kind": "lines", "x": "multiply_adds"}, {"kind": "epochs"},
                             {"kind": "scatter", "x": "none"}, {"kind": "dots"}])  # fmt: skip
    mine = with_rows(mine, r0={"runs": [], "multiply_adds": 9}, r1={"runs": []})
    *said, drawn = figures.draw([mine], tmp_path / "f")
    assert drawn.png.name == "activations-digits-4-dots.png"
    assert [each.png for each in said] == [None] * 3
    assert "lines over multiply_adds: multiply_adds has no two values" in said[0].text
    assert "val/robust" in said[1].text and "no row has none" in said[2].text
    many = dataclasses.replace(mine, rows=[*mine.rows] * 31)
    assert all("more than 60 rows" in each.text for each in figures.draw([many], tmp_path / "f"))
    assert not [*(tmp_path / "f").iterdir()]  # nor is the figure of before left there


def test_a_row_without_the_numbers_is_left_out_by_name():
    mine = table(3)
    clean = {("best", "clean"): mine.rows[1].numbers["best", "clean"]}
    bare = with_rows(mine, r1={"numbers": clean})
    for kind, entry in ((figures.dots, {}), (figures.scatter, {})):
        assert "Not drawn, for want of the numbers: silu." in caption(kind(bare, entry))
    mine = with_rows(table(4), r2={"gradients": 0})
    assert "Not drawn, for want of the numbers: gelu." in caption(figures.lines(mine, COST))
    assert "Not drawn, for want of the numbers: relu." in caption(figures.lines(alphas(), ALPHA))
    assert "Not drawn" not in caption(figures.dots(mine, {}))


def test_the_seeds_that_a_caption_counts_are_those_of_what_is_drawn():
    mine, entry = table(2), {"x": "gradients"}
    numbers = {**mine.rows[0].numbers, ("best", "strong"): number(0.3, seeds=1)}
    fewer = {("best", "pgd20"): number(0.4, seeds=2)}
    for more, count in (({}, " 3 seeds."), (fewer, " 2 to 3 seeds.")):
        given = with_rows(mine, r0={"numbers": numbers | more})
        for kind in (figures.scatter, figures.dots, figures.lines):
            assert count in caption(kind(given, entry))


def test_bars_far_wider_than_the_points_leave_the_frame_and_no_axis_what_an_accuracy_can_be():
    mine = table(2, apart=0.02)
    numbers = {("best", "pgd20"): dataclasses.replace(number(0.45), low=0.1, high=0.8),
               ("best", "clean"): number(0.99)}  # fmt: skip
    figure = figures.dots(with_rows(mine, r0={"numbers": numbers}, r1={"numbers": numbers}), {})
    low, high = figure.axes[0].get_xlim()
    assert 40 < low < 44 and 46 < high < 50 and "as far as the frame" in caption(figure)
    assert figure.axes[1].get_xlim()[1] == 100


def test_a_row_that_raised_alarms_is_hollow():
    for kind, mine, entry, panels in (
        (figures.scatter, table(3), {}, 1), (figures.dots, table(3), {}, 2),
        (figures.lines, alphas(), ALPHA, 2), (figures.epochs, table(3), {}, 1),
    ):  # fmt: skip
        for given, count in ((mine, 0), (with_rows(mine, r1={"alarms": 2}), panels)):
            figure = kind(given, entry)
            drawn = [line for axes in figure.axes for line in axes.lines]
            hollow = [line for line in drawn if line.get_markerfacecolor() == "white"]
            assert len(hollow) == count and ("Hollow: raised" in caption(figure)) == bool(count)
    figure = figures.lines(with_rows(alphas(), r0={"alarms": 1}), ALPHA)
    assert "white" not in {h.get_markerfacecolor() for h in figure.legends[0].legend_handles}


def test_lines_over_a_number():
    figure = figures.lines(alphas(), ALPHA)
    robust, _ = figure.axes
    elu, celu = (line for line in robust.lines if line.get_linestyle() == "-" and
                 len(line.get_xdata()) == 3)  # fmt: skip
    for line in (elu, celu):
        np.testing.assert_allclose(line.get_xydata(), [(1, 44), (1.5, 43.5), (2, 43)])
    assert robust.get_xscale() == "linear" and robust.get_xlabel() == "activation.alpha"
    assert figures.lines(alphas(values=(0.1, 1.0, 10.0)), ALPHA).axes[0].get_xscale() == "log"
    assert {t.get_text() for t in figure.legends[0].get_texts()} == {"ELU", "CELU"}
    alone = figures.lines(alphas(("elu",)), {"x": "activation.alpha", "series": []})
    assert [t.get_text() for t in alone.legends[0].get_texts()] == ["ELU"]


def test_lines_of_one_look_are_told_apart_and_points_over_a_number_are_numbered():
    mine = table(4)
    changes = {}
    for k in range(4):
        keys = {"activation": "silu", "model.depth": k // 2}
        changes[f"r{k}"] = {"activation": "silu", "keys": keys, "gradients": 10.0 + k % 2}
    alike = with_rows(mine, **changes)
    figure = figures.lines(alike, {"x": "gradients", "series": ["activation", "model.depth"]})
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert [line.get_linestyle() for line in drawn] == ["-", "--"]
    figure = figures.scatter(mine, POINTS)
    assert [t.get_text() for t in figure.axes[0].texts] == ["1", "2", "3", "4"]
    assert [t.xy[0] for t in figure.axes[0].texts] == [80, 160, 320, 640]


EVIL = "$a$ <b>|*x*|</b> \\frac{1}{2} & `c`"


def test_a_name_is_text_in_a_figure(tmp_path):
    mine = with_rows(table(2, title=EVIL), r0={"label": EVIL, "activation": EVIL})
    for drawn in figures.draw([mine], tmp_path):
        said = "".join(ET.parse(drawn.png.with_suffix(".svg")).getroot().itertext())
        times = "".join(said.split()).count("".join(EVIL.split()))
        assert times >= 1 + ("lines" not in drawn.png.name), drawn


def test_epochs_are_means_over_seeds_and_trainings_of_any_length_share_an_axis():
    mine = table(2)
    longer = [run(seed, 20) for seed in range(3)]
    first = mine.rows[0].runs[0]
    short = dataclasses.replace(first, validations=first.validations[:4])
    mine = with_rows(mine, r0={"runs": [*mine.rows[0].runs, short]}, r1={"runs": longer})
    epochs, mean = figures.held_out(mine.rows[0].runs, "robust").T
    np.testing.assert_allclose(epochs, range(1, 11))
    figure = figures.epochs(mine, {})
    seeds = [line.get_ydata()[4] for line in figure.axes[0].lines
             if line.get_linewidth() == 0.6 and line.get_linestyle() == "-"
             and len(line.get_ydata()) == 10]  # fmt: skip
    np.testing.assert_allclose([mean[4], *sorted(seeds)], [51, 50, 51, 52])
    best = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in best] == [(5, pytest.approx(51))]
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["relu", "silu"]
    assert len({axes.get_xlim() for axes in shown}) == 1 and shown[0].get_xlim()[1] >= 20


def test_a_class_of_two_dollars_is_text_in_a_curve():
    """Where the figure is written, too, by whoever has it then."""
    from sat.evaluation.curves import figure
    from sat.rundir.result import CurveResult, Point

    share = {"accuracy": 0.5, "ci95": (0.4, 0.6), "images": 9, "steps": 5}
    points = [Point(eps=float(eps), **share) for eps in (2, 4)]
    found = CurveResult(over="eps", points=points, classes={r"$\frac$": [1, 0], "b": [1, 1]},
                        clean=1, eps=4, norm="linf", images=9, seconds=1, settings={})  # fmt: skip
    with matplotlib.rc_context({"text.parse_math": True}):
        drawn = figure("$\\a$", found)
        drawn.savefig(written := io.StringIO(), format="svg")
    assert drawn.axes[1].get_yticklabels()[0].get_text() == r"$\frac$" and written.getvalue()
