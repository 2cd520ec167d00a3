"""Write ngram_baseline.json: held-out bits per byte of n-gram models on the embedded model's corpus.

python recipes/embedded/ngram_baseline.py PRETRAIN      the folder that `leadline train data` wrote
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from leadline.train.ngram import ngram_baseline


def main(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    found = {str(order): round(ngram_baseline(folder, manifest, order=order), 4) for order in (2, 3, 4, 5)}
    result = {
        "model": "interpolated modified Kneser-Ney over the same tokens, each document once",
        "valid_sha256": manifest["splits"]["valid"]["sha256"],
        "train_tokens": manifest["splits"]["train"]["tokens"],
        "valid_bytes": manifest["splits"]["valid"]["bytes"],
        "bits_per_byte": found,
    }
    text = json.dumps(result, indent=1) + "\n"
    Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
