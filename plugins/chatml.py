"""ChatML: a block for each speaker, as many as a conversation has."""

from collections.abc import Iterable

from fasttune import Row, Segment, Template, given, hookimpl, learn


class ChatML(Template):
    name = "chatml"
    description = "blocks of a conversation; the model learns the assistant's"
    tags = ("<|im_start|>", "<|im_end|>")
    system = "You are a helpful assistant."

    def turn(self, row: Row, first: bool) -> Iterable[Segment]:
        question = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
        if first:
            system = row.get("system") or self.system
            yield given("system", f"<|im_start|>system\n{system}<|im_end|>")
        yield given("instruction", f"\n<|im_start|>user\n{question}<|im_end|>\n")
        yield given("response", "<|im_start|>assistant\n")
        yield learn("response", row.get("output", ""))


@hookimpl
def register_templates() -> list[Template]:
    return [ChatML()]
