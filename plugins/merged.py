"""The adapter merged into the base: safetensors for transformers, vLLM and other programs."""

from fasttune import Exporter, ExportJob, Reader, hookimpl


class Merged(Exporter):
    name = "merged"
    description = "adapter merged into the base: safetensors, tokenizer and chat template"
    options = {"into": ("original", "dequantized")}

    def write(self, job: ExportJob) -> None:
        job.write_merged(job.folder, job.options["into"])

    def open(self, job: ExportJob) -> Reader:
        return job.open_merged(job.folder)

    def needed_bytes(self, job: ExportJob) -> int:
        return job.merged_bytes()

    def usage(self, job: ExportJob) -> str:
        row = job.example_row()
        if not (job.folder / "chat_template.jinja").is_file():
            prompt = f"prompt = {job.template.prompt(row)!r}\n"
            prompt += 'inputs = tokenizer(prompt, return_tensors="pt")'
        else:
            chat = job.chat_format()
            required = job.template.required
            extra = "".join(
                f"\n    {name}={value!r},  # "
                + ("required" if name in required else "leave it out if your question has none")
                for name, value in chat.kwargs(row).items()
            )
            prompt = f"""\
messages = {chat.messages(row)!r}
inputs = tokenizer.apply_chat_template(
    messages,
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,{extra}
)"""
        return f"""\
With transformers, in this folder. Replace the question with yours: the model answers best what
resembles its training rows.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
{prompt}
output = model.generate(**inputs, max_new_tokens=256, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""


@hookimpl
def register_exporters() -> list[Exporter]:
    return [Merged()]
