"""The functions that dtool's specification names, used as it describes them."""

from __future__ import annotations

import importlib
from datetime import UTC, datetime, timedelta

import pytest

import sccache_dtool.dtool as package
from dtool import stores

FIRST = stores.identifier("a/first.txt")


@pytest.fixture
def item(dataset):
    return dataset.uri, FIRST


def test_all_of_them_are_importable_from_the_package():
    """Whoever follows the specification imports them by these names."""
    for name in package.__all__:
        assert callable(getattr(importlib.import_module("sccache_dtool.dtool"), name))
    with pytest.raises(AttributeError):
        package.no_such_function  # noqa: B018


def test_the_hooks_lease_around_an_access_and_log_it_once(item):
    """Called as the specification says, they protect the item in between and count one access."""
    assert package.num_times_accessed(*item) == 0
    assert package.last_time_accessed(*item) is None
    package.pre_item_content_abspath(*item)
    assert package.cache_item_lock_counter(*item) == 1
    assert not package.remove_cache_item_safely(*item)
    assert datetime.now(UTC) - package.last_time_accessed(*item) < timedelta(minutes=5)
    package.post_item_content_abspath(*item)
    assert package.cache_item_lock_counter(*item) == 0
    assert package.num_times_accessed(*item) == 1
    assert datetime.now(UTC) - package.last_time_accessed(*item) < timedelta(minutes=5)


def test_the_counter_counts(item):
    """Nested accesses must not release one another."""
    for expected in (1, 2, 3):
        package.increment_cache_item_lock_counter(*item)
        assert package.cache_item_lock_counter(*item) == expected
    for expected in (2, 1, 0, 0):
        package.decrement_cache_item_lock_counter(*item)
        assert package.cache_item_lock_counter(*item) == expected


def test_it_is_one_counter_with_the_plugins(item, dataset):
    """What one way holds the other must not remove."""
    dataset.item_content_abspath(FIRST)
    assert package.cache_item_lock_counter(*item) == 1
    assert not package.remove_cache_item_safely(*item)
    package.increment_cache_item_lock_counter(dataset.uri, "a/first.txt")
    assert package.cache_item_lock_counter(*item) == 2
    package.decrement_cache_item_lock_counter(*item)


def test_an_access_can_be_noted_by_itself(item):
    """The specification has it as a function of its own."""
    package.register_cache_item_access(*item)
    package.register_cache_item_access(*item)
    assert package.num_times_accessed(*item) == 2
    assert package.cache_item_lock_counter(*item) == 0


def test_what_nobody_uses_can_be_removed_and_stays_counted(item):
    """How often an item was used tells whether it was worth keeping, also after it is gone."""
    package.register_cache_item_access(*item)
    assert package.remove_cache_item_safely(*item)
    assert package.num_times_accessed(*item) == 1
