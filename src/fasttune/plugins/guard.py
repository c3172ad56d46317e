"""Calls into a plugin's own code: for how long, where it prints, and whose fault it is.

Every call of a template, a metric, an exporter and a hook goes through `call`. A plugin that fails
is a `PluginError` with its name, file and line, whoever called it.
"""

from __future__ import annotations

import inspect
import math
import random
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import CodeType, FrameType
from typing import Any, NamedTuple

from fasttune.errors import FasttuneError
from fasttune.quiet import prints_to_stderr

SECONDS = 5.0
"""What a plugin may take for one row or one answer."""
LOADING = 60.0
"""What it may take to be imported or to answer a hook: some import torch, on a busy machine."""
TICK = 0.25
"""Seconds between two looks at the clock."""


class PluginError(FasttuneError):
    """A plugin's own code failed, or gave what it must not give.

    Attributes:
        raised: its code raised an exception; on another row it may do well.
    """

    raised = False


class Overdue(PluginError):
    """A plugin was stopped because it took too long."""


class _Overdue(BaseException):
    """Raised inside the plugin by the clock; no Exception, which plugins like to catch."""


class Place(NamedTuple):
    """A file, and a line from 1; 0 for no line in particular."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}" if self.line else self.file


NOWHERE = Place("")
Passes = tuple[type[BaseException], ...]


class _Watch:
    """What the clock sees of the main thread: one call at a time, the innermost one."""

    def __init__(self) -> None:
        self.on = False
        self.owner: object = None
        self.deadline = math.inf
        self.stopped = False
        self.interrupted = False


_watch = _Watch()


def call(
    owner: object,
    what: str,
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float | None = None,
    at: Place = NOWHERE,
    passes: Passes = (),
) -> Any:
    """What `function(*arguments)`, a plugin's code, returns.

    Args:
        owner: whose code it is; an owner that calls itself is called as it is.
        what: it is, as "template 'mine'", for messages.
        seconds: it may take, SECONDS by default; there is no limit but in the main thread, and none
            on a system without SIGALRM.
        at: where the plugin is, for messages; an error shows the last line in that file.
        passes: what it may raise.

    Raises:
        PluginError: it raised anything else, SystemExit and a KeyboardInterrupt that nobody typed
            included.
        Overdue: it took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        return _blamed(what, function, arguments, at, passes)
    if owner is _watch.owner:
        return function(*arguments)
    if not _watch.on:
        with watched():
            return call(owner, what, function, *arguments, seconds=seconds, at=at, passes=passes)
    seconds = SECONDS if seconds is None else seconds
    before = _watch.owner, _watch.deadline
    _watch.owner, _watch.deadline = owner, min(_watch.deadline, monotonic() + seconds)
    try:
        return _blamed(what, function, arguments, at, passes)
    except _Overdue as late:
        _watch.deadline = math.inf
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        if monotonic() >= before[1]:  # it is the caller's time that is up
            raise
        raise Overdue(
            f"{what} was stopped: it took more than {seconds:g} seconds",
            _shown(late, at),
            "it may loop for ever; see which row it is given",
        ) from None
    finally:
        _watch.owner, _watch.deadline = before
        _watch.stopped = False


def _blamed(
    what: str, function: Callable[..., Any], arguments: Any, at: Place, passes: Passes
) -> Any:
    allowed: Passes = (PluginError, _Overdue, *passes)
    try:
        return function(*arguments)
    except allowed:
        raise
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            _watch.deadline = math.inf  # it has ended
        if isinstance(error, KeyboardInterrupt) and _watch.interrupted:
            raise
        failed = PluginError(
            f"{what} fails: {described(error)}",
            _shown(error, at),
            "put it right there",
        )
        failed.raised = True
        raise failed from error


def described(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def watched() -> Iterator[None]:
    """A stretch with many calls, which then share one clock: a call costs next to nothing.

    What is printed meanwhile goes to standard error. Only calls are timed, not what is between
    them. In other threads than the main one this does nothing.
    """
    if _watch.on or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch.on = True
    try:
        with prints_to_stderr(), _typed_interrupts(), _clock():
            yield
    finally:
        _watch.on = False


@contextmanager
def _clock() -> Iterator[None]:
    """Look at the time every TICK seconds, and stop the call that is overdue.

    A plugin may catch what stops it. It is then stopped again and again, after a moment of random
    length: what comes while it handles the one before is not caught by the same `try`.
    """
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def look(number: int, frame: FrameType | None) -> None:
        # Between two calls, or about to leave one, there is nothing to stop.
        if monotonic() > _watch.deadline and frame is not None and frame.f_code not in _OURS:
            if _watch.stopped:
                moment = 1e-6 + 3e-5 * random.random()
                signal.setitimer(signal.ITIMER_REAL, moment, TICK / 100)
            _watch.stopped = True
            raise _Overdue

    before = signal.signal(signal.SIGALRM, look)
    rest, interval = signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, rest, interval)


@contextmanager
def _typed_interrupts() -> Iterator[None]:
    """Take note of a Ctrl-C or SIGTERM, to tell it from a KeyboardInterrupt that a plugin raises;
    one that the plugin swallows comes after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    swallowed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal swallowed
        handler = before[signal.Signals(number)]
        _watch.interrupted = True
        swallowed = handler is signal.default_int_handler
        if callable(handler):
            handler(number, frame)

    _watch.interrupted = False
    noted = [number for number, handler in before.items() if callable(handler)]
    for number in noted:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in noted:
            if signal.getsignal(number) is note:  # a run asks once, then takes its handler away
                signal.signal(number, before[number])
        _watch.interrupted = False
    if swallowed:
        raise KeyboardInterrupt


_OURS: tuple[CodeType, ...] = (call.__code__,)


def guard_methods(
    cls: type, base: type, methods: Iterable[str], guarded: Callable[[str, Any], Any]
) -> None:
    """Put `guarded(method, what is defined)` in the place of each method that a subclass defines
    itself, or takes from another class than `base` that has not been guarded."""
    for method in methods:
        defined = inspect.getattr_static(cls, method)
        if (
            defined is not vars(base)[method]
            and not hasattr(defined, "is_guarded")
            and hasattr(defined, "__get__")
        ):
            setattr(cls, method, guarded(method, defined))


def place_of(function: Any) -> Place:
    """Where a plugin's function, or a descriptor of one, begins; a guarded one included."""
    function = getattr(function, "__wrapped__", function)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return Place(code.co_filename, code.co_firstlineno) if code else NOWHERE


def _shown(error: BaseException, at: Place) -> str:
    """The last line of a traceback that is in the plugin's file, with its text."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == at.file]
    if not lines:
        return str(at)
    return f"{Place(at.file, lines[-1].lineno or 0)}: {lines[-1].line}".removesuffix(": ")


def is_text(value: object) -> bool:
    """Whether it is text that UTF-8 can hold: half a surrogate pair is no character."""
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def short(thing: object) -> str:
    """What a plugin gave, for a message."""
    try:
        text = repr(thing)
    except Exception:  # a plugin's own code
        text = f"a {type(thing).__name__}"
    return text if len(text) <= 100 else f"{text[:99]}…"
