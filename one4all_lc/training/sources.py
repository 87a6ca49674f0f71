"""Where rows of data come from: JSONL, CSV, and folders of Hugging Face `datasets`.

Nothing is judged here but the form: each line becomes a mapping with its place, or what is wrong
with it.
"""

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from one4all_lc.card import parse_json
from one4all_lc.errors import InvalidInput

SPLITS = ("train", "dev", "test")

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
"""Of the files that are looked for in a folder."""

_SPLIT_NAMES = {"validation": "dev", "valid": "dev", "val": "dev", "eval": "dev"}
"""What others call our splits."""

_SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` of `datasets` leaves in a folder."""

_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True)
class Place:
    """Where a row stands.

    Attributes:
        file: Path of the file, or of the folder of a data set.
        line: Counted from 1; 0 means the file as a whole.
        unit: `line`, or `row` where the file has no lines.
    """

    file: str
    line: int = 0
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}" if self.line else self.file


@dataclass(frozen=True)
class Record:
    """One line as it was read, not judged yet.

    Attributes:
        place: Where it stands.
        values: Its fields.
        split: The split that its file's name says; a field says it louder.
        marked: Whether a byte order mark stood before it.
        tabular: Whether it comes from a table, where a field that is left out is there and empty.
    """

    place: Place
    values: Any
    split: str | None = None
    marked: bool = False
    tabular: bool = False


@dataclass(frozen=True)
class Unreadable:
    """A line, or a file, that holds no row.

    Attributes:
        place: Where it stands.
        kind: A word for it.
        what: The rest of the sentence that begins with the place.
    """

    place: Place
    kind: str
    what: str


Read = Record | Unreadable


def read_source(path: str | Path, split: str | None = None) -> Iterator[Read]:
    """Read one file or folder.

    Args:
        path: A JSONL or CSV file, a parquet file, a folder that `datasets` has saved, or a folder
            of such files.
        split: What its rows belong to where they do not say so.

    Yields:
        Records in the order of the file, and what cannot be read between them.
    """
    path = Path(path)
    if path.is_dir():
        yield from _folder(path)
    elif path.suffix.lower() == ".parquet":
        yield from _parquet(path, split)
    else:
        text = _CsvText if path.suffix.lower() in (".csv", ".tsv") else _JsonText
        yield from text(path, split).read()


def source_files(path: str | Path) -> list[Path]:
    """List the files that a source consists of, by name: what is hashed to know it again."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    return sorted(item for item in path.rglob("*") if item.is_file() and item.name[0] != ".")


def _folder(folder: Path) -> Iterator[Read]:
    if any((folder / name).is_file() for name in _SAVED):
        yield from _saved(folder)
        return
    files = [item for item in source_files(folder) if item.suffix.lower() in SUFFIXES]
    if not files:
        what = (
            "is a folder without data: name a JSONL or CSV file, a folder that "
            "datasets.save_to_disk has written, or one with parquet or JSONL files"
        )
        yield Unreadable(Place(str(folder)), "folder", what)
    for path in files:
        yield from read_source(path, _split_of(path.stem))


def _split_of(name: str) -> str | None:
    """Return the split that a file's name begins with, `train-00000-of-00001` for example."""
    word = name.lower().replace("_", "-").replace(".", "-").split("-")[0]
    word = _SPLIT_NAMES.get(word, word)
    return word if word in SPLITS else None


def _saved(folder: Path) -> Iterator[Read]:
    datasets = _needed("datasets")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        what = f"is not a whole data set ({error}): save it again with save_to_disk"
        yield Unreadable(Place(str(folder)), "folder", what)
        return
    parts: Mapping[str | None, Any] = loaded if isinstance(loaded, Mapping) else {None: loaded}
    for name, rows in parts.items():
        file = str(folder / name) if name else str(folder)
        split = _split_of(name) if name else None
        if name and split is None:
            what = f"has split {name!r}, which is none of {[*SPLITS, 'validation']}"
            yield Unreadable(Place(file), "split", what)
            continue
        for number, values in enumerate(rows, 1):
            yield Record(Place(file, number, "row"), values, split, tabular=True)


def _parquet(path: Path, split: str | None) -> Iterator[Read]:
    _needed("pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        yield _gone(path)
        return
    except (OSError, pyarrow.ArrowException) as error:
        what = f"is not a whole parquet file ({str(error).splitlines()[0]}): write it again"
        yield Unreadable(Place(str(path)), "parquet", what)
        return
    for number, values in enumerate(table.to_pylist(), 1):
        yield Record(Place(str(path), number, "row"), values, split, tabular=True)


def _needed(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        msg = f"Reading such data needs {module}: pip install 'one4all_lc[datasets]'."
        raise InvalidInput(msg) from None


def _gone(path: Path) -> Unreadable:
    what = "is not there: give a JSONL file of questions and answers"
    return Unreadable(Place(str(path)), "missing", what)


class _Text:
    """A file of text, read strictly: UTF-8, without NUL bytes."""

    def __init__(self, path: Path, split: str | None) -> None:
        self._path, self._split = path, split

    def read(self) -> Iterator[Read]:
        """Yield what the lines hold, or the one thing that keeps them from being read."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            yield _gone(self._path)
            return
        except OSError as error:
            yield self._whole("missing", f"cannot be read ({error.strerror}): give a JSONL file")
            return
        named = [name for mark, name in _ENCODINGS.items() if content.startswith(mark)]
        if named:
            yield self._at(1, "encoding", f"is in {named[0]}: save the file as UTF-8")
            return
        if not content.removeprefix(codecs.BOM_UTF8).strip():
            yield self._whole("empty", "is empty: give a JSONL file of questions and answers")
            return
        yield from self._rows(content)

    def _rows(self, content: bytes) -> Iterator[Read]:
        raise NotImplementedError

    def _decoded(self, number: int, line: bytes) -> str | Unreadable:
        """Return a line as text, or say why it is none."""
        if b"\0" in line:
            what = f"holds a NUL byte: {_shown(line)}. Remove it, or save the file as UTF-8"
            return self._at(number, "nul", what)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            what = (
                f"cannot be read as UTF-8 text ({error.reason} at byte {error.start + 1}): "
                f"{_shown(line)}. Save the file as UTF-8"
            )
            return self._at(number, "encoding", what)

    def _at(self, line: int, kind: str, what: str) -> Unreadable:
        return Unreadable(Place(str(self._path), line), kind, what)

    def _whole(self, kind: str, what: str) -> Unreadable:
        return Unreadable(Place(str(self._path)), kind, what)


class _JsonText(_Text):
    def _rows(self, content: bytes) -> Iterator[Read]:
        for number, raw in enumerate(content.split(b"\n"), 1):
            marked = raw.startswith(codecs.BOM_UTF8)  # files were joined with their marks
            line = self._decoded(number, raw.removeprefix(codecs.BOM_UTF8))
            if isinstance(line, Unreadable):
                yield line
            elif line.strip():
                yield self._row(number, line, marked)

    def _row(self, number: int, line: str, marked: bool) -> Read:
        try:
            values = parse_json(line)
        except ValueError as error:
            return self._at(number, "json", f"is not JSON ({error}): {_shown(line)}. {WRITE}")
        if not isinstance(values, dict):
            return self._at(number, "object", f"is not an object: {_shown(line)}. {WRITE}")
        return Record(Place(str(self._path), number), values, self._split, marked)


class _CsvText(_Text):
    def _rows(self, content: bytes) -> Iterator[Read]:
        marked = content.startswith(codecs.BOM_UTF8)  # as spreadsheets write it
        lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
        texts = [self._decoded(number, line) for number, line in enumerate(lines, 1)]
        broken = [text for text in texts if isinstance(text, Unreadable)]
        if broken:
            yield from broken
            return
        text = "\n".join(text for text in texts if isinstance(text, str))
        separator = "\t" if self._path.suffix.lower() == ".tsv" else ","
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        yield from self._cells(reader, marked)

    def _cells(self, reader: Any, marked: bool) -> Iterator[Read]:
        csv.field_size_limit(1 << 30)
        header: list[str] = []
        began = 1
        try:
            for cells in reader:
                place, began = Place(str(self._path), began), reader.line_num + 1
                if not header:
                    header = [cell.strip() for cell in cells]
                elif not any(cell.strip() for cell in cells):
                    continue
                elif len(cells) != len(header):
                    what = f"has {len(cells)} cells where the first line names {len(header)}"
                    yield Unreadable(place, "cells", f"{what}: {_shown(','.join(cells))}")
                else:
                    values = dict(zip(header, cells, strict=True))
                    yield Record(place, values, self._split, marked, tabular=True)
        except csv.Error as error:
            yield self._at(began, "csv", f"is not CSV ({error}): close its quotation marks")


WRITE = 'Write {"question": "...", "answer": "...", "split": "train"}'


def _shown(line: str | bytes) -> str:
    """Return the beginning of a line, on one line."""
    return repr(line[:80])


def all_sources(paths: Iterable[str | Path]) -> Iterator[Read]:
    """Read files and folders one after another."""
    for path in paths:
        yield from read_source(path)
