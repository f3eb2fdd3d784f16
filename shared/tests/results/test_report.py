"""Tables on a terminal, in a pipe and in Markdown; figures whole or not at all."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from paperkit.errors import UserError
from paperkit.results import report
from paperkit.results.metrics import Claim, Metrics, Row

ROWS = [["stitched", 0.95123, 12345, None], ["a|b", 1.0, 7, report.mean_spread([90.0, 92.0])]]
COLUMNS = ("arm", "loss", "params", "accuracy")


def test_plain_table_aligns_numbers_to_the_right() -> None:
    assert report.plain_table(ROWS, COLUMNS, "two arms").splitlines() == [
        "two arms",
        "arm         loss  params  accuracy",
        "--------- ------- ------- --------",
        "stitched  0.9512  12,345         -",
        "a|b            1       7  91 ± 1.4",
    ]


def test_markdown_table() -> None:
    assert report.markdown_table(ROWS, COLUMNS).splitlines() == [
        "| arm | loss | params | accuracy |",
        "| --- | ---: | ---: | ---: |",
        "| stitched | 0.9512 | 12,345 | - |",
        "| a\\|b | 1 | 7 | 91 ± 1.4 |",
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells in a table of 2 columns"):
        report.plain_table([["a"]], ("x", "y"))


def test_table_is_plain_in_a_pipe_and_drawn_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report.table(ROWS, COLUMNS, "two [red]arms[/red]")
    assert capsys.readouterr().out == report.plain_table(ROWS, COLUMNS, "two [red]arms[/red]") + "\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    report.table(ROWS, COLUMNS)
    drawn = capsys.readouterr().out
    assert "─" in drawn and all(word in drawn for word in ("stitched", "a|b", "12,345", "91 ± 1.4"))


def test_mean_spread() -> None:
    values = report.mean_spread([1.0, 2.0, 4.0])
    assert values.mean == pytest.approx(7 / 3) and values.spread == pytest.approx(1.5275252)
    assert f"{values:.2f}" == "2.33 ± 1.53" and str(values) == "2.333 ± 1.5"
    assert str(report.mean_spread([3.0])) == "3"
    with pytest.raises(ValueError, match="no values"):
        report.mean_spread([])


def test_print_metrics_shows_rows_and_claims(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row("ours", "accuracy", [90.0, 92.0], "%"), Row("base", "accuracy", [80.0, 84.0], "%")]
    claims = [Claim("ours wins", True, True, "9 points"), Claim("base is fast", False, False), Claim("c", True, None)]
    report.print_metrics(Metrics("snnet", [0, 1], 3.0, rows, claims))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "snnet" and lines[3].split() == ["ours", "accuracy", "91", "±", "1.4", "%", "90", "92"]
    assert lines[-3:] == ["held (asserted): ours wins [9 points]", "NOT HELD (reported): base is fast",
                          "not tested (asserted): c"]  # fmt: skip


def draw(path: Path) -> None:
    with report.style():
        figure, axes = report.figure(1, 2, width=5, height=3, sharey=True)
        axes[0].plot([1, 2, 3], label="line")
        axes[0].set_title("Ours is\nabove the baseline")
        axes[0].legend()
    assert axes[0].lines[0].get_color() == report.COLORS[0]
    report.save_figure(figure, path)


def test_figure_is_a_png_with_its_title_inside(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "curve.png"
    draw(path)
    with Image.open(path) as image:
        assert image.size == (800, 480)
        assert image.info["Title"] == "Ours is above the baseline"
    first = path.read_bytes()
    draw(path)
    assert path.read_bytes() == first  # no date, no version inside
    assert [p.name for p in path.parent.iterdir()] == ["curve.png"]


def test_a_failed_save_keeps_the_older_figure(tmp_path: Path) -> None:
    figure, axes = report.figure()
    axes.plot([1, 2])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        report.save_figure(figure, tmp_path / "file" / "curve.png")
    assert (tmp_path / "file").read_text() == "in the way"
