# The recovering server asks here for each file of its log: `sh hand-over NAME PATH`, in its data directory.
#
# The process that restores puts the next few segments into this folder, and holds a lock on the file `lock` as long as it does.
# This ends with 1 when there is no such file; and with 200, at which the server gives up, when that process is gone: what was
# handed over so far must not be taken for the whole log.
here=pg_wal/stackward
[ -d "$here" ] || exit 200
case $1 in
*.history)
    # All that there are, from the beginning.
    [ -e "$here/$1" ] || exit 1
    cp "$here/$1" "$2" || exit 200
    exit 0
    ;;
esac
while :; do
    if [ -e "$here/$1" ]; then
        # On the same disk: a rename. It does not work when the file was taken away again, which says that it comes again.
        if mv "$here/$1" "$2"; then
            [ ! -e "$here/$1.wanted" ] || rm -f "$here/$1.wanted"
            exit 0
        fi
        [ ! -e "$here/$1" ] || exit 200
    fi
    if [ -e "$here/$1.none" ]; then
        rm -f "$here/$1.wanted"
        exit 1
    fi
    # Where there is no `flock`, the server waits, and somebody has to stop it.
    if [ -e "$here/ended" ] || flock -n -s "$here/lock" true 2>/dev/null; then
        echo "stackward: whoever handed over the log is gone; restore again with --delta" >&2
        exit 200
    fi
    [ -e "$here/$1.wanted" ] || true >"$here/$1.wanted" || exit 200
    sleep 0.02 2>/dev/null || sleep 1
done
