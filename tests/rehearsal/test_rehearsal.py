"""A run of Phi-2 as a card takes it, by the code: what Unsloth does where it finds CUDA, on a CPU.

Each test reads what one of few processes left: sitecustomize.py answers for the card, commands.py
goes through the commands, and reference.py computes the same with transformers and PEFT alone. The
short form takes two cards and runs Unsloth's blocks as Dynamo captures them; `make rehearse` takes
three, has the blocks compiled, and more settings.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fasttune.plugins.discovery import load_plugins
from fasttune.runs import Run
from tests.conftest import rows, tiny_model, write_rows

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
CARDS = {"t4": "float16", "a10g": "bfloat16", "h100": "bfloat16"}  # what "auto" computes in there
TARGETS = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
LAYERS = 2

UGLY = re.compile(
    r"Traceback|Logging error|[Ff]all(ing|s)?[ -]?back|[Ww]arning|[Dd]eprecat|Unsloth|====|CUDA"
)
"""What a person must not see."""

PRESS_CTRL_C = """
import os, signal
from transformers import TrainerCallback
from fasttune import hookimpl

class PressCtrlC(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)

@hookimpl
def training_callbacks(run):
    return [PressCtrlC()]
"""


@dataclass(frozen=True)
class Ended:
    """How one piece of work ended, what it printed, and what commands.py noted."""

    status: int
    out: str
    err: str
    facts: dict


class Rehearsal:
    """A process that does pieces of work as on a card; they are asked for by their names.

    Attributes:
        standing: the folder it stands in, empty at the beginning.
    """

    def __init__(self, card: str, home: Path, work: dict[str, dict], compiled: bool = False):
        self.names = list(work)
        self.standing, self.results = home / "standing", home / "results"
        for folder in (self.standing, self.results):
            folder.mkdir()
        self._log = (home / "log.txt").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, HERE / "commands.py", self.results],
            cwd=self.standing,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(home)
            | {"FASTTUNE_REHEARSE": card, "PYTHONPATH": str(HERE)}
            | ({} if compiled else {"FASTTUNE_REHEARSE_COMPILE": "eager"}),
        )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            json.dump(list(work.values()), stdin)

    def __getitem__(self, name: str) -> Ended:
        self.wait()
        place = self.place(name)
        facts = json.loads(place.with_suffix(".json").read_text())
        out, err = (place.with_suffix(end).read_text() for end in (".out", ".err"))
        return Ended(facts.pop("status"), out, err, facts)

    def place(self, name: str) -> Path:
        return self.results / str(self.names.index(name))

    def wait(self) -> None:
        if self._process.wait() != 0:
            done = sorted(self.results.glob("*.err"), key=lambda file: int(file.stem))
            self._log.seek(0)
            last = done[-1].read_text()[-3000:] if done else ""
            pytest.fail(f"the process ended early\n{last}\n{self._log.read()[-3000:]}")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def environment(home: Path) -> dict[str, str]:
    """That of the tests, without what an import of Unsloth has set in it, and not offline: a local
    model needs no network."""
    ours = ("UNSLOTH", "TRITON", "TORCHINDUCTOR", "HF_HUB_OFFLINE")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "FASTTUNE_CACHE": str(home / "cache"),
        "XDG_STATE_HOME": str(home / "state"),  # of two processes, each has its own last run
        "TORCHINDUCTOR_CACHE_DIR": str(home.parent / "inductor"),
        "OMP_NUM_THREADS": "1",  # two processes at a time
    }


def reference(home: Path, model: Path, results: Path, **work: list) -> list[list[str]]:
    """What reference.py computes; its greedy answers."""
    done = subprocess.run(
        [sys.executable, HERE / "reference.py", model, results],
        input=json.dumps({"steps": [], "answers": [], **work}),
        env=environment(home),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers: list[list[str]] = json.loads(done.stdout)
    return answers


# What is rehearsed


QUESTION = {"instruction": "Add 3 and 4.", "input": ""}
ASKED = [QUESTION, {"instruction": "日本の首都は？", "input": "地理の問題です。"}]
TOKENS = "6"


@dataclass(frozen=True)
class Props:
    """The files that commands are given, outside of where they stand."""

    model: Path
    rows: Path
    asked: Path
    plugins: Path

    @property
    def settings(self) -> list:
        """Three steps, of which the last is evaluated."""
        return [
            "-d", self.rows, "-m", self.model, "lora.r=4",
            "data.eval_fraction=0.2", "model.max_length=128", "train.batch_size=2",
            "train.max_steps=3", "train.eval_steps=3", "train.save_steps=3",
            "train.warmup_steps=1", "train.learning_rate=1e-2", "samples.count=1",
            "samples.max_new_tokens=4",
        ]  # fmt: skip

    def run(self, *settings: str) -> dict:
        return command("run", "-t", "reasoning", *self.settings, *settings)

    def compared(self, *settings: str) -> dict:
        return command(
            "compare", "--templates", "reasoning,alpaca", "--no-include-base", "--rows", 2,
            "--max-new-tokens", 4, "-o", "compared", *self.settings, *settings,
        )  # fmt: skip

    def answers(self, run: str = "last") -> dict[str, dict]:
        """The same questions asked in three ways."""
        question, limit = QUESTION["instruction"], ("--max-new-tokens", TOKENS)
        return {
            "streamed": command("generate", run, question, "--raw", *limit),
            "file": command("answer", run, self.asked, "-o", "answers.jsonl", *limit),
            "chat": command("chat", run, *limit, input=f"{question}\n"),
        }


def command(*arguments: object, input: str = "") -> dict:
    return {"arguments": ["--traceback", *map(str, arguments)], "input": input}


@pytest.fixture(scope="module")
def props(tmp_path_factory, phi2_tokenizer) -> Props:
    home = tmp_path_factory.mktemp("props")
    plugins = home / "plugins"
    plugins.mkdir()
    (plugins / "interrupting.py").write_text(PRESS_CTRL_C)
    model = tiny_model("phi", phi2_tokenizer, dtype="float16")
    asked = write_rows(home / "asked.jsonl", ASKED)
    return Props(model, write_rows(home / "rows.jsonl", rows(12)), asked, plugins)


EXACT, UNQUANTISED = "model.precision=fp32", "model.quantization=none"
FAST = "model.fast_path=on"


@dataclass(frozen=True)
class Step:
    """A step, and how far it may be from the reference.

    Attributes:
        loss: in nats.
        gradient: of the largest of its matrix.
    """

    settings: tuple[str, ...]
    loss: float
    gradient: float


# fp32 on both sides; where it is quantised, of the same quantised matrices.
SHARP = (1e-5, 1e-4)
# fp16 rounds by 2^-11 = 0.05 %, several times on the way. Found: 6e-5, 0.17 %.
HALF = (5e-4, 1e-2)

STEPS = {
    "exact": Step((EXACT, UNQUANTISED, "train.gradient_checkpointing=off"), *SHARP),
    "offloaded": Step(
        (EXACT, UNQUANTISED, "train.gradient_checkpointing=unsloth", "model.max_length=512"), *SHARP
    ),
    "nf4": Step((EXACT, "model.quantization=nf4", "train.gradient_checkpointing=off"), *SHARP),
    "scaled": Step(("model.precision=fp16", "train.gradient_checkpointing=off"), *HALF),
    "fast": Step((EXACT, FAST, "train.gradient_checkpointing=unsloth"), *SHARP),
    "fast scaled": Step(("model.precision=fp16", FAST, "train.gradient_checkpointing=off"), *HALF),
}


def take_steps(props: Props, steps: dict[str, Step]) -> dict[str, dict]:
    common = (f"model.name={props.model}", "model.max_length=100")
    return {name: {"step": [*common, *step.settings]} for name, step in steps.items()}


@pytest.fixture(scope="module")
def processes(tmp_path_factory, props):
    """The short form: a run on an A10G as a person would have it, and on a T4 what can be held
    against the reference, at the same time."""
    a10g = {
        "compared": props.compared(),
        "interrupted": props.run("--plugins-dir", props.plugins),
        "resumed": command("run", "--resume", "last", "--json"),
        **props.answers(),
        "merged": command("export", "last", "--output", "merged", "--rows", 1),
    }
    t4 = {
        **take_steps(props, STEPS),
        "plain": props.run(EXACT, UNQUANTISED),
        **props.answers(),
    }
    homes = [tmp_path_factory.mktemp(name) for name in ("a10g", "t4")]
    started = [
        Rehearsal(card, home, work)
        for card, home, work in zip(("a10g", "t4"), homes, (a10g, t4), strict=True)
    ]
    yield started
    for each in started:
        each.stop()


@pytest.fixture(scope="module")
def a10g(processes) -> Rehearsal:
    return processes[0]


@pytest.fixture(scope="module")
def t4(processes) -> Rehearsal:
    return processes[1]


@pytest.fixture(scope="module")
def expected(t4, props) -> list[str]:
    """The reference of all steps, and its greedy answers with the adapter of the fp32 run."""
    t4.wait()
    prompts = [load_plugins().template("reasoning").prompt(row) for row in ASKED]
    adapter = str(run_of(t4, "runs").adapter)
    asked = [{"adapter": adapter, "prompts": prompts, "tokens": int(TOKENS)}]
    numbers = [t4.names.index(name) for name in STEPS]
    [answers] = reference(t4.results.parent, props.model, t4.results, steps=numbers, answers=asked)
    return answers


def run_of(rehearsal: Rehearsal, folder: str, pattern: str = "*") -> Run:
    [found] = (rehearsal.standing / folder).rglob(f"{pattern}/manifest.json")
    return Run(found.parent)


# What has to hold


def assert_tidy(rehearsal: Rehearsal, statuses: dict[str, int], *left: str) -> None:
    """Commands ended as they should, nothing was said that a person must not see, and where they
    stand there is nothing but what was asked for."""
    for name in rehearsal.names:
        ended = rehearsal[name]
        assert ended.status == statuses.get(name, 0), (name, ended.err)
        assert ended.facts["counts"]["connections"] == 0, name
        lines = (ended.out + ended.err).splitlines()
        text = "\n".join(line for line in lines if "alpaca does not read: reasoning" not in line)
        ugly = name not in STEPS and UGLY.search(text)
        assert not ugly, (name, text)
    assert {each.name for each in rehearsal.standing.iterdir()} == set(left)


def assert_the_cards_code(ended: Ended, dtype: str, quantized: bool, trained: bool = False) -> None:
    """Of every model and trainer of a command."""
    assert ended.facts["models"] and ended.facts["before_unsloth"] == []
    for model in ended.facts["models"]:
        assert model["generate"] == "transformers.generation.utils"
        assert model["dtype"] == dtype and model["dropout"] == 0
        assert model["quantized"] == quantized * LAYERS * len(TARGETS)
        assert model["adapters"] == ["torch.float32"] and not model["offloaded_embeddings"]
    assert bool(ended.facts["trainers"]) == trained
    for trainer in ended.facts["trainers"]:
        assert "UnslothSFTTrainer" in trainer["bases"]
        assert trainer["compiled_blocks"] == trainer["blocks"] == LAYERS
        words = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
        assert trainer["mixed_precision"] == words[dtype]
        assert trainer["scaler"] == (dtype == "float16")
        assert trainer["optimizer"].startswith("bitsandbytes.")
    assert (ended.facts["counts"]["nf4"] > 0) == (quantized and trained)


def assert_the_cards_choices(manifest: dict, dtype: str, quantized: bool) -> None:
    choices = manifest["choices"]
    assert (choices["kind"], choices["dtype"]) == ("cuda", dtype)
    assert choices["quantization"] == manifest["quantization"] == ("nf4" if quantized else "none")
    assert choices["autocast"] == (dtype != "float32")
    assert choices["loss_scaling"] == (dtype == "float16")
    assert choices["optimizer"] == "adamw_8bit" and not choices["fast_path"]


def assert_near(rehearsal: Rehearsal, name: str, step: Step) -> None:
    """Both losses of a step and every gradient."""
    got, expected = (
        load_file(rehearsal.place(name).with_suffix(end))
        for end in (".safetensors", ".reference.safetensors")
    )
    wanted = float(expected.pop("loss"))
    for loss in (got["loss 0"], got["loss 1"]):
        assert float(loss) == pytest.approx(wanted, abs=step.loss)
    assert len(expected) == 2 * LAYERS * len(TARGETS)
    for gradient, tensor in expected.items():
        largest = tensor.abs().max()
        assert largest > 0, gradient
        assert (got[gradient] - tensor).abs().max() <= step.gradient * largest, gradient


def texts(rehearsal: Rehearsal) -> dict[str, list[str]]:
    """What each way of asking answered."""
    lines = (rehearsal.standing / "answers.jsonl").read_text().splitlines()
    return {
        "streamed": [rehearsal["streamed"].out.removesuffix("\n")],
        "chat": [rehearsal["chat"].out.partition("\nreasoning  ")[0]],
        "file": [json.loads(line)["answer"]["text"] for line in lines],
    }


# The short form


def test_commands_on_an_a10g_end_well_and_leave_only_what_was_asked_for(a10g):
    left = ("compared", "runs", "answers.jsonl", "merged")
    assert_tidy(a10g, {"interrupted": 130}, *left)


def test_commands_on_a_t4_end_well_and_leave_only_what_was_asked_for(t4):
    assert_tidy(t4, {}, "runs", "answers.jsonl")


def test_a_run_takes_the_code_and_the_choices_of_the_card(a10g, t4):
    for name in ("compared", "interrupted", "resumed"):
        assert_the_cards_code(a10g[name], "bfloat16", quantized=True, trained=True)
    assert_the_cards_code(t4["plain"], "float32", quantized=False, trained=True)
    for rehearsal, dtype, quantized in ((a10g, "bfloat16", True), (t4, "float32", False)):
        assert_the_cards_choices(run_of(rehearsal, "runs").manifest, dtype, quantized)


def test_answers_take_the_code_of_the_card(a10g, t4):
    for name in ("streamed", "file", "chat"):
        assert_the_cards_code(a10g[name], "bfloat16", quantized=True)
        assert_the_cards_code(t4[name], "float32", quantized=False)


def test_json_is_all_that_standard_output_gets(a10g):
    manifest = json.loads(a10g["resumed"].out)
    assert manifest["status"] == "done" and manifest["steps"] == 3


def test_a_comparison_has_a_verdict_and_a_report(a10g):
    ended = a10g["compared"]
    assert "reasoning" in ended.out and "alpaca" in ended.out
    assert (a10g.standing / "compared" / "report.html").is_file()


def test_a_run_resumed_after_ctrl_c_has_the_losses_of_an_unbroken_one(a10g):
    assert "interrupted; resume it: fasttune run --resume" in a10g["interrupted"].err
    a10g.wait()
    unbroken = run_of(a10g, "compared", "reasoning-*").metrics()
    resumed = run_of(a10g, "runs").metrics()
    assert [line["step"] for line in resumed] == [0, 1, 2, 3, 3]
    for one, other in zip(unbroken, resumed, strict=True):
        key = "eval_loss" if "eval_loss" in one else "loss"
        assert other[key] == pytest.approx(one[key], abs=1e-6)
    assert unbroken[-1]["eval_loss"] < unbroken[0]["eval_loss"] - 0.1  # it learns


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_that_of_transformers_and_peft(name, t4, expected):
    assert_near(t4, name, STEPS[name])


def test_steps_ran_the_kernel_and_the_offloading_that_they_are_named_for(t4):
    counts = {name: t4[name].facts["counts"] for name in STEPS}
    assert counts["nf4"]["nf4"] > 0 and counts["scaled"]["nf4"] > 0 == counts["exact"]["nf4"]
    # Each matrix twice before training, and of four packs once in every pass over it: forward,
    # forward again, backward.
    matrices = LAYERS * len(TARGETS)
    assert counts["fast"]["nf4"] == (2 + 4 * 3) * matrices
    assert counts["fast scaled"]["nf4"] == (2 + 4 * 2) * matrices
    assert counts["offloaded"]["offloaded"] >= LAYERS and counts["exact"]["offloaded"] == 0


def test_greedy_answers_are_those_of_transformers_and_peft(t4, expected):
    for name, found in texts(t4).items():
        assert found == expected[: len(found)], name


def test_answers_in_nf4_do_not_depend_on_how_they_are_asked_for(a10g):
    a10g.wait()
    found = texts(a10g)
    assert all(each[0] == found["file"][0] for each in found.values())
    assert found["file"][0]


def test_a_merged_export_is_verified(a10g):
    assert "verified" in a10g["merged"].out.splitlines()
    verification = json.loads((a10g.standing / "merged" / "verification.json").read_text())
    assert verification["verified"] is True


# The long form


@pytest.mark.skipif(not os.environ.get("FASTTUNE_REHEARSE_LONG"), reason="make rehearse")
@pytest.mark.parametrize("card", CARDS)
def test_at_length(card, props, tmp_path):
    """With the blocks compiled, and with settings that the short form leaves out."""
    question, limit = QUESTION["instruction"], ("--max-new-tokens", TOKENS)
    trained = {
        "run": props.run("--json"),
        "unquantised": props.run("-o", "unquantised", UNQUANTISED),
        "padded": props.run("-o", "padded", "train.packing=false"),
        "checkpointed": props.run("-o", "checkpointed", "train.gradient_checkpointing=on"),
        "offloaded": props.run(
            "-o", "offloaded", "train.gradient_checkpointing=unsloth", "model.max_length=512"
        ),
    }
    work = {
        **trained,
        **props.answers(),
        "sampled": command("generate", "last", question, "--temperature", "1", *limit),
        "gguf": command("export", "last", "--to", "gguf", "--output", "gguf", "--no-verify"),
        "compared": props.compared(),
    }
    rehearsal = Rehearsal(card, tmp_path, work, compiled=True)
    try:
        folders = ("runs", *list(trained)[1:])
        assert_tidy(rehearsal, {}, *folders, "answers.jsonl", "gguf", "compared")
        for name in trained:
            quantized = name != "unquantised"
            assert_the_cards_code(rehearsal[name], CARDS[card], quantized, trained=True)
        found = texts(rehearsal)
        assert all(each[0] == found["file"][0] for each in found.values())
        assert (rehearsal.standing / "compared" / "report.html").is_file()
    finally:
        rehearsal.stop()
