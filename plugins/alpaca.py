"""The Alpaca format: headed sections, no system text, no reasoning."""

from collections.abc import Iterable

from fasttune import Row, Segment, Template, given, hookimpl, learn

PLAIN = (
    "Below is an Instruction that describes a task. "
    "Write a Response that appropriately completes the request."
)
WITH_CONTEXT = (
    "Below is an Instruction that describes a task, paired with a Context that provides further "
    "information. Write a Response that appropriately completes the request."
)


class Alpaca(Template):
    name = "alpaca"
    description = "### Instruction / ### Context / ### Response under a fixed preamble"
    tags = ("### Instruction:", "### Context:", "### Response:")

    def segments(self, row: Row) -> Iterable[Segment]:
        context = row.get("input", "")
        has_context = len(context) >= 2
        yield given("preamble", f"{WITH_CONTEXT if has_context else PLAIN}\n\n")
        yield given("instruction", f"### Instruction:\n{row['instruction']}\n\n")
        if has_context:
            yield given("context", f"### Context:\n{context}\n\n")
        yield given("response", "### Response:\n")
        yield learn("response", row.get("output", ""))


@hookimpl
def register_templates() -> list[Template]:
    return [Alpaca()]
