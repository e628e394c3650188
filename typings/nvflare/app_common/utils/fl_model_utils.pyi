from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel

class FLModelUtils:
    @staticmethod
    def from_shareable(shareable: Shareable) -> FLModel: ...
