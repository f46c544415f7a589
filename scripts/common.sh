# Sourced by the scripts here: where the cache is, how to speak, how to reach Debian's suites without touching the system's.

# Kernels, the emulator and busybox go here; nothing of it is ever installed.
cache=${KTSTR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ktstr}
# Nobody waits for a mirror longer than this, per apt call.
apt_seconds=900

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() { say "$*"; exit "${fail_code:-1}"; }

# need COMMAND PACKAGE: stops, naming the package, where a command is missing.
need() { command -v "$1" >/dev/null || fail "$1 is missing: install the package $2 (as root: apt-get install $2)"; }

# lock NAME: waits until no other run holds the lock; held until `unlock`, or until this process ends.
lock() {
    mkdir -p "$cache"
    exec 9>"$cache/.$1.lock"
    flock 9
}
unlock() { exec 9>&-; }

# Prepares suites_apt for the suites that hold what we fetch, with lists of their own under the cache.
suites_setup() {
    need apt-get "apt, on a Debian or a relative of it"
    need dpkg dpkg
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg signed=""
    mirror=http://deb.debian.org/debian
    if grep -qs '^ID=debian$' /etc/os-release; then
        # The machine's own mirror, if it names one, may be the only one it can reach.
        mirror=$(apt-cache policy bash | awk '/http/ && !m { m = $2 } END { print m }' | sed 's/-security//')
        mirror=${mirror:-http://deb.debian.org/debian}
    elif [ ! -e "$keyring" ]; then
        fail "this is not Debian, and Debian's keys are not here: install the package debian-archive-keyring"
    fi
    [ -e "$keyring" ] && signed="[signed-by=$keyring] "
    mkdir -p "$cache"/apt/lists/partial "$cache"/apt/cache/archives/partial
    local suite
    for suite in bookworm bookworm-backports trixie trixie-backports sid; do
        printf 'deb %s%s %s main\n' "$signed" "$mirror" "$suite"
    done >"$cache/apt/sources.list"
    printf 'deb %s%s-security bookworm-security main\n' "$signed" "$mirror" >>"$cache/apt/sources.list"
    suites_options=(-o Dir::Etc::sourcelist="$cache/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State::Lists="$cache/apt/lists" -o Dir::Cache="$cache/apt/cache"
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=2)
    # A suite that is gone is no reason to give up on the others: what matters is whether the package is found.
    suites apt-get update >"$cache/apt/update.log" 2>&1 || say "apt-get update had errors, see $cache/apt/update.log"
}

# suites apt-get|apt-cache ...: the command, over those suites.
suites() {
    local command=$1
    shift
    timeout "$apt_seconds" "$command" "${suites_options[@]}" "$@"
}

# fetch DIR PACKAGE[=VERSION]...: downloads and unpacks packages into DIR.
fetch() {
    local dir=$1 deb
    shift
    mkdir -p "$dir/.deb"
    (cd "$dir/.deb" && suites apt-get download "$@" >/dev/null) || fail "cannot download $*"
    for deb in "$dir"/.deb/*.deb; do dpkg -x "$deb" "$dir"; done
    rm -rf "$dir/.deb"
}
