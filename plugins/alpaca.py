"""The Alpaca format: headed sections, no system text, no reasoning."""

from fasttune import Template, given, hookimpl, learn

PLAIN = (
    "Below is an Instruction that describes a task. "
    "Write a Response that appropriately completes the request.\n\n"
)
WITH_CONTEXT = (
    "Below is an Instruction that describes a task, paired with a Context that provides further "
    "information. Write a Response that appropriately completes the request.\n\n"
)

ALPACA = Template(
    name="alpaca",
    description="### Instruction / ### Context / ### Response under a fixed preamble",
    parts=[
        given("preamble", WITH_CONTEXT, when="input", min_length=2),
        given("preamble", PLAIN, unless="input", min_length=2),
        given("instruction", "### Instruction:\n{instruction}\n\n"),
        given("context", "### Context:\n{input}\n\n", when="input", min_length=2),
        given("response", "### Response:\n"),
        learn("response", "{output}"),
    ],
)


@hookimpl
def register_templates() -> list[Template]:
    return [ALPACA]
