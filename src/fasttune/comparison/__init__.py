"""Which of several prompt formats is better, on the same rows and the same budget."""

from typing import Literal

Budget = Literal["steps", "tokens"]
Without = Literal["eos"]
