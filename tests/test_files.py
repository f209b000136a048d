"""Arrays that grow on disk: py."""

import numpy as np
import pytest

from transfer.console import BadInput
from transfer.files import ArrayFile, build_or_load_array


def test_an_array_goes_on_at_its_last_whole_block(tmp_path):
    whole = np.random.default_rng(0).normal(size=(23, 4, 3)).astype("float32")
    asked = []

    def produce(starts):
        for start in starts:
            asked.append(start)
            if len(asked) == 4:
                raise KeyboardInterrupt
            yield whole[start : start + 5]

    path = tmp_path / "a.npy"
    array = ArrayFile(path, whole.shape, "float32", "test")
    with pytest.raises(KeyboardInterrupt):
        build_or_load_array(array, produce, 5)
    assert not path.exists()
    with open(tmp_path / "a.npy.part", "ab") as file:
        file.write(b"half a block")
    np.testing.assert_array_equal(build_or_load_array(array, produce, 5), whole)
    assert asked == [0, 5, 10, 15, 15, 20]
    np.testing.assert_array_equal(build_or_load_array(array, produce, 5), whole)  # nothing is asked
    assert len(asked) == 6
    content = path.read_bytes()
    for damaged in (content[:-5], content[:50], b""):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"a\.npy is damaged"):
            build_or_load_array(array, produce, 5)


def test_a_part_of_another_shape_is_begun_anew(tmp_path):
    (tmp_path / "a.npy.part").write_bytes(
        b"\x93NUMPY something else, and longer than the header" * 50
    )
    whole = np.arange(12.0).reshape(6, 2)
    file = ArrayFile(tmp_path / "a.npy", (6, 2), "float64", "test")
    found = build_or_load_array(
        file, lambda starts: (whole[start : start + 4] for start in starts), 4
    )
    np.testing.assert_array_equal(found, whole)
