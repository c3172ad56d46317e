"""Reasoning tags and a system prompt: the model writes its reasoning, then the response."""

from fasttune import Template, given, hookimpl, learn

REASONING = Template(
    name="reasoning",
    description="system text and tags; the model learns the reasoning and the response",
    system=(
        "You are AI assistant who is good at multilingual support. "
        "Switch the answer language depending on the user."
    ),
    parts=[
        given("system", "<|system|>{system}\n"),
        given("instruction", "<|instruction|>{instruction}\n"),
        given("context", "<|context|>{input}\n", when="input", min_length=2),
        given("reasoning", "<|reasoning|>"),
        learn("reasoning", "{reasoning}\n"),
        learn("response", "<|response|>{output}"),
    ],
)


@hookimpl
def register_templates() -> list[Template]:
    return [REASONING]
