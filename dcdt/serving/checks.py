"""Is an exported run what it says it is? Its files may come from anywhere, so they are checked before they are used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from dcdt.config import validate
from dcdt.config.registry import GROUPS, MODELS
from dcdt.runs.folder import refuse_interpolations
from dcdt.serving.lexical import FORMULAS
from dcdt.serving.memory import View
from dcdt.serving.reranking import MAPPED, WHITENED
from dcdt.serving.videos import BASE, TYPES
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

Spec = dict[str, Any]
HUGE = 1e30  # beyond any weight or score; its square is still a number


def check_served(model: Spec, view: View, path: Path, run: Path) -> None:
    """Refuse a description (model.json) and a catalogue that do not fit each other.

    Raises:
        UserError: says what does not fit.
    """
    try:
        refuse_interpolations(model, path)
        _check_columns(model["columns"], view)
        parts, head = model["parts"], model["head"]
        n = (2 if model["fusion"] else 1) + (head is not None and "lexical" in head["names"])
        _demand(isinstance(parts, list) and len(parts) == n, "parts and fusion")
        if head is not None:
            _check_head(head, view)
        for at, spec in enumerate(parts):
            _demand(isinstance(spec["name"], str), f"name of part {at}")
            PARTS[spec["kind"]](spec, at, view)
        if model["fusion"]:
            _check_fusion(model["fusion"])
        if (threshold := model["threshold"]) is not None:
            _demand(all(_number(threshold[name]) for name in ("value", "kept", "refused", "queries")), "threshold")
        if (questions := model.get("questions")) is not None:
            _check_questions(questions)
        for name, facts in model["approximate"].items():
            _demand(name in view.main.vectors and isinstance(facts["kind"], str) and _number(facts["recall"]), name)
        _demand(isinstance(model["model"], str) and isinstance(model["collection"], str), "names")
        _demand(model["embedder"]["name"] in GROUPS["embedder"], "embedder")
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = one_line(f"{type(error).__name__} {error}", 120)
        raise UserError(
            f"{path} is corrupt or does not fit its catalogue ({reason}).\nRun: python -m dcdt.index {run} build"
        ) from error


def _check_columns(columns: dict[str, str], view: View) -> None:
    """What is shown and filtered is there, of the right type; ids, titles and texts without gaps."""
    schema = view.table.schema
    for name, kind in {**BASE, "metadata": "text", **columns}.items():
        _demand(name in schema.names and schema.field(name).type == TYPES[kind], f"column {name}")
    for name in ("id", "title", "text", "metadata"):
        _demand(view.table[name].null_count == 0, f"empty cells in column {name}")


def _check_towers(spec: Spec, at: int, view: View) -> None:
    _demand(_texts(spec["fields"]) and _texts(spec["adds"]) and _number(spec["lean"]), f"part {at}")
    columns = [f"vector_{at}", *([f"raw_{at}"] if spec["lean"] else [])]
    _demand(all(view.main.vectors[name].shape[1] == spec["width"] for name in columns), f"width of part {at}")
    _demand(not spec["lean"] or _whole(spec["neighbours"]), f"neighbours of part {at}")
    _demand(isinstance(spec.get("linear", False), bool), f"query tower of part {at}")


def _check_joint(spec: Spec, at: int, view: View) -> None:
    width, weights = spec["width"], spec["output"]["weight"]
    _demand(_texts(spec["fields"]) and view.main.vectors[f"joint_{at}"].shape[1] == width, f"width of part {at}")
    _demand(width % len(spec["fields"]) == 0 and len(weights) == width, f"width of part {at}")
    _demand(all(map(_number, weights)) and _number(spec["output"]["bias"]), f"output of part {at}")


def _check_lexical(spec: Spec, at: int, view: View) -> None:
    config: Any = validate(MODELS["bm25"].schema, dict(spec["config"]), "model")
    _demand((config.backend, config.variant) in FORMULAS, f"formula of part {at}")
    _demand(view.table.schema.field(f"words_{at}").type == TYPES["list"], f"column words_{at}")
    _demand(view.table[f"words_{at}"].null_count == 0, f"empty cells in column words_{at}")


def _check_popularity(spec: Spec, at: int, view: View) -> None:
    _demand(_number(spec["unseen"]), f"part {at}")
    column = view.table[f"popularity_{at}"]
    _demand(column.type == pa.float64() and column.null_count == 0, f"column popularity_{at}")


def _check_history(spec: Spec, at: int, view: View) -> None:
    learner = spec["learner"]
    _check_towers(spec, at, view)
    _demand(_whole(spec["asked"]) and spec["asked"] < spec["width"], f"width of part {at}")
    _demand(
        all(map(_number, (learner[name] for name in ("weight", "prior", "match", "decay")))), f"learner of part {at}"
    )
    _demand(_whole(learner["length"]) and isinstance(learner["history"], str), f"learner of part {at}")


def _check_head(head: Spec, view: View) -> None:
    width = view.main.vectors[WHITENED].shape[1]
    _demand(_texts(head["fields"]) and width % len(head["fields"]) == 0, "fields of the head")
    _demand(_texts(head["names"]) and len(head["weights"]) == len(head["names"]), "weights of the head")
    _demand(all(map(_number, [*head["weights"], *head["temperatures"]])), "weights of the head")
    _demand(all(value > 0 for value in head["temperatures"]) and _whole(head["depth"]), "depth of the head")
    _demand(not head["joint"] or MAPPED in view.main.vectors, "network of the head")


def _check_fusion(fusion: Spec) -> None:
    _demand(fusion["kind"] in ("convex", "rrf") and _whole(fusion["k"]), "fusion")
    _demand(_number(fusion["weight"]) and 0 <= fusion["weight"] <= 1, "weight of the fusion")


def _check_questions(questions: Spec) -> None:
    names = ("queries", "ndcg@10", "float32", "same", "times_as_fast")
    _demand(isinstance(questions["weights"], str), "questions")
    _demand(all(_number(questions[name]) for name in names), "questions")
    _demand(all(questions[name] is None or _number(questions[name]) for name in ("low", "high")), "questions")


PARTS: dict[str, Callable[[Spec, int, View], None]] = {
    "towers": _check_towers,
    "joint": _check_joint,
    "lexical": _check_lexical,
    "popularity": _check_popularity,
    "history": _check_history,
}


def _demand(held: bool, what: str) -> None:
    if not held:
        raise ValueError(what)


def _number(value: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
    """Whether it is a number whose square is one as well; NaN compares as neither."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -HUGE <= value <= HUGE


def _whole(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= HUGE


def _texts(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
