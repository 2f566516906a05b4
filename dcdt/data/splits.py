"""Divide the queries of a collection into train, validation and test without leaks.

A *side* is a set of queries that a split keeps apart from the others: train, val and test, and further ones that are
scored beside test (`test_all`, `slice_<language>`).

The unit is the query group: queries with equal normalised text are always on one side (without questions the unit is
the learner). Every partition is an order by hash, so it depends on texts and ids alone: not on file order, library
versions or the training seed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dcdt.data.config import SplitConfig
from dcdt.data.overlap import overlaps
from dcdt.data.types import CLICKS, Collection, Judgments, Rows, normalise_text
from dcdt.utils.errors import NotApplicable, UserError
from dcdt.utils.text import one_line

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Side:
    """One side of a split: its queries, the videos they are ranked among, and their judgments among those videos."""

    queries: Rows  # (n,) rows with at least one positive among the candidates
    candidates: Mask  # (N,)
    judgments: Judgments

    def where(self, keep: Mask) -> "Side":
        """Select the queries of rows for which `keep` (Q,) is true."""
        return Side(self.queries[keep[self.queries]], self.candidates, self.judgments.where(keep[self.judgments.query]))


@dataclass(frozen=True)
class Split:
    """One division of a collection.

    Attributes:
        pairs: (P, 2) training pairs of (query row, video row).
        train, val, test: the three sides.
        extra: further sides reported beside test: `test_all` (cold start among all videos), `slice_<language>`.
        cutoff: `split=time` only: training uses nothing from this time on.
        left_out: number of queries without a positive, anywhere or on their side.
        fingerprint: hash of sides, pairs and candidates; runs compare only where it agrees.
        schools: name of the school of each query row; empty where queries are of one (`split.schools`).
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
    schools: list[str] = field(default_factory=list)

    def where(self, keep: Mask) -> "Split":
        """Select the queries of rows for which `keep` (Q,) is true, on every side."""
        sides = {name: getattr(self, name).where(keep) for name in ("train", "val", "test")}
        sides["extra"] = {name: side.where(keep) for name, side in self.extra.items()}
        own = hashlib.sha256(self.fingerprint.encode() + keep.tobytes()).hexdigest()[:16]
        return replace(self, pairs=self.pairs[keep[self.pairs[:, 0]]], fingerprint=own, **sides)

    @property
    def sides(self) -> dict[str, Side]:
        """All sides that are scored, by the name under which their metrics are reported."""
        return {"val": self.val, "test": self.test, **self.extra}


Groups = list[list[int]]


def make_split(collection: Collection, config: SplitConfig) -> Split:
    """Split a collection as configured.

    Raises:
        UserError: the index is out of range, a side is left without a query, or a split given by the user leaks.
        NotApplicable: `train_queries` exceeds the number of training queries.
    """
    limit = config.n_folds
    if not 0 <= config.index < limit:
        raise UserError(f"split.index is {config.index}; split={config.name} has the indices 0 to {limit - 1}.")
    rule = _RULES[config.name](collection, config)
    if config.train_queries is not None:
        rule = _limit_training(collection, rule, config.train_queries)
    rule = _add_weak_queries(collection, rule, config.train_on)
    if config.max_overlap is not None:
        rule = _leave_out_near_twins(collection, rule, config.max_overlap)
    split = _build_split(collection, rule, config)
    return split if config.schools is None else replace(split, schools=_draw_schools(collection, config))


def _draw_schools(collection: Collection, config: SplitConfig) -> list[str]:
    """Name the school of each query row: a field of its metadata, or one of so many of equal size.

    Queries of equal text are of one school. `school_mix=subject` draws by subject and video, so that schools differ.
    """
    texts, metadata = [normalise_text(text) for text in collection.group_keys], collection.queries.metadata
    field_name = config.schools if isinstance(config.schools, str) else "subject"
    name_of = dict(zip(texts, (str(row.get(field_name, "none")) for row in metadata), strict=True))
    if field_name == config.schools:
        if not any(field_name in row for row in metadata):
            fields = ", ".join(sorted({name for row in metadata for name in row})) or "none"
            raise UserError(
                f"split.schools is '{one_line(field_name)}'; no query has it in its metadata (there: {fields}).\n"
                "Name one of these fields, or give a number of schools to draw, such as split.schools=5."
            )
        return [name_of[text] for text in texts]
    best = {texts[row]: video for row, (_, _, video) in _best_video(collection).items()}
    by_subject = {text: (name_of[text], best.get(text, -1)) for text in name_of if config.school_mix == "subject"}
    order = sorted(name_of, key=lambda text: (by_subject.get(text, ("", -1)), _hash("school", text)))
    place = {text: 1 + position * int(config.schools or 1) // len(order) for position, text in enumerate(order)}
    return [f"school {place[text]:02}" for text in texts]


def is_sealed(text: str) -> bool:
    """Return whether the query group of a text is in the sealed quarter, which is chosen by hash."""
    return _hash("seal", normalise_text(text)) % 4 == 0


def query_groups(texts: Sequence[str], rows: Sequence[int] | Rows) -> dict[str, list[int]]:
    """Group rows by normalised text.

    >>> query_groups(["What is rank?", "what is rank", "span"], [0, 1, 2])
    {'what is rank': [0, 1], 'span': [2]}
    """
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(normalise_text(texts[int(row)]), []).append(int(row))
    return groups


def warmth(split: Split, side: Side, positive_grade: float) -> list[str]:
    """Classify each query of a side as warm, cold or mixed.

    Warm: every positive was a positive of some training query; cold: none was; mixed: some. A model can win on warm
    queries by remembering which videos are popular answers.
    """
    in_training = np.zeros(len(side.candidates), dtype=bool)
    in_training[split.pairs[:, 1]] = True
    seen_positives: dict[int, list[bool]] = {int(row): [] for row in side.queries}
    positives = side.judgments.where(side.judgments.grade >= positive_grade)
    for query, video in zip(positives.query.tolist(), positives.video.tolist(), strict=True):
        seen_positives[query].append(bool(in_training[video]))
    return [
        "warm" if all(seen_positives[int(q)]) else "mixed" if any(seen_positives[int(q)]) else "cold"
        for q in side.queries
    ]


@dataclass(frozen=True)
class _Rule:
    """The result of a splitting rule: query rows by side, and the side of each video if videos are divided too."""

    train: list[int]
    val: list[int]
    test: list[int]
    video_side: NDArray[np.int64] | None = None  # (N,) 0 train, 1 val, 2 test
    pairs: list[tuple[int, int]] | None = None
    cutoff: float | None = None


def _limit_training(collection: Collection, rule: _Rule, n: int) -> _Rule:
    """Keep n groups of training queries, and validation in proportion; smaller sets are subsets of larger ones."""
    texts = collection.group_keys
    train, val = (_hash_order(query_groups(texts, rows), "fewer") for rows in (rule.train, rule.val))
    if n > len(train):
        raise NotApplicable(f"split.train_queries is {n}, but this division has {len(train)} training queries")
    train_rows = _flatten(train[:n])
    pairs = None if rule.pairs is None else [pair for pair in rule.pairs if pair[0] in set(train_rows)]
    return replace(rule, train=train_rows, val=_flatten(val[: max(1, round(len(val) * n / len(train)))]), pairs=pairs)


def _add_weak_queries(collection: Collection, rule: _Rule, train_on: str) -> _Rule:
    """Add weak queries (`metadata.weak`) to the training side, unless a held-out query has the same text.

    Raises:
        UserError: `train_on=weak` and there are none.
    """
    texts = collection.queries.texts
    held_out_texts = {normalise_text(texts[row]) for row in (*rule.val, *rule.test)}
    main = set(_main_rows(collection).tolist())
    weak = [
        row for row in _weak_rows(collection) if row not in main and normalise_text(texts[row]) not in held_out_texts
    ]
    if train_on == "weak" and not weak:
        raise UserError(
            f"split.train_on=weak, but {collection.name} has no weak queries beside judged ones; "
            "choose split.train_on=judged."
        )
    if train_on == "judged" or not weak:
        return rule
    return replace(rule, train=weak if train_on == "weak" else [*rule.train, *weak], pairs=None)


def _leave_out_near_twins(collection: Collection, rule: _Rule, max_overlap: float) -> _Rule:
    """Leave out training and validation queries that share more of their words with a test query."""
    texts = collection.group_keys
    test = [texts[row] for row in rule.test]
    train, val = (
        [
            row
            for row, near in zip(rows, overlaps([texts[row] for row in rows], test, max_overlap), strict=True)
            if not near
        ]
        for rows in (rule.train, rule.val)
    )
    pairs = None if rule.pairs is None else [pair for pair in rule.pairs if pair[0] in set(train)]
    return replace(rule, train=train, val=val, pairs=pairs)


def weak_counts(collection: Collection, split: Split) -> dict[str, int]:
    """Count the weak queries of each side that has any, and the clicked ones of training."""
    weak = set(_weak_rows(collection))
    sides = {"train": split.train, "val": split.val, "test": split.test}
    counts = {name: len(weak.intersection(side.queries.tolist())) for name, side in sides.items()}
    counts[CLICKS] = len(set(_clicked_rows(collection)).intersection(split.train.queries.tolist()))
    return {name: n for name, n in counts.items() if n}


def _weak_rows(collection: Collection) -> list[int]:
    """Return the rows of weak queries (`metadata.weak`) with a positive."""
    rows = np.unique(collection.positives.query).tolist()
    return [row for row in rows if "weak" in collection.queries.metadata[row]]


def _clicked_rows(collection: Collection) -> list[int]:
    """Return the rows of weak queries whose judgments are clicks: for training alone."""
    return [row for row in _weak_rows(collection) if collection.queries.metadata[row]["weak"] == CLICKS]


def _by_query(collection: Collection, config: SplitConfig) -> _Rule:
    given_rule = _given_sides(collection, config)
    if given_rule:
        return given_rule
    groups, sealed_groups = _open_and_sealed(collection, config, f"query:{config.index}")
    if sealed_groups is not None:  # the sealed quarter is the test side
        n_val = round(len(groups) * 2 / 9)
        return _Rule(_flatten(groups[n_val:]), _flatten(groups[:n_val]), _flatten(sealed_groups))
    n_test, n_val = _split_sizes(len(groups))
    return _Rule(
        _flatten(groups[n_test + n_val :]), _flatten(groups[n_test : n_test + n_val]), _flatten(groups[:n_test])
    )


def _by_folds(collection: Collection, config: SplitConfig) -> _Rule:
    groups, sealed_groups = _open_and_sealed(collection, config, "folds")
    if config.n_folds > len(groups):
        raise UserError(f"split.n_folds is {config.n_folds}, but there are only {len(groups)} distinct queries.")
    bounds = [round(fold * len(groups) / config.n_folds) for fold in range(config.n_folds + 1)]
    start, stop = bounds[config.index], bounds[config.index + 1]
    test, others = groups[start:stop], groups[stop:] + groups[:start]
    if sealed_groups is not None:  # train on this fold, test on the sealed quarter
        test = sealed_groups
    n_val = round(len(others) * 2 / 9)
    return _Rule(_flatten(others[n_val:]), _flatten(others[:n_val]), _flatten(test))


def _by_video(collection: Collection, config: SplitConfig) -> _Rule:
    """Split by video for cold start: whole videos are held out (7:2:1); videos with equal texts stay together."""
    videos = collection.videos
    texts = [f"{title} {text}" for title, text in zip(videos.titles, videos.texts, strict=True)]
    order = _hash_order(query_groups(texts, range(len(videos))), f"video:{config.index}")
    n_test, n_val = _split_sizes(len(order))
    side_of = np.zeros(len(videos), dtype=np.int64)
    side_of[_flatten(order[:n_test])] = 2
    side_of[_flatten(order[n_test : n_test + n_val])] = 1

    sides: tuple[list[int], list[int], list[int]] = ([], [], [])
    home = _best_video(collection)
    for text, rows in query_groups(collection.group_keys, _main_rows(collection)).items():
        side = int(side_of[max((home[row] for row in rows), key=lambda item: item[:2])[2]])
        if config.part == "all" or is_sealed(text) == (config.part == "sealed" and side == 2):
            sides[side].extend(rows)
    return _Rule(*sides, video_side=side_of)


def _by_time(collection: Collection, config: SplitConfig) -> _Rule:
    """Split by time: groups ordered by the last time they were asked, 7:2:1.

    Training ends before the first validation group ends (the cutoff). Queries of the other sides that were asked before
    the cutoff are left out, since training would know their future.
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
    groups = query_groups(collection.group_keys, rows)
    last = {text: max(times[row] for row in members) for text, members in groups.items()}
    order = sorted(groups, key=lambda text: (last[text], text))
    n_test, n_val = _split_sizes(len(order))
    n_train = max(0, len(order) - n_test - n_val)
    cutoff = last[order[n_train]] if order else 0.0
    train = [text for text in order[:n_train] if last[text] < cutoff]
    val, test = order[len(train) : n_train + n_val], order[n_train + n_val :]
    before, after = _seal_filters(config)
    return _Rule(
        _flatten([groups[text] for text in train if before(text)]),
        [row for text in val if before(text) for row in groups[text] if times[row] >= cutoff],
        [row for text in test if after(text) for row in groups[text] if times[row] >= cutoff],
        cutoff=cutoff,
    )


def _by_paper(collection: Collection, config: SplitConfig) -> _Rule:
    """Split as the paper: one canonical query a video (46: 32/9/5); folds rotate so that every sample is tested."""
    if config.part != "all":
        raise UserError(f"split.part is '{config.part}', but split=paper has too few samples to seal some; choose all.")
    canonical = _canonical_queries(collection)
    order = sorted(canonical, key=lambda query: _hash("paper", normalise_text(collection.group_keys[query])))
    n_test, n_val = _split_sizes(len(order))
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
    "paper": _by_paper,
}


def _build_split(collection: Collection, rule: _Rule, config: SplitConfig) -> Split:
    """Add candidates and judgments, drop queries without a positive, check for leaks, compute the fingerprint."""
    everything = np.ones(len(collection.videos), dtype=bool)
    masks = [everything] * 3 if rule.video_side is None else [rule.video_side == side for side in range(3)]
    rows = [np.array(sorted(side), dtype=np.int64) for side in (rule.train, rule.val, rule.test)]
    train, val, test = (_make_side(collection, side, mask) for side, mask in zip(rows, masks, strict=True))
    for name, side in (("training", train), ("validation", val), ("test", test)):
        if not len(side.queries):
            raise UserError(
                f"split={config.name} (index {config.index}, part {config.part}) leaves no {name} query: "
                f"{len(collection.queries)} queries, {len(np.unique(collection.positives.query))} with a positive.\n"
                "Add judged queries, or choose another split (split=query, folds, video, time, paper)."
            )
    _refuse_leaks(collection, {"train": train.queries, "val": val.queries, "test": test.queries})
    extra = {
        f"slice_{name}": _make_side(collection, slice_rows, everything)
        for name, slice_rows in collection.slice_rows().items()
    }
    extra = {name: side for name, side in extra.items() if len(side.queries)}
    if rule.video_side is not None:
        extra["test_all"] = Side(test.queries, everything, test.judgments)
    pairs = rule.pairs if rule.pairs is not None else _positive_pairs(collection, train)
    left_out = sum(map(len, rows)) - len(train.queries) - len(val.queries) - len(test.queries)
    left_out += len(_rows_without_positive(collection, config.part))
    split = Split(config.name, config.index, np.array(pairs, dtype=np.int64).reshape(-1, 2), train, val, test, extra)
    return Split(
        **{
            **split.__dict__,
            "cutoff": rule.cutoff,
            "left_out": left_out,
            "fingerprint": _fingerprint(collection, split),
        }
    )


def _rows_without_positive(collection: Collection, part: str) -> list[int]:
    """Return the rows of queries without a positive, of the collection's language and of the part of the split."""
    texts, apart = collection.queries.texts, [row for rows in collection.slice_rows().values() for row in rows.tolist()]
    rows = set(range(len(texts))) - set(collection.positives.query.tolist()) - set(apart)
    return [row for row in sorted(rows) if part != "open" or not is_sealed(texts[row])]


def _make_side(collection: Collection, rows: Rows, candidates: Mask) -> Side:
    judged = collection.related
    is_selected = np.zeros(len(collection.queries), dtype=bool)
    is_selected[rows] = True
    judgments = judged.where(is_selected[judged.query] & candidates[judged.video])
    with_positive = np.unique(judgments.query[judgments.grade >= collection.positive_grade])
    answered = np.zeros(len(collection.queries), dtype=bool)
    answered[with_positive] = True
    return Side(with_positive, candidates, judgments.where(answered[judgments.query]))


def _positive_pairs(collection: Collection, train: Side) -> list[tuple[int, int]]:
    judgments = train.judgments.where(train.judgments.grade >= collection.positive_grade)
    return list(zip(judgments.query.tolist(), judgments.video.tolist(), strict=True))


def _given_sides(collection: Collection, config: SplitConfig) -> _Rule | None:
    """Return the sides of a folder with its own train and test judgments, or None; without dev, 2/9 of train is used.

    The sealed quarter and the language slices apply here too.
    """
    if not {"train", "test"} <= set(collection.given_sides):
        return None
    sides = {name: collection.given_sides[name].tolist() for name in ("train", "test")}
    dev = next(
        (
            collection.given_sides[name].tolist()
            for name in ("dev", "val", "validation")
            if name in collection.given_sides
        ),
        None,
    )
    if dev is None:
        groups = _hash_order(query_groups(collection.group_keys, sides["train"]), "dev")
        n_val = round(len(groups) * 2 / 9)
        dev, sides["train"] = _flatten(groups[:n_val]), _flatten(groups[n_val:])
    _refuse_leaks(collection, {"train": sides["train"], "val": dev, "test": sides["test"]})
    before, after = _seal_filters(config)
    main = set(_main_rows(collection).tolist())
    texts = collection.group_keys
    return _Rule(
        [row for row in sides["train"] if row in main and before(texts[row])],
        [row for row in dev if row in main and before(texts[row])],
        [row for row in sides["test"] if row in main and after(texts[row])],
    )


def _seal_filters(config: SplitConfig) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
    """Return two filters of query texts for `split.part`: for training and validation, and for the test side."""
    if config.part == "all":
        return lambda _: True, lambda _: True
    return lambda text: not is_sealed(text), lambda text: is_sealed(text) == (config.part == "sealed")


def _refuse_leaks(collection: Collection, sides: dict[str, Sequence[int]] | dict[str, Rows]) -> None:
    """Refuse a normalised query text on two sides.

    Raises:
        UserError: lists the leaking pairs (at most ten).
    """
    home: dict[str, tuple[str, str]] = {}
    leaks: list[str] = []
    for side, rows in sides.items():
        for row in rows:
            text, name = normalise_text(collection.group_keys[int(row)]), collection.queries.ids[int(row)]
            other_side, other = home.setdefault(text, (side, name))
            if other_side != side:
                leaks.append(f"'{one_line(other)}' ({other_side}) = '{one_line(name)}' ({side})")
    if leaks:
        more = f" and {len(leaks) - 10} more" if len(leaks) > 10 else ""
        raise UserError(
            f"the split leaks: {len(leaks)} queries on two sides have equal text: {', '.join(leaks[:10])}{more}.\n"
            "Put equal queries on one side of qrels/{train,dev,test}.tsv."
        )


def _open_and_sealed(collection: Collection, config: SplitConfig, salt: str) -> tuple[Groups, Groups | None]:
    """Return the groups to divide, in hash order, and the sealed groups if they are the test side, else None."""
    groups = query_groups(collection.group_keys, _main_rows(collection))
    if config.part == "all":
        return _hash_order(groups, salt), None
    visible = {text: rows for text, rows in groups.items() if not is_sealed(text)}
    hidden = {text: rows for text, rows in groups.items() if is_sealed(text)}
    return _hash_order(visible, salt), (_hash_order(hidden, salt) if config.part == "sealed" else None)


def _main_rows(collection: Collection) -> Rows:
    """Return the rows of queries with a positive, without language slices; made by rule only if there are no others."""
    apart = np.concatenate([np.zeros(0, dtype=np.int64), *collection.slice_rows().values()])
    rows = np.setdiff1d(np.unique(collection.positives.query), apart)
    judged = np.setdiff1d(rows, _weak_rows(collection))
    return judged if len(judged) else np.setdiff1d(rows, _clicked_rows(collection))


def _best_video(collection: Collection) -> dict[int, tuple[float, int, int]]:
    """Find (grade, tie breaker, video row) of the best positive of each query row."""
    best: dict[int, tuple[float, int, int]] = {}
    positives = collection.positives
    for query, video, grade in zip(
        positives.query.tolist(), positives.video.tolist(), positives.grade.tolist(), strict=True
    ):
        choice = (grade, _hash("best", collection.videos.ids[video]), video)
        best[query] = max(best.get(query, choice), choice)
    return best


def _canonical_queries(collection: Collection) -> dict[int, int]:
    """Map one query row to each video row: marked `canonical_for`, else by hash among those with that best positive."""
    ids, video_of = collection.queries.ids, {}
    positive = set(zip(collection.positives.query.tolist(), collection.positives.video.tolist(), strict=True))
    rows = _main_rows(collection).tolist()
    for row in rows:
        name = collection.queries.metadata[row].get("canonical_for")
        if name is None:
            continue
        if str(name) not in collection.videos.row_of:
            raise UserError(f"query '{one_line(ids[row])}': canonical_for names the unknown video '{one_line(name)}'.")
        video_of[row] = collection.videos.row_of[str(name)]
        if (row, video_of[row]) not in positive:
            raise UserError(
                f"query '{one_line(ids[row])}': canonical_for names '{one_line(name)}', "
                "which is no positive of this query."
            )
    if not video_of:
        best = _best_video(collection)
        videos: set[int] = set()
        texts: set[str] = set()
        for row in sorted(rows, key=lambda row: (_hash("canonical", ids[row]), ids[row])):
            text, video = normalise_text(collection.group_keys[row]), best[row][2]
            if video not in videos and text not in texts:
                video_of[row] = video
                videos.add(video)
                texts.add(text)
    return video_of


def _split_sizes(n: int) -> tuple[int, int]:
    """Compute test and validation sizes of a 7:2:1 division; the rest is for training (46: 5 and 9, leaving 32)."""
    return max(1, round(n * 0.1)), max(1, round(n * 0.2))


def _hash_order(groups: dict[str, list[int]], salt: str) -> Groups:
    return [groups[text] for text in sorted(groups, key=lambda text: (_hash(salt, text), text))]


def _flatten(groups: Groups) -> list[int]:
    return [row for group in groups for row in group]


def _hash(salt: str, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt}\n{text}".encode()).digest()[:8], "big")


def _fingerprint(collection: Collection, split: Split) -> str:
    ids, videos = collection.queries.ids, collection.videos.ids
    side_ids = {
        name: [sorted(ids[row] for row in side.queries), sorted(videos[row] for row in np.flatnonzero(side.candidates))]
        for name, side in [("train", split.train), *split.sides.items()]
    }
    pairs = sorted((ids[query], videos[video]) for query, video in split.pairs.tolist())
    return hashlib.sha256(json.dumps([collection.content_hash, side_ids, pairs], sort_keys=True).encode()).hexdigest()[
        :16
    ]
