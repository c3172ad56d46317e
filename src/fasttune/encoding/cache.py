"""Encoded rows on disk: constant memory for any number of rows, and encoded once.

A file's name is a hash of everything that decides its content, so nothing stale can be read: the
rows, the format, the tokenizer, and the rule for overlong rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from fasttune.config import RunConfig
from fasttune.data.check import by_ending
from fasttune.data.rows import ChosenRows, Lazy, Rows
from fasttune.data.split import data_hash
from fasttune.encoding.encode import Encoded, Span, batches, encode_many, limit_lengths, without_eos
from fasttune.encoding.spans import eos_id, whole_text_backend
from fasttune.errors import FasttuneError
from fasttune.files import atomic_path, cache_dir, sha256, write_json
from fasttune.formats.template import Template

log = logging.getLogger(__name__)

ROWS_PER_BATCH = 128
"""Rows that are read together: 100 kB of short ones, as much as a disk reads ahead anyway."""
CACHE_LIMIT = 10 * 2**30
"""Bytes of encoded rows that are kept; the least recently used are removed first."""
A_DAY = 24 * 3600.0
"""Seconds for which another process may still write an incomplete file."""
HERE = Path(__file__).parent
CODE = [
    *(HERE / name for name in ("cache.py", "encode.py", "spans.py")),
    *(HERE.parent / "formats" / name for name in ("parts.py", "row.py", "template.py")),
]
"""The files whose code decides the encoded rows."""


class EncodedRows(Lazy[Encoded]):
    """Encoded rows in an Arrow file, of which one batch is in memory at a time.

    Attributes:
        tokens: of all rows.
        sections: the names of the learned spans in order of appearance.
        counts: rows that were "dropped" and "truncated".
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        import pyarrow

        self._path, self._about = path, about
        self._file = pyarrow.ipc.open_file(pyarrow.OSFile(str(path)))
        self._batch: tuple[int, Any] = (-1, None)
        self.tokens: int = about["tokens"]
        self.sections: list[str] = about["sections"]
        self.counts: dict[str, int] = about["counts"]

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodedRows, (self._path, self._about)

    def __len__(self) -> int:
        return int(self._about["rows"])

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        lists = (batch["input_ids"] for batch in self._batches())
        return [length for ids in lists for length in ids.value_lengths().to_pylist()]

    @property
    def places(self) -> list[int]:
        """The place of each row among the rows it was encoded from, from 0."""
        return [at for batch in self._batches() for at in batch["place"].to_pylist()]

    @property
    def places_sha256(self) -> str:
        """SHA-256 of the places: equal if the same rows were kept."""
        return hashlib.sha256(json.dumps(self.places).encode()).hexdigest()

    def _batches(self) -> Iterator[Any]:
        return map(self._file.get_batch, range(self._file.num_record_batches))

    def row(self, place: int) -> Encoded:
        number, at = divmod(place, ROWS_PER_BATCH)
        if self._batch[0] != number:
            self._batch = number, self._file.get_batch(number)
        columns = self._batch[1]
        ids = columns["input_ids"][at].values.to_numpy().tolist()
        spans = [Span(**span) for span in columns["spans"][at].as_py()]
        return Encoded(ids, spans, columns["prompt_length"][at].as_py())


def without_ending(rows: Rows, tokenizer: Any, config: RunConfig) -> Rows:
    """The rows that can be asked: those that `encode_rows` does not leave out because their text
    contains EOS."""
    if not config.data.skip_bad_rows:
        return rows  # else it would have refused them
    usable, ended = by_ending(rows, tokenizer.eos_token)
    return ChosenRows(rows, usable) if ended else rows


def encode_rows(
    template: Template, rows: Rows, tokenizer: Any, config: RunConfig, what: str
) -> EncodedRows:
    """Encode rows under the policy for overlong ones and store them, or take them from the cache.

    Args:
        what: the rows' role, such as "training", for the log and for errors.

    Raises:
        FasttuneError: a row contains EOS, and `data.skip_bad_rows` is off; a row is too long under
            the policy "error"; or all are too long.
    """
    eos_id(tokenizer)  # refuses a tokenizer without EOS
    eos = tokenizer.eos_token
    usable, ended = by_ending(rows, eos)
    if ended and not config.data.skip_bad_rows:
        raise FasttuneError(
            f"{len(ended)} of {len(rows)} {what} rows hold the text {eos}, which would end a row "
            "early",
            f"the first: {rows[ended[0]].get('instruction', '')[:80]!r}",
            "remove it, or skip these rows with data.skip_bad_rows=true",
        )
    if ended:
        log.info(
            "left out %d of %d %s rows: they hold the text %s", len(ended), len(rows), what, eos
        )
    chosen = ChosenRows(rows, usable)
    limit, overlong = config.model.max_length, config.data.overlong
    policy = (limit, overlong, config.train.learn_eos)
    rows_hash = _rows_hash(template, chosen)
    key = cache_key(tokenizer, template.identity, rows_hash, [*ended], *policy)
    encoded = cached(key)
    if encoded:
        log.info(f"{len(encoded):,} {what} rows from the cache")
    if encoded is None:
        counts = Counter(dropped=0, truncated=0)
        placed = zip(usable, encode_many(template, chosen, tokenizer), strict=True)
        kept = limit_lengths(placed, limit, overlong, counts)
        if not config.train.learn_eos:
            kept = ((at, without_eos(row)) for at, row in kept)
        encoded = store(key, kept, counts)
    for done, number in encoded.counts.items():
        if number:
            log.info(f"{done} {number} of {len(usable)} {what} rows: over {limit} tokens")
    if usable and not encoded:
        raise FasttuneError(
            f"no {what} row has {limit} tokens or fewer",
            "model.max_length",
            "raise it, or set data.overlong=truncate",
        )
    return encoded


def _rows_hash(template: Template, rows: Rows) -> str:
    """A hash of what decides the texts of the rows, beside the format. For a computed format these
    are the texts themselves, because its code may import other code."""
    if not template.computed:
        languages = json.dumps([row.language for row in rows]) if template.chooses_language else ""
        return data_hash(rows) + hashlib.sha256(languages.encode()).hexdigest()
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(template.rendered(row)).encode())
    return digest.hexdigest()


def cache_key(tokenizer: Any, *deciding: Any) -> str:
    """SHA-256 of what decides the encoded rows: the tokenizer, this code, and JSON values."""
    import tokenizers

    digest = hashlib.sha256(b"".join(file.read_bytes() for file in CODE))
    digest.update(whole_text_backend(tokenizer).to_str().encode())
    known = [tokenizers.__version__, eos_id(tokenizer), deciding]
    digest.update(json.dumps(known, sort_keys=True).encode())
    return digest.hexdigest()


def cached(key: str) -> EncodedRows | None:
    """The rows that were stored under a key; None if there are none or they are damaged."""
    path = _path(key)
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if about["sha256"] != sha256(path):
            return None
        path.touch()
        return EncodedRows(path, about)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def store(key: str, rows: Iterable[tuple[int, Encoded]], counts: Mapping[str, int]) -> EncodedRows:
    """Write rows with their places under a key, and remove old ones beyond the cache's limit. The
    counts are read after the last row, so they may still change."""
    import pyarrow as pa

    number, tokens = 0, 0
    sections: dict[str, None] = {}
    path = _path(key)
    try:
        with atomic_path(path) as temporary:
            with pa.ipc.new_file(str(temporary), _arrow([]).schema) as file:
                for batch in batches(rows, ROWS_PER_BATCH):
                    file.write(_arrow(batch))
                    number += len(batch)
                    tokens += sum(len(row) for _, row in batch)
                    sections |= dict.fromkeys(s.name for _, r in batch for s in r.spans if s.train)
            about = {
                "rows": number,
                "tokens": tokens,
                "sections": list(sections),
                "counts": dict(counts),
                "sha256": sha256(temporary),
            }
    except OSError as error:
        raise FasttuneError(
            "the encoded rows cannot be written",
            f"{path.parent}: {error.strerror or error}",
            "free some space there, or set FASTTUNE_CACHE to another folder",
        ) from error
    stored = EncodedRows(path, about)
    write_json(path.with_suffix(".json"), about)
    _forget(keep=path)
    return stored


def _arrow(placed: Sequence[tuple[int, Encoded]]) -> Any:
    """Rows as a record batch, a column at a time: a dictionary per span would take longer than
    everything else here."""
    import pyarrow as pa

    rows = [row for _, row in placed]
    types = {"name": pa.string(), "start": pa.int32(), "end": pa.int32(), "train": pa.bool_()}
    values = zip(*chain.from_iterable(row.spans for row in rows), strict=True) if rows else [()] * 4
    spans = pa.StructArray.from_arrays(
        [pa.array(column, kind) for column, kind in zip(values, types.values(), strict=True)],
        fields=[pa.field(name, kind) for name, kind in types.items()],
    )
    ends = accumulate((len(row.spans) for row in rows), initial=0)
    return pa.RecordBatch.from_pydict(
        {
            "input_ids": pa.array([row.input_ids for row in rows], pa.list_(pa.int32())),
            "spans": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), spans),
            "place": pa.array([place for place, _ in placed], pa.int64()),
            "prompt_length": pa.array([row.prompt_length for row in rows], pa.int32()),
        }
    )


def _path(key: str) -> Path:
    return cache_dir() / "rows" / f"{key}.arrow"


def _forget(keep: Path) -> None:
    """Remove the least recently used files beyond the limit, and what a killed process left
    incomplete."""
    for left in keep.parent.glob(".*.tmp.*"):
        with suppress(OSError):  # another process may remove it, too
            if time.time() - left.stat().st_mtime > A_DAY:
                left.unlink()
    files = []
    for path in keep.parent.glob("[!.]*.arrow"):
        with suppress(OSError):
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > CACHE_LIMIT and path != keep:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
