"""Files that the tests send and the apps return, created with the same content each time."""

import math
import struct
import wave
from pathlib import Path

from PIL import Image


def write_files(folder: Path) -> None:
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save(folder / "picture.png")
    Image.new("RGB", (64, 48), "teal").save(folder / "photo.jpg", quality=80)
    (folder / "table.csv").write_text("name,size\nwhale,30\nseal,2\n", "utf-8")
    (folder / "note.txt").write_text("whales sing\n", "utf-8")
    (folder / "with spaces & ümlaut.txt").write_text("sea\n", "utf-8")
    (folder / "model.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "utf-8")
    with wave.open(str(folder / "tone.wav"), "wb") as tone:
        tone.setnchannels(1)
        tone.setsampwidth(2)
        tone.setframerate(8000)
        waves = (int(9000 * math.sin(number / 4)) for number in range(2000))
        tone.writeframes(b"".join(struct.pack("<h", each) for each in waves))
