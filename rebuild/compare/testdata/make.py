"""Writes the pairs of files in this directory with the programs that people
use. Debian 12: python3-torch python3-numpy python3-onnx python3-xgboost
python3-h5py. Run it here with /usr/bin/python3.

Of each pair the second differs in the last place of one value (by 1 and 3
units where two values differ), apart from what its name says.
"""
import os

import h5py
import numpy as np
import onnx
import onnx.numpy_helper
import torch
import xgboost


def nudge(values, units):
    values = values.copy()
    values.view({2: np.int16, 4: np.int32, 8: np.int64}[values.itemsize]).flat[1] += units
    return values


def state(nudged):
    weight = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    bias = np.linspace(0.5, 1, 3, dtype=np.float16)
    double = np.linspace(2, 3, 3)
    if nudged:
        weight, double = nudge(weight, 3), nudge(double, 1)
    return {
        "0.weight": torch.from_numpy(weight),
        "0.bias": torch.from_numpy(bias),
        "2.scale": torch.from_numpy(double),
        "2.half": torch.linspace(0, 1, 4).to(torch.bfloat16),
    }


def model(nudged):
    weight = nudge(np.ones((2, 2), np.float32), 1 if nudged else 0)
    raw = onnx.numpy_helper.from_array(weight, "fc.weight")
    bias = onnx.numpy_helper.from_array(np.zeros(2, np.float32), "fc.bias")
    node = onnx.helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"])
    io = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", io[:1], io[1:], [raw, bias])
    return onnx.helper.make_model(graph, producer_name="make.py")


def boosted(seed):
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    data = xgboost.DMatrix(x, label=(x[:, 0] > 19).astype(int))
    return xgboost.train({"max_depth": 2, "nthread": 1, "eta": 0.3 + seed / 10, "objective": "binary:logistic"}, data, 1)


for which, nudged in ("1", False), ("2", True):
    torch.save({"chars": ["a"], "context": 8, "state": state(nudged)}, "m.pt")
    os.rename("m.pt", f"torch{which}.pt")  # the name stands in the file
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(1.5)
        if nudged:
            layer.bias[0] = 1.5000001
    torch.save(layer, "m.pt")
    os.rename("m.pt", f"module{which}.pt")
    torch.save(state(nudged), f"legacy{which}.pt", _use_new_zipfile_serialization=False)
    arrays = {"a": np.arange(9.0), "w": nudge(np.linspace(0, 1, 8, dtype=np.float16), 2 if nudged else 0)}
    np.savez(f"stored{which}.npz", **arrays)
    np.savez_compressed(f"deflated{which}.npz", **arrays)
    np.save(f"array{which}.npy", nudge(np.linspace(1, 2, 5), 1 if nudged else 0))
    onnx.save(model(nudged), f"model{which}.onnx")
    boosted(nudged).save_model(f"xgboost{which}.json")
    boosted(nudged).save_model(f"xgboost{which}.ubj")
    with h5py.File(f"data{which}.h5", "w") as f:
        f["w"] = nudge(np.ones(3), 1 if nudged else 0)
