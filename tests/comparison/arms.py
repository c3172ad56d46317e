"""Answers and logs of made-up arms, with what a page has to survive: markup and other scripts."""

from __future__ import annotations

from fasttune import Answer, Metric
from fasttune.plugins.metric import Likelihood

LONG = "reasoning-SmolLM2-135M-Instruct-20261123-112004"  # a run's name, where templates are alike
EVIL = "<script>window.evil = 1</script></script><img src=x onerror='evil = 1'>"
LOOP = "It is Monday. Then I go on and on and on and on and on."
JAPANESE = "東京は日本の首都です。人口が多い。"
ARABIC = "القاهرة هي عاصمة مصر وتقع على نهر النيل."
ROWS = [
    {"instruction": "What is the capital of Japan?", "output": "Tokyo", "task": "capital"},
    {
        "instruction": "日本の首都はどこですか？",
        "output": JAPANESE,
        "reasoning": "首都を思い出す。",
    },
    {"instruction": "ما هي عاصمة مصر؟", "input": "مصر بلد في أفريقيا", "output": ARABIC},
    {"instruction": f"{EVIL} {'much ' * 40}", "input": "a" * 300, "output": EVIL},
    {"instruction": "Say a \"quote\" & 'another'.", "output": '"'},
]
METRICS = [
    Metric("stops", "share that ended with EOS", lambda answer: answer.stop == "eos", "higher"),
    Metric("exact", "equal", lambda answer: answer.response == answer.row["output"], "higher"),
    Metric(
        "bits_per_byte",
        "bits of the reference",
        lambda a: (a.likelihood.bits, a.likelihood.bytes) if a.likelihood else None,
        "lower",
    ),
    Metric("length", "mean tokens", lambda answer: answer.tokens),
]


def answers(right: bool, *, sections: bool = False, likely: bool = True, loops: bool = False):
    found = []
    for row in ROWS:
        response = row["output"] if right or row["output"] == EVIL else "wrong"
        text = f"thinking about it\n<|response|>{response}" if sections else response
        parsed = {"reasoning": "thinking about it"} if sections else {}
        cost = Likelihood(4.0 if right else 40.0, 4.0, 8, 0.5) if likely else None
        answer = Answer(row, text, {**parsed, "response": response}, "eos", len(text), cost)
        found.append(answer)
    if loops:
        found[2] = Answer(ROWS[2], LOOP, {"response": LOOP}, "length", 40)
        found[4] = Answer(ROWS[4], "", {"response": ""}, "length", 0)
    return found


def logged(*sections: str):
    lines = [{"step": 0, **{f"eval_loss_{name}": 3.0 for name in sections}}]
    return lines + [
        {"step": step, "loss": 2.0, **{f"loss_{name}": 3 / step for name in sections}}
        for step in range(1, 9)
    ]
