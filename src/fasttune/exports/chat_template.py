"""The chat template of an export, checked with the tokenizer that will apply it."""

from __future__ import annotations

from typing import Any

from fasttune.encoding.encode import encode_prompt
from fasttune.errors import FasttuneError
from fasttune.formats import jinja
from fasttune.formats.chat import ChatFormat
from fasttune.formats.examples import examples
from fasttune.formats.row import Row
from fasttune.formats.template import Template


def chat_template_for(template: Template, tokenizer: Any) -> str:
    """Return the chat template, with BOS if the tokenizer adds it: apply_chat_template does not.

    Raises:
        FasttuneError: its prompts have other ids than the run's.
    """
    written = jinja.chat_template(template)
    name = getattr(tokenizer, "name_or_path", "")
    if special := list(tokenizer("").input_ids):
        if special != [tokenizer.bos_token_id]:
            text = tokenizer.convert_ids_to_tokens(special)
            raise FasttuneError(
                "the tokenizer adds other tokens than BOS, which no chat template can do",
                f"{name}: {' '.join(text)}",
                "export without a chat template",
            )
        written = "{{- bos_token -}}\n" + written
    chat = ChatFormat(template)
    for row in examples(template):
        asked = row.without([*template.targets.values()])
        earlier = [{**turn, "input": ""} for turn in row.turns[:-1]]
        plain = Row([*earlier, asked.turns[-1]], row.system, asked.columns)
        if chat_ids(chat, plain, tokenizer, written) != encode_prompt(template, plain, tokenizer):
            raise FasttuneError(
                "the tokenizer gives a chat template's text other ids than a prompt",
                f"{name}: {row['instruction']}",
                "export without a chat template",
            )
    return written


def chat_ids(
    chat: ChatFormat, row: Row, tokenizer: Any, chat_template: str | None = None
) -> list[int]:
    """The ids of a row's prompt by a chat template, by default the tokenizer's own.

    Raises:
        FasttuneError: the row has an input in an earlier turn.
    """
    ids = tokenizer.apply_chat_template(
        chat.messages(row),
        chat_template=chat_template,
        add_generation_prompt=True,
        return_dict=False,
        **chat.kwargs(row),
    )
    return list(ids)
