from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from fasttune.config import RunConfig, dump_config, flatten, load_config, parse_override
from fasttune.errors import FasttuneError
from fasttune.yaml_text import read_yaml

CONFIGS = Path(__file__).parent.parent / "configs"


def test_later_wins(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("template: alpaca\ntrain: {epochs: 3, learning_rate: 1e-4}\n")
    config = load_config(
        file, [("train.epochs", 2), parse_override("lora.targets=[q_proj, dense]")]
    )
    assert config.template == "alpaca"
    assert config.train.epochs == 2
    assert config.train.learning_rate == 1e-4  # which YAML 1.1 reads as a text
    assert config.lora.targets == ("q_proj", "dense")
    assert config.model == RunConfig().model


def test_a_dumped_config_reads_back_equal(tmp_path):
    config = load_config(
        None,
        [
            parse_override(text)
            for text in (
                "data.columns={instruction: question}",
                "train.report_to=tensorboard,wandb",
                "train.max_steps=7",
                "train.gradient_checkpointing=off",
                "model.quantization=none",
                "system=日本語で",
            )
        ],
    )
    assert config.train.report_to == ("tensorboard", "wandb")
    assert config.train.gradient_checkpointing == "off"
    assert config.model.quantization == "none"
    file = tmp_path / "c.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epoch=2", "did you mean 'epochs'"),
        ("lorra.r=2", "did you mean 'lora'"),
        ("lora.r=many", "a whole number"),
        ("lora.r=0", "from 1 to"),
        ("lora.r=1.5", "a whole number"),
        ("lora.dropout=1", "below 1"),
        ("train.learning_rate=-1", "above 0"),
        ("train.learning_rate=.nan", "above 0"),
        ("train.packing=maybe", "true or false"),
        ("train.max_steps=0", "from 1 to 1000000000, or null"),
        ("train.schedule=cosin", "did you mean 'cosine'"),
        ("model=phi", "groups settings"),
        ("learning_rate=1e-4", "did you mean 'train.learning_rate'?"),
        ("model.learning_rat=1e-4", "did you mean 'train.learning_rate'?"),
        ("batch_size=2", "did you mean 'train.batch_size' or 'samples.batch_size'?"),
        ("lora_alpha=2", "did you mean 'lora.alpha'?"),
        ("lora.r", "key=value"),
        ("lora.r=[", "expected"),
        ("data.columns=3", "a mapping"),
    ],
)
def test_a_wrong_setting_says_what_it_takes(override, expected):
    with pytest.raises(FasttuneError) as caught:
        load_config(None, [parse_override(override)])
    assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "template: {a: 1}"])
def test_a_broken_file_is_named(tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(FasttuneError) as caught:
        load_config(file)
    assert "broken.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FasttuneError, match="cannot read the config"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_config_loads_and_says_how_it_is_run(file):
    load_config(file)
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# fasttune run ") and f"configs/{file.name}" in first


def test_the_default_config_has_every_setting_at_its_default_with_a_comment():
    file = CONFIGS / "default.yaml"
    assert load_config(file) == RunConfig()
    written = yaml.safe_load(file.read_text(encoding="utf-8"))

    def keys(values, prefix=""):
        for key, value in values.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")

    assert set(keys(written)) == set(keys(RunConfig().as_dict()))
    lines = file.read_text(encoding="utf-8").splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        is_setting = ":" in line and not line.lstrip().startswith("#") and not line.endswith(":")
        if is_setting:
            assert "#" in line or before.lstrip().startswith("#"), f"no comment: {line}"


def test_the_default_config_is_in_the_package():
    """setuptools puts what a link leads to into the wheel."""
    import fasttune

    shipped = Path(fasttune.__file__).with_name("default.yaml")
    assert shipped.read_bytes() == (CONFIGS / "default.yaml").read_bytes()
    settings = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "default.yaml" in settings["tool"]["setuptools"]["package-data"]["fasttune"]


def test_numbers_by_name():
    config = load_config(None, [("train.schedule_options", {"min_lr_rate": "1e-1", "n": 2})])
    assert config.train.schedule_options == {"min_lr_rate": 0.1, "n": 2.0}
    assert flatten(config.as_dict())["train.schedule_options"] == {"min_lr_rate": 0.1, "n": 2.0}
    with pytest.raises(FasttuneError, match="'train.schedule_options' is .*") as caught:
        load_config(None, [("train.schedule_options", {"min_lr_rate": "low"})])
    assert "numbers by name" in caught.value.hint


def test_a_template_may_be_a_yaml_file():
    for name in ("alpaca", "mine.yaml", "../formats/my own.yml"):
        assert load_config(None, [("template", name)]).template == name
    for name in ("../mine", ".mine", "", "a\0.yaml"):
        with pytest.raises(FasttuneError) as caught:
            load_config(None, [("template", name)])
        assert "or a .yaml file" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lora.r", "8", 8), ("lora.r", 8.0, 8), ("lora.r", "8e0", 8), ("lora.alpha", "1e1", 10.0),
        ("model.fast_path", True, "on"), ("model.quantization", None, "none"),
        ("lora.targets", "q_proj, k_proj,", ("q_proj", "k_proj")), ("samples.by", [1], ("1",)),
        ("data.columns", {"output": 3}, {"output": "3"}), ("system", 5, "5"),
    ],
)  # fmt: skip
def test_spellings_of_a_value(key, value, expected):
    group, _, name = key.rpartition(".")
    config = load_config(None, [(key, value)])
    found = getattr(getattr(config, group) if group else config, name)
    assert found == expected and type(found) is type(expected)


def test_a_wrong_value_in_a_file_has_its_line(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("data:\n  sources:\n  - a.jsonl\n  - name: b.jsonl\n    count: 0\n")
    with pytest.raises(FasttuneError) as caught:
        load_config(file)
    assert str(caught.value).splitlines() == [
        "'data.sources.count' is 0", f"{file}, line 4", "it takes a count of 1 or more, or null",
    ]  # fmt: skip
    file.write_text("seed: 1\ntrain.epochs: 2\n")
    with pytest.raises(FasttuneError) as caught:
        load_config(file)
    assert caught.value.where == f"{file}, line 2"
    assert caught.value.hint == "write 'epochs' indented below 'train:'"
    with pytest.raises(FasttuneError) as caught:
        load_config(None, [parse_override("train.seed=0")])
    assert caught.value.hint == "did you mean 'seed', outside of any group?"


def test_the_lines_of_yaml():
    value, lines = read_yaml("name: a\nparts:\n- x\n-\n  text: y\n- [p, q]\n")
    assert value["parts"] == ["x", {"text": "y"}, ["p", "q"]]
    assert lines == {
        "name": 1, "parts": 2, "parts.0": 3, "parts.1": 5, "parts.1.text": 5, "parts.2": 6,
        "parts.2.0": 6, "parts.2.1": 6,
    }  # fmt: skip


def test_reading_a_config_imports_neither_torch_nor_transformers():
    code = "import sys, fasttune.config as c; c.load_config(None, [('train.optimizer', 'lomo')])"
    code += "; assert not {'torch', 'transformers', 'trl'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
