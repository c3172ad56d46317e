"""The adapter alone: small, for programs that load the base and the adapter themselves."""

from fasttune import EXACT, Bounds, Exporter, ExportJob, Reader, hookimpl


class Adapter(Exporter):
    name = "adapter"
    description = "the LoRA adapter with its tokenizer and the template's identity"
    options = {"base": ()}  # the base's name on the Hub, if the run does not know it

    def write(self, job: ExportJob) -> None:
        job.write_adapter(job.folder)

    def open(self, job: ExportJob) -> Reader:
        return job.open_adapter(job.folder)

    def bounds(self, job: ExportJob) -> Bounds:
        return EXACT

    def usage(self, job: ExportJob) -> str:
        prompt = job.template.prompt(job.example_row())
        return f"""\
With transformers and peft, in this folder. Replace the question in the prompt with yours, and keep
everything else: the model answers best what resembles its training rows.

```python
import json

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = json.load(open("adapter_config.json"))["base_model_name_or_path"]  # or your own copy
tokenizer = AutoTokenizer.from_pretrained(".")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), ".")
prompt = {prompt!r}
inputs = tokenizer(prompt, return_tensors="pt")
output = model.generate(
    **inputs, max_new_tokens=256, do_sample=False, eos_token_id=tokenizer.eos_token_id
)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""


@hookimpl
def register_exporters() -> list[Exporter]:
    return [Adapter()]
