"""``hsbench capture``."""

from __future__ import annotations

from hsbench.cli import model_options as m
from hsbench.cli import options as o
from hsbench.cli.exit_codes import OK
from hsbench.cli.model_input import ModelRequest, prepare, wrote
from hsbench.cli.output import writing
from hsbench.cli.parse import parse_choice, parse_list, parse_size
from hsbench.cli.signals import Interruptible
from hsbench.errors import UnsupportedError, UsageError
from hsbench.problem.elements import INPUTS
from hsbench.problem.tensor_output import CAPTURE_FORMAT
from hsbench.problem.workload import check_geometry


def capture(
    model: m.ModelName,
    text: m.TextFile = None,
    seq: m.ModelSeq = None,
    layers: m.Layers = None,
    queries: m.Queries = None,
    dtype: m.CaptureDtype = None,
    device: o.Device = None,
    output: m.TensorOutput = None,
) -> int:
    """Capture q, K and V of a model's layers on a text, for hsbench decode --kv.

    The last queries and all keys and values, after RoPE; layer by layer, so memory does not grow with them.

    Example: hsbench capture model.gguf --text book.txt --layers 0,12 --output kv.safetensors
    """
    numbers = None
    if layers is not None and layers.strip().lower() != "all":
        numbers = [parse_size(item, "layers", minimum=0) for item in parse_list(layers, "layers")]
    element = None if dtype is None else INPUTS[parse_choice(dtype, "dtype", tuple(INPUTS))]
    wanted = None if (queries or "").strip().lower() == "all" else parse_size(queries or m.DEFAULT_QUERIES, "queries")
    request = ModelRequest(model=model, text=text, seq=seq, device=device, output=output, format=CAPTURE_FORMAT)

    with Interruptible():
        ready = prepare(request)
        count = len(ready.ids)
        if wanted is not None and wanted > count:
            if queries is not None:
                raise UsageError("queries", queries, f"there are {count:,} tokens; give at most that, or all")
            wanted = count
        from hsbench.models import capture as work

        opened = ready.open()
        shape = opened.geometry
        try:
            check_geometry(shape.q_heads, shape.kv_heads, shape.head_dim)
        except UsageError as error:
            what = f"{error.option} {error.value}: {error.remedy.replace('`', '')}"
            raise UnsupportedError(f"MODEL {model}: hsbench decode --kv cannot take its tensors, {what}") from error
        chosen = work.choose_layers(opened, numbers)
        if not chosen:
            raise UnsupportedError(f"MODEL {model}: {'; '.join(opened.notes)}; no layer is left")
        opened.check_pass(count)
        with writing(ready.output):
            work.capture(
                opened,
                ready.text,
                ready.ids,
                ready.output,
                layers=chosen,
                queries=wanted or count,
                element=element or opened.element,
            )
        wrote(ready.output, f"{len(chosen)} layers of {count:,} tokens; hsbench decode --kv reads it")
    return OK
