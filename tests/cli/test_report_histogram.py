"""Rules of the histogram's drawing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.report import ScoreHistogram
from cli.report.histogram import BOTTOM, LEFT, RIGHT, TOP, Drawing, draw


def drawing_of(counts: list[int], *, lowest: float = 0.0, highest: float = 1.0, min_score: float = 0.79) -> Drawing:
    edges = np.linspace(lowest, highest, len(counts) + 1)
    return draw(ScoreHistogram(bin_edges=edges, counts=np.array(counts), min_score=min_score))


def test_bars_grow_by_equal_steps_for_every_factor_of_ten() -> None:
    """Counts of 1, 10, 100 and 1,000 stand at the axis' labels for them."""
    drawing = drawing_of([1, 10, 100, 1000])

    assert [bar.y for bar in drawing.bars] == [tick.position for tick in drawing.count_ticks]
    assert [tick.label for tick in drawing.count_ticks] == ["1", "10", "100", "1k"]
    assert drawing.bars[-1].y == TOP


def test_empty_bins_have_no_bar() -> None:
    """Only bins that hold pairs are drawn, and their label says how many."""
    drawing = drawing_of([0, 1, 0, 1234])

    assert [bar.label for bar in drawing.bars] == ["0.25 to 0.5: 1 pair", "0.75 to 1: 1,234 pairs"]
    assert drawing.num_pairs == 1235


def test_empty_ends_are_left_out() -> None:
    """The drawing begins and ends with a bin that holds pairs, or with the threshold's where that lies outside."""
    counts = [0] * 20
    counts[12] = counts[17] = 5

    within = drawing_of(counts, lowest=-1.0, min_score=0.5)
    beyond = drawing_of(counts, lowest=-1.0, min_score=0.95)

    assert (within.bars[0].x, within.bars[-1].x + within.bars[-1].width) == pytest.approx((LEFT, RIGHT), abs=0.02)
    assert (beyond.bars[0].x, beyond.score_ticks[-1].label) == (LEFT, "1.0")


def test_no_pairs_leave_empty_axes() -> None:
    """Without any pair the whole range is drawn, with its labels and no bar."""
    drawing = drawing_of([0, 0, 0, 0])

    assert drawing.bars == ()
    assert (drawing.score_ticks[0].label, drawing.score_ticks[-1].label) == ("0.0", "1.0")


def test_threshold_stands_at_its_score() -> None:
    """The threshold's line divides the axis as the threshold divides the range of scores."""
    drawing = drawing_of([1] * 10, lowest=0.5, min_score=0.75)

    assert drawing.threshold == (LEFT + RIGHT) / 2
    assert drawing.accepted_from == drawing.threshold


@pytest.mark.parametrize(("min_score", "accepted_from"), [(0.4, LEFT), (1.5, RIGHT)])
def test_threshold_outside_the_range_has_no_line(min_score: float, accepted_from: int) -> None:
    """A threshold below or above all bins is not drawn, and all or none of them count as accepted."""
    drawing = drawing_of([1] * 10, lowest=0.5, min_score=min_score)

    assert drawing.threshold is None
    assert drawing.accepted_from == accepted_from


def test_axis_labels_are_round_and_include_the_ends() -> None:
    """Similarities from 0.5 to 1 are labelled every 0.05, every second one also on a narrow screen."""
    ticks = drawing_of([1] * 10, lowest=0.5).score_ticks

    assert [tick.label for tick in ticks if not tick.is_minor] == ["0.50", "0.60", "0.70", "0.80", "0.90", "1.00"]
    assert [tick.label for tick in ticks if tick.is_minor] == ["0.55", "0.65", "0.75", "0.85", "0.95"]
    assert ticks[0].position == LEFT
    assert ticks[-1].position == RIGHT


@given(
    st.lists(st.integers(0, 2**62), min_size=1, max_size=200),
    st.floats(-1, 1, width=32),
    st.floats(0.0078125, 2, width=32),
    st.floats(-2, 3),
)
def test_everything_stays_inside_the_drawing(counts: list[int], lowest: float, span: float, min_score: float) -> None:
    """Whatever the counts and the range, bars and ticks lie inside the axes and ticks are few."""
    drawing = drawing_of(counts, lowest=lowest, highest=lowest + span, min_score=min_score)

    assert all(bar.x >= LEFT and bar.x + bar.width <= RIGHT + 0.02 for bar in drawing.bars)
    assert all(bar.y >= TOP and bar.height > 0 and bar.y + bar.height <= BOTTOM + 0.02 for bar in drawing.bars)
    assert all(LEFT <= tick.position <= RIGHT for tick in drawing.score_ticks)
    assert 3 <= len(drawing.score_ticks) <= 11
    assert LEFT <= drawing.accepted_from <= RIGHT
