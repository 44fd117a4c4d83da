"""
Pretrain DINOv2 on images of your own (paper, sections 4 and 5).

    accelerate launch examples/pretrain.py --config examples/recipes/vits14_short.yaml \\
        --train_data path/to/images --output_dir outputs/my_run

A recipe is a YAML file of names and values; flags of the same names override it, and `--help` lists them. The run
leaves in the output folder: `model/` (what AutoModel loads), `pretraining_model/` (student, teacher and heads),
`checkpoints/`, `metrics.jsonl`, `metrics.json`, `training_curves.png`, `patch_pca.png` and the resolved `recipe.yaml`.
"""

import json
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, pipeline
from transformers.utils import logging as transformers_logging

import dinov2_hf  # noqa: F401  (registers the Auto classes)
from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2ImageProcessor, DINOv2PreTrainingConfig
from dinov2_hf.data import (
    MultiCropTransform,
    PreTrainingCollator,
    SkippedImageLog,
    build_loader,
    find_image_column,
    first_images,
    load_image_dataset,
    reference_mask_generator,
)
from dinov2_hf.evaluation.knn import evaluate_knn
from dinov2_hf.evaluation.visualization import save_patch_pca
from dinov2_hf.training.arguments import PreTrainingArguments, parse_recipe, values_for
from dinov2_hf.training.checkpoints import load_checkpoint, read_state, save_checkpoint
from dinov2_hf.training.distributed import choose_attention, choose_mixed_precision, mean_over_processes
from dinov2_hf.training.ema import update_ema
from dinov2_hf.training.exports import export_models
from dinov2_hf.training.monitor import append_metrics, plot_training_curves, truncate_metrics
from dinov2_hf.training.optimizer import build_optimizer, clip_gradients, parameter_groups, set_schedule
from dinov2_hf.training.output_folder import find_start, start_output_dir
from dinov2_hf.training.schedules import PreTrainingSchedules, build_schedules, scale_learning_rate
from dinov2_hf.training.step_window import StepWindow, format_progress


logger = logging.getLogger("pretrain")
KNN_NEIGHBOURS = (10, 20, 100, 200)
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Evaluation:
    """Labelled images that the backbone is measured on while it trains."""

    bank: Dataset
    queries: Dataset
    image_column: str


def main(arguments: list[str]) -> None:
    try:  # a mistake in recipe, flags or data is one sentence, before anything is computed
        args, backbone_values, objective_values = parse_recipe(
            arguments, PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig]
        )
        config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone_values), **objective_values)
        output_dir = Path(args.output_dir)
        checkpoint = find_start(output_dir, args.resume_from_checkpoint, args.overwrite_output_dir)
        check_crops(args, config)
        accelerator = build_accelerator(args, output_dir)
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
        schedules = build_schedules(
            peak_learning_rate=scale_learning_rate(args.learning_rate, global_batch_size, args.learning_rate_scaling),
            **values_for(build_schedules, args),
        )
        state = read_state(checkpoint) if checkpoint else {"step": 0}
        loader = build_loader(
            dataset,
            find_image_column(dataset, args.image_column),
            MultiCropTransform(
                global_crop_size=config.backbone_config.image_size, **values_for(MultiCropTransform, args)
            ),
            PreTrainingCollator(
                reference_mask_generator(config.backbone_config.image_size, config.backbone_config.patch_size),
                **values_for(PreTrainingCollator, args),
            ),
            batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start_batch=state["step"] * args.gradient_accumulation_steps,
            num_workers=args.dataloader_num_workers,
            sample_order=args.sample_order,
            shuffle_buffer_size=args.shuffle_buffer_size,
            pin_memory=accelerator.device.type == "cuda",
        )
    except StrictDataclassError as error:  # from a configuration, around the sentence
        sys.exit(f"error: {error.__cause__}")
    except ValueError as error:
        sys.exit(f"error: {error}")

    accelerator.wait_for_everyone()  # nobody may write before everybody has looked at the output folder
    recipe = yaml.safe_dump({**backbone_values, **objective_values, **asdict(args)}, sort_keys=False)
    if accelerator.is_main_process:
        start_output_dir(output_dir, fresh=checkpoint is None)
        (output_dir / "recipe.yaml").write_text(recipe)
    set_seed(args.seed)  # the same weights on every process
    model = DINOv2ForPreTraining._from_config(
        config,
        attn_implementation=choose_attention(
            args.attn_implementation, accelerator.mixed_precision, accelerator.device
        ),
    )
    if args.gradient_checkpointing:
        model.student.backbone.gradient_checkpointing_enable()
    groups = parameter_groups(
        model.student,
        num_layers=config.backbone_config.num_hidden_layers,
        layerwise_decay=args.layerwise_decay,
        patch_embed_lr_multiplier=args.patch_embed_lr_multiplier,
    )
    optimizer = build_optimizer(groups, adam_beta1=args.adam_beta1, adam_beta2=args.adam_beta2)
    set_seed(args.seed, device_specific=True)  # but stochastic depth of its own
    model, optimizer = accelerator.prepare(model, optimizer)
    # Where a run starts, in order: its own checkpoint, else fresh weights.
    if checkpoint:
        load_checkpoint(accelerator, checkpoint)
        if accelerator.is_main_process:
            truncate_metrics(output_dir / "metrics.jsonl", state["step"])

    num_images = None if args.streaming else len(dataset)
    skipped_images = SkippedImageLog(
        output_dir / "skipped_images.jsonl", num_images=num_images, max_fraction=args.max_skipped_fraction
    )
    image_processor = build_image_processor(args, config)
    describe_run(accelerator, args, model, num_images, global_batch_size, schedules, state["step"])
    if args.report_to != "none":
        accelerator.init_trackers("dinov2_pretraining", flat_values(asdict(args)))
    try:
        train(
            accelerator, model, optimizer, loader, schedules, skipped_images, args, state,
            lambda: measure(accelerator, model, image_processor, evaluation, args),
        )  # fmt: skip
    except RunStopped as stop:
        accelerator.end_training()
        sys.exit(f"stopped: {stop} Continue with --resume_from_checkpoint latest.")
    accelerator.end_training()
    finish(accelerator, model, image_processor, dataset, args, state, recipe)


class RunStopped(Exception):
    """A run that cannot go on; its message says why, and what is left."""


def train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loader,
    schedules: PreTrainingSchedules,
    skipped_images: SkippedImageLog,
    args: PreTrainingArguments,
    state: dict,
    measure_backbone,
) -> None:
    """The training loop. `state` holds `step` and what has been measured, and is brought up to date in place."""
    module = accelerator.unwrap_model(model)
    output_dir = Path(args.output_dir)
    window = StepWindow()

    def record(metrics: dict[str, float]) -> None:
        if accelerator.is_main_process:
            append_metrics(output_dir / "metrics.jsonl", {"step": state["step"], **metrics})
        accelerator.log(metrics, step=state["step"])

    def evaluate() -> None:
        metrics = measure_backbone()
        if metrics:
            record(metrics)
            state.setdefault("knn_before", metrics)
            state["knn_after"] = metrics
            tqdm.write(f"step {state['step']}: k-NN " + ", ".join(format_knn(metrics)), file=sys.stdout)
        window.restart()  # time spent here is not training time

    model.train()
    if state["step"] == 0:
        evaluate()
    progress = tqdm(
        total=args.max_steps,
        initial=state["step"],
        desc="pretraining",
        disable=not accelerator.is_local_main_process,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        bar_format="{desc} {percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
    )
    batches = iter(loader)
    for step in range(state["step"], args.max_steps):
        now = schedules.at(step)
        set_schedule(optimizer, now)
        for _ in range(args.gradient_accumulation_steps):
            waited = time.perf_counter()
            batch, report = next(batches)
            window.add_wait(time.perf_counter() - waited)
            skipped_images.add(report)
            if skipped_images.too_many:
                raise RunStopped(skipped_images.complaint)
            with accelerator.accumulate(model):
                output = model(
                    **send_to_device(batch, accelerator.device, non_blocking=True),
                    teacher_temperature=now.teacher_temperature,
                )
                stop_if_not_finite(accelerator, "loss", output.loss, report.row_ids, step, output_dir)
                accelerator.backward(output.loss)
                if accelerator.sync_gradients:
                    norms = clip_gradients(
                        accelerator, module.student, args.max_grad_norm, per_part=args.clip_per_part
                    )
                    if accelerator.scaler is None:  # fp16's scaler skips such steps by itself
                        norm = torch.tensor(sum(norms.values()), device=accelerator.device)
                        stop_if_not_finite(accelerator, "gradient norm", norm, report.row_ids, step, output_dir)
                optimizer.step()
                optimizer.zero_grad()
            window.add(output, num_images=len(report.row_ids) * accelerator.num_processes)
        update_ema(module.ema_module, module.student, now.teacher_momentum)

        state["step"] = step + 1
        progress.update()
        if state["step"] % args.logging_steps == 0 or state["step"] == args.max_steps:
            metrics = mean_over_processes(accelerator, window.means())
            rates = window.rates()
            progress.set_postfix_str(format_progress(metrics, rates["images_per_second"]), refresh=False)
            record({**metrics, **norms, **asdict(now), **rates})
            window.restart()
        if state["step"] % args.eval_steps == 0 or state["step"] == args.max_steps:
            evaluate()
        if state["step"] % args.save_steps == 0 or state["step"] == args.max_steps:
            save_checkpoint(accelerator, output_dir / "checkpoints", state, args.save_total_limit)
            draw_curves(accelerator, module, output_dir)
            window.restart()
    progress.close()


def stop_if_not_finite(
    accelerator: Accelerator, name: str, value: torch.Tensor, row_ids: list[str], step: int, output_dir: Path
) -> None:
    """Stop before a NaN or infinite loss or gradient reaches the weights, on all processes together."""
    finite = torch.isfinite(value.detach()).float()
    if accelerator.num_processes > 1:
        finite = accelerator.reduce(finite, reduction="sum") / accelerator.num_processes
    if finite.item() < 1:
        raise RunStopped(
            f"the {name} is {value.item()} at step {step} on process {accelerator.process_index}, for the images"
            f" {', '.join(row_ids)}; checkpoints in {output_dir / 'checkpoints'} are from before and intact."
        )


def check_crops(args: PreTrainingArguments, config: DINOv2PreTrainingConfig) -> None:
    patch_size = config.backbone_config.patch_size
    if args.num_local_crops and args.local_crop_size % patch_size:
        raise ValueError(
            f"`local_crop_size` is {args.local_crop_size}, which is not a multiple of `patch_size` ({patch_size});"
            f" the nearest that fits is {max(1, round(args.local_crop_size / patch_size)) * patch_size}."
        )
    if args.per_device_train_batch_size < 2 and config.koleo_loss_weight > 0:
        raise ValueError(
            "`per_device_train_batch_size` is 1, but KoLeo compares the images of a device with each other; use at"
            " least 2, or set `koleo_loss_weight` to 0."
        )


def build_accelerator(args: PreTrainingArguments, output_dir: Path) -> Accelerator:
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=choose_mixed_precision(
            args.mixed_precision, os.environ.get("ACCELERATE_MIXED_PRECISION", ""), not torch.cuda.is_available()
        ),
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=str(output_dir / "trackers"),
        step_scheduler_with_optimizer=False,
    )
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        level=logging.INFO if accelerator.is_main_process else logging.ERROR,
        stream=sys.stdout,
    )
    for name in ("httpx", "datasets", "huggingface_hub", "accelerate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    return accelerator


def load_evaluation(args: PreTrainingArguments, train_dataset) -> Evaluation | None:
    """Bank and queries of the k-NN classifier, when `eval_data` is given."""
    if args.eval_data is None:
        return None
    queries = load_image_dataset(args.eval_data, split=args.eval_split, image_column=args.image_column)
    bank = train_dataset
    if args.eval_bank_data is not None:
        bank = load_image_dataset(args.eval_bank_data, split=args.eval_bank_split, image_column=args.image_column)
    elif args.streaming or args.label_column not in train_dataset.column_names:
        raise ValueError(
            f"`eval_data` is {args.eval_data}, but `train_data` has no `{args.label_column}` column that could be held"
            " against it (a stream never has); give labelled images as --eval_bank_data."
        )
    if args.label_column not in queries.column_names:
        raise ValueError(
            f"`label_column` is {args.label_column}, which {args.eval_data} does not have; its columns are"
            f" {', '.join(queries.column_names)}."
        )
    bank = bank.select(range(min(len(bank), args.max_eval_bank_images or len(bank))))
    queries = queries.select(range(min(len(queries), args.max_eval_images or len(queries))))
    return Evaluation(bank, queries, find_image_column(queries, args.image_column))


def measure(
    accelerator: Accelerator,
    model: torch.nn.Module,
    image_processor: DINOv2ImageProcessor,
    evaluation: Evaluation | None,
    args: PreTrainingArguments,
) -> dict[str, float]:
    """k-NN accuracies of the backbone as it would be exported now; the main process measures, the others wait."""
    metrics = {}
    if evaluation is not None and accelerator.is_main_process:
        neighbours = [k for k in KNN_NEIGHBOURS if k <= len(evaluation.bank)]
        metrics = evaluate_knn(
            accelerator.unwrap_model(model).ema_module.backbone,
            evaluation.bank,
            evaluation.queries,
            image_processor,
            image_column=evaluation.image_column,
            label_column=args.label_column,
            ks=neighbours or (len(evaluation.bank),),
            batch_size=args.per_device_eval_batch_size,
            device=accelerator.device,
            autocast_dtype=AUTOCAST_DTYPES.get(accelerator.mixed_precision),
        )
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
    )


def describe_run(
    accelerator: Accelerator,
    args: PreTrainingArguments,
    model: torch.nn.Module,
    num_images: int | None,
    global_batch_size: int,
    schedules: PreTrainingSchedules,
    start_step: int,
) -> None:
    student = accelerator.unwrap_model(model).student
    sizes = [
        f"{name} {sum(p.numel() for p in part.parameters()) / 1e6:.2f}M" for name, part in student.named_children()
    ]
    images, passes = "a stream", ""
    if num_images is not None:
        images = f"{num_images:,}"
        passes = f", {args.max_steps * global_batch_size / num_images:.1f} passes over the data"
    device = str(accelerator.device)
    if accelerator.device.type == "cpu":
        device = f"cpu, {torch.get_num_threads()} of {os.cpu_count()} threads"
        if torch.get_num_threads() < os.cpu_count() // accelerator.num_processes:
            device += " (accelerate launch --num_cpu_threads_per_process sets them)"
    lines = {
        "images": f"{images} from {args.train_data}",
        "student": ", ".join(sizes),
        "global batch": f"{global_batch_size} = {args.per_device_train_batch_size} per device"
        f" x {args.gradient_accumulation_steps} accumulated x {accelerator.num_processes} processes",
        "steps": f"{start_step} of {args.max_steps}{passes}",
        "peak learning rate": f"{schedules.learning_rate.base:.4g} = {args.learning_rate:.4g}"
        f" scaled by {args.learning_rate_scaling}",
        "precision": accelerator.mixed_precision,
        "device": device,
        "output": args.output_dir,
    }
    logger.info("***** Pretraining *****")
    for name, text in lines.items():
        logger.info("  %-19s %s", name, text)


def finish(
    accelerator: Accelerator,
    model: torch.nn.Module,
    image_processor: DINOv2ImageProcessor,
    dataset,
    args: PreTrainingArguments,
    state: dict,
    recipe: str,
) -> None:
    """Export the models, draw the pictures, load the result as a user would, and say what came out."""
    output_dir = Path(args.output_dir)
    knn = {"before": state.get("knn_before"), "after": state.get("knn_after")}
    measured = "Not measured."
    if knn["after"]:
        measured = "\n".join(f"- {line} (untrained: {before})" for line, before in zip(
            format_knn(knn["after"]), (f"{value:.3f}" for value in knn["before"].values()), strict=False
        ))  # fmt: skip
    card = {"steps": state["step"], "train_data": Path(args.train_data).name, "measured": measured, "recipe": recipe}
    model_folder = export_models(accelerator, model, image_processor, output_dir, card)
    if not accelerator.is_main_process:
        return
    (output_dir / "metrics.json").write_text(json.dumps({"steps": state["step"], "knn": knn}, indent=2) + "\n")

    extract = pipeline("image-feature-extraction", model=str(model_folder), device=accelerator.device)
    images = first_images(dataset, find_image_column(dataset, args.image_column), count=8)
    features = extract(images[0], return_tensors=True)
    save_patch_pca(
        extract.model,
        images,
        AutoImageProcessor.from_pretrained(model_folder),
        output_dir / "patch_pca.png",
        image_size=picture_size(extract.model.config),
        device=accelerator.device,
    )
    print()
    if knn["after"]:
        key = "knn_top1_k20" if "knn_top1_k20" in knn["after"] else next(iter(knn["after"]))
        print(f"k-NN accuracy (k={key.rpartition('k')[2]}) on {args.eval_data}")
        print(f"  untrained backbone   {knn['before'][key]:.3f}")
        print(f"  trained backbone     {knn['after'][key]:.3f}")
    print(f'pipeline("image-feature-extraction", model="{model_folder}") returns {tuple(features.shape)}')
    print(f"curves and pictures: {output_dir / 'training_curves.png'}, {output_dir / 'patch_pca.png'}")


def picture_size(config: DINOv2Config) -> int:
    """Input size that gives a picture of patches some detail: at least 16 patches a side."""
    return max(config.image_size, 16 * config.patch_size)


def draw_curves(accelerator: Accelerator, module: torch.nn.Module, output_dir: Path) -> None:
    if accelerator.is_main_process:
        plot_training_curves(
            output_dir / "metrics.jsonl",
            output_dir / "training_curves.png",
            num_prototypes=module.config.num_prototypes,
        )


def format_knn(metrics: dict[str, float]) -> list[str]:
    """`knn_top1_k20: 0.93` as "k=20 0.930"; top-1 only."""
    return [
        f"k={name.removeprefix('knn_top1_k')} {value:.3f}"
        for name, value in metrics.items()
        if name.startswith("knn_top1_")
    ]


def flat_values(values: dict) -> dict:
    """What trackers take: numbers and texts."""
    return {
        name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in values.items()
    }


if __name__ == "__main__":
    main(sys.argv[1:])
