"""What a notebook shows of each result: a plain table, which takes on the theme of the page."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

import quadlab as ql
from quadlab.sweep import sweep

EVIL = "<script>&'\""


def results():
    problem = ql.case("het", seed=0).with_name(EVIL)
    stop = ql.GradientNorm(1e-2, relative=True)
    comparison = ql.compare(problem, [ql.GD("lambda_g"), ql.GD(lambda t: 1e-5)], stop, max_iterations=99)
    grid = {"case": ["het", "hom"], "method": "gd:lambda_g", "eps": 1, "seed": range(20)}
    return {
        "problem": problem,
        "run": comparison.runs[1].run,
        "comparison of one run": comparison.runs[1],
        "comparison": comparison,
        "sweep": sweep(grid),
        "bounds": ql.bounds(),
    }


class Balanced(HTMLParser):
    """Collects tags, and insists that each is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes = [], set(), []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.seen.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", results())
def test_tables(name):
    text = results()[name]._repr_html_()
    page = Balanced(text)
    assert {"table", "tr", "td"} <= page.seen
    # no pictures, no scripts, and neither colours nor fonts of its own: dark pages show it as theirs
    assert page.seen <= {"p", "b", "sub", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
    assert page.attributes == []
    assert len(text) < 20_000


def test_names_are_text():
    shown = results()
    for name in ("problem", "comparison"):
        assert "&lt;script&gt;&amp;" in shown[name]._repr_html_()
    assert "&lt;lambda&gt;" in shown["run"]._repr_html_()


def test_a_run_says_how_it_ended():
    text = results()["run"]._repr_html_()
    assert "<th>status</th><td>max_iterations</td>" in text and "<th>iterations</th><td>99</td>" in text
