#!/bin/sh
# Installs what is missing of the named groups (build, test, check) on Debian 12. Does nothing when all is there.
# Usage: tools/setup.sh GROUP...
set -eu
packages=""
for group in "$@"; do
    case "$group" in
    build) packages="$packages gcc make pkg-config libmicrohttpd-dev libjansson-dev libcurl4-openssl-dev libpcre2-dev
                     libutf8proc-dev libssl-dev libedit-dev libsqlite3-dev libhiredis-dev python3 python3-pip" ;;
    test) packages="$packages libcmocka-dev python3-venv curl redis-server nginx sqlite3" ;;
    check) packages="$packages clang clang-format libclang-rt-14-dev" ;;
    *) echo "setup.sh: there is no group '$group'; build, test and check are" >&2; exit 2 ;;
    esac
done
missing=""
for p in $packages; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
echo "Installing:$missing"
as_root=""
if [ "$(id -u)" != 0 ]; then
    as_root=sudo
    command -v sudo >/dev/null || { echo "setup.sh: run as root: apt-get install$missing" >&2; exit 1; }
fi
# Redis and Nginx are for the tests, which start their own: Debian's services stay off where nothing is set about that.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
    $as_root chmod 755 $policy
    trap '$as_root rm -f $policy' EXIT
fi
$as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
