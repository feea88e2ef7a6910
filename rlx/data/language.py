"""Records of token sequences, for those who make data: see `rlx.ops.sequences`."""

from rlx.ops.sequences import Preferences as Preferences
from rlx.ops.sequences import Sequences as Sequences
from rlx.ops.sequences import joined as joined
