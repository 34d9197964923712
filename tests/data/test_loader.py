"""How far images are read ahead, and in which order."""

import threading
import time

import numpy as np
import pytest

from deblur_mae_jax.data.index import Index
from deblur_mae_jax.data.loader import Loader, stream
from deblur_mae_jax.data.order import Order
from deblur_mae_jax.data.source import BadImage, Source

COUNT = 500


def loader(read, extras=None):
    source = Source([str(i) for i in range(COUNT)], read)
    return Loader(Index(source, np.full((COUNT, 2), 4, np.int32), [], "x", [""] * COUNT), 1, extras)


@pytest.mark.parametrize("batch_size", [7, 32, 100])
def test_two_batches_are_read_ahead_and_not_more(batch_size):
    """The buffer of Grain counts what it is given: of whole batches it would hold the memory of hundreds."""
    begun, lock = [], threading.Lock()

    def read(number):
        with lock:
            begun.append(number)
        return np.full((4, 4, 1), number % 256, np.uint8)

    order = Order(COUNT, batch_size, 0)
    batches = stream(loader(read), order, start_step=3, num_steps=1000, rows=np.arange(batch_size), num_threads=4)
    first = next(batches)
    np.testing.assert_array_equal(
        first["image"][:, 0, 0, 0], [order(3 * batch_size + i) % 256 for i in range(batch_size)]
    )
    known = -1
    while known != len(begun):  # until nothing is read any more
        known = len(begun)
        time.sleep(0.3)
    assert known <= 4 * batch_size + 4 * 16
    second = next(batches)
    np.testing.assert_array_equal(
        second["image"][:, 0, 0, 0], [order(4 * batch_size + i) % 256 for i in range(batch_size)]
    )


def test_many_unreadable_images_are_listed_once_each():
    def read(number):
        if number % 2:
            raise BadImage("damaged")
        return np.full((4, 4, 1), number % 256, np.uint8)

    listed = []
    reader = loader(read)
    reader.on_failure = listed.append
    for number in (1, 1, 3, 499):
        assert reader.read(number)[0] == (number + 1) % COUNT
    assert [item.name for item in listed] == ["1", "3", "499"]
