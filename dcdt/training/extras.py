"""Arguments of the configuration that go on to Lightning: `trainer.extra` and `callbacks.extra`."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch import callbacks

from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

OWN_CHECKPOINTS = ("ModelCheckpoint", "OnExceptionCheckpoint")  # a run writes its checkpoints itself
TRAINER_ARGUMENTS = inspect.signature(L.Trainer.__init__).parameters.keys() - {"self"}


def make_trainer(own: Mapping[str, Any], extra: Mapping[str, Any]) -> L.Trainer:
    """Make Lightning's Trainer of a run's own arguments and those of `trainer.extra`.

    Raises:
        UserError: an extra argument is unknown, one of the run's own, or refused by Lightning.
    """
    check_trainer(own, extra)
    try:
        return L.Trainer(**own, **extra)
    except Exception as error:
        if not extra:
            raise
        raise UserError(f"trainer.extra is {dict(extra)}: Lightning refuses it ({one_line(error, 200)}).") from error


def check_trainer(own: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Refuse arguments that Lightning's Trainer lacks, or that a run sets itself.

    Raises:
        UserError: names the argument.
    """
    for name in extra:
        if name in own:
            raise UserError(
                f"trainer.extra holds {one_line(name)}, which a run sets itself.\n"
                "Leave it out; what can be set stands in conf/trainer and conf/callbacks."
            )
        if name not in TRAINER_ARGUMENTS:
            raise UserError(f"trainer.extra holds {one_line(name)}, which is no argument of Lightning's Trainer.")


def make_callbacks(extra: Sequence[Mapping[str, Any]]) -> list[L.Callback]:
    """Make the callbacks of `callbacks.extra`, each a name of lightning.pytorch.callbacks with its arguments.

    Raises:
        UserError: a name that is no callback of Lightning, or arguments that it refuses.
    """
    return [_make_callback(dict(item)) for item in extra]


def _make_callback(arguments: dict[str, Any]) -> L.Callback:
    name = arguments.pop("name", None)
    kind = getattr(callbacks, name, None) if name in callbacks.__all__ and name not in OWN_CHECKPOINTS else None
    if not (isinstance(kind, type) and issubclass(kind, L.Callback)):
        raise UserError(
            f"callbacks.extra names {one_line(repr(name))}; choose a class of lightning.pytorch.callbacks, such as "
            "StochasticWeightAveraging.\nCheckpoints a run writes itself."
        )
    try:
        return kind(**arguments)
    except Exception as error:
        raise UserError(f"callbacks.extra: {name} refuses its arguments ({one_line(error, 200)}).") from error
