"""`fasttune generate` and `fasttune chat`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli.app import app, complain, console, json_text, plugins, print_json
from fasttune.data.check import require_prompt
from fasttune.errors import FasttuneError
from fasttune.files import require_free
from fasttune.formats.row import Row
from fasttune.formats.template import tags_in
from fasttune.sampling import Sampling
from fasttune.source import find

if TYPE_CHECKING:
    from fasttune.comparison.result import Comparison
    from fasttune.formats.template import Template as Format
    from fasttune.generation.generator import Generator
    from fasttune.plugins.metric import Answer

RunArgument = Annotated[
    str, typer.Argument(help="A run (folder, name or 'last'), or a base model: name or folder.")
]
Template = Annotated[
    str | None,
    typer.Option("--template", "-t", help="Template, for a base model. Default: reasoning."),
]
System = Annotated[str | None, typer.Option(help="Replace the system text.")]
Tokens = Annotated[int, typer.Option("--max-new-tokens", help="Stop after this many tokens.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token; above 0 samples.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens of this probability.")]
TopK = Annotated[int, typer.Option(help="Sample from this many of the likeliest tokens; 0: all.")]
Penalty = Annotated[float, typer.Option(help="Repetition penalty; 1 is none.")]
StopLoops = Annotated[
    bool, typer.Option(help="End an answer that repeats itself; no token before changes.")
]
Seed = Annotated[int, typer.Option(help="Seed for sampling.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Use the loaded template if it differs from the run's."),
]
ForceOutput = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Replace --output; use the loaded template if it differs from the run's.",
    ),
]


@app.command()
def generate(
    context: typer.Context,
    run: RunArgument,
    instruction: Annotated[
        str | None, typer.Argument(help="What to ask.", show_default=False)
    ] = None,
    input_: Annotated[str, typer.Option("--input", help="Context for the instruction.")] = "",
    system: System = None,
    template: Template = None,
    file: Annotated[
        Path | None, typer.Option(help="Answer all rows of a file.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON Lines for --file; without it, printed."),
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--map", help="Column mapping for --file.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=10**6, help="Rows of --file in one batch.")
    ] = 32,
    max_new_tokens: Tokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    stop_loops: StopLoops = False,
    samples: Annotated[
        int, typer.Option(min=1, max=1000, help="Answers to each question, with a temperature.")
    ] = 1,
    vote: Annotated[
        bool, typer.Option("--vote", help="Of --samples, give the response that most agree on.")
    ] = False,
    score: Annotated[
        bool, typer.Option("--score", help="Of --file, whose rows have their references: figures.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Print the completion as it is, nothing else.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    force: ForceOutput = False,
) -> None:
    """Prompt a tuned model with the tokens it was trained on."""
    if (instruction is None) == (file is None):
        raise FasttuneError(
            "give an instruction or --file, one of them",
            f"fasttune generate {run}",
            'fasttune generate last "Your question"',
        )
    if (samples > 1 and temperature == 0) or (vote and samples == 1):
        raise FasttuneError(
            "--samples needs a --temperature above 0, and --vote needs --samples",
            f"--samples {samples} --temperature {temperature}{' --vote' * vote}",
            "fasttune generate last QUESTION --samples 9 --temperature 0.7 --vote",
        )
    if score and (file is None or (samples > 1 and not vote)):
        raise FasttuneError(
            "--score takes the figures of one answer to each row of a file",
            f"--score --samples {samples}",
            "give --file, and --vote with --samples",
        )
    if output is not None:
        _require_output(output, file, force)
    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
        repetition_penalty=repetition_penalty, seed=seed, stop_loops=stop_loops,
    )  # fmt: skip
    source = find(run, template, system, plugins(context), force)
    if file is not None:
        from fasttune.data.load import parse_columns

        rows = source.read(file, parse_columns(columns or []), labelled=score)
        generator, asked = source.load(), _Asked(sampling, batch_size, samples, vote)
        if not score:
            _answer_file(generator, rows, asked, output)
            return
        from fasttune.comparison.evaluation import score_answers
        from fasttune.generation.likelihood import with_likelihoods

        answers: list[Answer] = []
        _answer_file(generator, rows, asked, output, answers.append)
        answers = with_likelihoods(generator, answers, batch_size)
        _show_scores(score_answers(source.template.name, answers, source.plugins), output is None)
        return
    row = Row.of({"instruction": instruction or "", "input": input_})
    require_prompt(row, source.template)
    generator = source.load()
    if samples > 1:
        asked = _Asked(sampling, batch_size, samples, vote)
        [answers] = asked.answers(generator, [row])
        _show_samples(generator.prompt(row), answers, raw, as_json)
        return
    answer = generator.stream(row, sampling, (lambda piece: None) if as_json else _print_piece)
    if not as_json:
        print(flush=True)
    if as_json:
        from fasttune.plugins.metric import as_dict

        print_json({"prompt": generator.prompt(row), **as_dict(answer)})
    elif not raw:
        _show(answer)


@app.command()
def chat(
    context: typer.Context,
    run: RunArgument,
    system: System = None,
    template: Template = None,
    max_new_tokens: Tokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    stop_loops: StopLoops = True,
    force: Force = False,
) -> None:
    """Ask one question after another. The conversation goes on where the format holds it; in a
    format of one turn each question is a fresh prompt, as in training.

    /input TEXT sets the context for the next question, /reset begins a new conversation, /base has
    the untuned model answer the last question, too, /quit or Ctrl-D ends. The first question can be
    typed while the model loads.
    """
    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
        repetition_penalty=repetition_penalty, seed=seed, stop_loops=stop_loops,
    )  # fmt: skip
    source = find(run, template, system, plugins(context), force)
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        # Before loading, which takes seconds: the terminal keeps what is typed meanwhile.
        goes_on = "the conversation goes on until /reset"
        print(
            f"{goes_on if source.template.conversations else 'every question is a fresh prompt'}; "
            "/input TEXT adds a context, /base asks the untuned model, /quit ends"
        )
        print(prompt, end="", flush=True)
    try:
        generator = source.load()
    except BaseException:
        if prompt:
            print()  # what is said now begins a line
        raise
    asking = ""
    talk = _Talk(generator, source.template, sampling)
    while True:
        try:
            line = input(asking)
        except EOFError:
            return
        asking = prompt
        command, _, rest = line.strip().partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/input":
                talk.pending = rest.strip()
            elif command == "/reset":
                talk.reset()
            elif command == "/base":
                talk.ask_untuned()
            elif command.startswith("/"):
                print("commands: /input TEXT, /reset, /base, /quit")
            elif command:
                talk.ask(line)
        except KeyboardInterrupt:
            print("\n[interrupted]")
        except FasttuneError as error:
            complain(error)


class _Talk:
    """A conversation at the terminal.

    Attributes:
        pending: the context of the next question.
        earlier: the exchanges so far, where the format holds them.
        last: what was asked last.
    """

    def __init__(self, generator: Generator, template: Format, sampling: Sampling) -> None:
        self.generator, self.template, self.sampling = generator, template, sampling
        self.pending = ""
        self.earlier: list[dict[str, str]] = []
        self.last: Row | None = None

    def ask(self, question: str) -> None:
        """Raises FasttuneError for what cannot be asked."""
        asked = {"instruction": question, "input": self.pending}
        row = Row.of(asked, self.earlier)
        answer = self._answer(row)
        self.pending, self.last = "", row
        if not self.template.conversations:
            return
        targets = self.template.targets.items()
        said = {**asked, **{column: answer.sections.get(name, "") for name, column in targets}}
        if tags_in(self.template, said):
            print("[the answer holds a tag of the format: the conversation goes on without it]")
        else:
            self.earlier.append(said)

    def ask_untuned(self) -> None:
        """The untuned model's answer to the last question; the conversation goes on without it."""
        if self.last is None:
            print("ask something first: /base has the untuned model answer the same")
            return
        with self.generator.untuned():
            self._answer(self.last, "untuned, ")

    def reset(self) -> None:
        self.pending, self.earlier, self.last = "", [], None
        if not self.template.conversations:
            print("every question is a fresh prompt: the format holds one turn")

    def _answer(self, row: Row, who: str = "") -> Answer:
        answer = self.generator.stream(row, self.sampling, _print_piece)
        print(f"\n[{who}{answer.stop}, {answer.tokens} tokens]")
        return answer


def _require_output(output: Path, file: Path | None, force: bool) -> None:
    if file is None:
        raise FasttuneError(
            "--output takes the answers to a file of rows", f"--output {output}", "give --file, too"
        )
    if output.exists() and file.exists() and output.samefile(file):
        raise FasttuneError(
            "the answers would replace the rows", f"--output {output}", "choose another file"
        )
    require_free(output, "--output", force)


@dataclass(frozen=True)
class _Asked:
    """How rows are answered: each so many times, of which one is kept where there is a vote."""

    sampling: Sampling
    batch_size: int
    samples: int
    vote: bool

    def answers(
        self,
        generator: Generator,
        rows: Sequence[Row],
        report: Callable[[int], None] = lambda done: None,
    ) -> Iterator[list[Answer]]:
        from fasttune.plugins.metric import vote

        for found in generator.sampled(rows, self.samples, self.sampling, self.batch_size, report):
            yield [vote(found)] if self.vote else found


def _answer_file(
    generator: Generator,
    rows: Sequence[Row],
    asked: _Asked,
    output: Path | None,
    keep: Callable[[Answer], None] = lambda answer: None,
) -> None:
    from contextlib import ExitStack

    from fasttune.data.conversations import readable
    from fasttune.files import atomic_path

    with ExitStack() as stack:
        target = (
            stack.enter_context(
                stack.enter_context(atomic_path(output)).open("w", encoding="utf-8")
            )
            if output is not None
            else sys.stdout
        )
        report = _print_progress(len(rows)) if output is not None else lambda done: None
        for row, found in zip(rows, asked.answers(generator, rows, report), strict=True):
            keep(found[0])
            answers = _dicts(found)
            line = {
                **readable(row),
                **({"answers": answers} if answers[1:] else {"answer": answers[0]}),
            }
            if output is None:
                print(json_text(line))
            else:
                print(json.dumps(line, ensure_ascii=False), file=target)


def _show_scores(scores: Comparison, aside: bool) -> None:
    """The figures on standard output, or on standard error where that has the answers."""
    from rich.console import Console

    from fasttune.cli.compare import show_figures

    show_figures(scores, Console(stderr=True, highlight=False) if aside else None)


def _print_progress(total: int) -> Callable[[int], None]:
    return lambda done: print(f"{done}/{total}", file=sys.stderr)


def _print_piece(piece: str) -> None:
    print(piece, end="", flush=True)


def _show_samples(prompt: str, answers: Sequence[Answer], raw: bool, as_json: bool) -> None:
    if as_json:
        found = _dicts(answers)
        print_json({"prompt": prompt, **({"answers": found} if found[1:] else found[0])})
        return
    for answer in answers:
        if raw:
            print(answer.text)
        else:
            _show(answer)


def _dicts(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    from fasttune.plugins.metric import as_dict

    return [as_dict(answer) for answer in answers]


def _show(answer: Answer) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in answer.sections.items():
        table.add_row(name, text, style=None)
    reasons = {
        "eos": "ended with EOS",
        "length": "ran out of --max-new-tokens",
        "loop": "repeated itself",
    }
    if answer.samples:
        table.add_row(
            "vote", f"{answer.agreeing} of {len(answer.samples)} samples give this response"
        )
    table.add_row("stopped", f"{answer.stop}: {reasons[answer.stop]} ({answer.tokens} tokens)")
    print()
    console().print(table, markup=False)
