"""The adapter merged into the base as one GGUF file, for llama.cpp and programs built on it."""

import json

from fasttune import ROUNDED, Bounds, Exporter, ExportJob, FasttuneError, Reader, hookimpl

from . import K_QUANTS, QUANTS


class Gguf(Exporter):
    name = "gguf"
    description = "adapter merged into the base: one GGUF file for llama.cpp"
    options = {"quant": QUANTS + K_QUANTS}  # the first is the default

    def write(self, job: ExportJob) -> None:
        import tempfile
        from pathlib import Path

        from .write import check_quant, write_gguf

        check_quant(job.options["quant"])
        with tempfile.TemporaryDirectory(prefix=".merged.", dir=job.folder) as merged:
            job.write_merged(Path(merged))
            chat = Path(merged) / "chat_template.jinja"
            jinja = chat.read_text(encoding="utf-8") if chat.is_file() else None
            job.say(f"writing {self.file(job)}")
            target = job.folder / self.file(job)
            write_gguf(Path(merged), target, job.options["quant"], jinja, job.template.name)

    def require_reader(self) -> None:
        from .llamacpp import require_llama_cpp

        require_llama_cpp()

    def open(self, job: ExportJob) -> Reader:
        from .llamacpp import LlamaCppReader

        try:
            chat = job.chat_format()
        except FasttuneError:  # the file has no chat template either
            chat = None
        context = job.max_length + 256  # a row of the run, and the tokens that verifying generates
        return LlamaCppReader(job.folder / self.file(job), job.template, chat, context)

    def bounds(self, job: ExportJob) -> Bounds:
        quant, run = job.options["quant"], super().bounds(job)
        if quant in ("f32", "f16", "bf16"):
            # Even f32 is not within the run's own bound: llama.cpp's gelu is a table in fp16.
            logits = None if run.logits is None else ROUNDED.logits
            return Bounds(logits, max(ROUNDED.kl, run.kl))
        return Bounds(None, max(0.05 if quant in ("q8_0", "q6_k") else 1.0, run.kl))

    def usage(self, job: ExportJob) -> str:
        return f"""\
With llama.cpp:

```sh
llama-server -m {self.file(job)} --temp 0
```

It applies the chat template in the file. {self.variables(job)}
"""

    def variables(self, job: ExportJob) -> str:
        """How a request gives the columns besides the question and the system text."""
        try:
            kwargs = job.chat_format().kwargs(job.example_row())
        except FasttuneError:
            return ""
        if not kwargs:
            return ""
        shown = json.dumps({"chat_template_kwargs": kwargs}, ensure_ascii=False)
        return f"Give other columns in the request, for example `{shown}`."

    def needed_bytes(self, job: ExportJob) -> int:
        # The merged model is deleted when the file is written. f32 is twice the size of 16 bits.
        return job.merged_bytes() * (3 if job.options["quant"] == "f32" else 2)

    def file(self, job: ExportJob) -> str:
        return f"model-{job.options['quant']}.gguf"


@hookimpl
def register_exporters() -> list[Exporter]:
    return [Gguf()]
