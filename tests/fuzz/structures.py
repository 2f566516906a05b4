"""Changes inside what a format holds: a value of another type, a column gone, a tensor of another shape.

Changed bytes seldom get past a parser; these do, and meet what comes after it.
"""

import csv
import io
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ODD = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2.5,
    1e308,
    -1e-300,
    10**25,
    float("nan"),
    float("inf"),
    "",
    "x",
    " ",
    "\n",
    "=1+1",
    "../x",
]
ODD += [
    "${oc.env:HOME}",
    "\u202e",
    "a\0b",
    "9" * 50,
    "x" * 3000,
    [],
    {},
    [1],
    ["x"],
    [None],
    [[]],
    {"name": "dcdt"},
    {"x": {}},
    [0] * 50,
]


def restructure(name, content, seed):
    """A change of what a file holds, told by its ending; None where it cannot be read or has no structure."""
    rng = random.Random(seed)
    ending = name.rsplit(".", 1)[-1]
    change = KINDS.get(ending)
    if change is None:
        return None
    try:
        return change(content, rng)
    except Exception:  # the file has been changed so much that it cannot be read
        return None


def odd_value(value, rng):
    """The value with one of its parts replaced, removed, repeated or added."""
    places = list(paths(value))
    path = rng.choice(places)
    return replaced(value, path, rng)


def paths(value, path=()):
    """Places of a value: of itself and of everything in it."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:20]) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


def replaced(value, path, rng):
    if not path:
        return rng.choice(ODD)
    key, *rest = path
    if rest:
        value = value.copy()
        value[key] = replaced(value[key], rest, rng)
        return value
    value = value.copy()
    action = rng.random()
    if action < 0.2:
        value.pop(key)
    elif action < 0.3 and isinstance(value, dict):
        value[f"{key}_"] = value.pop(key)
    elif action < 0.4 and isinstance(value, list):
        value.insert(key, value[key])
    else:
        value[key] = rng.choice(ODD)
    return value


def _json(content, rng):
    return json.dumps(odd_value(json.loads(content), rng)).encode()


def _json_lines(content, rng):
    lines = [line for line in content.split(b"\n") if line.strip()]
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(odd_value(json.loads(lines[at]), rng)).encode()
    return b"\n".join(lines) + b"\n"


def _yaml(content, rng):
    return yaml.safe_dump(odd_value(yaml.safe_load(content), rng), allow_unicode=True).encode()


def _table(separator):
    def change(content, rng):
        rows = list(csv.reader(io.StringIO(content.decode()), delimiter=separator))
        row = rng.choice(rows)
        at = rng.randrange(len(row))
        if rng.random() < 0.2:
            row.pop(at)
        else:
            row[at] = str(rng.choice(ODD))
        text = io.StringIO()
        csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()

    return change


def _parquet(content, rng):
    table = pq.read_table(io.BytesIO(content))
    table.validate(full=True)
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at).to_pylist()
    action = rng.randrange(6)
    if action == 0:
        table = table.drop_columns([name])
    elif action == 1:
        table = table.slice(0, rng.randrange(len(table) + 1))
    elif action == 2:
        table = table.take(pa.array(rng.sample(range(len(table)), len(table))))
    elif action == 3:
        table = table.set_column(at, name, pa.array([str(value) for value in column]))
    elif action == 4:
        values = [float("nan") if isinstance(value, float) else None for value in column]
        column[rng.randrange(len(column))] = rng.choice(values)
        table = table.set_column(at, name, pa.array(column))
    else:
        table = pa.concat_tables([table, table.slice(0, 1)])
    data = io.BytesIO()
    pq.write_table(table, data)
    return data.getvalue()


def _arrow(content, rng):
    table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    table.validate(full=True)  # an offset beyond its buffer would end the process when a part is taken
    at = rng.randrange(table.num_columns)
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    action = rng.randrange(4)
    if action == 0:
        table = table.drop_columns([table.column_names[at]])
    elif action == 1:
        table = table.slice(0, rng.randrange(len(table) + 1))
    elif action == 2:
        metadata[rng.choice(list(metadata))] = str(rng.choice(ODD))
    else:
        name = table.column_names[at]
        table = table.set_column(at, name, pa.nulls(len(table), table.schema.field(name).type))
    table = table.replace_schema_metadata(metadata)
    data = io.BytesIO()
    with pa.ipc.new_file(data, table.schema) as writer:
        writer.write_table(table)
    return data.getvalue()


def _numpy(content, rng):
    array = np.load(io.BytesIO(content), allow_pickle=False)
    changed = rng.choice([array[:-1], array.T, array.astype(complex), array * np.nan, array[0], array.astype("U8")])
    data = io.BytesIO()
    np.save(data, changed)
    return data.getvalue()


def _checkpoint(content, rng):
    import torch

    state = torch.load(io.BytesIO(content), weights_only=True)
    values = [None, 1, "x", [], {}, torch.zeros(0), torch.zeros(2, 2), torch.tensor(float("nan"))]
    part = rng.choice([value for value in state.values() if isinstance(value, dict)] + [state])
    key = rng.choice(list(part) or ["x"])
    if rng.random() < 0.3:
        part.pop(key, None)
    elif torch.is_tensor(part.get(key)) and rng.random() < 0.3:
        part[key] = part[key] * float("nan")
    else:
        part[key] = rng.choice(values)
    data = io.BytesIO()
    torch.save(state, data)
    return data.getvalue()


def _safetensors(content, rng):
    import torch
    from safetensors.torch import load, save

    tensors = load(content)
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__") or {"x": "{}"}
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    action = rng.randrange(6)
    if action == 0:
        tensors.pop(name)
    elif action == 1:
        tensors[name] = tensor.flatten()[: rng.randrange(tensor.numel() + 1)].clone()
    elif action == 2:
        tensors[name] = tensor.to(rng.choice([torch.float32, torch.int64, torch.bool]))
    elif action == 3:
        tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice([float("nan"), float("inf"), -1.0, 1e300, 5e-324])
    else:
        key = rng.choice(list(metadata))
        metadata[key] = json.dumps(odd_value(json.loads(metadata[key]), rng))
    return save(tensors, {key: str(value) for key, value in metadata.items()})


KINDS = {
    "json": _json,
    "jsonl": _json_lines,
    "yaml": _yaml,
    "csv": _table(","),
    "tsv": _table("\t"),
    "parquet": _parquet,
    "arrow": _arrow,
    "npy": _numpy,
    "ckpt": _checkpoint,
    "safetensors": _safetensors,
}
