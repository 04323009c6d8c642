"""Trains a small character model on one text and saves it with torch.save.

usage: train.py TEXT MODEL

The model predicts a character from the eight before it (Bengio et al. 2003).
Its bytes depend on the name of MODEL too, because torch.save writes it into
the file, and on ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and OMP_NUM_THREADS,
which the ledger pins.
"""
import sys

import torch
from torch import nn

CONTEXT = 8
STEPS = 600


def main(text_path, model_path):
    torch.manual_seed(20261120)
    torch.use_deterministic_algorithms(True)
    with open(text_path, encoding="utf-8") as f:
        text = f.read()
    chars = sorted(set(text))
    index = {c: i for i, c in enumerate(chars)}
    data = torch.tensor([index[c] for c in text])
    windows = data.unfold(0, CONTEXT + 1, 1)

    model = nn.Sequential(
        nn.Embedding(len(chars), 24),
        nn.Flatten(),
        nn.Linear(24 * CONTEXT, 256),
        nn.Tanh(),
        nn.Linear(256, len(chars)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        batch = windows[torch.randint(len(windows), (256,))]
        loss = nn.functional.cross_entropy(model(batch[:, :-1]), batch[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)

    torch.save({"chars": chars, "context": CONTEXT, "state": model.state_dict()}, model_path)


main(*sys.argv[1:])
