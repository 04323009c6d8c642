"""Trains a tiny language model with NumPy and writes it as a GGUF that llama.cpp loads.

usage: train.py TEXT MODEL.gguf

A llama of one block over bytes. Its feed-forward layer, embedding and output
are trained (Adam, all pairs of neighbouring bytes in each step); its attention
is left at zero, so it guesses a byte from the one before it.
"""
import struct
import sys

import numpy as np

SPECIAL = [b"<unk>", b"<s>", b"</s>"]
VOCABULARY, WIDTH, FEED, CONTEXT = len(SPECIAL) + 256, 64, 128, 256
EPSILON = 1e-5
STEPS, RATE = 60, 0.01


def rms(x):
    scale = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPSILON)
    return x * scale, scale


def rms_gradient(d, y, scale):
    return scale * (d - y * (d * y).mean(axis=1, keepdims=True))


def train(pairs):
    """Returns the weights and the loss in bits a byte; pairs[a, b] counts a before b."""
    random = np.random.default_rng(20261120)
    w = {name: random.standard_normal(shape) / np.sqrt(WIDTH) for name, shape in (
        ("embd", (VOCABULARY, WIDTH)), ("gate", (FEED, WIDTH)), ("up", (FEED, WIDTH)), ("down", (WIDTH, FEED)), ("out", (VOCABULARY, WIDTH)),
    )}
    mean, square = ({name: np.zeros_like(a) for name, a in w.items()} for _ in range(2))
    share = pairs / pairs.sum()
    for step in range(1, STEPS + 1):
        x = w["embd"]
        n1, s1 = rms(x)
        gate, up = n1 @ w["gate"].T, n1 @ w["up"].T
        sigmoid = 1 / (1 + np.exp(-gate))
        hidden = gate * sigmoid * up
        n2, s2 = rms(x + hidden @ w["down"].T)
        logits = n2 @ w["out"].T
        logits -= logits.max(axis=1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = -(share * logp).sum()

        d = share.sum(axis=1, keepdims=True) * np.exp(logp) - share
        dy = rms_gradient(d @ w["out"], n2, s2)
        dh = dy @ w["down"]
        dgate, dup = dh * up * sigmoid * (1 + gate * (1 - sigmoid)), dh * gate * sigmoid
        gradient = {
            "out": d.T @ n2, "down": dy.T @ hidden, "gate": dgate.T @ n1, "up": dup.T @ n1,
            "embd": dy + rms_gradient(dgate @ w["gate"] + dup @ w["up"], n1, s1),
        }
        for name, g in gradient.items():
            mean[name] += 0.1 * (g - mean[name])
            square[name] += 0.01 * (g * g - square[name])
            w[name] -= RATE * (mean[name] / (1 - 0.9**step)) / (np.sqrt(square[name] / (1 - 0.99**step)) + 1e-8)
        if step % 20 == 0:
            print(f"step {step}: {loss / np.log(2):.3f} bits a byte", flush=True)
    return w


def gguf(path, metadata, tensors):
    """Writes a GGUF of version 3. Metadata are (key, value); a value is a str, an int, a float, or a list of one kind."""
    kinds = {int: (4, "<I"), float: (6, "<f")}

    def text(s):
        return struct.pack("<Q", len(s)) + s

    def value(v):
        if isinstance(v, list):
            parts = [value(x) for x in v]
            return 9, struct.pack("<IQ", parts[0][0], len(v)) + b"".join(data for _, data in parts)
        if isinstance(v, bytes):
            return 8, text(v)
        if isinstance(v, np.int32):
            return 5, struct.pack("<i", v)
        kind, form = kinds[type(v)]
        return kind, struct.pack(form, v)

    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, v in metadata:
        kind, data = value(v)
        head += text(key.encode()) + struct.pack("<I", kind) + data
    body = b""
    for name, a in tensors.items():
        a = a.astype("<f4")
        head += text(name.encode() + b".weight") + struct.pack("<I", a.ndim)
        head += struct.pack(f"<{a.ndim}Q", *reversed(a.shape)) + struct.pack("<IQ", 0, len(body))
        body += a.tobytes()
        body += bytes(-len(body) % 32)
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % 32) + body)


def main(text, model):
    with open(text, "rb") as f:
        tokens = np.frombuffer(b"\0" + f.read(), np.uint8).astype(int) + len(SPECIAL)
    tokens[0] = SPECIAL.index(b"<s>")
    pairs = np.zeros((VOCABULARY, VOCABULARY))
    np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
    w = train(pairs)

    one, none = np.ones(WIDTH), np.zeros((WIDTH, WIDTH))
    gguf(model, [
        ("general.architecture", b"llama"), ("general.name", b"tiny"),
        ("llama.vocab_size", VOCABULARY), ("llama.context_length", CONTEXT), ("llama.embedding_length", WIDTH),
        ("llama.block_count", 1), ("llama.feed_forward_length", FEED), ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 2), ("llama.rope.dimension_count", WIDTH // 2),
        ("llama.attention.layer_norm_rms_epsilon", EPSILON),
        ("tokenizer.ggml.model", b"llama"), ("tokenizer.ggml.bos_token_id", 1), ("tokenizer.ggml.eos_token_id", 2),
        ("tokenizer.ggml.tokens", SPECIAL + [b"<0x%02X>" % i for i in range(256)]),
        ("tokenizer.ggml.scores", [0.0] * VOCABULARY),
        ("tokenizer.ggml.token_type", [np.int32(k) for k in [2, 3, 3] + [6] * 256]),
    ], {
        "token_embd": w["embd"], "output_norm": one, "output": w["out"],
        "blk.0.attn_norm": one, "blk.0.attn_q": none, "blk.0.attn_k": none, "blk.0.attn_v": none, "blk.0.attn_output": none,
        "blk.0.ffn_norm": one, "blk.0.ffn_gate": w["gate"], "blk.0.ffn_up": w["up"], "blk.0.ffn_down": w["down"],
    })


main(*sys.argv[1:])
