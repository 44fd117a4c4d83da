"""How much a file holds for its pixels: bits for each value of a channel. A picture of one colour has near 0."""


def detail(images, columns, *, channels=3):
    sizes = [image.width * image.height * channels for image in images]
    return [8 * num_bytes / size for num_bytes, size in zip(columns["num_bytes"], sizes, strict=True)]
