#!/usr/bin/env bash
# Builds lmplz and build_binary, the two KenLM programs that `ziya-data train-lm` runs, from the kenlm source package,
# and installs them to ${PREFIX:-$HOME/.local/bin}. Scoring needs neither: the kenlm Python package is enough.
#   scripts/install_lmplz.sh            build once; does nothing when both programs are there and run
#   KENLM_SDIST=kenlm-0.3.0.tar.gz ...  use a source package that is already on this machine (no network)
#   PYTHON=... KENLM_VERSION=... JOBS=...
set -euo pipefail

prefix="${PREFIX:-$HOME/.local/bin}"
python="${PYTHON:-python3}"
version="${KENLM_VERSION:-0.3.0}"
jobs="${JOBS:-2}"

works() { # --help leaves with an error status even when all is well, so only what it prints counts
    [ -x "$prefix/lmplz" ] && [ -x "$prefix/build_binary" ] || return 1
    case "$("$prefix/lmplz" --help 2>&1 || true)" in *--discount_fallback*) return 0 ;; *) return 1 ;; esac
}

if works; then
    echo "lmplz and build_binary are already in $prefix"
    exit 0
fi

missing=()
command -v cmake >/dev/null || missing+=(cmake)
command -v c++ >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)
header() { echo "#include <$1>" | c++ -x c++ -E - >/dev/null 2>&1; }
if command -v c++ >/dev/null; then
    header boost/version.hpp || missing+=(libboost-dev)
    header boost/program_options.hpp || missing+=(libboost-program-options-dev)
    header boost/system/error_code.hpp || missing+=(libboost-system-dev)
    header boost/thread.hpp || missing+=(libboost-thread-dev)
    header boost/test/unit_test.hpp || missing+=(libboost-test-dev)
    header zlib.h || missing+=(zlib1g-dev)
fi
if [ "${#missing[@]}" -gt 0 ]; then
    echo "error: the build needs ${missing[*]}; on Debian or Ubuntu:" >&2
    echo "  sudo apt-get install -y cmake g++ make libboost-dev libboost-program-options-dev libboost-system-dev \\" >&2
    echo "    libboost-thread-dev libboost-test-dev zlib1g-dev" >&2
    exit 2
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -n "${KENLM_SDIST:-}" ]; then
    cp "$KENLM_SDIST" "$work/kenlm.tar.gz"
else
    # --no-binary names kenlm alone: with :all: pip would also build cmake, kenlm's build tool, from source
    "$python" -m pip download --quiet --no-binary kenlm --no-deps --dest "$work/sdist" "kenlm==$version"
    mv "$work"/sdist/kenlm-*.tar.gz "$work/kenlm.tar.gz"
fi
mkdir "$work/source"
tar -xzf "$work/kenlm.tar.gz" -C "$work/source" --strip-components=1

cmake -S "$work/source" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DENABLE_INTERPOLATE=OFF -DCOMPILE_TESTS=OFF \
    -DCMAKE_POLICY_VERSION_MINIMUM=3.5 >"$work/cmake.log" 2>&1 || { tail -n 30 "$work/cmake.log" >&2; exit 1; }
cmake --build "$work/build" --target lmplz build_binary -j "$jobs" >"$work/build.log" 2>&1 || { tail -n 30 "$work/build.log" >&2; exit 1; }

mkdir -p "$prefix"
for program in lmplz build_binary; do # to a temporary name, then renamed: a running lmplz is never overwritten
    install -m 755 "$work/build/bin/$program" "$prefix/.$program.$$"
    mv "$prefix/.$program.$$" "$prefix/$program"
done
works || { echo "error: $prefix/lmplz was built but does not run" >&2; exit 1; }
echo "installed lmplz and build_binary in $prefix"
