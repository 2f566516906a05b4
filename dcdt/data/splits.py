"""Divide the queries of a collection into train, validation and test without leaks.

The unit is the query group: queries whose normalised text is equal stay on one side, always (where
nobody asks: the learner). Every partition is an order by hash, so it depends on texts and ids alone: not on file order,
library versions or the training seed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dcdt.data.config import SplitConfig
from dcdt.data.types import Collection, Judgments, Rows, normalise_text
from dcdt.utils.errors import NotApplicable, UserError
from dcdt.utils.text import one_line

Mask = NDArray[np.bool_]
PARTS = ("open", "sealed", "all")


@dataclass(frozen=True)
class Side:
    """Queries that are scored together, the videos they are ranked among, and their judgments among those videos."""

    queries: Rows  # (n,) rows with at least one positive among the candidates
    candidates: Mask  # (N,)
    judgments: Judgments


@dataclass(frozen=True)
class Split:
    """One division of a collection.

    Attributes:
        pairs: (P, 2) training pairs of (query row, video row).
        train, val, test: the three sides.
        extra: further sides reported beside test: `test_all` (cold start among all videos), `slice_<language>`.
        cutoff: `split=time` only: nothing from this time on may be seen in training.
        left_out: number of queries without a positive, anywhere or on their side.
        fingerprint: hash of sides, pairs and candidates; runs compare only where it agrees.
    """

    name: str
    index: int
    pairs: Rows
    train: Side
    val: Side
    test: Side
    extra: dict[str, Side] = field(default_factory=dict)
    cutoff: float | None = None
    left_out: int = 0
    fingerprint: str = ""

    @property
    def sides(self) -> dict[str, Side]:
        """All sides that are ever scored, by the name under which their metrics are reported."""
        return {"val": self.val, "test": self.test, **self.extra}


Groups = list[list[int]]


def make_split(collection: Collection, config: SplitConfig) -> Split:
    """Split a collection as the configuration says.

    Raises:
        UserError: the index is out of range, a side is left without a query, or a split given by the user leaks.
        NotApplicable: `train_queries` are more than there are.
    """
    limit = config.n_folds
    if not 0 <= config.index < limit:
        raise UserError(f"split.index is {config.index}; split={config.name} has the indices 0 to {limit - 1}.")
    if config.part not in PARTS:
        raise UserError(f"split.part is '{config.part}'; choose one of {', '.join(PARTS)}.")
    rule = _RULES[config.name](collection, config)
    if config.train_queries is not None:
        rule = _fewer(collection, rule, config.train_queries)
    rule = _with_weak(collection, rule, config.train_on)
    return _finish(collection, rule, config)


def sealed(text: str) -> bool:
    """Whether the query group of this text lies in the sealed quarter (a hash decides, a quarter of all texts)."""
    return _hash("seal", normalise_text(text)) % 4 == 0


def query_groups(texts: Sequence[str], rows: Sequence[int] | Rows) -> dict[str, list[int]]:
    """Rows by normalised text.

    >>> query_groups(["What is rank?", "what is rank", "span"], [0, 1, 2])
    {'what is rank': [0, 1], 'span': [2]}
    """
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(normalise_text(texts[int(row)]), []).append(int(row))
    return groups


def warmth(split: Split, side: Side, positive_grade: float) -> list[str]:
    """For each query of a side: warm, cold or mixed.

    Warm: every positive was a positive of some training query; cold: none was; mixed: some. A model can win on warm
    queries by remembering which videos get asked for.
    """
    seen = np.zeros(len(side.candidates), dtype=bool)
    seen[split.pairs[:, 1]] = True
    known: dict[int, list[bool]] = {int(row): [] for row in side.queries}
    positives = side.judgments.where(side.judgments.grade >= positive_grade)
    for query, video in zip(positives.query.tolist(), positives.video.tolist(), strict=True):
        known[query].append(bool(seen[video]))
    return ["warm" if all(known[int(q)]) else "mixed" if any(known[int(q)]) else "cold" for q in side.queries]


@dataclass(frozen=True)
class _Rule:
    """What a splitting rule decides: query rows a side, and the videos of each side where they are divided too."""

    train: list[int]
    val: list[int]
    test: list[int]
    video_side: NDArray[np.int64] | None = None  # (N,) 0 train, 1 val, 2 test
    pairs: list[tuple[int, int]] | None = None
    cutoff: float | None = None


def _fewer(collection: Collection, rule: _Rule, n: int) -> _Rule:
    """Only n groups of training queries, and validation in proportion; fewer are always among more."""
    texts = collection.units
    train, val = (_ordered(query_groups(texts, rows), "fewer") for rows in (rule.train, rule.val))
    if n > len(train):
        raise NotApplicable(f"split.train_queries is {n}, but this division has {len(train)} training queries")
    kept = _flat(train[:n])
    pairs = None if rule.pairs is None else [pair for pair in rule.pairs if pair[0] in set(kept)]
    return replace(rule, train=kept, val=_flat(val[: max(1, round(len(val) * n / len(train)))]), pairs=pairs)


def _with_weak(collection: Collection, rule: _Rule, train_on: str) -> _Rule:
    """Weak queries (`metadata.weak`) on the training side, unless a held-out query asks the same.

    Raises:
        UserError: they alone are to be trained on, and there are none.
    """
    texts = collection.queries.texts
    held = {normalise_text(texts[row]) for row in (*rule.val, *rule.test)}
    main = set(_main_rows(collection).tolist())
    weak = [row for row in _weak_rows(collection) if row not in main and normalise_text(texts[row]) not in held]
    if train_on == "weak" and not weak:
        raise UserError(
            f"split.train_on=weak, but {collection.name} has no weak queries beside judged ones; "
            "choose split.train_on=judged."
        )
    if train_on == "judged" or not weak:
        return rule
    return replace(rule, train=weak if train_on == "weak" else [*rule.train, *weak], pairs=None)


def weak_counts(collection: Collection, split: Split) -> dict[str, int]:
    """How many queries of training, validation and test nobody judged, where there are any."""
    weak = set(_weak_rows(collection))
    sides = {"train": split.train, "val": split.val, "test": split.test}
    counts = {name: len(weak.intersection(side.queries.tolist())) for name, side in sides.items()}
    return {name: n for name, n in counts.items() if n}


def _weak_rows(collection: Collection) -> list[int]:
    """Rows of queries with a positive that nobody judged (`metadata.weak`)."""
    rows = np.unique(collection.positives.query).tolist()
    return [row for row in rows if "weak" in collection.queries.metadata[row]]


def _by_query(collection: Collection, config: SplitConfig) -> _Rule:
    given = _given(collection, config)
    if given:
        return given
    groups, held = _parts(collection, config, f"query:{config.index}")
    if held is not None:  # the sealed quarter is the test side
        n_val = round(len(groups) * 2 / 9)
        return _Rule(_flat(groups[n_val:]), _flat(groups[:n_val]), _flat(held))
    n_test, n_val = _sizes(len(groups))
    return _Rule(_flat(groups[n_test + n_val :]), _flat(groups[n_test : n_test + n_val]), _flat(groups[:n_test]))


def _by_folds(collection: Collection, config: SplitConfig) -> _Rule:
    groups, held = _parts(collection, config, "folds")
    if config.n_folds > len(groups):
        raise UserError(f"split.n_folds is {config.n_folds}, but there are only {len(groups)} distinct queries.")
    bounds = [round(fold * len(groups) / config.n_folds) for fold in range(config.n_folds + 1)]
    start, stop = bounds[config.index], bounds[config.index + 1]
    test, rest = groups[start:stop], groups[stop:] + groups[:start]
    if held is not None:  # this fold's training sets, judged on the sealed quarter
        test = held
    n_val = round(len(rest) * 2 / 9)
    return _Rule(_flat(rest[n_val:]), _flat(rest[:n_val]), _flat(test))


def _by_video(collection: Collection, config: SplitConfig) -> _Rule:
    """Cold start: whole videos are held out (7:2:1); videos with equal texts stay together."""
    videos = collection.videos
    texts = [f"{title} {text}" for title, text in zip(videos.titles, videos.texts, strict=True)]
    order = _ordered(query_groups(texts, range(len(videos))), f"video:{config.index}")
    n_test, n_val = _sizes(len(order))
    side_of = np.zeros(len(videos), dtype=np.int64)
    side_of[_flat(order[:n_test])] = 2
    side_of[_flat(order[n_test : n_test + n_val])] = 1

    sides: tuple[list[int], list[int], list[int]] = ([], [], [])
    home = _best_video(collection)
    for text, rows in query_groups(collection.units, _main_rows(collection)).items():
        side = int(side_of[max((home[row] for row in rows), key=lambda item: item[:2])[2]])
        if config.part == "all" or sealed(text) == (config.part == "sealed" and side == 2):
            sides[side].extend(rows)
    return _Rule(*sides, video_side=side_of)


def _by_time(collection: Collection, config: SplitConfig) -> _Rule:
    """Train on what came before: groups ordered by the last time they were asked, 7:2:1.

    Training ends before the first group of validation ends (the cutoff). Queries of the other sides that were asked
    before the cutoff are left out, since training would know their future.
    """
    times: dict[int, float] = {}
    rows = _main_rows(collection)
    for row in rows.tolist():
        value = collection.queries.metadata[row].get("timestamp")
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise UserError(
                f"split=time: the query '{one_line(collection.queries.ids[row])}' has the timestamp {value!r}.\n"
                "Give every query a number (seconds) as metadata.timestamp, or choose split=query."
            )
        times[row] = float(value)
    groups = query_groups(collection.units, rows)
    last = {text: max(times[row] for row in members) for text, members in groups.items()}
    order = sorted(groups, key=lambda text: (last[text], text))
    n_test, n_val = _sizes(len(order))
    n_train = max(0, len(order) - n_test - n_val)
    cutoff = last[order[n_train]] if order else 0.0
    train = [text for text in order[:n_train] if last[text] < cutoff]
    val, test = order[len(train) : n_train + n_val], order[n_train + n_val :]
    before, after = _seal(config)
    return _Rule(
        _flat([groups[text] for text in train if before(text)]),
        [row for text in val if before(text) for row in groups[text] if times[row] >= cutoff],
        [row for text in test if after(text) for row in groups[text] if times[row] >= cutoff],
        cutoff=cutoff,
    )


def _as_in_paper(collection: Collection, config: SplitConfig) -> _Rule:
    """One canonical query a video (46 samples: 32/9/5); the folds rotate so that every sample is tested."""
    if config.part != "all":
        raise UserError(f"split.part is '{config.part}', but split=paper has too few samples to seal some; choose all.")
    canonical = _canonical_queries(collection)
    order = sorted(canonical, key=lambda query: _hash("paper", normalise_text(collection.units[query])))
    n_test, n_val = _sizes(len(order))
    start = config.index * len(order) // config.n_folds
    turned = order[start:] + order[:start]
    train = turned[n_test + n_val :]
    pairs = [(query, canonical[query]) for query in train]
    return _Rule(train, turned[n_test : n_test + n_val], turned[:n_test], pairs=pairs)


_RULES: dict[str, Callable[[Collection, SplitConfig], _Rule]] = {
    "query": _by_query,
    "folds": _by_folds,
    "video": _by_video,
    "time": _by_time,
    "paper": _as_in_paper,
}


def _finish(collection: Collection, rule: _Rule, config: SplitConfig) -> Split:
    """Attach candidates and judgments, drop queries without a positive, check for leaks, take the fingerprint."""
    everything = np.ones(len(collection.videos), dtype=bool)
    masks = [everything] * 3 if rule.video_side is None else [rule.video_side == side for side in range(3)]
    rows = [np.array(sorted(side), dtype=np.int64) for side in (rule.train, rule.val, rule.test)]
    train, val, test = (_side(collection, side, mask) for side, mask in zip(rows, masks, strict=True))
    for name, side in (("training", train), ("validation", val), ("test", test)):
        if not len(side.queries):
            raise UserError(
                f"split={config.name} (index {config.index}, part {config.part}) leaves no {name} query: "
                f"{len(collection.queries)} queries, {len(np.unique(collection.positives.query))} with a positive.\n"
                "Add judged queries, or choose another split (split=query, folds, video, time, paper)."
            )
    _refuse_leaks(collection, {"train": train.queries, "val": val.queries, "test": test.queries})
    extra = {f"slice_{name}": _side(collection, part, everything) for name, part in collection.slice_rows().items()}
    extra = {name: side for name, side in extra.items() if len(side.queries)}
    if rule.video_side is not None:
        extra["test_all"] = Side(test.queries, everything, test.judgments)
    pairs = rule.pairs if rule.pairs is not None else _positive_pairs(collection, train)
    left_out = sum(map(len, rows)) - len(train.queries) - len(val.queries) - len(test.queries)
    left_out += len(_unanswered(collection, config.part))
    split = Split(config.name, config.index, np.array(pairs, dtype=np.int64).reshape(-1, 2), train, val, test, extra)
    return Split(
        **{
            **split.__dict__,
            "cutoff": rule.cutoff,
            "left_out": left_out,
            "fingerprint": _fingerprint(collection, split),
        }
    )


def _unanswered(collection: Collection, part: str) -> list[int]:
    """Rows of queries without any positive, of the collection's language and of the part that is looked at."""
    texts, apart = collection.queries.texts, [row for rows in collection.slice_rows().values() for row in rows.tolist()]
    rows = set(range(len(texts))) - set(collection.positives.query.tolist()) - set(apart)
    return [row for row in sorted(rows) if part != "open" or not sealed(texts[row])]


def _side(collection: Collection, rows: Rows, candidates: Mask) -> Side:
    judged = collection.related
    wanted = np.zeros(len(collection.queries), dtype=bool)
    wanted[rows] = True
    judgments = judged.where(wanted[judged.query] & candidates[judged.video])
    with_positive = np.unique(judgments.query[judgments.grade >= collection.positive_grade])
    answered = np.zeros(len(collection.queries), dtype=bool)
    answered[with_positive] = True
    return Side(with_positive, candidates, judgments.where(answered[judgments.query]))


def _positive_pairs(collection: Collection, train: Side) -> list[tuple[int, int]]:
    judgments = train.judgments.where(train.judgments.grade >= collection.positive_grade)
    return list(zip(judgments.query.tolist(), judgments.video.tolist(), strict=True))


def _given(collection: Collection, config: SplitConfig) -> _Rule | None:
    """The sides of a folder that brings train and test judgments, or None. Without dev, 2/9 of train serves.

    The seal and the language slices hold here too: each side keeps what `split.part` lets it have.
    """
    if not {"train", "test"} <= set(collection.given):
        return None
    sides = {name: collection.given[name].tolist() for name in ("train", "test")}
    dev = next(
        (collection.given[name].tolist() for name in ("dev", "val", "validation") if name in collection.given), None
    )
    if dev is None:
        groups = _ordered(query_groups(collection.units, sides["train"]), "dev")
        n_val = round(len(groups) * 2 / 9)
        dev, sides["train"] = _flat(groups[:n_val]), _flat(groups[n_val:])
    _refuse_leaks(collection, {"train": sides["train"], "val": dev, "test": sides["test"]})
    before, after = _seal(config)
    main = set(_main_rows(collection).tolist())
    texts = collection.units
    return _Rule(
        [row for row in sides["train"] if row in main and before(texts[row])],
        [row for row in dev if row in main and before(texts[row])],
        [row for row in sides["test"] if row in main and after(texts[row])],
    )


def _seal(config: SplitConfig) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
    """Which query texts `split.part` lets training and validation have, and which it lets the test side have."""
    if config.part == "all":
        return lambda _: True, lambda _: True
    return lambda text: not sealed(text), lambda text: sealed(text) == (config.part == "sealed")


def _refuse_leaks(collection: Collection, sides: dict[str, Sequence[int]] | dict[str, Rows]) -> None:
    """No normalised query text on two sides.

    Raises:
        UserError: lists the leaking pairs (at most ten).
    """
    home: dict[str, tuple[str, str]] = {}
    leaks: list[str] = []
    for side, rows in sides.items():
        for row in rows:
            text, name = normalise_text(collection.units[int(row)]), collection.queries.ids[int(row)]
            other_side, other = home.setdefault(text, (side, name))
            if other_side != side:
                leaks.append(f"'{one_line(other)}' ({other_side}) = '{one_line(name)}' ({side})")
    if leaks:
        more = f" and {len(leaks) - 10} more" if len(leaks) > 10 else ""
        raise UserError(
            f"the split leaks: {len(leaks)} queries on two sides have equal text: {', '.join(leaks[:10])}{more}.\n"
            "Put equal queries on one side of qrels/{train,dev,test}.tsv."
        )


def _parts(collection: Collection, config: SplitConfig, salt: str) -> tuple[Groups, Groups | None]:
    """Groups to divide, in hash order, and the sealed groups where they are the test side."""
    groups = query_groups(collection.units, _main_rows(collection))
    if config.part == "all":
        return _ordered(groups, salt), None
    visible = {text: rows for text, rows in groups.items() if not sealed(text)}
    hidden = {text: rows for text, rows in groups.items() if sealed(text)}
    return _ordered(visible, salt), (_ordered(hidden, salt) if config.part == "sealed" else None)


def _main_rows(collection: Collection) -> Rows:
    """Query rows with a positive, outside the language slices; weak ones only where there are no others."""
    apart = np.concatenate([np.zeros(0, dtype=np.int64), *collection.slice_rows().values()])
    rows = np.setdiff1d(np.unique(collection.positives.query), apart)
    judged = np.setdiff1d(rows, _weak_rows(collection))
    return judged if len(judged) else rows


def _best_video(collection: Collection) -> dict[int, tuple[float, int, int]]:
    """(grade, tie breaker, video row) of the best positive of each query row."""
    best: dict[int, tuple[float, int, int]] = {}
    positives = collection.positives
    for query, video, grade in zip(
        positives.query.tolist(), positives.video.tolist(), positives.grade.tolist(), strict=True
    ):
        choice = (grade, _hash("best", collection.videos.ids[video]), video)
        best[query] = max(best.get(query, choice), choice)
    return best


def _canonical_queries(collection: Collection) -> dict[int, int]:
    """Query row to video row, one a video: marked `canonical_for`, else one (by hash) with that best positive."""
    ids, chosen = collection.queries.ids, {}
    positive = set(zip(collection.positives.query.tolist(), collection.positives.video.tolist(), strict=True))
    rows = _main_rows(collection).tolist()
    for row in rows:
        name = collection.queries.metadata[row].get("canonical_for")
        if name is None:
            continue
        if str(name) not in collection.videos.row_of:
            raise UserError(f"query '{one_line(ids[row])}': canonical_for names the unknown video '{one_line(name)}'.")
        chosen[row] = collection.videos.row_of[str(name)]
        if (row, chosen[row]) not in positive:
            raise UserError(
                f"query '{one_line(ids[row])}': canonical_for names '{one_line(name)}', "
                "which is no positive of this query."
            )
    if not chosen:
        best = _best_video(collection)
        videos: set[int] = set()
        seen: set[str] = set()
        for row in sorted(rows, key=lambda row: (_hash("canonical", ids[row]), ids[row])):
            text, video = normalise_text(collection.units[row]), best[row][2]
            if video not in videos and text not in seen:
                chosen[row] = video
                videos.add(video)
                seen.add(text)
    return chosen


def _sizes(n: int) -> tuple[int, int]:
    """Test and validation sizes of a 7:2:1 division; the rest is for training (46: 5 and 9, leaving 32)."""
    return max(1, round(n * 0.1)), max(1, round(n * 0.2))


def _ordered(groups: dict[str, list[int]], salt: str) -> Groups:
    return [groups[text] for text in sorted(groups, key=lambda text: (_hash(salt, text), text))]


def _flat(groups: Groups) -> list[int]:
    return [row for group in groups for row in group]


def _hash(salt: str, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt}\n{text}".encode()).digest()[:8], "big")


def _fingerprint(collection: Collection, split: Split) -> str:
    ids, videos = collection.queries.ids, collection.videos.ids
    parts = {
        name: [sorted(ids[row] for row in side.queries), sorted(videos[row] for row in np.flatnonzero(side.candidates))]
        for name, side in [("train", split.train), *split.sides.items()]
    }
    pairs = sorted((ids[query], videos[video]) for query, video in split.pairs.tolist())
    return hashlib.sha256(json.dumps([collection.content, parts, pairs], sort_keys=True).encode()).hexdigest()[:16]
