"""DTensors: each device samples its shards by the call that it would make of plain tensors.

Images, maps and channels do not know of each other, so along a dimension of the mesh one of these
is split, and nothing is sent:

* ``n``, the batch. What serves the whole batch has a gradient that is a sum over devices;
* ``k``, the maps of an image; so has the image;
* ``c``, the channels; so have the maps.

The first argument that is sharded by one of them says which; what is sharded in another way, as by
rows, or not yet added up, becomes whole first. The sums are made where a gradient reaches the
argument that it is of.

The public functions come here when they see a DTensor. To import this module gives the registered
operators the same rule. (`register_sharding` would keep what an operator returns by its tensors
alone: another output size would be said to have the shape of the first.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Placement, Replicate, Shard

from triton_stn.backends.layout import channels_lie_last
from triton_stn.backends.numbers import vector
from triton_stn.checks import shape_of

Axes = str  # what the leading dimensions of a tensor are, "." for one that is never split


def sample(call, input, theta, leading: int, fill_value, normalize) -> torch.Tensor:
    """``call(input, theta[, fill_value=, normalize=])`` of DTensors, ``leading`` dimensions before
    a map.

    Raises:
        TypeError: one of the tensors is no DTensor.
        ValueError: they are on different meshes.
    """
    tensors = _batches(input, "nc", theta, "nk"[:leading])
    _mesh(tensor for tensor, _ in tensors)
    numbers = [fill_value, *(normalize or (None, None))]
    for i, value in enumerate(numbers):
        if isinstance(value, (list, tuple)):
            value = _replicated(value, input)
        if isinstance(value, torch.Tensor):
            tensors.append((value, "c"[: value.ndim]))
            numbers[i] = ...  # a shard of it

    def of_shards(input, theta, *shards):
        given = iter(shards)
        fill, mean, std = (next(given) if value is ... else value for value in numbers)
        options = {} if fill is None else {"fill_value": fill}
        if normalize is not None:
            options["normalize"] = mean, std
        return (call(input, theta, **options),)

    return by_shards(of_shards, tensors, ["nkc" if leading == 2 else "nc"])[0]


def splat(call, input, theta, leading: int) -> torch.Tensor:
    """``call(input, theta)`` of DTensors; the K that are added up stay together."""
    tensors = _batches(input, "n.c" if leading == 2 else "nc", theta, "n."[:leading])
    return by_shards(lambda *shards: (call(*shards),), tensors, ["nc"])[0]


def by_shards(
    call: Callable[..., Iterable[torch.Tensor]],
    tensors: Sequence[tuple[torch.Tensor, Axes]],
    outputs: Sequence[Axes],
) -> tuple[DTensor, ...]:
    """What ``call`` gives of the shards, as DTensors."""
    mesh = _mesh(tensor for tensor, _ in tensors)
    split = [_axis_split(tensors, dim) for dim in range(mesh.ndim)]
    shards, sizes = [], {}
    for tensor, axes in tensors:
        shard = tensor.redistribute(mesh, _placements(axes, split, Replicate()))
        shards.append(shard.to_local(grad_placements=_placements(axes, split, Partial())))
        sizes |= zip(axes, tensor.shape, strict=False)
    made = []
    for local, axes in zip(call(*shards), outputs, strict=True):
        placements = _placements(axes, split, Partial())
        shape = torch.Size([*(sizes[axis] for axis in axes), *local.shape[len(axes) :]])
        strides = _strides(shape, local, axes)
        whole = DTensor.from_local(local, mesh, placements, shape=shape, stride=strides)
        # Nothing to do, but in the backward: what `from_local` itself has to redistribute there has
        # no derivative.
        made.append(whole.redistribute(mesh, placements))
    return tuple(made)


def _mesh(tensors: Iterable[torch.Tensor]) -> DeviceMesh:
    """Of all of them."""
    mesh = None
    for tensor in tensors:
        if not isinstance(tensor, DTensor):
            raise TypeError(
                f"beside a DTensor every tensor must be one, got a {type(tensor).__name__} of "
                f"shape {shape_of(tensor)}; use torch.distributed.tensor.distribute_tensor"
            )
        mesh = mesh or tensor.device_mesh
        if tensor.device_mesh != mesh:
            raise ValueError(
                f"all DTensors must be on one mesh, got {mesh} and {tensor.device_mesh}"
            )
    return mesh


def _axis_split(tensors: Sequence[tuple[DTensor, Axes]], dim: int) -> Axes | None:
    """What a dimension of the mesh is for."""
    for tensor, axes in tensors:
        for i, axis in enumerate(axes):
            if axis != "." and tensor.placements[dim].is_shard(i):
                return axis
    return None


def _placements(axes: Axes, split: Sequence[Axes | None], without: Placement) -> list[Placement]:
    """Of a tensor; ``without`` where what is split is no axis of it."""
    return [
        Replicate() if axis is None else Shard(axes.index(axis)) if axis in axes else without
        for axis in split
    ]


def _batches(input, axes: Axes, theta, axes_of_maps: Axes) -> list[tuple[torch.Tensor, Axes]]:
    """Both, with their axes: a batch of one that serves all of the other's is not split."""
    if axes_of_maps and input.shape[0] != theta.shape[0]:
        if input.shape[0] == 1:
            axes = "." + axes[1:]
        else:
            axes_of_maps = "." + axes_of_maps[1:]
    return [(input, axes), (theta, axes_of_maps)]


def _replicated(values: Sequence[float], like: DTensor) -> DTensor:
    """Numbers of a call."""
    local = like.detach().to_local()
    dtype = torch.promote_types(like.dtype, torch.float32)
    numbers = vector([float(value) for value in values], local.new_empty(0, dtype=dtype))
    return DTensor.from_local(numbers, like.device_mesh, [Replicate()] * like.device_mesh.ndim)


def _strides(shape: Sequence[int], local: torch.Tensor, axes: Axes) -> tuple[int, ...]:
    """Of the whole: dense, and with channels where those of the shard lie."""
    order = list(reversed(range(local.ndim)))
    if "c" in axes:
        c = axes.index("c")
        if channels_lie_last(local.shape[c - 1 :], local.stride()[c - 1 :]):
            order.remove(c)
            order.insert(0, c)
    strides, step = [0] * local.ndim, 1
    for dim in order:
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


def _rule(outputs, mode, operator, types, args, kwargs):
    """Of a registered operator, below autograd."""
    names = (argument.name for argument in operator._schema.arguments)
    arguments = dict(zip(names, args, strict=False)) | kwargs
    axes = {"grad_output": "nkc", "input": "nc", "theta": "nk", "fills": "c", "finish": ".c"}
    tensors = {name: arguments[name] for name in axes if arguments.get(name) is not None}
    split = [(tensor, axes[name][: tensor.ndim]) for name, tensor in tensors.items()]

    def of_shards(*shards):
        made = operator(**arguments | dict(zip(tensors, shards, strict=True)))
        return made if isinstance(made, tuple) else (made,)

    # A gradient that nobody needs has no elements, and no axes.
    wanted = [arguments.get(need, True) for need in ("needs_input", "needs_theta")]
    made = by_shards(of_shards, split, [a * w for a, w in zip(outputs, wanted, strict=False)])
    return made if len(made) > 1 else made[0]


for _name, _outputs in (("sample", ["nkc"]), ("sample_backward", ["nc", "nk"])):
    torch.library.register_torch_dispatch(f"triton_stn::{_name}", DTensor, partial(_rule, _outputs))
