#!/usr/bin/env python3
"""Writes a snapshot by hand, as an enemy would: a copy of a good one whose tree wants to leave its target.

    hostile.py RECOVER_PY REPOSITORY SNAPSHOT CASE OUTSIDE      prints the new snapshot's id

Works on a repository that is not encrypted: all its keys are zero. The format: docs/format.md.
"""
import importlib.util
import json
import os
import struct
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

spec = importlib.util.spec_from_file_location("recover", sys.argv[1])
recover = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recover)
ZERO, SESSION = bytes(32), bytes.fromhex("00112233445566778899aabbccddeeff")


def varint(value):
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def sized(data):
    return varint(len(data)) + data


def seal_box(kind, plain):
    salt = os.urandom(32)
    key = recover.keyed(ZERO, bytes([kind]) + salt)
    return salt + AESGCM(key).encrypt(bytes(12), plain, bytes([kind]))


def store(repository, kind, name, data):
    path = os.path.join(repository, kind, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)


def store_chunk(repository, group, plain):
    """A pack of one chunk, and an index object that lists it; group is 0 for contents, 1 for listings."""
    chunk = recover.keyed(ZERO, plain)
    counter = os.urandom(8)
    frame = counter + AESGCM(ZERO).encrypt(bytes(4) + counter, plain, chunk)
    table = struct.pack("<I", 1) + chunk + struct.pack("<II", len(frame), len(plain))
    box = seal_box(1, table)
    pack = b"SWPK\1" + bytes([group, 0, 0]) + SESSION + bytes(8) + frame + box + struct.pack("<I", len(box)) + b"SWPE"
    name = recover.blake3(pack)
    store(repository, "packs", f"{name.hex()[:2]}/{name.hex()}", pack)
    listed = struct.pack("<I", 1) + name + struct.pack("<I", len(pack)) + SESSION + bytes([group]) + table
    index = b"SWIX\1\0\0\0" + seal_box(2, listed)
    store(repository, "index", recover.blake3(index).hex(), index)
    return chunk


def entry(path, kind, rest=b""):
    body = sized(path) + varint(0o644) + varint(0) + varint(0) + varint(0) + varint(0)
    body += varint(0) + varint(0) + varint(0) + varint(0) + varint(0) + varint(0)
    return body + bytes([kind]) + rest


def main():
    _, _, repository, snapshot, case, outside = sys.argv
    opened = recover.Repository(repository, None)
    manifest = opened.manifest(snapshot)
    record = next(each for each in manifest["sources"][0]["artifacts"] if each["kind"] == "tree")
    entries = [each.data for each in recover.records(opened.artifact(record))]
    folder = recover.Bytes(entries[-1]).bytes().rsplit(b"/", 2)[0]
    evil = b"escaped\n"
    chunk = store_chunk(repository, 0, evil)
    file = varint(len(evil)) + bytes([0]) + varint(1) + chunk + varint(0) + varint(len(evil))
    link = sized(os.fsencode(outside))
    added = {
        "is-good": [entry(folder + b"/~", 1, file)],
        "climbs": [entry(b"../escaped", 1, file)],
        "climbs-later": [entry(folder + b"/../../escaped", 1, file)],
        "is-absolute": [entry(os.fsencode(outside) + b"/escaped", 1, file)],
        "through-a-link": [entry(folder + b"/~", 2, link), entry(folder + b"/~/escaped", 1, file)],
        "links-to-above": [entry(folder + b"/~", 3, sized(b"../secret"))],
        "links-through-a-link": [entry(folder + b"/~", 2, link), entry(folder + b"/~~", 3, sized(folder + b"/~/secret"))],
        "comes-twice": [entry(folder + b"/~", 2, link), entry(folder + b"/~", 1, file)],
        "artifact-climbs": [],
        "lies-about-a-length": [entry(folder + b"/~", 1, varint(1 << 60) + file[len(varint(len(evil))):])],
    }[case]
    entries = sorted(entries + added, key=lambda body: recover.Bytes(body).bytes().split(b"/"))
    listing = b"".join(sized(body) for body in entries)
    listed = store_chunk(repository, 1, listing)
    record["content"] = {"kind": "extents", "depth": 0,
                         "extents": [{"chunk": listed.hex(), "offset": 0, "length": len(listing)}]}
    record["entries"] = len(entries)
    record["evidence"] = {"kind": "listing", "entries": len(entries)}
    if case == "artifact-climbs":
        record["name"] = "../../escaped"
    manifest["id"] = snapshot[:16] + f"{sum(case.encode()) % 10**8:08d}"
    sealed = seal_box(4, json.dumps(manifest).encode())
    data = recover.Bytes(opened.read(f"snapshots/{snapshot}"))
    data.take(8)
    summary = json.loads(recover.open_box(ZERO, 3, data.take(data.number()), snapshot))
    summary.update(id=manifest["id"], session=SESSION.hex(), manifest_hash=recover.blake3(sealed).hex())
    box = seal_box(3, json.dumps(summary).encode())
    store(repository, "snapshots", manifest["id"], b"SWSN\1\0\0\0" + struct.pack("<I", len(box)) + box + sealed)
    print(manifest["id"])


main()
