#!/usr/bin/env bash
# Makes a virtual environment with neural-tangents, which the ntk suite and ntk_fixtures.py are run against:
#   benchmarks/make_ntk_peers_env.sh [DIR]      default DIR: .venv-ntk-peers
# PYTHON names the interpreter (default python3; jaxlib 0.4.23 has wheels for 3.9 to 3.12). It is an environment of its
# own, without torch: neural-tangents does not import on a current jax, and that jax needs NumPy 1.
set -euo pipefail

case "${1:-}" in
-h | --help)
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
dir=$(realpath -m "${1:-.venv-ntk-peers}")

"${PYTHON:-python3}" -m venv "$dir"
python=$dir/bin/python
# tf2jax brings TensorFlow, which neural-tangents imports for a function that is not used here.
"$python" -m pip --disable-pip-version-check install -q \
    'numpy<2' 'scipy<1.13' jax==0.4.23 jaxlib==0.4.23 neural-tangents==0.6.5

cd "$dir" # so that packages are imported from the environment
"$python" - <<'PYTHON'
from importlib.metadata import version

import jax.numpy as jnp
import neural_tangents

kernel = neural_tangents.empirical_ntk_fn(
    lambda p, x: x @ p, trace_axes=(), vmap_axes=0, implementation=3
)
assert kernel(jnp.ones((2, 3)), None, jnp.ones((3, 4))).shape == (2, 2, 4, 4)
for name in ("neural-tangents", "jax", "jaxlib", "numpy"):
    print(f"{name:20} {version(name)}")
PYTHON
echo "ready: benchmarks/run.py ntk --nt-python $python"
