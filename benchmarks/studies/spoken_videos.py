"""Do transcripts help the queries whose videos have one, and leave the others alone?

    python benchmarks/studies/spoken_videos.py COLLECTION SWEEP ...

Prints the difference of each model with transcripts to the same model without, by MRR and nDCG@10, for the queries of
which every positive, some and none have a transcript; with 95 % intervals by units.
"""

import sys
from pathlib import Path

from dcdt.data.beir import load_collection
from dcdt.reporting.cells import mean_with_interval, per_query, units_by_query
from dcdt.reporting.variants import make_variants
from dcdt.runs.reader import read_runs

WITHOUT = {
    "zero_shot_transcript": "zero_shot",
    "bm25_transcript": "bm25",
    "hybrid_transcript": "hybrid",
    "hybrid_towers_transcript": "hybrid_towers",
}


def parts(folder: Path) -> dict[str, set[str]]:
    """Divide the queries of a collection by how many of their positives have a transcript: ids by name of the part."""
    collection = load_collection(folder)
    spoken = [bool(segments) for segments in collection.transcripts.segments]
    videos_of: dict[str, list[bool]] = {}
    pairs = zip(collection.positives.query.tolist(), collection.positives.video.tolist(), strict=True)
    for query, video in pairs:
        videos_of.setdefault(collection.queries.ids[query], []).append(spoken[video])
    return {
        "every positive": {name for name, has in videos_of.items() if all(has)},
        "some": {name for name, has in videos_of.items() if any(has) and not all(has)},
        "none": {name for name, has in videos_of.items() if not any(has)},
    }


def main() -> None:
    """Print the table."""
    folder, *sweeps = map(Path, sys.argv[1:])
    variants = {variant.label: variant.runs for variant in make_variants(read_runs(sweeps))}
    print("| model | metric | positives with a transcript | queries | with less without |")
    print("|---|---|---|---|---|")
    for name, other in WITHOUT.items():
        for metric in ("mrr", "ndcg@10"):
            with_them, without = (per_query(variants[label], metric) for label in (name, other))
            units = units_by_query(variants[name])
            for part, ids in parts(folder).items():
                names = sorted(ids & with_them.keys())
                gap = mean_with_interval(
                    [with_them[one] - without[one] for one in names], [units[one] for one in names], signed=True
                )
                cell = f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
                print(f"| {name} | {metric} | {part} | {len(names)} | {cell} |")


if __name__ == "__main__":
    main()
