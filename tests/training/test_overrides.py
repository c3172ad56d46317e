"""The trainer keeps to what transformers and TRL document: their private methods may change."""

from __future__ import annotations

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import transformers
import trl

from fasttune.training import callbacks, checkpoints, trouble
from fasttune.training.trainer import Trainer

CALLBACKS = [
    each
    for module in (callbacks, checkpoints, trouble)
    for each in vars(module).values()
    if isinstance(each, type) and each.__module__ == module.__name__
    if issubclass(each, transformers.TrainerCallback)
]


def overridden(cls: type) -> set[str]:
    """The names that our classes in the hierarchy of `cls` define and that others define, too."""
    ours = [each for each in cls.__mro__ if each.__module__.startswith("fasttune")]
    theirs = [each for each in cls.__mro__ if each not in ours and each is not object]
    names = [{*vars(each)} for each in ours], [{*vars(each)} for each in theirs]
    shared = set().union(*names[0]) & set().union(*names[1])
    return {name for name in shared if not (name.startswith("__") and name.endswith("__"))}


def test_only_public_methods_of_the_trainer_are_overridden():
    assert issubclass(Trainer, trl.SFTTrainer) and issubclass(Trainer, transformers.Trainer)
    assert overridden(Trainer) == {
        "evaluate",
        "get_train_dataloader",
        "log",
        "training_step",
    }


@pytest.mark.parametrize("callback", CALLBACKS)
def test_callbacks_define_events(callback):
    events = overridden(callback)
    assert events and all(name.startswith("on_") for name in events)


def test_the_check_sees_a_private_method():
    class Careless(Trainer):
        def _save_checkpoint(self, model, trial):
            pass

    Careless.__module__ = "fasttune.careless"
    assert "_save_checkpoint" in overridden(Careless)
