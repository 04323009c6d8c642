"""Loads the character model with plain torch.load and writes some text.

usage: client.py MODEL PROMPT
"""
import sys

import torch
from torch import nn


def main(path, prompt):
    saved = torch.load(path)
    chars, context = saved["chars"], saved["context"]
    model = nn.Sequential(
        nn.Embedding(len(chars), 24), nn.Flatten(), nn.Linear(24 * context, 256), nn.LayerNorm(256), nn.Tanh(), nn.Linear(256, len(chars))
    )
    model.load_state_dict(saved["state"])
    text = prompt
    with torch.no_grad():
        while len(text) < 120:
            window = torch.tensor([[chars.index(c) for c in text[-context:]]])
            text += chars[model(window).argmax().item()]
    print(repr(text))


main(*sys.argv[1:])
