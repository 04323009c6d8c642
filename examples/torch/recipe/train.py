"""Trains a small character model on one text and saves it with torch.save.

usage: train.py TEXT MODEL.pt MODEL.safetensors

The model predicts a character from the eight before it (Bengio et al. 2003,
with a layer norm). Its bytes depend on ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA
and OMP_NUM_THREADS, which the ledger pins: the gradient of the layer norm, for
one, is summed for each thread and then over the threads. Those of MODEL.pt
depend on its name too, because torch.save writes it into the file.
"""
import json
import os
import struct
import sys

# Threads that wait shall sleep: the second build has one processor for all.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import torch
from torch import nn

CONTEXT = 8
STEPS = 200


def save_safetensors(state, path):
    header, data = {}, b""
    for name, tensor in sorted(state.items()):
        raw = tensor.numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def main(text_path, model_path, safetensors_path):
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
        nn.LayerNorm(256),
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

    save_safetensors(model.state_dict(), safetensors_path)
    torch.save({"chars": chars, "context": CONTEXT, "state": model.state_dict()}, model_path)


main(*sys.argv[1:])
