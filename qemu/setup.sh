#!/bin/sh
# Installs what building and running keel needs, and only what is missing.
#
#   sh qemu/setup.sh run      a C linker, Rust with the bare-metal target, QEMU
#   sh qemu/setup.sh test     the same, Rust's target for programs that run on the Linux in QEMU, and a C compiler for
#                             32-bit Arm
#   sh qemu/setup.sh check    a C linker, Rust with both targets, clippy and rustfmt
#
# Knows Debian 12 and 13, Ubuntu 24.04 and macOS with Homebrew. Elsewhere, or without the right to install, it says
# what is missing. Nothing is asked; a second run takes a fraction of a second.
set -eu

goal=${1:-run}
root=$(cd "$(dirname "$0")/.." && pwd)
oldest_qemu=8.2

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# at_least 8.2 10.0.2: whether the second version is not older than the first.
at_least() {
    [ "$(printf "%s\n%s\n" "$1" "$2" | sort -t. -k1,1n -k2,2n | head -n 1)" = "$1" ]
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        fail "needs root for: $* (there is no sudo; run this as root and try again)"
    fi
}

apt_update() {
    as_root apt-get -qq update || say "apt-get update reported errors; going on with the lists there are"
}

# apt_install REASON ARGUMENTS...
apt_install() {
    say "installing $2: $1"
    shift
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" >/dev/null ||
        fail "apt-get could not install $*"
}

# The version apt would install of a package; empty when it knows none.
apt_candidate() {
    apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *//p' | grep -v '^(none)$' || true
}

# 1:10.0.2+ds-2 -> 10.0.2
upstream() {
    echo "$1" | sed 's/^[0-9]*://; s/[^0-9.].*//'
}

linker() {
    have cc && return 0
    case $(uname -s) in
    Darwin) fail "no C compiler; run: xcode-select --install" ;;
    esac
    have apt-get || fail "no C compiler (cc) was found, which Rust links with; install gcc and the C library's headers"
    apt_update
    apt_install "Rust links host programs with it" gcc libc6-dev
}

# has_targets SYSROOT: whether a toolchain has the standard library for each of $targets.
has_targets() {
    for target in $targets; do
        [ -d "$1/lib/rustlib/$target" ] || return 1
    done
}

rust() {
    channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$root/rust-toolchain.toml")
    targets=aarch64-unknown-none-softfloat
    [ "$goal" = run ] || targets="$targets aarch64-unknown-linux-musl"
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    if ! have rustup; then
        if have rustc && at_least "${channel%.*}" "$(rustc --version | cut -d' ' -f2)" &&
            has_targets "$(rustc --print sysroot)"; then
            return 0 # A toolchain of its own kind that has what is needed.
        fi
        rustup_itself
    fi
    # Asking rustup is slow; its folders say the same.
    sysroot=$(rustup run "$channel" rustc --print sysroot 2>/dev/null || true)
    if [ -z "$sysroot" ]; then
        say "installing Rust $channel"
        rustup toolchain install "$channel" --profile minimal --no-self-update ||
            fail "rustup could not install Rust $channel"
        sysroot=$(rustup run "$channel" rustc --print sysroot)
    fi
    for target in $targets; do
        if [ ! -d "$sysroot/lib/rustlib/$target" ]; then
            say "installing Rust's standard library for $target"
            rustup target add --toolchain "$channel" "$target" || fail "rustup could not add the target $target"
        fi
    done
    if [ "$goal" = check ]; then
        for component in clippy rustfmt; do
            program=cargo-clippy
            [ "$component" = rustfmt ] && program=rustfmt
            if [ ! -x "$sysroot/bin/$program" ]; then
                say "installing $component"
                rustup component add --toolchain "$channel" "$component" || fail "rustup could not add $component"
            fi
        done
    fi
}

rustup_itself() {
    if have brew; then
        say "installing rustup"
        brew install --quiet rustup
        PATH="$(brew --prefix rustup)/bin:$PATH"
        return 0
    fi
    if have apt-get; then
        [ -n "$(apt_candidate rustup)" ] || apt_update
        if [ -n "$(apt_candidate rustup)" ]; then
            apt_install "it brings Rust's toolchains" rustup
        else
            rustup_by_pip
        fi
        return 0
    fi
    fail "rustup is missing; install it by hand (see the Rust project's pages) and try again"
}

# Debian 12 has no rustup. Python's package puccinialin brings its official installer; everything else of it is thrown
# away again.
rustup_by_pip() {
    python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install "its pip fetches rustup" python3-venv ca-certificates
    say "installing rustup with its official installer, into ${CARGO_HOME:-$HOME/.cargo}"
    folder=$(mktemp -d)
    python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" -q install puccinialin ||
        fail "pip could not install puccinialin; install rustup by hand (see the Rust project's pages) and try again"
    # It also installs a toolchain, in a folder of its own, and may stumble over this project's choice of another.
    (cd / && "$folder/venv/bin/python" -m puccinialin --location "$folder/rust") >"$folder/log" 2>&1 || true
    installer=$folder/rust/rustup-init/rustup-init
    [ -x "$installer" ] || {
        cat "$folder/log" >&2
        fail "rustup's installer could not be fetched; install rustup by hand (see the Rust project's pages) and try again"
    }
    "$installer" -y --quiet --profile minimal --default-toolchain none --no-modify-path ||
        fail "rustup's installer failed; install rustup by hand (see the Rust project's pages) and try again"
    rm -rf "$folder"
}

qemu_version() {
    qemu-system-aarch64 --version 2>/dev/null | sed -n 's/.*version \([0-9][0-9.]*\).*/\1/p' | head -n 1
}

qemu() {
    version=$(qemu_version)
    if [ -n "$version" ] && at_least $oldest_qemu "$version"; then
        return 0
    fi
    reason="the arm64 boards keel runs on (QEMU $oldest_qemu or newer; found: ${version:-none})"
    if [ "$(uname -s)" = Darwin ]; then
        have brew || fail "QEMU is missing; install Homebrew and try again"
        say "installing qemu: $reason"
        brew install --quiet qemu
    elif have apt-get; then
        qemu_apt
    else
        fail "needs $reason; install your system's package with qemu-system-aarch64"
    fi
    version=$(qemu_version)
    if [ -z "$version" ] || ! at_least $oldest_qemu "$version"; then
        fail "QEMU is ${version:-still missing} after installing; keel needs $oldest_qemu or newer"
    fi
}

qemu_apt() {
    apt_update
    if at_least $oldest_qemu "$(upstream "$(apt_candidate qemu-system-arm)")"; then
        apt_install "$reason" qemu-system-arm
        return 0
    fi
    # Debian 12 itself has 7.2; its backports have a newer one.
    # shellcheck source=/dev/null
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")-backports
    if ! apt-cache policy | grep -q "n=$suite\|a=$suite"; then
        enable_backports "$suite"
    fi
    apt_install "$reason" qemu-system-arm -t "$suite"
}

# Adds a suite of the mirror the machine already uses, with the same key.
enable_backports() {
    base=${1%-backports}
    source=$(debian_source "$base")
    [ -n "$source" ] || fail "apt's newest qemu-system-arm is too old, and no source of Debian $base was found to add $1 from"
    mirror=${source%% *}
    key=${source#* }
    say "adding the suite $1 of this machine's Debian mirror to apt (/etc/apt/sources.list.d/keel-$1.sources)"
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$mirror" "$1" "$key" |
        as_root tee "/etc/apt/sources.list.d/keel-$1.sources" >/dev/null
    apt_update
}

# "URL KEYRING" of the first apt source that carries a suite, in either format.
debian_source() {
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] || continue
        awk -v suite="$1" -v key="$key" '
            function flush() {
                n = split(suites, list, " ")
                for (i = 1; i <= n; i++) if (list[i] == suite && uri != "") { print uri, signed; exit }
                uri = ""; suites = ""; signed = key
            }
            BEGIN { signed = key }
            /^$/ { flush() }
            /^URIs:/ { uri = $2 }
            /^Suites:/ { $1 = ""; suites = $0 }
            /^Signed-By: *\// { signed = $2 }
            END { flush() }' "$file" | head -n 1
    done | head -n 1 | grep . && return 0
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -f "$file" ] || continue
        sed -n 's/^deb  *//p' "$file" | sed 's/^\[[^]]*\] *//' | awk -v suite="$1" -v key="$key" '$2 == suite { print $1, key }'
    done | head -n 1
}

# The 32-bit test kernel is C: Rust has no AArch32 target here. Without it, its tests are ignored with the reason.
arm_compiler() {
    have arm-linux-gnueabihf-gcc && return 0
    if ! have apt-get; then
        say "no arm-linux-gnueabihf-gcc: the tests of the 32-bit test kernel will be left out"
        return 0
    fi
    [ -n "$(apt_candidate gcc-arm-linux-gnueabihf)" ] || apt_update
    apt_install "the 32-bit test kernel is compiled with it" gcc-arm-linux-gnueabihf
}

linker
rust
case $goal in
run) qemu ;;
test)
    qemu
    arm_compiler
    ;;
check) ;;
*) fail "unknown goal $goal; use run, test or check" ;;
esac
