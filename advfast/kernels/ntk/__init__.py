from .api import ntk_chain_ as ntk_chain_
from .api import ntk_gram_ as ntk_gram_
from .api import ntk_hadamard_ as ntk_hadamard_
from .api import ntk_patch_gram as ntk_patch_gram
from .api import ntk_rows as ntk_rows
