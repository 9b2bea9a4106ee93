"""Batch normalisation by the statistics of a whole batch that several processes share."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm


def share_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Let every batch norm of a network see all processes' parts of a batch, in place; its state stays the same.

    On CUDA this is torch's SyncBatchNorm, which knows no other device.
    """
    if device.type == "cuda":
        convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for norm in network.modules():
        if isinstance(norm, _BatchNorm):
            norm.forward = partial(_normalise, norm)  # type: ignore[method-assign]


def _normalise(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What `norm` makes of this process's part (b, C, ...) of a batch."""
    if not norm.training:
        y: Tensor = type(norm).forward(norm, x)
        return y
    y, mean, variance, count = _SharedNorm.apply(x, norm.weight, norm.bias, norm.eps)
    if norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)
    if isinstance(norm, BatchNormAct2d):  # timm's, with the activation inside
        y = norm.act(norm.drop(y))
    return y


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32: sums do not fit it, and not every collective takes it."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _SharedNorm(torch.autograd.Function):
    """Batch norm whose mean and variance, and their gradients, are over all processes' parts."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [dim for dim in range(x.ndim) if dim != 1]
        channels = x.shape[1]
        values = at_least_float32(x)
        part = values.new_zeros(2 * channels + 1)  # mean, variance, number of values
        if x.numel():
            variance, mean = torch.var_mean(values, dims, correction=0)
            part = torch.cat([mean, variance, mean.new_tensor([x.numel() // channels])])
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part)
        means, variances, counts = torch.split(torch.stack(parts), [channels, channels, 1], dim=1)
        share = counts / counts.sum()  # (W, 1)
        mean = (share * means).sum(0)  # (C,)
        variance = (share * (variances + (means - mean).square())).sum(0)  # (C,)
        y = batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps))
        ctx.dims, ctx.count = dims, counts.sum()
        ctx.mark_non_differentiable(mean, variance, ctx.count)
        return y, mean, variance, ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors

        def wide(vector: Tensor) -> Tensor:
            return vector.view(-1, *[1] * (x.ndim - 2))  # (C,) -> (C, 1, ...)

        normal = (at_least_float32(x) - wide(mean)) * wide(scale)  # (b, C, ...)
        gradient = at_least_float32(gradient)
        own = torch.stack([gradient.sum(ctx.dims), (gradient * normal).sum(ctx.dims)])  # (2, C)
        total = own.clone()
        dist.all_reduce(total)
        to_bias, to_weight = total / ctx.count
        gain = scale if weight is None else scale * weight
        to_x = (gradient - wide(to_bias) - normal * wide(to_weight)) * wide(gain)
        affine = (None, None) if weight is None else (own[1], own[0])
        return to_x.to(x.dtype), *affine, None
