"""The snapshot in memory and the table against brute force: search, filters, changes, saving; and what they refuse."""

import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from dcdt.data.types import Documents
from dcdt.serving.arrow import vector_column
from dcdt.serving.blas_threads import OneThread
from dcdt.serving.catalogue.approximate import ApproximateIndex, exact_top_k
from dcdt.serving.catalogue.filters import matching_rows, parse_filter
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.catalogue.top_k import top_k
from dcdt.serving.catalogue.video_table import VideoTable
from dcdt.serving.videos import filter_kinds, table_of
from dcdt.utils.errors import UserError

LEVELS = ["intro", "middle", "advanced"]


def videos(ids, rng, width=8):
    documents = Documents(
        list(ids),
        [f"Title {name}" for name in ids],
        ["text"] * len(ids),
        [{"level": str(rng.choice(LEVELS)), "duration_s": int(rng.integers(1, 100))} for _ in ids],
    )
    matrix = rng.normal(size=(len(ids), width)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return table_of(documents, {}).append_column("vector_0", vector_column(matrix))


class Memory:
    """A snapshot that is changed as the catalogue in memory changes it."""

    def __init__(self, exact_cells):
        self.exact_cells = exact_cells

    version = property(lambda self: self.snapshot.version)

    def __len__(self):
        return len(self.snapshot)

    def create(self, videos):
        self.snapshot = Snapshot.build(videos, exact_cells=self.exact_cells)

    def update(self, videos):
        self.snapshot = self.snapshot.apply(videos, [], self.version + 1)

    add = update

    def delete(self, ids):
        self.snapshot = self.snapshot.apply(self.snapshot.built.to_table().slice(0, 0), ids, self.version + 1)

    def search(self, vector, k, where=()):
        rows, scores = self.snapshot.search(vector, k, self.snapshot.allowed(where), "vector_0")
        return self.snapshot.table["id"].take(pa.array(rows)).to_pylist(), scores

    def save(self, folder):
        self.snapshot.save_indexes(folder)
        self.snapshot.save(folder / "snapshot.arrow")

    def load(self, folder):
        self.snapshot = Snapshot.load(folder / "snapshot.arrow")


class Table(VideoTable):
    """The durable table, searched."""

    def search(self, vector, k, where=()):
        rows = self.nearest(vector, k, where, columns=["id", "_distance"])
        return rows["id"].to_pylist(), 1 - rows["_distance"].to_numpy()

    def save(self, folder):
        """Every change is on disk when it returns."""

    def load(self, folder):
        self.refresh()


def make(engine, folder):
    if engine == "lance":
        return Table(str(folder / "catalogue"))
    return Memory(64 if engine == "approximate" else 10**9)


ENGINES = ("exact", "approximate", "lance")


class Brute:
    """What an index should hold."""

    def __init__(self, table):
        self.rows = {row["id"]: row for row in table.to_pylist()}

    def search(self, vector, k, text=""):
        table = pa.Table.from_pylist(list(self.rows.values()))
        keep = matching_rows(parse_filter(text, filter_kinds({})), table)
        rows = [row for row, kept in zip(self.rows.values(), keep, strict=True) if kept]
        scores = sorted(((float(np.dot(row["vector_0"], vector)), row["id"]) for row in rows), reverse=True)
        return [name for _, name in scores[:k]], [score for score, _ in scores[:k]]


def agree(index, brute, rng, text=""):
    vector = rng.normal(size=8).astype(np.float32)
    found = index.search(vector, 5, parse_filter(text, filter_kinds({})))
    ids, scores = brute.search(vector, 5, text)
    assert found[0] == ids
    np.testing.assert_allclose(found[1], scores, atol=1e-5)


@given(
    kept=st.sampled_from([0.0, 1e-4, 0.3, 1.0]),
    values=st.sampled_from([2, 50, 10**9]),
    k=st.sampled_from([1, 10, 500, 70_000]),
    seed=st.integers(0, 999),
)
@profile(max_examples=40)
def test_the_best_of_many_are_those_of_a_sort(kept, values, k, seed):
    rng = np.random.default_rng(seed)
    scores = np.where(rng.random(60_000) < kept, rng.integers(0, values, 60_000) / 7, -np.inf)
    order = rng.permutation(len(scores))
    count = min(k, int((scores > -np.inf).sum()))
    np.testing.assert_array_equal(top_k(scores, order, k), np.lexsort((order, -scores))[:count])
    np.testing.assert_array_equal(top_k(scores, None, k), np.argsort(-scores, kind="stable")[:count])


@pytest.mark.parametrize("engine", ENGINES)
def test_search_filter_and_changes_agree_with_brute_force(engine, tmp_path):
    rng = np.random.default_rng(0)
    table = videos([f"v{at}" for at in range(60)], rng)
    index, brute = make(engine, tmp_path), Brute(table)
    index.create(table)
    for text in ("", "level=intro", "level!=intro,duration_s<50", "id=v3|v4"):
        agree(index, brute, rng, text)
    before = index.version

    new = videos(["new1", "it's"], rng)
    index.add(new)
    brute.rows |= Brute(new).rows
    edited = videos(["v3", "new1"], rng)
    index.update(edited)
    brute.rows |= Brute(edited).rows
    index.delete(["v5", "it's"])
    for name in ("v5", "it's"):
        del brute.rows[name]
    assert len(index) == len(brute.rows) and index.version > before
    for _ in range(5):
        agree(index, brute, rng)
        agree(index, brute, rng, "level=intro|advanced")

    index.save(tmp_path)
    again = make(engine, tmp_path)
    again.load(tmp_path)
    assert len(again) == len(brute.rows) and again.version == index.version
    agree(again, brute, rng)
    agree(again, brute, rng, "duration_s>=30")


@profile(max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("engine", ["exact", "approximate"])
def test_any_order_of_changes_leaves_what_brute_force_holds(engine, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    table = videos([f"v{at}" for at in range(20)], rng)
    index, brute = make(engine, None), Brute(table)
    index.create(table)
    for step in range(data.draw(st.integers(1, 8))):
        present = sorted(brute.rows)
        change = data.draw(st.sampled_from(["add", "update", "delete"]))
        ids = (
            [f"n{step}"]
            if change == "add"
            else data.draw(st.lists(st.sampled_from(present), min_size=1, max_size=3, unique=True))
        )
        if change == "delete" and len(ids) == len(present):
            continue
        table = videos(ids, rng)
        getattr(index, change)(ids if change == "delete" else table)
        brute.rows = {name: row for name, row in brute.rows.items() if change != "delete" or name not in ids}
        brute.rows |= {} if change == "delete" else Brute(table).rows
        agree(index, brute, rng)
        agree(index, brute, rng, "level!=middle")


def test_ids_that_exist_or_do_not_are_named_and_nothing_changes(tmp_path):
    rng = np.random.default_rng(0)
    index = make("lance", tmp_path)
    index.create(videos(["a", "b"], rng))
    for action, said in [
        (lambda: index.add(videos(["c", "a"], rng)), "the id 'a' exists already"),
        (lambda: index.update(videos(["a", "z"], rng)), "no video with the id 'z'"),
        (lambda: index.delete(["a", "z'; DROP"]), "no video with the id 'z'; DROP'"),
    ]:
        with pytest.raises(UserError, match=said):
            action()
    assert len(index) == 2


def test_recall_of_the_approximate_index_is_measured_and_kept(tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 384))
    matrix = (centres[rng.integers(0, 40, 3000)] + 0.8 * rng.normal(size=(3000, 384))).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    ann = ApproximateIndex.build(matrix)
    probes = matrix[:50] + 0.02 * rng.normal(size=(50, 384)).astype(np.float32)
    assert ann.project is not None and ann.info.recall > 0.9
    assert ann.recall(probes, exact_top_k(matrix, probes, 10)) > 0.9
    rows, scores = ann.search(probes[0], 10)
    np.testing.assert_allclose(scores, matrix[rows] @ probes[0], atol=1e-5)
    mean, deviation = ann.spread(probes[0])
    every = matrix @ probes[0]
    np.testing.assert_allclose([mean, deviation], [every.mean(), every.std()], atol=1e-4)
    ann.save(tmp_path / "vector_0.faiss")
    again = ApproximateIndex.load(tmp_path / "vector_0.faiss", matrix)
    assert again.info == ann.info and again.search(probes[0], 10)[0].tolist() == rows.tolist()


def test_a_filter_far_from_the_query_and_many_answers_are_found_too():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 32))
    matrix = (centres[rng.integers(0, 60, 6000)] + 0.6 * rng.normal(size=(6000, 32))).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    ann = ApproximateIndex.build(matrix)
    for probe in matrix[:5]:
        scores = matrix @ probe
        far = scores <= np.quantile(scores, 0.3)
        rows, found = ann.search(probe, 10, far)
        assert len(rows) == 10 and far[rows].all() and (np.diff(found) <= 0).all()
        best_far = np.argsort(-np.where(far, scores, -np.inf))[:10]
        assert np.isin(rows, best_far).mean() >= 0.5
        rows, _ = ann.search(probe, 1000)
        assert len(rows) == 1000 and np.isin(rows, np.argsort(-scores)[:1000]).mean() > 0.8
        few = np.zeros(6000, dtype=bool)
        few[rng.choice(6000, 3, replace=False)] = True
        assert set(ann.search(probe, 10, few)[0].tolist()) == set(np.flatnonzero(few).tolist())


def test_what_came_and_went_since_the_build_takes_no_room(tmp_path):
    rng = np.random.default_rng(0)
    index = Memory(64)
    index.create(videos([f"v{n}" for n in range(200)], rng))
    brute = Brute(videos([], rng))
    for turn in range(30):
        table = videos([f"v{n}" for n in range(100)], rng)
        index.update(table)
        brute.rows = Brute(table).rows
        assert len(index.snapshot.added) <= 1000 + 3 * 100, turn
    assert len(index) == 200
    vector = table["vector_0"][7].values.to_numpy()
    assert index.search(vector, 1)[0] == ["v7"]
    index.save(tmp_path)
    again = Memory(64)
    again.load(tmp_path)
    assert again.search(vector, 1)[0] == ["v7"] and len(again) == 200
    index.create(videos([f"w{n}" for n in range(200)], rng))  # as many as before, but others
    index.save(tmp_path)
    again.load(tmp_path)
    found = index.search(vector, 5)
    assert again.search(vector, 5)[0] == found[0] and found[0][0].startswith("w")


def indexed(table):
    return {name for index in table.table.list_indices() for name in index.columns}


def test_lance_goes_by_the_index_it_has_whatever_is_added_or_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr("dcdt.serving.catalogue.video_table.MIN_INDEX_ROWS", 300)
    rng = np.random.default_rng(0)
    index = Table(str(tmp_path))
    table = videos([f"v{n}" for n in range(310)], rng)
    index.create(table)
    index.delete([f"v{n}" for n in range(200, 220)])
    assert indexed(index) == {"vector_0"} and len(index) < 300
    vector = table["vector_0"][7].values.to_numpy()
    found = index.search(vector, 5)
    assert found[0][0] == "v7" and abs(found[1][0] - 1) < 1e-5  # by its full vector
    small = VideoTable(str(tmp_path / "small"))
    small.create(videos([f"v{n}" for n in range(290)], rng))
    assert indexed(small) == set()
    small.add(videos([f"w{n}" for n in range(20)], rng))
    small.optimize()
    assert indexed(small) == {"vector_0"}


def test_many_ids_are_looked_up_at_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    index = VideoTable(str(tmp_path))
    index.create(videos([f"v{n}" for n in range(60)], rng))
    reads = []
    where = index._where
    monkeypatch.setattr(index, "_where", lambda *given: reads.append(given) or where(*given))
    index.delete([f"v{n}" for n in range(50)])
    assert len(reads) == 1 and len(index) == 10


@pytest.mark.parametrize("first_out", ["this thread", "the other"])
def test_blocks_of_several_threads_hold_products_to_one_thread_until_the_last_ends(first_out):
    limits = OneThread()
    before = blas_threads()
    with limits():  # as a service does that answers once before others ask
        assert blas_threads() == [1]
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with limits():
            inside.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(10)
    with limits():
        assert blas_threads() == [1]
        if first_out == "the other":
            leave.set()
            holder.join()
            assert blas_threads() == [1]
    if first_out == "this thread":
        assert blas_threads() == [1]
        leave.set()
        holder.join()
    assert blas_threads() == before


def blas_threads():
    """Of numpy's own products; the number is the process's."""
    return [pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]]


def test_exact_top_goes_by_blocks():
    rng = np.random.default_rng(0)
    matrix, probes = rng.normal(size=(500, 6)).astype(np.float32), rng.normal(size=(3, 6)).astype(np.float32)
    expected = np.argsort(-(probes @ matrix.T), axis=1)[:, :7]
    assert exact_top_k(matrix, probes, 7, block=33).tolist() == expected.tolist()


@pytest.mark.parametrize("harm", ["snapshot.arrow", "vector_0.faiss", "vector_0.npz", "vector_0.json"])
@pytest.mark.parametrize("how", ["short", "missing"])
def test_a_corrupt_file_is_named(harm, how, tmp_path):
    index = make("approximate", tmp_path)
    index.create(videos([f"v{at}" for at in range(30)], np.random.default_rng(0)))
    index.save(tmp_path)
    path = tmp_path / harm
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) if how == "short" else path.unlink()
    with pytest.raises(UserError, match="corrupt") as error:
        make("approximate", tmp_path).load(tmp_path)
    assert len(str(error.value).splitlines()) <= 2


SNAPSHOTS = {
    "an index of no column": lambda table: table.replace_schema_metadata({**table.schema.metadata, b"anns": b"None"}),
    "more than it holds": lambda table: table.replace_schema_metadata({**table.schema.metadata, b"main": b"9" * 40}),
    "no ids": lambda table: table.drop_columns(["id"]),
    "no videos": lambda table: table.slice(0, 0),
}


@pytest.mark.parametrize("harm", SNAPSHOTS)
def test_a_snapshot_whose_metadata_do_not_fit_is_corrupt(harm, tmp_path):
    index = make("approximate", tmp_path)
    index.create(videos(["a", "b"], np.random.default_rng(0)))
    index.save(tmp_path)
    table = SNAPSHOTS[harm](pa.ipc.open_file((tmp_path / "snapshot.arrow").read_bytes()).read_all())
    with pa.ipc.new_file(str(tmp_path / "snapshot.arrow"), table.schema) as file:
        file.write_table(table)
    with pytest.raises(UserError, match="corrupt"):
        make("approximate", tmp_path).load(tmp_path)


def test_a_corrupt_lance_table_is_named(tmp_path):
    index = make("lance", tmp_path)
    index.create(videos([f"v{at}" for at in range(30)], np.random.default_rng(0)))
    for path in (tmp_path / "catalogue").rglob("*.lance"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be used"):
        VideoTable(str(tmp_path / "catalogue")).rows()
    with pytest.raises(UserError, match="cannot be used"):
        VideoTable(str(tmp_path / "elsewhere")).refresh()
