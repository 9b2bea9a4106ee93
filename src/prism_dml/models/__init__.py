"""Networks from images to unit embeddings, and their storage."""

from prism_dml.models.embedder import Embedder
from prism_dml.models.preprocess import Preprocess
from prism_dml.models.small import SmallConvNet
from prism_dml.models.storage import load, model_checksum, save, save_as_file

__all__ = ["Embedder", "Preprocess", "SmallConvNet", "load", "model_checksum", "save", "save_as_file"]
