"""Reasoning tags and a system prompt: the model writes its reasoning, then the response."""

from collections.abc import Iterable

from fasttune import Row, Segment, Template, given, hookimpl, learn


class Reasoning(Template):
    name = "reasoning"
    description = "system text and tags; the model learns the reasoning and the response"
    tags = ("<|system|>", "<|instruction|>", "<|context|>", "<|reasoning|>", "<|response|>")
    targets = {"reasoning": "reasoning", "response": "output"}
    required = ("instruction", "reasoning", "output")
    system = (
        "You are AI assistant who is good at multilingual support. "
        "Switch the answer language depending on the user."
    )

    def segments(self, row: Row) -> Iterable[Segment]:
        yield given("system", f"<|system|>{row.get('system') or self.system}\n")
        yield given("instruction", f"<|instruction|>{row['instruction']}\n")
        if len(row.get("input", "")) >= 2:
            yield given("context", f"<|context|>{row['input']}\n")
        yield given("reasoning", "<|reasoning|>")
        yield learn("reasoning", f"{row.get('reasoning', '')}\n")
        yield learn("response", f"<|response|>{row.get('output', '')}")

    def parse(self, text: str) -> dict[str, str]:
        reasoning, _, response = text.partition("<|response|>")
        return {"reasoning": reasoning.removesuffix("\n"), "response": response}


@hookimpl
def register_templates() -> list[Template]:
    return [Reasoning()]
