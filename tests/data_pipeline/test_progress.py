from data_pipeline.common.progress import counted


def test_what_is_counted_has_its_plural() -> None:
    assert [counted(n, "shard") for n in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
