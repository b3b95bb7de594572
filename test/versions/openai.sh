#!/bin/sh
# The service's tests with another version of the official client:
#   openai.sh ENVIRONMENT VERSION [pytest's arguments]
# The client is laid into ENVIRONMENT-openai-VERSION, without its dependencies, which ENVIRONMENT has. The service
# itself keeps the version of ENVIRONMENT.
set -eu
python=$1/bin/python version=$2 over=$1-openai-$2
shift 2
tests=test/batch/serve
[ $# -gt 0 ] || set -- $tests/test_contract.py $tests/test_service.py $tests/test_online.py
[ -e "$over/openai" ] || "$python" -m pip install -q --no-deps --no-compile --target "$over" "openai==$version"
echo "== openai $version"
SGLANG_BATCH_OPENAI=$over exec "$python" -m pytest "$@"
