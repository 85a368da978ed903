"""Files of others are never replaced, and folders that cannot be written are refused first."""

import pytest

from distilllens.workflows.outputs import (
    check_figures,
    check_folder,
    check_new_folder,
    check_page,
    write_page,
)

PAGE = '<!doctype html>\n<head><meta name="generator" content="distilllens"></head>'


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_text("<html>my thesis</html>"), "exists and is no page of distilllens"),
        (lambda p: p.write_bytes(b"\xff\x00" * 999), "exists and is no page of distilllens"),
        (lambda p: p.write_text("x" * 9999 + PAGE), "exists and is no page of distilllens"),
        (lambda p: p.mkdir(), "is a folder; name a file in it"),
        (lambda p: (p.with_name("mine").write_text(PAGE), p.symlink_to("mine")), "symbolic link"),
        (lambda p: p.symlink_to("nothing"), "symbolic link"),
    ],
)
def test_a_file_of_others_is_no_place_for_a_page(tmp_path, make, message):
    """Neither its content nor what a link leads to changes."""
    make(tmp_path / "page.html")
    before = [(path.name, path.is_file() and path.read_bytes()) for path in tmp_path.iterdir()]
    with pytest.raises(ValueError, match=f"--output .*page.html.*{message}"):
        write_page(tmp_path / "page.html", PAGE)
    after = [(path.name, path.is_file() and path.read_bytes()) for path in tmp_path.iterdir()]
    assert before == after


@pytest.mark.parametrize("text", [PAGE, ""])
def test_our_page_is_replaced(tmp_path, text):
    """And an empty file, as mktemp makes them."""
    (tmp_path / "page.html").write_text(text)
    write_page(tmp_path / "page.html", PAGE + "new")
    assert (tmp_path / "page.html").read_text() == PAGE + "new"


def test_every_page_bears_the_mark(tmp_path):
    """As it is rendered."""
    pytest.importorskip("matplotlib")
    from distilllens.report import render_page

    (tmp_path / "page.html").write_text(render_page("a title", "a lead", []))
    check_page(tmp_path / "page.html")


def test_figures_of_others_stay(tmp_path):
    """Ours, new names and empty files are free."""
    pytest.importorskip("matplotlib")
    from distilllens.report import canvas

    figure = canvas.new_figure()
    figure.subplots().plot([0, 1], [0, 1])
    canvas.save(figure, tmp_path / "ours", {})
    check_figures(tmp_path, ["ours.png", "ours.svg", "new.svg"])
    figure.savefig(tmp_path / "foreign.png")
    figure.savefig(tmp_path / "foreign.svg")
    (tmp_path / "link.svg").symlink_to("ours.svg")
    for name in ("foreign.png", "foreign.svg", "link.svg"):
        with pytest.raises(ValueError, match=f"--figures .*: {name} exists there and is no figure"):
            check_figures(tmp_path, ["ours.png", name])


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/proc/x", OSError, r"output_dir /proc/x: the folder /proc cannot be written"),
        ("/proc/x/y", OSError, r"output_dir /proc/x/y: the folder /proc cannot be written"),
        ("file/x", ValueError, "file is a file; name a folder"),
        ("file", ValueError, "file is a file; name a folder"),
        ("dangling/x", ValueError, "dangling is a symbolic link to nothing"),
    ],
)
def test_folders_that_cannot_be_made(tmp_path, monkeypatch, path, error, message):
    """Permissions do not tell, for root has them all."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nothing")
    from pathlib import Path

    with pytest.raises(error, match=message):
        check_folder("output_dir", Path(path))


def test_a_check_leaves_nothing_behind(tmp_path):
    """A folder that can be made is not made, and one that is there stays as it is."""
    check_folder("--output", tmp_path / "a" / "b")
    check_folder("--output", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_replaced_is_refused_first(tmp_path, monkeypatch):
    """A model is written beside it, and takes its place: not that of the shell, nor of a mount."""
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    check_new_folder("--output", Path("empty"))
    monkeypatch.chdir(tmp_path / "empty")
    for path in (Path("."), tmp_path / "empty"):
        with pytest.raises(ValueError, match=r"cannot be replaced; name a new folder inside it"):
            check_new_folder("--output", path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "empty")
    with pytest.raises(ValueError, match=r"--output empty cannot be replaced"):
        check_new_folder("--output", Path("empty"))
