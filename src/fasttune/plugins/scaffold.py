"""A new template: a working plugin file and its test."""

from __future__ import annotations

import re
from pathlib import Path

from fasttune.errors import FasttuneError
from fasttune.files import write_text
from fasttune.plugins.registry import Plugins, Provider

VALID_NAME = re.compile(r"[a-z][a-z0-9_-]*")

PLUGIN = '''\
"""The {name} format."""

from fasttune import Template, given, hookimpl, learn


class {cls}(Template):
    name = "{name}"
    description = "### Question / ### Context / ### Answer"
    tags = ("### Question:", "### Context:", "### Answer:")

    def segments(self, row):
        yield given("instruction", f"### Question:\\n{{row['instruction']}}\\n\\n")
        if row.get("input"):
            yield given("context", f"### Context:\\n{{row['input']}}\\n\\n")
        yield given("response", "### Answer:\\n")
        yield learn("response", row.get("output", ""))


@hookimpl
def register_templates():
    return [{cls}()]
'''

TEST = """\
from pathlib import Path

from fasttune import check_template, load_plugin

template = load_plugin(Path(__file__).with_name("{name}.py")).template("{name}")


def test_text():
    row = {{"instruction": "Add 2 and 3.", "input": "", "output": "5"}}
    assert template.prompt(row) == "### Question:\\nAdd 2 and 3.\\n\\n### Answer:\\n"
    assert template.render(row) == template.prompt(row) + "5"
    assert template.parse("5") == {{"response": "5"}}


def test_contract():
    assert [result for result in check_template(template) if result.status != "ok"] == []
"""


def new_template(name: str, folder: Path, plugins: Plugins, force: bool = False) -> list[Path]:
    """Write NAME.py and test_NAME.py into `folder`; both or, if one may not be written, neither.

    Raises:
        FasttuneError: the name is not valid or taken, or a file exists and `force` is not set.
    """
    if not VALID_NAME.fullmatch(name) or name.startswith("test_") or name == "conftest":
        raise FasttuneError(
            f"'{name}' is no name for a template",
            f"templates new {name}",
            "use a-z, 0-9, _ and -, a letter first; test_... and conftest are pytest's",
        )
    plugin, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for taken in _holders(name, plugins):
        if taken.path != plugin.resolve():
            raise FasttuneError(f"the name '{name}' is taken", str(taken), "choose another name")
    for path in (plugin, test):
        if path.exists() and not force:
            raise FasttuneError("the file exists", str(path), "choose another name, or add --force")
    # With a suffix a template may be called "none", "true" or "template".
    cls = "".join(part.capitalize() for part in re.split("[-_]", name)) + "Format"
    for path, text in ((plugin, PLUGIN), (test, TEST)):
        write_text(path, text.format(name=name, cls=cls))
    return [plugin, test]


def _holders(name: str, plugins: Plugins) -> list[Provider]:
    """Who holds a name: a template's and a plugin's both collide, the file is named after it."""
    holders = [plugins.templates[name][1]] if name in plugins.templates else []
    return holders + ([plugins.providers[name]] if name in plugins.providers else [])
