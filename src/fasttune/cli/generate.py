"""`fasttune generate`, `answer` and `chat`: one question, the rows of a file, a conversation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.answering import Asking, answer_file
from fasttune.chatting import FRESH, Conversation
from fasttune.cli import options
from fasttune.cli.app import app, complain, facts, plugins, print_json
from fasttune.cli.compare import show_figures
from fasttune.cli.options import argument, expand, flag, folder, option
from fasttune.data.check import require_prompt
from fasttune.data.load import parse_columns
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.plugins.metric import as_dict
from fasttune.sampling import Sampling
from fasttune.source import find_source
from fasttune.terminal import console, echo, json_text

if TYPE_CHECKING:
    from fasttune.plugins.metric import Answer

STOPPED = {
    "eos": "ended with EOS",
    "length": "ran out of --max-new-tokens",
    "loop": "repeated itself",
}


@app.command()
@expand
def generate(
    context: typer.Context,
    sampling: Sampling,
    run: options.RunOrModel,
    instruction: Annotated[str, argument("What to ask.")],
    input_: Annotated[str, option("Context for the instruction.", "--input")] = "",
    system: options.System = None,
    template: options.BaseTemplate = None,
    samples: options.Samples = 1,
    vote: options.Vote = False,
    raw: Annotated[bool, flag("Print the completion alone, as it is.", "--raw")] = False,
    as_json: options.Json = False,
    force: options.ForceTemplate = False,
) -> None:
    """Ask a tuned model one question, with the tokens it was trained on.

    `fasttune answer` answers the rows of a file.
    """
    asking = Asking(sampling, samples, vote)
    source = find_source(run, template, system, plugins(context), force)
    row = Row.of({"instruction": instruction, "input": input_})
    require_prompt(row, source.template)
    generator = source.load()
    streamed = samples == 1 and not as_json
    if samples > 1:
        [answers] = asking.answers(generator, [row])
    else:
        show = partial(echo, end="", raw=raw)
        answers = [generator.stream(row, sampling, show if streamed else lambda piece: None)]
    if as_json:
        plain = [as_dict(answer) for answer in answers]
        several = {"answers": plain} if plain[1:] else plain[0]
        print_json({"prompt": generator.prompt(row), **several})
        return
    if streamed:
        echo()
    _show(answers, raw, streamed)


@app.command()
@expand
def answer(
    context: typer.Context,
    sampling: Sampling,
    run: options.RunOrModel,
    rows: Annotated[
        list[str] | None,
        argument(
            "Rows to answer: .json, .jsonl, .csv, .tsv or .parquet; by default the run's held-out "
            "rows. Settings for reading them, such as data.skip_bad_rows=true.",
            metavar="FILE|KEY=VALUE",
            show_default=False,
        ),
    ] = None,
    columns: options.Columns = None,
    system: options.System = None,
    template: options.BaseTemplate = None,
    output: Annotated[Path | None, folder("JSON Lines to write. Default: print them.")] = None,
    batch_size: options.BatchSize = 32,
    samples: options.Samples = 1,
    vote: options.Vote = False,
    score: Annotated[bool, flag("Print every metric; needs reference answers.", "--score")] = False,
    force: Annotated[
        bool, flag("Replace --output; use the loaded template if the run's differs.", "--force")
    ] = False,
) -> None:
    """Answer the rows of a file, in batches, as JSON Lines.

    Only the columns of the prompt are needed, and with --score the reference answers. Without
    --map the columns are mapped as in the run.
    """
    asking = Asking(sampling, samples, vote, batch_size)
    files, reading = options.separate(rows)
    file = options.one_name(files)
    metrics = answer_file(
        find_source(run, template, system, plugins(context), force),
        None if file is None else Path(file),
        asking,
        lambda line: echo(json_text(line)),
        columns=parse_columns(columns or []),
        settings=reading,
        output=output,
        score=score,
        force=force,
        report=lambda done, rows: echo(f"{done}/{rows}", file=sys.stderr),
    )
    if metrics is not None:  # on standard error if standard output has the answers
        show_figures(metrics, None if output else console(stderr=True))


def _show(answers: Sequence[Answer], raw: bool, streamed: bool) -> None:
    """Print answers by section; with `raw` the text alone, unless it was streamed."""
    for answer in answers:
        if raw and not streamed:
            echo(answer.text, raw=True)
        elif not raw:
            lines: dict[str, Any] = dict(answer.sections)
            if count := len(answer.samples):
                lines["vote"] = f"{answer.agreeing} of {count} samples give this response"
            lines["stopped"] = f"{answer.stop}: {STOPPED[answer.stop]} ({answer.tokens} tokens)"
            echo()
            console().print(facts(lines))


@app.command()
@expand
def chat(
    context: typer.Context,
    run: options.RunOrModel,
    system: options.System = None,
    template: options.BaseTemplate = None,
    sampling: Sampling = Sampling(stop_loops=True),
    force: options.ForceTemplate = False,
) -> None:
    """Ask one question after another.

    A template with conversations sees the earlier turns; with any other, each question is a fresh
    prompt. You can type the first question while the model loads.

    /help explains the commands; /quit or Ctrl-D ends. Lines can be edited, and earlier ones are
    found with the up arrow.
    """
    source = find_source(run, template, system, plugins(context), force)
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:  # before the model loads: the terminal keeps what is typed meanwhile
        remembers = "the conversation goes on until /reset"
        echo(
            f"{remembers if source.template.conversations else FRESH}; "
            "/help explains the commands, /quit ends"
        )
        echo(prompt, end="")
    try:
        generator = source.load()
    except BaseException:
        if prompt:
            echo()  # the error starts on a line of its own
        raise
    if prompt:
        import readline  # noqa: F401  # lets `input` edit lines and remember them

        sys.stdout.write("\r")  # `input` prints the prompt again, and what was typed meanwhile
    show = partial(console().out, style="cyan", end="")
    _talk(Conversation(generator, source.template, sampling, show), prompt)


def _talk(conversation: Conversation, prompt: str) -> None:
    """Read lines until /quit."""
    out = console()
    while True:
        try:
            line = input(prompt)
        except EOFError:
            return
        if line.strip().partition(" ")[0] == "/quit":
            return
        try:
            remark = conversation.take(line)
            if len(conversation.sections) > 1:
                out.print("\n", facts(conversation.sections), end="")
            if remark:
                out.print(remark, style="dim", soft_wrap=True)
        except KeyboardInterrupt:
            echo("\n[interrupted]")
        except FasttuneError as error:
            complain(error)
