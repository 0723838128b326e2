#!/usr/bin/env python3
"""Restores any artifact of a Stackward repository without Stackward; docs/format.md is what it follows.

Needs Python 3.9 or newer with the package `cryptography`, and the commands `age` and `zstd`. On Debian:
apt install age zstd python3-cryptography. (`age` is not needed when the repository is not encrypted.)

    recover.py REPOSITORY --identity KEYFILE                                      lists snapshots and artifacts
    recover.py REPOSITORY --identity KEYFILE SNAPSHOT SOURCE ARTIFACT TARGET      restores one artifact
    recover.py REPOSITORY --identity KEYFILE --log SOURCE                         lists the segments of its log
    recover.py REPOSITORY --identity KEYFILE --log SOURCE TARGET                  restores them into the folder TARGET

KEYFILE is the private key, AGE-SECRET-KEY-1...; REPOSITORY is a folder: copy a remote repository to a disk first.
TARGET must not exist. Run as root to get owners and devices back. For a repository with a passphrase, unlock the
private key that lies in it first, `age` asks for the passphrase:

    age --decrypt -o KEYFILE REPOSITORY/keys/passphrase-*.age
"""
import argparse
import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess
import sys

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError:
    sys.exit("recover.py: the Python package `cryptography` is missing: apt install python3-cryptography")
try:  # Many times faster than the function below: with it, chunks are compared with their ids, too.
    from blake3 import blake3 as fast_blake3
except ImportError:
    fast_blake3 = None
try:  # Spares a process for each chunk.
    import zstandard
except ImportError:
    zstandard = None


class Failure(Exception):
    """Something that the person at the keyboard must know."""


# ---- BLAKE3, written out as in section 2 of its paper, because Python has none. It is slow (half a megabyte a second),
# ---- so it makes keys and checks small objects; a chunk is vouched for by AES-GCM, whose tag covers the chunk's id.
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
    if fast_blake3:
        return fast_blake3(data, key=key).digest()
    return blake3(data, struct.unpack("<8I", key), KEYED)


def derive(context, material):
    key = blake3(context.encode(), flags=DERIVE_CONTEXT)
    return blake3(material, struct.unpack("<8I", key), DERIVE_MATERIAL)


# ---- sealing and primitives: sections 3 and the beginning of docs/format.md -------------------------------------------
def unseal(key, nonce, sealed, associated, what):
    try:
        return AESGCM(key).decrypt(nonce, sealed, associated)
    except (InvalidTag, ValueError):
        raise Failure(f"damaged: {what} is not what was written, or was sealed with other keys") from None


def open_box(key, kind, sealed, what):
    salt, rest = sealed[:32], sealed[32:]
    return unseal(keyed(key, bytes([kind]) + salt), bytes(12), rest, bytes([kind]), what)


def read_file(path, what):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Failure(f"{what} cannot be read: {error}") from None


class Bytes:
    """Reads numbers and strings off a document, one after another."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        piece = self.data[self.at:self.at + count]
        if len(piece) != count:
            raise Failure("damaged: an object ends too early")
        self.at += count
        return piece

    def number(self, size=4):
        return int.from_bytes(self.take(size), "little")

    def varint(self):
        value = shift = 0
        while shift < 70:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value
        raise Failure("damaged: a number is too large")

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


RECENT_CHUNKS = 64


# ---- the repository ---------------------------------------------------------------------------------------------------
class Repository:
    def __init__(self, root, identity):
        self.root, self.identity, self.sessions, self.chunks, self.log_keys = root, identity, {}, {}, {}
        self.recent = {}  # Chunks of which parts were read, the one that was wanted last at the end.
        if not os.path.isfile(os.path.join(root, "config")):
            raise Failure(f"there is no repository in {root}: it has no object `config`")
        config = json.loads(self.read("config"))
        if config["format_version"] != 1:
            raise Failure(f"the repository has format version {config['format_version']}; this script reads version 1")
        self.encrypted = config["encryption"] != "none"
        if self.encrypted and not identity:
            raise Failure("the repository is encrypted: name the private key with --identity KEYFILE")
        for tool in ["zstd"] + ["age"] * self.encrypted:
            if not shutil.which(tool):
                raise Failure(f"the command `{tool}` is missing: apt install {tool}")
        keys = self.unwrap(f"keys/repository-{config['repository_id']}.age", 64)
        self.id_key, self.index_key = keys[:32], keys[32:]
        self.check_config(config)

    def read(self, name):
        return read_file(os.path.join(self.root, name), f"the object {name}")

    def unwrap(self, name, size):  # section 2
        if not self.encrypted:
            return bytes(size)
        # A key that is missing or does not open has a second copy: key-copies/<name>.<hash>.age
        start = os.path.basename(name)[:-len(".age")] + "."
        copies = os.path.join(self.root, "key-copies")
        names = sorted(os.listdir(copies)) if os.path.isdir(copies) else []
        for path in [name] + [f"key-copies/{copy}" for copy in names if copy.startswith(start) and "#" not in copy]:
            command = ["age", "--decrypt", "-i", self.identity, os.path.join(self.root, path)]
            age = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            if age.returncode == 0:
                break
        else:
            said = age.stderr.decode(errors="replace").strip().splitlines()
            raise Failure(f"{self.identity} does not open {name}; age says: {said[0] if said else age.returncode}")
        if size and len(age.stdout) != size:
            raise Failure(f"damaged: {name} holds {len(age.stdout)} bytes, not {size}")
        return age.stdout

    def check_config(self, config):  # section 10
        lines = [str(config["format_version"]), config["repository_id"], config["created"], config["encryption"]]
        for info in config.get("recipients", []):
            lines.append(f"{info['recipient']} {info['added']} {'passphrase' if info.get('passphrase') else 'key'}")
        text = "".join(line + "\n" for line in lines).encode()
        if keyed(derive("stackward 2026-11 config key", self.index_key), text).hex() != config["mac"]:
            raise Failure("damaged: `config` was changed by somebody without the repository's keys")

    def session(self, session):
        if session not in self.sessions:
            keys = self.unwrap(f"keys/session-{session.hex()}.age", 128)
            if self.encrypted and keys[96:] != derive("stackward 2026-11 index key fingerprint", self.index_key):
                raise Failure("damaged: a session key belongs to another repository than its keys say")
            self.sessions[session] = (keys[:32], keys[32:64], keys[64:96])
        return self.sessions[session]

    def read_pack_tables(self):  # the packs know what they hold; index objects are not needed
        for folder, _, files in os.walk(os.path.join(self.root, "packs")):
            for name in files:
                if len(name) == 64 and set(name) <= set("0123456789abcdef"):
                    try:
                        self.read_pack_table(os.path.join(folder, name))
                    except (Failure, OSError) as error:
                        print(f"recover.py: {folder}/{name} is left out: {error}", file=sys.stderr)

    def read_pack_table(self, path):  # section 5
        size = os.path.getsize(path)
        if size < 40:
            raise Failure("damaged: it is too short")
        with open(path, "rb") as file:
            header = file.read(32)
            file.seek(size - 8)
            length, magic = struct.unpack("<I4s", file.read(8))
            if header[:5] != b"SWPK\x01" or header[5] > 1 or magic != b"SWPE" or length + 40 > size:
                raise Failure("damaged, or of a newer format: it is not a pack of version 1")
            file.seek(size - 8 - length)
            table = Bytes(open_box(self.index_key, 1, file.read(length), "its table of contents"))
        offset = 32
        for _ in range(table.number()):
            chunk, stored, raw = table.take(32), table.number(), table.number()
            if stored < 24 or raw > 4 << 20 or offset + stored > size - 8 - length:
                raise Failure("damaged: it lists a chunk that cannot be")
            self.chunks.setdefault(chunk, (path, offset, stored, raw, header[5], header[8:24]))
            offset += stored

    def chunk(self, chunk):  # sections 3 and 4
        if not self.chunks:
            self.read_pack_tables()
        if chunk not in self.chunks:
            raise Failure(f"damaged: no pack holds the chunk {chunk.hex()}")
        path, offset, stored, raw, listing, session = self.chunks[chunk]
        with open(path, "rb") as file:
            file.seek(offset)
            frame = file.read(stored)
        content_key, meta_key, meta_id_key = self.session(session)
        what = f"a chunk of {path}"
        plain = unseal(meta_key if listing else content_key, bytes(4) + frame[:8], frame[8:], chunk, what)
        if len(plain) != raw:
            plain = decompress(plain, raw, what)
        # The tag has vouched for the chunk; its id is compared as well when that takes no minutes.
        if len(plain) != raw or fast_blake3 and keyed(meta_id_key if listing else self.id_key, plain) != chunk:
            raise Failure(f"damaged: {what} does not have the content that its id promises")
        return plain

    def content(self, depth, extents):
        """Yields the pieces of a content: bytes, or a number for so many zero bytes of a hole."""
        if depth > 4:
            raise Failure("damaged: lists are nested too deep")
        while depth:
            listed = Bytes(b"".join(self.content(0, extents)))
            extents, depth = [], depth - 1
            while not listed.done():
                extents.append(listed.extent())
        for chunk, offset, length in extents:
            if chunk == bytes(32):
                yield length
                continue
            plain = self.recent.pop(chunk, None) or self.chunk(chunk)
            if offset + length > len(plain):
                raise Failure("damaged: an extent reaches beyond its chunk")
            if length < len(plain):  # Pages of a database that changed together lie in one chunk, all over the file.
                self.recent[chunk] = plain
                if len(self.recent) > RECENT_CHUNKS:
                    del self.recent[next(iter(self.recent))]
            yield plain[offset:offset + length]

    def snapshots(self):
        names = sorted(os.listdir(os.path.join(self.root, "snapshots"))) if os.path.isdir(
            os.path.join(self.root, "snapshots")) else []
        return [name for name in names if len(name) == 24 and name[8] == name[15] == "-"]

    def manifest(self, snapshot):  # section 7
        if snapshot not in self.snapshots():
            raise Failure(f"there is no snapshot {snapshot}; there are: {', '.join(self.snapshots()) or 'none'}")
        what = f"the snapshot {snapshot}"
        data = Bytes(self.read(f"snapshots/{snapshot}"))
        if data.take(8) != b"SWSN\x01\0\0\0":
            raise Failure(f"damaged, or of a newer format: {what} is not a snapshot of version 1")
        summary = json.loads(open_box(self.index_key, 3, data.take(data.number()), what))
        sealed = data.data[data.at:]
        if summary["id"] != snapshot or blake3(sealed).hex() != summary["manifest_hash"]:
            raise Failure(f"damaged: the manifest of {what} is not the one that was committed")
        _, meta_key, _ = self.session(bytes.fromhex(summary["session"]))
        manifest = json.loads(open_box(meta_key, 4, sealed, what))
        if manifest["format_version"] != 1 or manifest["id"] != snapshot:
            raise Failure(f"the manifest of {what} has a newer format, or another id")
        return manifest

    def log(self, source):  # section 9
        root = os.path.join(self.root, "logs", source)
        if not os.path.isdir(root):
            raise Failure(f"there is no log of {source}")
        for timeline in sorted(os.listdir(root)):
            for name in sorted(os.listdir(os.path.join(root, timeline))):
                if "#" not in name:  # What a push that died has left.
                    yield timeline, name

    def segment(self, source, timeline, name):
        """The header of a segment and its body, still sealed."""
        what = f"the segment {timeline}/{name}"
        data = Bytes(self.read(f"logs/{source}/{timeline}/{name}"))
        if data.take(8) != b"STKWLOG1":
            raise Failure(f"damaged, or of a newer format: {what} is not a segment of version 1")
        header = json.loads(open_box(self.index_key, 5, data.take(data.number()), what))
        body = data.data[data.at:]
        if header["source"] != source or header["id"] != {"timeline": timeline, "name": name}:
            raise Failure(f"damaged: {what} is another one, under its name")
        if len(body) != header["body_bytes"] or fast_blake3 and fast_blake3(body).hexdigest() != header["body"]:
            raise Failure(f"damaged: {what} is not what was written")
        return header, body

    def log_key(self, key):
        if key not in self.log_keys:
            plain = self.unwrap(f"keys/log-{key}.age", None)
            if plain[:32] != derive("stackward 2026-11 log key fingerprint", self.index_key):
                raise Failure("damaged: the key of a log belongs to another repository than its keys say")
            self.log_keys[key] = plain[32:]
        return self.log_keys[key]

    def restore_segment(self, header, body, target):
        part = target + ".part"
        if self.encrypted:
            with open(part, "xb") as file:
                file.write(body)
            # The log's private key goes through a pipe: it is never in an argument or a file.
            age = subprocess.run(["age", "--decrypt", "-i", "-", part], input=self.log_key(header["key"]),
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            os.unlink(part)
            if age.returncode != 0:
                raise Failure(f"damaged: age does not open {target}: {age.stderr.decode(errors='replace').strip()}")
            body = age.stdout
        plain = decompress(body, header["bytes"], target)
        if len(plain) != header["bytes"] or fast_blake3 and keyed(self.id_key, plain).hex() != header["content"]:
            raise Failure(f"damaged: {target} does not have the content that its header promises")
        with open(target, "xb") as file:
            file.write(plain)

    def artifact(self, record):
        content = record["content"]
        extents = [(bytes.fromhex(e["chunk"]), e["offset"], e["length"]) for e in content["extents"]]
        return self.content(content["depth"], extents)


def decompress(payload, raw, what):
    if zstandard:
        try:
            return zstandard.ZstdDecompressor().decompress(payload, max_output_size=raw)
        except zstandard.ZstdError as error:
            raise Failure(f"damaged: {what} does not decompress: {error}") from None
    zstd = subprocess.run(["zstd", "-dcq"], input=payload, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if zstd.returncode != 0:
        raise Failure(f"damaged: {what} does not decompress: {zstd.stderr.decode(errors='replace').strip()}")
    return zstd.stdout


# ---- writing what was read --------------------------------------------------------------------------------------------
def write(place, pieces):
    """Writes a new file and returns its length and SHA-256; holes stay holes, but are hashed as zeros."""
    length, digest = 0, hashlib.sha256()
    with open(place, "xb") as file:
        for piece in pieces:
            if isinstance(piece, int):
                file.seek(piece, os.SEEK_CUR)
                for at in range(0, piece, 1 << 20):
                    digest.update(bytes(min(1 << 20, piece - at)))
                length += piece
            else:
                file.write(piece)
                digest.update(piece)
                length += len(piece)
        file.truncate(length)
    return length, digest.hexdigest()


def restore_stream(repository, record, target):
    length, digest = write(target, repository.artifact(record))
    if length != record["bytes"] or digest != record.get("sha256", digest):
        raise Failure(f"damaged: {target} has {length} bytes and SHA-256 {digest}; "
                      f"{record['bytes']} bytes and {record.get('sha256')} were saved")


def records(listing):  # section 8: length and body, one after another
    buffer = b""
    for piece in listing:
        buffer += piece
        start = 0
        while True:
            head = Bytes(buffer[start:start + 10])
            try:
                length = head.varint()
            except Failure:
                if len(head.data) == 10:
                    raise
                break
            if start + head.at + length > len(buffer):
                break
            yield Bytes(buffer[start + head.at:start + head.at + length])
            start += head.at + length
        buffer = buffer[start:]
    if buffer:
        raise Failure("damaged: a listing ends within an entry")


class Tree:
    """A tree being restored. Everything is put into folders that it made itself: no link leads out of the target."""

    def __init__(self, repository, target):
        self.repository, self.target = repository, os.fsencode(target)
        self.last, self.folders = None, {}
        os.mkdir(target)
        self.folders[b""] = None

    def place(self, path):
        parts = path.split(b"/")
        if path and (b"\0" in path or any(part in (b"", b".", b"..") for part in parts)):
            raise Failure(f"refused: {path!r} is not a path inside a tree")
        for count in range(1, len(parts)):
            parent = b"/".join(parts[:count])
            if parent not in self.folders:
                os.mkdir(os.path.join(self.target, parent))  # Fails when it is there: as a link, say.
                self.folders[parent] = None
        return os.path.join(self.target, path) if path else self.target

    def restore(self, entry):
        path = entry.bytes()
        if self.last is not None and path.split(b"/") <= self.last:
            raise Failure(f"damaged: the listing is out of order at {path!r}")
        self.last = path.split(b"/")
        mode, uid, gid = entry.varint(), entry.varint(), entry.varint()
        entry.text(), entry.text()
        mtime = entry.signed() * 10**9 + entry.varint()
        entry.varint(), entry.signed(), entry.varint()
        xattrs = [(entry.bytes(), entry.bytes()) for _ in range(entry.varint())]
        kind, place = entry.number(1), self.place(path)
        if kind == 0:
            if path not in self.folders:
                os.mkdir(place)
            self.folders[path] = (place, mode, uid, gid, mtime, xattrs)
            return
        if kind == 1:
            size, depth, count = entry.varint(), entry.number(1), entry.varint()
            length, _ = write(place, self.repository.content(depth, [entry.extent() for _ in range(count)]))
            if length != size:
                raise Failure(f"damaged: {path!r} has {length} bytes, {size} were saved")
        elif kind == 2:
            os.symlink(entry.bytes(), place)
        elif kind == 3:
            os.link(self.place(entry.bytes()), place, follow_symlinks=False)
            return
        elif kind == 4:
            os.mkfifo(place)
        elif kind in (5, 6):
            device = os.makedev(entry.varint(), entry.varint())
            os.mknod(place, (stat.S_IFCHR if kind == 5 else stat.S_IFBLK) | 0o600, device)
        else:
            raise Failure(f"damaged: {path!r} is of an unknown kind")
        attributes(place, mode, uid, gid, mtime, xattrs)

    def finish(self):  # Folders last and inner ones first: what is put into one changes its time.
        for folder in reversed(list(self.folders.values())):
            if folder:
                attributes(*folder)


def restore_tree(repository, record, target):
    tree, count = Tree(repository, target), 0
    for entry in records(repository.artifact(record)):
        tree.restore(entry)
        count += 1
    if count != record.get("entries", count):
        raise Failure(f"damaged: the tree has {count} entries, {record['entries']} were saved")
    tree.finish()


def attributes(place, mode, uid, gid, mtime, xattrs):
    if os.geteuid() == 0:
        os.chown(place, uid, gid, follow_symlinks=False)
    for name, value in xattrs:
        try:
            os.setxattr(place, name, value, follow_symlinks=False)
        except OSError as error:
            print(f"recover.py: {os.fsdecode(place)}: {os.fsdecode(name)}: {error}", file=sys.stderr)
    if not os.path.islink(place):
        os.chmod(place, mode)
    os.utime(place, ns=(mtime, mtime), follow_symlinks=False)


def listing(repository):
    for snapshot in repository.snapshots():
        try:
            for source in repository.manifest(snapshot)["sources"]:
                for record in source["artifacts"]:
                    print(snapshot, source["name"], record["name"], record["kind"], record["bytes"])
        except Failure as error:
            print(f"recover.py: {snapshot}: {error}", file=sys.stderr)


def restore(repository, snapshot, source, artifact, target):
    if os.path.lexists(target):
        raise Failure(f"{target} exists; name a target that does not")
    sources = {each["name"]: each for each in repository.manifest(snapshot)["sources"]}
    if source not in sources:
        raise Failure(f"{snapshot} has no source {source}; it has: {', '.join(sources)}")
    records = {each["name"]: each for each in sources[source]["artifacts"]}
    if artifact not in records:
        raise Failure(f"the source {source} has no artifact {artifact}; it has: {', '.join(records)}")
    record = records[artifact]
    if record["kind"] == "tree":
        restore_tree(repository, record, target)
    else:
        restore_stream(repository, record, target)


def restore_log(repository, source, target):
    os.mkdir(target)
    for timeline, name in repository.log(source):
        os.makedirs(os.path.join(target, timeline), exist_ok=True)
        header, body = repository.segment(source, timeline, name)
        repository.restore_segment(header, body, os.path.join(target, timeline, name))


def list_log(repository, source):
    for timeline, name in repository.log(source):
        try:
            header, _ = repository.segment(source, timeline, name)
            span = header["meta"].get("span", {})
            print(source, timeline, name, header["bytes"], span.get("start", "-"), span.get("end", "-"), header["stored"])
        except Failure as error:
            print(f"recover.py: {timeline}/{name}: {error}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", metavar="REPOSITORY")
    parser.add_argument("--identity", metavar="KEYFILE", help="the private key file")
    parser.add_argument("what", nargs="*", metavar="SNAPSHOT SOURCE ARTIFACT TARGET")
    parser.add_argument("--log", metavar="SOURCE", help="work on the log of this source")
    options = parser.parse_intermixed_args()
    if options.log and len(options.what) > 1:
        parser.error("with --log, name a TARGET, or none to list the segments")
    if not options.log and len(options.what) not in (0, 4):
        parser.error("name SNAPSHOT, SOURCE, ARTIFACT and TARGET, or none of them to list what there is")
    try:
        repository = Repository(options.repository, options.identity)
        if options.log and options.what:
            restore_log(repository, options.log, options.what[0])
        elif options.log:
            list_log(repository, options.log)
        elif options.what:
            restore(repository, *options.what)
        else:
            listing(repository)
    except (Failure, OSError) as error:
        sys.exit(f"recover.py: {error}")


if __name__ == "__main__":
    main()
