"""ONNX: the whole classifier in one file, from images in [0, 1] to logits."""

import importlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any, cast

import torch

from pt_peft.errors import UserError
from pt_peft.export.adapter import open_adapter, read_description, read_preprocessing
from pt_peft.export.classifier import Classifier, FromImages
from pt_peft.logs import quiet

HEADER_KEY = "pt_peft"


def write(adapter: Path, weights: Path | None, out: Path) -> None:
    """Writes an ONNX file: input ``images`` float32 (N,3,S,S) in [0,1], output ``logits`` float32 (N,K).

    Normalisation and flips at test time are in the graph. What makes images of files is in the header alone.

    Args:
        adapter: the adapter file, whose header goes to the metadata.
        weights: the backbone's file; None takes the embedded one.
        out: the ONNX file.

    Raises:
        UserError: if the packages are not installed, or the exporter cannot express the model.
    """
    onnx = _package("onnx")
    _package("onnxscript")
    model, spec, header = open_adapter(adapter, weights)
    if all(part.method.merge for part in model.parts):
        try:
            model.merge()
        except UserError:  # the merge needs a bias that the backbone lacks: exported as it is
            model, spec, header = open_adapter(adapter, weights)
    preprocessing = read_preprocessing(header, spec, adapter)
    size = preprocessing.decoding.image_size
    try:
        with warnings.catch_warnings(), quiet("torch.onnx", logging.ERROR):
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program = cast(Any, torch.onnx).export(  # whose types are incomplete
                FromImages(model.module, preprocessing),
                (torch.rand(2, 3, size, size),),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--format onnx: torch cannot express this model in ONNX ({reason}).") from None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {HEADER_KEY: json.dumps(header)})
    try:
        onnx.checker.check_model(proto)
        onnx.save_model(proto, str(out))
    except ValueError as error:  # protobuf's limit of 2 GiB
        raise UserError(
            f"--format onnx: cannot be written as one file ({' '.join(str(error).split())[:200]})."
        ) from None


def load(path: Path) -> Classifier:
    """Loads a file that `write` wrote, with its header.

    Raises:
        UserError: if the package is not installed, or the file is not one of `write`.
    """
    runtime = _package("onnxruntime")
    try:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        header = json.loads(session.get_modelmeta().custom_metadata_map[HEADER_KEY])
    except Exception as error:  # onnxruntime has an exception class for each error code
        raise UserError(
            f"{path}: is not an ONNX file of this project ({type(error).__name__}: {str(error)[:200]})."
        ) from None

    def logits(images: torch.Tensor) -> torch.Tensor:
        try:
            return torch.as_tensor(session.run(["logits"], {"images": images.numpy()})[0])
        except Exception as error:  # onnxruntime has an exception class for each error code
            raise UserError(
                f"{path}: cannot be run on its header's images ({' '.join(str(error).split())[:200]})."
            ) from None

    described = read_description(header, path)
    return Classifier(described.spec, described.preprocessing.decoding, described.prevalence, logits)


def _package(name: str) -> Any:
    """An optional package, imported. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UserError(
            f"--format onnx: '{name}' is not installed; pip install onnx onnxscript onnxruntime would be right."
        ) from None
