import io

from PIL import Image, UnidentifiedImageError

from pilotlight import Response

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def handle(request):
    """Make a small picture of the one that is sent: ?size= (longest side) and ?format=."""
    size = int(request.query.get("size", 128))
    kind = request.query.get("format", "png")
    if request.method != "POST" or kind not in FORMATS or not 1 <= size <= 1024:
        return 400, {"error": "POST a picture; ?size=1..1024, ?format=png, jpeg or webp."}
    try:
        picture = Image.open(io.BytesIO(request.body))
        picture.thumbnail((size, size))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        return 415, {"error": f"That is no picture: {error}"}
    result = io.BytesIO()
    picture.convert("RGB").save(result, kind)
    headers = {"Content-Type": FORMATS[kind], "X-Size": f"{picture.width}x{picture.height}"}
    return Response(result.getvalue(), headers=headers)
