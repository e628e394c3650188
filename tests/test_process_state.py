"""Importing the packages, and building any method's model, changes nothing of the process that others in it rely on."""

import subprocess
import sys

from helpers import ROOT

CODE = """
import locale, logging, os, random, signal, sys, warnings
import faulthandler, importlib, pkgutil
# What other libraries do when they are imported is theirs.
import monai.transforms, nvflare.apis.fl_context, numpy, peft, timm, torch, torchvision, tensorboard, pydicom, PIL.Image
import nvflare.app_common.workflows.model_controller, nvflare.private.fed.app.simulator.simulator_runner
import nvflare.app_opt.tracking.tb.tb_receiver, nvflare.lighter.impl.cert, torch.utils.tensorboard, torch.func
import nvflare.tool.job.job_cli, nvflare.fuel.flare_api.flare_api, peft.tuners.boft.layer

LOGGERS = sorted(logging.getLogger().manager.loggerDict)

def state():
    root = logging.getLogger()
    return {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32),
        "matmul": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "fused": timm.layers.use_fused_attn(),
        "warnings": list(warnings.filters),
        "show": warnings.showwarning,
        "logging": (root.level, list(root.handlers), root.manager.disable),
        "loggers": [logging.getLogger(name).level for name in LOGGERS],
        "environment": dict(os.environ),
        "path": list(sys.path),
        "floats": numpy.geterr(),
        "random": random.getstate(),
        "numpy": repr(numpy.random.get_state()),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": {one: signal.getsignal(one) for one in signal.valid_signals()},
        "hooks": (sys.excepthook, sys.displayhook),
        "umask": (os.umask(0o22), os.umask(0o22))[1],
        "folder": os.getcwd(),
        "boft": peft.tuners.boft.layer.get_fbd_cuda,
        "tracking": monai.data.get_track_meta(),
        "pillow": (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES),
        "recursion": sys.getrecursionlimit(),
    }

before = state()
import pt_peft, pt_peft_flare
for package in (pt_peft, pt_peft_flare):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", "mlflow_receiver")):
            importlib.import_module(module.name)
imported = state()
from pt_peft.experiment.sections import ModelSpec
from pt_peft.model.adapted_model import build_model
from pt_peft.model.method import method_names
from pt_peft.presets import demo
from pt_peft.errors import UserError
spec = demo("lora")[0].model
for name in method_names():
    method = spec.method.model_copy(update={"name": name, "options": {}})
    model = build_model(spec.model_copy(update={"method": method}), None)
    model.module(torch.zeros(1, 3, 64, 64)).sum().backward()
    try:
        model.merge()
    except UserError:
        pass
built = state()
for when, after in (("an import", imported), ("a model", built)):
    for what in before:
        if before[what] != after[what]:
            print(f"{when} changes {what}: {str(before[what])[:1500]} -> {str(after[what])[:1500]}")
"""


def test_the_process_is_left_as_it_was():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT)
    assert (run.stdout, run.returncode) == ("", 0), run.stderr[-2000:]
