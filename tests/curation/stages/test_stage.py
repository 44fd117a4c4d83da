"""What `@stage` makes of a function: where it is put, what it reads, and that no image can be lost by it."""

import pickle

import numpy as np
import pytest

from dinov2_hf.curation import Dropped, stage
from dinov2_hf.curation.plan import plan
from dinov2_hf.curation.unread_options import refuse_unread_options


@stage("later", title="later", after="semdedup_of_this_test")
def later(curation, shard):
    return Dropped(np.empty(0, np.int64), "")


@stage("semdedup_of_this_test", title="other", after="deduplicate")
def earlier(curation, shard, *, share: float = 0.5, hierarchy_resamplings: int):
    return Dropped(curation.left()[0][-1:], "the last one")


@stage("drops_foreign", title="other")
def drops_foreign(curation, shard, *, row_ids):
    return Dropped(np.array(row_ids), "because")


@stage("says_so_only", title="other", writes_left=True)
def says_so_only(curation, shard):
    """It says that it writes what it leaves, and does not."""
    return Dropped(curation.left()[0][:1], "because")


def named(*functions, **options):
    return [{f"{__name__}:{function}": options} for function in functions]


def test_stages_are_put_after_those_that_they_follow(planted):
    names = [one.name for one in plan(planted.arguments(stages=named("earlier", "later")))[1]]
    assert names[names.index("deduplicate") + 1 :][:2] == ["semdedup_of_this_test", "later"]
    without = [one.name for one in plan(planted.arguments(benchmarks=[], stages=named("says_so_only")))[1]]
    assert without[without.index("deduplicate") + 1] == "says_so_only"  # where it follows one that is not there
    with pytest.raises(ValueError, match="a stage 'later' after 'semdedup_of_this_test', which there is not"):
        plan(planted.arguments(stages=named("later")))


def test_what_it_reads_decides_what_follows(planted):
    """Options of its own, and fields of the recipe by name; what follows a changed stage is made again too."""

    def hashes(options, **changes):
        _, stages = plan(planted.arguments(stages=named("earlier", **options), **changes))
        return {one.name: one.folder.config_hash for one in stages}

    before = hashes({"share": 0.2})
    for after in (hashes({"share": 0.3}), hashes({"share": 0.2}, hierarchy_resamplings=5)):
        assert before["deduplicate"] == after["deduplicate"]
        for name in ("semdedup_of_this_test", "search_benchmarks", "select", "report"):
            assert before[name] != after[name]
    with pytest.raises(ValueError, match="the stage 'drops_foreign' needs the option 'row_ids'"):
        plan(planted.arguments(stages=named("drops_foreign")))


def test_a_field_that_it_reads_is_read(planted):
    with pytest.raises(ValueError, match="--hierarchy_resamplings has no effect here"):
        refuse_unread_options(planted.arguments(), ["hierarchy_resamplings"])
    refuse_unread_options(planted.arguments(stages=named("earlier")), ["hierarchy_resamplings"])


def test_it_goes_to_other_processes_by_its_name(planted):
    _, stages = plan(planted.arguments(stages=named("earlier")))
    for one in pickle.loads(pickle.dumps(stages)):
        assert one.write_shard.func.__self__.name == one.name
    assert pickle.loads(pickle.dumps(earlier)) is earlier


@pytest.mark.parametrize("row_ids", [[0, 0], [1], [14]])
def test_an_image_is_dropped_once_of_those_that_are_left(planted, row_ids):
    """1 went as a copy of 0, and 14 is of a benchmark."""
    with pytest.raises(ValueError, match="'drops_foreign' drops 1 images that are not in the pool .* twice .row ids"):
        planted.curate(stages=named("drops_foreign", row_ids=row_ids))


def test_a_stage_that_loses_count_stops_the_run(planted):
    with pytest.raises(ValueError, match="1 of 12 images of the source 'pool' are both in the dataset and dropped"):
        planted.curate(stages=named("says_so_only"))
    assert not (planted.folder / "out" / "report.json").exists()
