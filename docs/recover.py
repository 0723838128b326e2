#!/usr/bin/env python3
"""Restores any artifact of a Stackward repository without Stackward.

Needs the commands `age` and `zstd`, and the Python packages `cryptography` and `blake3`-free Python 3.9:
BLAKE3 is not in the standard library, so it is written out below. The format: docs/format.md.

    recover.py REPOSITORY --identity KEYFILE                       lists snapshots and artifacts
    recover.py REPOSITORY --identity KEYFILE SNAPSHOT SOURCE ARTIFACT TARGET
"""
import argparse, json, os, stat, struct, subprocess, sys
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# ---- BLAKE3 (the reference algorithm, github-independent: section 2 of the BLAKE3 paper) ----------------------------
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED, DERIVE_CONTEXT, DERIVE_MATERIAL = 1, 2, 4, 8, 16, 32, 64
MASK = 0xFFFFFFFF


def compress(chain, block, counter, length, flags):
    v = list(chain) + list(IV[:4]) + [counter & MASK, counter >> 32, length, flags]
    m = list(block)
    for turn in range(7):
        for n, (a, b, c, d) in enumerate(((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                                          (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))):
            for word, r1, r2 in ((m[2 * n], 16, 12), (m[2 * n + 1], 8, 7)):
                v[a] = (v[a] + v[b] + word) & MASK
                x = v[d] ^ v[a]; v[d] = (x >> r1 | x << (32 - r1)) & MASK
                v[c] = (v[c] + v[d]) & MASK
                x = v[b] ^ v[c]; v[b] = (x >> r2 | x << (32 - r2)) & MASK
        m = [m[i] for i in ORDER]
    return [v[i] ^ v[i + 8] for i in range(8)] + [v[i + 8] ^ chain[i] for i in range(8)]


def words(data):
    return struct.unpack("<16I", data.ljust(64, b"\0"))


def blake3(data, key=IV, flags=0):
    def output(start, size):  # (chain, block, counter, length, flags) of the last compression of a subtree
        if size <= 1024:
            chain, end = key, start + size
            for at in range(start, max(end, start + 1), 64):
                part = data[at:min(at + 64, end)]
                f = flags | (CHUNK_START if at == start else 0) | (CHUNK_END if at + 64 >= end else 0)
                last = (chain, words(part), start // 1024, len(part), f)
                if not f & CHUNK_END:
                    chain = compress(*last)[:8]
            return last
        left = 1024
        while left * 2 < size:
            left *= 2
        pair = [compress(*output(s, n))[:8] for s, n in ((start, left), (start + left, size - left))]
        return (key, tuple(pair[0] + pair[1]), 0, 64, flags | PARENT)
    chain, block, counter, length, f = output(0, len(data))
    return struct.pack("<8I", *compress(chain, block, counter, length, f | ROOT)[:8])


def keyed(key, data):
    return blake3(data, struct.unpack("<8I", key), KEYED)


# ---- sealing and primitives -------------------------------------------------------------------------------------------
def open_box(key, kind, sealed):
    salt, rest = sealed[:32], sealed[32:]
    return AESGCM(keyed(key, bytes([kind]) + salt)).decrypt(bytes(12), rest, bytes([kind]))


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        piece = self.data[self.at:self.at + count]
        if len(piece) != count:
            sys.exit("damaged: an object ends too early")
        self.at += count
        return piece

    def number(self, size=4):
        return int.from_bytes(self.take(size), "little")

    def varint(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    def signed(self):
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def bytes(self):
        return self.take(self.varint())

    def text(self):
        count = self.varint()
        return self.take(count - 1).decode() if count else None

    def extent(self):
        return (self.take(32), self.varint(), self.varint())

    def done(self):
        return self.at == len(self.data)


class Repository:
    def __init__(self, root, identity):
        self.root, self.identity, self.sessions, self.chunks = root, identity, {}, {}
        config = json.loads(self.read("config"))
        if config["format_version"] != 1:
            sys.exit("this repository has a newer format")
        self.encrypted = config["encryption"] != "none"
        keys = self.unwrap(f"keys/repository-{config['repository_id']}.age", 64)
        self.id_key, self.index_key = keys[:32], keys[32:]
        for folder, _, files in os.walk(os.path.join(root, "packs")):
            for name in files:
                if len(name) == 64:
                    self.read_pack_table(os.path.join(folder, name))

    def read(self, name):
        with open(os.path.join(self.root, name), "rb") as file:
            return file.read()

    def unwrap(self, name, size):
        if not self.encrypted:
            return bytes(size)
        return subprocess.run(["age", "--decrypt", "-i", self.identity, os.path.join(self.root, name)],
                              check=True, stdout=subprocess.PIPE).stdout

    def session(self, session):
        if session not in self.sessions:
            keys = self.unwrap(f"keys/session-{session.hex()}.age", 96)
            self.sessions[session] = (keys[:32], keys[32:64], keys[64:])
        return self.sessions[session]

    def read_pack_table(self, path):  # section 5; index objects are not needed
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            header = file.read(32)
            file.seek(size - 8)
            length, magic = struct.unpack("<I4s", file.read(8))
            if header[:5] != b"SWPK\x01" or magic != b"SWPE":
                print(f"damaged: {path}", file=sys.stderr)
                return
            file.seek(size - 8 - length)
            table = Bytes(open_box(self.index_key, 1, file.read(length)))
        offset = 32
        for _ in range(table.number()):
            chunk, stored, raw = table.take(32), table.number(), table.number()
            self.chunks.setdefault(chunk, (path, offset, stored, raw, header[5], header[8:24]))
            offset += stored

    def chunk(self, chunk):
        path, offset, stored, raw, kind, session = self.chunks[chunk]
        with open(path, "rb") as file:
            file.seek(offset)
            frame = file.read(stored)
        content_key, meta_key, meta_id_key = self.session(session)
        payload = AESGCM(meta_key if kind else content_key).decrypt(bytes(4) + frame[:8], frame[8:], chunk)
        if len(payload) != raw:
            payload = subprocess.run(["zstd", "-dcq"], input=payload, check=True, stdout=subprocess.PIPE).stdout
        if len(payload) != raw or keyed(meta_id_key if kind else self.id_key, payload) != chunk:
            sys.exit(f"damaged: chunk {chunk.hex()} in {path}")
        return payload

    def content(self, depth, extents):
        while depth:
            listed = Bytes(b"".join(self.content(0, extents)))
            extents, depth = [], depth - 1
            while not listed.done():
                extents.append(listed.extent())
        for chunk, offset, length in extents:
            if chunk == bytes(32):
                for at in range(0, length, 1 << 20):
                    yield bytes(min(1 << 20, length - at))
            else:
                yield self.chunk(chunk)[offset:offset + length]

    def manifest(self, snapshot):
        data = Bytes(self.read(f"snapshots/{snapshot}"))
        if data.take(8) != b"SWSN\x01\0\0\0":
            sys.exit("damaged: not a snapshot")
        summary = json.loads(open_box(self.index_key, 3, data.take(data.number())))
        sealed = data.data[data.at:]
        if blake3(sealed).hex() != summary["manifest_hash"]:
            sys.exit("damaged: the manifest is not the one that was committed")
        _, meta_key, _ = self.session(bytes.fromhex(summary["session"]))
        return json.loads(open_box(meta_key, 4, sealed))

    def artifact(self, record):
        content = record["content"]
        extents = [(bytes.fromhex(e["chunk"]), e["offset"], e["length"]) for e in content["extents"]]
        return self.content(content["depth"], extents)


# ---- writing what was read --------------------------------------------------------------------------------------------
def restore_tree(repository, listing, target):
    listing, folders = Bytes(b"".join(listing)), []
    while not listing.done():
        entry = Bytes(listing.bytes())
        path = entry.bytes()
        if path.startswith(b"/") or any(part in (b"", b".", b"..") for part in path.split(b"/") if path):
            sys.exit(f"refused: {path!r} is not a path inside a tree")
        mode, uid, gid = entry.varint(), entry.varint(), entry.varint()
        entry.text(), entry.text()
        mtime = entry.signed() * 10**9 + entry.varint()
        entry.varint(), entry.signed(), entry.varint()
        xattrs = [(entry.bytes(), entry.bytes()) for _ in range(entry.varint())]
        kind, place = entry.number(1), os.path.join(os.fsencode(target), path) if path else os.fsencode(target)
        if os.path.islink(os.path.dirname(place)):
            sys.exit(f"refused: {path!r} lies beyond a symbolic link")
        if kind == 0:
            os.makedirs(place, exist_ok=True)
            folders.append((place, mode, uid, gid, mtime, xattrs))
            continue
        if kind == 1:
            entry.varint()
            depth, count = entry.number(1), entry.varint()
            with open(place, "xb") as file:
                for piece in repository.content(depth, [entry.extent() for _ in range(count)]):
                    file.write(piece)
        elif kind == 2:
            os.symlink(entry.bytes(), place)
        elif kind == 3:
            os.link(os.path.join(os.fsencode(target), entry.bytes()), place)
            continue
        elif kind == 4:
            os.mkfifo(place)
        else:
            kinds = {5: stat.S_IFCHR, 6: stat.S_IFBLK}
            os.mknod(place, kinds[kind] | 0o600, os.makedev(entry.varint(), entry.varint()))
        attributes(place, mode, uid, gid, mtime, xattrs)
    for folder in reversed(folders):
        attributes(*folder)


def attributes(place, mode, uid, gid, mtime, xattrs):
    if os.geteuid() == 0:
        os.chown(place, uid, gid, follow_symlinks=False)
    for name, value in xattrs:
        try:
            os.setxattr(place, name, value, follow_symlinks=False)
        except OSError as error:
            print(f"{os.fsdecode(place)}: {os.fsdecode(name)}: {error}", file=sys.stderr)
    if not os.path.islink(place):
        os.chmod(place, mode)
    os.utime(place, ns=(mtime, mtime), follow_symlinks=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    parser.add_argument("--identity", help="the private key file (age)")
    parser.add_argument("what", nargs="*", metavar="SNAPSHOT SOURCE ARTIFACT TARGET")
    options = parser.parse_args()
    repository = Repository(options.repository, options.identity)
    if len(options.what) != 4:
        for snapshot in sorted(os.listdir(os.path.join(options.repository, "snapshots"))):
            for source in repository.manifest(snapshot)["sources"]:
                for record in source["artifacts"]:
                    print(snapshot, source["name"], record["name"], record["kind"], record["bytes"])
        return
    snapshot, name, artifact, target = options.what
    source = next(s for s in repository.manifest(snapshot)["sources"] if s["name"] == name)
    record = next(a for a in source["artifacts"] if a["name"] == artifact)
    if record["kind"] == "tree":
        restore_tree(repository, repository.artifact(record), target)
        return
    with open(target, "xb") as file:
        written = sum(file.write(piece) for piece in repository.artifact(record))
    if written != record["bytes"]:
        sys.exit(f"damaged: {written} bytes, {record['bytes']} were saved")


main()
