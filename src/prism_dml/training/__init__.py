"""Training: configuration, the loop, checkpoints and logging."""

from typing import TYPE_CHECKING, Any

from prism_dml.training.config import TrainConfig

if TYPE_CHECKING:
    from prism_dml.training.loop import train
    from prism_dml.training.stop import RunStopped

__all__ = ["RunStopped", "TrainConfig", "train"]


def __getattr__(name: str) -> Any:
    """Import the loop, and torch with it, only when it is asked for: the command line needs the settings alone."""
    if name not in ("RunStopped", "train"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prism_dml.training import loop

    return getattr(loop, name)
