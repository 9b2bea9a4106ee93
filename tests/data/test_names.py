import pickle

import numpy as np
import pyarrow as pa
import pytest

from prism_dml.data.names import Names, take_names

TEXTS = ["b", "", "ä", "b"]


def test_is_a_sequence_of_texts():
    names = Names(pa.chunked_array([TEXTS[:1], TEXTS[1:]]))
    assert list(names) == TEXTS and names[-2] == "ä" and names[np.int64(0)] == "b"
    assert names == TEXTS and names == TEXTS and names == pickle.loads(pickle.dumps(names))
    assert names != TEXTS[:3] and names != [*TEXTS[:3], "c"] and names != 1
    assert "ä" in names and names.index("ä") == 2 and names[1:3] == ["", "ä"]
    with pytest.raises(IndexError):
        names[4]


def test_taken_and_converted():
    names = Names(pa.array(TEXTS))
    assert take_names(names, np.array([2, 0])) == ["ä", "b"] == take_names(TEXTS, np.array([2, 0]))
    assert np.array(names).tolist() == TEXTS and pa.array(names, pa.string()).to_pylist() == TEXTS


def test_a_million_take_little_more_than_their_letters():
    names = Names(pa.array(np.arange(10**6)).cast(pa.string()))
    assert names._texts.nbytes < 15 * 10**6
