"""
Pretrain DINOv2 on images of your own (paper, sections 4 and 5).

    accelerate launch examples/pretrain.py --config vits14_short \\
        --train_data path/to/images --output_dir outputs/my_run

A recipe is a YAML file of names and values; flags of the same names override it, and `--help` lists them. The run
leaves in the output folder: `model/` (what AutoModel loads), `pretraining_model/` (student, teacher and heads),
`checkpoints/`, `metrics.jsonl`, `metrics.json`, `training_curves.png`, `patch_pca.png` and the resolved `recipe.yaml`.
"""

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device, set_seed
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel, pipeline

import dinov2_hf  # noqa: F401  (registers the Auto classes)
from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2ImageProcessor, DINOv2PreTrainingConfig
from dinov2_hf.data import (
    SkippedImageLog,
    build_batches,
    evaluation_split,
    find_image_column,
    first_images,
    load_image_dataset,
    set_max_image_pixels,
)  # fmt: skip
from dinov2_hf.evaluation.classification.labels import match_labels
from dinov2_hf.evaluation.knn import evaluate_knn
from dinov2_hf.options import values_for
from dinov2_hf.output_folders import write_text
from dinov2_hf.pictures.patch_pca import save_patch_pca
from dinov2_hf.pictures.training_curves import draw_curves
from dinov2_hf.public_names import without_secrets
from dinov2_hf.runs.accelerator import build_accelerator
from dinov2_hf.runs.arguments import PreTrainingArguments, recipe_values
from dinov2_hf.runs.description import describe_run
from dinov2_hf.runs.exports import export_models
from dinov2_hf.runs.hub_upload import prepare_upload, push_run
from dinov2_hf.runs.initial_weights import (
    FIXED_FIELDS,
    initialise,
    load_initial_model,
    recipe_of,
    refuse_other_architecture,
)
from dinov2_hf.runs.model_card import card_metadata
from dinov2_hf.runs.output_folder import claimed_folder, start_output_dir
from dinov2_hf.runs.recipe_changes import DATA_SIZES, check_recipe
from dinov2_hf.runs.recipe_checks import check_crops, check_mask_grid
from dinov2_hf.runs.recipes import parse_recipe
from dinov2_hf.runs.state import start_state
from dinov2_hf.runs.summary import format_knn, format_knn_gain, write_summary
from dinov2_hf.training.backends import compute_precision, prepare, resume_launch
from dinov2_hf.training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from dinov2_hf.training.collapse import COLLAPSED_EXIT_CODE, CollapseMonitor, RunCollapsed
from dinov2_hf.training.distributed import choose_attention, end_run, mean_over_processes
from dinov2_hf.training.ema import update_ema
from dinov2_hf.training.monitor import append_metrics, truncate_metrics
from dinov2_hf.training.nonfinite import NonFiniteSteps
from dinov2_hf.training.optimizer import build_optimizer, clip_gradients, parameter_groups, set_schedule
from dinov2_hf.training.preemption import Preemption, count_processes
from dinov2_hf.training.run_stopped import (
    INTERRUPTED_EXIT_CODE,
    RunPreempted,
    RunStopped,
    bad_data_stops_run,
    disk_and_keyboard_stop_run,
    exit_stopped,
)
from dinov2_hf.training.schedules import PreTrainingSchedules, build_schedules, scale_learning_rate
from dinov2_hf.training.sharded_weights import whole_copy
from dinov2_hf.training.step_window import StepWindow, format_progress
from dinov2_hf.training.students import args_of_student, of_student, own_of_student, prefixed, student_folder


KNN_NEIGHBOURS = (10, 20, 100, 200)


@dataclass
class Evaluation:
    """Labelled images that the backbone is measured on while it trains."""

    bank: Dataset
    queries: Dataset
    image_column: str


class PreTrainingPlan:
    """What is particular to a pretraining: what is read from recipe and flags, and the module that is trained."""

    def __init__(self, arguments: list[str]):
        kinds = (PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig])
        self.args, backbone, objective = parse_recipe(arguments, *kinds)
        self.initial = load_initial_model(self.args.init_from) if self.args.init_from else None
        if self.initial is not None:  # whose network is the recipe's, where it says nothing else
            self.args, backbone, objective = parse_recipe(arguments, *kinds, recipe_of(self.initial))
            refuse_other_architecture(self.initial, backbone | objective, self.args.init_from)
        self.recipe = {**backbone, **objective, **recipe_values(self.args)}
        self.fixed = FIXED_FIELDS
        self.config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
        self.has_masks = True
        self.description: dict[str, str] = {}
        check_crops(self.args, self.config)
        check_mask_grid(self.config.backbone_config)

    def build_model(self, accelerator: Accelerator) -> torch.nn.Module:
        attention = choose_attention(self.args.attn_implementation, compute_precision(accelerator), accelerator.device)
        model = DINOv2ForPreTraining._from_config(self.config, attn_implementation=attention)
        if self.initial is not None:
            initialise(model, self.initial)
        self.initial = None  # as large as the backbone, or as all
        return model

    def parameter_groups(self, model: torch.nn.Module) -> list[dict]:
        return parameter_groups(
            model.student,
            num_layers=self.config.backbone_config.num_hidden_layers,
            layerwise_decay=self.args.layerwise_decay,
            patch_embed_lr_multiplier=self.args.patch_embed_lr_multiplier,
        )


def main(arguments: list[str], read_plan=PreTrainingPlan) -> None:
    try:
        with ExitStack() as held:  # the lock of the output folder, until the upload is done
            run(arguments, read_plan, held)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped: Ctrl-C ended the run.\n")
        sys.exit(INTERRUPTED_EXIT_CODE)


def run(arguments: list[str], read_plan, held: ExitStack) -> None:
    try:  # a mistake in recipe, flags or data is one sentence, before anything is computed or written
        plan = read_plan(arguments)
        args, config, recipe = plan.args, plan.config, plan.recipe
        output_dir = Path(args.output_dir)
        accelerator = build_accelerator(args, output_dir)
        checkpoint = held.enter_context(claimed_folder(accelerator, args))
        set_max_image_pixels(args.max_image_pixels)
        dataset = load_image_dataset(
            args.train_data,
            split=args.train_split,
            config_name=args.dataset_config_name,
            image_column=args.image_column,
            streaming=args.streaming,
        )
        evaluation = load_evaluation(args, dataset)
        global_batch_size = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
        )
        peak_learning_rate = scale_learning_rate(args.learning_rate, global_batch_size, args.learning_rate_scaling)
        schedules = build_schedules(peak_learning_rate=peak_learning_rate, **values_for(build_schedules, args))
        state = start_state(args, accelerator.num_processes, checkpoint)
        resume_launch(accelerator, state)
        num_images = None if args.streaming else len(dataset)
        num_eval_images = len(evaluation.queries) if evaluation else None
        sizes = (num_images, num_eval_images, len(evaluation.bank) if evaluation else None)
        check_recipe(
            state,
            recipe,
            dict(zip(DATA_SIZES, sizes, strict=True)),
            fixed=plan.fixed,
            allow_changes=args.allow_recipe_change,
        )
        loader = build_batches(
            dataset,
            args,
            config.backbone_config,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start_sample=state["images_seen"],
            has_masks=plan.has_masks,
            pin_memory=accelerator.device.type == "cuda",
        )
        set_seed(args.seed)  # the same weights on every process
        model = plan.build_model(accelerator)
        students = list(model.students)
        repo_ids = {
            name: prepare_upload(accelerator, args_of_student(args, name), card_metadata(recipe)) for name in students
        }
        for student in model.students.values() if args.gradient_checkpointing else ():
            student.backbone.gradient_checkpointing_enable()
        groups = plan.parameter_groups(model)
        optimizer = build_optimizer(groups, adam_beta1=args.adam_beta1, adam_beta2=args.adam_beta2)
        set_seed(args.seed, device_specific=True)  # but stochastic depth of its own
        model, optimizer = prepare(accelerator, model, optimizer)
        # Where a run starts, in order: its own checkpoint, else `init_from`, else fresh weights.
        if checkpoint:
            load_checkpoint(accelerator, checkpoint)
    except StrictDataclassError as error:  # from a configuration, around the sentence
        sys.exit(f"error: {without_secrets(str(error.__cause__))}")
    except ValueError as error:
        sys.exit(f"error: {without_secrets(str(error))}")

    try:
        with disk_and_keyboard_stop_run():
            if accelerator.is_main_process:
                start_output_dir(output_dir, fresh=checkpoint is None)
                write_text(output_dir / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
                for name in students:
                    truncate_metrics(student_folder(output_dir, name) / "metrics.jsonl", state["step"])
            accelerator.wait_for_everyone()
            suffix = "" if accelerator.is_main_process else f"_{accelerator.process_index}"
            skipped_images = SkippedImageLog(
                output_dir / f"skipped_images{suffix}.jsonl",
                num_images=num_images,
                max_fraction=args.max_skipped_fraction,
            )
            image_processor = build_image_processor(args, config)
            describe_run(
                accelerator, args, model, num_images, global_batch_size, schedules, state["step"], plan.description
            )  # fmt: skip
            if args.report_to != "none":
                accelerator.init_trackers(
                    f"dinov2_{accelerator.unwrap_model(model).task}",
                    {name: str(value) for name, value in recipe.items()},
                )
            counts = {"num_eval_images": num_eval_images or 0, "num_images_per_step": global_batch_size}
            monitors = {name: CollapseMonitor.of_run(state, config, args, **counts, student=name) for name in students}
            with Preemption() as preemption:
                train(
                    accelerator, model, optimizer, loader, schedules, skipped_images, args, state, preemption,
                    lambda: measure(accelerator, model, image_processor, evaluation, args), monitors,
                )  # fmt: skip
            finish(accelerator, model, image_processor, dataset, args, state, recipe)
    except RunCollapsed as collapse:
        draw_curves(accelerator, accelerator.unwrap_model(model), output_dir)
        print(f"\nstopped: {collapse} {collapse.advice(output_dir / 'checkpoints')}", file=sys.stderr)
        end_run(accelerator)
        sys.exit(COLLAPSED_EXIT_CODE)
    except RunStopped as stop:
        exit_stopped(accelerator, stop, list_checkpoints(output_dir / "checkpoints"))
    end_run(accelerator)
    for name, repo_id in repo_ids.items() if accelerator.is_main_process else ():
        if repo_id:
            try:
                print(f"uploaded to {push_run(args_of_student(args, name), repo_id)}")
            except ValueError as error:  # everything is on disk; the exit status says that it is not on the Hub
                sys.exit(f"error: {error}")


def train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loader,
    schedules: PreTrainingSchedules,
    skipped_images: SkippedImageLog,
    args: PreTrainingArguments,
    state: dict,
    preemption: Preemption,
    measure_backbones,
    collapse_monitors: dict[str, CollapseMonitor],
) -> None:
    """The training loop. `state` of `start_state` and what has been measured are brought up to date in place."""
    module = accelerator.unwrap_model(model)
    output_dir = Path(args.output_dir)
    window = StepWindow()
    nonfinite = NonFiniteSteps(
        accelerator, module, state, max_in_a_row=args.max_nonfinite_steps, path=output_dir / "nonfinite_steps.jsonl"
    )

    def record(metrics: dict[str, float]) -> None:
        for name in module.students if accelerator.is_main_process else ():
            own = {"step": state["step"], **of_student(metrics, name)}
            append_metrics(student_folder(output_dir, name) / "metrics.jsonl", own)
        accelerator.log(metrics, step=state["step"])
        for name, monitor in collapse_monitors.items():
            monitor.warn(state["step"], of_student(metrics, name), stop=args.stop_on_collapse)

    def evaluate() -> None:
        with bad_data_stops_run():
            metrics = measure_backbones()
        if metrics:
            record(metrics)
            if state["step"] == 0:
                state["knn_before"] = metrics
            state["knn_after"] = metrics
            for name in module.students:
                line = ", ".join(format_knn(own_of_student(metrics, name)))
                tqdm.write(f"step {state['step']}: {f'{name} ' if name else ''}k-NN {line}", file=sys.stdout)
        window.restart()  # time spent here is not training time

    model.train()
    if state["step"] == 0:
        evaluate()
    progress = tqdm(
        total=args.max_steps,
        initial=state["step"],
        desc=module.task,
        disable=not accelerator.is_local_main_process,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        bar_format="{desc} {percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
    )
    batches = iter(loader)
    for step in range(state["step"], args.max_steps):
        now = schedules.at(step)
        set_schedule(optimizer, now)
        nonfinite.begin()
        for _ in range(args.gradient_accumulation_steps):
            waited = time.perf_counter()
            batch, report = next_batch(batches)
            window.add_wait(time.perf_counter() - waited)
            skipped_images.add(report)
            with accelerator.accumulate(model):
                output = model(
                    **send_to_device(batch, accelerator.device, non_blocking=True),
                    **now.forward_arguments,
                )
                accelerator.backward(output["loss"])
                nonfinite.add(output["loss"], report.row_ids)
                if accelerator.sync_gradients:
                    norms = clip_gradients(
                        accelerator, module.students, args.max_grad_norm, per_part=args.clip_per_part
                    )
                    *bad, num_preempted = count_processes(
                        accelerator, *nonfinite.found(norms), preemption.received is not None
                    )
                    left_out = nonfinite.skip(*bad)
                    if not left_out:
                        optimizer.step()
                optimizer.zero_grad()
            num_images = len(report.row_ids) * accelerator.num_processes
            window.add(output, num_images)
            state["images_seen"] += num_images
        window.end_step(left_out=left_out)
        if not left_out:
            update_ema(module.ema_module, module.student, now.teacher_momentum)

        state["step"] = step + 1
        progress.update()
        if state["step"] % args.logging_steps == 0 or state["step"] == args.max_steps:
            metrics = {**window.means(), **window.feature_statistics(accelerator)}
            metrics = mean_over_processes(accelerator, metrics)
            rates = window.rates()
            progress.set_postfix_str(format_progress(metrics, rates["images_per_second"]), refresh=False)
            record({**metrics, **{name: norm.item() for name, norm in norms.items()}, **now.metrics, **rates,
                    "nonfinite_steps": state["nonfinite_steps"]})  # fmt: skip
            window.restart()
            complaint = skipped_images.complaint(gather_object(list(skipped_images.reasons)), state["images_seen"])
            if complaint:
                raise RunStopped(complaint)
        if state["step"] % args.eval_steps == 0 or state["step"] == args.max_steps:
            evaluate()
        if state["step"] % args.save_steps == 0 or state["step"] == args.max_steps or num_preempted:
            save_checkpoint(accelerator, output_dir / "checkpoints", state, args.save_total_limit)
            draw_curves(accelerator, module, output_dir)
            window.restart()
        if num_preempted:
            raise RunPreempted(
                f"{preemption.received or 'a signal'} asked for it after step {state['step']}, which is saved."
            )
    progress.close()


def next_batch(batches):
    with bad_data_stops_run():
        return next(batches)


def load_evaluation(args: PreTrainingArguments, train_dataset) -> Evaluation | None:
    """Bank and queries of the k-NN classifier, when `eval_data` is given."""
    if args.eval_data is None:
        return None
    split = args.eval_split or evaluation_split(args.eval_data)
    queries = load_image_dataset(args.eval_data, split=split, image_column=args.image_column)
    bank = train_dataset
    if args.eval_bank_data is not None:
        bank = load_image_dataset(args.eval_bank_data, split=args.eval_bank_split, image_column=args.image_column)
    elif args.streaming or args.label_column not in train_dataset.column_names:
        raise ValueError(
            f"`eval_data` is {args.eval_data}, but `train_data` has no `{args.label_column}` column that could be held"
            " against it (a stream never has); give labelled images as --eval_bank_data."
        )
    image_column, bank_column = find_image_column(queries, args.image_column), find_image_column(bank)
    if bank_column != image_column:
        bank = bank.rename_column(bank_column, image_column)
    bank = bank.select(range(min(len(bank), args.max_eval_bank_images or len(bank))))
    queries = queries.select(range(min(len(queries), args.max_eval_images or len(queries))))
    match_labels(bank, queries, args.label_column)  # or it would complain in the middle of the run
    return Evaluation(bank, queries, image_column)


def measure(
    accelerator: Accelerator,
    model: torch.nn.Module,
    image_processor: DINOv2ImageProcessor,
    evaluation: Evaluation | None,
    args: PreTrainingArguments,
) -> dict[str, float]:
    """
    k-NN accuracies of each backbone as it would be exported now; the main process measures, the others wait.

    In float32 whatever the run trains in, as `dinov2-hf evaluate` measures the exported model.
    """
    metrics = {}
    for name, average in accelerator.unwrap_model(model).averages.items() if evaluation is not None else ():
        backbone = whole_copy(average.backbone, keep=accelerator.is_main_process)
        if backbone is None:
            continue
        neighbours = [k for k in KNN_NEIGHBOURS if k <= len(evaluation.bank)]
        accuracies = evaluate_knn(
            backbone,
            evaluation.bank,
            evaluation.queries,
            image_processor,
            image_column=evaluation.image_column,
            label_column=args.label_column,
            ks=neighbours or (len(evaluation.bank),),
            batch_size=args.per_device_eval_batch_size,
            device=accelerator.device,
            num_workers=args.dataloader_num_workers,
            findings={},  # its notes are about numbers of neighbours, which are no choice of the user's here
        )
        metrics |= prefixed(accuracies, name)
    accelerator.wait_for_everyone()
    return metrics


def build_image_processor(args: PreTrainingArguments, config: DINOv2PreTrainingConfig) -> DINOv2ImageProcessor:
    """For the recipe's resolution: the backbone's `image_size` after the usual margin of 256 / 224."""
    image_size = config.backbone_config.image_size
    return DINOv2ImageProcessor(
        size={"shortest_edge": args.eval_resize_size or round(image_size * 256 / 224)},
        crop_size={"height": image_size, "width": image_size},
        image_mean=args.image_mean,
        image_std=args.image_std,
        do_convert_rgb=config.backbone_config.num_channels == 3,
    )


def finish(
    accelerator: Accelerator,
    model: torch.nn.Module,
    image_processor: DINOv2ImageProcessor,
    dataset,
    args: PreTrainingArguments,
    state: dict,
    recipe: dict,
) -> None:
    """Export the models, draw the pictures, load the results as a user would, and say what came out."""
    output_dir = Path(args.output_dir)
    model_folders = export_models(accelerator, model, image_processor, output_dir, state, recipe)
    for name, model_folder in model_folders.items() if accelerator.is_main_process else ():
        folder = student_folder(output_dir, name)
        write_summary(folder, state, name)
        backbone = AutoModel.from_pretrained(model_folder)
        images = first_images(
            dataset, find_image_column(dataset, args.image_column), count=8, num_channels=backbone.config.num_channels
        )
        save_patch_pca(
            backbone,
            images,
            AutoImageProcessor.from_pretrained(model_folder),
            folder / "patch_pca.png",
            image_size=picture_size(backbone.config),
            device=accelerator.device,
        )
        print(f"\n{format_knn_gain(state, args.eval_data, name)}", end="")
        if backbone.config.num_channels == 3:  # which is what a pipeline reads
            extract = pipeline("image-feature-extraction", model=str(model_folder), device=accelerator.device)
            features = extract(images[0], return_tensors=True)
            print(f'pipeline("image-feature-extraction", model="{model_folder}") returns {tuple(features.shape)}')
        print(f"curves and pictures: {folder / 'training_curves.png'}, {folder / 'patch_pca.png'}")


def picture_size(config: DINOv2Config) -> int:
    """Input size that gives a picture of patches some detail: at least 16 patches a side."""
    return max(config.image_size, 16 * config.patch_size)


if __name__ == "__main__":
    main(sys.argv[1:])
