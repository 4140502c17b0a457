"""Hashes: the names of folders of prepared text, and which documents are held out."""

import hashlib
import json

FORMAT = 2  # increase when the files' layout or the held-out rule changes


def key_of(value: object) -> str:
    """The name of a folder: a hash of all that its content depends on."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def held_out(text: str, fraction: float) -> bool:
    """Whether a document is held out; decided by its hash, so copies fall into the same part."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2**64
