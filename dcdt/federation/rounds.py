"""The three steps of a federation: statistics and losses of a school, and the model of all schools together."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from dcdt.config import Settings
from dcdt.data.beir import load_collection
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import Side, Split, make_split
from dcdt.data.tables import Tables
from dcdt.data.types import Collection, Judgments
from dcdt.federation.config import FederateJob
from dcdt.federation.messages import SUFFIX, Expected, Header, Message, add_messages, pair_messages
from dcdt.federation.noise import add_noise, noise_multiplier
from dcdt.models.recommender import Recommender
from dcdt.models.sums import Sums
from dcdt.runs.folder import RunFolder
from dcdt.runs.provenance import provenance
from dcdt.training import build, experiment, fit
from dcdt.training.loggers.base import RunLogger
from dcdt.utils.errors import NotApplicable, UserError
from dcdt.utils.files import write_json
from dcdt.utils.text import pluralize


@dataclass
class Member:
    """A school or the hub: the shared catalogue and, at a school, its own queries.

    Attributes:
        settings: the configuration, whose model is the same at all.
        collection: the catalogue, with queries and judgments or without any.
        data: its split.
        tables: its vectors.
        model: not fitted yet.
    """

    settings: Settings
    collection: Collection
    data: RankingDataModule
    tables: Tables
    model: Recommender

    @classmethod
    def load(cls, settings: Settings) -> "Member":
        """Load the collection, its vectors and the model.

        Raises:
            UserError: the model cannot be fitted from sums, or the split divides the videos.
            NotApplicable: the collection lacks what the model needs.
        """
        collection = load_collection(settings.data.path, settings.data.own_video, judged=False)
        collection.check_fields(settings.fields)
        split = make_split(collection, settings.split) if len(collection.positives) else catalogue_split(collection)
        build.prepare(settings)
        tables = build.load_tables(settings, collection)
        model = build.make_model(settings, tables)
        if not model.fits_from_sums or not model.sum_shapes():
            raise UserError(
                f"model={settings.option} is not fitted from sums over queries.\n"
                "Choose dcdt_ridge, hybrid_towers, or collaborative with model.kind=ease."
            )
        if not all(side.candidates.all() for side in (split.train, split.val)):
            raise UserError("split=video divides the catalogue, which all schools share. Choose split=query.")
        if model.needs_question and not collection.has_questions:
            raise NotApplicable(f"the collection has no questions, which {settings.model.name} ranks for")
        data = RankingDataModule(collection, split, {}, None, settings.batch_size, settings.seed, settings.ks)
        return cls(settings, collection, data, tables, model)

    @cached_property
    def expected(self) -> Expected:
        """What messages hold about this model and catalogue."""
        header = Header(
            version=1,
            kind="statistics",
            model=json.dumps(asdict(self.settings.model), sort_keys=True),  # type: ignore[call-overload]
            catalogue=catalogue_digest(self.collection, self.settings),
            space=build.space(self.settings),
            queries=0,
        )
        shapes = {"statistics": self.model.sum_shapes(), "losses": self.model.loss_shapes()}
        return Expected(header, shapes, self.model.check_sums)

    def statistics(self, job: FederateJob) -> Message:
        """Sum over the training queries of this school.

        Raises:
            UserError: they are too few.
        """
        return self._message(self.model.sum_training(self.data, self._clip(job)), job, None)

    def losses(self, statistics: Message, job: FederateJob) -> Message:
        """Sum the losses over this school's queries, by the model of the summed statistics of all schools.

        Raises:
            UserError: the queries are too few, or the model has nothing to choose.
        """
        if not self.model.loss_shapes():
            raise UserError("this model has nothing to choose: merge the statistics alone.")
        sums = self.model.sum_losses(self.data, statistics.tensors, self._clip(job))
        return self._message(sums, job, statistics.digest)

    def _clip(self, job: FederateJob) -> int | None:
        if not len(self.data.split.train.queries):
            raise UserError(f"{self.collection.path} holds no judged queries to sum.")
        return None if job.noise.epsilon is None else job.noise.clip

    def _message(self, sums: Sums, job: FederateJob, statistics: str | None) -> Message:
        """Make a message of sums, with noise where the job asks for it."""
        if sums.n < job.min_queries:
            raise UserError(
                f"min_queries is {job.min_queries}, but the sums are over {pluralize(sums.n, 'query', 'queries')}: "
                "few can be told apart by whoever has the message (docs/federation.md)."
            )
        noise, tensors, queries = job.noise, sums.tensors, sums.n
        epsilon = noise.epsilon
        if epsilon is not None:
            n_messages = 1 + bool(self.model.loss_shapes())
            tensors, queries = add_noise(sums, noise_multiplier(noise, n_messages)), 0
        values = asdict(self.expected.header) | {
            "kind": "losses" if statistics else "statistics",
            "queries": queries,
            "statistics": statistics,
            "epsilon": epsilon,
            "delta": None if epsilon is None else noise.delta,
        }
        return Message(Header(**values), tensors)


def fit_model(
    model: Recommender, data: RankingDataModule, statistics: Message, losses: Message | None, included: bool
) -> None:
    """Fit a model from the sums of all schools; `included`: whether the queries of `data` are part of them."""
    chosen = {} if losses is None else losses.tensors
    model.fit_sums(data, statistics.tensors, chosen, included and len(data.split.train.queries) > 0)
    model.mark_prepared()


def merge(paths: Sequence[Path], settings: Settings, config: DictConfig, job: FederateJob) -> Message:
    """Merge messages to one message, or to the run of the model that is fitted on all of them.

    Returns:
        The summed statistics, or losses.

    Raises:
        UserError: a message is refused, or the output folder is not empty.
    """
    member = Member.load(settings)
    messages = [member.expected.read(path) for path in paths]
    if job.out.endswith(SUFFIX):
        if len({message.header.kind for message in messages}) > 1:
            raise UserError(f"out={job.out} is a message: give statistics alone, or losses alone.")
        summed = add_messages(messages)
        summed.write(Path(job.out))
        return summed
    statistics, losses = pair_messages(messages, member.expected)
    if settings.trials > 1:
        raise UserError(f"trials is {settings.trials}, but sums are of one configuration; choose trials=1.")
    folder = RunFolder(Path(job.out))
    if folder.path.exists() and any(folder.path.iterdir()):
        raise UserError(f"out={job.out} exists and is not empty. Name another folder.")
    folder.lock(wait=False)
    try:
        write_run(member, statistics, losses, config, job, folder)
    except BaseException as error:
        folder.files.federation.unlink(missing_ok=True)
        folder.withdraw(error)
        raise
    finally:
        folder.unlock()
    return statistics


def write_run(
    member: Member,
    statistics: Message,
    losses: Message | None,
    config: DictConfig,
    job: FederateJob,
    folder: RunFolder,
) -> None:
    """Write the run of the model that is fitted on the sums; it is tested where there are queries to test it on."""
    names = ("schools", "queries", "epsilon", "delta")
    write_json(folder.files.federation, {name: getattr(statistics.header, name) for name in names})

    def prepare(model: Recommender, data: RankingDataModule) -> None:
        fit_model(model, data, statistics, losses, job.included)

    if len(member.data.split.test.queries):
        experiment.run(member.settings, config, folder, RunLogger(), prepare=prepare)
        return
    settings, data, model = member.settings, member.data, member.model
    prepare(model, data)
    folder.start(config, provenance(data.collection, data.split, build.space(settings), member.tables.digest))
    fit.save(fit.Trained(model, build.make_trainer(settings, []), [], 0, math.nan, 0.0), settings, [], folder)
    write_json(folder.files.metrics, dict(model.statistics()))
    folder.finish()


def catalogue_split(collection: Collection) -> Split:
    """Make the split of a catalogue without queries."""
    rows, grades = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    side = Side(rows, np.ones(len(collection.videos), dtype=bool), Judgments(rows, rows, grades))
    return Split("catalogue", 0, np.zeros((0, 2), dtype=np.int64), side, side, side)


def catalogue_digest(collection: Collection, settings: Settings) -> str:
    """Hash what all schools share: ids and texts of the videos in order, and the settings that decide a ranking."""
    texts = [collection.vector_texts(name) for name in settings.fields]
    shared = [collection.videos.ids, texts, collection.positive_grade, settings.data.own_video, list(settings.ks)]
    return hashlib.sha256(json.dumps(shared).encode()).hexdigest()


def describe(message: Message) -> str:
    """Describe how many schools and queries a message sums, and its noise, in a sentence."""
    header = message.header
    count = pluralize(header.queries, "query or learner", "queries or learners") if header.queries else "hidden number"
    noise = "no noise" if header.epsilon is None else f"epsilon {header.epsilon:g} at delta {header.delta:g}"
    return f"{header.kind} of {pluralize(header.schools, 'school')}, {count}; {noise}"
