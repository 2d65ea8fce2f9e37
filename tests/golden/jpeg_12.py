"""Write jpeg_12.json: digests of the pixels that DCMTK decodes from 12-bit JPEG.

DCMTK's decoder grew from the same code of the Independent JPEG Group as GDCM's, whose transform both use: the
pixels must be equal, and test_jpeg.py has pictures worked out by hand besides.

    python tests/golden/jpeg_12.py FILE...      # with dcmdjpeg (DCMTK 3.6.7, Debian 12) on the path
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pydicom

if __name__ == "__main__":
    digests = {}
    for name in sorted(sys.argv[1:], key=lambda name: Path(name).name):
        with tempfile.NamedTemporaryFile(suffix=".dcm") as plain:
            subprocess.run(["dcmdjpeg", name, plain.name], check=True)
            pixels = pydicom.dcmread(plain.name).PixelData  # little endian, 16 bits
        digests[Path(name).name] = hashlib.sha256(pixels).hexdigest()
    (Path(__file__).parent / "jpeg_12.json").write_text(json.dumps(digests, indent=2) + "\n")
