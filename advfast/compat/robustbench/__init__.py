"""RobustBench (Croce et al., NeurIPS 2021 Datasets and Benchmarks): its models, evaluated here; its leaderboard's JSON.

Models and weights are those of the package `robustbench`, which is imported when one is asked for; the names, the eps
of each threat model and the fields of the JSON are known without it.
"""

from .evaluate import evaluate as evaluate
from .leaderboard import leaderboard_json as leaderboard_json
from .load import load as load
from .names import EPS as EPS
from .names import parse_name as parse_name
