"""What is done to pictures that are passed on, and should be found again."""

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from dinov2_hf.data import decode_image

from .scenes import encoded


def crop(image: Image.Image) -> Image.Image:
    return image.crop((round(0.1 * image.width), round(0.1 * image.height), image.width, image.height))


def caption(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text((8, image.height // 2), "a caption", fill="white", font_size=image.height // 8)
    return image


COPIES = {
    "JPEG": lambda image: decode_image(encoded(image, "JPEG", quality=30)),
    "half size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "crop": crop,
    "mirror": ImageOps.mirror,
    "colours": lambda image: ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(0.7)).enhance(0.3),
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(1.0)),
    "caption": caption,
    "border": lambda image: ImageOps.expand(image, 20, "white"),
    "rotation": lambda image: image.rotate(5),
}
