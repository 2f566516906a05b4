"""Check that the files of a run, which may come from anywhere, have the values that the tables read."""

from typing import Any

GROUPS = ("model", "loss", "sampler", "data", "split", "embedder", "trainer", "logger", "optimizer", "callbacks")
TEXTS = ("collection", "collection_fingerprint", "split_fingerprint", "embeddings", "vectors", "code", "commit")
COUNTS = ("queries", "candidates", "weak")
MAX_NUMBER = 1e300  # beyond it no mean can be taken
Values = dict[str, Any]


def check_config(config: Values, finished: bool) -> Values:
    """The configuration, refused where a group holds no keys or, of a run that finished, a value is of another type.

    Raises:
        ValueError: names the key.
    """
    for group in GROUPS:
        _require(isinstance(config.get(group, {}), dict), group, config)
    for group, key in (("model", "name"), ("split", "index")):
        _require(key in config.get(group, {}), f"{group}.{key}", config)
    _require("seed" in config, "seed", config)
    if finished:
        ks = config.get("ks")
        _require(
            isinstance(ks, list) and bool(ks) and all(isinstance(k, int) and 0 < k < 10**9 for k in ks), "ks", config
        )
        _require(str(config.get("primary_metric", "")).startswith("val/"), "primary_metric", config)
        _require(isinstance(config["model"]["name"], str), "model", config)
    return config


def check_provenance(provenance: Values) -> Values:
    """The provenance, refused where a value is of another type.

    Raises:
        ValueError: names the key.
    """
    for key in TEXTS:
        _require(isinstance(provenance.get(key), str | None), key, provenance)
    for key in COUNTS:
        counts = provenance.get(key, {})
        _require(isinstance(counts, dict) and all(map(_is_count, counts.values())), key, provenance)
    _require("queries" not in provenance or {"train", "test"} <= provenance["queries"].keys(), "queries", provenance)
    simulated = provenance.get("simulated", [])
    _require(isinstance(simulated, list) and all(isinstance(item, str) for item in simulated), "simulated", provenance)
    return provenance


def numbers(values: Values) -> dict[str, float]:
    """A file of numbers, without what was none (JSON has null for it).

    Raises:
        ValueError: a value is something else.
    """
    present = {key: value for key, value in values.items() if value is not None}
    for key, value in present.items():
        _require(isinstance(value, int | float) and abs(value) < MAX_NUMBER, key, values)
    return present


def n_trials(tuning: Values) -> int:
    """Count the configurations that were compared.

    Raises:
        ValueError: the file does not say.
    """
    trials = tuning.get("trials", [])
    _require(isinstance(trials, list), "trials", tuning)
    return len(trials) or 1


def _is_count(value: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _require(is_valid: bool, key: str, values: Values) -> None:
    if not is_valid:
        raise ValueError(f"its {key} is {str(values.get(key.split('.')[0], 'missing'))[:60]}")
