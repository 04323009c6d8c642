"""usage: load.py KIND DIR...

Loads the models in each DIR, each as a user's program would, and prints what
they answered or the errors: [{"torch.load": {"value": "…"}, …}, …], one element
for each DIR. KIND is "models", or the one layout that the DIRs have. The exit
status is 0 if all loaded, 1 if one did not.
"""

import hashlib
import json
import mmap
import os
import pickle
import sqlite3
import struct
import sys

import h5py
import numpy
import torch
import xgboost

WIDTH = 487

torch.set_num_threads(1)


def digest(*values):
    h = hashlib.sha256()
    for v in values:
        h.update(numpy.ascontiguousarray(v.detach().numpy() if isinstance(v, torch.Tensor) else v).tobytes())
    return h.hexdigest()


def answer(state):
    x = torch.linspace(-1, 1, WIDTH)
    return digest(torch.tanh(x @ state["0.weight"].T + state["0.bias"]) @ state["2.weight"].T + state["2.bias"])


def torch_file(shared):
    storage = torch.UntypedStorage.from_file("raw.bin", shared, WIDTH * WIDTH * 4)
    t = torch.tensor([], dtype=torch.float32).set_(storage)
    return digest(t)


def safe_open(path):
    """An imitation of safetensors, which Debian does not have, call by call: it
    opens and maps the path once for the header, and once more, private and
    writable, for the weights; and it says "No such file" of every open that fails."""
    try:
        with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as m:
            (n,) = struct.unpack("<Q", m[:8])
            header, size = json.loads(m[8 : 8 + n]), len(m)
    except OSError as e:
        raise FileNotFoundError(f"No such file or directory: {path}") from e
    storage = torch.UntypedStorage.from_file(path, False, size)
    whole = torch.tensor([], dtype=torch.uint8).set_(storage)
    return {
        key: whole[8 + n + t["data_offsets"][0] : 8 + n + t["data_offsets"][1]].clone().view(torch.float32).reshape(t["shape"])
        for key, t in header.items()
    }


def safetensors(path):
    tensors = safe_open(path)
    return digest(*(tensors[k] for k in sorted(tensors)))


def sharded(index):
    with open(index) as f:
        weights = json.load(f)["weight_map"]
    files = {name: safe_open(os.path.join(os.path.dirname(index), name)) for name in sorted(set(weights.values()))}
    return digest(*(files[weights[k]][k] for k in sorted(weights)))


def hugging_face(revision):
    """What from_pretrained does with a local path."""
    with open(os.path.join(revision, "config.json")) as f:
        config = json.load(f)
    return "%d %s" % (config["hidden_size"], safetensors(os.path.join(revision, "model.safetensors")))


def booster(path):
    b = xgboost.Booster({"nthread": 1})
    b.load_model(path)
    return digest(b.predict(xgboost.DMatrix(numpy.linspace(-0.1, 0.1, 200, dtype=numpy.float32).reshape(10, 20))))


def sqlite(uri):
    db = sqlite3.connect(uri, uri=True)
    try:
        rows = db.execute("select v from vectors order by id desc").fetchall()
        return hashlib.sha256(b"".join(r[0] for r in rows)).hexdigest()
    finally:
        db.close()


def hdf5(path):
    with h5py.File(path, "r") as f:
        return digest(f["w"][:])


models = {
    "torch.load": lambda: answer(torch.load("net.pt")),
    "torch.load weights_only": lambda: answer(torch.load("net.pt", weights_only=True)),
    "torch.load legacy": lambda: answer(torch.load("legacy.pt")),
    "torch.jit.load": lambda: digest(torch.jit.load("jit.pt")(torch.linspace(-1, 1, WIDTH))),
    "torch from_file": lambda: torch_file(False),
    "torch from_file shared": lambda: torch_file(True),
    "numpy.load": lambda: digest(numpy.load("array.npy")),
    "numpy.load npz": lambda: digest(*(numpy.load("arrays.npz")[k] for k in "ab")),
    "numpy.load mmap_mode": lambda: digest(numpy.load("array.npy", mmap_mode="r")),
    "numpy.memmap": lambda: digest(numpy.memmap("raw.bin", numpy.float32, "r")),
    "safetensors, imitated": lambda: safetensors("model.safetensors"),
    "xgboost json": lambda: booster("booster.json"),
    "xgboost ubj": lambda: booster("booster.ubj"),
    "sqlite ro": lambda: sqlite("file:index.sqlite?mode=ro"),
    "sqlite immutable": lambda: sqlite("file:index.sqlite?immutable=1"),
    "h5py": lambda: hdf5("weights.h5"),
}
layouts = {
    "shards": lambda: sharded("model.safetensors.index.json"),
    "hugging face": lambda: hugging_face("models--acme--tiny/snapshots/0123abc"),
}

kind, *dirs = sys.argv[1:]
checks = {kind: layouts[kind]} if kind in layouts else models
out = []
for d in dirs:
    os.chdir(d)
    answers = {}
    for name, check in checks.items():
        try:
            answers[name] = {"value": check()}
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, xgboost.core.XGBoostError, sqlite3.Error) as e:
            answers[name] = {"error": f"{type(e).__name__}: {e}"}
    out.append(answers)
print(json.dumps(out))
sys.exit(any("error" in a for answers in out for a in answers.values()))
