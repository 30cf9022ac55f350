# What the tools share; to be sourced from the top of the checkout.

# Where programs are that tools/setup and others get for this checkout.
PATH=$PWD/target/tools/bin:$PATH

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

# What is downloaded or built once for all checkouts. The user that servers run as reads it.
if [ -n "${OBANRS_CACHE-}" ]; then cache=$OBANRS_CACHE
elif [ "$(id -u)" = 0 ]; then cache=/var/cache/obanrs
else cache=${XDG_CACHE_HOME:-$HOME/.cache}/obanrs; fi

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else say "\"$*\" needs root, and there is no sudo"; exit 1; fi
}

# build_crates WHAT COUNT COMMAND...: runs a command that builds about so many crates the first time. On a terminal
# cargo itself shows how far it is; elsewhere a line tells it now and then. What else it prints is shown if it fails.
build_crates() {
    local what=$1 count=$2 log status line crates=0
    shift 2
    log=$(mktemp)
    set +e
    if [ -t 2 ]; then
        "$@" >"$log"
        status=$?
    else
        # Not awk, which may read ahead until there is a block.
        "$@" 2>&1 | tee "$log" | while IFS= read -r line; do
            case $line in
                *' Compiling '*) if [ $((++crates % 20)) = 0 ]; then say "$what: $crates of about $count crates"; fi ;;
                *' Blocking '*) say "${line#"${line%%[! ]*}"}" ;;
            esac
        done
        status=${PIPESTATUS[0]}
    fi
    set -e
    if [ "$status" != 0 ]; then cat "$log" >&2; fi
    rm -f "$log"
    return "$status"
}

updated=
apt_install() {
    command -v apt-get >/dev/null || { say "missing here, and there is no apt-get to install it: $*"; exit 1; }
    if [ -z "$updated" ]; then
        say "reading the package lists"
        as_root apt-get update -qq
        updated=yes
    fi
    say "installing $* with what it needs (seconds to a minute or two)"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# need_commands COMMAND:PACKAGE... installs the packages of commands that are not there.
need_commands() {
    local missing=() pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
}

# The Python of the tests' own: a virtual environment in target/python with what
# tools/requirements.txt lists.
python=$PWD/target/python/bin/python
need_python() {
    if [ -e target/python/.complete ] && [ target/python/.complete -nt tools/requirements.txt ]; then return; fi
    # Debian's python3 is there without the part that makes virtual environments.
    python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3 python3-venv
    say "making the tests' Python environment"
    rm -rf target/python
    python3 -m venv target/python
    "$python" -m pip install --quiet --requirement tools/requirements.txt
    touch target/python/.complete
}

# Where this machine downloads Debian from, for other suites of the same place.
debian_site() {
    # An image may come without apt's lists.
    [ -n "$(apt-get indextargets --format '$(SITE)' 'Origin: Debian')" ] || as_root apt-get update -qq
    local site
    site=$(apt-get indextargets --format '$(SITE)' 'Origin: Debian' 'Label: Debian' 'Created-By: Packages' | head -1)
    [ -n "$site" ] || { say "no Debian in apt's sources to derive a place to download from"; return 1; }
    echo "$site"
}

# One at a time, also between checkouts: cached FOLDER FUNCTION has the function fill the folder in the
# cache, unless it did before. A half-made folder has no stamp, and is made anew.
cached() {
    local folder=$1 make=$2
    mkdir -p "$cache"
    exec 9>"$cache/.lock"
    if ! flock -n 9; then say "waiting for another set-up"; flock 9; fi
    if [ ! -e "$folder/.complete" ]; then
        rm -rf "$folder"
        mkdir -p "$folder"
        "$make" "$folder" >&2
        touch "$folder/.complete"
    fi
    exec 9>&-
}
