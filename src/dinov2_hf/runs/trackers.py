"""Where curves go besides the output folder: an experiment tracker that Accelerate knows and that is installed."""

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType


def find_tracker(report_to: str) -> str | None:
    """
    What `Accelerator(log_with=...)` is to be given for `report_to`: `None` for `"none"`.

    Raises:
        `ValueError`: for a name that Accelerate does not know, or a tracker that is not installed.
    """
    if report_to == "none":
        return None
    known = LoggerType.list()
    if report_to not in known:
        raise ValueError(f'`report_to` is "{report_to}"; it must be "none" or one of {", ".join(known)}.')
    installed = [str(tracker) for tracker in get_available_trackers()]
    if report_to != "all" and report_to not in installed:
        raise ValueError(
            f"`report_to` is {report_to}, which is no tracker that is installed here; install its package, or choose"
            f" one of: {', '.join(['none', *installed])}."
        )
    return report_to
