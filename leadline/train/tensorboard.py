"""TensorBoard's event files, written without TensorBoard: its record format and the two messages that scalars need.

A file is a row of records: length (uint64), masked CRC-32C of the length, payload, masked CRC-32C of the payload, all
little-endian. A payload is an `Event` in protobuf's wire format: 1 wall_time (double), 2 step (varint), 3 file_version
(string), 5 summary, 7 session_log; a summary's 1 is a value with 1 tag (string) and 2 simple_value (float).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected
SESSION_START = 1


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ POLYNOMIAL * (crc & 1)
        table.append(crc)
    return tuple(table)


CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
    """Rotated and shifted, so that a CRC of data that holds CRCs is no weaker."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked_crc(length)) + payload + struct.pack("<I", masked_crc(payload))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def event(step: int, body: bytes) -> bytes:
    """An `Event` at this moment."""
    return b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + body


def scalars(values: Mapping[str, float]) -> bytes:
    """A summary, as the field of an event."""
    parts = (_field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in values.items())
    return _field(5, b"".join(parts))


class EventWriter:
    """One file in `folder` for each start. Its second record takes back what an earlier file told of later steps."""

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self.file = (folder / name).open("ab", buffering=0)
        self.file.write(record(event(0, _field(3, b"brain.Event:2"))))
        self.file.write(record(event(step + 1, _field(7, b"\x08" + _varint(SESSION_START)))))

    def write(self, values: Mapping[str, Any]) -> None:
        """The numbers of a record of metrics.jsonl that has a step; a list of loads is told by its layers' largest."""
        numbers = {
            name: float(value) for name, value in values.items() if type(value) in (int, float) and name != "step"
        }
        loads = values.get("expert_load", [])
        numbers |= {f"expert_load/moe_layer_{at}": max(layer) for at, layer in enumerate(loads)}
        self.file.write(record(event(int(values["step"]), scalars(numbers))))

    def close(self) -> None:
        self.file.close()
