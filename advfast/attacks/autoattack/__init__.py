"""AutoAttack: several attacks, one after another on the samples that are still right."""

from .autoattack import AutoAttack as AutoAttack
from .result import AutoAttackResult as AutoAttackResult
