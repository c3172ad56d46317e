"""`fasttune templates list | show | new | check` and `plugins [add | remove]`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli import options
from fasttune.cli.app import app, facts, print_json, table
from fasttune.cli.app import plugins as load_all
from fasttune.cli.options import argument, flag, option
from fasttune.data.load import parse_columns
from fasttune.errors import EXIT_FAILURE, FasttuneError
from fasttune.formats.examples import examples
from fasttune.formats.parts import Segment
from fasttune.formats.template import Template
from fasttune.plugins import discovery
from fasttune.terminal import console, echo

if TYPE_CHECKING:
    from fasttune.inspection.check import CheckResult

ONE_TURN = "a row with more is refused, or its first exchange taken with data.turns=first"

group = typer.Typer(help="List, show, write and check prompt formats.", no_args_is_help=True)
app.add_typer(group, name="templates")


@group.command("list")
def list_templates(context: typer.Context, as_json: options.Json = False) -> None:
    """List the templates: what each one learns, and who provides it."""
    loaded = load_all(context)
    listed: list[dict[str, Any]] = [
        {
            "name": name,
            "description": template.description,
            "learns": list(template.targets),
            "turns": _turns(template),
            "provider": provider.name,
            "distribution": provider.distribution,
            "version": provider.version,
            "path": str(provider.path),
        }
        for name, (template, provider) in sorted(loaded.templates.items())
    ]
    if as_json:
        print_json(listed)
        return
    rows = [
        (name, ", ".join(template.targets), provider.origin, template.description)
        for name, (template, provider) in sorted(loaded.templates.items())
    ]
    console().print(table(("template", "learns", "provider", "description"), rows))
    if single := [t["name"] for t in listed if t["turns"] == "one"]:
        echo(f"one turn ({ONE_TURN}): {', '.join(single)}")


@group.command()
def show(
    context: typer.Context,
    name: Annotated[str, argument("A template, as in: fasttune templates list; or a YAML file.")],
    as_json: options.Json = False,
) -> None:
    """Show a template, and one row rendered with it."""
    template, provider = load_all(context).look_up(name)
    row = examples(template)[2]  # the first one with a context
    segments = template.rendered(row)
    values: dict[str, Any] = {
        "name": template.name,
        "description": template.description,
        "provider": str(provider),
        "identity": template.identity,
        "tags": list(template.tags),
        "targets": dict(template.targets),
        "required": list(template.required),
        "turns": _turns(template),
        "end": template.end or "EOS",
        "system": str(template.system_text({})),
    }
    if as_json:
        values["declaration"] = None if template.computed else template.declaration
        shown = [segment._asdict() for segment in segments]
        print_json({**values, "row": dict(row), "segments": shown})
        return
    values["tags"] = "  ".join(template.tags)
    values["required"] = ", ".join(template.required)
    values["targets"] = ", ".join(f"{s} (column {c})" for s, c in template.targets.items())
    many = "many: every answer of a conversation is learned, with its end"
    values["turns"] = many if template.conversations else f"one: {ONE_TURN}"
    console().print(facts({key: text for key, text in values.items() if text}))
    echo()
    _print_segments(segments, template.end)


@group.command()
def new(
    context: typer.Context,
    name: Annotated[str, argument("The new template's name.")],
    out: Annotated[
        Path | None,
        option("Folder. Default: plugins, formats (--yaml) or . (--package).", "--out", "-o"),
    ] = None,
    package: Annotated[bool, flag("Write a package that pip installs.", "--package")] = False,
    as_yaml: Annotated[bool, flag("Write a YAML file, found in formats/.", "--yaml")] = False,
    force: Annotated[bool, flag("Replace existing files.", "--force")] = False,
) -> None:
    """Write a working template and its test."""
    from fasttune.plugins.scaffold import scaffold

    if package and as_yaml:
        where = f"templates new {name}"
        raise FasttuneError("--package and --yaml exclude each other", where, "give one of them")
    form: Any = "package" if package else "yaml" if as_yaml else "plugin"
    written = scaffold(name, form, out, load_all(context), force)
    for path in written.files:
        echo(f"wrote {path}")
    for purpose, command in written.next.items():
        echo(f"{purpose + ':':<11} {command}")


@group.command()
def check(
    context: typer.Context,
    template: Annotated[str, argument("A template's name, a plugin file or a YAML file.")],
    data: Annotated[str | None, option("Check it on these rows, too.")] = None,
    columns: options.Columns = None,
    model: Annotated[str | None, option("Whose tokenizer; by default the default model's.")] = None,
    as_json: options.Json = False,
) -> None:
    """Check that a template can be learned; the exit status is 1 if not."""
    from fasttune.inspection.check import check_templates, templates_of

    if columns and data is None:
        where = f"--map {' '.join(columns)}"
        raise FasttuneError("--map renames columns of rows", where, "give --data, too")
    templates = templates_of(template, lambda: load_all(context))
    checked = check_templates(templates, model, data, parse_columns(columns or []))
    if as_json:
        print_json([asdict(each) for each in checked])
    else:
        for each in checked:
            echo(f"{each.template}, with the tokenizer of {each.tokenizer}")
            _print_results(each.checks)
    if not all(each.passed for each in checked):
        raise typer.Exit(EXIT_FAILURE)


plugin_group = typer.Typer(
    help="List what is loaded, from where, and what could not be loaded.",
    invoke_without_command=True,
)
app.add_typer(plugin_group, name="plugins")


@plugin_group.command()
def add(file: Annotated[Path, argument("A plugin file; it is loaded by its path.")]) -> None:
    """Load a plugin file with every command from now on."""
    discovery.add_plugin(file)
    echo(f"added {file.resolve()}: every command loads it from now on, and runs its code")


@plugin_group.command()
def remove(file: Annotated[Path, argument("A plugin file that was added.")]) -> None:
    """Stop loading a plugin file that was added; the file stays."""
    discovery.remove_plugin(file)
    echo(f"removed {file.resolve()}")


@plugin_group.callback()
def plugins(context: typer.Context, as_json: options.Json = False) -> None:
    """List what is loaded, from where, and what could not be loaded."""
    if context.invoked_subcommand is not None:
        return
    loaded = discovery.load_plugins(context.obj["folder"], files=context.obj["files"])
    provided = loaded.provided()
    listed = [
        {**asdict(p), "path": str(p.path), "provides": provided[name]}
        for name, p in loaded.providers.items()
    ]
    formats = {
        name: str(provider.path)
        for name, (_, provider) in loaded.templates.items()
        if provider.path in loaded.formats
    }
    if as_json:
        problems = [asdict(p) for p in loaded.problems]
        print_json({"plugins": listed, "formats": formats, "problems": problems})
        return
    rows = [
        (name, "\n".join(provided[name]) or "nothing", f"{p.origin}\n{p.path}")
        for name, p in loaded.providers.items()
    ]
    rows += [(name, f"template {name}", f"YAML\n{path}") for name, path in formats.items()]
    console().print(table(("plugin", "provides", "from"), rows))
    if loaded.problems:
        broken = {problem.name for problem in loaded.problems}
        good = ",".join(name for name in loaded.providers if name not in broken)
        failed = [(p.name, p.error, p.path) for p in loaded.problems]
        console().print("", table(("not loaded", "why", "file"), failed))
        echo(f"\nfix the file, remove it, or load the others alone: FASTTUNE_PLUGINS={good}")


def _turns(template: Template) -> str:
    return "many" if template.conversations else "one"


def _print_segments(segments: list[Segment], end: str) -> None:
    """One line per line of a segment: whether it is learned, its section, its text."""
    from rich.text import Text

    rows = []
    for segment in segments:
        kind, style = ("learned", "bold green") if segment.train else ("given", "cyan")
        for line in segment.text.splitlines(keepends=True):
            text = Text(line.replace("\n", "↵"), style)
            rows.append((Text(kind, style), Text(segment.name, "dim"), text))
    eos = Text(end or "end of text", "italic")
    rows.append((Text("learned", "bold green"), Text("eos", "dim"), eos))
    console().print(table(("", "", ""), rows))


def _print_results(results: list[CheckResult]) -> None:
    from rich.text import Text

    colours = {"ok": "green", "info": "cyan", "warning": "yellow", "failure": "bold red"}
    rows = []
    for result in results:
        hint = [f"  what to do: {result.hint}"] if result.hint else []
        lines = [result.message, *(f"  {row}" for row in result.rows), *hint]
        rows.append((Text(result.status, colours[result.status]), result.check, "\n".join(lines)))
    console().print(table(("", "", ""), rows))
