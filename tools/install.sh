#!/usr/bin/env bash
# Installs the Debian packages that are missing: says which ones and why, then asks apt for them by name.
#   tools/install.sh run      what building and running needs
#   tools/install.sh check    also what the tests need
#   tools/install.sh bench    what building, running and `make bench-gateway` need
# Needs root or sudo only when something is missing. The servers that come with packages are not started: tiergate runs its own.
set -euo pipefail

build="gcc make pkg-config libc6-dev libmicrohttpd-dev libjansson-dev libhiredis-dev libpq-dev libssl-dev libpcre2-dev
       libutf8proc-dev libinih-dev zlib1g-dev"
run="redis-server postgresql python3 python3-pip curl ca-certificates"
check="libcmocka-dev libsimde-dev g++ clang-14 clang-format-14 libclang-rt-14-dev llvm-14 python3-venv nodejs npm git
       procps spin"

bench="nginx-light nodejs npm procps"

case ${1:-run} in
run) wanted="$build $run" ;;
check) wanted="$build $run $check" ;;
bench) wanted="$build $run $bench" ;;
*) echo "usage: tools/install.sh run|check|bench" >&2; exit 2 ;;
esac

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
# A program that was installed another way serves as well as its package.
is_there() {
    case $1 in
    nodejs) command -v node >/dev/null ;;
    npm | git | curl | gcc | make) command -v "$1" >/dev/null ;;
    *) false ;;
    esac
}

if ! command -v apt-get >/dev/null; then
    echo "install: this is no Debian system; install by hand what these packages hold: $wanted" >&2
    exit 0
fi
missing=()
for package in $wanted; do
    is_installed "$package" || is_there "$package" || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "install: these Debian packages are missing and will be installed: ${missing[*]}"
sudo=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "install: run as root, or install sudo: apt-get install ${missing[*]}" >&2; exit 1; }
    sudo=sudo
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then # keeps apt from starting the packages' own services
    printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
    $sudo chmod 755 $policy
    trap '$sudo rm -f $policy' EXIT
fi
if ! $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; then
    echo "install: once more with fresh package lists"
    $sudo apt-get update
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
fi
