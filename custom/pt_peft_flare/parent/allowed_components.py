"""Refuses a job with components that may not be built before any process of it starts, and says which."""

from pathlib import Path
from typing import cast

from nvflare.apis.app_validation import AppValidator
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.utils.config_factory import ConfigFactory
from pydantic import JsonValue

from pt_peft.experiment.admission import class_of, components


class AllowedComponents(AppValidator):
    """Looks through a job's config when the job is deployed, at the server and at each site.

    FLARE asks its ``class_allow_list`` when the job's process builds its components. The job then ends with an error,
    and the reason stays in a log. A reason given here is in the job's metadata.
    """

    def __init__(self, config: str) -> None:
        """Looks at a config.

        Args:
            config: name of its file in ``app/config``.
        """
        super().__init__()
        self._config = config
        self._authorizer = ComponentPathAuthorizer()

    def validate(self, app_folder: str) -> tuple[str, dict[str, object]]:
        """Returns why the app in `app_folder` is refused, or nothing; and nothing else about the app."""
        if (Path(app_folder) / "custom").exists():  # whether code may come is another question; if so, any class may
            return "", {}
        config = ConfigFactory.load_config(self._config, [str(Path(app_folder) / "config")])
        for path, component in components(cast(JsonValue, config.to_dict() if config else {})):
            try:
                self._authorizer.authorize_component_config(component)
            except UnsafeComponentError:
                name = class_of(component)
                return f"{self._config}, {path}: class {name!r} is not in class_allow_list of resources.json here", {}
        return "", {}
