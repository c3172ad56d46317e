from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from fasttune import Row, Template, given, learn
from fasttune.config import DataConfig
from fasttune.data.divide import load_divided
from fasttune.data.load import Finding, load_rows, parse_columns, shipped
from fasttune.data.sources import reader
from fasttune.data.split import data_hash, digest, divide
from fasttune.data.suggest import suggest_template
from fasttune.errors import FasttuneError
from fasttune.inspection.survey import Spread, histogram, scripts, survey
from fasttune.plugins.discovery import load_plugins
from tests.conftest import listening, rows

ROWS = [
    {"instruction": "Add 2 and 3.", "input": "", "output": " 5\n"},
    {"instruction": 'Say "hi", twice.\nAloud.', "input": "a\tb", "output": "hi, hi"},
    {"instruction": "日本の首都は？", "input": "", "output": "東京 🗼"},
]


@pytest.fixture(scope="module")
def templates():
    plugins = load_plugins()
    return {name: plugins.template(name) for name in ("alpaca", "reasoning", "multilingual")}


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix in (".jsonl", ".ndjson"):
        write_jsonl(path, rows)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
            writer = csv.DictWriter(file, list(rows[0]), dialect=dialect)
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


# Sources


def numbers(loaded):
    return [loaded.rows.number(place) for place in range(len(loaded.rows))]


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.ndjson", "a.csv", "a.tsv", "a.parquet", "A.JSONL"]
)
def test_every_format_gives_the_rows_back(tmp_path, name):
    path = tmp_path / name
    write(path.with_suffix(path.suffix.lower()), ROWS).rename(path)
    loaded = load_rows(path)
    assert loaded.rows == ROWS
    assert loaded.source == str(path)
    assert loaded.findings == []
    loaded.require_clean(skip_bad_rows=False)


def test_numbers_are_lines_in_text_files_and_rows_elsewhere(tmp_path):
    assert numbers(load_rows(write(tmp_path / "a.jsonl", ROWS))) == [1, 2, 3]
    assert numbers(load_rows(write(tmp_path / "a.json", ROWS))) == [1, 2, 3]
    # the header is line 1, and the second row has a line break in a cell of each
    assert numbers(load_rows(write(tmp_path / "a.csv", ROWS))) == [2, 4, 6]


def test_object_with_data_list(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert load_rows(path).rows == ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rows": []}', "no list of rows"),
        ("3", "no list of rows"),
        ('[{"a": ]', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no rows"),
        (" \n", "no rows"),
    ],
)
def test_json_files_without_rows(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(FasttuneError, match=message) as caught:
        load_rows(path)
    assert str(path) in caught.value.where


SOME = [
    {"instruction": "Name a river.", "output": "Ebro, or Po"},
    {"instruction": "b", "output": "c"},
]
PRETTY = "\n".join(json.dumps(row, indent=1) for row in SOME)
LINES = "\n".join(json.dumps(row) for row in SOME)
CELLS = "instruction;output\nName a river.;Ebro, or Po\nb;c\n"


@pytest.mark.parametrize(
    ("name", "text", "numbers"),
    [
        ("a.json", LINES, [1, 2]),
        ("a.jsonl", json.dumps(SOME), [1, 2]),
        ("a.jsonl", json.dumps(SOME, indent=2), [1, 2]),
        ("a.jsonl", PRETTY, [1, 2]),
        ("a.jsonl", "\n" + LINES.replace("}\n", "},\n"), [2, 3]),
        ("a.csv", CELLS, [2, 3]),
        ("a.csv", CELLS.replace(";", "\t"), [2, 3]),
        ("a.csv", "sep=;\n" + CELLS, [3, 4]),
        ("a.tsv", CELLS.replace(";", "\t"), [2, 3]),
        ("a.csv.gz", CELLS, [2, 3]),
        ("a.jsonl.gz", LINES, [1, 2]),
        ("a.jsonl.zst", LINES, [1, 2]),
        ("a.json.bz2", json.dumps(SOME), [1, 2]),
    ],
)
def test_files_are_read_for_what_they_hold(tmp_path, name, text, numbers):
    import pyarrow

    kinds = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
    file = tmp_path / name
    with pyarrow.output_stream(str(file), compression=kinds.get(file.suffix)) as stream:
        stream.write(text.encode())
    loaded = load_rows(file)
    assert loaded.rows == SOME and loaded.findings == []
    assert [loaded.rows.number(at) for at in range(2)] == numbers


def test_shards_are_one_source(tmp_path):
    for name, row in zip(("part-1.jsonl", "part-2.jsonl"), SOME, strict=True):
        write_jsonl(tmp_path / name, [row, {"instruction": name}])
    for source in (tmp_path, tmp_path / "part-*.jsonl"):
        loaded = load_rows(source)
        assert loaded.rows == SOME
        assert [loaded.rows.origin(at) for at in range(2)] == ["part-1.jsonl", "part-2.jsonl"]
        assert [str(each) for each in loaded.findings] == [
            "part-1.jsonl, row 2, output: is missing",
            "part-2.jsonl, row 2, output: is missing",
        ]
    for name in ("part-1.jsonl", "part-2.jsonl"):
        (tmp_path / name).rename(tmp_path / name.replace("part-", "train-0000"))
    assert load_rows(tmp_path).rows == SOME


def test_the_held_out_rows_of_a_folder_are_taken(tmp_path):
    template = load_plugins().template("alpaca")
    train = write_jsonl(tmp_path / "train.jsonl", SOME)
    write_jsonl(tmp_path / "valid.jsonl", [{"instruction": "held", "output": "out"}])
    with listening() as said:
        divided = load_divided(DataConfig(train=str(tmp_path)), template)
    assert divided.eval == [{"instruction": "held", "output": "out"}] and divided.train == SOME
    assert said[0] == f"{tmp_path}: its split 'valid' is held out"
    with listening() as said:
        assert load_divided(DataConfig(train=str(train), eval_fraction=0), template).eval == []
    assert (
        said[0]
        == f"valid.jsonl lies beside: data.eval={tmp_path / 'valid.jsonl'} holds its rows out"
    )


def test_a_mapping_is_for_the_file_that_needs_it(tmp_path):
    template = load_plugins().template("alpaca")
    held_out = [{"prompt": "held", "completion": "out"}]
    data = DataConfig(
        train=str(write_jsonl(tmp_path / "a.jsonl", SOME)),
        eval=str(write_jsonl(tmp_path / "b.jsonl", held_out)),
        columns={"instruction": "prompt", "output": "completion"},
    )
    divided = load_divided(data, template)
    assert divided.train == SOME and divided.eval == [{"instruction": "held", "output": "out"}]


def test_only_text_and_numbers_of_a_table_are_decoded(tmp_path):
    import pyarrow
    import pyarrow.parquet

    far = pyarrow.array([2**60], pyarrow.int64())
    table = pyarrow.table({
        "instruction": ["a"], "output": ["b"], "n": [1.5],
        "image": [{"bytes": b"x", "path": "http://x/y.png"}],
        "took": far.cast(pyarrow.duration("s")),
        "when": far.cast(pyarrow.timestamp("us")),
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    [(_, record)] = reader(tmp_path / "a.parquet", "train")
    assert (record["n"], record["took"]) == (1.5, str(2**60))
    assert "out of range" in record["when"] and str(record["image"]).startswith("<struct<bytes")
    with pytest.raises(FasttuneError) as caught:
        load_rows(tmp_path / "a.parquet", columns={"input": "image"})
    assert "input: is of the type struct<bytes" in caught.value.where
    bomb = pyarrow.table(
        {"instruction": pyarrow.array(["x" * 2**20]).take(pyarrow.array([0] * 1500))}
    )
    pyarrow.parquet.write_table(
        bomb, tmp_path / "b.parquet", compression="zstd", use_dictionary=False
    )
    with pytest.raises(FasttuneError, match=r"unpacks to 1\.6 GB"):
        load_rows(tmp_path / "b.parquet")


def test_a_damaged_data_set_is_an_error(tmp_path):
    from datasets import Dataset

    Dataset.from_list(SOME).save_to_disk(str(tmp_path))
    file = tmp_path / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            load_rows(tmp_path)
        except FasttuneError as error:
            assert error.where and error.hint


def test_saved_dataset_and_its_splits(tmp_path):
    import datasets

    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=dataset, test=dataset.select([2])).save_to_disk(
        str(tmp_path / "two")
    )
    assert load_rows(str(tmp_path / "one")).rows == ROWS
    assert load_rows(tmp_path / "two", split="test").rows == ROWS[2:]
    with pytest.raises(FasttuneError, match="no split 'tset'") as caught:
        load_rows(tmp_path / "two", split="tset")
    assert "did you mean 'test'" in caught.value.hint
    with pytest.raises(FasttuneError, match="folder holds no data set"):
        load_rows(tmp_path)


def test_hub_that_cannot_be_reached():
    with pytest.raises(FasttuneError) as caught:
        load_rows("nobody/nothing-here")
    assert "nobody/nothing-here" in caught.value.message
    assert "Hub" in caught.value.message
    assert "connection" in caught.value.hint and "path" in caught.value.hint


def test_a_data_set_on_the_hub_with_a_configuration(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*words, **options):
        asked.append((words, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_rows("openai/gsm8k:main", split="test").rows == ROWS
    assert load_rows("owner/name").rows == ROWS
    assert asked == [
        (("openai/gsm8k", "main"), {"split": "test"}),
        (("owner/name", None), {"split": "train"}),
    ]


def test_typo_in_a_path_names_the_close_file(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(FasttuneError, match="no such file") as caught:
        load_rows(str(tmp_path / "tarin.jsonl"))
    assert "train.jsonl" in caught.value.hint


@pytest.mark.parametrize("source", ["nowhere.csv", "./nowhere", "nowhere/at/all.jsonl", Path("x")])
def test_what_looks_like_a_path_never_asks_the_hub(source):
    with pytest.raises(FasttuneError, match="no such file"):
        load_rows(source)


def test_a_relative_name_without_a_suffix_is_a_hub_name():
    with pytest.raises(FasttuneError, match="Hub"):
        load_rows("data/train")


def test_unknown_format(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(FasttuneError, match="format") as caught:
        load_rows(tmp_path / "a.txt")
    assert ".jsonl" in caught.value.hint


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_empty_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FasttuneError) as caught:
        load_rows(tmp_path / name)
    assert name in caught.value.where


def test_csv_of_only_a_header(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\n")
    with pytest.raises(FasttuneError, match="no rows"):
        load_rows(tmp_path / "a.csv")


def test_limit_looks_at_the_first_rows_only(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, b"{broken"])
    assert load_rows(path, limit=2).rows == ROWS[:2]
    assert load_rows(path, limit=3).findings == []
    assert len(load_rows(path, limit=4).findings) == 1
    with pytest.raises(FasttuneError):
        load_rows(path, limit=0)


def test_importing_needs_nothing_heavy():
    code = (
        "import sys, fasttune.data.load, fasttune.inspection.survey; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


# Checks


def test_one_broken_line_is_reported_and_the_others_are_kept(tmp_path):
    broken = b'{"instruction": "x", "output": }'
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], broken, b"", *ROWS[1:]])
    loaded = load_rows(path)
    assert loaded.rows == ROWS
    assert numbers(loaded) == [1, 4, 5]
    assert loaded.findings == [
        Finding(2, "", "is not JSON: Expecting value at position 32", fatal=True)
    ]
    assert loaded.bad_rows == 1


def test_all_kinds_of_bad_rows_at_once(tmp_path):
    good = {"instruction": "q", "output": "a"}
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            good,
            [1],
            {"instruction": "q"},
            {"instruction": " \n", "output": None},
            {"instruction": "q", "output": 72},
            {"instruction": "q", "output": True},
            {"instruction": "q", "output": ["a"], "input": {"b": 1}},
            {"instruction": "q", "output": "\ud800"},
            b"null",
            b"1" * 5000,
        ],
    )
    loaded = load_rows(path)
    assert loaded.rows == [good]
    found = [(f.row, f.column, f.message.partition(":")[0]) for f in loaded.findings]
    assert found[:-1] == [
        (2, "", "is a list, not an object"),
        (3, "output", "is missing"),
        (4, "instruction", "is empty"),
        (4, "output", "is missing"),
        (5, "output", "is a number, not text"),
        (6, "output", "is true, not text"),
        (7, "output", "is a list, not text"),
        (7, "input", "is an object, not text"),
        (8, "output", "holds half of a surrogate pair, which is no character"),
        (9, "", "is null, not an object"),
    ]
    assert found[-1][0] == 10  # Python refuses, or reads a number; either way no row
    assert all(finding.fatal for finding in loaded.findings)
    assert loaded.bad_rows == 9


def test_numbers_in_parquet_are_not_text_either(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"instruction": "q", "output": "a", "id": 1},
        {"instruction": "q", "output": "b", "id": 2},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    # a number in a column that nothing reads is none of our business
    loaded = load_rows(tmp_path / "a.parquet")
    assert loaded.rows == [{"instruction": "q", "output": "a"}, {"instruction": "q", "output": "b"}]
    with pytest.raises(FasttuneError, match="no row can be used") as caught:
        load_rows(tmp_path / "a.parquet", columns={"output": "id"})
    assert 'row 1, output: is a number, not text: write "1"' in caught.value.where


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no")
    with pytest.raises(FasttuneError, match="not Parquet"):
        load_rows(tmp_path / "a.parquet")


def test_optional_fields_may_be_absent_null_or_empty(tmp_path):
    rows = [
        {"instruction": "q", "output": "a", **more} for more in ({}, {"input": None}, {"input": ""})
    ]
    loaded = load_rows(write_jsonl(tmp_path / "a.jsonl", rows))
    assert loaded.rows == [
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "output": "a", "input": ""},
    ]


def test_invalid_utf8_in_jsonl(tmp_path):
    bad = b'{"instruction": "caf\xe9", "output": "a"}'
    loaded = load_rows(write_jsonl(tmp_path / "a.jsonl", [ROWS[0], ROWS[1], bad, ROWS[2]]))
    assert loaded.rows == ROWS
    assert loaded.findings == [Finding(3, "", "is not UTF-8: byte 0xe9 at position 21", fatal=True)]


def test_invalid_utf8_in_csv_does_not_put_quoting_out_of_step(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'instruction,output\n"one\ntw\xe9","x,\ny"\nq,a\n')
    loaded = load_rows(path)
    assert loaded.rows == [{"instruction": "q", "output": "a"}]
    assert numbers(loaded) == [5]
    assert [(f.row, f.message) for f in loaded.findings] == [
        (3, "is not UTF-8: byte 0xe9 at position 3")
    ]


def test_invalid_utf8_in_json_names_the_line(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[\n{"instruction": "\xff"}]')
    with pytest.raises(FasttuneError, match="not UTF-8") as caught:
        load_rows(tmp_path / "a.json")
    assert "line 2" in caught.value.where


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv"])
def test_byte_order_mark_is_accepted(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_rows(path).rows == ROWS


def test_csv_rows_with_too_many_or_too_few_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('instruction,output\nq,a\nq\n\nq,a,b\n"q,a\n')
    loaded = load_rows(path)
    assert loaded.rows == [{"instruction": "q", "output": "a"}]
    assert [(f.row, f.message) for f in loaded.findings] == [
        (3, "has 1 cell, the header has 2"),
        (5, "has 3 cells, the header has 2"),
        (6, "is not CSV: unexpected end of data"),
    ]


def test_csv_header_that_names_a_column_twice(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output,output\nq,a,b\n")
    with pytest.raises(FasttuneError, match="twice"):
        load_rows(tmp_path / "a.csv")


def test_csv_with_a_carriage_return_in_its_header(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"instruction,output\rq,a\r")
    with pytest.raises(FasttuneError, match="the header is not CSV"):
        load_rows(tmp_path / "a.csv")


def test_a_separator_is_told_once(tmp_path):
    (tmp_path / "a.csv").write_text("instruction;output\nq;a\n")
    with listening() as told:
        for _ in range(2):  # a template is chosen, then the rows are read
            assert load_rows(tmp_path / "a.csv").rows == [{"instruction": "q", "output": "a"}]
    assert [line for line in told if "separated by ';'" in line] == told


def test_csv_keeps_line_ends_and_long_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'instruction,output\r\n"a\r\nb",' + b"x" * 200_000 + b"\r\n")
    assert load_rows(path).rows == [{"instruction": "a\r\nb", "output": "x" * 200_000}]


def test_duplicates_are_a_warning(tmp_path):
    twin = {**ROWS[0], "id": "other"}
    loaded = load_rows(write_jsonl(tmp_path / "a.jsonl", [ROWS[0], ROWS[1], twin, ROWS[0]]))
    assert loaded.findings == [
        Finding(3, "", "repeats row 1", fatal=False),
        Finding(4, "", "repeats row 1", fatal=False),
    ]
    assert len(loaded.rows) == 4
    assert loaded.bad_rows == 0
    loaded.require_clean(skip_bad_rows=False)


def test_tag_in_a_field_the_template_reads(tmp_path, templates):
    rows = [
        {"instruction": "q", "output": "a", "reasoning": "r"},
        {"instruction": "q<|response|>", "output": "a", "reasoning": "<|system|>"},
        {"instruction": "q", "output": "a", "reasoning": "r", "text": "<|response|>"},
        {"instruction": "q", "output": "a", "reasoning": "r", "system": "<|context|>"},
    ]
    loaded = load_rows(write_jsonl(tmp_path / "a.jsonl", rows), templates["reasoning"])
    assert [(f.row, f.column, f.message) for f in loaded.findings if f.fatal] == [
        (2, "instruction", "contains the template's tag <|response|>"),
        (2, "reasoning", "contains the template's tag <|system|>"),
        (4, "system", "contains the template's tag <|context|>"),
    ]
    # the other template has other tags, and nothing but tags is wrong with the rows
    assert load_rows(tmp_path / "a.jsonl", templates["alpaca"]).bad_rows == 0


TITLED = Template(
    name="titled",
    columns=["title", "note"],
    parts=[
        given("title", "{title}\n"),
        given("note", "{note}\n", when="note"),
        learn("response", "{output}"),
    ],
)


def test_a_template_decides_which_columns_are_checked(tmp_path):
    rows = [
        {"title": "t", "output": "a", "reasoning": 3},
        {"title": 3, "output": "a"},
        {"output": "a"},
        {"title": "t", "note": ["x"], "output": "a"},
        {"title": "t", "note": "n", "output": "a"},
    ]
    loaded = load_rows(write_jsonl(tmp_path / "a.jsonl", rows), TITLED)
    assert loaded.rows == [{"title": "t", "output": "a"}, rows[4]]
    assert [(f.row, f.column, f.message) for f in loaded.findings] == [
        (2, "title", 'is a number, not text: write "3"'),
        (3, "title", "is missing"),
        (4, "note", "is a list, not text"),
    ]


def test_require_clean_lists_the_first_problems(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], *({"instruction": "q"} for _ in range(25))])
    with pytest.raises(FasttuneError, match=r"25 of 26 rows .* \(25 problems\)") as caught:
        load_rows(path).require_clean(skip_bad_rows=False)
    lines = caught.value.where.splitlines()
    assert lines[0] == str(path)
    assert lines[1] == "row 2, output: is missing"
    assert len(lines) == 12
    assert lines[-1] == "and 15 more"
    assert "data.skip_bad_rows=true" in caught.value.hint
    load_rows(path).require_clean(skip_bad_rows=True)


def test_nothing_usable(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [b"no", b"json"])
    with pytest.raises(FasttuneError, match="no row can be used") as caught:
        load_rows(path)
    assert "row 2: is not JSON" in caught.value.where


# Columns


def test_mapping_renames_and_keeps_other_text(tmp_path):
    rows = [{"question": "q", "answer": "a", "output": "raw", "id": "7", "n": 7}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    loaded = load_rows(path, columns={"instruction": "question", "output": "answer"})
    assert loaded.rows == [{"instruction": "q", "output": "a", "id": "7"}]
    swapped = load_rows(path, columns={"instruction": "output", "output": "question"})
    assert swapped.rows == [{"instruction": "raw", "output": "q", "answer": "a", "id": "7"}]


def test_mapped_column_that_does_not_exist(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "output": "a"}])
    with pytest.raises(FasttuneError, match="no column 'qestion'") as caught:
        load_rows(path, columns={"instruction": "qestion"})
    assert "did you mean 'question'" in caught.value.hint
    assert "output" in caught.value.hint


def test_required_column_that_no_row_has_is_one_error(tmp_path, templates):
    path = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "q", "output": "a"}] * 3)
    with pytest.raises(FasttuneError, match="no column 'reasoning'.*'reasoning' needs") as caught:
        load_rows(path, templates["reasoning"])
    assert "--map reasoning=" in caught.value.hint
    # a column that was mapped away is gone
    with pytest.raises(FasttuneError, match="no column 'output'"):
        load_rows(path, columns={"input": "output"})


def test_parse_columns():
    assert parse_columns([]) == {}
    assert parse_columns(["instruction=question", "output=a=b"]) == {
        "instruction": "question",
        "output": "a=b",
    }
    for bad in (["instruction"], ["=a"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(FasttuneError) as caught:
            parse_columns(bad)
        assert caught.value.where == bad[-1]


# Split and hash

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SOME_ROWS = st.lists(
    st.fixed_dictionaries({"instruction": TEXTS, "output": TEXTS}, optional={"input": TEXTS}),
    max_size=30,
)


def many(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"question {n}", "output": str(n)} for n in range(count)]


def sides(rows: list[dict[str, str]], fraction: float, seed: int = 0):
    return divide([digest(Row.of(row), seed) for row in rows], fraction)


def evaluated(rows: list[dict[str, str]], fraction: float, seed: int = 0) -> set[str]:
    return {json.dumps(rows[index], sort_keys=True) for index in sides(rows, fraction, seed)[1]}


@forall(SOME_ROWS, st.floats(0, 0.999), st.integers(), st.randoms(use_true_random=False))
def test_divide_depends_on_content_alone(rows, fraction, seed, rng):
    train, evaluation = sides(rows, fraction, seed)
    assert sorted(train + evaluation) == list(range(len(rows)))
    assert [*train] == sorted(train) and [*evaluation] == sorted(evaluation)
    before = evaluated(rows, fraction, seed)
    shuffled = [*rows, *many(5)]
    rng.shuffle(shuffled)
    assert before <= evaluated(shuffled, fraction, seed)
    # duplicates on the same side: no text is on both
    assert before.isdisjoint(json.dumps(rows[index], sort_keys=True) for index in train)


def test_divide_keeps_its_promise_across_versions():
    # A changed split would let a resumed run train on what it was evaluated on.
    assert sides(many(40), 0.1)[1].tolist() == [10]
    assert sides(many(40), 0.25)[1].tolist() == [5, 10, 12, 17, 18, 22, 25, 29, 32, 35]
    assert sides(many(40), 0.1, seed=1)[1] != sides(many(40), 0.1)[1]


def test_divide_ignores_extra_columns_and_absent_input():
    rows = many(200)
    more = [{**row, "input": "", "id": str(n)} for n, row in enumerate(rows)]
    assert sides(rows, 0.3) == sides(more, 0.3)


def test_divide_of_rows_without_an_instruction_uses_all_columns():
    rows = [{"title": f"title {n}", "output": "same"} for n in range(200)]
    assert 30 < len(sides(rows, 0.3)[1]) < 90


def test_divide_meets_the_fraction():
    rows = many(20_000)
    for fraction in (0.05, 0.5):
        share = len(sides(rows, fraction)[1]) / len(rows)
        assert abs(share - fraction) < 0.01  # three standard deviations at 0.5
    assert sides(rows, 0.0)[1].tolist() == []
    small, large = (set(sides(rows, fraction)[1]) for fraction in (0.05, 0.1))
    assert small < large


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_divide_refuses_a_fraction_that_is_none(fraction):
    with pytest.raises(FasttuneError, match="fraction"):
        sides(many(3), fraction)


def flat(rows: list[dict[str, str]]) -> list[Row]:
    return [Row.of(row) for row in rows]


def test_data_hash():
    rows = many(20)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert data_hash(flat(rows)) == data_hash(flat([dict(reversed(r.items())) for r in rows]))
    assert data_hash(flat(rows)) != data_hash(flat(shuffled))
    assert data_hash(flat(rows)) != data_hash(flat(rows[:-1]))
    assert data_hash(flat([{"a": "bc"}])) != data_hash(flat([{"ab": "c"}]))
    assert len(data_hash([])) == 64


ADD = {"instruction": "Add 2 and 3.", "input": "", "output": " 5\n"}
JAPAN = {"instruction": "日本の首都は？", "output": "東京 🗼", "reasoning": "考える。"}
JAPAN |= {"system": "Be brief.", "language": "ja", "id": "7"}
TALK = Row.of(ADD, [{"instruction": "Héllo.", "output": "Hi."}])


def test_digests_and_hashes_are_what_they_were():
    """Literal: a run that is resumed has to find the rows that it began with."""
    rows = [*flat([ADD, JAPAN, {"output": "b", "title": "a"}]), TALK]
    assert [digest(row) for row in rows] == [
        8052172964154266767, 5608034975075042774, 18339259455497690503, 3892585578478640333,
    ]  # fmt: skip
    assert [digest(row, 7) for row in rows] == [
        11595826614565781676, 11007892478734879964, 4093557335964570570, 16988528857657177587,
    ]  # fmt: skip
    assert data_hash([*rows[:2], TALK]) == (
        "9ebbcaf179f25b5226efe036dc912c13e072a623a955b30bf2635d5f1e2d6e75"
    )


def test_what_was_detected_is_no_part_of_a_row():
    detected = Row(TALK.turns, language="fr")
    assert detected["language"] == "fr" and "language" not in TALK
    assert detected == TALK and hash(detected) == hash(TALK)
    assert digest(detected) == digest(TALK) and data_hash([detected]) == data_hash([TALK])
    stated = Row(TALK.turns, columns={"language": "fr"})
    assert stated != TALK and data_hash([stated]) != data_hash([TALK])


# The shipped set


def test_shipped_rows_suit_every_built_in_template(templates):
    parts = {part: load_rows(shipped(part)) for part in ("train", "heldout")}
    for part, loaded in parts.items():
        assert loaded.findings == [], part
        for template in templates.values():
            assert load_rows(shipped(part), template).bad_rows == 0
    train = {(row["instruction"], row["input"]) for row in parts["train"].rows}
    assert not any((row["instruction"], row["input"]) in train for row in parts["heldout"].rows)


# Figures


def test_spread():
    figures = Spread.of([5, 1, 2, 4])
    assert (figures.min, figures.median, figures.p95, figures.max) == (1, 3, 5, 5)
    assert Spread.of(list(range(1, 101))).p95 == 95
    assert Spread.of([7]).p95 == 7


@forall(st.lists(st.integers(1, 5000), min_size=1))
def test_histogram_counts_every_value_once(values):
    bins = histogram(values)
    assert len(bins) <= 12
    for bin in bins:
        assert bin.rows == sum(bin.low <= value <= bin.high for value in values)
    assert sum(bin.rows for bin in bins) == len(values)
    assert bins[0].rows and bins[-1].rows
    assert all(left.high + 1 == right.low for left, right in zip(bins, bins[1:], strict=False))


def test_scripts():
    assert scripts("Add 2 + 3!") == {"Latin"}
    assert scripts("日本の首都、コーヒー々") == {"Han", "Kana"}
    assert scripts("한국어 и ＡＢＣ ελ") == {"Hangul", "Cyrillic", "Latin", "Greek"}
    assert scripts("1ª 2º 🗼 …") <= {"Latin"}


TALK_OF_ONE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("record", "columns", "template"),
    [
        ({}, {}, "alpaca"),
        ({"reasoning": "r"}, {}, "reasoning"),
        ({"reasoning": " ", "system": ""}, {}, "alpaca"),
        ({"thoughts": "r"}, {"reasoning": "thoughts"}, "reasoning"),
        ({"system": "Be brief."}, {}, "chatml"),
        ({"system": "Be brief.", "reasoning": "r"}, {}, "reasoning"),
        ({"messages": TALK_OF_ONE, "instruction": None}, {}, "chatml"),
        ({"talk": TALK_OF_ONE, "instruction": None}, {"messages": "talk"}, "chatml"),
        ({"history": [["a", "b"]]}, {}, "chatml"),
    ],
)
def test_the_template_that_rows_suggest(record, columns, template):
    records = [{"instruction": "q", "output": "a"}, "no row", {"instruction": "q", **record}]
    assert suggest_template(records, columns)[0] == template


def test_survey_counts_tokens_as_training_does(tmp_path, templates, phi2_tokenizer):
    from fasttune.encoding.encode import IGNORED, encode

    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"instruction": "q"}, ROWS[0]])
    found = load_divided(DataConfig(train=str(path), eval_fraction=0.5), templates["alpaca"])
    figures = survey(found, templates["alpaca"], phi2_tokenizer, 50, 0.5)
    encoded = [encode(templates["alpaca"], row, phi2_tokenizer) for row in [*ROWS, ROWS[0]]]
    lengths = [len(row) for row in encoded]
    trained = sum(label != IGNORED for row in encoded for label in row.labels)
    assert figures.tokens.total == sum(lengths)
    assert figures.tokens.trained_share == trained / sum(lengths)
    assert figures.tokens.overlong == sum(length > 50 for length in lengths) > 0
    assert (figures.good_rows, figures.bad_rows, figures.warnings) == (4, 1, 1)
    assert figures.train_rows + figures.eval_rows == 4
    assert figures.languages == {}
    assert figures.scripts == {"Latin": 3, "Han": 1, "Kana": 1}
    assert figures.columns["input"].rows == 1
    assert figures.columns["output"].characters.max == 6
    json.dumps(asdict(figures))


# What reading does not do: render, or lay the run's system text over rows


def test_reading_renders_nothing(tmp_path, monkeypatch, templates):
    monkeypatch.setattr(Template, "segments", None)
    path = write_jsonl(tmp_path / "a.jsonl", [*many(40), {"instruction": "no output"}])
    found = load_divided(DataConfig(train=str(path), eval_fraction=0.25), templates["alpaca"])
    assert (len(found.train), len(found.eval), found.sources[0].bad_rows) == (30, 10, 1)


def test_the_system_text_of_a_run_moves_no_row(tmp_path):
    rows = [{"title": f"title {n}", "output": "same", "system": f"{n}"} for n in range(200)]
    template = Template(
        name="titled",
        system="Be brief.",
        columns=["title"],
        parts=[given("system", "{system}\n{title}\n"), learn("response", "{output}")],
    )
    data = DataConfig(train=str(write_jsonl(tmp_path / "a.jsonl", rows)), eval_fraction=0.3)
    kind = template.with_system("Be kind.")
    found = load_divided(data, kind)
    for side, places in zip((found.train, found.eval), sides(rows, 0.3), strict=True):
        assert side == [rows[at] for at in places]
        assert [template.render(row) for row in side] == [
            f"{at}\ntitle {at}\nsame" for at in places
        ]
        assert [kind.render(row) for row in side] == [
            f"Be kind.\ntitle {at}\nsame" for at in places
        ]


# The language of a row


def test_the_language_is_detected_once_while_reading(tmp_path, templates, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "fasttune.data.check.detect_language",
        lambda text: asked.append(text) or ("ja" if "日" in text else None),
    )
    rows = [
        ROWS[2],
        {**ROWS[2], "language": "fr"},
        {**ROWS[2], "language": ""},
        {"instruction": "5 + 5?", "output": "10"},
        {"instruction": "日本", "output": ""},  # cannot be used, so it does not count
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with listening() as said:
        loaded = load_rows(path, templates["multilingual"])
    assert asked == [ROWS[2]["instruction"]] * 2 + ["5 + 5?", "日本"]
    assert [row.language for row in loaded.rows] == ["ja", "", "ja", ""]
    assert said == [
        f"{path}: the language of 2 of 4 rows was detected: they have no column 'language'",
        f"warning: {path}: multilingual has no text in the language of 1 of 4 rows: unknown 1; "
        "default text used",
    ]
    texts = [templates["multilingual"].prompt(row) for row in loaded.rows]
    assert [text.split("\n")[0] for text in texts] == [
        "<|system|>あなたは親切なアシスタントです。日本語で答えてください。",
        "<|system|>Tu es un assistant serviable. Réponds en français.",
        "<|system|>あなたは親切なアシスタントです。日本語で答えてください。",
        "<|system|>You are a helpful assistant. Answer in the language of the instruction.",
    ]
    assert loaded.rows == flat(rows[:4]) and len(asked) == 4  # rendering asks for nothing
    assert loaded.digests[0] == loaded.digests[2]
    with listening() as said:
        other = load_rows(path, templates["reasoning"], required=("instruction", "output"))
    assert len(asked) == 4 and said == [] and {row.language for row in other.rows} == {""}


@pytest.mark.parametrize(
    ("count", "settings", "notes"),
    [
        (60, {}, ["only 1 row is held out: data.eval_fraction=0.34 holds out about 20"]),
        (
            8,
            {"eval_fraction": 0.0},
            ["no row is held out: data.eval_fraction=0.5 holds out about 4"],
        ),
        (8, {"eval_fraction": 0.5}, ["only 4 rows are held out: use more rows"]),
        (600, {}, []),
    ],
)
def test_few_held_out_rows_are_noted(tmp_path, count, settings, notes):
    data = DataConfig(train=str(write_jsonl(tmp_path / "rows.jsonl", rows(count))), **settings)
    divided = load_divided(data, load_plugins().template("alpaca"))
    assert divided.notes(data.eval_fraction) == notes, len(divided.eval)


def test_held_out_rows_that_are_training_rows_are_counted(tmp_path):
    train, other = rows(40), [*rows(40)[:25], *rows(60)[50:]]
    data = DataConfig(
        train=str(write_jsonl(tmp_path / "train.jsonl", train)),
        eval=str(write_jsonl(tmp_path / "eval.jsonl", other)),
    )
    notes = load_divided(data, load_plugins().template("alpaca")).notes(data.eval_fraction)
    assert notes == ["25 of 35 held-out rows are training rows as well"]
