#!/bin/sh
# Build the wheel once and test it as installed, with NumPy and ml_dtypes alone, on each Python given.
#
#     scripts/try_wheel.sh python3.10 python3.13
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
export TRITLLM_REQUIRE_NATIVE=1
"$1" -m venv "$work/build"
"$work/build/bin/pip" --quiet --disable-pip-version-check wheel . --no-deps -w "$work/wheel"
wheel=$(echo "$work"/wheel/tritllm-*.whl)
case $wheel in
*-py3-none-any.whl | *-cp3*) echo "${wheel##*/}: not one wheel for every Python of a platform" && exit 1 ;;
*) echo "${wheel##*/}" ;;
esac
for python in "$@"; do
  "$python" -m venv "$work/venv"
  "$work/venv/bin/pip" --quiet --disable-pip-version-check install --constraint constraints.txt \
    "$wheel" pytest hypothesis
  "$work/venv/bin/python" -c "
import platform
import tritllm
from tritllm import native
assert 'site-packages' in tritllm.__file__, tritllm.__file__
print(f'Python {platform.python_version()}: codec {native.isa()}, products {native.isa(\"products\")}')"
  "$work/venv/bin/pytest" -q -p no:cacheprovider tests/codec tests/native tests/products tests/step tests/test_machine.py
  rm -rf "$work/venv"
done
