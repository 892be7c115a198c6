"""What the commands that run a model have in common: the model, the text, the file to write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hsbench.cli.model_options import DEFAULT_SEQ
from hsbench.cli.parse import flag, parse_choice, parse_size
from hsbench.cli.places import check_writable, descriptor_of, names_stdout, same
from hsbench.cli.progress import warn
from hsbench.cli.request import DEVICES
from hsbench.cli.streams import say
from hsbench.errors import UsageError
from hsbench.problem.elements import DEFAULT_INPUT, FP32, INPUTS, Element

if TYPE_CHECKING:
    import torch

    from hsbench.cache.basis import Basis
    from hsbench.kernels.device import Device
    from hsbench.models.model import Model
    from hsbench.models.sources import Source
    from hsbench.models.text import Text
    from hsbench.run.quality.layer_plan import LayerPlan


WEIGHTS = {element.name: element for element in (FP32, *INPUTS.values())}
"""What a model's weights may be, by name."""


def weights_of(typed: str | None) -> str | None:
    """The type that was typed for the weights, by name; None where none was."""
    return None if typed is None else parse_choice(typed, "weights", tuple(WEIGHTS))


def dtype_of(typed: str | None) -> Element | None:
    """The type that was typed for K and V in a cache; None where none was."""
    return None if typed is None else INPUTS[parse_choice(typed, "dtype", tuple(INPUTS))]


def default_weights(device: Device) -> str | None:
    """Where nobody asked: a GPU's are the model's own."""
    return None if device.is_cuda else FP32.name


def held_by(model: Model, asked: Element | None) -> tuple[Element, Element]:
    """Of what type a model's weights are, and K and V in a cache where ``asked`` for or not."""
    held = next((one for one in WEIGHTS.values() if one.torch_dtype == model.dtype), FP32)
    return held, asked or (DEFAULT_INPUT if held is FP32 else model.element)


def source_for(name: str, layers: LayerPlan | None, basis: Basis | None) -> Source:
    """A model's source, which a plan of layers and a basis, where they were given, are of.

    Raises:
        UsageError: there is none, or they are of another.
    """
    from hsbench.models.sources import find_source

    source = find_source(name)
    if layers is not None:
        layers.check(source.name, source.identity, source.layers)
    if basis is not None:
        basis.check_model(source.name, source.identity)
    return source


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """The options as typed; None where not given. ``format`` is of the file that is written."""

    model: str
    text: str | None
    seq: str | None
    device: str | None
    output: str | None
    format: str


@dataclass(frozen=True)
class Ready:
    """All that can be checked before weights are loaded, checked.

    Attributes:
        source, device: the model that is to be loaded, and where.
        text, ids: the text, and its tokens ``[n]`` that are taken.
        output: the file.
    """

    source: Source
    device: Device
    text: Text
    ids: torch.Tensor
    output: Path

    def open(self) -> Model:
        """Load the model; says on stderr that it does, and what of it stays dense."""
        from hsbench.models.loading import open_model

        say(f"hsbench: loading {self.source.name}")
        model = open_model(self.source, device=str(self.device), context=len(self.ids))
        for note in model.notes:
            warn(f"{model.name}: {note}")
        say(f"hsbench: {len(self.ids):,} tokens through {model.geometry.layers} layers on the {self.device}")
        return model


def prepare(request: ModelRequest) -> Ready:
    """Check a request, cheap things first: what was typed, the files, the model's header, the text's length.

    Raises:
        UsageError: names the option, the value and the remedy.
        UnavailableError, UnsupportedError: what was asked for cannot run here.
    """
    seq = None if request.seq is None else parse_size(request.seq, "seq")
    device = parse_choice(request.device or DEVICES[0], "device", DEVICES)
    output = _file_to_write(request)
    if request.text is None:
        raise UsageError("text", "FILE", "missing; name a text file")
    from hsbench.models.sources import find_source
    from hsbench.models.text import read_text
    from hsbench.problem.tensor_output import check_own

    text = read_text(request.text)
    check_own(output, request.format)
    source = find_source(request.model)
    if seq is None:
        seq = min(parse_size(DEFAULT_SEQ, "seq"), source.max_positions)
    else:
        try:
            source.check_context(seq, "seq")
        except UsageError as error:
            raise UsageError("seq", request.seq, error.remedy) from None
    from hsbench.machine.hardware import resolve_device

    where = resolve_device(device)
    return Ready(source, where, text, text.tokens(source.tokenizer, seq), output)


def wrote(path: Path, what: str) -> None:
    """Say on stderr what a file holds."""
    say(f"hsbench: wrote {path} ({path.stat().st_size / 2**20:.1f} MiB): {what}")


def _file_to_write(request: ModelRequest) -> Path:
    if request.output is None:
        raise UsageError("output", "FILE", "missing; name the file to write, such as out.safetensors")
    path = Path(request.output)
    if names_stdout(request.output) or descriptor_of(path) is not None:
        raise UsageError("output", request.output, "is no file of its own, which tensors need; name a file")
    check_writable(path)
    if path.exists() and not path.is_file():
        raise UsageError("output", path, "is no regular file, which tensors need; name another")
    for field, other in (("text", request.text), ("model", request.model)):
        if other is not None and same(path, Path(other)):
            raise UsageError("output", path, f"is the file of {flag(field)}; give another")
    return path
