"""Finds and removes stages that an earlier run made with another configuration, here and in a store."""

from collections.abc import Iterable, Mapping, Sequence

from .executors import PlannedStage
from .storage.manifests import STAGE_FILE, foreign_files, remove_stage
from .storage.remote_stages import RemoteStages


def remove_changed(stages: Sequence[PlannedStage]) -> list[str]:
    """Remove the stages that were made with another configuration, the stages that depend on them, and the stages that
    this curation does not have. Results for single sources that have not changed are kept.

    Returns:
        The names of the removed stages that this curation has.

    Raises:
        ValueError: the folder of a stage contains files that no stage wrote. Then nothing is removed.
    """
    folder_of = {stage.name: stage.folder for stage in stages}
    changed = _changed(stages, {stage.name: stage.folder.record() for stage in stages})
    folder = stages[0].folder.path.parent
    made = sorted(path.parent.name for path in folder.glob(f"*/{STAGE_FILE}") if not path.parent.is_symlink())
    going = _going(stages, changed, made)
    for name in going:
        foreign = foreign_files(folder / name)
        if foreign:
            raise ValueError(
                f"{folder / name} would be made again, but holds {foreign[0]}, which dinov2_hf did not write; move"
                " that away."
            )
    for name in going:
        if name in folder_of:
            folder_of[name].remove()
        else:
            remove_stage(folder / name)
    return changed


def remove_changed_in_store(stages: Sequence[PlannedStage], store: RemoteStages, records: Mapping[str, bytes]) -> None:
    """As `remove_changed`, for the stages of a store and its records. Other files there are kept."""
    folder_of = {stage.name: stage.folder for stage in stages}
    for name in _going(stages, _changed(stages, records), records):
        store.remove(name, keeps=name in folder_of and folder_of[name].keeps(records[name]))


def _changed(stages: Sequence[PlannedStage], records: Mapping[str, bytes | None]) -> list[str]:
    """The stages whose configuration differs from the records, and the stages that depend on them."""
    changed: list[str] = []
    for stage in stages:
        if stage.folder.changes(records.get(stage.name)) or any(need.name in changed for need in stage.needs):
            changed.append(stage.name)
    return changed


def _going(stages: Sequence[PlannedStage], changed: Sequence[str], made: Iterable[str]) -> list[str]:
    """The made stages that changed or no longer exist. The first stages are removed last, so that after a kill the
    difference is still known.
    """
    order = [stage.name for stage in stages]
    going = [name for name in made if name in changed or name not in order]
    return sorted(going, key=lambda name: order.index(name) if name in order else len(order))[::-1]
