"""The five passes: what each computes, how one call of it is made ready for timing, or captured."""

from __future__ import annotations

from collections.abc import Callable

import torch

Forward = Callable[..., torch.Tensor]
Call = Callable[[], tuple[torch.Tensor, ...]]

# The results of a pass, in the order in which its call returns them.
RESULTS = {
    "forward": ("y",),
    "backward_input": ("grad_input",),
    "backward_theta": ("grad_theta",),
    "backward": ("grad_input", "grad_theta"),
    "forward_backward": ("y", "grad_input", "grad_theta"),
}
TITLES = {
    "forward": "forward",
    "backward_input": "backward, input alone",
    "backward_theta": "backward, θ alone",
    "backward": "backward",
    "forward_backward": "forward + backward",
}


def prepare(
    pass_name: str,
    forward: Forward,
    input: torch.Tensor,
    theta: torch.Tensor,
    grad: torch.Tensor,
    *options: object,
) -> Call:
    """A function without arguments that runs the pass once and returns its ``RESULTS``.

    Args:
        forward: a provider's ``forward(input, theta, *options) -> y``.
        input: (N, C, H, W), or (N, C, D, H, W).
        theta: (N, *) or (N, K, *).
        grad: the gradient that arrives at y, prepared, so that no loss is timed.

    A backward pass runs its forward here, outside the timing, and asks for the gradients it is
    named after, no others.
    """
    results = RESULTS[pass_name]
    input = input.detach().requires_grad_("grad_input" in results)
    theta = theta.detach().requires_grad_("grad_theta" in results)
    wanted = [x for x in (input, theta) if x.requires_grad]
    if pass_name == "forward":
        return lambda: (forward(input, theta, *options),)
    if pass_name == "forward_backward":

        def both() -> tuple[torch.Tensor, ...]:
            y = forward(input, theta, *options)
            return (y, *torch.autograd.grad(y, wanted, grad))

        return both
    y = forward(input, theta, *options)
    return lambda: torch.autograd.grad(y, wanted, grad, retain_graph=True)


def as_it_is(call: Call) -> Call:
    """The call, not captured."""
    return call


def captured(call: Call) -> Call:
    """The call in a CUDA graph: each replay reads the same tensors and overwrites its results."""
    # A capture that fails leaves its stream current; this leaves it.
    with torch.cuda.stream(torch.cuda.current_stream()):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is compiled or allocated once can not be captured
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()

    def replay() -> tuple[torch.Tensor, ...]:
        graph.replay()
        return results

    return replay
