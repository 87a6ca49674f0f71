"""Reports: every test says what a reader would lose if it failed."""

import io
import json
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from one4all_lc.errors import InvalidInput
from one4all_lc.reports.figures import Curve, curves, heat_map
from one4all_lc.reports.page import Fact, Page, Picture, Table, render, write_report
from one4all_lc.writing import replace_bytes, replace_text

FA = "بهترین دوربین گوشی در 2025 کدام است؟"
EVIL = "<script>alert('hi')</script> & \"quoted\" $x_$"


def a_page() -> Page:
    line = Curve("all", [0, 1], [0, 1])
    picture = Picture("curve", "Risk", curves([line]), "How to read it.")
    rows = [[EVIL, "sql", 0.25], [FA, None, 1.0]]
    table = Table("Wrong rows", ["text", "goes to", "probability"], rows, folded=True)
    return Page("The router", EVIL, [Fact("93 %", "accuracy")], [picture, table])


class Reader(HTMLParser):
    """Remembers elements and texts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.texts.append((data.strip(), self.open[-1]))


def test_what_users_wrote_stays_text():
    """A row of data would run as a script in the reader's browser."""
    page = Reader(render(a_page()))
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert [text for text, _ in page.texts].count(EVIL) == 2


def test_right_to_left_text_stands_right():
    """A Persian question would be torn apart around its numbers and its question mark."""
    page = Reader(render(a_page()))
    (where,) = [element for text, element in page.texts if text == FA]
    assert where == ("td", {"dir": "auto"})


def test_the_page_needs_nothing_beside_it(tmp_path):
    """A report that is sent by mail would have no figures, or would call a server."""
    path = write_report(tmp_path / "deep" / "out", a_page())
    html = path.read_text(encoding="utf-8")
    assert path.name == "report.html"
    assert not re.findall(r"https?://|url\(|<link|@import", html)
    sources = [values["src"] for tag, values in Reader(html).elements if tag == "img"]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert Image.open(path.with_name("curve.png")).format == "PNG"


def test_numbers_stand_in_columns_and_what_is_missing_is_a_dash():
    """Nobody could compare the numbers of a table."""
    page = Reader(render(a_page()))
    assert ("0.250", ("td", {"class": "number"})) in page.texts
    assert "–" in [text for text, _ in page.texts]


def test_a_heat_map_shows_any_name_and_any_gap():
    """A label with a dollar sign, or an expert without rows, would end the report."""
    table = np.array([[1.0, np.nan], [0.0, 0.5]])
    names = ["price in $ or $_{", FA]
    drawn = Image.open(io.BytesIO(heat_map(table, names, names, EVIL, x=EVIL, y=FA)))
    assert np.asarray(drawn.convert("L")).std() > 5
    heat_map(np.full((1, 1), np.nan), ["a"], ["b"])


@pytest.mark.parametrize("count", [5, 28, 150])
def test_figures_stay_of_a_size_that_can_be_opened(count):
    """150 experts would make a picture that no viewer opens, or cells that nobody sees."""
    names = [f"expert_{index}" for index in range(count)]
    drawn = Image.open(io.BytesIO(heat_map(np.eye(count), names, names)))
    assert max(drawn.size) < 8000
    assert min(drawn.size) / count > 20


def test_threads_draw_what_one_thread_draws():
    """Two reports at once would mix their figures."""
    lines = [Curve(f"line {index}", np.arange(5), np.arange(5) * index) for index in range(3)]
    expected, drawn = curves(lines, "Three"), []
    threads = [threading.Thread(target=lambda: drawn.append(curves(lines, "Three"))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == [expected] * 2


def test_drawing_leaves_pyplot_and_settings_alone():
    """A notebook would lose its backend, or its style, to a report."""
    code = (
        "import json, sys, one4all_lc.reports.page; from one4all_lc.reports.figures import *;"
        "before = 'matplotlib' in sys.modules; import matplotlib;"
        "kept = matplotlib.rcParams.copy(); curves([Curve('a', [0, 1], [0, 1])]);"
        "print(json.dumps([before, 'matplotlib.pyplot' in sys.modules,"
        " kept == matplotlib.rcParams.copy()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, False, True]


@pytest.mark.parametrize("package", ["matplotlib.figure", "jinja2"])
def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch, package):
    """A traceback instead of the command that helps."""
    from one4all_lc.reports.page import _template

    _template.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    picture = Picture("p", "p", b"")
    with pytest.raises(InvalidInput, match=r"pip install 'one4all_lc\[reports\]'"):
        curves([]) if package != "jinja2" else render(Page("p", "", (), (picture,)))
    _template.cache_clear()


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    """Half a file would stand where a whole one stood."""
    file = tmp_path / "kept.txt"
    replace_text(file, "old")
    code = (
        "import os, sys; from pathlib import Path; import one4all_lc.writing as w;"
        "w.os.fsync = lambda _: os.kill(os.getpid(), 9);"
        "w.replace_bytes(sys.argv[1], b'new' * 100_000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert done.returncode == -9
    assert file.read_text() == "old"


def test_a_file_that_is_replaced_keeps_its_permissions_and_links(tmp_path):
    """Others could no longer read what they read before."""
    file, link = tmp_path / "real", tmp_path / "link"
    replace_text(file, "old")
    file.chmod(0o640)
    link.symlink_to(file)
    replace_bytes(link, b"new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640
    with pytest.raises(InvalidInput, match="cannot be written"):
        replace_text(file / "below", "no folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
