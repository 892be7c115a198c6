"""``hsbench calibrate``."""

from __future__ import annotations

from hsbench.cli import model_options as m
from hsbench.cli import options as o
from hsbench.cli.exit_codes import OK
from hsbench.cli.model_input import ModelRequest, prepare, wrote
from hsbench.cli.output import writing
from hsbench.cli.signals import Interruptible
from hsbench.problem.tensor_output import BASIS_FORMAT


def calibrate(
    model: m.ModelName,
    text: m.TextFile = None,
    seq: m.ModelSeq = None,
    device: o.Device = None,
    output: m.TensorOutput = None,
) -> int:
    """Calibrate a basis for a model's K and V on a text, for the pruner of that name.

    Means of K and V and the size of q by channel, per layer and KV head.

    Example: hsbench calibrate model.gguf --text book.txt --output basis.safetensors
    """
    request = ModelRequest(model=model, text=text, seq=seq, device=device, output=output, format=BASIS_FORMAT)
    with Interruptible():
        ready = prepare(request)
        from hsbench.models import statistics

        opened = ready.open()
        opened.check_pass(min(statistics.CHUNK, len(ready.ids)))
        basis = statistics.calibrate(opened, ready.text, ready.ids)
        with writing(ready.output):
            basis.save(ready.output)
        wrote(ready.output, f"a basis of {len(basis.layers)} layers from {len(ready.ids):,} tokens")
    return OK
