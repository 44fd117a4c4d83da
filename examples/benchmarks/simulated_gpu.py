"""
What a GPU would do, told on a machine that has none: kernels, bytes, memory and waiting, from fake tensors.

Fake tensors have shapes, dtypes and a device, and no memory. `Costs` sees every kernel that would run on them. Time
follows from a roofline: a matrix product or attention takes as long as its operations or its bytes do, any other
kernel as long as its bytes.
"""

import traceback
import weakref
from collections import Counter
from contextlib import contextmanager
from math import prod

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop


FLOPS_PER_SECOND = 500e12  # of an H100 that multiplies bfloat16 matrices, as a good kernel reaches it
BYTES_PER_SECOND = 2.8e12  # from and to its memory
FLOP_FORMULAS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, out_shape=None, **__: (
        sdpa_flop(query.shape, key.shape, value.shape)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, out_shape=None, **__: sdpa_backward_flop(
            grad.shape, query.shape, key.shape, value.shape
        )
    ),
}
ALLOCATIONS = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "empty_permuted",
    "lift_fresh",
}
# Which rows of the first tensor they touch, the shapes of the others tell.
READ_ROWS = {"index_select", "index", "gather", "embedding"}
WRITE_ROWS = {"index_add_", "index_put_", "_index_put_impl_", "index_copy_", "scatter_", "scatter_add_"}
# Kernels whose result's size or value the host must know.
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2", "unique_consecutive",
}  # fmt: skip


class Costs(TorchDispatchMode):
    """
    Attributes:
        num_kernels: launched, views and allocations not counted.
        synchronisations: for each time that the host would wait for the device, `kernel at file:line`.
        product_flops, product_bytes: of matrix products, convolutions and attention.
        other_bytes: read and written by all other kernels, by their name.
        peak_bytes: the most that was allocated at once, of tensors that were made under it or given to `hold`.
    """

    def __init__(self):
        super().__init__()
        self.num_kernels = 0
        self.synchronisations: list[str] = []
        self.product_flops = self.product_bytes = 0
        self.product_seconds = 0.0
        self.other_bytes: Counter[str] = Counter()
        self.allocated: dict[int, int] = {}
        self.current_bytes = self.peak_bytes = 0

    @property
    def other_seconds(self) -> float:
        """Time of the kernels that are not products."""
        return sum(self.other_bytes.values()) / BYTES_PER_SECOND

    def hold(self, *values) -> None:
        """Count tensors (modules, optimizers: give their tensors) that were made before."""
        for tensor in _tensors(values):
            self._allocate(tensor)

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        name = kernel._schema.name.split("::")[1]
        waits = self._waits(kernel, name, args, kwargs, inputs)
        if waits:
            self.synchronisations.append(f"{name} at {_place()}")
        if kernel.namespace == "prim":  # a question about a tensor
            return kernel(*args, **kwargs)
        result = self._run(kernel, name, args, kwargs)
        outputs = _tensors(result)
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        for tensor in outputs:
            self._allocate(tensor)
        is_view = all(tensor.untyped_storage()._cdata in known for tensor in outputs) and not kernel._schema.is_mutable
        if name in ALLOCATIONS or not (inputs or outputs) or (is_view and outputs):
            return result
        self.num_kernels += 1
        moved = _moved_bytes(kernel, name, args, kwargs, inputs, [t for t in outputs if _storage(t) not in known])
        if kernel.overloadpacket in FLOP_FORMULAS:
            flops = FLOP_FORMULAS[kernel.overloadpacket](*args, **kwargs, out_val=result)
            self.product_flops += flops
            self.product_bytes += moved
            self.product_seconds += max(flops / FLOPS_PER_SECOND, moved / BYTES_PER_SECOND)
        else:
            self.other_bytes[name] += moved
        return result

    @staticmethod
    def _run(kernel, name, args, kwargs):
        if name == "_local_scalar_dense":
            return 1  # whatever it would be
        if name == "_fused_sgd_":
            return None  # in place, and fake tensors have no rule for it
        if name == "_to_copy" and kwargs.get("device", args[0].device) != args[0].device:
            # A fake tensor of a number remembers it, and would really be copied.
            return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=kwargs["device"])
        return kernel(*args, **kwargs)

    @staticmethod
    def _waits(kernel, name, args, kwargs, inputs) -> bool:
        if name in WAITING:
            return any(tensor.device.type != "cpu" for tensor in inputs)
        if name == "index" or name == "index_put_":
            indices = [index for index in args[1] if index is not None]
            return any(index.dtype == torch.bool or index.device != args[0].device for index in indices)
        if name in ("_to_copy", "copy_"):
            target = kwargs.get("device") if name == "_to_copy" else args[0].device
            source = args[0] if name == "_to_copy" else args[1]
            blocks = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            return blocks and target is not None and torch.device(target).type != source.device.type
        return False

    def _allocate(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.allocated:
            return
        self.allocated[key] = size
        self.current_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.current_bytes)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.current_bytes -= self.allocated.pop(key)


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: torch.Tensor) -> int:
    """Of what is really there: an expanded dimension is read once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return prod(sizes) * tensor.element_size()


def _moved_bytes(kernel, name, args, kwargs, inputs, new) -> int:
    written = sum(map(_bytes, new))
    if name in READ_ROWS:
        return 2 * written + sum(map(_bytes, inputs[1:]))
    if name.rstrip("_") + "_" in WRITE_ROWS:  # read, added to, written
        rows = inputs[-1]
        whole = 0 if name.endswith("_") else 2 * _bytes(inputs[0])
        return whole + 3 * _bytes(rows) + sum(map(_bytes, inputs[1:-1]))
    read = []
    for argument, value in _arguments(kernel, args, kwargs):
        tensors = _tensors(value)
        # Fused optimizers write gradients only where they unscale them.
        is_only_read = argument.name == "grads" and kwargs.get("grad_scale") is None
        is_written = argument.alias_info is not None and argument.alias_info.is_write and not is_only_read
        if is_written:
            written += sum(map(_bytes, tensors))
        if not (argument.is_out or (is_written and name in ("copy_", "fill_", "zero_"))):
            read += tensors
    return written + sum(map(_bytes, read))


def _arguments(kernel, args, kwargs):
    """Those that were given, and what the schema says of them."""
    named = [(argument, kwargs[argument.name]) for argument in kernel._schema.arguments if argument.name in kwargs]
    return [*zip(kernel._schema.arguments, args, strict=False), *named]


def _place() -> str:
    """Where the package (or whoever called torch) asked for the kernel."""
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
    frame = [frame for frame in frames if frame.filename != __file__][-1]
    return f"{frame.filename}:{frame.lineno}"


@contextmanager
def fake_device(name: str):
    """
    Tensors made inside are fake and, where nothing else is said, on the device of this name. `"cuda"` needs neither a
    GPU nor a driver; a backward pass cannot be run on it, since autograd asks the driver for streams.
    """
    with FakeTensorMode(), _cuda_answers() if name == "cuda" else _nothing(), torch.device(name):
        yield


@contextmanager
def _nothing():
    yield


class _Event:
    """Of a stream that there is not."""

    def record(self) -> None:
        """Nothing is to be waited for."""


@contextmanager
def _cuda_answers():
    replaced = {
        "is_available": True, "is_bf16_supported": True, "_lazy_init": None, "current_device": 0, "Event": _Event()
    }  # fmt: skip
    before = {name: getattr(torch.cuda, name) for name in replaced}
    for name, answer in replaced.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(torch.cuda, name, function)
