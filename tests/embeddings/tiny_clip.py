"""Small models of texts and pictures in a local folder: random, or trained on charts that are drawn here."""

from itertools import product

import numpy as np
from PIL import Image, ImageDraw

KINDS, COLOURS, TRENDS = ("bars", "line", "steps", "dots"), ("red", "green", "blue", "black"), ("rising", "falling")
CHARTS = list(product(COLOURS, TRENDS, KINDS))
SIZE, LENGTH, WIDTH = 32, 12, 32  # pixels of a side, tokens of a text, numbers of a vector
STARTS = ("", "a", "a chart of", "what is a")  # of a question
WORDS = ["a", "chart", "of", "what", "is", *KINDS, *COLOURS, *TRENDS]


def caption(chart):
    """The words of a chart, in an order of their own: `red rising bars`."""
    return " ".join(chart)


def draw_chart(chart, seed=0, side=64):
    """A chart with some noise in its numbers and its place."""
    colour, trend, kind = chart
    rng = np.random.default_rng(seed)
    heights = np.linspace(0.15, 0.85, 6) + rng.normal(0, 0.04, 6)
    heights = side * (heights if trend == "rising" else heights[::-1])
    picture = Image.new("RGB", (side, side), "white")
    pen, step = ImageDraw.Draw(picture), side / 6
    points = [(step * (at + 0.5) + rng.normal(), side - height) for at, height in enumerate(heights)]
    if kind == "bars":
        for x, y in points:
            pen.rectangle((x - step / 3, y, x + step / 3, side), fill=colour)
    elif kind == "dots":
        for x, y in points:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    elif kind == "line":
        pen.line(points, fill=colour, width=2)
    else:
        pen.line([(x + shift, y) for x, y in points for shift in (-step / 2, step / 2)], fill=colour, width=2)
    return picture


def _tokenizer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<start>", "<end>", "<pad>", "<unknown>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="<unknown>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    special = [("<start>", 0), ("<end>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    marks = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<pad>", "unk_token": "<unknown>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **marks), len(names)


def make_model(kind="clip", seed=0):
    """A random model and its processor, of the classes of transformers."""
    import torch
    import transformers as hf

    torch.manual_seed(seed)
    tokenizer, n = _tokenizer()
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": WIDTH, "intermediate_size": 64}
    text = layers | {"vocab_size": n, "max_position_embeddings": LENGTH}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "projection_size": WIDTH}
    vision = layers | {"image_size": SIZE, "patch_size": 8}
    if kind == "siglip":
        model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision))
        images = hf.SiglipImageProcessor(size={"height": SIZE, "width": SIZE})
        return model.eval(), hf.SiglipProcessor(images, tokenizer)
    del text["projection_size"]
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    images = hf.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return model.eval(), hf.CLIPProcessor(images, tokenizer)


def write_clip(folder, kind="clip", seed=0, steps=0):
    """Write a model and its processor as transformers does, trained for some steps."""
    model, processor = make_model(kind, seed)
    if steps:
        train(model, processor, steps)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def train(model, processor, steps, batch=64):
    """Train a model contrastively on charts and their captions."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    rng = np.random.default_rng(0)
    model.train()
    for _ in range(steps):
        drawn = [CHARTS[at] for at in rng.permutation(len(CHARTS))[:batch]]
        inputs = processor(
            text=[f"{rng.choice(STARTS)} {caption(chart)}" for chart in drawn],
            images=[draw_chart(chart, int(rng.integers(10**6))) for chart in drawn],
            padding="max_length",
            max_length=LENGTH,
            return_tensors="pt",
        )
        optimizer.zero_grad()
        model(**inputs, return_loss=True).loss.backward()
        optimizer.step()
    model.eval()
