"""Several sources as one, splits, and what is left out of them."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttune.config import RunConfig, SourceConfig, dump_config, in_full, load_config
from fasttune.data.divide import load_divided
from fasttune.data.mix import amounts, interleaved
from fasttune.errors import FasttuneError
from fasttune.inspection.near import near_duplicates
from fasttune.inspection.survey import survey
from fasttune.plugins.discovery import load_plugins
from tests.conftest import cli, listening, rows, write_rows


@pytest.fixture(scope="module")
def alpaca():
    return load_plugins().template("alpaca")


def some(source: str, count: int) -> list[dict[str, str]]:
    return [
        {"instruction": f"{source} {n}", "output": f"{n}", "from": source} for n in range(count)
    ]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 90), ("b", 40), ("c", 7)):
        write_rows(tmp_path / f"{name}.jsonl", some(name, count))
    return tmp_path


def config(**data) -> RunConfig:
    return load_config(None, [(f"data.{key}", value) for key, value in data.items()])


def mixed(alpaca, *sources, **data) -> list[str]:
    """The instructions of all rows."""
    settings = config(sources=list(sources), eval_fraction=0, **data)
    return [row["instruction"] for row in load_divided(settings.data, alpaca).train]


# How many of each, and in which order


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 300)), min_size=1, max_size=5))
def test_weights_are_met_as_nearly_as_whole_rows_can(pairs):
    sources = [SourceConfig(str(n), weight=float(w)) for n, (w, _) in enumerate(pairs)]
    have = [count for _, count in pairs]
    try:
        taken = amounts(sources, have)
    except FasttuneError as error:
        assert "no row of the source is left" in error.message
        return
    total, weights = sum(taken), sum(w for w, _ in pairs)
    for got, (weight, count) in zip(taken, pairs, strict=True):
        assert abs(got - Fraction(total * weight, weights)) < 1 and 0 < got <= count
    more = [Fraction((total + 1) * w, weights) > count for w, count in pairs]
    assert any(more)  # one more row would use a source up


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_every_beginning_holds_the_shares(counts):
    rows = [(source, place) for source, count in enumerate(counts) for place in range(count)]
    order = [rows[at] for at in interleaved(counts)]
    assert Counter(source for source, _ in order) == dict(enumerate(counts))
    seen = Counter()
    for length, (source, place) in enumerate(order, 1):
        assert place == seen[source]  # each in its own order
        seen[source] += 1
        for each, count in enumerate(counts):
            assert abs(seen[each] - Fraction(length * count, sum(counts))) <= len(counts)


def test_weights_counts_and_whole_sources(files, alpaca):
    by_weight = mixed(alpaca, {"name": "a.jsonl", "weight": 2}, {"name": "b.jsonl", "weight": 1})
    assert Counter(text[0] for text in by_weight) == {"a": 80, "b": 40}
    assert (
        len({*by_weight}) == 120
        and [text[0] for text in by_weight[:6]] == [*"aabaab"]
        or (Counter(text[0] for text in by_weight[:6]) == {"a": 4, "b": 2})
    )
    assert by_weight == mixed(
        alpaca, {"name": "a.jsonl", "weight": 0.5}, {"name": "b.jsonl", "weight": 0.25}
    )
    by_count = mixed(alpaca, {"name": "a.jsonl", "count": 9}, "c.jsonl")
    assert Counter(text[0] for text in by_count) == {"a": 9, "c": 7}
    assert [text for text in by_count if text[0] == "a"] == [f"a {n}" for n in range(0, 90, 10)]


def test_a_mix_is_divided_named_and_hashed_as_any_rows(files, alpaca):
    sources = [{"name": "a.jsonl", "count": 50}, {"name": "b.jsonl", "columns": {"note": "from"}}]
    found = load_divided(config(sources=sources, eval_fraction=0.2).data, alpaca)
    assert len(found.train) + len(found.eval) == 90 and len(found.eval) > 5
    (loaded,) = found.sources
    assert loaded.source == "a.jsonl (50 rows), b.jsonl (40 rows)"
    assert {row.get("note") for row in loaded.rows} == {None, "b"}
    again = load_divided(config(sources=sources, eval_fraction=0.2).data, alpaca)
    assert again.train == found.train and again.eval == found.eval


def test_problems_name_their_source(files, alpaca):
    write_rows(files / "bad.jsonl", [*some("d", 2), {"instruction": "", "output": "x"}])
    found = load_divided(config(sources=["c.jsonl", "bad.jsonl"]).data, alpaca)
    assert found.sources[0].bad_rows == 1
    with pytest.raises(FasttuneError, match="1 of 10 rows cannot be used") as caught:
        found.sources[0].require_clean(skip_bad_rows=False)
    assert "bad.jsonl, row 3, instruction" in caught.value.where
    ended = cli("data", "-c", write_config(files, sources=["c.jsonl", "bad.jsonl"]), "-t", "alpaca")
    assert ended.status == 2 and "bad.jsonl, row 3" in ended.err


def test_remarks_on_rows_of_several_sources_name_theirs(files, alpaca):
    text = "The same long question about the same thing, in nearly the same words"
    one = {"instruction": f"{text}.", "input": "x", "output": "y"}
    for name in ("one.jsonl", "two.jsonl"):
        write_rows(files / name, [*some(name, 1), {**one, "instruction": f"{text}, {name[0]}"}])
    asked = ("data", "-c", write_config(files, sources=["one.jsonl", "two.jsonl"], eval_fraction=0))
    found = json.loads(cli(*asked, "--json").out)
    remarks = [(each["source"], each["row"], each["column"]) for each in found["problems"]]
    assert remarks == [("one.jsonl", 2, "input"), ("two.jsonl", 2, "input")]
    assert found["near"] == {"rows": 1, "examples": [["two.jsonl 2", "one.jsonl 2"]]}
    shown = cli(*asked).out
    assert "two.jsonl 2 is like one.jsonl 2" in shown
    assert [line.split()[:3] for line in shown.splitlines() if "warning:" in line] == [
        ["one.jsonl", "2", "input"],
        ["two.jsonl", "2", "input"],
    ]


def write_config(folder, **data):
    file = folder / "some.yaml"
    file.write_text(json.dumps({"data": data, "template": "alpaca"}))
    return file


@pytest.mark.parametrize(
    ("sources", "more", "why"),
    [
        ([{"name": "c.jsonl", "count": 8}], {}, "there are 7 good rows, and 8 are to be taken"),
        ([{"name": "a.jsonl", "weight": 100}, {"name": "c.jsonl", "weight": 0.1}], {},
         "no row of the source is left at this weight"),
        (["a.jsonl"], {"train": "b.jsonl"}, "data.train and data.sources are both given"),
        (["a.jsonl"], {"eval_split": "test"},
         "data.eval_split cannot be combined with data.sources"),
        (["none.jsonl"], {}, "no such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed(files, alpaca, sources, more, why):
    with pytest.raises(FasttuneError, match=why):
        load_divided(config(sources=sources, **more).data, alpaca)


@pytest.mark.parametrize(
    ("sources", "why"),
    [
        ([{"name": "a", "weight": 1}, "b"], "a weight for each source, or for none"),
        ([{"name": "a", "weight": 1, "count": 2}], "'data.sources' is ['a']"),
        ([{"name": "a", "weight": 0}], "a weight above 0"),
        ([{"name": "a", "count": 0}], "a count of 1 or more"),
        ([{"weight": 1}], "sources that have a name"),
        ([{"name": "a", "wieght": 1}], "there is no setting 'data.sources.wieght'"),
        ([3], "'data.sources' holds 3"),
        ("a.jsonl", "a list"),
        (3, "a list"),
    ],
)
def test_sources_that_are_no_settings(sources, why):
    with pytest.raises(FasttuneError) as caught:
        config(sources=sources)
    assert why in str(caught.value)


def test_sources_come_back_from_yaml_and_are_kept_in_full(files):
    made = config(sources=["a.jsonl", {"name": "owner/set", "split": "test", "count": 3}])
    (files / "again.yaml").write_text(dump_config(made))
    assert load_config(files / "again.yaml") == made
    full = in_full(made)
    assert [s.name for s in full.data.sources] == [str(files / "a.jsonl"), "owner/set"]
    assert load_config(None, base=made) == made
    printed = cli("config", "data.sources=[a.jsonl, {name: b.jsonl}]", "--json")
    assert [s["name"] for s in json.loads(printed.out)["data"]["sources"]] == ["a.jsonl", "b.jsonl"]


# Splits


@pytest.fixture
def parts(tmp_path):
    """A folder with a file for each split, and a saved data set with the same."""
    import datasets

    folder = tmp_path / "parts"
    folder.mkdir()
    write_rows(folder / "train.jsonl", some("a", 5))
    write_rows(folder / "test.jsonl", some("b", 3))
    saved = datasets.DatasetDict(
        train=datasets.Dataset.from_list(some("a", 5)),
        test=datasets.Dataset.from_list(some("b", 3)),
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    return tmp_path


@pytest.mark.parametrize("name", ["parts", "saved"])
def test_a_split_to_train_on_and_one_to_hold_out(parts, alpaca, name):
    found = load_divided(config(train=str(parts / name), eval_split="test").data, alpaca)
    assert [r["from"] for r in found.train] == ["a"] * 5
    assert [r["from"] for r in found.eval] == ["b"] * 3
    only = load_divided(config(train=str(parts / name), split="test", eval_fraction=0).data, alpaca)
    assert [r["from"] for r in only.train] == ["b"] * 3
    other = parts / "parts" / "train.jsonl"
    held = load_divided(
        config(train=str(other), eval=str(parts / name), eval_split="test").data, alpaca
    )
    assert [r["from"] for r in held.eval] == ["b"] * 3


def test_a_split_of_the_hub(alpaca, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, configuration, split):
        asked.append((name, configuration, split))
        return datasets.Dataset.from_list(some(split, 4))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = config(train="owner/set:main", split="validation", eval_split="test").data
    found = load_divided(data, alpaca)
    assert asked == [("owner/set", "main", "validation"), ("owner/set", "main", "test")]
    assert {r["from"] for r in found.eval} == {"test"}


def test_a_split_that_is_not_there(parts, alpaca):
    file = parts / "parts/train.jsonl"
    for data, why in (
        (config(train=str(file), split="test"), "a file has no split 'test'"),
        (config(train=str(parts / "parts"), split="dev"), "the folder holds no data set"),
        (config(train=str(parts / "saved"), eval_split="dev"), "there is no split 'dev'"),
    ):
        with pytest.raises(FasttuneError, match=why):
            load_divided(data.data, alpaca)
    (parts / "parts/train.csv").write_text("instruction,output\na,b\n")
    with pytest.raises(FasttuneError, match="'train' is there twice"):
        load_divided(config(train=str(parts / "parts")).data, alpaca)


# Repeats


def test_exact_repeats_are_left_out_on_request(files, alpaca):
    write_rows(files / "twice.jsonl", [*some("c", 3), *some("d", 2), some("d", 1)[0]])

    def loaded(**data):
        return load_divided(config(eval_fraction=0, **data).data, alpaca)

    assert len(loaded(train="twice.jsonl").train) == 6
    with listening() as said:
        once = loaded(train="twice.jsonl", drop_duplicates=True)
    assert [r["instruction"] for r in once.train] == ["c 0", "c 1", "c 2", "d 0", "d 1"]
    assert said == [
        "twice.jsonl: rows with text that alpaca does not read: from 6",
        "twice.jsonl: 1 rows that repeat earlier ones are left out",
    ]
    assert once.sources[0].findings == []
    assert [once.train.number(at) for at in range(5)] == [1, 2, 3, 4, 5]
    several = loaded(sources=["c.jsonl", "twice.jsonl"], drop_duplicates=True)
    assert Counter(r["from"] for r in several.train) == {"c": 7, "d": 2}
    with pytest.raises(FasttuneError, match="every row repeats"):
        loaded(sources=["a.jsonl", "a.jsonl"], drop_duplicates=True)


def test_rows_that_nearly_repeat_are_counted(tmp_path, alpaca):
    pytest.importorskip("datasketch")
    long = "How many days are in " + " and ".join(f"week {n} of the year" for n in range(20))
    alike = [
        {"instruction": long, "output": "140"},
        {"instruction": long.upper() + "?", "output": "140"},
        {"instruction": long, "output": "140"},  # exactly
        {"instruction": "Something else altogether, of which nothing is above.", "output": "x"},
    ]
    file = write_rows(tmp_path / "rows.jsonl", alike)
    found = near_duplicates(load_divided(config(train=str(file)).data, alpaca).sources[0])
    assert (found.rows, found.examples) == (1, [("2", "1")])
    shown = json.loads(cli("data", file, "--json", "-t", "alpaca").out)
    assert shown["near"] == {"rows": 1, "examples": [["2", "1"]]}
    assert json.loads(cli("data", file, "--json", "--no-near").out)["near"] is None


def test_without_the_library_near_repeats_are_an_error_only_where_asked_for(tmp_path, monkeypatch):
    for module in ("near", "survey"):
        monkeypatch.setattr(f"fasttune.inspection.{module}.can_count", lambda: False)
    file = write_rows(tmp_path / "rows.jsonl", rows(5))
    assert "not counted: pip install datasketch" in cli("data", file).out
    ended = cli("data", file, "--near")
    assert ended.status == 2 and "pip install datasketch" in ended.err


# One character of input


@pytest.mark.parametrize("name", ["alpaca", "reasoning", "multilingual"])
def test_an_input_of_one_character_is_a_warning(tmp_path, name, phi2_tokenizer):
    template = load_plugins().template(name)
    short = [
        {**row, "input": text} for row, text in zip(rows(4), ["x", "xy", "", "日"], strict=True)
    ]
    file = write_rows(tmp_path / "rows.jsonl", short)
    figures = survey(
        load_divided(config(train=str(file)).data, template), template, phi2_tokenizer, 1024, 0.05
    )
    assert [(p.row, p.column, p.fatal) for p in figures.problems] == [
        (1, "input", False), (4, "input", False),
    ]  # fmt: skip
    assert "leaves that out of the prompt" in figures.problems[0].message


def test_a_template_that_takes_one_character_gives_no_warning(tmp_path, phi2_tokenizer):
    from fasttune import Template, learn
    from fasttune import given as prompt

    parts = [prompt("question", "{instruction} {input}\n"), learn("answer", "{output}")]
    every = Template(name="every", parts=parts)
    file = write_rows(tmp_path / "rows.jsonl", [{**rows(1)[0], "input": "x"}])
    found = load_divided(config(train=str(file)).data, every)
    assert survey(found, every, phi2_tokenizer, 1024, 0.05).problems == []
