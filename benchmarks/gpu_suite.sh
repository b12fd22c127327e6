#!/usr/bin/env bash
# Everything that only a machine with a GPU can show, in stages of less than 8 minutes:
#   benchmarks/gpu_suite.sh [STAGE...] --out DIR [--wheels DIR] [--dry-run]
# Stages, all without a name: build test sanitize bench-kernels bench-attack bench-train bench-ntk.
# --wheels: packages that the machine lacks (it may have no network), for example torchattacks, installed first.
# --dry-run: print what each stage would do; fails when a file, command or option that it names does not exist. Tools of
#   the GPU machine alone are named as missing, for there the stage is skipped with the reason.
# DIR gets summary.txt (a line a stage), gpu_suite.log, sanitize.log, kernels.csv, attack.csv, train.csv and ntk.csv,
# each as it comes. A failing stage does not stop the next; the exit status is 1 if one failed.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
limit=470 # seconds a stage
all=(build test sanitize bench-kernels bench-attack bench-train bench-ntk)
stages=() out="" wheels="" dry=""

die() {
    echo "gpu_suite.sh: $*" >&2
    exit 2
}
while (($#)); do
    case $1 in
    --out | --wheels)
        (($# > 1)) || die "$1 needs a folder"
        declare "${1#--}=$(realpath -m "$2")"
        shift
        ;;
    --dry-run) dry=yes ;;
    -h | --help)
        sed -n '2,10s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        [[ " ${all[*]} " == *" $1 "* ]] || die "unknown stage or option $1; the stages are ${all[*]}"
        stages+=("$1")
        ;;
    esac
    shift
done
((${#stages[@]})) || stages=("${all[@]}")
[[ $out || $dry ]] || die "--out DIR is missing"
cd "$root" || exit 2
python=$(command -v python3) || die "python3 is not on PATH"
site=${TMPDIR:-/tmp}/advfast-gpu-suite-$(id -u)

# What a stage runs, one command a line; `run` gives each line to bash. Named files and options are checked by --dry-run.
commands() {
    case $1 in
    build)
        # With the tools that are here: there may be no network for an isolated build.
        echo "$python -m pip install --no-build-isolation --no-deps -v -e ."
        echo "cmake -S . -B build/gpu_suite -DCMAKE_BUILD_TYPE=Release"
        echo "cmake --build build/gpu_suite -j"
        echo "ctest --test-dir build/gpu_suite --output-on-failure"
        echo "$python -c 'import advfast, json; print(json.dumps(advfast.info(), indent=1))'"
        ;;
    test)
        echo "timeout 330 $python -m pytest -q $workers tests"
        # The interpreter takes CPU tensors, so the GPU is hidden from it.
        echo "CUDA_VISIBLE_DEVICES= TRITON_INTERPRET=1 ADVFAST_TEST_IMPL=triton timeout 130 $python -m pytest -q $workers --hypothesis-profile=quick tests/kernels"
        ;;
    sanitize)
        for tool in memcheck racecheck initcheck; do
            for family in pgd ntk; do
                # Without torch's caching allocator, which would hide an access past the end of a tensor.
                echo "PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 75 compute-sanitizer --tool $tool --error-exitcode 99 $python benchmarks/sanitize_$family.py --impl cuda"
            done
        done
        ;;
    bench-kernels | bench-attack | bench-train | bench-ntk)
        local suite=${1#bench-} file first=""
        # Of the training tests those that this stage stands on: all of them are in the stage test.
        [[ $suite == train ]] && first=" --tests tests/training/test_gpu.py tests/training/test_loop.py"
        file=$(printf %q "${out:-DIR}/${1#bench-}.csv")
        echo "$python benchmarks/run.py $suite --device cuda --quick-tests$first --budget 240 --out $file"
        ;;
    esac
}

# Why a stage cannot run here; nothing if it can.
reason() {
    case $1 in
    build)
        command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]] || echo "nvcc is not on PATH"
        return
        ;;
    esac
    if [[ $obstacle ]]; then
        echo "$obstacle"
    elif [[ $1 == sanitize ]] && ! command -v compute-sanitizer >/dev/null; then
        echo "compute-sanitizer is not on PATH"
    fi
}

# Sets `obstacle`: what keeps every stage but build from running.
probe() {
    obstacle=""
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
        obstacle="torch sees no CUDA device"
    "$python" -c 'import advfast' 2>/dev/null ||
        obstacle="advfast cannot be imported: run the stage build first"
}

workers=""
if "$python" -c 'import xdist' 2>/dev/null; then
    workers="-n 8"
fi

check() { # one command line of a stage: prints it, and what it names that does not exist
    local bad=0 word
    echo "    $1"
    for word in $1; do
        case $word in
        tests | tests/* | benchmarks/*)
            [[ -e $word ]] || { echo "    missing: $word" && bad=1; }
            ;;
        pytest) "$python" -c 'import pytest' || { echo "    missing: pytest" && bad=1; } ;;
        timeout | cmake | ctest)
            command -v "$word" >/dev/null || { echo "    missing: $word" && bad=1; }
            ;;
        compute-sanitizer)
            command -v "$word" >/dev/null || echo "    not on this machine: $word"
            ;;
        esac
    done
    # The script itself says whether it knows the options.
    if [[ $1 == *benchmarks/run.py* ]]; then
        (eval "$1 --list" >/dev/null) || { echo "    benchmarks/run.py rejects this" && bad=1; }
    elif [[ $1 == *memcheck*benchmarks/sanitize_*.py* ]]; then
        (eval "$python ${1##*"$python"} --help" >/dev/null) || { echo "    rejected" && bad=1; }
    fi
    return $bad
}

if [[ $dry ]]; then
    failed=0
    probe
    for stage in "${stages[@]}"; do
        why=$(reason "$stage")
        echo "$stage: at most $limit s${why:+; would be skipped here: $why}"
        while IFS= read -r line; do
            check "$line" || failed=1
        done < <(commands "$stage")
    done
    exit $failed
fi

mkdir -p "$out" || exit 2
log=$out/gpu_suite.log
summary=$out/summary.txt
if [[ $wheels ]]; then
    "$python" -m pip install -q --no-index --no-deps --target "$site" --upgrade "$wheels"/*.whl >>"$log" 2>&1 ||
        die "the wheels in $wheels could not be installed: see $log"
fi
if [[ -d $site ]]; then
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
# Two threads a worker, or they fight for the cores.
[[ $workers ]] && export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo "no GPU")
commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
echo "$(date -u +%FT%TZ) commit $commit, $gpu" | tee -a "$summary"

status=0
for stage in "${stages[@]}"; do
    probe
    why=$(reason "$stage")
    if [[ $why ]]; then
        echo "$stage: skipped: $why" | tee -a "$summary"
        continue
    fi
    to=$log
    [[ $stage == sanitize ]] && to=$out/sanitize.log
    start=$SECONDS failed=()
    while IFS= read -r line; do
        left=$((limit - SECONDS + start))
        if ((left <= 0)); then
            failed+=("no time left for: $line")
            continue
        fi
        echo "+ $line" | tee -a "$to"
        timeout --kill-after=10 "$left" bash -c "$line" </dev/null > >(tee -a "$to" | tail -n 40) 2>&1
        code=$?
        ((code == 0)) || failed+=("exit $code: $line")
    done < <(commands "$stage")
    rm -f "$out"/*.part # of a run that was stopped while it wrote
    if ((${#failed[@]})); then
        status=1
        echo "$stage: run, $((SECONDS - start)) s, FAILED ${failed[*]}" | tee -a "$summary"
    else
        echo "$stage: run, $((SECONDS - start)) s, ok" | tee -a "$summary"
    fi
done
exit $status
