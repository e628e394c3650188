"""The adapters of a run, for FLARE's cross-site evaluation."""

from typing import cast

from nvflare.apis.dxo import DXO
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import model_learnable_to_dxo
from nvflare.app_common.abstract.model_locator import ModelLocator

from pt_peft_flare.persistor import AdapterPersistor


class AdapterLocator(ModelLocator):
    """Finds the final and the best adapter of the rounds. Takes the argument of FLARE's `PTFileModelLocator`."""

    def __init__(self, pt_persistor_id: str) -> None:
        """Looks in the run's folder by the component `pt_persistor_id`."""
        super().__init__()
        self.pt_persistor_id = pt_persistor_id

    def get_model_names(self, fl_ctx: FLContext) -> list[str]:
        """Names of the adapters' files."""
        return [*self._persistor(fl_ctx).get_model_inventory(fl_ctx)]

    def locate_model(self, model_name: str, fl_ctx: FLContext) -> DXO:
        """The tensors of the adapter `model_name`. Raises UserError if it cannot be read."""
        return model_learnable_to_dxo(self._persistor(fl_ctx).get_model(model_name, fl_ctx))

    def _persistor(self, fl_ctx: FLContext) -> AdapterPersistor:
        return cast(AdapterPersistor, fl_ctx.get_engine().get_component(self.pt_persistor_id))
