"""
The recipe `cifar10_vit_tiny`, made as short as the time that is left, with its k-NN before and after.

A few steps are timed first. The lengths of all schedules keep their shares of the run.
"""

from .part import NotMeasured, Rows, Work
from .toy_recipe import TOY
from .watched_run import watch_run


PILOT_SECONDS, PILOT_STEPS = 25, 60
# What is not training, in seconds: the start, three evaluations, the end.
OVERHEAD_SECONDS = 40
FULL_STEPS = 39_000
SCHEDULES = {"warmup_steps": 2000, "freeze_last_layer_steps": 200, "teacher_temperature_warmup_steps": 4000}


def measure(work: Work) -> None:
    if not work.cifar10:
        raise NotMeasured("no folder was named by `--cifar10`; it holds train.parquet and test.parquet.")
    recipe = ["--config", "cifar10_vit_tiny", "--train_data", f"{work.cifar10}/train.parquet"]
    recipe += ["--save_steps", str(FULL_STEPS)]
    recipe += [*TOY, "--dataloader_num_workers", "0", "--logging_steps", "1"] if work.toy else []
    max_steps = 4 if work.toy else steps_that_fit(recipe, work)
    work.record("plan", {"steps": max_steps, "passes_over_the_images": max_steps * 256 / 50_000})
    recipe += ["--eval_data", f"{work.cifar10}/test.parquet", "--eval_steps", str(max(max_steps // 2, 1))]
    for name, value in {"max_steps": max_steps, **shortened(max_steps)}.items():
        recipe += [f"--{name}", str(value)]
    for row in watch_run(recipe, work.folder / "cifar10", work.seconds_left, work.device):
        accuracies = {name: value for name, value in row.items() if name.startswith("knn_")}
        if accuracies:
            work.record(f"step {row['step']}", accuracies)
            if row["step"] == max_steps:
                break  # the rest of the run is files
        else:
            names = ("step", "loss", "images_per_second", "data_wait_share")
            work.record("last line", {name: row[name] for name in names})


def steps_that_fit(recipe: list[str], work: Work) -> int:
    flags = [*recipe, "--max_steps", str(FULL_STEPS), "--logging_steps", "10"]
    steps_per_second = None
    for row in watch_run(flags, work.folder / "pilot", PILOT_SECONDS, work.device):
        steps_per_second = row["images_per_second"] / 256
        if row["step"] >= PILOT_STEPS:
            break
    if steps_per_second is None:
        raise NotMeasured(f"the run took no ten steps in {PILOT_SECONDS} seconds.")
    seconds = work.seconds_left - OVERHEAD_SECONDS
    if seconds < 10:
        raise NotMeasured("no time was left for the training.")
    return min(int(seconds * steps_per_second), FULL_STEPS)


def shortened(max_steps: int) -> dict[str, int]:
    """The lengths of the recipe's schedules in a run of so many steps."""
    return {name: length * max_steps // FULL_STEPS for name, length in SCHEDULES.items()}


def draw(figure, rows: Rows) -> None:
    curve = {int(name.removeprefix("step ")): row for name, row in rows.items() if name.startswith("step ")}
    axes = figure.subplots()
    for key in sorted({key for row in curve.values() for key in row if "top1" in key}):
        axes.plot(list(curve), [row.get(key) for row in curve.values()], marker="o", label=key)
    axes.set_xlabel("step of 256 images")
    axes.set_ylabel("k-NN accuracy on CIFAR-10")
    axes.set_ylim(0, 1)
    if curve:
        axes.legend(fontsize=8)
