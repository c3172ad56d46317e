"""`fasttune doctor`: check this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fasttune.cli import options
from fasttune.cli.app import app, plugins, print_json, table
from fasttune.cli.options import flag
from fasttune.errors import EXIT_FAILURE
from fasttune.terminal import console


@app.command()
def doctor(
    context: typer.Context,
    offline: Annotated[bool, flag("Do not try to reach the Hub.", "--offline")] = False,
    as_json: options.Json = False,
) -> None:
    """Check this machine and print what to do; the exit status is 1 if something does not work."""
    from rich.text import Text

    from fasttune.doctor.machine import CHECKS, check_plugins, diagnose

    checks = [*CHECKS, ("plugins", lambda: check_plugins(plugins(context)))]
    if offline:
        checks = [(name, check) for name, check in checks if name != "Hub"]
    with console(stderr=True).status("checking, about 20 seconds"):
        findings = list(diagnose(checks))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        colours = {"ok": "green", "warning": "yellow", "failure": "bold red"}
        rows = []
        for finding in findings:
            detail = Text(finding.detail)
            if finding.hint:
                detail.append(f"\n-> {finding.hint}", "bold")
            rows.append((finding.name, Text(finding.status, colours[finding.status]), detail))
        console().print(table(("check", "status", "result, and what to do"), rows))
    if any(finding.status == "failure" for finding in findings):
        raise typer.Exit(EXIT_FAILURE)
