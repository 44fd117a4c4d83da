"""A recipe whose step takes milliseconds on a CPU, as flags."""

TOY = (
    "--hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --image_size 32 --patch_size 8"
    " --local_crop_size 16 --num_local_crops 2 --num_prototypes 32 --head_hidden_size 32 --bottleneck_size 16"
    " --per_device_train_batch_size 4"
).split()
