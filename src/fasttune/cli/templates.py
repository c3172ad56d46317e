"""Commands: templates list, show, new and check; and plugins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli.app import app, console, print_json
from fasttune.cli.app import plugins as load_all
from fasttune.errors import EXIT_FAILURE, FasttuneError
from fasttune.formats.examples import examples
from fasttune.formats.files import is_format_file, read_format
from fasttune.formats.parts import Segment
from fasttune.formats.template import Template
from fasttune.plugins import discovery

if TYPE_CHECKING:
    from fasttune.inspection.check import CheckResult

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

ONE_TURN = "a row with more is refused, or its first exchange taken with data.turns=first"

group = typer.Typer(help="See, write and check prompt formats.", no_args_is_help=True)
app.add_typer(group, name="templates")


@group.command("list")
def list_templates(context: typer.Context, as_json: Json = False) -> None:
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
    _table(
        ("template", "learns", "provider", "description"),
        [(t["name"], ", ".join(t["learns"]), _origin(t), t["description"]) for t in listed],
    )
    if single := [t["name"] for t in listed if t["turns"] == "one"]:
        print(f"one turn ({ONE_TURN}): {', '.join(single)}")


@group.command()
def show(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="A template, as in: fasttune templates list; or a YAML file.")
    ],
    as_json: Json = False,
) -> None:
    """Show a template, and one row rendered with it."""
    template, provider = load_all(context).found(name)
    row = examples(template)[2]  # the first one with a context
    segments = template.rendered(row)
    facts: dict[str, Any] = {
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
        print_json(
            {
                **facts,
                "declaration": None if template.computed else template.declaration,
                "row": dict(row),
                "segments": [segment._asdict() for segment in segments],
            }
        )
        return
    facts["tags"] = "  ".join(template.tags)
    facts["required"] = ", ".join(template.required)
    facts["targets"] = ", ".join(f"{s} (column {c})" for s, c in template.targets.items())
    facts["turns"] = (
        "many: every answer of a conversation is learned, with its end"
        if template.conversations
        else f"one: {ONE_TURN}"
    )
    _table(None, [(key, text) for key, text in facts.items() if text])
    print()
    _print_segments(segments, template.end)


@group.command()
def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The new template's name.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The folder to write to.",
            show_default="plugins; for --yaml formats; for --package the current folder",
        ),
    ] = None,
    package: Annotated[
        bool, typer.Option("--package", help="Write a package that pip installs.")
    ] = False,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Write a YAML file, which is found in formats/.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Write a working template and its test."""
    from fasttune.plugins.scaffold import new_format, new_package, new_template

    if package and as_yaml:
        raise FasttuneError(
            "--package and --yaml exclude each other", f"templates new {name}", "give one of them"
        )
    loaded = load_all(context)
    if package:
        for path in new_package(name, out or Path(), loaded, force):
            print(f"wrote {path}")
        home = path.parents[1]
        print(f"install it: pip install -e {home}\ncheck it:   fasttune templates check {name}")
        print(f"test it:    pytest {home}")
        return
    if as_yaml:
        file = new_format(name, out or Path("formats"), loaded, force)
        use = name if file.parent == Path("formats") else file
        print(f"wrote {file}\ncheck it:  fasttune templates check {file}")
        print(f"use it:    fasttune run --template {use} --data rows.jsonl")
        return
    plugin, test = new_template(name, out or Path("plugins"), loaded, force)
    print(f"wrote {plugin}\nwrote {test}")
    print(f"check it:  fasttune templates check {plugin}\ntest it:   pytest {test}")
    print(f"use it:    fasttune run --plugin {plugin} --template {name} --data rows.jsonl")
    print(f"always:    fasttune plugins add {plugin}")


@group.command()
def check(
    context: typer.Context,
    template: Annotated[
        str, typer.Argument(help="A template's name, a plugin file or a YAML file.")
    ],
    data: Annotated[
        str | None, typer.Option(help="Check it on these rows, too.", show_default=False)
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="OURS=THEIRS", help="Rename a column of --data."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Whose tokenizer; without it the default's.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that a template keeps its contract; exit status 1 if it does not."""
    from fasttune.data.load import parse_columns
    from fasttune.inspection.check import check_template, failed
    from fasttune.models.tokenizer import load_tokenizer

    mapping = parse_columns(columns or [])
    if mapping and data is None:
        raise FasttuneError(
            "--map renames columns of rows", f"--map {' '.join(columns or [])}", "give --data, too"
        )
    if template.endswith(".py"):
        provided = discovery.load_plugin(Path(template)).templates.values()
        templates = [each for each, _ in provided]
        if not templates:
            raise FasttuneError(
                "the plugin provides no template", template, "add a register_templates hook"
            )
    elif is_format_file(template):
        templates = [read_format(Path(template))]
    else:
        templates = [load_all(context).template(template)]
    tokenizers = [load_tokenizer(model, each.end) for each in templates]
    from transformers.utils import logging  # slow: after errors that need no tokenizer

    logging.set_verbosity_error()  # its remarks on long rows are about using a model
    checked = {
        each.name: check_template(each, tokenizer, data, mapping)
        for each, tokenizer in zip(templates, tokenizers, strict=True)
    }
    used = tokenizers[0].name_or_path
    if as_json:
        print_json(
            [
                {
                    "template": name,
                    "tokenizer": used,
                    "passed": not failed(results),
                    "checks": [asdict(result) for result in results],
                }
                for name, results in checked.items()
            ]
        )
    else:
        for name, results in checked.items():
            _print_results(f"{name}, with the tokenizer of {used}", results)
    if any(failed(results) for results in checked.values()):
        raise typer.Exit(EXIT_FAILURE)


plugin_group = typer.Typer(
    help="List what is loaded, from where, and what could not be loaded.",
    invoke_without_command=True,
)
app.add_typer(plugin_group, name="plugins")


@plugin_group.command()
def add(
    file: Annotated[Path, typer.Argument(help="A plugin file; it is loaded by its path.")],
) -> None:
    """Load a plugin file with every command from now on."""
    discovery.add_plugin(file)
    print(f"added {file.resolve()}: every command loads it from now on, and runs its code")


@plugin_group.command()
def remove(
    file: Annotated[Path, typer.Argument(help="A plugin file that was added.")],
) -> None:
    """Stop loading a plugin file that was added; the file stays."""
    discovery.remove_plugin(file)
    print(f"removed {file.resolve()}")


@plugin_group.callback()
def plugins(context: typer.Context, as_json: Json = False) -> None:
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
    _table(
        ("plugin", "provides", "from"),
        [
            (p["name"], "\n".join(p["provides"]) or "nothing", f"{_origin(p)}\n{p['path']}")
            for p in listed
        ]
        + [(name, f"template {name}", f"YAML\n{path}") for name, path in formats.items()],
    )
    if loaded.problems:
        print()
        _table(
            ("not loaded", "why", "file"),
            [(p.name, p.error, p.path) for p in loaded.problems],
        )
        broken = {problem.name for problem in loaded.problems}
        good = ",".join(name for name in loaded.providers if name not in broken)
        print(f"\nfix the file, or remove it, or leave it out: FASTTUNE_PLUGINS={good}")


def _turns(template: Template) -> str:
    return "many" if template.conversations else "one"


def _origin(thing: dict[str, Any]) -> str:
    return f"{thing['distribution']} {thing['version']}" if thing["distribution"] else "file"


def _table(head: tuple[str, ...] | None, rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=head is not None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in head or rows[0]:
        table.add_column(Text(title), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)


def _print_segments(segments: list[Segment], end: str) -> None:
    """One line per line of a segment: whether it is learned, its section, its text."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for segment in segments:
        kind, style = ("learned", "bold green") if segment.train else ("given", "cyan")
        for line in segment.text.splitlines(keepends=True):
            text = Text(line.replace("\n", "↵"), style)
            table.add_row(Text(kind, style), Text(segment.name, "dim"), text)
    table.add_row(
        Text("learned", "bold green"), Text("eos", "dim"), Text(end or "end of text", "italic")
    )
    console().print(table)


def _print_results(title: str, results: list[CheckResult]) -> None:
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "info": "cyan", "warning": "yellow", "failure": "bold red"}
    table = Table.grid(padding=(0, 2, 0, 0))
    for result in results:
        lines = [result.message, *(f"  {row}" for row in result.rows)]
        if result.hint:
            lines.append(f"  what to do: {result.hint}")
        table.add_row(
            Text(result.status, colours[result.status]), Text(result.check), Text("\n".join(lines))
        )
    console().print(Text(title), table)
