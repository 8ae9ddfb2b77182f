"""Rows of the files and folders that people have, and where a mistake in them is."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlframe.data.sources import hub_rows, read_rows
from rlframe.errors import RecipeError

ROWS = [{"text": "grün, and ☃", "label": 1}, {"text": 'a "b"\nc', "label": 0}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture
def write(tmp_path):
    def written(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


@pytest.fixture
def parquet(tmp_path):
    def written(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path

    return written


@pytest.fixture(autouse=True)
def quiet():
    """The tests' own writing shows no progress bars."""
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def read(path, **options):
    return list(read_rows(path, **options))


def refused(path, **options):
    with pytest.raises(RecipeError) as caught:
        read(path, **options)
    return str(caught.value)


# JSON Lines


def test_jsonl_has_a_row_a_line(write):
    assert read(write("rows.jsonl", LINES)) == ROWS


def test_jsonl_may_have_blank_lines_and_need_not_end_in_a_newline(write):
    assert read(write("rows.jsonl", '\n{"n": 1}\n\n   \n{"n": 2}')) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_separator_inside_a_text_ends_no_line(write, separator):
    row = {"text": f"one{separator}two"}
    text = json.dumps(row, ensure_ascii=False) if separator > "\x1f" else json.dumps(row)
    assert read(write("rows.jsonl", text + "\n")) == [row]
    assert read(write("rows.txt", f"one{separator}two\n")) == [row]


def test_windows_line_ends_and_a_byte_order_mark_are_no_part_of_the_rows(write):
    text = codecs.BOM_UTF8 + b'{"text": "a"}\r\n{"text": "b"}\r\n'
    assert read(write("rows.jsonl", text)) == [{"text": "a"}, {"text": "b"}]
    assert read(write("rows.txt", codecs.BOM_UTF8 + b"a\r\nb\r\n")) == [
        {"text": "a"},
        {"text": "b"},
    ]
    assert read(write("rows.csv", codecs.BOM_UTF8 + b"text\r\na\r\nb\r\n")) == [
        {"text": "a"},
        {"text": "b"},
    ]


VALUES = [
    [1, 2.5],
    ["a", 1],
    ["2020-01-01", "2020-01-01T10:00:00Z"],  # what Arrow's own reader takes for dates
    ["1", "true"],  # text that is JSON
    [True, "True"],
    [2**63, 1],
    [{"a": 1}, {"b": [1, "x"]}],
    [[{"role": "user"}], [{"role": "user", "tools": None}]],
    [[], [1]],
    [None, None],
    ["", None],
]


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_values_come_back_as_they_were_written_whatever_stands_beside_them(write, values):
    rows = [{"value": value} for value in values]
    found = read(write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert json.dumps(found) == json.dumps(rows)  # 1 == True, but not as JSON


def test_a_type_that_changes_after_thousands_of_rows_is_no_surprise(write):
    rows = [{"n": i} for i in range(2500)] + [{"n": "last", "new": [1]}]
    found = read(write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert [row["n"] for row in found] == [*range(2500), "last"]
    assert [row["new"] for row in found[-2:]] == [None, [1]]


BROKEN = {
    "quotes of Python": ("{'n': 3}", "Expecting property name"),
    "not closed": ('{"n": 3', "Expecting ',' delimiter"),
    "a word": ("n", "Expecting value"),
    "a comma too many": ('{"n": 3,}', "Expecting property name"),  # or "Illegal trailing comma"
    "two on a line": ('{"n": 3} {"n": 4}', "Extra data (column 10)"),
    "a curly quote": ('{“n": 3}', "LEFT DOUBLE QUOTATION MARK"),
    "a no-break space": ('{"n":\u00a03}', "NO-BREAK SPACE"),
    "NaN": ('{"n": NaN}', "NaN is not JSON. Write null"),
    "a key twice": ('{"n": 1, "n": 2}', "the key 'n' is in one object more than once"),
    "half a character": ('{"n": "\\ud800"}', "\\ud800 is half of a character"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "a number without end": ('{"n": ' + "1" * 5000 + "}", "4300 digits"),
    "a list": ("[1]", "a row is a JSON object, not list"),
    "a number": ("3", "a row is a JSON object, not int"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_line_that_is_no_row_is_refused_with_its_number(write, fault):
    line, said = BROKEN[fault]
    path = write("rows.jsonl", f'{{"n": 1}}\n\n{line}\n{{"n": 4}}\n')
    message = refused(path)
    assert message.startswith(f"{path}:3: ")
    assert said in message or fault == "a comma too many"


def test_a_pair_of_halves_is_a_character(write):
    assert read(write("rows.jsonl", '{"n": "\\ud83d\\ude00"}\n')) == [{"n": "😀"}]


def test_a_torn_last_line_is_called_so(write):
    message = refused(write("rows.jsonl", '{"n": 1}\n{"n": "the end is miss'))
    assert ":2: " in message
    assert "the file may have been cut off" in message


def test_another_kind_of_json_is_recognised(write):
    assert "name must end in .json" in refused(write("rows.jsonl", '[{"n": 1},\n{"n": 2}]'))
    assert "over several lines" in refused(write("rows.jsonl", '{\n"n": 1\n}\n'))


# JSON


def test_json_is_a_list_of_rows(write):
    assert read(write("rows.json", json.dumps(ROWS, indent=1))) == ROWS
    assert read(write("rows.json", "[]")) == []


def test_json_may_hold_the_list_under_the_one_key_that_can_be_meant(write):
    assert read(write("rows.json", json.dumps({"version": 1, "data": ROWS}))) == ROWS
    message = refused(write("rows.json", json.dumps({"train": ROWS, "test": ROWS})))
    assert "several of its keys hold lists: test, train" in message


def test_json_lines_under_the_name_of_json_are_read(write):
    assert read(write("rows.json", LINES)) == ROWS


@pytest.mark.parametrize("text", ['{"text": "a"}', "3"])
def test_json_that_is_no_list_is_refused_with_the_way_out(write, text):
    assert "a list of objects; for a row a line use .jsonl" in refused(write("rows.json", text))


FAULTS = {
    '[{"n": 1},\n{"n": }]': "Expecting value (column 7)",
    '[{"n": 1},\n3]': "a row is a JSON object, not int",
    '[{"n": 1},\n]': "a comma before the end of the list",
    '[{"n": 1}\n{"n": 2}]': "Expecting ',' or ']'",
    '[{"n": 1}\n': "Expecting ',' or ']'",
    '[{"n": 1}\n] x': "Extra data",
    '[{"n": 1},\n{"n": NaN}]': "NaN is not JSON",
    '[{"n": 1},\n{"n": "\\udfff"}]': "half of a character",
}


@pytest.mark.parametrize("text", FAULTS)
def test_json_that_is_broken_is_refused_with_the_line(write, text):
    path = write("rows.json", text)
    message = refused(path)
    assert message.startswith(f"{path}:2: ")
    assert FAULTS[text] in message


# CSV


def test_csv_has_a_header_and_cells_that_are_text(write):
    text = 'text,answer,label\n"one, ""two""\nthree",007,NA\n\nfour,,1.50\n'
    assert read(write("rows.csv", text)) == [
        {"text": 'one, "two"\nthree', "answer": "007", "label": "NA"},
        {"text": "four", "answer": "", "label": "1.50"},
    ]


def test_what_the_csv_module_writes_is_read_back(write):
    rows = [{"a": 'x"y\r\nz;,\t', "b": "\u2028 "}, {"a": "", "b": "'"}]
    for name, dialect in (("rows.csv", "excel"), ("rows.tsv", "excel-tab")):
        text = io.StringIO()
        writer = csv.DictWriter(text, ["a", "b"], dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)
        assert read(write(name, text.getvalue())) == rows


def test_semicolons_separate_where_the_header_has_no_comma(write):
    assert read(write("rows.csv", "text;label\na, b;1\n")) == [{"text": "a, b", "label": "1"}]


def test_a_long_cell_is_read(write):
    text = "x" * 300_000
    assert read(write("rows.csv", f"text,n\n{text},1\n")) == [{"text": text, "n": "1"}]


CSV_FAULTS = {
    'a,b\n"1\n2",3\n4,5,6\n': (4, "3 cells, and the header has 2 columns (a, b)"),
    "a,b\n1,2\n3\n": (3, "1 cells, and the header has 2 columns"),
    'a,b\n1,2\n"3"x,4\n': (3, "not valid CSV"),
    'a,b\n1,2\n"3,4\n': (3, "not valid CSV: unexpected end of data"),
    "a,b,a\n1,2,3\n": (1, "the header has 'a' more than once"),
}


@pytest.mark.parametrize("text", CSV_FAULTS, ids=repr)
def test_a_row_of_csv_that_is_broken_is_refused_with_its_line(write, text):
    line, said = CSV_FAULTS[text]
    path = write("rows.csv", text)
    assert refused(path).startswith(f"{path}:{line}: ")
    assert said in refused(path)


# Plain text, tables


def test_text_has_a_row_a_line_and_blank_lines_are_none(write):
    found = read(write("rows.txt", "one\n\n  two \n \nthree"))
    assert found == [{"text": "one"}, {"text": "  two "}, {"text": "three"}]


TABLE = [
    {"text": "grün", "label": 1, "messages": [{"role": "user", "content": "hi"}]},
    {"text": None, "label": 0, "messages": []},
]


def test_parquet_gives_back_what_was_written(parquet):
    assert read(parquet("rows.parquet", TABLE)) == TABLE


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_gives_back_what_was_written_in_both_formats(tmp_path, kind):
    table = pyarrow.Table.from_pylist(TABLE)
    path = tmp_path / "rows.arrow"
    new = pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream
    with pyarrow.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table)
    assert read(path) == TABLE


# Files that are something else


@pytest.mark.parametrize("name", ["rows.JSONL", "rows.Json", "rows.TXT", "my.rows.v1.jsonl"])
def test_the_case_of_an_ending_does_not_matter(write, name):
    text = '[{"text": "a"}]' if name.endswith("Json") else '{"text": "a"}'
    assert len(read(write(name, text))) == 1


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
PACKERS[".zst"] = lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_files_are_unpacked(write, ending):
    assert read(write(f"rows.jsonl{ending}", PACKERS[ending](LINES.encode()))) == ROWS
    assert read(write(f"rows.csv{ending}", PACKERS[ending](b"a\n1\n"))) == [{"a": "1"}]


@pytest.mark.parametrize("ending", PACKERS)
def test_a_packed_file_that_is_cut_off_is_refused(write, ending):
    long = "".join(f'{{"n": {i}}}\n' for i in range(3000)).encode()
    path = write(f"rows.jsonl{ending}", PACKERS[ending](long)[:-20])
    assert refused(path).startswith(f"{path}: ")


@pytest.mark.parametrize("ending", PACKERS)
def test_a_file_whose_name_hides_that_it_is_packed_is_refused(write, ending):
    message = refused(write("rows.jsonl", PACKERS[ending](LINES.encode())))
    assert f"its name must end in {ending}" in message
    assert "cannot be read" in refused(write(f"rows.jsonl{ending}", LINES))


@pytest.mark.parametrize("name", ["rows.pkl", "rows", "rows.gz", "rows.xlsx"])
def test_an_unknown_ending_is_refused_with_those_that_are_known(write, name):
    message = refused(write(name, "a,b\n"))
    assert name in message
    assert ".arrow, .csv, .json, .jsonl, .ndjson, .parquet, .tsv, .txt" in message


ODD = {
    b"PAR1....": "this is a Parquet file: name it .parquet",
    b"PK\x03\x04...": "a zip archive or an Excel sheet",
    "text".encode("utf-16"): "UTF-16",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n": "git lfs pull",
    b"<!DOCTYPE html><html>": "a web page",
}


@pytest.mark.parametrize("head", ODD)
def test_what_a_file_is_instead_is_said(write, head):
    assert ODD[head] in refused(write("rows.jsonl", head))


def test_what_only_calls_itself_parquet_or_arrow_is_refused(write):
    assert "not a Parquet file" in refused(write("rows.parquet", "text\n" * 100))
    assert "not an Arrow file" in refused(write("rows.arrow", "text\n" * 100))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.txt", "rows.csv"])
def test_bytes_that_are_not_utf_8_are_refused_with_their_line(write, name):
    path = write(name, b'a\n["\xff"]\n')
    message = refused(path)
    if name != "rows.jsonl":  # whose first line is refused before
        assert message.startswith(f"{path}:2: byte 0xff at place 3 of the line is not UTF-8")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.txt"])
def test_an_empty_file_has_no_rows(write, name):
    assert read(write(name, "")) == []


# Several files, folders


def test_several_files_are_read_in_the_order_of_their_names_or_of_the_list(write, tmp_path):
    for name in ("b", "a", "c"):
        write(f"{name}.jsonl", json.dumps({"n": name}) + "\n")
    assert [row["n"] for row in read(str(tmp_path / "*.jsonl"))] == ["a", "b", "c"]
    listed = [str(tmp_path / "c.jsonl"), str(tmp_path / "[ab].jsonl")]
    assert [row["n"] for row in read(listed)] == ["c", "a", "b"]


def test_a_name_with_the_signs_of_a_pattern_is_a_name_where_there_is_such_a_file(write):
    assert read(write("a[1].txt", "x")) == [{"text": "x"}]


def test_nothing_at_a_path_is_refused(tmp_path):
    assert "there is no file" in refused(tmp_path / "rows.jsonl")
    assert "no file matches" in refused(str(tmp_path / "*.jsonl"))


def test_a_folder_with_the_layout_of_the_hub_has_splits(parquet, write, tmp_path):
    parquet("set/data/train-00000-of-00001.parquet", [{"n": 1}])
    parquet("set/data/test-00000-of-00001.parquet", [{"n": 2}])
    write("set/README.md", "---\nlicense: mit\n---\n# A data set\n")
    assert read(tmp_path / "set") == [{"n": 1}]
    assert read(tmp_path / "set", split="test") == [{"n": 2}]
    message = refused(tmp_path / "set", split="tset")
    assert "no split 'tset'. Did you mean 'test'? It has test, train" in message


def test_a_folder_whose_readme_says_which_files_are_which_split(write, tmp_path):
    write("set/a.jsonl", '{"n": 1}\n')
    write("set/b.jsonl", '{"n": 2}\n')
    message = "configs:\n- config_name: default\n  data_files:\n  - {split: dev, path: b.jsonl}\n"
    write("set/README.md", f"---\n{message}---\n")
    assert read(tmp_path / "set") == [{"n": 2}]  # the only split


def test_a_mistake_in_a_file_of_a_folder_has_its_line(write, tmp_path):
    path = write("set/train.jsonl", '{"n": 1}\n{"n": \n')
    assert refused(tmp_path / "set").startswith(f"{path}:2: ")


def test_a_folder_without_data_is_refused(write, tmp_path):
    write("set/model.safetensors", b"")
    assert "the folder cannot be loaded" in refused(tmp_path / "set")


def test_saved_data_sets_are_read_where_they_are(tmp_path):
    one = datasets.Dataset.from_list(TABLE)
    one.save_to_disk(tmp_path / "one")
    both = datasets.DatasetDict({"train": one, "test": one.select([1])})
    both.save_to_disk(tmp_path / "both")
    before = sorted(tmp_path.rglob("*"))
    assert read(tmp_path / "one") == TABLE
    assert read(tmp_path / "both") == TABLE
    assert read(tmp_path / "both", split="test") == TABLE[1:]
    assert "leave `split` out" in refused(tmp_path / "one", split="train")
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written beside the user's data


def test_a_split_of_a_file_is_refused(write):
    assert "only a folder has splits" in refused(write("rows.jsonl", LINES), split="train")


def test_reading_writes_nothing_to_the_terminal(write, capfd, tmp_path):
    datasets.enable_progress_bars()
    write("set/train.jsonl", LINES)
    read(tmp_path / "set")
    read(write("rows.jsonl", LINES))
    assert capfd.readouterr() == ("", "")


def test_a_name_on_the_hub_that_is_none_is_refused():
    with pytest.raises(RecipeError, match="hub data set 'no/such-set' cannot be loaded"):
        hub_rows("no/such-set", config=None, split="train", revision=None)
