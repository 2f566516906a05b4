"""Every code block of the documentation is run, or listed below with the reason why not.

A block that is not listed in `BLOCKS` fails, and so does a listed one that is no longer on its page.
"""

import os
import re
import runpy
import shlex
import shutil
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from documented import ROOT, SERVE_ONCE, blocks, changed, pages, run_block
from embeddings.loopback import Loopback
from embeddings.tiny import write_model
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from support import make_collection

from dcdt.config import config_folder, parse, register_resolvers
from dcdt.data.beir import load_collection
from dcdt.embeddings.config import take_embed_job
from dcdt.federation.config import take_federate_job

ONE_FOLD = "split.index=0 model=zero_shot,bm25 trials=1 logger=none"
QUICK = "trainer=cpu trainer.max_epochs=1 logger=none callbacks.progress=false"
TWO_CPUS = f"trainer.devices=2 trainer.accelerator=cpu {QUICK.removeprefix('trainer=cpu ')}"
ACCEPTED = "accepted"  # hours on collections that are not shipped: every option is checked, the command not run


@dataclass(frozen=True)
class Block:
    """A block of a page, and how it is tested.

    Attributes:
        page, starts: the page and the beginning of the block.
        how: "run" (in this file, with `instead`), ACCEPTED, or the reason why it is not run in this file.
        instead: replacements of placeholders, and smaller sizes.
    """

    page: str
    starts: str
    how: str = "run"
    instead: dict[str, str] = field(default_factory=dict)


JOURNEY = "tests/journey walks this page, command by command"
EXTRA = "the quickstart installs the same extras, pinned"
INSTALLS = "tests/journey runs it in a clone of its own, into a new environment"
README, QUICKSTART = "README.md", "docs/quickstart.md"
BLOCKS = [
    Block(README, "make run", instead={"make run": f"make -C {ROOT} -n run", "make test": f"make -C {ROOT} -n test"}),
    Block(
        README,
        "python -m dcdt.run --help",
        instead={
            "experiment=best ": f"experiment=best {QUICK} ",
            "split.index=3": f"split.index=3 {QUICK}",
            "seed=1": f"seed=1 {QUICK}",
        },
    ),
    Block(
        README,
        "pip install -c .ci/constraints.txt -e '.[local,serve]'",
        instead={
            "pip install -c .ci/constraints.txt -e '.[local,serve]'": "true",
            "experiment=best": f"experiment=best {QUICK} 'ks=[1,5]' hydra.run.dir=mine",
            "recommend latest": "recommend mine",
            "python -m dcdt.serve latest": f"{SERVE_ONCE} mine",
        },
    ),
    Block(
        README,
        "python -m dcdt.run -m experiment=comparison ",
        instead={"experiment=comparison ": f"experiment=comparison {ONE_FOLD} "},
    ),
    Block(QUICKSTART, "python3 -m venv", INSTALLS),
    Block(QUICKSTART, "python -m dcdt.collection new", JOURNEY),
    Block(QUICKSTART, "python -m dcdt.run data=files", JOURNEY),
    Block(QUICKSTART, "python -m dcdt.run -m", JOURNEY),
    Block(QUICKSTART, "python -m dcdt.run data=files data.path=my_videos experiment=best split.part=all", JOURNEY),
    Block("docs/api.md", "import dcdt\n\nrecommender", instead={"RUN": "served"}),
    Block("docs/api.md", "import dcdt\n\nscores = {"),
    Block("docs/api.md", "from collections import", instead={"RUN": "served"}),
    Block(
        "docs/extending.md",
        "mkdir -p conf/model",
        instead={
            "model=my_towers hydra": f"model=my_towers {QUICK} hydra",
            "split.index=0,1 trials=2": f"split.index=0,1 trials=2 {QUICK}",
        },
    ),
    Block("docs/extending.md", "mkdir -p conf/loss", instead={"loss.scale=10": f"loss.scale=10 {QUICK}"}),
    Block(
        "docs/extending.md",
        "python -m dcdt.run optimizer=sgd",
        instead={
            "optimizer=sgd": f"{QUICK} optimizer=sgd",
            "dcdt.run 'callbacks": f"dcdt.run {QUICK} 'callbacks",
            "dcdt.run 'trainer": f"dcdt.run {QUICK} 'trainer",
        },
    ),
    Block("docs/extending.md", "import lightning as L", instead={"RUN": "served"}),
    Block("docs/federation.md", "# 1. at each school", "tests/federation/test_federate.py goes these steps"),
    Block(
        "docs/your_data.md",
        "python -m dcdt.collection new",
        instead={"videos.csv": "odd_videos.csv", "asked.csv": "odd_asked.csv"},
    ),
    Block(
        "docs/your_data.md",
        "python -m dcdt.collection new my_videos --videos videos.csv --queries asked.csv --captions",
        how="tests/test_collection_command.py reads captions and a column of transcripts",
    ),
    Block(
        "docs/your_data.md",
        "python -m dcdt.collection new talks",
        how="tests/journey/test_moments.py walks it, command by command",
    ),
    Block(
        "docs/your_data.md",
        "python -m dcdt.collection ocr my_videos",
        how="tests/data/test_ocr.py reads slides and runs a model on them",
    ),
    Block(
        "docs/your_data.md",
        "python -m dcdt.run data=files data.path=my_videos model=zero_shot",
        how="tests/test_image_runs.py runs it with a small CLIP",
    ),
    Block(
        "docs/your_data.md",
        "python -m dcdt.collection new my_catalogue",
        instead={"python -m dcdt.serve": SERVE_ONCE},
    ),
    Block(
        "docs/your_data.md",
        "python -m dcdt.collection feedback",
        how="tests/serving/test_feedback.py goes from clicks to training",
    ),
    Block(
        "docs/your_data.md",
        "python -m dcdt.run data=files",
        instead={"path/to/collection": f"small {QUICK} model=bm25"},
    ),
    Block(
        "docs/embeddings.md",
        "python -m dcdt.embed data=files data.path=FOLDER dry_run=true",
        instead={"FOLDER": "fresh", "OPENAI_API_KEY=...": "OPENAI_API_KEY=sk-none"},
    ),
    Block(
        "docs/embeddings.md",
        "python -m dcdt.embed data=files data.path=FOLDER embedder=local embedder.package",
        instead={
            "FOLDER embedder=local": "small embedder=local data.cache=tiny_cache",
            "MODEL_FOLDER": "tiny embedder.max_tokens=64",
        },
    ),
    Block(
        "docs/embeddings.md",
        "python -m dcdt.embed data=files data.path=FOLDER embedder=openai import",
        instead={"FOLDER": "small data.cache=imported"},
    ),
    Block("docs/serving.md", "pip install", EXTRA),
    Block(
        "docs/serving.md",
        "python -m dcdt.recommend",
        instead={
            # a run of a model that knows learners: tests/serving/test_learners.py
            'python -m dcdt.recommend RUN "..." --user ID ': ": ",
            "RUN": "served",
            '"..."': '"what is a basis"',
        },
    ),
    Block(
        "docs/serving.md",
        "python -m dcdt.run data=files data.path=my_videos experiment=best embedder=multilingual",
        how="the package of the extra is not everywhere: tests/serving/test_catalogue_alone.py",
    ),
    Block("docs/serving.md", "python -m dcdt.index", instead={"RUN": "changed", "s3://BUCKET/PATH": "shared"}),
    Block(
        "docs/serving.md",
        'python -m dcdt.recommend RUN "how do I add fractions"',
        how="a run that reads transcripts: tests/serving/test_served_transcripts.py",
    ),
    Block(
        "docs/serving.md",
        "python -m dcdt.serve",
        instead={
            # a run of towers alone: tests/serving/test_shared.py
            "python -m dcdt.serve RUN --engine lance ": ": ",
            "python -m dcdt.serve": SERVE_ONCE,
            "RUN": "served",
            "OTHER": "served",
        },
    ),
    Block("docs/serving.md", "curl", "many questions at once: tests/serving/test_app.py"),
    Block("docs/serving.md", "python -m dcdt.serve RUN --feedback", "tests/serving/test_feedback.py walks it by HTTP"),
    Block(
        "docs/scaling.md",
        'python -m dcdt.run -m split=folds "split.index=range(0,10)" seed=0,1,2',
        instead={
            "range(0,10)": "range(0,2)",
            "seed=0,1,2 model=zero_shot,dcdt": f"seed=0,1 model=zero_shot,dcdt {QUICK}",
        },
    ),
    Block(
        "docs/scaling.md",
        "python -m dcdt.run -m experiment=comparison ",
        instead={
            # Ray needs a cluster, and cloudpickle<3; tests/test_launchers.py runs it where there is one
            "python -m dcdt.run -m experiment=comparison hydra/launcher=ray_cluster\n": "",
            "experiment=comparison ": f"experiment=comparison {ONE_FOLD} ",
            "n_jobs=8": "n_jobs=2",
            "slurm hydra.launcher.partition=PARTITION": "slurm_local",  # Slurm's own jobs, on this machine
        },
    ),
    Block(
        "docs/scaling.md",
        "pip install -e '.[search]'",
        instead={
            "pip install -e '.[search]'\n": "",
            "experiment=search ": f"experiment=search hydra.sweeper.n_trials=2 {QUICK} ",
            "n_jobs=4": "n_jobs=2",
        },
    ),
    Block(
        "docs/runs.md",
        "python -m dcdt.runs list",
        instead={
            "show latest": "show served",
            "compare RUN OTHER": "compare served",
            "delete RUN": "delete changed --yes",
        },
    ),
    Block("docs/scaling.md", "python -m dcdt.run resume", instead={"outputs/RUN": "served"}),
    Block(
        "docs/scaling.md",
        "python -m dcdt.run trainer=ddp",
        instead={
            "trainer.devices=4  ": "trainer.devices=4 --cfg job ",  # a job of two processes is the next line's
            "trainer.devices=2 trainer.accelerator=cpu\n": f"{TWO_CPUS}\n",
            "trainer.devices=auto  ": "trainer.devices=auto --cfg job ",
            "-m trainer=ddp seed=0,1,2": "trainer=ddp seed=0 --cfg job",  # and tests/test_distributed.py's
            "--nnodes=2 --nproc-per-node=4": "--nnodes=1 --nproc-per-node=2",
            "HOST:29500": "127.0.0.1:29531",
            "trainer.num_nodes=2 trainer.devices=4": TWO_CPUS,
            "FOLDER": "torchrun_run",
        },
    ),
    Block("docs/scaling.md", "srun --nodes=2", "needs Slurm; tests/test_distributed.py sets what srun sets"),
    Block("docs/scaling.md", "import pyarrow.parquet", "tests/serving/test_parquet.py runs it on stand-ins"),
    Block("docs/scaling.md", "import uuid", "tests/serving/test_parquet.py runs it on stand-ins"),
    Block("docs/scaling.md", "import pyarrow.parquet", "tests/serving/test_parquet.py runs it on stand-ins"),
    Block(
        "docs/performance.md", "python benchmarks/training.py", "tests/test_benchmarks.py runs the scripts at toy size"
    ),
    *(
        Block(f"docs/results/{page}.md", starts, ACCEPTED)
        for page, starts in {
            "ablations": "python -m dcdt.run -m experiment=ablation_modality",
            "cranfield": "python -m dcdt.run -m experiment=comparison",
            "finetune": "python benchmarks/studies/finetune.py",
            "khan_math": "python -m dcdt.run -m experiment=comparison",
            "learning_curve": "python -m dcdt.run -m experiment=learning_curve",
            "lecture_questions": "python -m dcdt.run -m experiment=comparison",
            "linear_algebra": "python -m dcdt.run -m split=folds",
            "linear_algebra_comparison": "python -m dcdt.run -m experiment=comparison",
            "paper_split": "python -m dcdt.run -m experiment=paper",
            "personalisation": "RUN=",
            "sealed": "python -m dcdt.run -m experiment=final",
            "towers": "python -m dcdt.run -m experiment=comparison",
            "two_stage": "python -m dcdt.run -m experiment=two_stage",
            "weak": "python -m dcdt.collection new khan_weak",
        }.items()
    ),
]


def test_the_configuration_reference_is_that_of_conf():
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert text == made["page"](), "run: python docs/generate.py"
    folders = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"}
    assert folders | {"hydra/launcher"} == set(made["GROUPS"])
    for path in (path for group in made["GROUPS"] for path in (ROOT / "conf" / group).glob("*.yaml")):
        assert f"](../{path.relative_to(ROOT)}) | " in text, path
    own = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())
    for key in own.keys() - {"defaults"}:
        assert re.search(rf"^\| `{key}[`.]", text, re.MULTILINE), key


def all_blocks():
    """Page and text of every block of every page, in order."""
    return [(page, body) for page, text in pages().items() for _, body in blocks(text)]


def matched():
    """Each listed block with its text; the n-th listed one of a page is the n-th block on it."""
    texts = {page: [body for other, body in all_blocks() if other == page] for page in pages()}
    seen = Counter()
    pairs = []
    for block in BLOCKS:
        index = seen[block.page]
        seen[block.page] += 1
        pairs.append((block, texts[block.page][index] if index < len(texts.get(block.page, [])) else None))
    return pairs


def test_every_block_of_the_documentation_is_listed_and_every_listed_one_is_there():
    listed = Counter(block.page for block in BLOCKS)
    assert listed == Counter(page for page, _ in all_blocks()), "list new blocks in BLOCKS, do not remove listed ones"
    for block, body in matched():
        assert body is not None and body.startswith(block.starts), (block.page, block.starts, body)


def test_no_command_hides_outside_a_block():
    for page, text in pages().items():
        outside = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        hidden = [line for line in outside.splitlines() if re.match(r"\s{4,}(python -m|dcdt|pip|export) ", line)]
        assert not hidden, (page, hidden)


def test_links_and_pictures_lead_somewhere():
    for page, text in pages().items():
        for target in re.findall(r"\]\(([^)#\s]+)\)", text):
            if not target.startswith(("http://", "https://")):
                assert ((ROOT / page).parent / target).exists(), (page, target)


def test_extras_that_the_pages_install_exist():
    project = (ROOT / "pyproject.toml").read_text()
    for page, text in pages().items():
        for extras in re.findall(r"(?:dcdt|\.)\[([a-z0-9,]+)\]'", text):
            for extra in extras.split(","):
                assert re.search(rf"^{extra} = \[$", project, re.MULTILINE), (page, extra)


@pytest.fixture(scope="module")
def template(tmp_path_factory, doc_cache):
    """A reader's folder: tables, collections, vectors, a model, and a finished run that has been served."""
    folder = tmp_path_factory.mktemp("reader")
    collection = load_collection(ROOT / "data" / "linear_algebra")
    videos = collection.videos
    titles, texts = ([text.replace(";", ",") for text in values] for values in (videos.titles, videos.texts))
    rows = list(zip(videos.ids, titles, texts, strict=True))
    questions = [
        (collection.queries.texts[query].replace(";", ","), videos.ids[video])
        for query, video in zip(collection.positives.query[:80], collection.positives.video[:80], strict=True)
    ]
    write(folder / "videos.csv", ["id", "Course Name", "description"], rows)
    write(folder / "asked.csv", ["question", "video_id"], questions)
    write(folder / "odd_videos.csv", ["Clip Nr", "Course Name", "Blurb"], rows)
    write(folder / "odd_asked.csv", ["What they asked", "Clip"], questions)
    write(folder / "questions.csv", ["question"], [("what is a basis",), ("why transpose",)])
    (folder / "new.jsonl").write_text(
        '{"_id": "n1", "title": "Shear maps", "text": "What a shear does to a square."}\n'
    )
    make_collection(folder / "small")
    make_collection(folder / "fresh")
    shutil.rmtree(folder / "fresh" / "embeddings")
    write_model(folder / "tiny")
    ids = load_collection(folder / "small").videos.ids
    vectors = np.random.default_rng(0).normal(size=(len(ids), 1536)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(folder / "V.npy", vectors)
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in ids))
    pq.write_table(pa.table({"_id": ids, "vector": vectors.tolist()}), folder / "V.parquet")
    made = f"python -m dcdt.run model=hybrid_towers logger=none hydra.run.dir={folder / 'served'}"
    done = run_block(f"{made}\npython -m dcdt.index {folder / 'served'} info", folder, DCDT_CACHE=str(doc_cache))
    assert done.returncode == 0, done.stderr
    return folder


def write(path, head, rows):
    """A table, separated by semicolons."""
    path.write_text("".join(";".join(row) + "\n" for row in [head, *rows]), encoding="utf-8")


@pytest.fixture
def reader(template, tmp_path):
    """A copy of the reader's folder; files of the run are hard links, since none is changed in place."""
    folder = tmp_path / "reader"
    shutil.copytree(template, folder, copy_function=os.link)
    shutil.copytree(folder / "served", folder / "changed", copy_function=os.link)
    return folder


NOT_RUN = {JOURNEY, INSTALLS, EXTRA, ACCEPTED}
RUN = [(block, body) for block, body in matched() if block.how == "run"]
REASONS = [block for block in BLOCKS if block.how not in (*NOT_RUN, "run")]


@pytest.mark.slow
@pytest.mark.parametrize(("block", "body"), RUN, ids=[f"{block.page}: {block.starts[:40]}" for block, _ in RUN])
def test_a_block_runs_as_it_stands(block, body, reader, doc_cache):
    text = changed(body, block.instead)
    if body.startswith(("import ", "from ")):
        text = f"cat > example.py <<'END'\n{text}END\npython example.py"
    with Loopback() as server:
        done = run_block(text, reader, DCDT_CACHE=str(doc_cache), OPENAI_BASE_URL=server.url)
    assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, done.stderr


def test_reasons_that_name_a_test_name_one_that_is_there():
    for block in REASONS:
        for name in re.findall(r"tests/[\w/]+(?:\.py)?", block.how):
            assert (ROOT / name).exists(), (block.page, name)


def commands_of(body):
    """Commands of a block as words, with optional parts in brackets, and variables replaced."""
    text = re.sub(r" \[data=\.\.\.\]", "", body.replace("\\\n", " "))
    text = re.sub(r" \[((?:data=|--)[^\]]*)\]", r" \1", text)
    variables = dict(re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE))
    lines = [line for line in text.splitlines() if line.strip() and not re.match(r"\w+=", line)]
    for name, value in variables.items():
        lines = [line.replace(f"${name} ", f"{value} ") for line in lines]
    return [shlex.split(line, comments=True) for line in lines]


def accept(words, monkeypatch, capsys):
    """Check the options, values and files of a command without running it."""
    if words[:2] != ["python", "-m"]:
        assert words[0] == "python" and (ROOT / words[1]).is_file(), words
        return
    module, arguments = words[2], words[3:]
    if module == "dcdt.federate":
        arguments = [word for word in arguments[1:] if "=" in word]
    if module in ("dcdt.run", "dcdt.embed", "dcdt.federate"):
        for overrides in jobs_of([word for word in arguments if word != "-m"]):
            with initialize_config_dir(str(config_folder()), version_base="1.3"):
                config = compose("config" if module == "dcdt.run" else module[5:], overrides=overrides)
            take = {"dcdt.embed": take_embed_job, "dcdt.federate": take_federate_job}.get(module)
            parse(config if take is None else take(config)[1])
        return
    with pytest.raises(SystemExit):
        import_module(module).main([*(arguments[:1] if module == "dcdt.collection" else []), "--help"])
    usage = capsys.readouterr().out
    missing = [word for word in arguments if word.startswith("--") and word not in usage]
    assert not missing, (words, missing)


def jobs_of(arguments):
    """Overrides of single jobs that cover every value of a sweep: one value varies, the others are at their first."""
    parsed = OverridesParser.create().parse_overrides(arguments)
    key = [one.get_key_element() for one in parsed]
    values = [
        list(one.sweep_string_iterator()) if one.is_sweep_override() else [one.get_value_element_as_str()]
        for one in parsed
    ]
    first = [f"{name}={options[0]}" for name, options in zip(key, values, strict=True)]
    others = [(index, value) for index, options in enumerate(values) for value in options[1:]]
    return [first, *([*first[:index], f"{key[index]}={value}", *first[index + 1 :]] for index, value in others)]


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.how == ACCEPTED}))
def test_commands_behind_published_figures_are_accepted(page, monkeypatch, capsys):
    register_resolvers()
    monkeypatch.setenv("DCDT_COLLECTIONS", "collections")
    bodies = [body for block, body in matched() if block.page == page and block.how == ACCEPTED]
    for words in [words for body in bodies for words in commands_of(body)]:
        accept([os.path.expandvars(word) for word in words], monkeypatch, capsys)


def test_messages_that_the_faq_quotes_are_those_of_the_code():
    quoted = re.findall(r"\*\*`(.+?)`\*\*", (ROOT / "docs" / "faq.md").read_text().replace("\n", " "))
    assert len(quoted) > 15
    sources = [path for package in ("dcdt", "baselines") for path in (ROOT / package).rglob("*.py")]
    code = "\n".join(path.read_text() for path in sources)
    code = re.sub(r'"\s*f?"', "", code)  # a text over several lines is one
    of_hydra = ("is not in struct", "Could not find '", "mismatched input", "LexerNoViableAltException")
    for message in quoted:
        if any(part in message for part in of_hydra):
            continue
        for part in re.split(r"\.\.\.|'id' or 'title' or 'text'", message):
            assert part.strip() in code, (message, part)


def test_every_model_loss_and_sampler_has_a_line():
    text = (ROOT / "docs" / "models.md").read_text()
    for group in ("model", "loss", "sampler"):
        assert [path.stem for path in (ROOT / "conf" / group).glob("*.yaml") if f"`{path.stem}`" not in text] == []


def test_the_table_of_performance_is_that_of_the_results():
    made = runpy.run_path(str(ROOT / "docs" / "performance.py"))
    text = (ROOT / "docs" / "performance.md").read_text()
    assert made["page"](text) == text, "run: python docs/performance.py"
    assert text.count("<!-- results: ") == text.count("<!-- end -->") == 3
    assert 10 <= len(made["TABLE"]) <= 15
    for item in made["TABLE"]:
        row = made["row_of"](item)
        assert f"| {item.what} | {item.against} | {row['ratio']:g} |" in text
