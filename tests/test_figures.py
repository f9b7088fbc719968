"""Figures of a report: drawn from tables that are made up here. One of each kind is drawn for all
tests that only look at it."""

import dataclasses
import xml.etree.ElementTree as ET
from itertools import combinations

import matplotlib
import numpy as np
import pytest
from written import config

from sat.report import figures
from sat.report.runs import Measured
from sat.report.spec import Experiment
from sat.report.tables import Difference, Number, Row, Table

LABELS = ["relu", "silu", "gelu", "elu alpha=1", "elu alpha=2", "celu alpha=2", "softplus",
          "parametric_softplus alpha=10", "smoothrelu", "mish", "leaky_relu", "pssilu"]  # fmt: skip
COST = {"kind": "lines", "x": "gradients", "series": ["activation"]}
FIGURES = [{"kind": "scatter"}, {"kind": "dots"}, COST, {"kind": "epochs"}]
ALPHA = {"kind": "lines", "x": "activation.alpha", "series": ["activation"]}


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context(figures.STYLE):
        yield


def number(mean: float, seeds: int = 3, spread: float = 0.01) -> Number:
    shares = np.clip(mean + spread * np.linspace(-1, 1, seeds) * (seeds > 1), 0, 1)
    half = 0.02 if seeds == 1 else 3 * spread
    return Number(mean, mean - half, mean + half, dict(enumerate(shares.tolist())))


def run(seed: int, epochs: int) -> Measured:
    """Its robust accuracy peaks halfway, at 50 % and a percent a seed more."""
    rows = [
        {"epoch": e, "val/robust": 0.5 + 0.01 * seed - 0.02 * abs(e - epochs / 2), "val/clean": 0.9}
        for e in range(1, epochs + 1)
    ]
    return Measured("x", (), config("relu", seed), {}, {}, {}, kept=rows)


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
        difference = Difference(0.01, -0.01, 0.03, 0.04, "seeds", k % 3 == 1)
        found.append(row(label, clean, robust, seeds, spread, gradients=80.0 * 2**k,
                         differences={("best", "pgd20"): difference} if k else {}))  # fmt: skip
    spec = {"title": "Activations", "rows": ["activation", "activation.alpha"],
            "figures": FIGURES, **spec}  # fmt: skip
    setting = "digits, eps 38/255, resnet10, 40 epochs"
    return Table("activations", "digits", setting, spec, found, "pgd20")


def alphas(names=("elu", "celu"), values=(1.0, 1.5, 2.0)) -> Table:
    """ELU and CELU over alpha, and ReLU, which has none."""
    rows = [row(f"{name} alpha={v:g}", 0.85, 0.45 - 0.01 * v) for name in names for v in values]
    rows.append(row("relu", 0.8, 0.4))
    return Table("elu_vs_celu", "digits", "digits, eps 38/255", {"title": "ELU against CELU"},
                 rows, "pgd20")  # fmt: skip


def with_rows(mine: Table, **changes: dict) -> Table:
    """The table with fields of some rows replaced: `r1={"alarms": 2}`."""
    rows = [dataclasses.replace(r, **changes.get(f"r{k}", {})) for k, r in enumerate(mine.rows)]
    return dataclasses.replace(mine, rows=rows)


def caption(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def words(figure) -> list[tuple[str, np.ndarray]]:
    """Every visible text of a figure and its box, in pixels, but for the numbers in markers."""
    figure.draw_without_rendering()
    renderer, found = figure.figures.get_renderer(), []
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
    wide, high = figure.figures.get_width_height()
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
        assert one.png.stat().st_size < 60_000
        said = "".join(ET.parse(one.svg).getroot().itertext())
        joined = one.svg.stem.endswith("lines")
        assert all(label in said for label in (["ReLU", "SiLU"] if joined else LABELS[:4])), one.svg
        assert "Activations" in said and ", %" in said and "3 seeds" in said
        assert one.text.startswith("Activations: ") and one.table == mine.name
    again = figures.draw([mine], tmp_path / "two")
    for one, two in zip(first, again, strict=True):
        assert one.png.read_bytes() == two.png.read_bytes()
        assert one.svg.read_bytes() == two.svg.read_bytes()


@pytest.mark.parametrize("rows, seeds, apart, spread", [
    (12, 5, 0.05, 0.01), (12, 2, 0.02, 0.2), (1, 1, 0, 0),
])  # fmt: skip
def test_no_text_covers_another(rows, seeds, apart, spread):
    mine = table(rows, seeds, apart=apart, spread=spread)
    for kind in (figures.scatter, figures.dots, figures.epochs):
        assert not collisions(kind(mine, {})), kind
    if rows > 1:
        for join in (True, False):
            entry = {"x": "gradients", "series": ["activation"], "join": join}
            assert not collisions(figures.lines(mine, entry))
        many = alphas(("elu", "celu", "parametric_softplus"), (0.1, 1.0, 10.0, 100.0, 1000.0))
        assert not collisions(figures.lines(many, ALPHA))


def test_an_activation_has_its_colour_and_a_number_of_steps_its_marker_everywhere():
    one = with_rows(table(3), r1={"steps": 3}, r2={"activation": "mine"})
    two = dataclasses.replace(one, rows=[one.rows[1], row("silu", 0.8, 0.4), one.rows[2]])
    for kind, entry in ((figures.scatter, {}), (figures.dots, {}), (figures.epochs, {}),
                        (figures.lines, COST)):  # fmt: skip
        for mine in (one, two):
            if kind is figures.lines:
                changes = {f"r{k}": {"gradients": 10.0 + k} for k in range(3)}
                mine = with_rows(mine, **changes)
            drawn = {(line.get_color(), line.get_marker())
                     for axes in kind(mine, entry).axes for line in axes.lines
                     if line.get_marker() in ("o", "^") and len(line.get_xdata()) == 1}  # fmt: skip
            assert drawn == {figures.look(each) for each in mine.rows}, kind
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    assert figures.look(one.rows[2])[0] in figures.SPARE


def test_the_pareto_front_by_hand():
    """b beats a; d equals c, and neither beats the other; e is best in x alone."""
    a, b, c, d, e = (1, 1), (1, 3), (2, 2), (2, 2), (3, 0)
    assert figures.pareto([a, b, c, d, e]) == [1, 2, 3, 4]
    assert figures.pareto([e, c, b]) == [2, 1, 0]
    assert figures.pareto([a]) == [0]


def test_the_front_is_a_step_line_through_what_is_not_beaten_and_points_have_numbers():
    rows = [row("relu", 0.80, 0.40), row("silu", 0.70, 0.50), row("gelu", 0.75, 0.30)]
    figure = figures.scatter(dataclasses.replace(table(3), rows=rows), {})
    front = next(line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-pre")
    np.testing.assert_allclose(front.get_xydata()[1:-1], [(70, 50), (80, 40)])
    places = {note.get_text(): note.xy for note in figure.axes[0].texts}
    assert set(places) == {"1", "2", "3"} and places["2"] == pytest.approx((70, 50))
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["1 relu", "2 silu", "3 gelu"]


def test_what_cannot_be_drawn_is_named_in_a_line(tmp_path, caplog):
    mine = table(2, figures=[{"kind": "lines", "x": "multiply_adds"},
                             {"kind": "lines", "x": "none"}, {"kind": "epochs"},
                             {"kind": "dots"}])  # fmt: skip
    mine = with_rows(mine, r0={"runs": []}, r1={"runs": []})
    drawn = figures.draw([mine], tmp_path / "f")
    assert [each.png.name for each in drawn] == ["activations-digits-4-dots.png"]
    said = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(said) == 3 and "multiply_adds has no two values" in said[0]
    assert "val/robust" in said[2]
    many = dataclasses.replace(mine, rows=[*mine.rows] * 31)
    assert not figures.draw([many], tmp_path / "f") and "more than 60 rows" in caplog.text


def test_a_row_without_the_numbers_is_left_out_by_name():
    mine = table(3)
    clean = {("best", "clean"): mine.rows[1].numbers["best", "clean"]}
    bare = with_rows(mine, r1={"numbers": clean}, r2={"gradients": 0})
    for kind, entry in ((figures.dots, {}), (figures.scatter, {})):
        assert "Not drawn, for want of the numbers: silu." in caption(kind(bare, entry))
    mine = with_rows(table(4), r2={"gradients": 0})
    figure = figures.lines(mine, COST)
    assert "Not drawn, for want of the numbers: gelu." in caption(figure)
    assert "Not drawn" not in caption(figures.dots(mine, {}))


def test_intervals_far_wider_than_the_points_leave_the_frame_and_it_says_so():
    mine = table(2)
    assert "go on" not in caption(figures.dots(mine, {}))
    wide = dataclasses.replace(number(0.45), low=-0.3, high=1.2)
    numbers = {"numbers": {**mine.rows[0].numbers, ("best", "pgd20"): wide}}
    figure = figures.dots(with_rows(mine, r0=numbers, r1=numbers), {})
    low, high = figure.axes[0].get_xlim()
    assert 30 < low < 44 and 46 < high < 60 and "bars that reach the frame go on" in caption(figure)


def test_no_interval_leaves_what_an_accuracy_can_be():
    wide = dataclasses.replace(number(0.97, spread=0.02), low=0.9, high=1.04)
    np.testing.assert_allclose(figures.bars(wide), [[7], [3]])
    for kind, mine, entry in ((figures.scatter, table(2), {}), (figures.dots, table(2), {}),
                              (figures.lines, alphas(), ALPHA)):  # fmt: skip
        numbers = {"numbers": {("best", "clean"): wide, ("best", "pgd20"): wide}}
        changes = {f"r{k}": numbers for k in range(len(mine.rows))}
        figure = kind(with_rows(mine, **changes), entry)
        paths = [p for axes in figure.axes for bar in axes.collections for p in bar.get_paths()]
        bands = [band for axes in figure.axes for band in axes.patches]
        paths += [band.get_patch_transform().transform_path(band.get_path()) for band in bands]
        assert max(x for path in paths for x in path.vertices.flat) == 100


def test_only_differences_over_seeds_get_a_star():
    def stars(mine):
        figure = figures.dots(mine, {})
        told = [label.get_text()[-2:] for label in figure.axes[0].get_yticklabels()]
        assert ("Holm" in caption(figure)) == (" *" in told)
        return [k for k, text in enumerate(told) if text == " *"]

    mine = table(5)
    assert stars(mine) == [1, 4]
    (found,) = mine.rows[1].differences.values()
    images = {("best", "pgd20"): dataclasses.replace(found, test="images")}
    assert stars(with_rows(mine, r1={"differences": images})) == [4]


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
        assert ("Checkpoint chosen on held-out" in caption(figure)) == (kind is not figures.epochs)


def test_lines_over_a_number_and_rows_that_have_none():
    figure = figures.lines(alphas(), ALPHA)
    robust, clean = figure.axes
    elu, celu = (line for line in robust.lines if len(line.get_xdata()) == 3)
    np.testing.assert_allclose(elu.get_xydata(), [(1, 44), (1.5, 43.5), (2, 43)])
    x, other = (line.get_transform().transform(line.get_xydata())[:, 0] for line in (elu, celu))
    assert (x < other).all() and (other < x + 10).all()  # beside each other, by a hair
    (level,) = [line for line in robust.lines if line.get_linestyle() == "--"]
    assert list(level.get_ydata()) == [40, 40]
    assert robust.get_xscale() == "linear"
    assert figures.lines(alphas(values=(0.1, 1.0, 10.0)), ALPHA).axes[0].get_xscale() == "log"
    assert {t.get_text() for t in figure.legends[0].get_texts()} == {"ELU", "CELU", "relu"}


def test_lines_of_one_look_are_told_apart_and_networks_of_no_series_are_numbered_points():
    mine = table(4)
    changes = {}
    for k in range(4):
        keys = {"activation": "silu", "model.depth": k // 2}
        changes[f"r{k}"] = {"activation": "silu", "keys": keys, "gradients": 10.0 + k % 2}
    alike = with_rows(mine, **changes)
    series = {"x": "gradients", "series": ["activation", "model.depth"]}
    figure = figures.lines(alike, series)
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert [line.get_linestyle() for line in drawn] == ["-", "--"]
    figure = figures.lines(mine, {**series, "join": False})
    assert {t.get_text() for axes in figure.axes for t in axes.texts} == {"1", "2", "3", "4"}
    assert not [line for axes in figure.axes for line in axes.lines if len(line.get_xdata()) > 1]


def test_axes_are_named_for_people():
    keys = ("schedule.weight_decay", "activation.alpha", "dataset.image_size", "attack.steps")
    assert list(map(figures.axis_name, keys)) == [
        "weight decay", "alpha", "image size, pixels", "attack steps"]  # fmt: skip


def test_epochs_are_means_over_seeds_and_trainings_of_any_length_share_an_axis():
    mine = table(2)
    longer = [run(seed, 20) for seed in range(3)]
    short = dataclasses.replace(mine.rows[0].runs[0], kept=mine.rows[0].runs[0].kept[:4])
    mine = with_rows(mine, r0={"runs": [*mine.rows[0].runs, short]}, r1={"runs": longer})
    epochs, mean, low, high = figures.held_out(mine.rows[0])["robust"]
    np.testing.assert_allclose(epochs, range(1, 11))
    np.testing.assert_allclose([mean[4], low[4], high[4]], [51, 50, 52])
    figure = figures.epochs(mine, {})
    best = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in best] == [(5, pytest.approx(51))]
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["relu", "silu"]
    assert len({axes.get_xlim() for axes in shown}) == 1 and shown[0].get_xlim()[1] >= 20
