"""Write tests/e2e/held_out.jsonl: held-out documents with the bits that a 5-gram model needs for each.

python recipes/embedded/held_out_sample.py PRETRAIN      the folder that `leadline train data` wrote

The shipped model is tested against these lines without the corpus at hand. The texts are from the sources and under the
licences that leadline/embedded/ATTRIBUTION.md names.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from leadline.tokenizer import Tokenizer
from leadline.train.ngram import distinct_documents, pack, probabilities, train_ngram

DOCUMENTS = 120
ORDER = 5


def main(folder: Path, tokenizer: Tokenizer, out: Path) -> None:
    shards = {
        split: (np.fromfile(folder / f"{split}.bin", dtype="<u2"), np.load(folder / f"{split}.idx.npy"))
        for split in ("train", "valid")
    }
    model = train_ngram(*distinct_documents(*shards["train"]), order=ORDER, vocab_size=tokenizer.vocab_size)
    ids, starts = shards["valid"]
    with out.open("w", encoding="utf-8") as file:
        for first, last in pairwise(starts[: DOCUMENTS + 1].tolist()):
            document = ids[first:last]
            grams = pack(document, np.array([0, len(document)]), ORDER, model.bits)
            bits = float(-np.log2(probabilities(model, grams)).sum())
            size = sum(len(tokenizer.token_bytes(i)) for i in document.tolist() if i not in tokenizer.special_ids)
            file.write(json.dumps({"ids": document.tolist(), "bytes": size, "five_gram_bits": round(bits, 2)}) + "\n")


if __name__ == "__main__":
    corpus = Path(sys.argv[1])
    main(corpus, Tokenizer.from_folder(corpus.parent / "tokenizer"), Path("tests/e2e/held_out.jsonl"))
