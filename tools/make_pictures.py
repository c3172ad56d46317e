"""Make the pictures of the README: python tools/make_pictures.py RUN

RUN is a run folder, a run's name or `last`, made by `fasttune run --config configs/demo.yaml`. Its
losses and answers are drawn as they were logged; the preview needs rows, template and tokenizer.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

import fasttune
from fasttune.files import write_text
from fasttune.inspection.preview import TerminalPreview
from fasttune.losses import plot_losses
from fasttune.runs import Run
from fasttune.training.report import draw_shares

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
ROW = 69
"""Number of the previewed row in the shipped rows: in English, with a context, and short."""
COLUMNS = 92

PAPER, INK = (255, 255, 255), (27, 27, 27)
THEME = TerminalTheme(PAPER, INK, [INK] * 8)


def draw_preview(run: Run, target: Path) -> None:
    """What `fasttune preview --row ROW` prints, as SVG."""
    shown = fasttune.preview(fasttune.prepare(run.config), row=ROW)
    shown = replace(shown, model=Path(shown.model).name)
    console = Console(
        record=True,
        width=COLUMNS,
        file=StringIO(),
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
    )
    console.print(TerminalPreview(shown))
    title = f"fasttune preview --template {shown.template} --row {ROW}"
    drawn = console.export_svg(title=title, theme=THEME, unique_id="preview")
    # Fonts from elsewhere are not loaded in a picture, and nobody should be asked for them.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    drawn = drawn.replace("Fira Code, monospace", "monospace")
    # Lines are clipped to their height, which cuts the underscores of other fonts.
    drawn = re.sub(r' clip-path="[^"]*"', "", drawn)
    drawn = re.sub(r"<defs>.*?</defs>\s*", "", drawn, flags=re.DOTALL)
    lines = [line.rstrip() for line in drawn.splitlines() if line.strip()]
    write_text(target, "\n".join(lines) + "\n")


def draw_losses(run: Run, target: Path) -> None:
    """The run's losses, as its loss.png has them."""
    model = Path(run.manifest["model"]).name
    plot_losses(run.metrics(), target, f"{run.config.template}, {model}")


def draw_answers(run: Run, target: Path) -> None:
    """The shares of exact answers, as the run's answers.png has them."""
    samples = json.loads((run.folder / "samples.json").read_text(encoding="utf-8"))
    draw_shares(samples["by"], target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder, a run's name or 'last'")
    run = fasttune.open_run(parser.parse_args().run)
    FOLDER.mkdir(exist_ok=True)
    draw_preview(run, FOLDER / "preview.svg")
    draw_losses(run, FOLDER / "loss.png")
    draw_answers(run, FOLDER / "answers.png")


if __name__ == "__main__":
    main()
