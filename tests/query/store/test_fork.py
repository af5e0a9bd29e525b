"""An open atlas for several threads: a fork each, which answers as the atlas does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import paramdex
from paramdex import Atlas, AtlasError, QueryError
from paramdex.store.everything import Everything
from paramdex_schemas.contents import read_contents


@pytest.mark.waits
def test_forks_answer_at_the_same_time_as_the_atlas_does(atlas: Atlas) -> None:
    addresses = [f"gpt2-a/L{layer}/ff_value/{i}" for layer in (0, 1) for i in range(12)]

    def ask(one: Atlas, address: str) -> list[list[dict]]:
        return [one.show(address).to_rows(), one.similar(address, 3, model="bert").to_rows()]

    expected = [ask(atlas, address) for address in addresses]
    forks = [atlas.fork() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = [
            threads.submit(lambda fork, part: [ask(fork, address) for address in part], fork, addresses[n::4])
            for n, fork in enumerate(forks)
        ]
    for n, part in enumerate(found):
        assert part.result() == expected[n::4]


@pytest.mark.waits
def test_threads_that_share_an_atlas_wait_for_each_other(small_atlas: Path) -> None:
    """What was found of one question is not taken for another's, and nothing is called damaged."""
    with paramdex.open(small_atlas) as atlas:
        asks = [
            lambda one: one.show("gpt2-a/L0/ff_value/1"),
            lambda one: one.show("gpt2-a/L0/H1"),
            lambda one: one.find("food"),
            lambda one: one.search("food"),
            lambda one: one.similar("gpt2-a/L0/ff_key/1", model="all"),
            lambda one: one.sql("SELECT address, rank, score FROM parameter_tokens ORDER BY ALL LIMIT 500"),
        ]
        expected = [ask(atlas).to_rows() for ask in asks]
        with ThreadPoolExecutor(6) as threads:
            found = [threads.submit(lambda ask: ask(atlas).to_rows(), ask) for _ in range(10) for ask in asks]
        assert [each.result() for each in found] == 10 * expected


@pytest.mark.waits
def test_a_fork_waits_for_no_question(small_atlas: Path) -> None:
    """It is made, and answers, while the atlas is busy with a query that never ends."""
    with paramdex.open(small_atlas) as atlas, ThreadPoolExecutor(1) as thread:
        long = thread.submit(atlas.sql, "SELECT count(*) FROM range(10000000) AS a, range(10000000) AS b")
        try:
            everything = atlas.database.everything
            while everything._lock.acquire(blocking=False):  # until the query has it
                everything._lock.release()
            fork = atlas.fork()
            assert len(fork.show("gpt2-a/L0/ff_key/1", 3)) == 6
            assert not long.done()
        finally:
            atlas.database.interrupt()
        with pytest.raises(QueryError, match="interrupted: another thread"):
            long.result()


def test_a_fork_of_a_fork_outlives_it(small_atlas: Path) -> None:
    with paramdex.open(small_atlas) as atlas:
        first = atlas.fork()
        second = first.fork()
        first.close()
        assert len(second.show("gpt2-a/L0/ff_key/1", 3)) == 6
    with pytest.raises(AtlasError, match="has been closed"):
        second.fork()


def test_closing_a_fork_closes_no_other_and_closing_the_atlas_all(small_atlas: Path) -> None:
    atlas = paramdex.open(small_atlas)
    first, second = atlas.fork(), atlas.fork()
    first.close()
    for one in (atlas, second):
        assert len(one.show("gpt2-a/L0/ff_key/1", 3)) == 6
    atlas.close()
    for one in (atlas, first, second):
        for ask in (lambda one: one.show("gpt2-a/L0/ff_key/1"), lambda one: one.sql("SELECT 1")):
            with pytest.raises(AtlasError, match="has been closed"):
                ask(one)


def test_settings_are_duckdbs_own_and_open_no_fence(small_atlas: Path) -> None:
    everything = Everything(read_contents(small_atlas), {"threads": "1", "temp_directory": "/tmp"})
    sql = "SELECT map_from_entries(list((name, value))) FROM duckdb_settings()"
    ((settings,),) = everything.connection.execute(sql).fetchall()
    assert (settings["threads"], settings["temp_directory"]) == ("1", "")
    assert (settings["enable_external_access"], settings["lock_configuration"]) == ("false", "true")
    everything.close()
