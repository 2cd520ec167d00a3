"""Which weights these are, without reading all of them: what was computed by others is not theirs to reuse.

Invariant: folders of other configurations, tensors or sizes have other fingerprints, and so has a file that was written
again. No torch here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SAMPLES = 64
SAMPLE_BYTES = 4096


def fingerprint(folder: Path) -> str:
    """40 hex digits over config.json and every weight file: its size, the time it was written, and 64 blocks spread
    over its bytes."""
    digest = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=20)
    for path in sorted(folder.glob("*.safetensors")):
        stat = path.stat()
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        with path.open("rb") as file:
            for sample in range(SAMPLES):
                file.seek(stat.st_size * sample // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
