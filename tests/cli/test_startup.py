"""What a start does not bring along: the parts of PyTorch that take longer to import than the model to load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_loading_and_answering_leave_the_compiler_alone(tiny_lite_folder: Path) -> None:
    code = (
        "import sys; from leadline import LLM, SamplingParams; "
        f"LLM({str(tiny_lite_folder)!r}, max_model_len=256).generate('The', SamplingParams(max_tokens=1)); "
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
