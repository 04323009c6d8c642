#!/usr/bin/env python3
"""Writes the known answers of package tlog into the directory of this file.

It needs Python 3.11 and the module cryptography, and shares no code with the
package: trees are the recursion of RFC 6962 section 2.1, and texts are written
from the specifications of C2SP. Ed25519 is deterministic, so it always writes
the same bytes. The tests only read its output.
"""
import base64
import hashlib
import pathlib
import struct

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

here = pathlib.Path(__file__).parent


def sha(b):
    return hashlib.sha256(b).digest()


def b64(b):
    return base64.b64encode(b).decode()


def key(name):
    return Ed25519PrivateKey.from_private_bytes(sha(b"clawfs tlog known answer: " + name.encode()))


def raw(k):
    return k.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_id(name, kind, k):
    return sha(name.encode() + b"\n" + bytes([kind]) + raw(k))[:4]


def vkey(name, kind, k):
    return f"{name}+{key_id(name, kind, k).hex()}+{b64(bytes([kind]) + raw(k))}"


# RFC 6962 section 2.1, over the leaf hashes.
def split(n):
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def root(leaves):
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return sha(b"\x01" + root(leaves[:k]) + root(leaves[k:]))


def path(m, leaves):
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return path(m, leaves[:k]) + [root(leaves[k:])]
    return path(m - k, leaves[k:]) + [root(leaves[:k])]


def consistency(m, leaves):
    def sub(m, leaves, whole):
        n = len(leaves)
        if m == n:
            return [] if whole else [root(leaves)]
        k = split(n)
        if m <= k:
            return sub(m, leaves[:k], whole) + [root(leaves[k:])]
        return sub(m - k, leaves[k:], False) + [root(leaves[:k])]

    return sub(m, leaves, True)


def signature(name, kind, k, text, time):
    if kind == 1:
        sig = k.sign(text)
    else:
        sig = struct.pack(">Q", time) + k.sign(b"cosignature/v1\ntime %d\n%s" % (time, text))
    return f"— {name} {b64(key_id(name, kind, k) + sig)}\n"


origin = "log.example/models"
log = key("log")
witnesses = [(f"witness{i}.example", key(f"witness {i}")) for i in (1, 2, 3)]


def checkpoint(leaves, signers, time):
    text = f"{origin}\n{len(leaves)}\n{b64(root(leaves))}\n"
    out = text + "\n" + signature(origin, 1, log, text.encode(), 0)
    for i, (name, k) in enumerate(signers):
        out += signature(name, 4, k, text.encode(), time + i)
    return out


def leaf(kind, payload, spki, model):
    typ = b"application/vnd.in-toto+json"
    pae = b"DSSEv1 %d %s %d %s" % (len(typ), typ, len(payload), payload)
    text = f"clawfs-leaf/v1\nkind {kind}\npayload {sha(payload).hex()}\npae {sha(pae).hex()}\nsigner {sha(spki).hex()}\n"
    if model:
        text += f"model {model}\n"
    return text


payload = b'{"_type":"https://in-toto.io/Statement/v1"}'
publisher = key("publisher").public_key()
spki = publisher.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
texts = [leaf("sba", payload + b" " * i, spki, "acme/langid") for i in range(13)]
texts[9] = leaf("revocation", payload, spki, "")
leaves = [sha(b"\x00" + t.encode()) for t in texts]


def write(name, text):
    (here / name).write_bytes(text.encode())


policy = f"log {vkey(origin, 1, log)}\n"
for i, (name, k) in enumerate(witnesses):
    policy += f"witness w{i + 1} {vkey(name, 4, k)}\n"
policy += "group two 2 w1 w2 w3\nquorum two\n"
write("policy", policy)
write("publisher.pem", publisher.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())
write("payload", payload.decode())
write("leaf", texts[0])
write("leaf.hash", leaves[0].hex() + "\n")
write("leaf9", texts[9])
for size, index, signers in ((11, 0, witnesses[:2]), (13, 9, witnesses[1:])):
    hashes = "".join(b64(h) + "\n" for h in path(index, leaves[:size]))
    text = f"c2sp.org/tlog-proof@v1\nindex {index}\n{hashes}\n" + checkpoint(leaves[:size], signers, 1764230400)
    write(f"{size}.tlog-proof", text)
    write(f"{size}.checkpoint", checkpoint(leaves[:size], signers, 1764230400))
write("11to13.consistency", "".join(b64(h) + "\n" for h in consistency(11, leaves)))
forked = leaves[:12] + [sha(b"\x00another")]
fork = checkpoint(forked, witnesses[:2], 1764230400)
write("13fork.checkpoint", fork)
seen = checkpoint(leaves, witnesses[1:], 1764230400)
write("memory", f"clawfs-log-memory/v1\nfork {len(seen.encode())} {len(fork.encode())}\n{seen}{fork}")
