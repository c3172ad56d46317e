"""Vicuna 1.1: a preamble, then USER: and ASSISTANT: for every exchange of a conversation."""

from fasttune import Template, given, hookimpl, learn

VICUNA = Template(
    name="vicuna",
    description="USER: and ASSISTANT: after a preamble; the model learns the assistant's part",
    system=(
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    ),
    conversations=True,
    more_tags=["USER:", "ASSISTANT:"],
    parts=[
        given("system", "{system} ", once=True),
        given("instruction", "USER: {instruction} ", unless="input"),
        given("instruction", "USER: {instruction}\n{input} ", when="input"),
        given("response", "ASSISTANT:"),
        learn("response", " {output}"),
    ],
)


@hookimpl
def register_templates() -> list[Template]:
    return [VICUNA]
