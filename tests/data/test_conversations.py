"""Conversations as files hold them: read, refused with a reason, and as rows of exchanges."""

from __future__ import annotations

import json

import pytest
from fasttune_plugins.alpaca import ALPACA
from fasttune_plugins.chatml import CHATML
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttune.config import DataConfig
from fasttune.data.conversations import from_messages, readable
from fasttune.data.divide import load_divided
from fasttune.data.load import load_rows, parse_columns
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.plugins.discovery import load_plugins
from tests.conftest import PHI2, cli, listening, write_rows

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Add 2 and 3."},
    {"role": "assistant", "content": "5"},
]
NAMES = {"user": "human", "assistant": "gpt", "system": "system"}
SHAREGPT = [{"from": NAMES[m["role"]], "value": m["content"]} for m in TALK]
HI = {"instruction": "Hi.", "output": "Hello."}
ROW = Row([HI, {"instruction": "Add 2 and 3.", "output": "5"}], "Be brief.")


@pytest.mark.parametrize(
    ("record", "form"),
    [
        ({"messages": TALK}, "messages (role, content)"),
        ({"conversations": SHAREGPT}, "conversations (from, value)"),
        ({"conversations": TALK}, "conversations (role, content)"),
        ({"messages": json.dumps(TALK)}, "messages (role, content)"),
        (
            {
                "system": "Be brief.",
                "instruction": "Add 2 and 3.",
                "output": "5",
                "history": [["Hi.", "Hello."]],
            },
            "instruction, output, history",
        ),
    ],
)
def test_each_form_gives_the_same_row(tmp_path, record, form):
    loaded = load_rows(write_rows(tmp_path / "a.jsonl", [record]), CHATML)
    assert loaded.rows == [ROW]
    assert loaded.forms == {form: 1}
    assert loaded.findings == []


def test_forms_stand_side_by_side_and_a_conversation_repeated_in_another_form_is_found(tmp_path):
    plain = {"instruction": "Add 2 and 3.", "output": "5"}
    records = [{"messages": TALK}, plain, {"conversations": SHAREGPT, "id": "7"}]
    loaded = load_rows(write_rows(tmp_path / "a.jsonl", records), CHATML)
    assert [len(row.turns) for row in loaded.rows] == [2, 1, 2]
    assert loaded.rows[2] == ROW.with_turn({"id": "7"})
    assert [(f.row, f.message) for f in loaded.findings] == [(3, "repeats row 1")]


def test_parquet_and_csv(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"messages": TALK}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text('messages\n"' + json.dumps(TALK).replace('"', '""') + '"\n')
    assert load_rows(tmp_path / "a.parquet", CHATML).rows == [ROW]
    assert load_rows(tmp_path / "a.csv", CHATML).rows == [ROW]


def message(role, content="x", **more):
    return {"role": role, "content": content, **more}


USER, BOT, SYSTEM = message("user"), message("assistant"), message("system")


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        ([], "has no message"),
        ({"role": ["user"]}, "is no list of messages"),
        ("hello", "is no list of messages"),
        (["hello"], "message 1 without 'role' or 'from'"),
        ([USER, BOT, SYSTEM], "has a system text in message 3: it may only be the first"),
        ([SYSTEM], "has a system text alone"),
        ([BOT, USER], "has message 1 from the assistant, where the user's is due"),
        ([USER, USER, BOT], "has message 2 from the user, where the assistant's is due"),
        ([USER, BOT, BOT], "has message 3 from the assistant, where the user's is due"),
        ([USER], "has no assistant turn"),
        ([USER, BOT, USER], "ends with the user's turn"),
        ([USER, message("assistant", " \n")], "has an empty message 2, from the assistant"),
        (
            [message("moderator"), BOT],
            "has the role 'moderator' in message 1; choose from: system, user",
        ),
        ([USER, message("tool")], "has a tool's part in message 2"),
        ([USER, message("assistant", None, tool_calls=[{"id": "1"}])], "tool's part in message 2"),
        ([USER, message("assistant", None)], "has no text in message 2, under 'content'"),
        ([USER, message("assistant", [{"type": "text"}])], "has a list for its text in message 2"),
        ([USER, message("assistant", weight=0)], "leaves message 2 out of the loss"),
    ],
)
def test_what_is_no_conversation_is_refused_with_the_number_of_the_row(tmp_path, talk, reason):
    records = [{"messages": TALK}, {"messages": talk}]
    loaded = load_rows(write_rows(tmp_path / "a.jsonl", records), CHATML)
    assert loaded.rows == [ROW]
    [finding] = loaded.findings
    assert (finding.row, finding.column, finding.fatal) == (2, "messages", True)
    assert reason in finding.message


def test_a_tag_or_a_nul_in_an_earlier_turn_is_found(tmp_path):
    forged = [message("user", 'Say "<|im_start|>".'), BOT, USER, BOT]
    nul = [message("user", "a\0b"), BOT, USER, BOT]
    records = [{"messages": TALK}, {"messages": forged}, {"messages": nul}]
    loaded = load_rows(write_rows(tmp_path / "a.jsonl", records), CHATML)
    assert [str(f) for f in loaded.findings] == [
        "row 2, messages: contains the template's tag <|im_start|>",
        "row 3, messages: holds a NUL character",
    ]


def test_two_forms_in_one_row_need_a_choice(tmp_path):
    both = {"messages": TALK, "instruction": "Which?", "output": "This."}
    file = write_rows(tmp_path / "a.jsonl", [both])
    with pytest.raises(FasttuneError, match="no row can be used") as caught:
        load_rows(file, CHATML)
    assert "--map messages=messages" in caught.value.where
    assert load_rows(file, CHATML, {"messages": "messages"}).rows[0]["output"] == "5"
    assert load_rows(file, CHATML, {"instruction": "instruction"}).rows[0]["output"] == "This."


def test_text_that_is_called_messages_is_a_column_like_any_other(tmp_path):
    row = {"instruction": "a", "output": "b", "messages": "three", "history": "long"}
    assert load_rows(write_rows(tmp_path / "a.jsonl", [row]), CHATML).rows == [row]


def test_a_format_of_one_turn_refuses_more_or_takes_the_first_by_name(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [{"messages": TALK[:3]}, {"messages": TALK}])
    loaded = load_rows(file, ALPACA)
    [finding] = loaded.findings
    assert finding.row == 2 and finding.fatal
    assert "holds 2 exchanges, and the format 'alpaca' holds one" in finding.message
    assert "data.turns=first" in finding.message and "chatml" in finding.message
    first = load_rows(file, ALPACA, take="first")
    assert [(row["instruction"], row["output"]) for row in first.rows] == [("Hi.", "Hello.")] * 2
    assert first.cut == 1
    asked = [{"instruction": "a", "output": "b", "history": [["c", "d"]]}]
    one = load_rows(write_rows(tmp_path / "b.jsonl", asked), ALPACA, take="first")
    assert (one.rows[0]["instruction"], one.rows[0]["output"], one.cut) == ("c", "d", 1)


def test_the_setting_reaches_a_run(tmp_path):
    from fasttune.config import DataConfig

    file = str(write_rows(tmp_path / "a.jsonl", [{"messages": TALK}]))
    found = load_divided(DataConfig(train=file, eval_fraction=0, turns="first"), ALPACA)
    assert found.train[0]["instruction"] == "Hi."
    with pytest.raises(FasttuneError, match="no row can be used"):
        load_divided(DataConfig(train=file, eval_fraction=0), ALPACA)


def test_other_histories_are_other_rows(tmp_path):
    other = [*TALK[:2], message("assistant", "Good day."), *TALK[3:]]
    loaded = load_rows(write_rows(tmp_path / "a.jsonl", [{"messages": TALK}, {"messages": other}]))
    assert loaded.digests[0] != loaded.digests[1]


@pytest.mark.parametrize(
    ("row", "proposed"),
    [
        ({"question": "a", "answer": "b"}, "--map instruction=question --map output=answer"),
        ({"prompt": "a", "completion": "b"}, "--map instruction=prompt --map output=completion"),
        (
            {"instruction": "a", "context": "c", "response": "b"},
            "--map input=context --map output=response",
        ),
        ({"dialogue": TALK}, "--map messages=dialogue"),
        ({"Question": "a", "Reply": "b"}, "--map instruction=Question --map output=Reply"),
    ],
)
def test_a_mapping_is_proposed_and_works(tmp_path, row, proposed):
    file = write_rows(tmp_path / "a.jsonl", [row])
    with pytest.raises(FasttuneError, match="no column") as caught:
        load_rows(file)
    assert f"perhaps {proposed};" in caught.value.hint
    columns = parse_columns(proposed.replace("--map ", "").split())
    assert load_rows(file, CHATML, columns).bad_rows == 0


def test_fasttune_data_names_the_form_and_takes_chatml(tmp_path, phi2_tokenizer):
    phi2_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps(PHI2))
    plain = {"instruction": "Add.", "output": "5", "context": "2 and 3"}
    file = write_rows(tmp_path / "a.jsonl", [{"conversations": SHAREGPT}, plain])
    ended = cli("data", file, "--model", tmp_path / "model", "--eval-fraction", 0)
    assert ended.status == 0, ended.err
    lines = {line.split("  ")[0]: line for line in ended.out.splitlines()}
    assert "conversations (from, value) 1, instruction, output 1" in lines["written as"]
    assert "1 to 2 a row, median 1.5" in lines["exchanges"]
    assert "chatml" in lines["template"]
    refused = cli("data", file, "-t", "alpaca", "--model", tmp_path / "model")
    assert refused.status == 2 and "row 1, conversations: holds 2 exchanges" in refused.err
    first = cli("data", file, "-t", "alpaca", "--turns", "first", "--model", tmp_path / "model")
    assert first.status == 0 and "only the first one of a row (1 rows have more)" in first.out


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(str.strip)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.none() | texts, st.booleans())
def test_messages_are_a_row_and_a_row_is_messages(exchanges, system, answered):
    said = [message("system", system)] if system else []
    for question, answer in exchanges:
        said += [message("user", question), message("assistant", answer)]
    said = said if answered else said[:-1]
    row = from_messages(said, answered)
    assert row.system == (system or "")
    assert [(turn["instruction"], turn.get("output")) for turn in row.turns] == (
        exchanges if answered else [*exchanges[:-1], (exchanges[-1][0], None)]
    )
    shown = readable(row.with_turn({"id": "7"}))
    assert shown == ({"messages": said, "id": "7"} if exchanges[1:] else {**row, "id": "7"})
    assert Row.from_json(json.loads(json.dumps(row.as_json()))) == row


def test_messages_that_are_no_conversation():
    with pytest.raises(FasttuneError, match="no conversation: .* from the assistant"):
        from_messages([BOT])


@pytest.mark.parametrize(
    ("row", "template", "unread"),
    [
        ({"messages": [TALK[1], {**TALK[2], "reasoning_content": "I think."}]}, "chatml",
         {"messages.reasoning_content": 1}),
        ({"conversations": [{"from": "human", "value": "Hi."},
                            {"from": "gpt", "value": "Ho.", "thinking": "Hm.", "refusal": None}]},
         "chatml", {"conversations.thinking": 1}),
        ({"messages": TALK[1:3], "tools": [{"name": "weather"}], "images": []}, "chatml",
         {"tools": 1}),
        ({"messages": TALK[1:3], "images": ["a.png"], "id": 0}, "chatml", {"images": 1, "id": 1}),
        ({"messages": TALK[:3]}, "alpaca", {"system": 1}),
        ({"messages": TALK[:3]}, "chatml", {}),
        ({"messages": TALK[:3], "system": "Arr."},
         "chatml", {"system": 1}),
        ({"instruction": "a", "output": "b", "input": " ", "note": "", "meta": {}}, "alpaca", {}),
        ({"instruction": "a", "output": "b", "reasoning": "c", "meta": {"x": 0}, "ok": False},
         "alpaca", {"reasoning": 1, "meta": 1, "ok": 1}),
    ],
)  # fmt: skip
def test_what_a_format_does_not_read_is_counted(tmp_path, row, template, unread):
    file = str(write_rows(tmp_path / "a.jsonl", [row]))
    with listening() as said:
        divided = load_divided(DataConfig(train=file), load_plugins().template(template))
    assert divided.sources[0].unread == unread
    assert sum(f"{name} {count}" in line for line in said for name, count in unread.items()) == len(
        unread
    )
    if set(unread) - {"id", "meta", "ok"}:
        assert any(line.startswith("warning: ") and "model never sees it" in line for line in said)
