"""advfast.compat.foolbox in the place of foolbox: the attacks that both have, the criteria, the model."""

import foolbox

from advfast.compat import foolbox as ours

NAMES = (
    "LinfPGD", "PGD", "L2PGD", "L1PGD", "LinfProjectedGradientDescentAttack",
    "L2ProjectedGradientDescentAttack", "L1ProjectedGradientDescentAttack",
    "LinfBasicIterativeAttack", "L2BasicIterativeAttack", "L1BasicIterativeAttack", "FGSM",
    "LinfFastGradientAttack", "FGM", "L2FastGradientAttack", "L1FastGradientAttack",
)  # fmt: skip

for name in NAMES:
    # A name that we lack must fail here and not leave the peer's in its place.
    setattr(foolbox.attacks, name, getattr(ours.attacks, name))
for module in (foolbox, foolbox.criteria):
    module.Misclassification = ours.Misclassification
    module.TargetedMisclassification = ours.TargetedMisclassification
for module in (foolbox, foolbox.models):
    module.PyTorchModel = ours.PyTorchModel
foolbox.accuracy = ours.accuracy
for module in (foolbox.models, foolbox.models.base):
    module.TransformBoundsWrapper = ours.models.TransformBoundsWrapper


class _OurModel(type):
    def __instancecheck__(cls, model: object) -> bool:
        return isinstance(model, ours.PyTorchModel)


class ModelWithPreprocessing(metaclass=_OurModel):
    """What foolbox' tests of the preprocessing ask for, and make by hand, is our PyTorchModel."""

    def __new__(cls, model, bounds, dummy, preprocessing=None):
        return ours.PyTorchModel(model, bounds, dummy.raw.device, preprocessing)


foolbox.models.base.ModelWithPreprocessing = ModelWithPreprocessing
