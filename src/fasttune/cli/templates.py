"""Commands: templates list, show, new and check; and plugins."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli.app import app, console, print_json
from fasttune.cli.app import plugins as load_all
from fasttune.errors import EXIT_FAILURE, FasttuneError
from fasttune.plugins.discovery import load_plugin, load_plugins
from fasttune.plugins.identity import PROBE_ROWS
from fasttune.plugins.template import Segment, Template

if TYPE_CHECKING:
    from fasttune.inspection.contract import Checked

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
SHOWN_ROW = PROBE_ROWS[2]  # the first one with a context

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
    name: Annotated[str, typer.Argument(help="A template, as in: fasttune templates list.")],
    as_json: Json = False,
) -> None:
    """Show a template, and one row rendered with it."""
    loaded = load_all(context)
    template, identity = loaded.template(name), loaded.identity(name)
    segments = list(template.segments(SHOWN_ROW))
    if as_json:
        print_json(
            {
                "name": name,
                "description": template.description,
                "identity": identity.as_dict(),
                "tags": list(template.tags),
                "targets": dict(template.targets),
                "turns": _turns(template),
                "required": list(template.required),
                "system": template.system,
                "row": dict(SHOWN_ROW),
                "segments": [asdict(segment) for segment in segments],
            }
        )
        return
    facts = {
        "template": name,
        "description": template.description,
        "provider": str(loaded.templates[name][1]),
        "rendering": identity.rendering,
        "source": identity.source,
        "tags": "  ".join(template.tags),
        "targets": ", ".join(
            f"{section} (column {column})" for section, column in template.targets.items()
        ),
        "required": ", ".join(template.required),
        "turns": "many: every answer of a conversation is learned, and ends with EOS"
        if template.holds_turns
        else f"one: {ONE_TURN}",
        "system": template.system,
    }
    _table(None, [(key, text) for key, text in facts.items() if text])
    print()
    _print_segments(segments)


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
            show_default="plugins; of a package the folder one stands in",
        ),
    ] = None,
    package: Annotated[
        bool, typer.Option("--package", help="Write a package that pip installs.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Write a working template and its test."""
    from fasttune.plugins.scaffold import new_package, new_template

    if package:
        for path in new_package(name, out or Path(), load_all(context), force):
            print(f"wrote {path}")
        home = path.parents[1]
        print(f"install it: pip install -e {home}\ncheck it:   fasttune templates check {name}")
        print(f"test it:    pytest {home}")
        return
    plugin, test = new_template(name, out or Path("plugins"), load_all(context), force)
    print(f"wrote {plugin}\nwrote {test}")
    print(f"check it:  fasttune templates check {plugin}\ntest it:   pytest {test}")
    print(f"use it:    fasttune --plugin {plugin} templates show {name}")


@group.command()
def check(
    context: typer.Context,
    template: Annotated[str, typer.Argument(help="A template's name, or a plugin file.")],
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
    from fasttune.inspection.contract import check_template, failed
    from fasttune.models.tokenizer import load_tokenizer

    mapping = parse_columns(columns or [])
    if mapping and data is None:
        raise FasttuneError(
            "--map renames columns of rows", f"--map {' '.join(columns or [])}", "give --data, too"
        )
    if template.endswith(".py"):
        loaded = load_plugin(Path(template))
        names = list(loaded.templates)
        if not names:
            raise FasttuneError(
                "the plugin provides no template", template, "add a register_templates hook"
            )
    else:
        loaded, names = load_all(context), [template]
    templates = [loaded.untried(name) for name in names]
    tokenizer = load_tokenizer(model)
    from transformers.utils import logging

    logging.set_verbosity_error()  # its remarks on long rows are about using a model
    checked = {t.name: check_template(t, tokenizer, data, mapping) for t in templates}
    if as_json:
        print_json(
            [
                {
                    "template": name,
                    "tokenizer": tokenizer.name_or_path,
                    "passed": not failed(results),
                    "checks": [asdict(result) for result in results],
                }
                for name, results in checked.items()
            ]
        )
    else:
        for name, results in checked.items():
            _print_results(f"{name}, with the tokenizer of {tokenizer.name_or_path}", results)
    if any(failed(results) for results in checked.values()):
        raise typer.Exit(EXIT_FAILURE)


@app.command()
def plugins(context: typer.Context, as_json: Json = False) -> None:
    """List what is loaded, from where, and what could not be loaded."""
    loaded = load_plugins(context.obj["folder"], files=context.obj["files"])
    provided = loaded.provided()
    listed = [
        {**asdict(p), "path": str(p.path), "provides": provided[name]}
        for name, p in loaded.providers.items()
    ]
    if as_json:
        print_json({"plugins": listed, "problems": [asdict(p) for p in loaded.problems]})
        return
    _table(
        ("plugin", "provides", "from"),
        [
            (p["name"], "\n".join(p["provides"]) or "nothing", f"{_origin(p)}\n{p['path']}")
            for p in listed
        ],
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
    return "many" if template.holds_turns else "one"


def _origin(thing: dict[str, Any]) -> str:
    return f"{thing['distribution']} {thing['version']}" if thing["distribution"] else "folder"


def _table(head: tuple[str, ...] | None, rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=head is not None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in head or rows[0]:
        table.add_column(Text(title), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)


def _print_segments(segments: list[Segment]) -> None:
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
    table.add_row(Text("learned", "bold green"), Text("eos", "dim"), Text("end of text", "italic"))
    console().print(table)


def _print_results(title: str, results: list[Checked]) -> None:
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
