"""Tables that are read: the same rows as pandas', and a damaged one is told by its file and line."""

import csv
import io

import pandas
import pytest

from clearmargin.csv_files import parse_csv, read_csv
from clearmargin.errors import ConfigError, InputError

TEXT = 'id,note,value\r\na,"one, two",1\r\n\r\nb,"a ""word""\nand a line",2\r\nc,,\r\n'


def test_rows_are_those_that_pandas_reads(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    rows = read_csv(tmp_path / "t.csv")
    table = pandas.read_csv(io.BytesIO(TEXT.encode()), dtype=str, keep_default_na=False)
    assert rows == table.to_dict("records")
    assert parse_csv("") == parse_csv("id,value\n") == []
    assert parse_csv("id;value\na\n", divider=";") == [{"id": "a", "value": ""}]
    (tmp_path / "t.csv").write_bytes("case;group\nM\xfcller;1,5\n".encode("latin-1"))
    assert read_csv(tmp_path / "t.csv", dividers=",;\t", european=True) == [
        {"case": "M\xfcller", "group": "1,5"}
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,split\nx,test\nM\xfcller,test\n".encode("latin-1"), r"not UTF-8 \(line 3\): save it"),
        ("id,split\n".encode("utf-16"), r"not UTF-8 \(line 1\)"),
        (b"id,split\nx,te\0st\n", "line 2 holds NUL bytes"),
        (b'id,split\nx,test\n"y,test\nz,test\n', "line 3 is not divided .* quote left open"),
        (b'id,split\nx,test\n"' + b"a" * 200_000, "line 3 has a field that is too long"),
        (b"id,split\nx,test,more\n", "line 2 has 3 fields, its header 2"),
        (b"id,id\nx,y\n", "column 'id' more than once"),
    ],
)
def test_a_damaged_table_is_told_by_file_and_line(content, said, tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "index.csv").write_bytes(content)
    for error in (InputError, ConfigError):
        with pytest.raises(error, match=f"'index.csv'.* {said}"):
            read_csv(tmp_path / "index.csv", error=error)
    assert csv.field_size_limit() == limit
