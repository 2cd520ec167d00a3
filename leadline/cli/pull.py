"""`leadline pull`: bring a hub's model here, in as many bits as it has or in fewer."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from leadline.checkpoint.machine import measure_bandwidth, read_machine, show_bytes
from leadline.checkpoint.source import find_source
from leadline.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from leadline.checkpoint.pull import Estimate


def pull(
    model: str,
    /,
    *,
    quantize: Literal["int8", "int4", "mixed"] | None = None,
    output: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Bring a model from a hub; what it takes is shown first, and a pull that broke off goes on.

    With --quantize one shard at a time is downloaded, quantised and removed: the disk holds the result and one shard.

    Args:
        model: A hub id: org/name or modelscope:org/name.
        quantize: Keep it in 8 or 4 bits only.
        output: The new folder, with --quantize; one in leadline's cache by default, where --model finds it again.
        dry_run: Only show what it would take.
        json_output: Print one JSON object.
    """
    from leadline.checkpoint.hub import HuggingFace, ModelScope

    source = find_source(model)
    if not isinstance(source, HuggingFace | ModelScope):
        raise ConfigError(f"{model} is a folder here already; leadline quantize makes it smaller")
    if quantize is None:
        if output is not None:
            raise ConfigError("--output goes with --quantize: whole models stay in the hub's own cache", param="output")
        print(source.fetch())
        return
    from leadline.checkpoint.pull import estimate
    from leadline.checkpoint.pull import pull as pull_quantised

    config = source.read_config()
    needs = estimate(source, config, source.repository(), quantize, measure_bandwidth())
    _show(needs, as_json=json_output)
    _check(needs)
    if not dry_run:
        print(pull_quantised(source, config, quantize, output))


def _check(needs: Estimate) -> None:
    """Memory is checked here, disk against what an earlier run has left to do."""
    machine = read_machine()
    if needs.memory > machine.memory:
        have = f"{machine.memory:,} bytes may be taken ({machine.memory_reason})"
        raise ResourceError(f"{needs.name} in {needs.recipe} needs {needs.memory:,} bytes of memory; {have}")


def _show(needs: Estimate, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(needs), indent=2))
        return
    speed = "" if needs.tokens_per_second is None else f", about {needs.tokens_per_second:,.1f} tokens/s here"
    rows = {
        "model": f"{needs.name}, {needs.parameters:,} parameters",
        "licence": needs.licence,
        "download": show_bytes(needs.download),
        "disk": f"{show_bytes(needs.disk)} at most, one shard of it for a while",
        "memory": show_bytes(needs.memory),
        "decode": f"{needs.active_bits:.2f} bits a weight{speed}",
    }
    for label, value in rows.items():
        print(f"{label:<9} {value}", file=sys.stderr)
