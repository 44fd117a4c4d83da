"""
The arguments of a run other than its network and objective: the fields of a recipe, each with its help, its range, and
the options that it needs to have an effect.

A recipe may have every field of `PreTrainingArguments` and of the two configurations (of the backbone and of the
pretraining). Names are unique over the three, so a recipe is one flat list that can be read and compared line by line.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..data.loader_workers import default_workers
from ..data.reading.mixed_images import read_entries
from ..options import REQUIRED, argument, check_options
from ..pretraining.compilation import HOW
from ..pretraining.teachers import TEACHERS
from ..pretraining.terms import check_loss_terms, needs_of
from ..public_names import without_secrets
from ..training.recomputation import HOW as RECOMPUTATIONS
from ..value_ranges import ABOVE_ZERO, AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE, SEEDS, SHARE, WIDTH, Range


# Values of ImageNet as in transformers. Importing transformers takes seconds.
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MEASURED, DENSE, UPLOADED = {"eval_data": True}, {"dense_eval_data": True}, {"push_to_hub": True}
CROP_AREA = Range(0, 1, low_included=False)
# The options that measure metrics whose names begin like this.
KEPT_BEST = {
    "knn_": ("eval_data", "no k-NN accuracy is measured; give labelled images as"),
    "linear_": ("linear_eval_steps", "no linear probe is measured; give the steps between two as"),
    "patch_knn_": ("dense_eval_data", "no patch k-NN is measured; give images with masks as"),
}


@dataclass
class PreTrainingArguments:
    """
    The arguments that belong to a run, and not to the network or the objective. The first six groups change results.
    The others do not. The size of the global crops is the backbone's `image_size`.

    Raises:
        `ValueError`: a value is out of its range, or does not fit the other values.
    """

    # --- data
    train_data: list[str | dict[str, Any]] = argument(
        REQUIRED,
        "Images to train on; no labels needed: a folder, parquet file(s) or a glob of them, a folder written by"
        " save_to_disk, WebDataset tar(s), or a dataset name on the Hub. Several data sets are mixed; give each"
        " as {path: images, weight: 2}, if needed with its own split, dataset_config_name and image_column.",
    )
    one_set_a_step: bool = argument(
        False, "With several data sets: all images of a step come from one of them, chosen by the weights."
    )
    train_split: str = argument("train", "Split of train_data, if it has splits.")
    dataset_config_name: str | None = argument(
        None, "Configuration of a dataset on the Hub, or of a local copy of one."
    )
    image_column: str | None = argument(
        None, "Column of images; by default the only one, or the one named like an image."
    )
    max_image_pixels: int | None = argument(
        None, "Skip images of more pixels; by default 178,956,970, as Pillow does.", AT_LEAST_ONE
    )
    streaming: bool = argument(False, "Read train_data as a stream, without a local copy.")
    shuffle_buffer_size: int = argument(
        1000,
        "Encoded images that each worker of a stream keeps for shuffling.",
        AT_LEAST_ONE,
        needs={"streaming": True},
    )
    sample_order: str = argument(
        "global",
        'Order of data that is not streamed. "global": the same for any number of processes; "sharded": as in'
        " the original; or package.module:function.",
        needs={"streaming": False},
    )

    # --- where the weights start
    init_from: str | None = argument(
        None,
        "Weights to start from: a model on the Hub, a model folder, an original .pth or a file of timm (fresh heads);"
        " or a run, its checkpoint or a pretraining_model folder (teacher and heads are kept).",
    )
    freeze_backbone_steps: int = argument(
        0,
        "Number of first steps in which the backbone of init_from has learning rate 0; only the heads learn.",
        NOT_NEGATIVE,
    )

    train_blocks: int | None = argument(
        None,
        "Train only this many last blocks of the backbone, and the norm after them; by default all of it.",
        AT_LEAST_ONE,
    )
    lora_rank: int | None = argument(
        None,
        "Train only additions of this rank to the matrices of the blocks (LoRA, by peft); exports have them merged.",
        AT_LEAST_ONE,
    )

    # --- crops and masks (paper, appendix B)
    augmentation: str = argument(
        "multi_crop",
        "How an image becomes crops: multi_crop; device, the same, with everything but decoding and cropping on"
        " the device of the training; or package.module:function, which takes the options below.",
    )
    crop_sizes: list[dict[str, Any]] | None = argument(
        None,
        "Several crop sizes in one run; each step uses one, chosen by the weights: {global_crop_size: 224,"
        " local_crop_size: 98, weight: 2}. By default image_size and local_crop_size.",
    )
    local_crop_size: int = argument(98, "Side of a local crop in pixels.", WIDTH)
    num_local_crops: int = argument(8, "Number of local crops of each image.", NOT_NEGATIVE)
    global_crop_scale: list[float] = argument(
        [0.32, 1.0], "Smallest and largest area of a global crop, as fractions of the area of the image.", CROP_AREA
    )
    local_crop_scale: list[float] = argument(
        [0.05, 0.32], "Smallest and largest area of a local crop, as fractions of the area of the image.", CROP_AREA
    )
    horizontal_flip_probability: float = argument(0.5, "Probability that a crop is mirrored.", SHARE)
    color_jitter_probability: float = argument(
        0.8, "Probability that brightness, contrast, saturation and hue of a crop are changed; of RGB only.", SHARE
    )
    grayscale_probability: float = argument(0.2, "Probability that a crop loses its colours; of RGB only.", SHARE)
    global_blur_probabilities: list[float] = argument(
        [0.0, 0.9],
        "Probability of blur for the first and the second global crop, as the original runs (it intended 1, 0.1).",
        SHARE,
    )
    local_blur_probability: float = argument(0.5, "Probability that a local crop is blurred.", SHARE)
    solarize_probability: float = argument(
        0.2, "Probability that the second global crop is solarized; of RGB only.", SHARE
    )
    image_mean: list[float] = argument(
        IMAGENET_MEAN, "Mean of each channel, for values from 0 to 1; it is subtracted.", Range()
    )
    image_std: list[float] = argument(
        IMAGENET_STD, "Standard deviation of each channel; values are divided by it.", ABOVE_ZERO
    )
    masks: str = argument("block", "Which patches of a global crop are masked: block, or package.module:function.")
    mask_probability: float = argument(0.5, "Share of the global crops that are masked.", SHARE)
    mask_ratio: list[float] = argument([0.1, 0.5], "Smallest and largest masked share of a masked crop.", SHARE)

    # --- objective, beside the configuration's
    loss_terms: dict[str, Any] | None = argument(
        None,
        "Further loss terms and their weights: kde=0.05, gram_anchoring=2.0, or package.module:function=1.0. A weight"
        " may be a schedule: {kind: linear, start: 0, end: 1, steps: 1000}; that of koleo starts at koleo_loss_weight,"
        " as in koleo={end: 0, steps: 1000}. Keywords of a term stand beside its weight: {weight: 0.1, concentration:"
        " 10}.",
    )
    gram_teacher: str | None = argument(
        None,
        "For gram_anchoring: the earlier network whose similarities of patches are kept: a model folder, a run,"
        " one of its checkpoints, or a model on the Hub.",
    )
    gram_teacher_update_steps: int | None = argument(
        None,
        "Number of steps after which the average of the run becomes the Gram teacher (10,000 in DINOv3), from"
        " models/step_N; a multiple of export_every. By default the Gram teacher stays the same.",
        AT_LEAST_ONE,
        needs={"gram_teacher": True, "export_every": True},
    )
    teacher_class: str | None = argument(
        None,
        "The class that makes the targets: package.module:Class. By default the average of the student, or in a"
        " distillation the frozen teacher.",
    )

    # --- optimization (paper, appendix B)
    max_steps: int = argument(125_000, "Optimizer steps; every schedule is made for these.", Range(1, 10**9))
    per_device_train_batch_size: int = argument(64, "Images per device and forward pass.", AT_LEAST_ONE)
    gradient_accumulation_steps: int = argument(1, "Forward passes of each optimizer step.", AT_LEAST_ONE)
    learning_rate: float = argument(4e-3, "Peak learning rate before scaling by batch size.", ABOVE_ZERO)
    learning_rate_scaling: str = argument(
        "sqrt_wrt_1024",
        '"sqrt_wrt_1024": times sqrt(global batch / 1024); or "none".',
        ("sqrt_wrt_1024", "none"),
    )
    min_learning_rate: float = argument(1e-6, "Final learning rate; not scaled.", NOT_NEGATIVE)
    warmup_steps: int = argument(
        12_500, "Number of first steps, in which the learning rate rises from 0.", NOT_NEGATIVE
    )
    learning_rate_schedule: str = argument(
        "cosine",
        "From the peak learning rate to the final one: cosine, linear, constant, warmup_stable_decay, or"
        " package.module:function.",
    )
    cooldown_steps: int = argument(
        0,
        "Number of last steps in which the learning rate falls from its schedule to the final value; with a"
        " constant schedule they may begin at any checkpoint.",
        NOT_NEGATIVE,
    )
    cooldown_schedule: str = argument(
        "linear", "How it falls then; as learning_rate_schedule.", needs={"cooldown_steps": True}
    )
    weight_decay: float = argument(0.04, "AdamW's weight decay in the first step.", NOT_NEGATIVE)
    final_weight_decay: float = argument(0.4, "AdamW's weight decay in the last step.", NOT_NEGATIVE)
    weight_decay_schedule: str = argument("cosine", "As learning_rate_schedule, between the two weight decays.")
    adam_beta1: float = argument(0.9, "AdamW's decay of the mean of gradients.", BELOW_ONE)
    adam_beta2: float = argument(0.999, "AdamW's decay of the mean of squared gradients.", BELOW_ONE)
    layerwise_decay: float = argument(0.9, "Learning-rate factor from block to block, towards the input.", SHARE)
    patch_embed_lr_multiplier: float = argument(
        0.2, "Learning-rate factor of the patch projection, beside layerwise_decay.", NOT_NEGATIVE
    )
    freeze_last_layer_steps: int = argument(
        1250, "Number of first steps in which the prototypes have learning rate 0.", NOT_NEGATIVE
    )
    max_grad_norm: float = argument(3.0, "Larger gradients are scaled down to this L2 norm.", ABOVE_ZERO)
    clip_per_part: bool = argument(
        True, "Clip backbone and heads each by its own norm, as in the original; or all by one norm."
    )
    teacher_momentum: float = argument(0.992, "Momentum of the teacher's average in the first step.", SHARE)
    final_teacher_momentum: float = argument(1.0, "Momentum in the last step.", SHARE)
    teacher_momentum_schedule: str = argument("cosine", "As learning_rate_schedule, between the two momenta.")
    warmup_teacher_temperature: float = argument(
        0.04, "Temperature of the teacher's targets in the first step.", ABOVE_ZERO
    )
    teacher_temperature: float = argument(0.07, "Temperature of the teacher's targets after the warm-up.", ABOVE_ZERO)
    teacher_temperature_warmup_steps: int = argument(
        37_500, "Number of first steps, in which that temperature rises.", NOT_NEGATIVE
    )
    mixed_precision: str = argument(
        "auto",
        '"auto" (bf16 if the hardware supports it), "no", "bf16" or "fp16".',
        ("auto", "no", "bf16", "fp16"),
    )
    max_nonfinite_steps: int = argument(
        5,
        "Most steps in a row that are left out because a loss or gradient is not finite; after one more the run"
        " stops.",
        NOT_NEGATIVE,
    )
    seed: int = argument(0, "Seed of weights, order of the images, crops, masks and stochastic depth.", SEEDS)

    # --- evaluation while training
    eval_data: str | None = argument(None, "Labelled images: turns k-NN evaluation on.")
    eval_split: str | None = argument(
        None, "Split of eval_data to classify; by default test, else validation, else the only one.", needs=MEASURED
    )
    eval_bank_data: str | None = argument(
        None, "Labelled images to classify with; by default train_data, if it has labels.", needs=MEASURED
    )
    eval_bank_split: str = argument("train", "Split of eval_bank_data.", needs={"eval_bank_data": True})
    label_column: str = argument("label", "Column of the labels, in eval_data and the bank.", needs=MEASURED)
    max_eval_bank_images: int | None = argument(
        None, "Use only this many first images of the bank; by default all.", AT_LEAST_ONE, needs=MEASURED
    )
    max_eval_images: int | None = argument(
        None, "Classify only this many first images; by default all.", AT_LEAST_ONE, needs=MEASURED
    )
    eval_resize_size: int | None = argument(
        None,
        "Short side in pixels before the centre crop of image_size, also of the exported image processor; by default"
        " 256/224 of image_size.",
        AT_LEAST_ONE,
    )
    per_device_eval_batch_size: int = argument(64, "Images in a forward pass of the evaluation.", AT_LEAST_ONE)
    linear_eval_steps: int | None = argument(
        None,
        "Steps between two linear probes of eval_data, trained on the bank; by default none.",
        AT_LEAST_ONE,
        needs=MEASURED,
    )
    dense_eval_data: str | None = argument(
        None, "Images with masks of class numbers: turns on segmentation by the nearest patches of other images."
    )
    dense_eval_split: str | None = argument(
        None, "Split of dense_eval_data to segment; by default test, else validation, else the only one.", needs=DENSE
    )
    dense_eval_bank_data: str | None = argument(
        None, "Images with masks to compare with; by default dense_eval_data.", needs=DENSE
    )
    dense_eval_bank_split: str = argument("train", "Split of the images with masks to compare with.", needs=DENSE)
    dense_eval_image_column: str | None = argument(
        None, "Their column of images; by default the only one, or the one named like an image.", needs=DENSE
    )
    dense_eval_mask_column: str = argument("annotation", "Their column of masks.", needs=DENSE)
    dense_eval_ignore_index: int = argument(
        255, "The number in masks of pixels that do not count.", Range(-(2**31), 2**31 - 1), needs=DENSE
    )
    dense_eval_do_reduce_labels: bool = argument(
        False, "0 in masks does not count, and class c is stored as c + 1 (ADE20K).", needs=DENSE
    )
    dense_eval_image_size: int | None = argument(
        None,
        "Short side in pixels that images with masks are resized to; by default image_size.",
        AT_LEAST_ONE,
        needs=DENSE,
    )
    max_dense_eval_bank_images: int | None = argument(
        100, "Images with masks to compare with, evenly spaced; null: all.", AT_LEAST_ONE, needs=DENSE
    )
    max_dense_eval_images: int | None = argument(
        50, "Images with masks to segment, evenly spaced; null: all.", AT_LEAST_ONE, needs=DENSE
    )

    # --- how the run is carried out: does not change results
    output_dir: str = argument("outputs/pretraining", "Folder for everything that the run writes.")
    overwrite_output_dir: bool = argument(False, "Delete what an earlier run left there.")
    resume_from_checkpoint: str | None = argument(
        None, 'A checkpoint folder, or "latest"; without --config the run continues with its own recipe.'
    )
    allow_recipe_change: bool = argument(
        False,
        "Allow resuming with other values, such as learning_rate or max_steps; or starting from weights with"
        " registers with num_register_tokens 0.",
    )
    stop_after_steps: int | None = argument(
        None,
        "End after this step, with all files of a finished run; schedules are still made for max_steps, and the"
        " run can be continued.",
        AT_LEAST_ONE,
    )
    export_on_stop: bool = argument(False, "Export the model also if a signal ends the run.")
    export_every: int | None = argument(
        None, "Steps between two exports of the averaged backbone to models/step_N; by default none.", AT_LEAST_ONE
    )
    keep_best: str | None = argument(
        None,
        "A metric of metrics.jsonl, such as knn_top1_k20: the step where it is best keeps its checkpoint and is"
        " exported to model_best.",
    )
    greater_is_better: bool | None = argument(
        None,
        "Whether larger values of keep_best are better; by default true, except for a loss.",
        needs={"keep_best": True},
    )
    save_nonfinite_batch: bool = argument(
        False,
        "Keep steps whose loss or gradient is not finite, with batch and weights, in nonfinite_steps/, for"
        " `dinov2-hf replay`. The host then waits for every step.",
    )
    max_saved_nonfinite_steps: int = argument(
        3, "Most such steps that are kept; the first ones are.", AT_LEAST_ONE, needs={"save_nonfinite_batch": True}
    )
    logging_steps: int = argument(50, "Steps between two lines of metrics.jsonl.", AT_LEAST_ONE)
    eval_steps: int = argument(
        5000, "Steps between two evaluations: pictures, and k-NN if eval_data is given.", AT_LEAST_ONE
    )
    eval_pictures: int = argument(
        4,
        "Number of images, from eval_data or else the training data, whose patch features and attention are"
        " drawn at each evaluation into pictures/ and to the tracker. 0 draws none.",
        NOT_NEGATIVE,
    )
    dense_eval_steps: int | None = argument(
        None, "Steps between two dense evaluations; by default eval_steps.", AT_LEAST_ONE, needs=DENSE
    )
    save_steps: int = argument(2500, "Steps between two checkpoints.", AT_LEAST_ONE)
    save_total_limit: int = argument(3, "Number of checkpoints that are kept.", AT_LEAST_ONE)
    dataloader_num_workers: int | None = argument(
        None,
        "Processes that decode and augment for each training process; 0: it does so itself. By default its share of"
        " the cores, less one for itself, and at most 16.",
        NOT_NEGATIVE,
    )
    max_skipped_fraction: float = argument(
        0.01, "Stop if more than this share of the images cannot be decoded.", SHARE
    )
    attn_implementation: str = argument("auto", 'As in from_pretrained; "auto" is sdpa, but eager for bf16 on CPU.')
    crop_packing: str = argument(
        "auto",
        "Run the student's crops of all sizes as one sequence: always, never, or auto: everywhere but on a CPU.",
        ("auto", "always", "never"),
    )
    patch_chunk_size: int = argument(
        1024, "Number of patches whose logits are in memory at once, of student and teacher.", AT_LEAST_ONE
    )
    gradient_checkpointing: str = argument(
        "no",
        'What the backward pass makes again in place of keeping it: whole blocks ("full", or "true"), or what is quick'
        ' to make ("selective"). Less memory, slower.',
        RECOMPUTATIONS,
    )
    compile: str = argument(
        "no",
        'What torch.compile makes faster: "blocks" of the networks, the whole "step", or "no"; the first steps take'
        " minutes.",
        HOW,
    )
    report_to: str = argument("none", "Accelerate tracker for the curves, such as tensorboard, wandb or mlflow.")
    stop_on_collapse: bool = argument(False, "Stop with exit code 3 at a collapse, instead of only warning.")
    license: str | None = argument(None, "Licence of the weights for the model card, such as apache-2.0.")

    # --- upload of the finished run
    push_to_hub: bool = argument(False, "Upload the exported model when the run is complete.")
    hub_model_id: str | None = argument(
        None, "Repository, owner/name; by default the name of output_dir, in your account.", needs=UPLOADED
    )
    hub_private_repo: bool | None = argument(
        None, "Make a new repository private; by default as the organization has it.", needs=UPLOADED
    )
    hub_revision: str | None = argument(None, "Branch to upload to; created if missing.", needs=UPLOADED)
    hub_pretraining_model: bool = argument(
        False, "Also upload student, teacher and heads, several times the model's size.", needs=UPLOADED
    )
    hub_token: str | None = argument(
        None,
        "Token with write access. Better use HF_TOKEN or hf auth login: others can see flags in the list of"
        " processes.",
        needs=UPLOADED,
        repr=False,
    )

    def __post_init__(self):
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = default_workers()
        self.train_data = read_entries(self.train_data)
        check_options(self)
        if isinstance(self.train_data, str) and self.one_set_a_step:
            raise ValueError("`one_set_a_step` is true, but `train_data` is one data set; leave it out.")
        check_loss_terms(self.loss_terms or {})
        anchored = "gram_teacher" in needs_of(self.loss_terms or {})
        if anchored != (self.gram_teacher is not None):
            raise ValueError(
                "`loss_terms` has gram_anchoring, but `gram_teacher` is not set; name the network to keep to."
                if anchored
                else f"`gram_teacher` is {self.gram_teacher}, but no loss term reads it; add gram_anchoring to"
                " `loss_terms`."
            )
        if self.gram_teacher_update_steps and self.gram_teacher_update_steps % self.export_every:
            raise ValueError(
                f"`gram_teacher_update_steps` is {self.gram_teacher_update_steps}, but `export_every` is"
                f" {self.export_every}, and the new Gram teacher is what is exported; make the first a multiple of"
                " the second."
            )
        if self.teacher_class:
            TEACHERS.find(self.teacher_class)
        for name in ("global_crop_scale", "local_crop_scale", "global_blur_probabilities", "mask_ratio"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be two numbers.")
        for name in ("global_crop_scale", "local_crop_scale", "mask_ratio"):
            smallest, largest = getattr(self, name)
            if smallest > largest:
                raise ValueError(f"`{name}` is {getattr(self, name)}; the smaller number comes first.")
        if self.stop_after_steps and self.stop_after_steps > self.max_steps:
            raise ValueError(
                f"`stop_after_steps` is {self.stop_after_steps}, but `max_steps`, which schedules are made for, is"
                f" {self.max_steps}; lower the first or raise the second."
            )
        for begin, (needed, missing) in KEPT_BEST.items():
            if (self.keep_best or "").rpartition("/")[2].startswith(begin) and getattr(self, needed) is None:
                raise ValueError(f"`keep_best` is {self.keep_best}, but {missing} --{needed}.")
        if self.train_blocks and self.lora_rank:
            raise ValueError(
                f"`train_blocks` is {self.train_blocks} and `lora_rank` is {self.lora_rank}, which are two ways to"
                " train a part; leave one of them out."
            )
        for name in ("freeze_backbone_steps", "train_blocks", "lora_rank"):
            if getattr(self, name) and self.init_from is None:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, but the backbone would be kept at random weights; set"
                    " `init_from`, or leave it out."
                )


# Arguments of one start, not of the recipe: repeating a run from its recipe must not overwrite the results or uploads
# of an earlier run, and a token must not be in a file.
OF_ONE_START = (
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "allow_recipe_change", "stop_after_steps",
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_pretraining_model", "hub_token",
)  # fmt: skip


def recipe_values(args: PreTrainingArguments) -> dict[str, Any]:
    """The values of `args` for a recipe that gives the same run again, without tokens and signatures of URLs."""
    values = {name: value for name, value in dataclasses.asdict(args).items() if name not in OF_ONE_START}
    return without_secrets(values)
