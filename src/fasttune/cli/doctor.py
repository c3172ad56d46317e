"""Commands: doctor."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fasttune.cli.app import app, console, plugins, print_json
from fasttune.errors import EXIT_FAILURE


@app.command()
def doctor(
    context: typer.Context,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not try to reach the Hub.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead.")] = False,
) -> None:
    """Check this machine and say what to do; exit status 1 if something does not work."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fasttune.doctor.checks import diagnose
    from fasttune.doctor.machine import CHECKS, plugins_check

    checks = [*CHECKS, plugins_check(lambda: plugins(context))]
    if offline:
        checks = [(name, check) for name, check in checks if name != "Hub"]
    with Console(file=sys.stderr).status("checking, about 20 seconds"):
        findings = list(diagnose(checks))
    if json:
        print_json([finding.as_dict() for finding in findings])
    else:
        colours = {"ok": "green", "warning": "yellow", "failure": "bold red"}
        table = Table("check", "status", "found, and what to do", box=None)
        for finding in findings:
            told = Text(finding.detail)
            if finding.hint:
                told.append(f"\n-> {finding.hint}", "bold")
            table.add_row(finding.name, Text(finding.status, colours[finding.status]), told)
        console().print(table)
    if any(finding.status == "failure" for finding in findings):
        raise typer.Exit(EXIT_FAILURE)
