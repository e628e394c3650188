"""How tensors are written for the way: the section ``payload`` of `experiment.json`. Imports no torch.

A file for each codec; a new one joins a union below.

**Up**, from a site to the server, travels what the site has changed in a round, since changes are small and alike in size. The
server adds it to its own tensors. What int8 and top-k lose of a change the site keeps and adds to the next one (error feedback:
Seide et al. 2014, doi:10.21437/Interspeech.2014-274; Karimireddy et al. 2019, arXiv:1901.09847), so that the sum of what was
read is the sum of what was meant but for the last round's loss.

**Down**, from the server to its sites, travel the tensors themselves, rounded to nearest. The server's own stay in full, and as
changes are added to those, not to what was sent, no rounding error ever enters them: they are the server's error feedback, and
no other is needed. What is sent is a function of the tensor alone. So sites of one rank are sent the same; a site that has
missed rounds needs to know nothing of them; and a tensor that a site holds from an earlier round is what it would be sent now.
The final adapter is the server's own; sites evaluate what they are sent.

With float32 both ways nothing is changed: sites send tensors, not changes of them.
"""

from typing import Annotated

from pydantic import Field

from pt_peft.exchange.codecs.bfloat16 import BFloat16
from pt_peft.exchange.codecs.float16 import Float16
from pt_peft.exchange.codecs.float32 import Float32
from pt_peft.exchange.codecs.int8 import Int8
from pt_peft.exchange.codecs.top_k import TopK
from pt_peft.schema import Strict


class Payload(Strict):
    """How tensors travel."""

    up: Annotated[Float32 | Float16 | BFloat16 | Int8 | TopK, Field(discriminator="name")] = Float32()
    """From a site to the server."""
    down: Annotated[Float32 | Float16 | BFloat16 | Int8, Field(discriminator="name")] = Float32()
    """From the server to its sites. Not ``top_k``: a site that missed a round would lack the rest."""

    @property
    def changes(self) -> bool:
        """Whether sites send by how much they have changed tensors, not the tensors."""
        return not (isinstance(self.up, Float32) and isinstance(self.down, Float32))
