"""`python -m leadline` and `torchrun -m leadline` are the `leadline` command."""

from __future__ import annotations

from leadline.cli import main

if __name__ == "__main__":
    main()
