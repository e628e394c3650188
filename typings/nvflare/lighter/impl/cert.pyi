from datetime import datetime
from typing import Any

from cryptography.x509 import Certificate
from nvflare.lighter.spec import Builder

class CertBuilder(Builder):
    @staticmethod
    def _generate_cert(*args: Any, not_valid_before: datetime | None = None, **kwargs: Any) -> Certificate: ...
