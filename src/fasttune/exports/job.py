"""The `ExportJob` of a run folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from fasttune import hub
from fasttune.errors import FasttuneError
from fasttune.exports.chat_template import chat_template_for
from fasttune.exports.merge import shards, stored_tensors, write_merged
from fasttune.exports.opening import ModelReader, open_merged_model, open_run_model
from fasttune.files import SEAL, cache_dir, unlisted, write_json
from fasttune.formats.chat import ChatFormat
from fasttune.formats.examples import EXAMPLES, examples
from fasttune.formats.row import Row
from fasttune.formats.template import Template
from fasttune.models.base import base_folder, read_base
from fasttune.models.demo import DEMO_MODEL, DEMO_ON_HUB
from fasttune.models.tokenizer import saved_tokenizer
from fasttune.models.whole import read_object
from fasttune.plugins.exporter import EXACT, QUANTISED, ROUNDED, Bounds
from fasttune.runs import Run

log = logging.getLogger(__name__)

CHAT_TEMPLATE = "chat_template.jinja"
"""Where transformers keeps a tokenizer's chat template."""
LOCAL = "local-model"
"""Stands for a base that is in a folder and has no known name on the Hub."""


@dataclass
class RunExport:
    """See `ExportJob`."""

    run: Run
    template: Template
    folder: Path
    options: Mapping[str, str]
    name: str = field(init=False)
    max_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.max_length = self.run.name, self.run.config.model.max_length

    @property
    def base_name(self) -> str:
        """The base's name on the Hub, else LOCAL."""
        base = str(self.run.manifest["model"])
        if chosen := self.options.get("base"):
            return chosen
        if Path(base).name == DEMO_MODEL and Path(base).parent == cache_dir():
            return DEMO_ON_HUB
        return hub.name_of(base) or LOCAL

    @property
    def _stored_in_nf4(self) -> bool:
        base = read_base(self.run.manifest["model"])
        return base is not None and base.stored == "nf4"

    @property
    def _original(self) -> bool:
        """Whether a merge is into other weights than those that a run in 4 bits has seen."""
        return self.options.get("into") != "dequantized" and not self._stored_in_nf4

    def say(self, line: str) -> None:
        log.info(line)

    def write_merged(self, folder: Path, into: str = "original") -> None:
        manifest = self.run.manifest
        if into == "dequantized" and manifest["quantization"] == "none":
            raise FasttuneError(
                "this run was not quantised, so there are no dequantised weights to merge into",
                str(self.run.folder),
                "leave out --into dequantized: the original weights are those that training saw",
            )
        if "into" in self.options and self._original and manifest["quantization"] != "none":
            self.say("note: the run trained on NF4 weights; --into dequantized stays closer to it")
        try:
            jinja = chat_template_for(self.template, self.tokenizer())
        except FasttuneError as error:
            self.say(f"without a chat template: {error.message}")
            jinja = None
        write_merged(
            manifest["model"],
            self.run.adapter,
            folder,
            chat_template=jinja,
            dequantize=manifest["dtype"] if into == "dequantized" else None,
        )

    def merged_bytes(self) -> int:
        stored = sum(f.stat().st_size for f in shards(base_folder(self.run.manifest["model"])))
        return stored * (4 if self._stored_in_nf4 else 1)

    def open_merged(self, folder: Path) -> ModelReader:
        chat = self.chat_format() if (folder / CHAT_TEMPLATE).is_file() else None
        return open_merged_model(folder, self.template, chat)

    def write_adapter(self, folder: Path) -> None:
        adapter = self.run.adapter
        left_out = {adapter / SEAL, adapter / "README.md"}  # an export has its own
        if (adapter / SEAL).exists():
            left_out |= {*unlisted(adapter)}
        for file in sorted({*adapter.iterdir()} - left_out):
            training = file.name == "trainer_state.json" or file.suffix in (".pt", ".pth", ".bin")
            if file.is_file() and not training:
                shutil.copy2(file, folder)
        settings = folder / "adapter_config.json"
        kept = read_object(settings)
        write_json(settings, {**kept, "base_model_name_or_path": self.base_name})
        format = self.run.manifest["template"]
        write_json(folder / "template.json", {**format, "path": PurePath(format["path"]).name})
        if "/" not in self.base_name:
            self.say(
                f"note: the base is a folder without a known name on the Hub: adapter_config.json "
                f"names it {LOCAL}; --option base=owner/name gives its name"
            )

    def open_adapter(self, folder: Path) -> ModelReader:
        return open_run_model(self.run.model_config, folder, self.template)

    def bounds(self) -> Bounds:
        manifest = self.run.manifest
        if manifest["quantization"] != "none" and self._original:
            return QUANTISED
        stored = stored_tensors(shards(base_folder(manifest["model"]))).values()
        full = manifest["dtype"] == "float32" and all(place.dtype == "F32" for place in stored)
        return EXACT if full else ROUNDED

    def tokenizer(self) -> Any:
        return saved_tokenizer(self.run.adapter)

    def chat_format(self) -> ChatFormat:
        return ChatFormat(self.template, str(self.tokenizer().eos_token))

    def example_row(self) -> Row:
        reads, known = self.template.reads, EXAMPLES[0]
        about = "Mount Fuji, 3,776 m high, is the highest mountain in Japan."
        asked = {"instruction": "What is the highest mountain in Japan?"}
        asked |= {"input": about if "input" in reads else ""}
        asked |= {name: f"(your {name})" for name in self.template.columns if name not in known}
        row = examples(self.template)[0].with_turn(asked)
        return row.without([*self.template.targets.values()])
