from pt_peft.experiment.experiment import Experiment as Experiment
from pt_peft.experiment.site import Site as Site
from pt_peft.model.own_loop import adapt as adapt
from pt_peft.model.own_loop import load_trained_state as load_trained_state
from pt_peft.model.own_loop import trained_state as trained_state
from pt_peft.prediction import Predictions as Predictions
from pt_peft.prediction import Predictor as Predictor
from pt_peft.prediction import load as load
from pt_peft.results import Results as Results

API: dict[str, str]
__version__: str
