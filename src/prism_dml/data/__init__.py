"""Files to batches: readers, decoding, augmentation, sampling, noise models, writers."""

from prism_dml.data.augment import Augment, AugmentKind
from prism_dml.data.cache import fits_in_memory, load_images
from prism_dml.data.corrections import (
    Corrected,
    Correction,
    Corrections,
    apply_corrections,
    fingerprint,
    read_corrections,
    table_fingerprint,
    write_corrections,
)
from prism_dml.data.decode import decode_image, read_image, square
from prism_dml.data.embeddings import (
    SCORES,
    Embedded,
    LabelledEmbeddings,
    embedding_rows,
    read_embeddings,
    write_embeddings,
)
from prism_dml.data.letters import letters_table
from prism_dml.data.loader import (
    Batch,
    CachedBatches,
    CacheKind,
    ImageBatches,
    StreamingBatches,
    images_at_once,
    open_images,
)
from prism_dml.data.noise import NoiseKind, corrupt_labels, corrupt_table, pixel_features, small_cluster
from prism_dml.data.omniglot import omniglot_table
from prism_dml.data.parts import holds_parts
from prism_dml.data.readers import read_table
from prism_dml.data.relabelled import embeddings_table, holds_embeddings, write_relabelled
from prism_dml.data.remote import RemoteFile, StoreError, place
from prism_dml.data.row_groups import storage_blocks
from prism_dml.data.sampling import WHOLE, PKSampler, Share
from prism_dml.data.table import (
    BytesImages,
    FileImages,
    ImageSource,
    ImageTable,
    SelectedImages,
    image_file,
    sort_classes,
)
from prism_dml.data.vectors import VectorBatches, open_vectors, vector_batches, with_vectors
from prism_dml.data.writers import refuse_input, refuse_overwriting, write_table

__all__ = [
    "SCORES",
    "WHOLE",
    "Augment",
    "AugmentKind",
    "Batch",
    "BytesImages",
    "CacheKind",
    "CachedBatches",
    "Corrected",
    "Correction",
    "Corrections",
    "Embedded",
    "FileImages",
    "ImageBatches",
    "ImageSource",
    "ImageTable",
    "LabelledEmbeddings",
    "NoiseKind",
    "PKSampler",
    "RemoteFile",
    "SelectedImages",
    "Share",
    "StoreError",
    "StreamingBatches",
    "VectorBatches",
    "apply_corrections",
    "corrupt_labels",
    "corrupt_table",
    "decode_image",
    "embedding_rows",
    "embeddings_table",
    "fingerprint",
    "fits_in_memory",
    "holds_embeddings",
    "holds_parts",
    "image_file",
    "images_at_once",
    "letters_table",
    "load_images",
    "omniglot_table",
    "open_images",
    "open_vectors",
    "pixel_features",
    "place",
    "read_corrections",
    "read_embeddings",
    "read_image",
    "read_table",
    "refuse_input",
    "refuse_overwriting",
    "small_cluster",
    "sort_classes",
    "square",
    "storage_blocks",
    "table_fingerprint",
    "vector_batches",
    "with_vectors",
    "write_corrections",
    "write_embeddings",
    "write_relabelled",
    "write_table",
]
