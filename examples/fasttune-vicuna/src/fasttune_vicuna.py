"""Vicuna 1.1: a preamble, then USER: and ASSISTANT: for every exchange of a conversation."""

from collections.abc import Iterable

from fasttune import Row, Segment, Template, given, hookimpl, learn


class Vicuna(Template):
    name = "vicuna"
    description = "USER: and ASSISTANT: after a preamble; the model learns the assistant's part"
    tags = ("USER:", "ASSISTANT:")
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    )

    def turn(self, row: Row, first: bool) -> Iterable[Segment]:
        question = "\n".join(filter(None, (row["instruction"], row.get("input"))))
        if first:
            yield given("system", f"{row.get('system') or self.system} ")
        yield given("instruction", f"USER: {question} ")
        yield given("response", "ASSISTANT:")
        yield learn("response", f" {row.get('output', '')}")

    def parse(self, text: str) -> dict[str, str]:
        return {"response": text.removeprefix(" ")}


@hookimpl
def register_templates() -> list[Template]:
    return [Vicuna()]
