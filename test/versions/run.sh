#!/bin/sh
# Tests of what touches SGLang, under one version of it:
#   run.sh ENVIRONMENT VERSION [pytest's arguments]
# ENVIRONMENT has sglang-blend with the versions of constraints.txt. For another SGLang than it has, a thin
# environment is laid over it and kept in ENVIRONMENT-sglang-VERSION (120 MB, without bytecode): that SGLang, all else shared.
set -eu
base=$1 version=$2
shift 2
[ $# -gt 0 ] || set -- test/versions test/test_hooks.py test/runtime/test_plugin.py test/runtime/test_scheduler.py \
    test/portable_cpu/test_srt_platform.py test/e2e/test_engine.py

python=$base/bin/python
if [ "$("$python" -c 'from importlib.metadata import version; print(version("sglang"))')" != "$version" ]; then
    over=$base-sglang-$version
    if [ ! -e "$over/.installed" ]; then
        echo "== $over: SGLang $version over the packages of $base"
        "$python" -m venv --clear --without-pip "$over"
        site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
        "$python" -m pip install -q --no-deps --no-compile --target "$(site "$over/bin/python")" "sglang==$version"
        # Through `addsitedir`, so that the base's own .pth files count: an editable sglang-blend is one.
        echo "import site; site.addsitedir('$(site "$python")')" >"$(site "$over/bin/python")/base.pth"
        touch "$over/.installed"
    fi
    python=$over/bin/python
fi
echo "== SGLang $version"
SGLANG_TESTED_VERSION=$version exec "$python" -m pytest "$@"
