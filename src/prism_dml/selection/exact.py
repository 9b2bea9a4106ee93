"""State whose numbers must not be rounded when the model that it is part of is."""

from collections.abc import Callable

from torch import Tensor, nn


class ExactModule(nn.Module):
    """A module whose buffers keep their type: half() and double() of a model that it is part of change nothing."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExactModule":
        def kept(tensor: Tensor) -> Tensor:
            other = fn(tensor)
            return other if other.dtype == tensor.dtype else tensor.to(other.device)

        super()._apply(kept, recurse)  # type: ignore[no-untyped-call]
        return self
