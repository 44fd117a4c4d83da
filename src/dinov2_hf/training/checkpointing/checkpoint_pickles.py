"""
Ensures that pickles in a checkpoint contain data, never code.

Accelerate, torch and DeepSpeed save optimizers, random states and lists of shards as pickles. A pickle may name any
function to be called when it is read. Checksums do not help, because whoever changes a file can also change the
manifest. So names are checked before anything is read (`refuse_code`), and everything is read by torch's unpickler for
weights, which allows a list of harmless classes (`data_only`), whatever the reader asks for.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch


TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".pkl")
METADATA_FILE = ".metadata"
# Allowed in addition to torch's own list: arrays, for NumPy's random state (as in accelerate.utils.load), and small
# records of DeepSpeed's optimizers.
NUMPY_NAMES = (
    "numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray",
    "numpy.dtypes.UInt32DType", "_codecs.encode",
)  # fmt: skip
DEEPSPEED_NAMES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler", "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)  # fmt: skip
# Names of torch.distributed.checkpoint, whose list of shards is read by pickle itself.
METADATA_NAMES = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),
    "collections": ("OrderedDict",),
}  # fmt: skip


def refuse_code(checkpoint: Path) -> None:
    """
    Check that no pickle in a folder asks for more than data.

    Raises:
        ValueError: a pickle asks for more, or was not written by torch or torch.distributed.checkpoint.
    """
    for path in sorted(checkpoint.rglob("*")):
        if path.name == METADATA_FILE:
            complaint = _complaint_of_metadata(path)
        elif path.suffix in TORCH_SUFFIXES:
            complaint = _complaint_of_torch_file(path)
        else:
            continue
        if complaint:
            raise ValueError(
                f"{checkpoint} is not read, because its {path.relative_to(checkpoint)} {complaint}. Reading it could"
                " run code, and pickles in a checkpoint of dinov2_hf hold only data: continue from another checkpoint,"
                " from a source that you trust."
            )


@contextmanager
def data_only() -> Iterator[None]:
    """While the block runs, every `torch.load` of this process reads only weights and plain data."""
    before = {name: os.environ.pop(name, None) for name in (_FORCED, _FORCED_OFF)}
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals(_deepspeed_classes()):
            yield
    finally:
        del os.environ[_FORCED]
        os.environ.update({name: value for name, value in before.items() if value is not None})


_FORCED, _FORCED_OFF = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def _deepspeed_classes() -> list[type]:
    """The classes of `DEEPSPEED_NAMES`, if DeepSpeed is installed."""
    try:
        return [
            getattr(import_module(module), name) for module, _, name in (n.rpartition(".") for n in DEEPSPEED_NAMES)
        ]
    except ImportError:
        return []


def _complaint_of_torch_file(path: Path) -> str | None:
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError):
        return "is not a file of torch.save"
    unknown = sorted(names - {*NUMPY_NAMES, *DEEPSPEED_NAMES})
    return f"asks for {', '.join(unknown)}" if unknown else None


def _complaint_of_metadata(path: Path) -> str | None:
    with path.open("rb") as file:
        try:
            _MetadataUnpickler(file).load()
        except _UnknownName as error:
            return f"asks for {error}"
        except Exception:  # a damaged pickle can raise nearly anything
            return "is not a list of shards"
    return None


class _UnknownName(Exception):
    pass


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        known = name in METADATA_NAMES.get(module, ())
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise _UnknownName(f"{module}.{name}")
