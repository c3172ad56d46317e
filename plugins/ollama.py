"""A GGUF file with a Modelfile, so that Ollama prompts and stops the model as in the run."""

from collections.abc import Sequence

from fasttune_plugins.gguf.exporter import Gguf  # type: ignore

from fasttune import Exporter, ExportJob, hookimpl


class Ollama(Gguf):
    name = "ollama"
    description = "GGUF and a Modelfile with template, system text, stop texts and parameters"

    def write(self, job: ExportJob) -> None:
        chat = job.chat_format()  # fails before the work if there is none
        super().write(job)
        length = job.max_length
        text = modelfile(
            self.file(job),
            chat.ollama,
            chat.system,
            [*chat.stop, job.tokenizer().eos_token],
            # By default Ollama samples and penalizes repetition; the run's answers are greedy. No
            # training row was longer than max_length, so a longer answer is a fault.
            {
                "temperature": "0",
                "repeat_penalty": "1",
                "num_ctx": str(max(length, 2048)),
                "num_predict": str(length),
            },
        )
        (job.folder / "Modelfile").write_text(text, encoding="utf-8", newline="\n")
        for note in chat.notes:
            job.say(f"note: {note}")

    def usage(self, job: ExportJob) -> str:
        question = job.example_row()["instruction"]
        notes = "\n".join(f"- {note}" for note in job.chat_format().notes)
        return f"""\
With Ollama, in this folder:

```sh
ollama create {job.template.name} -f Modelfile
ollama run {job.template.name} "{question}"
```

{notes}
"""


def modelfile(
    gguf: str, template: str, system: str, stop: Sequence[str], parameters: dict[str, str]
) -> str:
    """The text of a Modelfile for a GGUF file in the same folder.

    Args:
        template: in Ollama's template language.
        system: the default system text, or "".
        stop: texts that end generation.
    """
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""']
    # A system text that cannot be quoted is left out: the template contains it too.
    if system and _quotable(system):
        lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    for text in filter(_quotable, stop):
        quotes = '"""' if '"' in text or "\n" in text else '"'
        lines.append(f"PARAMETER stop {quotes}{text}{quotes}")
    return "\n".join(lines) + "\n"


def _quotable(text: str) -> bool:
    """Whether Ollama reads a text unchanged: it has no escapes and drops unprintable characters."""
    printable = all(char == "\n" or char.isprintable() for char in text)
    return printable and '"""' not in text and not text.startswith('"') and not text.endswith('"')


@hookimpl
def register_exporters() -> list[Exporter]:
    return [Ollama()]
