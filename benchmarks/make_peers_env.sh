#!/usr/bin/env bash
# Makes a virtual environment with advfast and the libraries that it is compared with:
#   benchmarks/make_peers_env.sh [DIR]      default DIR: .venv-peers
# PYTHON names the interpreter (default python3). Ends by importing every peer, and says which could not be.
set -euo pipefail

case "${1:-}" in
-h | --help)
    sed -n '2,4s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
dir=$(realpath -m "${1:-.venv-peers}")
root=$(cd "$(dirname "$0")/.." && pwd)
peers=$root/benchmarks/peers.txt

constraints=()
if [[ -f $root/constraints.txt ]]; then
    constraints=(-c "$root/constraints.txt")
fi

"${PYTHON:-python3}" -m venv "$dir"
python=$dir/bin/python
pip() { "$python" -m pip --disable-pip-version-check install -q "$@"; }

# advfast first: it brings torch, which none of the peers may replace. Editable, as the tests run in the source tree.
pip ${constraints[@]+"${constraints[@]}"} -e "$root[test,plot]"
pip ${constraints[@]+"${constraints[@]}"} -r <(grep -v -e '--no-deps' "$peers")
pip --no-deps -r <(grep -e '--no-deps' "$peers")

# adv-lib imports these two when its attacks are imported, and uses them only for LPIPS and live plots. Where the real
# package is missing, this environment gets a module that raises when it is used.
"$python" - <<'PYTHON'
import importlib.util
import sysconfig
from pathlib import Path

STUBS = {
    "torchvision": 'def __getattr__(name):\n'
    '    if name == "models":\n'
    '        import types\n'
    '        return types.ModuleType("torchvision.models")\n'
    '    raise AttributeError(f"{name}: only a stub of torchvision is installed here, for adv-lib")\n',
    "visdom": 'class Visdom:\n'
    '    def __init__(self, *args, **kwargs):\n'
    '        raise RuntimeError("only a stub of visdom is installed here, for adv-lib")\n',
}
site = Path(sysconfig.get_path("purelib"))
for name, source in STUBS.items():
    if importlib.util.find_spec(name) is None:
        note = '"""Not the real package: written by advfast\'s benchmarks/make_peers_env.sh."""\n\n'
        (site / f"{name}.py").write_text(note + source)
        print(f"{name}: not installed, a stub stands in for adv-lib")
PYTHON

cd "$dir" # so that packages are imported from the environment
"$python" - <<'PYTHON'
import importlib
import sys
from importlib.metadata import version

PEERS = {
    "torchattacks": ["torchattacks"],
    "foolbox": ["foolbox"],
    "adversarial-robustness-toolbox": ["art.attacks.evasion", "art.estimators.classification"],
    "cleverhans": ["cleverhans.torch.attacks.projected_gradient_descent"],
    "adv-lib": ["adv_lib.attacks"],
    "pyautoattack": ["pyautoattack"],
    "nngeometry": ["nngeometry.gram"],
    "advfast": ["advfast"],
    "torch": ["torch"],
}
missing = 0
for name, modules in PEERS.items():
    try:
        for module in modules:
            importlib.import_module(module)
        print(f"{name:32} {version(name)}")
    except Exception as error:
        missing += 1
        print(f"{name:32} cannot be imported: {type(error).__name__}: {error}")
sys.exit(1 if missing else 0)
PYTHON
echo "ready: $python benchmarks/run.py attack"
