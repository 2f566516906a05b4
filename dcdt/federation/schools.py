"""The steps of a federation: statistics and losses of a school, and the model of all schools together."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
from dcdt.federation.messages import Expected, Header, Message, add_messages, pair_messages
from dcdt.models.noise import add_noise, noise_multiplier
from dcdt.models.recommender import Recommender
from dcdt.runs.folder import RunFolder
from dcdt.runs.provenance import provenance
from dcdt.training import build, experiment, fit
from dcdt.training.loggers.base import RunLogger
from dcdt.utils.errors import UserError
from dcdt.utils.files import write_json


@dataclass
class Member:
    """A school, or the hub, which may have no queries; the model is not fitted yet, and the same at all."""

    settings: Settings
    data: RankingDataModule
    tables: Tables
    model: Recommender

    @classmethod
    def load(cls, settings: Settings) -> "Member":
        """Load the collection, its vectors and the model."""
        collection = load_collection(settings.data.path, settings.data.own_video, needs_queries=False)
        collection.check_fields(settings.fields)
        split = make_split(collection, settings.split) if len(collection.positives) else catalogue_split(collection)
        build.prepare(settings)
        tables = build.load_tables(settings, collection)
        model = build.make_model(settings, tables)
        model.check_fits_from_sums(settings.option)
        if collection.weights:
            raise UserError("judgments with weights (metadata.weights) are not summed; leave these queries out.")
        if not all(side.candidates.all() for side in (split.train, split.val)):
            raise UserError("split=video divides the catalogue, which all schools share. Choose split=query.")
        if model.needs_question and not collection.has_questions and len(collection.queries):
            raise UserError(f"the collection has no questions, which {settings.model.name} ranks for.")
        data = RankingDataModule(collection, split, {}, None, 1, settings.seed, settings.ks)
        return cls(settings, data, tables, model)

    @cached_property
    def expected(self) -> Expected:
        """What messages hold about this model and catalogue."""
        collection, settings = self.data.collection, self.settings
        texts = [collection.vector_texts(name) for name in settings.fields]
        shared = [collection.videos.ids, texts, collection.positive_grade, settings.data.own_video, settings.ks]
        catalogue = hashlib.sha256(json.dumps(shared).encode()).hexdigest()
        model = json.dumps(asdict(settings.model), sort_keys=True)  # type: ignore[call-overload]
        shapes = {"statistics": self.model.fitted_part.sum_shapes(), "losses": self.model.loss_shapes()}
        header = Header(1, "statistics", model, catalogue, build.space(settings), 0)
        return Expected(header, shapes, self.model.fitted_part.check_sums)

    def message(self, job: FederateJob, total: Message | None = None) -> Message:
        """Sum over this school's queries: statistics or, given the total of those of all schools, losses."""
        n_messages = 1 + bool(self.model.loss_shapes())
        if total is not None and n_messages == 1:
            raise UserError("this model has nothing to choose: merge the statistics alone.")
        if not len(self.data.split.train.queries):
            raise UserError(f"{self.data.collection.path} holds no judged queries to sum.")
        clip = None if job.epsilon is None else job.clip
        header = self.expected.header
        if total is None:
            sums = self.model.fitted_part.sum_training(self.data, clip)
        else:
            sums = self.model.sum_losses(self.data, total.tensors, clip)
            header = replace(header, kind="losses", statistics=total.digest)
        if sums.n < job.min_queries:
            raise UserError(
                f"min_queries is {job.min_queries}, but the sums are over {sums.n}: "
                "few can be told apart by whoever has the message (docs/federation.md)."
            )
        if job.epsilon is None:
            return Message(replace(header, queries=sums.n), sums.tensors)
        noised = add_noise(sums, noise_multiplier(job.epsilon, job.delta, n_messages))
        return Message(replace(header, epsilon=job.epsilon, delta=job.delta), noised)


def merge(paths: Sequence[Path], settings: Settings, config: DictConfig, job: FederateJob) -> Message:
    """Merge messages to one message, or to the run of the model of all schools; returns the sum."""
    member = Member.load(settings)
    messages = [member.expected.read(path) for path in paths]
    if job.out.endswith(".safetensors"):
        total = add_messages(messages)
        total.write(Path(job.out))
        return total
    statistics, losses = pair_messages(messages, member.expected)
    folder = RunFolder(Path(job.out))
    if settings.trials > 1:
        raise UserError(f"trials is {settings.trials}, but sums are of one configuration; choose trials=1.")
    if folder.path.exists() and any(folder.path.iterdir()):
        raise UserError(f"out={job.out} exists and is not empty. Name another folder.")

    def prepare(model: Recommender, data: RankingDataModule) -> None:
        included = job.included and len(data.split.train.queries) > 0
        model.fit_sums(data, statistics.tensors, losses.tensors if losses else {}, included)

    folder.lock(wait=False)
    try:
        facts = {name: getattr(statistics.header, name) for name in ("schools", "queries", "epsilon", "delta")}
        write_json(folder.files.federation, facts)
        if len(member.data.split.test.queries):
            experiment.run(settings, config, folder, RunLogger(), prepare=prepare)
        else:
            prepare(member.model, member.data)
            split, space = member.data.split, build.space(settings)
            folder.start(config, provenance(member.data.collection, split, space, member.tables.digest))
            trained = fit.Trained(member.model, build.make_trainer(settings, []), [], 0, math.nan, 0.0)
            fit.save(trained, settings, [], folder)
            write_json(folder.files.metrics, dict(member.model.statistics()))
            folder.finish()
    except BaseException as error:
        folder.files.federation.unlink(missing_ok=True)
        folder.withdraw(error)
        raise
    finally:
        folder.unlock()
    return statistics


def catalogue_split(collection: Collection) -> Split:
    """Make the split of a catalogue without queries."""
    rows = np.zeros(0, dtype=np.int64)
    side = Side(rows, np.ones(len(collection.videos), bool), Judgments(rows, rows, rows.astype(np.float32)))
    return Split("catalogue", 0, rows.reshape(0, 2), side, side, side)
