"""GGUF files without llama.cpp: read a header, write a small file (github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Shapes = dict[str, tuple[int, ...]]

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_FLOAT, _STRING, _ARRAY = 6, 8, 9
_ELEMENTS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}
# A tensor's shape, its type, and where it begins after the header.
_Entry = tuple[tuple[int, ...], int, int]


def read_header(path: Path) -> tuple[dict[str, object], Shapes]:
    """Metadata and tensor shapes, a matrix as [rows, columns]. Raises ValueError for what is no GGUF file, OSError if it cannot be read."""
    metadata, entries, _ = _read(path)
    return metadata, {name: shape for name, (shape, _, _) in entries.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors. Raises like read_header, and ValueError when one is neither float32 nor float16."""
    metadata, entries, end = _read(path)
    data = np.memmap(path, np.uint8, "r")[end + -end % int(str(metadata.get("general.alignment", ALIGNMENT))) :]
    if others := [name for name, (_, kind, _) in entries.items() if kind > 1]:
        raise ValueError(f"{others[0]} is neither float32 nor float16")
    return {name: np.ndarray(shape, ("<f4", "<f2")[kind], data, offset) for name, (shape, kind, offset) in entries.items()}


def _read(path: Path) -> tuple[dict[str, object], dict[str, _Entry], int]:
    with path.open("rb") as file:

        def number(form: str) -> int:
            value: int = struct.unpack(form, file.read(struct.calcsize(form)))[0]
            return value

        def text() -> str:
            return file.read(number("<Q")).decode("utf-8", "replace")

        def value(kind: int) -> object:
            if kind == _ARRAY:
                kind, count = number("<I"), number("<Q")
                return [value(kind) for _ in range(count)]
            return text() if kind == _STRING else number(_SCALARS[kind])

        def tensor() -> tuple[str, _Entry]:
            name, shape = text(), [number("<Q") for _ in range(number("<I"))]
            return name, (tuple(reversed(shape)), number("<I"), number("<Q"))

        try:
            if file.read(4) != MAGIC or number("<I") not in (2, VERSION):
                raise ValueError(f"{path} is not a GGUF file of a known version")
            num_tensors, num_fields = number("<Q"), number("<Q")
            metadata = {text(): value(number("<I")) for _ in range(num_fields)}
            return metadata, dict(tensor() for _ in range(num_tensors)), file.tell()
        except (struct.error, KeyError, MemoryError, OverflowError) as error:
            raise ValueError(f"the header of {path} is broken") from error


def write_file(path: Path, metadata: Mapping[str, str | float], tensors: Mapping[str, Tensor]) -> None:
    """Write strings and 32-bit floats as metadata, and float tensors in their own type."""
    head, offset = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)), 0
    for key, value in metadata.items():
        is_text = isinstance(value, str)
        head += _packed(key) + struct.pack("<I", _STRING if is_text else _FLOAT)
        head += _packed(str(value)) if is_text else struct.pack("<f", value)
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        head += _packed(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _ELEMENTS[tensor.dtype], offset)
        offset += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    with path.open("wb") as file:
        for data in (head, *(tensor.tobytes() for tensor in tensors.values())):
            file.write(data + b"\0" * (-len(data) % ALIGNMENT))


def _packed(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
