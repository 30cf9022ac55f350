major=${DPKG_MAINTSCRIPT_PACKAGE#postgresql-}
major=${major%-obanrs}

# preloading VERSION CLUSTER: does its configuration preload obanrs? pg_conftool follows include_dir, and
# lets what ALTER SYSTEM wrote win.
preloading() {
    case $(pg_conftool --short "$1" "$2" show shared_preload_libraries 2>/dev/null || true) in
        *obanrs*) true ;;
        *) false ;;
    esac
}

# The clusters that preload obanrs, one "NAME DATA-DIRECTORY" a line. Only those that pg_lsclusters lists
# are known; a data directory that is elsewhere is its owner's to look after.
preloading_clusters() {
    command -v pg_lsclusters >/dev/null && command -v pg_conftool >/dev/null || return 0
    pg_lsclusters --no-header 2>/dev/null | while read -r version cluster port status owner data log; do
        if [ "$version" = "$major" ] && preloading "$version" "$cluster"; then
            echo "$cluster $data"
        fi
    done
}
