"""Write docs/embedded-samples.md: the fifty prompts that were fixed before training, with the model's answers.

python recipes/embedded/samples.py [MODEL]      a folder; the embedded model by default

Unselected and unedited: one greedy answer and one sampled at temperature 0.7, seed 0, the other defaults the model's own.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from leadline import LLM
from leadline.engine.types import RequestOutput

HERE = Path(__file__).parent
OUT = HERE.parent.parent / "docs" / "embedded-samples.md"
HEAD = """# Fifty answers of the embedded model

The prompts were fixed before training and none of their eight-word runs is in the training data. Below is every answer, once
at temperature 0 and once at 0.7 (seed 0), unselected and unedited, written by `recipes/embedded/samples.py`. The model has
{parameters:.1f} million parameters: expect simple English and Chinese, and expect it to be wrong about facts.
"""


def prompts() -> list[str]:
    lines = (HERE / "prompts.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def answers(llm: LLM, temperature: float) -> list[RequestOutput]:
    params = dataclasses.replace(llm.default_params, temperature=temperature, seed=0, max_tokens=256)
    return llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts()], params)


def quoted(output: RequestOutput) -> str:
    """The answer as a quotation, with how it ended where it did not end by itself."""
    cut = "" if output.finish_reason == "stop" else f"\n\n({output.finish_reason} after {len(output.token_ids)} tokens)"
    return "\n".join(f"> {line}".rstrip() for line in (output.text + cut).splitlines())


def main() -> None:
    llm = LLM(*sys.argv[1:2])
    parts = [HEAD.format(parameters=llm.engine.info.parameters / 1e6)]
    for prompt, greedy, sampled in zip(prompts(), answers(llm, 0.0), answers(llm, 0.7), strict=True):
        parts.append(f"## {prompt}\n\n{quoted(greedy)}\n\nat 0.7:\n\n{quoted(sampled)}\n")
    OUT.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
