# shellcheck shell=bash
#
# Functions that set up what this project needs; to be sourced by bash scripts in the repository's root.
#
#   provision_packages        the Debian packages, as root or by sudo; else says what is missing and goes on
#   provision_venv [EXTRA]    .venv with the package (editable) and its extra, "test" unless told otherwise ("" for none)
#   provision_gdb18           the second gdb, in the cache
#   provision_lldb23          the second lldb, in the cache
#   provision_sites           a pytest for the Python that each gdb embeds, in the cache
#
# pip and apt are used as they are configured on the machine. Everything is done only if it is missing.
# KVM_DBG_PYTHON names the interpreter to use; otherwise the first python3 of at least 3.11 that can make a venv.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/kvm-dbg

# What the tests and the lab call, by package. gdb brings the shared library of the Python that it embeds, which
# the second gdb needs as well; crash and libkdumpfile are peers that answers are compared with.
PACKAGES=(
    python3 python3-venv ca-certificates git
    gdb lldb-19 crash python3-libkdumpfile
    qemu-system-x86 makedumpfile kexec-tools busybox-static pahole
    gcc libc6-dev binutils libc-bin cpio zstd xz-utils e2fsprogs util-linux procps debian-archive-keyring
)
GDB18="gdb-for-pwndbg==18.1.*"
LLDB23="lldb-for-pwndbg==23.1.*"

say() { printf '    %s\n' "$*"; }

_as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

_can_be_root() {
    [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

provision_packages() {
    local missing=() package lists
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "no apt here: these Debian packages, or what they are called on this system, are up to you:"
        say "${PACKAGES[*]}"
        return 0
    fi
    for package in "${PACKAGES[@]}"; do
        if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            missing+=("$package")
        fi
    done
    # The lab asks apt for kernels, so the lists are needed even when nothing is to be installed.
    lists=$(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*' -print -quit 2>/dev/null || true)
    if [ ${#missing[@]} -eq 0 ] && [ -n "$lists" ]; then
        say "all ${#PACKAGES[@]} Debian packages are installed"
        return 0
    fi
    if ! _can_be_root; then
        say "neither root nor sudo: going on without these Debian packages; their tests will be skipped:"
        say "apt-get install --no-install-recommends ${missing[*]}"
        return 0
    fi
    say "apt-get update"
    _as_root apt-get -q -q -o DPkg::Lock::Timeout=300 update </dev/null
    if [ ${#missing[@]} -gt 0 ]; then
        say "apt-get install ${missing[*]}"
        _as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -q -y -o DPkg::Lock::Timeout=300 \
            -o Dpkg::Use-Pty=0 install --no-install-recommends "${missing[@]}" </dev/null >"$CACHE/apt.log" 2>&1 ||
            { tail -n 30 "$CACHE/apt.log"; return 1; }
    fi
}

find_python() {
    local python
    for python in ${KVM_DBG_PYTHON:+"$KVM_DBG_PYTHON"} python3 /usr/bin/python3 python3.{14,13,12,11}; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return 0
        fi
    done
    say "no Python of at least 3.11 with venv and ensurepip is here (on Debian 12: apt-get install python3-venv);" >&2
    say "install one, or name it in KVM_DBG_PYTHON" >&2
    return 1
}

_pip() { # PYTHON ARGUMENT...
    local python=$1
    shift
    "$python" -m pip --disable-pip-version-check --no-input --quiet "$@" </dev/null
}

provision_venv() {
    local extra=${1-test} python wanted
    wanted="$extra $(sha256sum "$ROOT/pyproject.toml" | cut -d' ' -f1) $ROOT"
    # Whatever extra it has, it has the package itself as well.
    if [ -x "$VENV/bin/python" ] && [[ "$(cat "$VENV/.provisioned" 2>/dev/null)" == ${extra:-*}"${wanted#"$extra"}" ]]; then
        say "$VENV is up to date"
        return 0
    fi
    if ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
        python=$(find_python)
        say "$python -m venv $VENV"
        "$python" -m venv --clear "$VENV"
    fi
    say "pip install -e .${extra:+[$extra]}"
    _pip "$VENV/bin/python" install -e "$ROOT${extra:+[$extra]}"
    printf '%s\n' "$wanted" >"$VENV/.provisioned"
}

_works() { # PROGRAM
    case ${1##*/} in
        gdb*) [ "$("$1" -nx -batch -ex 'python print(6 * 7)' 2>/dev/null </dev/null)" = 42 ] ;;
        lldb*) [ "$("$1" --no-lldbinit -Q -b -o 'script print(6 * 7)' 2>/dev/null </dev/null)" = 42 ] ;;
    esac
}

_provision_debugger() { # NAME VERSION REQUIREMENT PROGRAM-GIVEN-BY-A-PERSON
    local place=$CACHE/$1-$2 python
    if [ -n "$4" ] || _works "$place/bin/$1"; then
        say "$1 $2 is ${4:-$place/bin/$1}"
        return 0
    fi
    # It loads the shared libpython of the interpreter that made its venv, which not every interpreter has.
    for python in "$(find_python)" /usr/bin/python3; do
        say "$1 $2: $python -m venv $place; pip install $3"
        if "$python" -m venv --clear "$place" && _pip "$place/bin/python" install "$3" && _works "$place/bin/$1"; then
            return 0
        fi
    done
    say "$1 $2 could not be set up; its tests will be skipped"
    return 1
}

provision_gdb18() { _provision_debugger gdb 18.1 "$GDB18" "${KVM_DBG_GDB18:-}"; }

provision_lldb23() { _provision_debugger lldb 23.1 "$LLDB23" "${KVM_DBG_LLDB23:-}"; }

provision_sites() {
    local version site new more
    while read -r version; do
        site=$CACHE/site-$version
        if [ -f "$site/pytest/__init__.py" ]; then
            say "pytest for gdb's Python $version is in $site"
            continue
        fi
        say "pip install --target $site --python-version $version pytest"
        new=$(mktemp -d "$CACHE/site-new.XXXXXX")
        more=()
        case $version in 3.[0-9] | 3.10) more=(exceptiongroup tomli typing_extensions) ;; esac
        _pip "$VENV/bin/python" install --target "$new" --python-version "$version" --only-binary=:all: \
            pytest ${more[@]+"${more[@]}"}
        rm -rf "$site"
        mv "$new" "$site"
    done < <(cd "$ROOT" && "$VENV/bin/python" -m tests.debuggers.debugger)
}

mkdir -p "$CACHE"
