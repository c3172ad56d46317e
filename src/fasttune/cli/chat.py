"""`fasttune chat`: one question after another."""

from __future__ import annotations

import sys

import typer

from fasttune.chatting import ONE_TURN, Conversation
from fasttune.cli import options
from fasttune.cli.app import app, complain, plugins
from fasttune.cli.generate import print_piece
from fasttune.errors import FasttuneError
from fasttune.sampling import Sampling
from fasttune.source import find


@app.command()
def chat(
    context: typer.Context,
    run: options.RunOrModel,
    system: options.System = None,
    template: options.BaseTemplate = None,
    max_new_tokens: options.Tokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    repetition_penalty: options.Penalty = 1.0,
    seed: options.Seed = 0,
    stop_loops: options.StopLoops = True,
    force: options.ForceTemplate = False,
) -> None:
    """Ask one question after another.

    A template with conversations sees the earlier turns; with any other, each question is a fresh
    prompt. You can type the first question while the model loads.

    /input TEXT sets the context of the next question, /reset starts a new conversation, /base
    repeats the last question to the untuned model, and /quit or Ctrl-D ends.
    """
    sampling = Sampling(
        max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed, stop_loops
    )
    source = find(run, template, system, plugins(context), force)
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:  # before the model loads: the terminal keeps what is typed meanwhile
        remembers = "the conversation goes on until /reset"
        print(
            f"{remembers if source.template.conversations else ONE_TURN}; "
            "/input TEXT adds a context, /base asks the untuned model, /quit ends"
        )
        print(prompt, end="", flush=True)
    try:
        generator = source.load()
    except BaseException:
        if prompt:
            print()  # the error starts on a line of its own
        raise
    _talk(Conversation(generator, source.template, sampling, print_piece), prompt)


def _talk(conversation: Conversation, prompt: str) -> None:
    """Read lines until /quit. The first prompt is printed already."""
    asking = ""
    while True:
        try:
            line = input(asking)
        except EOFError:
            return
        if line.strip().partition(" ")[0] == "/quit":
            return
        asking = prompt
        try:
            if remark := conversation.take(line):
                print(remark)
        except KeyboardInterrupt:
            print("\n[interrupted]")
        except FasttuneError as error:
            complain(error)
