"""The divergence by depth as a PNG file, or an error that names the mistake."""

import sys

import pytest

from distilllens.report import plot_divergence_by_depth

DEPTHS = [(1, 2), (2, 4)]


def test_a_png_is_written(tmp_path):
    """The file is a PNG, no other file is left, and pyplot was not imported."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.png"
    plot_divergence_by_depth(path, DEPTHS, {"plain KD": [0.2, 0.1], "DistillLens": [0.1, 0.05]})
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert list(tmp_path.iterdir()) == [path]
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize(
    ("depths", "curves", "message"),
    [
        ([], {"a": []}, "needs at least one pair of depths and one curve"),
        (DEPTHS, {}, "needs at least one pair of depths and one curve"),
        (DEPTHS, {"a": [0.1]}, "curve 'a' has 1 values for 2 depths"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, depths, curves, message):
    """A curve has one value per pair."""
    with pytest.raises(ValueError, match=message):
        plot_divergence_by_depth(tmp_path / "figure.png", depths, curves)


def test_a_missing_matplotlib_says_how_to_install_it(tmp_path, monkeypatch):
    """Without the plot extra the error names it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'distilllens\[plot\]'"):
        plot_divergence_by_depth(tmp_path / "figure.png", DEPTHS, {"a": [0.1, 0.2]})
