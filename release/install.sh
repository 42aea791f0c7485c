#!/bin/sh
# Puts the program of this folder into /opt/tapfinger and links the command; needs no network, and asks for none.
# Changes nothing of Slurm: that is `tapfinger install`. `install.sh --remove` takes the program off again.
set -eu

prefix=${PREFIX:-/opt/tapfinger}
shared=${SHARED:-/usr/local}
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
pages="share/man/man1/tapfinger.1 share/bash-completion/completions/tapfinger
  share/zsh/site-functions/_tapfinger share/fish/vendor_completions.d/tapfinger.fish"

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

remove() {
    [ -e "$prefix/.from-the-bundle" ] || fail "$prefix was not put there by this script: nothing was removed"
    [ ! -e /var/lib/tapfinger-install/record.json ] || fail "run this first, then again: tapfinger uninstall"
    while read -r kind path; do
        if [ "$kind" = folder ]; then rmdir "$path" 2>/dev/null || true; else rm -f "$path"; fi
    done <"$prefix/.from-the-bundle"
    rm -rf "$prefix"
    echo "removed $prefix and its links"
}

# Notes what it makes, last first, so that it can be undone: a link, and the folders on the way that were missing.
link() {
    target=$1 path=$2 folder=$(dirname "$2") missing=
    while [ ! -d "$folder" ]; do
        missing="$folder $missing"
        folder=$(dirname "$folder")
    done
    for folder in $missing; do
        mkdir "$folder"
        note folder "$folder"
    done
    ln -s "$target" "$path"
    note link "$path"
}

note() {
    { echo "$1 $2"; cat "$prefix/.from-the-bundle"; } >"$prefix/.notes"
    mv "$prefix/.notes" "$prefix/.from-the-bundle"
}

check() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    locked=$here/requirements-$version.txt
    [ -e "$locked" ] || fail "this bundle is for Python $(cd "$here" && echo requirements-*.txt), here is $version"
    [ ! -e "$prefix" ] || [ -e "$prefix/.from-the-bundle" ] || fail "$prefix is there, and not by this script"
    if [ -e "$prefix/.from-the-bundle" ]; then return; fi
    for path in bin/tapfinger $pages; do
        if [ -e "$shared/$path" ] || [ -L "$shared/$path" ]; then fail "$shared/$path is there, and not by this script"; fi
    done
}

install() {
    check
    if [ ! -e "$prefix" ]; then
        mkdir "$prefix"
        : >"$prefix/.from-the-bundle"
    fi
    # Without ensurepip, which Debian has in a package of its own; pip comes along as a wheel.
    "$python" -m venv --clear --without-pip "$prefix/venv"
    pip=$(echo "$here"/wheels/pip-*.whl)
    "$prefix/venv/bin/python" "$pip/pip" --isolated --quiet --disable-pip-version-check install \
        --no-index --find-links "$here/wheels" --require-hashes --no-deps --requirement "$locked"
    rm -rf "$prefix/share"
    cp -R "$here/share" "$prefix/share"
    cp "$here/install.sh" "$prefix/install.sh"
    [ -L "$shared/bin/tapfinger" ] || link "$prefix/venv/bin/tapfinger" "$shared/bin/tapfinger"
    for path in $pages; do [ -L "$shared/$path" ] || link "$prefix/$path" "$shared/$path"; done
    echo "$("$prefix/venv/bin/tapfinger" --version) is in $prefix"
    if [ -e /var/lib/tapfinger-install/record.json ]; then
        echo "next: tapfinger install, for what the new release brings, and systemctl restart tapfinger-serve tapfinger-agent"
    else
        echo "next, on the controller: tapfinger install --dry-run"
    fi
}

case "${1-}" in
"") install ;;
--remove) remove ;;
*) fail "unknown option $1; there is --remove" ;;
esac
