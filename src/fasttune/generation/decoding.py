"""Prompts -> new tokens: in batches, over a KV cache that holds what the prompts share.

The beginning that all prompts of a file have in common, a system text above all, goes through the
model once; its keys and values are copied for every batch. A row that has ended leaves its batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import copy, deepcopy
from os.path import commonprefix
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from fasttune.encoding.batches import left_pad
from fasttune.models.choices import Choices
from fasttune.models.head import decoder
from fasttune.text.repetition import LOOP_COPIES

SPAN = 16
"""Tokens after which the rows that have ended leave their batch."""


class LoopStop(StoppingCriteria):
    """Ends each row of a batch that repeats itself, and changes no token.

    A row loops once it ends with LOOP_COPIES copies of a phrase of up to LONGEST tokens, and at
    least SHORTEST tokens repeat those one phrase before: a ruler of dashes is no loop yet.

    Attributes:
        loops: row of the first batch -> number of generated tokens at which its loop was seen.
    """

    LONGEST = 128
    SHORTEST = 32

    def __init__(self, rows: int, prompt_width: int, eos: int) -> None:
        self.loops: dict[int, int] = {}
        self._rows = list(range(rows))
        self._width, self._eos = prompt_width, eos
        self._ended = torch.zeros(rows, dtype=torch.bool)
        # How many tokens up to now in a row equal the one `period` tokens before, per period.
        self._runs = torch.zeros(rows, self.LONGEST, dtype=torch.int64)
        periods = torch.arange(1, self.LONGEST + 1)
        self._enough = ((LOOP_COPIES - 1) * periods).clamp(min=self.SHORTEST)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        generated = input_ids[:, self._width :].cpu()
        last, before = generated[:, -1:], generated[:, :-1].flip(1)[:, : self.LONGEST]
        self._ended |= last[:, 0] == self._eos
        reach = before.shape[1]
        self._runs[:, :reach] = (self._runs[:, :reach] + 1) * (before == last)
        looping = (self._runs >= self._enough).any(1) & ~self._ended
        for row in looping.nonzero().flatten().tolist():
            self.loops[self._rows[row]] = generated.shape[1]
        self._ended |= looping
        return looping.to(input_ids.device)

    def narrow(self, kept: list[int]) -> None:
        """Keep these rows of the batch only."""
        self._rows = [self._rows[at] for at in kept]
        self._ended, self._runs = self._ended[kept], self._runs[kept]


class Decoding:
    """Continues the prompts of one file, batch by batch, each as it would be continued alone.

    Args:
        stop_loops: end a row that repeats itself, see `LoopStop`.
        prompts: all prompts of the file.

    Attributes:
        shared: number of tokens that all prompts begin with and that are computed once; 0 if the
            model's cache is not a plain one.
    """

    def __init__(
        self,
        model: Any,
        choices: Choices,
        config: GenerationConfig,
        stop_loops: bool,
        prompts: Sequence[list[int]],
    ) -> None:
        self._model, self._choices = model, choices
        self._config, self._stop_loops = config, stop_loops
        self._device = next(model.parameters()).device
        self._cache = plain_cache(model)
        self.shared = 0
        if self._cache is not None and len(prompts) > 1:
            # One token of every prompt is left to start from.
            self.shared = min(len(commonprefix(prompts)), min(map(len, prompts)) - 1)
            ids = torch.tensor([prompts[0][: self.shared + 1]], device=self._device)
            self._prefill(self._cache, ids, torch.ones_like(ids))

    @torch.inference_mode()
    def __call__(
        self, prompts: Sequence[list[int]], streamer: BaseStreamer | None = None
    ) -> list[tuple[list[int], bool]]:
        """New ids per prompt, which may be padded after EOS, and whether a loop ended them."""
        inputs = left_pad(prompts, self.shared)
        ids, mask = (inputs[name].to(self._device) for name in ("input_ids", "attention_mask"))
        eos = self._config.eos_token_id
        stop = LoopStop(len(ids), ids.shape[1], eos) if self._stop_loops else None
        cache = deepcopy(self._cache)
        if cache is not None:
            # Prompts that are alike, as of several samples, go through the model once.
            alike: dict[tuple[int, ...], int] = {}
            place = [alike.setdefault(tuple(prompt), len(alike)) for prompt in prompts]
            first = [place.index(at) for at in range(len(alike))]
            cache.batch_repeat_interleave(len(first))
            self._prefill(cache, ids[first], mask[first])
            if len(first) < len(place):
                cache.batch_select_indices(torch.tensor(place, device=self._device))
        new: list[list[int]] = [[] for _ in prompts]
        looped = stop.loops if stop else {}
        going = list(range(len(prompts)))
        config = copy(self._config)
        left = config.max_new_tokens
        while going and left:
            spans = cache is not None and streamer is None
            config.max_new_tokens = min(SPAN, left) if spans else left
            left -= config.max_new_tokens
            with self._choices.autocasting(ids.device.type):
                output = self._model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    past_key_values=cache,
                    generation_config=config,
                    streamer=streamer,
                    stopping_criteria=[stop] if stop else None,
                )
            fresh = output[:, ids.shape[1] :].tolist()
            for row, tokens in zip(going, fresh, strict=True):
                new[row] += tokens
            if cache is None or not left:
                break
            kept = [n for n, row in enumerate(going) if row not in looped and eos not in fresh[n]]
            going = [going[at] for at in kept]
            ids = output[kept]
            mask = torch.nn.functional.pad(mask[kept], (0, len(fresh[0])), value=1)
            cache.batch_select_indices(torch.tensor(kept, dtype=torch.long, device=self._device))
            if stop:
                stop.narrow(kept)
        return [(tokens[: looped.get(row)], row in looped) for row, tokens in enumerate(new)]

    @torch.inference_mode()
    def _prefill(self, cache: DynamicCache, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Bring all tokens but the last into the cache. Only the decoder runs: `generate` would
        compute the head, too, which torch on a CPU copies for each row."""
        past, end = cache.get_seq_length(), ids.shape[1] - 1
        if past == end:
            return
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with self._choices.autocasting(ids.device.type):
            decoder(self._model)(
                input_ids=ids[:, past:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, past:end],
                past_key_values=cache,
                use_cache=True,
            )


def plain_cache(model: Any) -> DynamicCache | None:
    """An empty cache that may be copied, filled and narrowed.

    None for sliding windows, which count padding behind the shared beginning as distance; for
    recurrent states; for a decoder without positions; and for Unsloth's own inference kernels.
    """
    forward = decoder(model).forward
    cache = DynamicCache(config=model.config)
    plain = (
        all(type(layer) is DynamicLayer for layer in cache.layers)
        and "position_ids" in inspect.signature(forward).parameters
        and not forward.__module__.startswith("unsloth.")
    )
    return cache if plain else None
