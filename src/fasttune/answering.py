"""Answers to a question or to the rows of a file: one each, several samples, or their vote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune.data.conversations import readable
from fasttune.data.sources import reader
from fasttune.data.suggest import mapped
from fasttune.errors import FasttuneError
from fasttune.files import atomic_path, require_free
from fasttune.plugins.metric import Answer, as_dict, vote
from fasttune.sampling import Sampling
from fasttune.source import Source
from fasttune.terminal import json_text

if TYPE_CHECKING:
    from fasttune.comparison.result import Comparison
    from fasttune.generation.generator import Generator


@dataclass(frozen=True)
class Asking:
    """How to answer each row: with several samples, or with the response that most of them give."""

    sampling: Sampling
    samples: int = 1
    vote: bool = False
    batch_size: int = 32

    def __post_init__(self) -> None:
        where = f"--samples {self.samples}{' --vote' * self.vote}"
        if self.samples > 1 and self.sampling.temperature == 0:
            raise FasttuneError(
                "--samples needs a --temperature above 0", where, "add --temperature 0.7"
            )
        if self.vote and self.samples == 1:
            raise FasttuneError("--vote needs --samples", where, "add --samples 9")

    def answers(
        self,
        generator: Generator,
        rows: Sequence[Mapping[str, str]],
        report: Callable[[int], None] = lambda done: None,
    ) -> Iterator[list[Answer]]:
        """Yield the answers to each row, in order; `report` gets the number of answered rows after
        every batch."""
        repeated = [row for row in rows for _ in range(self.samples)]
        answers = generator.answers(
            repeated, self.sampling, self.batch_size, lambda done: report(done // self.samples)
        )
        for _ in rows:
            samples = list(islice(answers, self.samples))
            yield [vote(samples)] if self.vote else samples


def answer_file(
    source: Source,
    file: Path | None,
    asking: Asking,
    show: Callable[[dict[str, Any]], None],
    *,
    columns: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
    output: Path | None = None,
    score: bool = False,
    force: bool = False,
    report: Callable[[int, int], None] = lambda done, rows: None,
) -> Comparison | None:
    """Answer every row of a file, and return every metric of the answers with `score`.

    Args:
        file: None for the rows that the run holds out.
        show: called with each row and its answer, unless they go to the JSON Lines of `output`.
        columns, settings: see `Source.read`.
        force: replace `output`.
        report: called with the answered rows and all rows, if there is an `output`.
    """
    if score and asking.samples > 1 and not asking.vote:
        raise FasttuneError(
            "--score takes one answer per row", f"--samples {asking.samples}", "add --vote"
        )
    if output is not None:
        if output.exists() and file and file.exists() and output.samefile(file):
            what = "the answers would replace the rows"
            raise FasttuneError(what, f"--output {output}", "choose another file")
        require_free(output, "--output", force)
    several = asking.samples > 1 and not asking.vote
    key = "answers" if several else "answer"
    mapping = columns or (source.own_columns(str(file)) if file else {})
    rows = source.read(file, mapping, settings, labelled=score)
    numbers = {rows.number(at) for at in range(len(rows))} if file else set()

    def records() -> Iterator[dict[str, Any]]:  # `rows` hold their text alone
        if file is None:
            return map(readable, rows)
        return (
            mapped(record, mapping) for number, record in reader(file, "train") if number in numbers
        )

    if any(key in record for record in records()):
        raise FasttuneError(
            f"the rows have a column '{key}', where the answers are written",
            str(file),
            f"map it, as in --map output={key}, or rename it in the file",
        )
    generator = source.load()
    progress = (lambda done: report(done, len(rows))) if output else (lambda done: None)
    scored: list[Answer] = []

    def lines() -> Iterator[dict[str, Any]]:
        for record, answers in zip(
            records(), asking.answers(generator, rows, progress), strict=True
        ):
            if score:
                scored.extend(answers)
            plain = [as_dict(answer) for answer in answers]
            yield {**record, key: plain if several else plain[0]}

    if output is None:
        for line in lines():
            show(line)
    else:
        with atomic_path(output) as path, path.open("w", encoding="utf-8") as target:
            for line in lines():
                target.write(json_text(line) + "\n")
    if not score:
        return None
    from fasttune.comparison.result import Arm, measure_arms
    from fasttune.generation.likelihood import with_likelihoods

    label, metrics = source.template.name, source.plugins.metrics_of(source.template)
    scored = with_likelihoods(generator, scored, asking.batch_size)
    return measure_arms({}, [Arm(label, label, None, scored)], metrics, [])
