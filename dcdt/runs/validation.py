"""Do the files of a run have the shape that the tables read? They may come from anywhere."""

from typing import Any

GROUPS = ("model", "loss", "sampler", "data", "split", "embedder", "trainer", "logger", "optimizer", "callbacks")
TEXTS = ("collection", "collection_fingerprint", "split_fingerprint", "embeddings", "code", "commit")
COUNTS = ("queries", "candidates", "weak")
LARGEST = 1e300  # of a number; beyond it, and where there is none, no mean can be taken
Facts = dict[str, Any]


def check_config(found: Facts, finished: bool) -> Facts:
    """The configuration, refused where a group holds no keys or, of a run that finished, a value is of another type.

    Raises:
        ValueError: names the key.
    """
    for group in GROUPS:
        _demand(isinstance(found.get(group, {}), dict), group, found)
    for group, key in (("model", "name"), ("split", "index")):
        _demand(key in found.get(group, {}), f"{group}.{key}", found)
    _demand("seed" in found, "seed", found)
    if finished:
        ks = found.get("ks")
        _demand(
            isinstance(ks, list) and bool(ks) and all(isinstance(k, int) and 0 < k < 10**9 for k in ks), "ks", found
        )
        _demand(str(found.get("primary_metric", "")).startswith("val/"), "primary_metric", found)
        _demand(isinstance(found["model"]["name"], str), "model", found)
    return found


def check_provenance(found: Facts) -> Facts:
    """The provenance, refused where a value is of another type.

    Raises:
        ValueError: names the key.
    """
    for key in TEXTS:
        _demand(isinstance(found.get(key), str | None), key, found)
    for key in COUNTS:
        counts = found.get(key, {})
        _demand(isinstance(counts, dict) and all(map(_count, counts.values())), key, found)
    _demand("queries" not in found or {"train", "test"} <= found["queries"].keys(), "queries", found)
    simulated = found.get("simulated", [])
    _demand(isinstance(simulated, list) and all(isinstance(item, str) for item in simulated), "simulated", found)
    return found


def numbers(found: Facts) -> dict[str, float]:
    """A file of numbers, without what was none (JSON has null for it).

    Raises:
        ValueError: a value is something else.
    """
    kept = {key: value for key, value in found.items() if value is not None}
    for key, value in kept.items():
        _demand(isinstance(value, int | float) and abs(value) < LARGEST, key, found)
    return kept


def trials_of(found: Facts) -> int:
    """How many configurations were compared.

    Raises:
        ValueError: the file does not say.
    """
    trials = found.get("trials", [])
    _demand(isinstance(trials, list), "trials", found)
    return len(trials) or 1


def _count(value: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _demand(held: bool, key: str, found: Facts) -> None:
    if not held:
        raise ValueError(f"its {key} is {str(found.get(key.split('.')[0], 'missing'))[:60]}")
