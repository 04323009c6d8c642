"""usage: make.py DIR

Writes one small model of each format into DIR, each with the format's own
program, as a trainer would: random weights, the same on every run. The GGUF
is written by hand, for Debian has no writer of that format.
"""

import json
import os
import sqlite3
import struct
import sys
import warnings

import h5py
import numpy
import onnx
import torch
import xgboost
from onnx import helper, numpy_helper

# More than one 512 KiB unit of the mount each, with a tail.
WIDTH = 487

warnings.filterwarnings("ignore")
os.chdir(sys.argv[1])
random = numpy.random.default_rng(1)
torch.manual_seed(1)


def weights(*shape):
    return (random.standard_normal(shape) / 16).astype(numpy.float32)


def torch_models():
    net = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 3))
    torch.save(net.state_dict(), "net.pt")
    torch.save(net.state_dict(), "legacy.pt", _use_new_zipfile_serialization=False)
    torch.jit.script(net).save("jit.pt")
    weights(WIDTH, WIDTH).tofile("raw.bin")


def numpy_arrays():
    a = weights(WIDTH, WIDTH)
    numpy.save("array.npy", a)
    numpy.savez("arrays.npz", a=a, b=a[:, :7])


def safetensors(name, tensors):
    header, data = {}, b""
    for key, a in tensors.items():
        header[key] = {"dtype": "F32", "shape": a.shape, "data_offsets": [len(data), len(data) + a.nbytes]}
        data += a.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(name, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def shards():
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for i, name in enumerate(names):
        safetensors(name, {f"layer.{i}.weight": weights(WIDTH, WIDTH), f"layer.{i}.bias": weights(WIDTH)})
    with open("model.safetensors.index.json", "w") as f:
        json.dump({"weight_map": {f"layer.{i}.{part}": name for i, name in enumerate(names) for part in ("weight", "bias")}}, f)
    safetensors("model.safetensors", {"a": weights(WIDTH, WIDTH), "b": weights(5)})
    with open("config.json", "w") as f:
        json.dump({"hidden_size": WIDTH}, f)


def onnx_models():
    w = numpy_helper.from_array(weights(WIDTH, WIDTH), "w")
    value = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, WIDTH])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x")], [value("y")], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, "model.onnx")
    onnx.save(model, "external.onnx", save_as_external_data=True, location="external.data")
    with open("config.pbtxt", "w") as f:
        f.write('name: "tiny"\nplatform: "onnxruntime_onnx"\ninput [ { name: "x" data_type: TYPE_FP32 dims: [ 1, %d ] } ]\n' % WIDTH)


def gguf():
    """A llama of one layer that knows 300 tokens."""
    vocabulary, embedding, feed = 300, 96, 256
    tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % i for i in range(256)]
    tokens += [b"t%d" % i for i in range(vocabulary - len(tokens))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (vocabulary - 259)

    text = lambda s: struct.pack("<Q", len(s)) + s
    u32, f32, string, array = 4, 6, 8, 9
    pack = {u32: lambda v: struct.pack("<I", v), f32: lambda v: struct.pack("<f", v), string: text}
    metadata = [(b"general.architecture", string, b"llama"), (b"general.name", string, b"tiny")]
    for key, value in (
        ("vocab_size", vocabulary), ("context_length", 64), ("embedding_length", embedding), ("block_count", 1),
        ("feed_forward_length", feed), ("attention.head_count", 4), ("attention.head_count_kv", 4), ("rope.dimension_count", embedding // 4),
    ):
        metadata.append((b"llama." + key.encode(), u32, value))
    metadata.append((b"llama.attention.layer_norm_rms_epsilon", f32, 1e-5))
    metadata.append((b"tokenizer.ggml.model", string, b"llama"))
    metadata += [(b"tokenizer.ggml.bos_token_id", u32, 1), (b"tokenizer.ggml.eos_token_id", u32, 2)]
    lists = [
        (b"tokenizer.ggml.tokens", string, [text(t) for t in tokens]),
        (b"tokenizer.ggml.scores", f32, [struct.pack("<f", -i) for i in range(vocabulary)]),
        (b"tokenizer.ggml.token_type", 5, [struct.pack("<i", k) for k in kinds]),
    ]
    tensors = {"token_embd": (vocabulary, embedding), "output_norm": (embedding,), "output": (vocabulary, embedding)}
    for name, shape in (
        ("attn_norm", (embedding,)), ("ffn_norm", (embedding,)), ("ffn_gate", (feed, embedding)), ("ffn_up", (feed, embedding)), ("ffn_down", (embedding, feed)),
        ("attn_q", (embedding, embedding)), ("attn_k", (embedding, embedding)), ("attn_v", (embedding, embedding)), ("attn_output", (embedding, embedding)),
    ):
        tensors["blk.0." + name] = shape

    out = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata) + len(lists))
    for key, kind, value in metadata:
        out += text(key) + struct.pack("<I", kind) + pack[kind](value)
    for key, kind, values in lists:
        out += text(key) + struct.pack("<IIQ", array, kind, len(values)) + b"".join(values)
    data = b""
    for name, shape in tensors.items():
        a = weights(*shape) * 8
        if name.endswith("norm"):
            a = numpy.ones(shape, numpy.float32)
        out += text(name.encode() + b".weight") + struct.pack("<I", len(shape))
        out += b"".join(struct.pack("<Q", n) for n in reversed(shape)) + struct.pack("<IQ", 0, len(data))
        data += a.tobytes()
        data += b"\0" * (-len(data) % 32)
    with open("tiny.gguf", "wb") as f:
        f.write(out + b"\0" * (-len(out) % 32) + data)


def others():
    x, y = weights(400, 20), weights(400)
    booster = xgboost.train({"max_depth": 6, "nthread": 1, "seed": 1}, xgboost.DMatrix(x, label=y), 20)
    booster.save_model("booster.json")
    booster.save_model("booster.ubj")
    with h5py.File("weights.h5", "w") as f:
        f.create_dataset("w", data=weights(WIDTH, WIDTH))
    db = sqlite3.connect("index.sqlite")
    db.execute("create table vectors (id integer primary key, v blob)")
    db.executemany("insert into vectors values (?, ?)", [(i, weights(256).tobytes()) for i in range(1000)])
    db.commit()
    db.close()
    with open("corpus.txt", "w") as f:
        for i in range(300):
            f.write("__label__%s %s\n" % ("ab"[i % 2], " ".join("%s%d" % ("xy"[i % 2], n) for n in random.integers(0, 40, 8))))


torch_models()
numpy_arrays()
shards()
onnx_models()
gguf()
others()
