"""ChatML: a block for each speaker, as many as a conversation has."""

from fasttune import Template, given, hookimpl, learn

CHATML = Template(
    name="chatml",
    description="blocks of a conversation; the model learns the assistant's",
    system="You are a helpful assistant.",
    conversations=True,
    parts=[
        given("system", "<|im_start|>system\n{system}<|im_end|>", once=True),
        given("instruction", "\n<|im_start|>user\n{instruction}<|im_end|>\n", unless="input"),
        given(
            "instruction",
            "\n<|im_start|>user\n{instruction}\n\n{input}<|im_end|>\n",
            when="input",
        ),
        given("response", "<|im_start|>assistant\n"),
        learn("response", "{output}"),
    ],
)


@hookimpl
def register_templates() -> list[Template]:
    return [CHATML]
