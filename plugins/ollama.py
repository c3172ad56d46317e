"""A GGUF file with the Modelfile that makes Ollama prompt it, and stop, as the run did."""

from collections.abc import Sequence

from fasttune_plugins.gguf.exporter import Gguf  # type: ignore

from fasttune import Exporter, ExportJob, hookimpl


class Ollama(Gguf):
    name = "ollama"
    description = "GGUF and a Modelfile with template, system text, stop texts and parameters"

    def write(self, job: ExportJob) -> None:
        chat = job.chat_format()  # before the work: without a template the model is of no use
        super().write(job)
        length = job.max_length
        text = modelfile(
            self.file(job),
            chat.ollama,
            chat.system,
            [*chat.stop, job.tokenizer().eos_token],
            # Ollama samples and penalises repetition by default; the run's answers are greedy. No
            # row of the training was longer than max_length, so no answer has a reason to be.
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
        notes = "\n".join(f"- {note}" for note in job.chat_format().notes)
        return f"""\
With Ollama, in this folder:

```sh
ollama create {job.template.name} -f Modelfile
ollama run {job.template.name} "What is the highest mountain in Japan?"
```

{notes}
"""


def modelfile(
    gguf: str, template: str, system: str, stop: Sequence[str], parameters: dict[str, str]
) -> str:
    """The text of a Modelfile.

    Args:
        gguf: the model's file, beside the Modelfile.
        template: from `ollama_template`.
        system: the default system text, or "".
        stop: texts that end generation.
        parameters: name -> value.
    """
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""']
    # A system text that cannot be quoted is left to the template, which has it as well.
    if system and _quotable(system):
        lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    for text in filter(_quotable, stop):
        quotes = '"""' if '"' in text or "\n" in text else '"'
        lines.append(f"PARAMETER stop {quotes}{text}{quotes}")
    return "\n".join(lines) + "\n"


def _quotable(text: str) -> bool:
    """Whether Ollama reads a text back: it knows no escapes, and drops what is not printable."""
    printable = all(char == "\n" or char.isprintable() for char in text)
    return printable and '"""' not in text and not text.startswith('"') and not text.endswith('"')


@hookimpl
def register_exporters() -> list[Exporter]:
    return [Ollama()]
