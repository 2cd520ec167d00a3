"""The corpus builder (tech report, section 3.1.1): source files with a licence in, token shards with a manifest out.

recipe      what to build: sources, licences, filters, mix
read        JSONL, text, Markdown, Parquet, from a folder or from the hub: one document at a time
clean       normalisation and quality filters
duplicates  exact and near duplicates (MinHash)
overlap     documents that hold pieces of the evaluation sets
language    which language a document is in
parts       one source, encoded and kept
build       shards and manifest
"""

from leadline.train.corpus.build import build_corpus
from leadline.train.corpus.clean import clean_text
from leadline.train.corpus.duplicates import document_key, is_valid_split
from leadline.train.corpus.parts import sha256_of
from leadline.train.corpus.recipe import CorpusRecipe, SourceSpec, load_recipe

__all__ = [
    "CorpusRecipe",
    "SourceSpec",
    "build_corpus",
    "clean_text",
    "document_key",
    "is_valid_split",
    "load_recipe",
    "sha256_of",
]
