"""A GGUF file with the Modelfile that makes Ollama prompt it, and stop, as the run did."""

from fasttune_plugins.gguf import Gguf  # type: ignore

from fasttune import Exporter, ExportJob, hookimpl


class Ollama(Gguf):
    name = "ollama"
    description = "GGUF and a Modelfile with template, system text, stop texts and parameters"

    def write(self, job: ExportJob) -> None:
        from fasttune.files import write_text
        from fasttune.ollama import modelfile

        chat = job.chat_format()  # before the work: without a template the model is of no use
        super().write(job)
        length = job.run.config.model.max_length
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
        write_text(job.folder / "Modelfile", text)
        for note in chat.notes:
            job.say(f"note: {note}")

    def usage(self, job: ExportJob) -> str:
        notes = "\n".join(f"- {note}" for note in job.chat_format().notes)
        return f"""\
With Ollama, in this folder:

```sh
ollama create {job.run.config.template} -f Modelfile
ollama run {job.run.config.template} "What is the highest mountain in Japan?"
```

{notes}
"""


@hookimpl
def register_exporters() -> list[Exporter]:
    return [Ollama()]
