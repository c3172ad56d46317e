"""ChatML: one block per speaker, the assistant's ended by the model's own EOS."""

from collections.abc import Iterable

from fasttune import Row, Segment, Template, given, hookimpl, learn


class ChatML(Template):
    name = "chatml"
    description = "<|im_start|>speaker blocks; the model learns the assistant's"
    tags = ("<|im_start|>", "<|im_end|>")
    system = "You are a helpful assistant."

    def segments(self, row: Row) -> Iterable[Segment]:
        question = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
        yield given("system", f"<|im_start|>system\n{row.get('system') or self.system}<|im_end|>\n")
        yield given("instruction", f"<|im_start|>user\n{question}<|im_end|>\n")
        yield given("response", "<|im_start|>assistant\n")
        yield learn("response", row.get("output", ""))


@hookimpl
def register_templates() -> list[Template]:
    return [ChatML()]
