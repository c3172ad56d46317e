"""Encoded rows on disk and their cache."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time

import pytest
from msgspec import structs

from fasttune import FasttuneError, Template, choose, given, learn
from fasttune.config import load_config
from fasttune.data.rows import StoredRows
from fasttune.encoding import cache as module
from fasttune.encoding.batches import section_names, trainer_dataset
from fasttune.encoding.cache import cache_key, cached, encode_rows, store, without_ending
from fasttune.encoding.encode import IGNORED, encode
from fasttune.formats.row import Row
from fasttune.plugins.discovery import load_plugin
from tests.conftest import build_phi2_tokenizer, listening

PLAIN = Template(
    name="plain",
    parts=[
        given("instruction", "Q: {instruction}\nA: "),
        learn("reasoning", "({reasoning}) ", when="reasoning"),
        learn("response", "{output}"),
    ],
)


ROWS = [
    {"instruction": f"{n} + 1?", "reasoning": "Count." * (n % 2), "output": str(n + 1)}
    for n in range(300)
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


def made(rows, tokenizer, template=None, *settings):
    """The encoded rows, and what was said."""
    stored = StoredRows()
    for row in rows:
        stored.append(row)
    config = load_config(None, [("template", "reasoning"), *settings])
    with listening() as said:
        found = encode_rows(template or PLAIN, stored, tokenizer, config, "training")
    return found, said


def test_rows_come_back_as_they_were(phi2_tokenizer):
    expected = [encode(PLAIN, row, phi2_tokenizer) for row in ROWS]
    found, said = made(ROWS, phi2_tokenizer)
    assert list(found) == expected and said == []
    assert found[299] == found[-1] == expected[-1] and found[127:130] == expected[127:130]
    assert found.tokens == sum(map(len, expected))
    assert found.sections == section_names(expected) == ["response", "eos", "reasoning"]
    assert list(pickle.loads(pickle.dumps(found))) == expected
    with pytest.raises(IndexError):
        found[300]


def test_what_the_trainer_gets(phi2_tokenizer):
    dataset = trainer_dataset(made(ROWS, phi2_tokenizer)[0])
    assert len(dataset) == 300 and dataset.column_names == ["place"]
    assert dataset[[299, 0, 128]] == {"place": [299, 0, 128]}


def test_eos_need_not_be_learned(phi2_tokenizer):
    learned, _ = made(ROWS, phi2_tokenizer)
    not_learned, _ = made(ROWS, phi2_tokenizer, None, ("train.learn_eos", False))
    eos = phi2_tokenizer.eos_token_id
    assert "eos" in learned.sections and "eos" not in not_learned.sections
    for row, other in zip(learned, not_learned, strict=True):
        assert row.input_ids == other.input_ids and other.input_ids[-1] == eos
        assert row.labels == [*other.labels[:-1], eos] and other.labels[-1] == IGNORED


def test_the_second_time_they_come_from_the_cache(phi2_tokenizer, monkeypatch):
    first, said = made(ROWS, phi2_tokenizer)
    monkeypatch.setattr("fasttune.encoding.cache.encode_many", None)  # nothing is tokenized
    # A tokenizer that was loaded anew, and has not yet encoded anything.
    second, said = made(ROWS, build_phi2_tokenizer())
    assert said == ["300 training rows from the cache"]
    assert list(second) == list(first) and second.sections == first.sections


def test_nothing_else_that_decides_is_forgotten(phi2_tokenizer, cache):
    def files(*arguments):
        made(*arguments)
        return len(list(cache.glob("*.arrow")))

    other = build_phi2_tokenizer()
    other.add_tokens(["Count"])
    stopping = build_phi2_tokenizer()
    stopping.eos_token = "  "
    assert files(ROWS, phi2_tokenizer) == 1
    assert files(ROWS[1:], phi2_tokenizer) == 2
    assert files([*ROWS[1:], ROWS[0]], phi2_tokenizer) == 3
    assert files(ROWS, other) == 4
    assert files(ROWS, stopping) == 5
    assert files(ROWS, phi2_tokenizer, None, ("model.max_length", 20)) == 6
    assert (
        files(ROWS, phi2_tokenizer, None, ("model.max_length", 20), ("data.overlong", "error")) == 7
    )
    assert files(ROWS, phi2_tokenizer) == 7


ASKED, THOUGHT, ANSWERED = PLAIN.parts
CHANGES = {
    "text": {"parts": [given("instruction", "Question: {instruction}\nA: "), THOUGHT, ANSWERED]},
    "mask": {"parts": [ASKED, learn("reasoning", "({reasoning}) ", unless="input"), ANSWERED]},
    "section": {"parts": [ASKED, learn("thought", "({reasoning}) ", when="reasoning"), ANSWERED]},
    "turns": {"conversations": True},
    "end": {"end": "<|endoftext|>"},
    "system": {"system": "Be brief."},
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_declaration_is_encoded_anew(phi2_tokenizer, change):
    edited = structs.replace(PLAIN, **CHANGES[change])
    made(ROWS, phi2_tokenizer)
    found, said = made(ROWS, phi2_tokenizer, edited)
    assert said == [] and list(found) == [encode(edited, row, phi2_tokenizer) for row in ROWS]


def test_another_name_is_no_other_format(phi2_tokenizer):
    made(ROWS, phi2_tokenizer)
    renamed = structs.replace(PLAIN, name="other", description="Other.")
    assert made(ROWS, phi2_tokenizer, renamed)[1] == ["300 training rows from the cache"]


SPOKEN = Template(
    name="spoken",
    system=choose("language", {"en": "Hi.", "ja": "やあ。"}, default="en"),
    parts=[given("system", "{system} {instruction}\n"), learn("response", "{output}")],
)


def test_a_row_s_system_text_and_language_decide(phi2_tokenizer):
    row = Row.of(ROWS[0])
    for other in (
        row,
        row.in_language("ja"),
        row.with_turn({"system": "Be brief."}),
        row.with_turn({"language": "ja"}),
        Row.of(ROWS[0], [{"instruction": "Hi.", "output": "Hello."}]),
    ):
        found, said = made([other], phi2_tokenizer, SPOKEN)
        assert said == [] and list(found) == [encode(SPOKEN, other, phi2_tokenizer)]
        assert made([other], phi2_tokenizer, SPOKEN)[1] == ["1 training rows from the cache"]


def test_the_system_text_of_a_run_decides(phi2_tokenizer):
    made(ROWS[:1], phi2_tokenizer, SPOKEN)
    kind = SPOKEN.with_system("Be kind.")
    found, said = made(ROWS[:1], phi2_tokenizer, kind)
    assert said == [] and list(found) == [encode(kind, ROWS[0], phi2_tokenizer)]


def test_a_language_decides_nothing_where_no_text_is_chosen_by_it(phi2_tokenizer):
    made([Row.of(ROWS[0])], phi2_tokenizer)
    said = made([Row.of(ROWS[0]).in_language("ja")], phi2_tokenizer)[1]
    assert said == ["1 training rows from the cache"]


CODE = """
from fasttune import Segment, Template, hookimpl
import HELPER

class Computed(Template):
    def segments(self, row):
        yield Segment("instruction", HELPER.ASK + row["instruction"], False)
        yield Segment("response", row["output"], True)

@hookimpl
def register_templates():
    return [Computed(name="computed")]
"""


def test_computed_text_decides_itself(phi2_tokenizer, tmp_path, monkeypatch):
    """Its code may import other code, which no hash of its own file holds."""
    monkeypatch.syspath_prepend(tmp_path)

    def texts(code, helper, ask):
        (tmp_path / f"{helper}.py").write_text(f"ASK = {ask!r}")
        (tmp_path / "computed.py").write_text(code.replace("HELPER", helper))
        template = load_plugin(tmp_path / "computed.py").template("computed")
        found, said = made(ROWS[:2], phi2_tokenizer, template)
        return phi2_tokenizer.decode(found[1].input_ids), said

    cached = ["2 training rows from the cache"]
    assert texts(CODE, "first_helper", "Q: ") == ("Q: 1 + 1?2<|endoftext|>", [])
    assert texts(CODE, "first_helper", "Q: ") == ("Q: 1 + 1?2<|endoftext|>", cached)
    monkeypatch.delitem(sys.modules, "first_helper")
    assert texts(CODE, "second_helper", "A: ") == ("A: 1 + 1?2<|endoftext|>", [])
    edited = CODE.replace("yield Segment", 'row = {**row, "output": "-"}; yield Segment', 1)
    assert texts(edited, "second_helper", "A: ") == ("A: 1 + 1?-<|endoftext|>", [])


@pytest.mark.parametrize("times", [1, 2])
def test_what_became_of_overlong_rows_is_said_on_a_hit_too(phi2_tokenizer, times):
    rows = [
        *ROWS[:3],
        {"instruction": "x" * 99, "output": "y"},
        {"instruction": "1?", "output": "2 " * 30},
    ]
    settings = (("model.max_length", 20), ("data.overlong", "truncate"))
    for _ in range(times):
        found, said = made(rows, phi2_tokenizer, None, *settings)
    assert said[times - 1 :] == [
        "dropped 1 of 5 training rows: over 20 tokens",
        "truncated 1 of 5 training rows: over 20 tokens",
    ]
    assert len(found) == 4 and len(found[3]) == 20 and found.places == [0, 1, 2, 4]


def test_an_overlong_row_is_named_by_its_place(phi2_tokenizer, cache, monkeypatch):
    monkeypatch.setattr("fasttune.encoding.encode.BATCH", 2)
    rows = [*ROWS[:3], {"instruction": "x" * 99, "output": "y"}]
    with pytest.raises(FasttuneError, match="more than 20") as caught:
        made(rows, phi2_tokenizer, None, ("model.max_length", 20), ("data.overlong", "error"))
    assert caught.value.where == "row 4"
    assert list(cache.iterdir()) == []  # nothing half written


def test_rows_that_hold_eos(phi2_tokenizer):
    rows = [ROWS[0], {"instruction": "<|endoftext|>?", "output": "x"}, ROWS[1]]
    with pytest.raises(FasttuneError, match="1 of 3 training rows hold the text <") as caught:
        made(rows, phi2_tokenizer)
    assert "<|endoftext|>?" in caught.value.where
    found, said = made(rows, phi2_tokenizer, None, ("data.skip_bad_rows", True))
    assert found.places == [0, 2]
    assert said == ["left out 1 of 3 training rows: they hold the text <|endoftext|>"]
    assert list(found) == [encode(PLAIN, row, phi2_tokenizer) for row in ROWS[:2]]


def test_rows_that_hold_eos_are_not_asked(phi2_tokenizer):
    rows = StoredRows()
    for row in (ROWS[0], {"instruction": "<|endoftext|>?", "output": "x"}, ROWS[1]):
        rows.append(row)
    skipping = load_config(None, [("data.skip_bad_rows", True)])
    assert without_ending(rows, phi2_tokenizer, skipping) == [ROWS[0], ROWS[1]]
    assert without_ending(rows, phi2_tokenizer, load_config()) is rows


def test_no_rows(phi2_tokenizer):
    found, said = made([], phi2_tokenizer)
    assert not found and list(found) == [] and found.tokens == 0 and found.sections == []
    assert made([], phi2_tokenizer)[1] == said == []
    with pytest.raises(FasttuneError, match="no training row has 3 tokens or fewer"):
        made(ROWS, phi2_tokenizer, None, ("model.max_length", 3))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".arrow", cut),
        (".arrow", flip),
        (".arrow", lambda path: path.write_bytes(b"")),
        (".arrow", lambda path: path.unlink()),
        (".json", lambda path: path.write_text("{")),
        (".json", lambda path: path.write_text("[]")),
        (".json", lambda path: path.write_text("{}")),
        (".json", lambda path: path.unlink()),
    ],
)
def test_a_damaged_file_is_made_again(phi2_tokenizer, cache, suffix, damage):
    first, _ = made(ROWS, phi2_tokenizer)
    expected = list(first)
    (path,) = cache.glob(f"*{suffix}")
    damage(path)
    found, said = made(ROWS, phi2_tokenizer)
    assert said == [] and list(found) == expected
    assert made(ROWS, phi2_tokenizer)[1] == ["300 training rows from the cache"]


def test_rows_stay_readable_while_they_are_replaced_or_removed(phi2_tokenizer, cache):
    rows = [encode(PLAIN, row, phi2_tokenizer) for row in ROWS]
    first = store("key", enumerate(rows), {})
    second = store("key", enumerate(rows), {})  # as another process would
    for path in cache.iterdir():
        path.unlink()
    assert list(first) == list(second) == rows


def test_the_cache_is_bounded(phi2_tokenizer, cache, monkeypatch):
    rows = [encode(PLAIN, row, phi2_tokenizer) for row in ROWS]
    for age, key in enumerate(("first", "second", "third")):
        store(key, enumerate(rows), {})
        os.utime(cache / f"{key}.arrow", (age, age))
    assert cached("first")  # which makes it the one used last
    size = (cache / "first.arrow").stat().st_size
    monkeypatch.setattr(module, "CACHE_LIMIT", 2 * size)
    store("fourth", enumerate(rows), {})
    assert sorted(path.name for path in cache.iterdir()) == [
        "first.arrow", "first.json", "fourth.arrow", "fourth.json",
    ]  # fmt: skip
    monkeypatch.setattr(module, "CACHE_LIMIT", 0)
    assert len(store("fifth", enumerate(rows), {})) == 300  # what was just made stays
    assert cached("fifth") and not cached("fourth")


def test_what_a_killed_process_left_half_written_goes(phi2_tokenizer, cache):
    rows = [encode(PLAIN, row, phi2_tokenizer) for row in ROWS]
    store("key", enumerate(rows), {})
    for name, days in ((".a.7.tmp.arrow", 2), (".a.json.7.tmp.json", 2), (".b.8.tmp.arrow", 0)):
        (cache / name).touch()
        os.utime(cache / name, (time.time() - days * 86400,) * 2)
    store("key", enumerate(rows), {})
    assert sorted(path.name for path in cache.iterdir()) == [
        ".b.8.tmp.arrow", "key.arrow", "key.json",
    ]  # fmt: skip


STORING = """
import sys
from fasttune.encoding.cache import cached, store
from fasttune.encoding.encode import Encoded, Span
rows = [(at, Encoded([at, 1, 2], [Span("all", 0, 3, True)], 1)) for at in range(500)]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    assert len(store("key", rows, {"dropped": 0})) == 500
    found = cached("key")
    assert found is None or [row.input_ids[0] for row in found] == list(range(500))
print("done")
"""


def test_two_processes_store_the_same_rows_at_once(cache):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STORING], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=os.environ | {"FASTTUNE_CACHE": str(cache.parent)},
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["done\n", "done\n"]
    assert len(cached("key")) == 500
    assert sorted(path.name for path in cache.iterdir()) == ["key.arrow", "key.json"]


def test_a_cache_that_cannot_be_written(phi2_tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(FasttuneError, match="cannot be written") as caught:
        made(ROWS, phi2_tokenizer)
    assert "FASTTUNE_CACHE" in caught.value.hint


def test_the_key_is_a_hash_of_values(phi2_tokenizer):
    key = cache_key(phi2_tokenizer, "a", 1)
    assert key == cache_key(phi2_tokenizer, "a", 1) and len(key) == 64
    assert key != cache_key(phi2_tokenizer, "a", 2)
