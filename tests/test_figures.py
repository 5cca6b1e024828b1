"""The figures: what their data say, that they draw, and that they can be drawn again from the JSON alone."""

from __future__ import annotations

import copy
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest

import quadlab as ql
from quadlab import figures
from quadlab.bounds.record import best_ratio, figure_of
from quadlab.figures import (
    _measure,
    edge_of_stability,
    lr_scaling,
    noise,
    rotation,
    scaling,
    soft_sign,
    style,
    tightness,
    worst_cases,
)
from quadlab.figures import heterogeneity_map as hmap
from quadlab.figures import measured_vs_bound as cloud
from quadlab.figures import zhang_cases as zhang
from quadlab.heterogeneity import correlation

NAMES = figures.names()


@functools.cache
def quick_json(name):
    """The text of a figure's quick data: computed once, and what a drawing sees."""
    return json.dumps(figures.module(name).data(quick=True), allow_nan=False)


def quick_data(name):
    return json.loads(quick_json(name))


def drawn(name, data):
    """The figure, laid out."""
    module = figures.module(name)
    figure = style.new_figure(module.HEIGHT)
    module.draw(figure, data)
    style.set_title(figure, module.title(data))
    figure.draw_without_rendering()
    return figure


def test_every_module_that_draws_has_its_name():
    modules = {
        path.stem for path in Path(figures.__file__).parent.glob("*.py") if "\nHEIGHT = " in path.read_text()
    }
    assert modules == set(NAMES) and len(NAMES) == 16


def test_an_unknown_figure_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"figure must be one of heterogeneity_map.*received 'nonsense'"):
        figures.render(["rotation", "nonsense"], tmp_path / "out", quick=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_draws_from_the_json_alone_and_nothing_is_cut(name):
    data = quick_data(name)
    assert len(quick_json(name)) < 10**6 and data["caption"]
    with style.context():
        figure = drawn(name, data)
        box = figure.get_tightbbox()  # of all there is, in inches
    assert figure.get_size_inches()[0] == style.WIDTH
    assert box.x0 >= -0.01 and box.x1 <= style.WIDTH + 0.01
    assert box.y0 >= -0.01 and box.y1 <= figure.get_size_inches()[1] + 0.01


@pytest.mark.parametrize("name", NAMES)
def test_no_two_texts_overlap_and_none_is_small(name):
    with style.context():
        figure = drawn(name, quick_data(name))
        texts = [(t.get_text(), t.get_window_extent(), t.get_fontsize()) for t in visible_texts(figure)]
    assert len(texts) > 10 and min(size for _, _, size in texts) >= 6.0
    overlapping = [
        (a, b)
        for k, (a, one, _) in enumerate(texts)
        for b, two, _ in texts[k + 1 :]
        if min(one.x1, two.x1) - max(one.x0, two.x0) > 1.0 and min(one.y1, two.y1) - max(one.y0, two.y0) > 1.0
    ]
    assert overlapping == []


def visible_texts(figure):
    """All texts that are drawn: an axis also holds tick labels beyond its limits."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text

    hidden = set()
    for axis in figure.findobj(Axis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low <= tick.get_loc() <= high:
                hidden |= {tick.label1, tick.label2}
    texts = figure.findobj(lambda artist: isinstance(artist, Text) and artist not in hidden)
    return [t for t in texts if t.get_visible() and t.get_text().strip()]


def test_render_writes_three_files_that_redraw_gives_again(tmp_path, monkeypatch):
    data = quick_data("rotation")
    monkeypatch.setattr(rotation, "data", lambda quick, progress: data)
    (result,) = figures.render(["rotation"], tmp_path, quick=True)
    paths = [tmp_path / f"rotation.{kind}" for kind in ("json", "png", "pdf")]
    assert result["name"] == "rotation" and result["files"] == [str(path) for path in paths]
    assert result["seconds"] >= 0.0 and result["title"] == rotation.title(data)
    assert int.from_bytes(paths[1].read_bytes()[16:20]) == 300 * style.WIDTH  # PNG's own width
    before = [path.read_bytes() for path in paths]
    assert b"CreationDate" not in before[2] and b"/Title" not in before[2]
    figures.redraw(paths[0])
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "quadlab.figure/0"}'])
def test_redraw_refuses_what_is_no_figure(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"x\.json is not the data of a figure"):
        figures.redraw(path)


def test_the_users_settings_do_not_change_a_picture(tmp_path):
    import matplotlib

    path = tmp_path / "rotation.json"
    path.write_text(json.dumps({"schema": figures.SCHEMA, "figure": "rotation", **quick_data("rotation")}))
    figures.redraw(path)
    before = path.with_suffix(".png").read_bytes()
    with matplotlib.rc_context({"font.size": 20.0, "axes.grid": True}):
        figures.redraw(path)
        assert matplotlib.rcParams["font.size"] == 20.0
    assert path.with_suffix(".png").read_bytes() == before


# What the data say ----------------------------------------------------------------------------------------


def test_nothing_lies_above_the_diagonal():
    data = quick_data("measured_vs_bound")
    for family, panel in data["panels"].items():
        assert sum(len(row["count"]) for row in panel.values()) > 100
        for row in panel.values():
            assert row["violated"] == 0
            assert np.all(np.array(row["count"]) <= np.array(row["bound"]) * (1.0 + 1e-5))
            assert len(row["count"]) <= data["runs"][family]["converged"]
            assert len(row["cap"]) <= data["runs"][family]["censored"]
            assert len(row["cap"]) == len(row["censored_bound"])
        assert 0.0 < data["best_ratio_median"][family] <= 1.0
    best = data["panels"]["gd"]["gd.contraction"]
    assert max(np.array(best["count"]) / np.array(best["bound"])) > 0.5  # a halved bound would be seen
    assert cloud.title(data).startswith("No count exceeds any of ")


def test_a_violation_is_told_in_the_title():
    data = quick_data("measured_vs_bound")
    data["panels"]["gd"]["gd.contraction"]["violated"] = 3
    assert cloud.title(data).startswith("3 of ") and "VIOLATE" in cloud.title(data)


def test_every_bound_of_the_register_is_met():
    shown = quick_data("measured_vs_bound")["panels"]
    tight = quick_data("tightness")["ratios"]
    for family in _measure.PANELS:
        for name in _measure.upper_bounds(family):
            assert shown[family][name]["count"], name
            assert any(np.isfinite(tightness.ratios(points)).any() for points in tight[family][name].values())


def test_the_record_is_shown_whole():
    data = quick_data("worst_cases")
    assert data["names"] == [entry.name for entry in ql.bounds().of_runs]
    for label, searches in data["ratios"].items():
        assert set(searches) == {"falsifier", "random"}
        for name, *found in zip(data["names"], *searches.values(), strict=True):
            assert max((r for r in found if r), default=None) == pytest.approx(
                best_ratio(name, label), rel=1e-4
            )
    met = sum(best_ratio(name) >= worst_cases.MET for name in data["names"])
    assert worst_cases.title(data).startswith(f"{met} of {len(data['names'])} bounds are met to 1%")


def test_every_bound_of_runs_is_in_the_figure_that_its_row_names():
    counts = {name for panel in _measure.PANELS for name in _measure.upper_bounds(panel)}
    for entry in ql.bounds().of_runs:
        shown = counts if figure_of(entry) == "measured_vs_bound" else quick_data("worst_cases")["names"]
        assert entry.name in shown


def test_adam_without_memory_is_signsgd_and_softness_pays():
    data = quick_data("soft_sign")
    (plain,) = [c for c in data["cells"] if c["beta1"] == c["beta2"] == c["epsilon"] == 0.0]
    assert plain["cos"] == plain["soft"] == plain["ratio"] == 1.0
    cos, soft, ratio = (soft_sign.column(data, quantity, 0.0) for quantity in ("cos", "soft", "ratio"))
    assert cos.shape == (len(data["epsilon"]), len(data["beta2"])) and np.nanmax(cos) <= 1.0
    assert soft[-1, -1] < 0.2 and cos[-1, -1] < 0.9  # a large epsilon makes it GD
    assert np.nanmin(ratio) < 0.5 and soft_sign.rank(data, "soft") > 0.3
    assert ", the fewer updates it needs (rank correlation 0." in soft_sign.title(data)


def test_adam_settles_near_the_edge_where_its_memory_is_short():
    """Empirical: wide intervals."""
    data = quick_data("edge_of_stability")
    for curve in data["curves"]:
        assert curve["median"][0] < 0.5  # it starts below, and rises
        if curve["beta2"] < 0.999:
            assert 0.7 < curve["settled"] < 1.4
    assert "edge of stability" in edge_of_stability.title(data)


def test_random_problems_are_of_the_stated_sizes():
    sizes = []
    for seed in range(200):
        p = cloud.random_problem(np.random.default_rng(seed))
        sizes.append(p.size)
        assert p.block_sizes.max() <= cloud.MAX_BLOCK
    assert min(sizes) >= 10 and max(sizes) <= 1000 and min(sizes) < 15 and max(sizes) > 700


def test_heterogeneities_and_correlation_are_what_the_axes_say():
    for c in (1, 0, -1):
        p = hmap.problem(2.0, 1.0, c, seed=3)
        assert p.block_norms.max() / p.block_norms.min() == pytest.approx(100.0)
        spread = ql.gradient_heterogeneity(p).spread
        assert spread.max_over_min == pytest.approx(10.0)
        assert correlation(p).pearson == pytest.approx(c, abs=1e-9)


def test_the_map_shows_counts_and_predictions():
    data = quick_data("heterogeneity_map")
    cells = {
        (c["correlation"], c["gradient_max_over_min"], c["hessian_max_over_min"]): c for c in data["cells"]
    }
    assert len(cells) == 3 * len(data["heterogeneities"]) ** 2
    for (_, gradient, hessian), cell in cells.items():
        assert cell["censored"] == 0
        if (
            gradient == 1.0 or hessian == 1.0
        ):  # no heterogeneity of one kind: Lambda_G = Lambda_P at the start
            assert cell["predicted_start"] == pytest.approx(0.0, abs=1e-9)
    cell = cells[1, 1000.0, 1000.0]
    runs = []
    for method in (ql.GD("lambda_g"), ql.SignSGD("lambda_p")):
        counts = [
            ql.solve(hmap.problem(3.0, 3.0, 1, s), method, ql.GradientNorm(hmap.EPS, 1, True)).iterations
            for s in range(data["draws"])
        ]
        runs.append(np.median(counts))
    assert [cell["gd"], cell["signsgd"]] == runs
    order = [hmap.column(data, "measured", c).mean() for c in (1, 0, -1)]
    assert order[0] > order[1] > order[2]


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 50).astype(float), rng.standard_normal(50)
    expected = spearmanr(x[1:], y[1:]).statistic
    x[0] = math.nan
    assert hmap.rank_correlation(x, y) == pytest.approx(expected)


def test_gd_is_unmoved_by_rotation_and_sign_methods_are_not():
    data = quick_data("rotation")
    assert data["angles"][0] == 0.0 and data["angles"][-1] == 90.0
    for curves in data["curves"].values():
        assert len({tuple(point.values()) for point in curves["gd"]}) == 1
        for points in curves.values():  # at 90 degrees the eigenvectors are axes again
            assert points[-1]["median"] == pytest.approx(points[0]["median"], rel=0.1)
    for method in ("signsgd", "adam_without_momentum"):
        assert rotation.rise(data, "far apart", method) > 4.0
    assert rotation.rise(data, "neighbours", "signsgd") < 2.0
    assert "leaves GD unmoved" in rotation.title(data)


def test_rotated_problems_differ_by_the_rotation_alone():
    aligned, turned = (rotation.problem("far apart", angle, seed=1) for angle in (0.0, 30.0))
    assert aligned.value(aligned.start) == pytest.approx(turned.value(turned.start))
    assert sorted(aligned.eigenvalues) == pytest.approx(sorted(turned.eigenvalues))
    np.testing.assert_allclose(aligned.to_eigenbasis(aligned.start), turned.to_eigenbasis(turned.start))


def test_mixed_blocks_slow_frozen_adam_and_not_gd():
    data = quick_data("zhang_cases")
    factor, censored = zhang.slowdown(data, "frozen_adam", "hom", "het")
    assert censored and factor > 20.0 and "frozen Adam over " in zhang.title(data)
    assert zhang.slowdown(data, "adam", "hom", "het")[0] > 3.0
    assert zhang.slowdown(data, "gd", "hom", "het")[0] < 2.0
    for panel in data["panels"].values():
        for curves in panel.values():
            for curve in curves:
                reached = curve["final"] <= data["delta"]
                assert reached == (curve["status"] == "converged") and not curve["at_edge"]
                assert curve["gap"][0] == 1.0 and curve["iterations"] <= data["cap"]


def test_the_best_constant_is_that_of_the_full_grid_and_near_the_known_one():
    p, stop = ql.case("het-axis", seed=1), ql.Gap(1e-6, relative=True)
    found = _measure.best_constant(p, ql.GD(1.0), stop, cap=10**5)
    assert found.learning_rate == pytest.approx(2.0 / 5001.0, rel=0.03)
    grid = 10.0 ** np.linspace(-5.0, 1.0, 31) * np.abs(p.displacement).max()
    plain = ql.best_learning_rate(p, ql.SignSGD(1.0), stop, learning_rates=grid, max_iterations=30_000)
    staged = _measure.best_constant(p, ql.SignSGD(1.0), stop, cap=30_000, refine=0)
    assert (staged.learning_rate, staged.iterations) == (plain.learning_rate, plain.iterations)


def test_no_constant_within_the_cap_is_no_count():
    found = _measure.best_constant(ql.case("hom", seed=0), ql.SignSGD(1.0), ql.Gap(1e-6, True), cap=500)
    assert found.learning_rate is None and found.iterations is None


def test_ratios_stay_below_one_and_fall_as_the_theory_says():
    data = quick_data("tightness")
    for curves in data["ratios"].values():
        for curve in curves.values():
            for points in curve.values():
                assert all(p is None or p["violated"] == 0 for p in points)
                values = tightness.ratios(points)
                assert np.all((values[np.isfinite(values)] > 0.0) & (values[np.isfinite(values)] <= 1.0))
    assert tightness.slope(data, "eps", "strict") > 1.0  # 1/eps^2 against a count that grows with ln 1/eps
    assert tightness.slope(data, "eps", "log") < 0.0 and tightness.slope(data, "kappa", "log") < -0.5
    assert abs(tightness.slope(data, "kappa", "strict")) < 0.3
    assert "loosen" in tightness.title(data)


def test_a_median_that_censored_runs_leave_open_is_no_ratio():
    class Evaluation:
        holds = None
        value = 100.0

        def __init__(self, ratio):
            self.ratio = ratio

    class Run:
        def __init__(self, iterations, converged):
            self.iterations, self.converged = iterations, converged

    counted = [(Evaluation(r), Run(int(100 * r), True)) for r in (0.1, 0.2, 0.3)]
    cut = [(Evaluation(None), Run(count, False)) for count in (50, 60)]
    known = tightness._point([*counted, *cut])
    assert known == {"draws": 5, "censored": 2, "violated": 0, "ratio": 0.3}
    opened = tightness._point([*counted, (Evaluation(None), Run(15, False))])
    assert opened["ratio"] is None and opened["censored"] == 1


def test_data_do_not_depend_on_threads(monkeypatch):
    before = copy.deepcopy(quick_data("rotation"))
    monkeypatch.setattr(_measure, "THREADS", 1)
    assert rotation.data(quick=True) == before


def test_numbers_for_json():
    assert _measure.numbers([1.23456789, math.nan, math.inf, None, 3]) == [1.2346, None, None, None, 3]
    assert type(_measure.number(np.int64(3))) is int


# -- lr_scaling and noise ------------------------------------------------------------------------------------


def test_exponents_of_the_learning_rate_are_those_predicted():
    """Three starts, fewer values: the exponents are rough; the predicted ones are the theory's."""
    data = quick_data("lr_scaling")
    expected = {"P": 0.0, "eps": 1.0, "top": -1.0, "noise": -1.0}
    for panel, fit in data["fits"].items():
        assert fit["predicted"] == pytest.approx(expected[panel], abs=0.01 if panel != "noise" else 0.2)
        assert abs(fit["measured"] - fit["predicted"]) < 0.3, panel
    assert data["constants"][0] > 0.5 and data["constants"][-1] < 8.0
    exact = copy.deepcopy(data)
    for points in exact["panels"].values():
        for point in points:
            point["median"] = 3.0 * point["predicted"]
    assert lr_scaling.fit(exact["panels"]["eps"]) == {"measured": 1.0, "predicted": 1.0}


def test_a_point_of_the_learning_rates_is_its_best():
    p = lr_scaling.problem({**lr_scaling.BASE, "P": 8, "eps": 0.1}, 0)
    stop = ql.GradientNorm(0.1, ord=1)
    best = lr_scaling.best_rate(p, stop, 0.1, 1)
    grid = np.geomspace(0.025, 1.6, 23)
    found = ql.best_learning_rate(p, ql.SignSGD(1.0), stop, learning_rates=grid)
    assert best == pytest.approx(found.learning_rate, rel=1e-12)


def test_the_noise_figure_tells_what_holds():
    data = quick_data("noise")
    for point in data["averages"]:
        assert point["low"] <= point["mean"] <= point["high"] <= point["bound"] and point["holds"] is True
        assert point["bound"] >= data["sigma"]
    exact = [point for point in data["floors"] if point["family"] == "gd"]
    assert all(p["low"] <= p["exact"] <= p["high"] for p in exact)
    assert "holds for every law" in noise.title(data)
    assert noise.slope(data, "gaussian") > 0.8 > 0.4 > noise.slope(data, "rademacher")
    broken = copy.deepcopy(data)
    broken["averages"][0]["holds"] = False
    assert "DOES NOT HOLD" in noise.title(broken)


def test_scaling_finds_the_slope_and_the_share_of_the_bandwidth():
    """A cost of 2 P ns is a slope of 1, and 28 GB/s for 56 bytes."""
    points = [[10**k, 2.0 * 10**k] for k in range(4, 8)]
    data = {"points": {"diagonal": points}, "triad": 35.0}
    assert scaling.slope(points) == pytest.approx(1.0)
    assert scaling.share(data) == pytest.approx(0.8)
    assert "From P = 10⁴ to 10⁷" in scaling.title(data) and "P¹·⁰⁰, to 80%" in scaling.title(data)
