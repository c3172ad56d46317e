"""From prompts to answers, and to the likelihood of a reference.

On a CPU without Unsloth, unless something is trained as well: importing it takes longer than the
answer to a short question.
"""

from fasttune.machine import this_device

if this_device().kind != "cpu":
    import fasttune.models.unsloth  # noqa: F401  before transformers and PEFT, which it patches
