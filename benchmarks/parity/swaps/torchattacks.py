"""advfast.compat.torchattacks in the place of torchattacks."""

import torchattacks

from advfast.compat import torchattacks as ours

for name in ("FGSM", "BIM", "RFGSM", "FFGSM", "PGD", "PGDL2", "TPGD", "MIFGSM"):
    setattr(torchattacks, name, getattr(ours, name))
