"""Rows from CSV, parquet and folders of `datasets`, as they lie on people's disks."""

from pathlib import Path

import pytest

from one4all_lc.errors import InvalidInput
from one4all_lc.training.data import Fields, Row, read_rows

ROWS = {"question": ["Q1?", "Q2?"], "answer": ["A1.", "A2."]}


def test_csv_as_a_spreadsheet_writes_it(tmp_path: Path):
    """Lost: a mark before the first column, cells over two lines, quotation marks, empty cells."""
    path = tmp_path / "rows.csv"
    text = (
        'id,Frage,Antwort,split,columns\r\n1,"Q, 1?","A\n""1"".",,\r\n\r\n2,Q2?,A2.,test,"a, b"\r\n'
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    read = read_rows([path], Fields(question="Frage", answer="Antwort"))
    assert read == [Row("Q, 1?", 'A\n"1".'), Row("Q2?\nColumns: a, b", "A2.", "test")]
    assert [row.id for row in read] == ["1", "2"]
    assert [row.place.line for row in read] == [2, 5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", r"line 2 has no text under 'question'; its fields are \['a', 'b'\]"),
        ("question,answer\nQ?\n", "line 2 has 1 cells where the first line names 2"),
        ("question,answer\nQ?,A.\nQ?,A.,more\n", "line 3 has 3 cells"),
        ('question,answer\nQ?,A.\n"Q?,A.\n', "line 3 is not CSV"),
        ("question,answer\nQ?,\n", "line 2 has no text under 'answer'"),
        ("question,answer,split\nQ?,A.,eval\n", "line 2 has split 'eval'"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path: Path, text: str, words: str):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=words):
        read_rows([path])


def test_a_csv_in_another_encoding_is_named_by_its_line(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"question,answer\nQ?,caf\xe9\n")
    with pytest.raises(InvalidInput, match="line 2 cannot be read as UTF-8"):
        read_rows([path])


def test_a_saved_data_set_with_splits(tmp_path: Path):
    """Lost: whoever has the data as `datasets` gives it, `validation` included."""
    from datasets import Dataset, DatasetDict

    parts = {name: Dataset.from_dict(ROWS) for name in ("train", "validation", "test")}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    read = read_rows([tmp_path / "saved"])
    assert [row.split for row in read] == ["train"] * 2 + ["dev"] * 2 + ["test"] * 2
    assert str(read[3].place).endswith("validation, row 2")


def test_a_saved_data_set_without_splits(tmp_path: Path):
    from datasets import Dataset

    Dataset.from_dict(ROWS | {"split": ["train", "dev"]}).save_to_disk(tmp_path / "saved")
    assert [row.split for row in read_rows([tmp_path / "saved"])] == ["train", "dev"]


def test_a_folder_of_parquet_and_jsonl_as_hubs_have_it(tmp_path: Path):
    """Lost: columns that a table must have though a row has them not."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(ROWS | {"context": [None, "Text."], "split": [None, None]})
    parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    (tmp_path / "test.jsonl").write_text('{"question": "Q3?", "answer": "A3."}')
    read = read_rows([tmp_path])
    assert [(row.question, row.split) for row in read] == [
        ("Q3?", "test"),
        ("Q1?", "train"),
        ("Text.\n\nQ2?", "train"),
    ]


def test_a_table_with_a_wrong_row_names_it(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(ROWS | {"answer": ["A.", ""]}), tmp_path / "rows.parquet")
    with pytest.raises(InvalidInput, match=r"rows.parquet, row 2 has no text under 'answer'"):
        read_rows([tmp_path / "rows.parquet"])


@pytest.mark.parametrize("name", ["rows.parquet", "state.json", "dataset_dict.json"])
def test_broken_tables_and_data_sets_are_named(tmp_path: Path, name: str):
    (tmp_path / name).write_text("{")
    path = tmp_path / name if name == "rows.parquet" else tmp_path
    with pytest.raises(InvalidInput, match="is not a whole") as refused:
        read_rows([path])
    assert "\n" not in str(refused.value)
